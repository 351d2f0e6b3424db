"""`neurogen bench`: what is said, drawn and refused. No test looks at absolute speed."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import MinP, Reverse
from cli_helpers import offer
from click.testing import CliRunner, Result

import neurogen
from neurogen import Registry
from neurogen.bench.machine import cpu_name
from neurogen.bench.plot import draw_plot, slope
from neurogen.bench.results import BenchReport
from neurogen.cli import main
from neurogen.cli.bench_output import print_report

pytestmark = pytest.mark.usefixtures("registry")

QUICK = ("--vocab", "500", "--batch", "2", "--seconds", "0.01", "--kind", "normal")


def bench(*arguments: str) -> Result:
    """Run `neurogen bench` in this process; an exception that is no exit is the test's."""
    result = CliRunner().invoke(main, ["bench", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def reported(*arguments: str) -> dict[str, Any]:
    result = bench(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


# The command


def test_threads_are_those_asked_for_and_only_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.bench.machine.busy_cores", lambda: float(os.cpu_count() or 1))
    before = torch.get_num_threads()
    result = bench("greedy", *QUICK, "--threads", "1")
    assert ", 1 thread;" in result.stdout
    assert "and this measures with 1 thread: times will jump" in result.stderr
    assert torch.get_num_threads() == before


def test_the_table_has_a_row_for_every_cell_and_says_where_it_was_measured() -> None:
    result = bench("topk", "greedy", *QUICK, "--batch", "1", "--top-k", "3")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[0] == "SAMPLER"
    assert "OVER FLOOR" in lines[0]
    assert "VS TRANSFORMERS" in lines[0]
    assert [line.split()[0] for line in lines[1:5]] == ["topk(k=3,", "topk(k=3,", "greedy", "greedy"]
    assert lines[3].endswith(" -")
    assert cpu_name() in result.stdout
    assert f"torch {torch.__version__}" in result.stdout
    assert "normal: 3 * N(0, 1)." in lines


def test_a_narrow_terminal_gets_medians_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    report = BenchReport.model_validate(reported("greedy", *QUICK))
    shown = []
    for columns in (100, 200):
        monkeypatch.setattr("shutil.get_terminal_size", lambda columns=columns: os.terminal_size((columns, 24)))
        stdout = io.StringIO()
        stdout.isatty = lambda: True  # type: ignore[method-assign]
        with contextlib.redirect_stdout(stdout):
            print_report(report)
        shown.append(stdout.getvalue())
    assert " to " not in shown[0]
    assert "--json has the quartiles" in shown[0]
    assert " to " in shown[1]


def test_json_holds_machine_cells_times_and_ratios() -> None:
    report = reported("topk", *QUICK)
    assert report["machine"]["neurogen"] == neurogen.__version__
    assert {"torch", "numba", "cpu", "threads", "python", "packages", "device"} < set(report["machine"])
    (result,) = report["results"]
    assert result["cell"] == {"kind": "normal", "dtype": "float32", "vocab": 500, "batch": 2}
    assert result["params"] == {"k": 50, "temperature": 0.8}
    assert 0 < result["own"]["least"] <= result["own"]["microseconds"]["median"]
    assert BenchReport.model_validate(report).results[0].ratio_to("torch") > 0


def test_without_a_name_every_sampler_that_loads_is_measured(registry: Registry) -> None:
    offer(registry, MinP)
    registry._plugins[0].load_module = lambda: 1 / 0  # greedy
    registry._plugins[0].status = "found"
    broken = registry._plugins[0].name
    result = bench(*QUICK, "--json")
    assert result.exit_code == 0
    measured = {entry["sampler"] for entry in json.loads(result.stdout)["results"]}
    assert measured == {"greedy", "topk", "topp", "minp"} - {broken}
    assert f"Left out: The sampler plugin '{broken}'" in result.stderr


def test_an_option_goes_to_every_sampler_that_has_it(registry: Registry) -> None:
    offer(registry, MinP)
    report = reported("minp", "topk", *QUICK, "--temperature", "1.5", "--min-p", "0.3")
    assert [result["params"] for result in report["results"]] == [
        {"min_p": 0.3, "temperature": 1.5},
        {"k": 50, "temperature": 1.5},
    ]


def test_a_flag_is_given_as_a_word_and_options_of_the_command_stay_its_own(registry: Registry) -> None:
    offer(registry, Reverse)
    report = reported("reverse", *QUICK, "--loud", "yes", "--device", "cpu")
    assert report["results"][0]["params"] == {"device": 1, "loud": True}


def test_dtypes_that_a_sampler_does_not_take_are_left_out(registry: Registry) -> None:
    offer(registry, Reverse)
    result = bench("reverse", *QUICK, "--dtype", "float32", "--dtype", "bfloat16", "--json")
    assert [entry["cell"]["dtype"] for entry in json.loads(result.stdout)["results"]] == ["float32"]
    assert "reverse takes float32 only" in result.stderr
    assert "Nothing is left to measure" in bench("reverse", *QUICK, "--dtype", "float16").stderr


def test_worst_cases_are_flat_equal_half_the_vocabulary_and_nearly_all_the_mass() -> None:
    report = reported("topk", "topp", "--vocab", "400", "--batch", "1", "--seconds", "0.01", "--worst-cases")
    cases = [(result["cell"]["kind"], result["params"]) for result in report["results"]]
    assert ("flat", {"k": 200, "temperature": 0.8}) in cases
    assert ("normal", {"k": 200, "temperature": 0.8}) in cases
    assert ("equal", {"k": 50, "temperature": 0.8}) in cases
    assert ("flat", {"p": 0.999, "temperature": 0.8}) in cases
    assert ("normal", {"p": 0.9, "temperature": 0.8}) in cases
    assert all(set(result["peers"]) == {"floor", "torch"} for result in report["results"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tokp"], 1, "There is no sampler 'tokp'. Installed: greedy, topk, topp. Did you mean"),
        (["topk", "--vocab", "0"], 2, "Invalid value for '--vocab': it must be an integer >= 1, got '0'."),
        (["topk", "--batch", "many"], 2, "Invalid value for '--batch': it must be an integer >= 1, got 'many'."),
        (["topk", "--vocab", "99999999", "--batch", "9"], 1, "A vocab of 99,999,999 at batch 9 makes 899,999,991"),
        (["topk", "--dtype", "int8"], 2, "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["topk", "--kind", "steep"], 2, "'steep' is not one of"),
        (["topk", "--seconds", "0"], 2, "it must be a number > 0, got '0'"),
        (["topk", "--device", "tpu"], 2, "it must be auto, cpu, cuda or cuda:N"),
        (["topk", "--top-k", "-1"], 2, "topk: k must be an integer >= 0, got -1"),
        (["topk", "--top-k", "few"], 2, "topk: k must be an integer >= 0, got 'few'"),
        (["topk", "--top-p", "0.5"], 2, "--top-p belongs to topp, and topk is measured: leave it out, or name topp"),
        (["topk", "--k", "5"], 2, "No such option '--k': topk has --top-k and --temperature. Did you mean --top-k?"),
        (["topk", "--worst-cases", "--kind", "flat"], 2, "--worst-cases chooses the logits itself"),
        (["topk", "--plot", "times.pdf"], 1, "--plot draws a PNG, got 'times.pdf'"),
        (["topk", "--plot", "absent/times.png"], 1, "The picture cannot be written to absent/times.png: there is no"),
        (["topk", *QUICK, "--plot", "times.png"], 1, "needs two different sizes at least: repeat --vocab or --batch"),
    ],
)
def test_errors_say_what_was_given_and_what_is_allowed(arguments: list[str], code: int, message: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not result.stdout


def test_the_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    result = bench("topk", *QUICK, "--device", "cuda")
    assert result.exit_code == 1
    assert "Use --device cpu, or auto" in result.stderr


def test_help_shows_the_options_of_all_samplers() -> None:
    shown = " ".join(bench("--help").stdout.split())
    assert "Options of the samplers: --top-k VALUE topk: Tokens to draw from; 0 keeps all. Default 50." in shown
    assert "--temperature VALUE" in shown


# The picture


def test_the_picture_is_drawn_for_several_sizes(tmp_path: Path) -> None:
    picture = tmp_path / "times.png"
    result = bench("topk", "greedy", *QUICK, "--vocab", "1000", "--kind", "flat", "--plot", str(picture))
    assert result.exit_code == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"The picture is in {picture}." in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["times.png"]


def test_a_picture_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    report = BenchReport.model_validate(reported("greedy", *QUICK))
    with pytest.raises(neurogen.errors.DataError, match="cannot be written"):
        draw_plot(report, tmp_path / "absent" / "times.png")


def test_slopes_are_those_of_powers() -> None:
    assert slope([(10, 3.0), (100, 300.0), (1000, 30_000.0)]) == pytest.approx((2.0, -1.5228787))
    assert slope([(10, 3.0), (10, 4.0)]) is None
