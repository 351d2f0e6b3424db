"""Several processes on one file of prompts: what they write is what one process writes, line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from neurogen.cli import prompt_sharing as ranks_module
from neurogen.cli.prompt_sharing import Ranks, adopt, rank_and_world
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
def test_every_line_is_of_exactly_one_process(world: int, tmp_path: Path) -> None:
    shares = [Ranks(rank, world, tmp_path / "out") for rank in range(world)]
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


def finish(rank: int, world: int, output: Path, failed: Sequence[Key] = (), told: Sequence[Any] = ()) -> None:
    other = Ranks(rank, world, output)
    other.told.extend(told)
    other.begin()
    try:
        other.wait(failed)
    finally:
        other.close()


def test_rank_0_merges_all_in_order_and_removes_what_lay_beside(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", [line(4)])
    write(tmp_path / "out.jsonl.rank0", [line(2, 1), line(0)])
    write(tmp_path / "out.jsonl.rank1", [line(3), line(1)])
    write(tmp_path / "out.jsonl.rank7", [line(2), line(1)])  # of a run with more processes
    (tmp_path / "out.jsonl.rank7.alive").touch()
    (tmp_path / "out.jsonl.rankings").touch()  # somebody else's
    output.chmod(0o640)
    first = Ranks(0, 2, output)
    first.begin()
    other = threading.Thread(target=finish, args=(1, 2, output, [(5, 0)], [(5, "no"), (1, "odd")]))
    other.start()
    gathered = first.gather(identity)
    other.join(timeout=20)
    first.close()
    assert not other.is_alive()
    assert (gathered.results, gathered.failed, gathered.told) == (6, {(5, 0)}, [(1, "odd"), (5, "no")])
    assert keys(output) == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (4, 0)]
    assert output.stat().st_mode & 0o777 == 0o640
    assert beside(output) == ["out.jsonl.rankings"]


def test_whole_results_count_as_done_whatever_file_they_are_in(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", [line(1), line(2)])
    write(tmp_path / "out.jsonl.rank0", [line(3)], cut='{"index": 5, "sam')
    write(tmp_path / "out.jsonl.rank4", [line(0), line(4)], cut=json.dumps(line(5)))
    assert Ranks(0, 2, output).done_elsewhere(identity) == {(2, 0), (0, 0), (4, 0)}
    assert Ranks(1, 2, output).done_elsewhere(identity) == {(1, 0), (3, 0), (5, 0)}
    assert Ranks(0, 2, output).count() == 6


def test_a_file_of_another_run_is_not_merged(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", [line(0)])
    other = write(tmp_path / "out.jsonl.rank3", [line(2, seed=6)])
    first = Ranks(0, 1, output)
    with pytest.raises(DataError, match=r"rank3 cannot be continued.*seed is 6"):
        first.done_elsewhere(identity)
    with pytest.raises(DataError, match="nothing is merged"):
        first.gather(identity)
    assert (keys(output), keys(other)) == ([(0, 0)], [(2, 0)])


def test_a_process_that_ended_early_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "BEGIN_SECONDS", 0.3)
    output = write(tmp_path / "out.jsonl", [line(0)])
    write(tmp_path / "out.jsonl.rank1", [line(1)])
    (tmp_path / "out.jsonl.rank1.alive").touch()  # as kill -9 leaves it
    (tmp_path / "out.jsonl.rank1.done").write_text('{"failed": [], "told": []}')  # of an earlier run
    with pytest.raises(DataError, match="Rank 1 of this run does not run, or has ended"):
        Ranks(0, 2, output).gather(identity)
    with pytest.raises(DataError, match="Rank 0 of this run does not run, or has ended"):
        Ranks(1, 2, output).wait([])
    assert keys(output) == [(0, 0)]


def test_a_process_seen_to_end_is_not_waited_for(tmp_path: Path) -> None:
    begun = threading.Event()

    def run_and_end() -> None:
        other = Ranks(1, 2, tmp_path / "out.jsonl")
        other.begin()
        begun.set()
        time.sleep(0.5)
        other.close()

    process = threading.Thread(target=run_and_end)
    process.start()
    assert begun.wait(timeout=10)
    with pytest.raises(DataError, match="Rank 1 of this run has ended before it had finished"):
        Ranks(0, 2, tmp_path / "out.jsonl").gather(identity)
    process.join()


def test_the_same_rank_does_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "TAKE_SECONDS", 0.1)
    one = Ranks(1, 2, tmp_path / "out.jsonl")
    one.begin()
    with pytest.raises(DataError, match="is being written by another run"):
        Ranks(1, 2, tmp_path / "out.jsonl").begin()
    one.close()


def test_a_single_process_takes_over_what_several_have_left(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", [line(3)])
    write(tmp_path / "out.jsonl.rank0", [line(0), line(3)])
    write(tmp_path / "out.jsonl.rank1", [line(1)], cut='{"index": 5, "sam')
    (tmp_path / "out.jsonl.rank1.done").touch()
    with ResultsFile(output) as file:
        assert adopt(file, file.resume(identity), identity) == {(0, 0), (1, 0), (3, 0)}
    assert keys(output) == [(3, 0), (0, 0), (1, 0)]
    assert beside(output) == []
    assert json.loads(output.read_text(encoding="utf-8").splitlines()[1]) == line(0)


def test_a_single_process_leaves_files_alone_that_are_being_written(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    write(tmp_path / "out.jsonl.rank1", [line(1)])
    with (
        ResultsFile(tmp_path / "out.jsonl.rank1"),
        ResultsFile(output) as file,
        pytest.raises(DataError, match="rank1 is being written by another process"),
    ):
        adopt(file, file.resume(identity), identity)
    assert keys(tmp_path / "out.jsonl.rank1") == [(1, 0)]


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
    files = [output, *(Path(f"{output}.rank{rank}") for rank in range(3))]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


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
    run_once = command(prompts, output, new=200)
    processes = [
        subprocess.Popen(run_once, env=environment(RANK=str(rank), WORLD_SIZE="2"), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    while not all(Path(f"{output}.rank{rank}").exists() and written(output) for rank in range(2)):
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
