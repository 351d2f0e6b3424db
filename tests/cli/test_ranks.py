"""Several processes on one file of prompts: what they write is what one process writes, line by line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from neurogen.cli.ranks import Ranks, rank_and_world
from neurogen.cli.results import Key, ResultsFile
from neurogen.errors import DataError, ParameterError

SEED = 5
LINES = [f"Once upon a time number {i} there was" for i in range(7)]
BROKEN = '{"prompt": '
IMPOSSIBLE = json.dumps({"prompt": "x", "max_new_tokens": 10**9})
TIMES = ("seconds", "tokens_per_second")


def line(index: int, sample: int = 0, seed: int = SEED) -> dict[str, Any]:
    return {"index": index, "sample": sample, "prompt": f"p{index}", "text": f"é{index}", "run": {"seed": seed}}


def identity(key: Key) -> dict[str, Any] | None:
    return {"prompt": f"p{key[0]}", "run": {"seed": SEED}} if key[0] < 6 else None


def write(path: Path, lines: Iterable[dict[str, Any]], cut: str = "") -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in lines) + cut, encoding="utf-8")
    return path


def keys(path: Path) -> list[Key]:
    return [(value["index"], value["sample"]) for value in map(json.loads, path.read_text().splitlines())]


def beside(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir() if path.name.startswith(f"{output.name}."))


@pytest.mark.parametrize("world", [1, 2, 3, 10])
def test_every_line_is_of_exactly_one_process(world: int) -> None:
    shares = [Ranks(rank, world) for rank in range(world)]
    assert [[share.mine(index) for share in shares].count(True) for index in range(25)] == [1] * 25


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "3"}, None),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
    ],
)
def test_the_launcher_says_which_process_this_is(environment: dict[str, str], found: Any) -> None:
    assert rank_and_world(environment) == found


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "many"), ("0", "0")])
def test_a_launch_that_cannot_be_is_refused(rank: str, world: str) -> None:
    with pytest.raises(ParameterError, match=f"RANK={rank} and WORLD_SIZE={world}"):
        rank_and_world({"RANK": rank, "WORLD_SIZE": world})


def test_processes_that_do_not_know_where_to_meet_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    message = r"cannot find each other.*torchrun or accelerate launch"
    with pytest.raises(ParameterError, match=message), Ranks(0, 2).joined():
        pass


def test_processes_write_one_file_together_and_the_first_sorts_it(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", [line(4)])
    output.chmod(0o640)
    with ResultsFile(output, rank=0) as first:
        assert first.resume(identity) == {(4, 0)}
        with ResultsFile(output, rank=1) as second:
            for file, index in ((second, 3), (first, 2), (second, 1), (first, 0)):
                file.append(line(index))
        assert keys(output) == [(4, 0), (3, 0), (2, 0), (1, 0), (0, 0)]
        assert first.sort() == first.count() == 5
    assert keys(output) == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]
    assert output.stat().st_mode & 0o777 == 0o640
    assert beside(output) == []


def test_a_line_that_a_killed_process_left_incomplete_is_dropped_by_the_next_to_write(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", [line(0)])
    with ResultsFile(output, rank=0) as first, ResultsFile(output, rank=1) as second:
        first.resume(identity)
        with output.open("a") as killed:
            killed.write('{"index": 5, "sam')
        second.append(line(1))
        first.append(line(2))
    assert keys(output) == [(0, 0), (1, 0), (2, 0)]


def test_a_second_run_of_several_processes_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with ResultsFile(output, rank=0), pytest.raises(DataError, match="is being written by another process"):
        ResultsFile(output, rank=0)


def test_what_version_01_left_in_files_of_its_processes_is_taken_over(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", [line(3)])
    write(tmp_path / "out.jsonl.rank0", [line(0), line(3)])
    write(tmp_path / "out.jsonl.rank1", [line(1)], cut='{"index": 5, "sam')
    (tmp_path / "out.jsonl.rank1.done").touch()
    (tmp_path / "out.jsonl.rankings").touch()  # somebody else's
    with ResultsFile(output) as file:
        assert file.resume(identity) == {(0, 0), (1, 0), (3, 0)}
    assert keys(output) == [(3, 0), (0, 0), (1, 0)]
    assert beside(output) == ["out.jsonl.rankings"]
    assert json.loads(output.read_text(encoding="utf-8").splitlines()[1]) == line(0)


def test_files_of_processes_that_still_write_or_of_another_run_are_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    one = write(tmp_path / "out.jsonl.rank1", [line(1)])
    with (
        ResultsFile(one),
        ResultsFile(output) as file,
        pytest.raises(DataError, match="rank1 is being written by another process"),
    ):
        file.resume(identity)
    write(one, [line(1, seed=6)])
    with ResultsFile(output) as file, pytest.raises(DataError, match=r"rank1 cannot be continued.*seed is 6"):
        file.resume(identity)
    assert (keys(one), keys(output)) == ([(1, 0)], [])


# --- the command itself ---


def command(prompts: Path, output: Path, processes: int = 1, new: int = 6) -> list[str]:
    run = ["-m", "neurogen", "run", "-s", "topk", "--seed", "5", "-n", "2", "--batch-size", "1", "--device", "cpu"]
    run += ["--prompts", str(prompts), "--output", str(output), "--max-new-tokens", str(new)]
    if processes == 1:
        return [sys.executable, *run]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *launcher, *run]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def run(*arguments: Any, **values: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, **values), capture_output=True, text=True, env=environment())


def results(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def in_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(lines, key=lambda line: (line["index"], line["sample"]))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return file


@pytest.mark.slow
def test_two_processes_write_what_one_writes_line_by_line(prompts: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert run(prompts, one).returncode == 0
    done = run(prompts, two, processes=2)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("2 processes: 14 results in") == 1
    assert results(two) == in_order(results(one))
    assert [value["seed"] for value in results(two)] == list(range(5, 19))
    assert beside(two) == []


def killed(prompts: Path, output: Path, processes: int) -> int:
    """Start a run, kill all of it once there is a result, and count the results that are there."""
    first = subprocess.Popen(command(prompts, output, processes, 60), env=environment(), start_new_session=True)
    until = time.monotonic() + 120
    before = written(output)
    while written(output) == before and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert first.poll() is None, "it ran until it was killed"
    workers = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()  # in sessions of their own
    for process in (first.pid, *map(int, workers)):
        os.kill(process, signal.SIGKILL)
    first.wait()
    time.sleep(1)  # until the locks of the workers, which are not ours to wait for, are free
    return written(output)


def written(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "last"), [(3, 1, 2), (2, 3, 1)])
def test_a_killed_run_goes_on_with_another_number_of_processes(
    first: int, second: int, last: int, prompts: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert run(prompts, one, new=60).returncode == 0
    kept = killed(prompts, two, first)
    assert 0 < kept < 14
    assert kept < killed(prompts, two, second)
    done = run(prompts, two, processes=last, new=60)
    assert done.returncode == 0, done.stderr
    assert in_order(results(two)) == in_order(results(one))
    assert beside(two) == []


@pytest.mark.slow
def test_lines_that_fail_in_any_process_are_reported_once_and_lose_no_other(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with prompts.open("a", encoding="utf-8") as file:
        file.write(f"{IMPOSSIBLE}\n{IMPOSSIBLE}\n{BROKEN}\n")  # rank 1, rank 0, no prompt
    done = run(prompts, output, processes=2)
    assert done.returncode == 1
    assert "3 of 10 lines of" in done.stderr
    assert "(1 not a prompt, 2 could not be run)" in " ".join(done.stderr.split())
    assert [done.stderr.count(f"line {number}: ") for number in (8, 9, 10)] == [1, 1, 1]
    assert len(results(output)) == 14
    assert (done.stdout, beside(output)) == ("", [])


@pytest.mark.slow
def test_a_process_that_is_terminated_says_so_once_and_keeps_its_results(prompts: Path, tmp_path: Path) -> None:
    """Without a launcher, to see the exit codes of the processes themselves."""
    output = tmp_path / "out.jsonl"
    processes = start_two(command(prompts, output, new=200))
    while not output.exists() or {index % 2 for index, _ in keys(output)} != {0, 1}:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.02)
    for process, code in zip(processes, (signal.SIGTERM, signal.SIGINT), strict=True):
        process.send_signal(code)
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 130]
    assert "of 14 results are there" in said[0]
    assert "Interrupted" not in said[1]
    assert written(output) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        (signal.SIGKILL, 1, "Another process of this run has ended early"),
        (signal.SIGINT, 130, "of 32 results are there"),
    ],
)
def test_a_process_that_has_finished_notices_that_another_was_killed_and_obeys_ctrl_c(
    code: signal.Signals, exit_code: int, message: str, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    long = json.dumps({"prompt": "b", "max_new_tokens": 250})
    prompts.write_text(f'"a"\n{long}\n' * 8, encoding="utf-8")
    first, second = start_two(command(prompts, output, new=2))
    while written(output) < 17:  # the first has finished its 16, and the second has more to do
        assert (first.poll(), second.poll()) == (None, None)
        time.sleep(0.01)
    (second if code == signal.SIGKILL else first).send_signal(code)
    said = first.communicate(timeout=60)[1]
    second.communicate(timeout=60)
    assert first.returncode == exit_code
    assert message in said
    assert written(output) >= 17


def start_two(run_once: list[str]) -> list[subprocess.Popen[str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(run_once, env=environment(RANK=str(rank), **place), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "x"], "they share --prompts FILE.jsonl"),
        (["--prompts", "x"], "write --output FILE.jsonl"),
        (["--prompts", "x", "--output", "y"], "give --seed"),
        (["--prompts", "x", "--output", "y", "--seed", "1", "--json"], "--json is for a single one"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(options: list[str], message: str) -> None:
    line = [sys.executable, "-m", "neurogen", "run", "-s", "greedy", *options]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(RANK="1", WORLD_SIZE="2"))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
