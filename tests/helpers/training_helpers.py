"""Training runs in this process or in one of their own, and what they have written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from transformers import LlamaConfig

from neurogen.cli import main
from neurogen.training.presets import new_model
from neurogen.training.run import TrainingOptions, TrainingRun

VOCAB = 64
UNLIKE = ("tokens_per_second",)


def small_model(seed: int = 0) -> Any:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return new_model(config, seed)


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in UNLIKE} for line in found]


def train(folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    run = TrainingRun(folder, TrainingOptions(**options))
    for _ in run.chunks():
        pass
    run.close()
    return lines(folder)


def arguments(folder: Path, options: dict[str, Any]) -> list[str]:
    given = ["train", *options["data"], "--out", str(folder)]
    for name, value in options.items():
        if name != "data":
            given += [{"learning_rate": "--lr"}.get(name, "--" + name.replace("_", "-")), str(value)]
    return given


def invoke(*given: str) -> Result:
    result = CliRunner().invoke(main, given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def process(*given: str, **environment: str) -> subprocess.Popen[str]:
    def hear_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "neurogen", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
        env={**os.environ, **environment},
    )


def wait_for_chunk(folder: Path, chunk: int, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < chunk:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
