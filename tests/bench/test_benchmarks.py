"""`pytest benchmarks/` knows every sampler that is installed, and what fails a comparison is a ratio."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurogen.registry.registry import default_registry

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (pip install 'neurogen[dev]')")
ROOT = Path(__file__).resolve().parents[2]
AUTHORS_TEST = """
def test_speed(neurogen_benchmark):
    neurogen_benchmark("greedy", vocab=600, batch=2, seconds=0.02)
"""


def run_pytest(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=cwd, env=alone, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_every_installed_sampler_is_measured_or_those_asked_for() -> None:
    collected = run_pytest("benchmarks", "--collect-only").stdout
    for plugin in default_registry().load_all():
        assert f"[{plugin.name}-neurogen-normal-float32-v32000-b1]" in collected
    asked = run_pytest("benchmarks", "--collect-only", "--sampler", "topk(k=5)+minp", "--sampler", "xtc").stdout
    names = {line.split("[")[1].split("-neurogen-")[0] for line in asked.splitlines() if "-neurogen-" in line}
    assert names == {"topk(k=5)+minp", "xtc"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sampler", "topkk"), "There is no sampler 'topkk'"),
        (("--benchmark-compare", "--benchmark-compare-fail", "mean:5%"), "--neurogen-compare-fail TIMES compares each"),
        (("--neurogen-compare-fail", "1.5"), "give --benchmark-compare too"),
        (("--neurogen-compare-fail", "0.5"), "invalid _growth value: '0.5'"),
    ],
)
def test_what_cannot_be_measured_or_compared_is_wrong_usage(options: tuple[str, ...], said: str) -> None:
    done = run_pytest("benchmarks", "--collect-only", *options)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_ratio_that_has_grown_fails_the_test_of_an_author(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(AUTHORS_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    kept = run_pytest("--benchmark-save=first", cwd=tmp_path)
    assert kept.returncode == 0, kept.stdout
    (saved,) = tmp_path.glob(".benchmarks/*/*_first.json")
    compare = ("--benchmark-compare", "--neurogen-compare-fail")
    same = run_pytest(*compare, "1000", cwd=tmp_path)
    assert same.returncode == 0, same.stdout
    report = json.loads(saved.read_text())
    extra = report["benchmarks"][0]["extra_info"]
    assert extra["ratio_to_floor"] > 0
    assert extra["ratio_to_torch"] > 0
    extra["ratio_to_torch"] /= 1000
    saved.write_text(json.dumps(report))
    slower = run_pytest(*compare, "5", cwd=tmp_path)
    assert slower.returncode == 1, slower.stdout
    assert "greedy has become slower, in 4 measurements: " in slower.stdout
    assert "times torch, " in slower.stdout
    assert "times floor, " not in slower.stdout
