"""Benchmarks beside the peers: what is measured, what is said, what is refused. No test looks at absolute speed."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import neurogen
from neurogen import Param, ParameterError, Registry, Sampler, SamplerParams, TruncationSampler, hookimpl
from neurogen.bench.cells import Cell, grid
from neurogen.bench.clock import LEAST_TURNS, take_turns
from neurogen.bench.logits import make_logits, widened
from neurogen.bench.machine import busy_cores, cpu_name, this_machine
from neurogen.bench.measure import draw_of, measure
from neurogen.bench.peers import peers_for, torch_peer, transformers_peer
from neurogen.bench.plot import draw_plot, slope
from neurogen.bench.results import Quartiles, Report
from neurogen.bench.rule import Rule, rule_of
from neurogen.cli import main
from neurogen.cli.bench_output import print_report
from neurogen.registry import ENTRY_POINT_GROUP

CPU = torch.device("cpu")
QUICK = ("--vocab", "500", "--batch", "2", "--seconds", "0.01", "--kind", "normal")
SECONDS = 0.01


class MinP(TruncationSampler):
    """A stranger's sampler."""

    name = "minp"
    api_version = 1

    class Params(SamplerParams):
        min_p: float = Param(0.1, ge=0, le=1, description="Least share of the largest.")
        temperature: float = Param(1.0, ge=0, description="As usual.")

    def keep(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        below = logits.double() - logits.double().amax(dim=-1, keepdim=True)
        return (below / params.temperature[:, None]).exp() >= params.min_p[:, None]


class Reverse(Sampler):
    """A sampler that nobody has heard of: always the last token."""

    name = "reverse"
    api_version = 1
    dtypes = frozenset({"float32"})

    class Params(SamplerParams):
        device: int = Param(1, ge=0, description="Its option is one of the command's own.")
        loud: bool = Param(False, description="A flag.")

    def select(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full((logits.shape[0],), logits.shape[1] - 1)

    def distribution(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.select(logits), logits.shape[1]).float()

    def survivors(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        return self.distribution(logits, params) > 0


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The three first samplers, whatever else is installed, in a registry of this test alone."""
    first = [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name in ("greedy", "topk", "topp")]
    own = Registry(first, disabled=())
    monkeypatch.setattr("neurogen.registry._default", own)
    return own


def offer(registry: Registry, *classes: type[Sampler]) -> None:
    class Plugin:
        __name__ = "strange_plugin"

        @hookimpl
        def neurogen_samplers(self) -> list[type[Sampler]]:
            return list(classes)

    registry.register(Plugin(), distribution="neurogen-strange", version="9.9")


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


# Cells and their logits


def test_a_grid_holds_every_combination_once() -> None:
    cells = grid(["flat", "flat"], ["float32"], [10, 20], [1, 2])
    assert [str(cell) for cell in cells] == [
        "flat float32 vocab=10 batch=1",
        "flat float32 vocab=10 batch=2",
        "flat float32 vocab=20 batch=1",
        "flat float32 vocab=20 batch=2",
    ]


def test_a_cell_that_no_machine_could_hold_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"A vocab of 262,144 at batch 2,048 makes 536,870,912 logits; a cell may"):
        grid(["flat"], ["float32"], [262_144], [2048])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["normal", "real", "flat", "equal"])
def test_logits_have_the_shape_and_dtype_of_their_cell_and_never_vary(kind: Any, dtype: Any) -> None:
    cell = Cell(kind=kind, dtype=dtype, vocab=300, batch=3)
    logits, source = make_logits(cell, CPU)
    assert logits.shape == (3, 300)
    assert str(logits.dtype) == f"torch.{dtype}"
    assert logits.isfinite().all()
    assert logits.equal(make_logits(cell, CPU)[0])
    assert source


def test_kinds_are_as_flat_as_they_say() -> None:
    top = {}
    for kind in ("normal", "real", "flat", "equal"):
        logits, _ = make_logits(Cell(kind=kind, vocab=2000, batch=8), CPU)  # type: ignore[arg-type]
        top[kind] = torch.softmax(logits, -1).amax(-1).median().item()
    assert top["equal"] == pytest.approx(1 / 2000)
    assert top["equal"] < top["flat"] < 0.001 < top["normal"] < top["real"]


def test_real_logits_say_which_model_they_are_of_and_what_was_cut() -> None:
    _, source = make_logits(Cell(kind="real", vocab=300), CPU)
    assert source == "next-token logits of starter over a text, the first 300 of 2,048 ids"


def test_real_logits_of_a_large_vocabulary_come_without_the_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.bench.logits.find_gguf", lambda known: None)
    monkeypatch.setattr("neurogen.bench.logits._real", neurogen.bench.logits._real.__wrapped__)  # without its cache
    logits, source = make_logits(Cell(kind="real", vocab=9000, batch=2), CPU)
    assert logits.shape == (2, 9000)
    assert source == "next-token logits of starter over a text, widened from 2,048 to 9,000 ids by improbable tokens"


def test_widening_keeps_the_head_and_most_of_the_mass() -> None:
    rows, _ = make_logits(Cell(kind="real", vocab=2048, batch=16), CPU)
    wide = widened(rows, 50_000)
    assert wide[:, :2048].equal(rows)
    assert wide.topk(50).indices.equal(rows.topk(50).indices)
    kept = torch.softmax(wide, -1)[:, :2048].sum(-1)
    assert kept.min() > 0.5


# Peers


@pytest.mark.parametrize(
    ("name", "params", "rule"),
    [
        ("greedy", {}, Rule(0.0)),
        ("topk", {"k": 7}, Rule(0.8, k=7)),
        ("topp", {"p": 0.3, "temperature": 1.5}, Rule(1.5, p=0.3)),
        ("minp", {"min_p": 0.2}, Rule(1.0, min_p=0.2)),
        ("reverse", {}, Rule(1.0, exact=False)),
    ],
)
def test_peers_are_told_what_the_sampler_does(
    registry: Registry, name: str, params: dict[str, Any], rule: Rule
) -> None:
    offer(registry, MinP, Reverse)
    assert rule_of(registry.load_sampler(name, **params)) == rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("greedy", {}),
        ("topk", {"k": 5}),
        ("topk", {"k": 0}),
        ("topk", {"k": 5, "temperature": 0.0}),
        ("topp", {"p": 0.7}),
        ("topp", {"p": 1.0}),
        ("topp", {"p": 0.7, "temperature": 1.0}),
        ("minp", {"min_p": 0.3}),
    ],
)
def test_every_peer_draws_tokens_of_the_samplers_support_only(
    registry: Registry, name: str, params: dict[str, Any], dtype: torch.dtype
) -> None:
    """Steps of 1/8: exact in every dtype, without ties, and no sum of masses comes near 0.7 or a share near 0.3."""
    offer(registry, MinP)
    sampler = registry.load_sampler(name, **params)
    row = torch.arange(24) / 8
    logits = torch.stack(
        [row[torch.randperm(24, generator=torch.Generator().manual_seed(seed))] for seed in range(300)]
    )
    logits = logits.to(dtype)
    support = sampler.support(logits)
    peers = peers_for(rule_of(sampler), 1, CPU)
    peers.pop("floor")
    assert "torch" in peers
    for peer, (draw, note) in peers.items():
        assert not note
        ids = torch.cat([draw(rows) for rows in logits.split(1)]) if peer == "llama.cpp" else draw(logits)
        assert ids.shape == (300,)
        assert support.gather(-1, ids[:, None]).all(), peer
        drawn = {int((logits[i] > logits[i, token]).sum()) for i, token in enumerate(ids)}  # ranks
        assert max(drawn) < support[0].sum()
        assert len(drawn) > min(3, int(support[0].sum()) - 1), peer


def test_transformers_has_no_peer_where_it_would_be_plain_torch() -> None:
    assert transformers_peer(Rule(0.0)) is None
    assert transformers_peer(Rule(1.0, exact=False)) is None
    assert torch_peer(Rule(0.0))(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [1]


def test_unknown_peers_are_refused() -> None:
    with pytest.raises(ParameterError, match="There is no peer 'jax'; there are: floor, torch, transformers"):
        peers_for(Rule(1.0), 1, CPU, ["jax"])


# Measuring


def test_contenders_take_turns_and_slow_ones_at_least_three() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        sum(range(300_000))

    turns = take_turns({"quick": lambda: calls.append("quick"), "slow": slow}, CPU, 0.02)
    assert len(turns["slow"].times) >= LEAST_TURNS
    assert len(turns["quick"].times) >= len(turns["slow"].times)
    assert turns["quick"].calls > turns["slow"].calls
    assert set(turns["slow"].times) <= set(turns["quick"].times)
    measured = calls[calls.index("slow") :]
    changes = sum(one != other for one, other in itertools.pairwise(measured))
    assert changes >= 2 * LEAST_TURNS - 1
    assert statistics.median(turns["quick"].times.values()) < statistics.median(turns["slow"].times.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["greedy", "topk", "topp"])
def test_a_measurement_has_times_and_ratios_of_every_peer(name: str, dtype: Any) -> None:
    sampler = neurogen.load_sampler(name)
    result = measure(sampler, Cell(vocab=700, batch=2, dtype=dtype), seconds=SECONDS)
    assert {"floor", "torch"} <= set(result.peers) == set(result.to_peers)
    assert ("transformers" in result.peers) == (name != "greedy")
    for ratio in result.to_peers.values():
        assert 0 < ratio.q1 <= ratio.median <= ratio.q3
    assert result.ratio_to_floor == result.ratio_to("floor") > 0
    assert result.times_faster_than("torch") == pytest.approx(1 / result.ratio_to("torch"))
    assert result.own.turns >= LEAST_TURNS
    assert result.label == repr(sampler).removesuffix("()")
    assert type(result).model_validate_json(result.model_dump_json()) == result


def test_an_unknown_sampler_is_measured_beside_plain_drawing(registry: Registry) -> None:
    offer(registry, Reverse)
    result = measure(registry.load_sampler("reverse"), Cell(vocab=200), seconds=SECONDS)
    assert set(result.peers) == {"floor", "torch"}
    assert result.peer_notes["torch"] == "temperature only: softmax and multinomial"


def test_a_cell_beyond_the_memory_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("neurogen.bench.measure.make_logits", full)
    with pytest.raises(neurogen.errors.DeviceError, match="does not fit into the memory of cpu"):
        measure(neurogen.load_sampler("topk"), Cell())


def test_a_sampler_with_memory_gets_one() -> None:
    class Counting(Reverse):
        name = "counting"
        stateful = True

        def new_state(self, batch: int) -> dict[str, torch.Tensor]:
            return {"calls": torch.zeros(batch)}

        def select(self, logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            if rest:
                rest[-1]["calls"] += 1
            return super().select(logits)

    logits = torch.zeros(3, 5)
    assert draw_of(Counting(), logits)(logits).tolist() == [4, 4, 4]


def test_quartiles_are_those_of_the_values() -> None:
    assert Quartiles.of([4.0]) == Quartiles(median=4, q1=4, q3=4)
    assert Quartiles.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Quartiles(median=3, q1=2, q3=4)


def test_the_processor_is_named_with_what_tells_it_apart(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\ncpu family : 25\nmodel\t\t: 17\nmodel name : AMD EPYC\n\nprocessor : 1\n")
    assert cpu_name(info) == "AMD EPYC (family 25, model 17)"
    assert cpu_name(tmp_path / "absent")


def test_other_programs_are_noticed(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    assert busy_cores(stat=stat) is None
    stat.write_text("cpu 100 0 0 100 0 0 0 0 0 0\n")
    assert busy_cores(0, stat) is None
    assert (busy_cores(0.01) or 0) >= 0
    cores = os.cpu_count() or 1
    assert this_machine(cores, busy=1.0).disturbed
    assert not this_machine(cores, busy=0.1).disturbed
    assert not this_machine(cores, busy=None).disturbed


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
    report = Report.model_validate(reported("greedy", *QUICK))
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
    assert Report.model_validate(report).results[0].ratio_to("torch") > 0


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


def test_the_command_can_be_named_without_loading_anything_heavy() -> None:
    program = (
        "import sys, neurogen.cli.bench, neurogen.bench.plot, neurogen.bench.check, neurogen.pytest_plugin\n"
        "print([name for name in ('torch', 'numba', 'numpy', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The picture


def test_the_picture_is_drawn_for_several_sizes(tmp_path: Path) -> None:
    picture = tmp_path / "times.png"
    result = bench("topk", "greedy", *QUICK, "--vocab", "1000", "--kind", "flat", "--plot", str(picture))
    assert result.exit_code == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"The picture is in {picture}." in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["times.png"]


def test_a_picture_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    report = Report.model_validate(reported("greedy", *QUICK))
    with pytest.raises(neurogen.errors.DataError, match="cannot be written"):
        draw_plot(report, tmp_path / "absent" / "times.png")


def test_slopes_are_those_of_powers() -> None:
    assert slope([(10, 3.0), (100, 300.0), (1000, 30_000.0)]) == pytest.approx((2.0, -1.5228787))
    assert slope([(10, 3.0), (10, 4.0)]) is None
