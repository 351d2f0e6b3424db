"""The command as a process: how it starts, and what it does on signals, pipes, full disks and terminals."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from cli_helpers import PROMPT, lasting, lines, neurogen_command, process

import neurogen

pytestmark = pytest.mark.usefixtures("registry")


# Starting


@pytest.mark.parametrize("module", ["pluggy", "pydantic", "click", "neurogen.registry.registry"])
@pytest.mark.parametrize("entry", ["-m neurogen", "-c import neurogen.__main__; neurogen.__main__.run()"])
def test_ctrl_c_while_the_command_is_being_imported_leaves_no_traceback(
    tmp_path: Path, module: str, entry: str
) -> None:
    """A module on the way stands for the moment at which the signal comes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, *entry.split(" ", 1), "samplers"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_command_starts_where_an_early_ctrl_c_is_caught() -> None:
    (script,) = entry_points(group="console_scripts", name="neurogen")
    assert script.value == "neurogen.__main__:run"


def test_help_and_samplers_are_quick() -> None:
    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        with process(*arguments) as running:
            running.communicate()
        return time.perf_counter() - started

    assert min(seconds("--help") for _ in range(3)) < 1.5  # 0.2 s on an idle machine; the goal is 0.5
    assert min(seconds("samplers") for _ in range(3)) < 3.0  # 0.3 s; the goal is 1.5


def test_version() -> None:
    assert neurogen_command("--version").stdout == f"neurogen, version {neurogen.__version__}\n"


# Real processes: signals, pipes, terminals


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("lines_of_file", "options", "code", "results"), [(2, (), 0, 2), (3, (), 1, 2), (2, ("--top-k", "1"), 2, 0)]
)
def test_a_stderr_that_cannot_be_written_changes_no_result(
    tiny_model_dir: Path, tmp_path: Path, lines_of_file: int, options: Sequence[str], code: int, results: int
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(('"once"\n', '"upon"\n', "broken\n")[:lines_of_file]))
    fixed = ("run", "-s", "greedy", "--model", str(tiny_model_dir), "--max-new-tokens", "4", "--json")
    arguments = (*fixed, "--prompts", str(path), *options)
    with Path("/dev/full").open("wb") as full, process(*arguments, stderr=full) as running:
        text, _ = running.communicate()
    assert (running.returncode, len(lines(text.decode()))) == (code, results)


@pytest.fixture
def many_prompts(tmp_path: Path) -> Path:
    path = tmp_path / "many.jsonl"
    words = ["once upon a time", "the red ball", "she loved to play", "a little girl"]
    path.write_text("".join(json.dumps(f"{words[i % 4]} {i}") + "\n" for i in range(60)))
    return path


def long_run(model: Path, prompts: Path, output: Path) -> list[str]:
    options = ["--max-new-tokens", "40", "-n", "2", "--seed", "3", "--batch-size", "4", "--top-k", "5"]
    return [
        "run", "-s", "topk", "--model", str(model), "--prompts", str(prompts), "--output", str(output), *options
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_cut_off_anywhere_goes_on_without_a_lost_or_doubled_line(
    tiny_model_dir: Path, many_prompts: Path, tmp_path: Path
) -> None:
    output, reference = tmp_path / "r.jsonl", tmp_path / "reference.jsonl"
    chance = random.Random(5)
    signals = [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
    for number, code in signals:
        size = output.stat().st_size if output.exists() else 0
        with process(*long_run(tiny_model_dir, many_prompts, output)) as running:
            _wait_for_size(running, output, size + chance.randrange(1, 9000))
            running.send_signal(number)
            _, errors = running.communicate()
        assert running.returncode == code, errors.decode()
        assert b"Traceback" not in errors
        if number != signal.SIGKILL:
            assert output.read_bytes().endswith(b"\n")
            assert b"Interrupted: " in errors
            assert not output.with_name("r.jsonl.lock").exists()
    assert neurogen_command(*long_run(tiny_model_dir, many_prompts, output)).exit_code == 0
    assert neurogen_command(*long_run(tiny_model_dir, many_prompts, reference)).exit_code == 0
    found = {(item["index"], item["sample"]): lasting(item) for item in lines(output.read_text())}
    assert len(output.read_text().splitlines()) == len(found) == 120
    assert found == {(item["index"], item["sample"]): lasting(item) for item in lines(reference.read_text())}


def _wait_for_size(running: subprocess.Popen[bytes], path: Path, size: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < size:
        assert running.poll() is None, "the run ended before it was cut off"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_ctrl_c_without_a_file_shows_the_seed(tiny_model_dir: Path, many_prompts: Path) -> None:
    arguments = ["run", "-s", "topk", "--model", str(tiny_model_dir), "--prompts", str(many_prompts), "--seed", "3"]
    with process(*arguments, "--max-new-tokens", "40", "--json") as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate()
    assert running.returncode == 130
    assert all(json.loads(line)["new_tokens"] for line in (first + rest).splitlines())
    assert b"Interrupted after " in errors
    assert b"of 60 sequences. The seed was 3." in errors


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_run_quietly(tiny_model_dir: Path, many_prompts: Path) -> None:
    command = f"{sys.executable} -m neurogen run -s greedy --model {tiny_model_dir} --prompts {many_prompts} --quiet"
    done = subprocess.run(
        ["bash", "-c", f"{command} --max-new-tokens 40 | head -c 10; exit ${{PIPESTATUS[0]}}"], capture_output=True
    )
    assert len(done.stdout) == 10
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_an_error_of_one_line(tiny_model_dir: Path) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        process(
            "run",
            "-s",
            "greedy",
            "--model",
            str(tiny_model_dir),
            "--prompt",
            PROMPT,
            "--max-new-tokens",
            "9",
            stdout=full,
        ) as running,
    ):
        _, errors = running.communicate()
    assert (running.returncode, errors) == (1, b"Error: Standard output cannot be written: No space left on device.\n")


def test_without_prompt_on_a_terminal_says_how_to_give_one() -> None:
    master, terminal = pty.openpty()
    try:
        with process("run", "-s", "topk", stdin=terminal) as running:
            out, errors = running.communicate()
    finally:
        os.close(master)
        os.close(terminal)
    assert (running.returncode, out) == (2, b"")
    assert b"There is no prompt. Give --prompt TEXT, --prompts FILE.jsonl, or text on standard input." in errors


def on_terminal(*arguments: str, stdout: bool, **variables: str) -> tuple[int, str, str]:
    """Run with stderr, and if asked for stdout, on a terminal; what came through a pipe, and what the terminal got."""
    master, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **variables}
    where = terminal if stdout else subprocess.PIPE
    with process(*arguments, stdin=subprocess.DEVNULL, stdout=where, stderr=terminal, env=environment) as running:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            shown += piece
        piped = running.stdout.read() if running.stdout else b""
    os.close(master)
    return running.returncode, piped.decode(), shown.decode()


@pytest.mark.slow
def test_a_terminal_sees_progress_and_a_pipe_only_results(tiny_model_dir: Path, prompts_file: Path) -> None:
    arguments = (
        "run",
        "-s",
        "topk",
        "--model",
        str(tiny_model_dir),
        "--prompts",
        str(prompts_file),
        "--max-new-tokens",
    )
    code, piped, shown = on_terminal(*arguments, "40", "--json", stdout=False)
    assert code == 0
    assert [item["index"] for item in sorted(lines(piped), key=lambda item: item["index"])] == [0, 1, 2]
    assert "/3 sequences" in shown
    assert f"Loading {tiny_model_dir} ..." in shown
    assert "topk(k=50, temperature=0.8) seed " in shown


@pytest.mark.slow
def test_a_terminal_sees_text_with_headings(tiny_model_dir: Path) -> None:
    arguments = ("run", "-s", "topk", "--model", str(tiny_model_dir), "--prompt", PROMPT, "--max-new-tokens", "20")
    code, _, shown = on_terminal(*arguments, "-n", "2", stdout=True)
    assert code == 0
    assert "prompt 1, sample 1" in shown
    assert "prompt 1, sample 2" in shown


@pytest.mark.slow
def test_compiling_the_kernels_is_said_and_is_no_time_of_decoding(tiny_model_dir: Path, tmp_path: Path) -> None:
    arguments = ("run", "-s", "topk", "--model", str(tiny_model_dir), "--prompt", PROMPT, "--max-new-tokens", "9")
    code, piped, shown = on_terminal(*arguments, "--json", stdout=False, NUMBA_CACHE_DIR=str(tmp_path / "cold"))
    assert code == 0
    assert f"Loading {tiny_model_dir} ..." in shown
    assert "\r\x1b[2KCompiling the kernels of topk (first use after a change) ..." in shown
    (item,) = lines(piped)
    assert item["seconds"] < 2  # a hundredth of it when idle; compiling takes 3 at least
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cold too")}
    with process(*arguments, env=environment) as running:
        _, errors = running.communicate()
    assert errors.decode().startswith("topk(k=50, temperature=0.8) seed ")


def test_a_terminal_that_obeys_no_codes_gets_none(tiny_model_dir: Path) -> None:
    arguments = ("run", "-s", "greedy", "--model", str(tiny_model_dir), "--prompt", PROMPT, "--max-new-tokens", "4")
    code, _, shown = on_terminal(*arguments, stdout=True, TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown
    assert "greedy() seed " in shown


def test_tables_on_a_terminal_fit_and_respect_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, _, colored = on_terminal("samplers", stdout=True)
    assert code == 0
    assert "\x1b[36m" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    _, _, plain = on_terminal("samplers", stdout=True)
    assert "\x1b[36m" not in plain
    assert all(len(line) <= 120 for line in click.unstyle(plain).splitlines())  # NO_COLOR leaves bold as it is


@pytest.mark.slow
def test_compiling_is_said_on_a_terminal_by_other_commands_too_and_nowhere_else(tmp_path: Path) -> None:
    arguments = ("conformance", "topk", "--quick", "--only", "batch")
    cold = str(tmp_path / "cold")
    code, piped, shown = on_terminal(*arguments, "--json", stdout=False, NUMBA_CACHE_DIR=cold)
    assert code == 0
    assert json.loads(piped)["passed"]
    said = "\r\x1b[2KCompiling the kernels of topk (first use after a change) ..."
    assert said in shown
    assert shown.endswith("\r\x1b[2K")
    assert on_terminal(*arguments, stdout=False, NUMBA_CACHE_DIR=cold)[2] == ""  # now they are there
    with process(*arguments, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cold too")}) as running:
        _, errors = running.communicate()
    assert errors.decode() == ""
