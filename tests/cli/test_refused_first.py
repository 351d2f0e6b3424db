"""Whatever can be refused is refused before a model is loaded or data are read, in one paragraph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import neurogen_command

from neurogen.models.checkpoints import checkpoints_of

NUL = "\0"


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded, no tokenizer learnt, nothing is measured and no run begun."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the work was begun")

    for name in (
        "neurogen.models.language_model.load_model", "neurogen.data.tokenizer_training._learn",
        "neurogen.bench.measure.measure_all",
        "neurogen.training.run_folder.RunFolder.lock",
    ):  # fmt: skip
        monkeypatch.setattr(name, fail)


@pytest.fixture
def base(tmp_path: Path) -> dict[str, list[str]]:
    """A command line that is right, without what is tried."""
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "the red ball in the park"}) + "\n")
    (tmp_path / "folder").mkdir()
    return {
        "run": ["run", "--sampler", "greedy", "--prompt", "once"],
        "chat": ["chat", "--sampler", "topp"],
        "compare": ["compare", "--sampler", "greedy", "--sampler", "topk"],
        "explain": ["explain", "--sampler", "greedy", "--prompt", "once"],
        "diagnose": ["diagnose", "--model", "starter"],
        "bench": ["bench", "greedy", "--vocab", "10", "--vocab", "100"],
        "train": ["train", str(data), "--out", str(tmp_path / "run")],
        "tokenizer": ["tokenizer", "train", str(data)],
    }


NOWHERE = ("absent/a.html", "folder", "", NUL)
CASES: list[tuple[str, str, str, str]] = [
    *((name, "--html", value, "cannot be written") for name in ("compare", "explain", "diagnose") for value in NOWHERE),
    *(("run", "--record", value, "The recording cannot be written") for value in NOWHERE),
    *(("run", "--output", value, "") for value in ("absent/a.jsonl", "folder", "", NUL)),
    *(("bench", "--plot", value, "") for value in ("absent/a.png", "folder", "a.svg", "")),
    *(("chat", "--load", value, "cannot be read") for value in ("absent", "folder")),
    ("compare", "--prompt", "", "the prompt is empty"),
    ("explain", "--prompt", "", "the prompt is empty"),
    ("tokenizer", "--out", "", "A tokenizer cannot be written"),
    ("tokenizer", "--out", "absent/a.model", "there is no folder"),
    *(("train", "--lr", value, "learning_rate must be a finite number > 0") for value in ("0", "-1", "nan", "inf")),
    *(("train", "--optimizer", value, "optimizer must be adamw or muon") for value in ("sgd", "")),
    ("train", "--preset", "huge", "no preset 'huge'"),
    ("train", "--precision", "fp8", "precision must be float32 or bf16"),
    ("train", "--weight-decay", "nan", "weight_decay must be a finite number >= 0"),
    ("train", "--max-gradient-norm", "0", "max_gradient_norm must be a finite number > 0"),
    ("train", "--hold-out", "1", "hold_out must be 0 or an integer >= 2"),
    ("train", "--batch-size", "0", "an integer >= 1"),
    ("train", "--config", "absent.json", "is no model configuration"),
    ("train", "--config", "folder", "is no model configuration"),
    ("train", "--tokenizer", "absent.model", "absent.model"),
    ("train", "--val", "absent.jsonl", "absent.jsonl"),
    ("train", "--val", "", "names no training data"),
    ("train", "--out", "", "must not be empty"),
    ("train", "--out", "data.jsonl", "is a file"),
    ("train", "--device", "tpu", "cuda:N"),
]


@pytest.mark.parametrize(("name", "option", "value", "message"), CASES)
def test_nonsense_is_refused_before_the_work_begins(
    name: str, option: str, value: str, message: str, base: dict[str, list[str]], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = neurogen_command(*base[name], option, value)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.replace("\n", " ")
    assert "bug of neurogen" not in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--vocab-size", "--max-sentences"])
def test_more_than_sentencepiece_can_count_is_refused(option: str, base: dict[str, list[str]], tmp_path: Path) -> None:
    result = neurogen_command(*base["tokenizer"], "--out", str(tmp_path / "t.model"), option, str(2**31))
    assert result.exit_code == 1
    assert "must be an integer >= 1, got 2147483648. SentencePiece counts to 2,147,483,647." in result.stderr


def test_a_recording_takes_the_place_of_no_other_file_of_the_run(base: dict[str, list[str]], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"once"\n')
    for option in ("--prompts", "--output"):
        result = neurogen_command("run", "--sampler", "greedy", option, str(prompts), "--record", str(prompts))
        assert result.exit_code == 2
        assert f"--record would replace the file of {option}" in result.stderr
    assert prompts.read_text() == '"once"\n'


def test_a_missing_tensorboard_is_told_before_training(
    base: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurogen.cli.training_tensorboard.find_spec", lambda name: None)
    result = neurogen_command(*base["train"], "--tensorboard")
    assert result.exit_code == 2
    assert "needs the package tensorboard" in result.stderr
    assert checkpoints_of(tmp_path / "run") == []


def test_charts_that_could_not_be_drawn_are_told_before_training(base: dict[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "run" / "charts.png").mkdir(parents=True)
    result = neurogen_command(*base["train"])
    assert result.exit_code == 1
    assert "The picture cannot be written to" in result.stderr


@pytest.mark.parametrize(
    "command", ["chat", "compare", "explain", "diagnose", "bench", "tokenizer", "replay", "conformance"]
)
def test_what_has_one_result_is_not_done_by_each_of_several_processes(
    command: str, base: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base |= {"replay": ["replay", "a.jsonl"], "conformance": ["conformance", "topk"]}
    base["tokenizer"] += ["--out", str(tmp_path / "a.model")]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = neurogen_command(*base[command])
    assert result.exit_code == 2
    assert "2 processes run this command (WORLD_SIZE), which is for a single one" in " ".join(result.stderr.split())
