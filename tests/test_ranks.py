"""Several processes on one file of prompts: what they write is what one process writes, line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LINES = [f"Once upon a time number {i} there was" for i in range(7)]
TIMES = ("seconds", "tokens_per_second")


def command(prompts: Path, output: Path, processes: int = 1, new: int = 6) -> list[str]:
    run = ["-m", "neurogen", "run", "-s", "topk", "--seed", "5", "-n", "2", "--batch-size", "1", "--device", "cpu"]
    run += ["--prompts", str(prompts), "--output", str(output), "--max-new-tokens", str(new)]
    if processes == 1:
        return [sys.executable, *run]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *launcher, *run]


def run(*arguments: Any, **values: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*arguments, **values), capture_output=True, text=True, env=environment)


def results(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return file


def test_two_processes_write_what_one_writes_line_by_line(prompts: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert run(prompts, one).returncode == 0
    done = run(prompts, two, processes=2)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "2 processes: 14 results in" in done.stderr
    assert results(two) == sorted(results(one), key=lambda line: (line["index"], line["sample"]))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("two.jsonl.")] == []


def test_a_killed_run_goes_on_with_another_number_of_processes(prompts: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert run(prompts, one, new=100).returncode == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command(prompts, two, 3, 100), env=environment, start_new_session=True)
    files = [Path(f"{two}.rank{rank}") for rank in range(3)]
    until = time.monotonic() + 120
    while not any(file.exists() and file.stat().st_size for file in files) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = sum(file.read_bytes().count(b"\n") for file in files if file.exists())
    assert 0 < kept < 14
    assert run(prompts, two, processes=2, new=100).returncode == 0
    assert results(two) == sorted(results(one), key=lambda line: (line["index"], line["sample"]))


def test_a_line_that_fails_in_any_process_makes_the_exit_code_1_and_loses_no_other(
    prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    with prompts.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "x", "max_new_tokens": 10**9}) + "\n")  # line 8: rank 1's
    done = run(prompts, output, processes=2)
    assert done.returncode == 1
    assert "1 of 8 lines of" in done.stderr
    assert len(results(output)) == 14
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "x"], "they share --prompts FILE.jsonl"),
        (["--prompts", "x", "--output", "y"], "give --seed"),
        (["--prompts", "x", "--output", "y", "--seed", "1", "--json"], "--json is for a single one"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(options: list[str], message: str) -> None:
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    line = [sys.executable, "-m", "neurogen", "run", "-s", "greedy", *options]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
