"""Recordings: a run again gives the same tokens, or is told where and why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import neurogen
from neurogen.cli.program import main
from neurogen.diagnosis.recording import fingerprint, read_recording
from neurogen.diagnosis.replay import ReplayReport, replay
from neurogen.errors import DataError
from neurogen.models.language_model import LanguageModel, load_model

PROMPTS = '"Once upon a time"\n{"prompt": "The cat", "seed": 7, "params": {"temperature": 1.2}}\n'


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    (folder / "prompts.jsonl").write_text(PROMPTS)
    file = folder / "run.jsonl"
    arguments = ["--prompts", str(folder / "prompts.jsonl"), "-n", "2", "--max-new-tokens", "12", "--seed", "1"]
    outcome = CliRunner().invoke(main, ["run", "--sampler", "topk", *arguments, "--record", str(file)])
    assert outcome.exit_code == 0, outcome.output
    return file


def changed(recorded: Path, folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    change(lines)
    file = folder / "changed.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def replayed(file: Path, model: LanguageModel, **others: Any) -> ReplayReport:
    return replay(read_recording(file), lambda name: model, **others)


def test_a_replay_gives_the_same_tokens_from_the_same_logits(recorded: Path, starter: LanguageModel) -> None:
    report = replayed(recorded, starter)
    assert report.same
    assert (report.sequences, report.drifted, report.environment) == (4, 0, {})
    assert report.steps == sum(map(len, read_recording(recorded).steps.values())) > 20
    assert "so are the model's logits, bit for bit" in report.reason()


def test_another_choice_from_the_same_logits_is_blamed_on_the_sampler(
    recorded: Path, tmp_path: Path, starter: LanguageModel
) -> None:
    def other_token(lines: list[dict[str, Any]]) -> None:
        lines[9]["token"] = 5

    report = replayed(changed(recorded, tmp_path, other_token), starter)
    assert len(report.differences) == 1
    first = report.differences[0]
    line = json.loads(recorded.read_text().splitlines()[9])
    assert (first.index, first.sample, first.recorded, first.found) == (line["index"], line["sample"], 5, line["token"])
    assert first.same_logits
    assert "same logits, bit for bit, so the sampler or a processor chose differently" in report.reason()


def test_other_weights_are_blamed_on_the_model(recorded: Path) -> None:
    other = load_model("starter", dtype="float32")
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(1.5)
    report = replayed(recorded, other)
    assert not report.same
    assert not report.differences[0].same_logits
    assert report.differences[0].distance > 0.1
    assert {"model's weights", "number format"} <= report.environment.keys()
    assert "The model gave other logits there" in report.reason()
    assert "number format (bfloat16 then, float32 now)" in report.reason()


def test_the_earliest_step_comes_first(recorded: Path, tmp_path: Path, starter: LanguageModel) -> None:
    def two(lines: list[dict[str, Any]]) -> None:
        lines[20]["token"] = lines[6]["token"] = 5

    report = replayed(changed(recorded, tmp_path, two), starter)
    assert [one.step for one in report.differences] == sorted(one.step for one in report.differences)
    assert report.differences[0].step == 1


def test_a_recording_that_was_cut_off_is_compared_so_far(
    recorded: Path, tmp_path: Path, starter: LanguageModel
) -> None:
    file = tmp_path / "cut.jsonl"
    file.write_bytes(recorded.read_bytes()[:-400])
    recording = read_recording(file)
    assert not recording.complete
    report = replayed(file, starter)
    assert report.same
    assert report.steps == sum(map(len, recording.steps.values()))


def test_a_sequence_that_ends_elsewhere_differs(recorded: Path, tmp_path: Path, starter: LanguageModel) -> None:
    def longer(lines: list[dict[str, Any]]) -> None:
        last = next(line for line in reversed(lines) if line.get("index") == 0 and line["sample"] == 0)
        lines.insert(-1, {**last, "token": 9})

    report = replayed(changed(recorded, tmp_path, longer), starter)
    assert [(one.index, one.sample, one.recorded, one.found) for one in report.differences] == [(0, 0, 9, None)]
    assert "token 9 was recorded and the end came" in report.reason()


def test_fingerprints_tell_trained_models_apart(starter: LanguageModel) -> None:
    before = fingerprint(starter.model)
    assert before == fingerprint(load_model("starter").model)
    other = load_model("starter").model
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.01)
    assert fingerprint(other) != before


@pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", '"text"\n', '{"neurogen_recording": 99}\n', "\x00\n{}\n"])
def test_what_is_no_recording_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match="is no recording that this neurogen can read"):
        read_recording(file)


def test_a_head_without_its_parts_is_refused(tmp_path: Path, starter: LanguageModel) -> None:
    file = tmp_path / "head.jsonl"
    file.write_text('{"neurogen_recording": 1}\n')
    with pytest.raises(DataError, match="lacks what a replay needs"):
        replayed(file, starter)


def test_a_plugin_that_is_gone_is_named(recorded: Path, starter: LanguageModel) -> None:
    with pytest.raises(neurogen.PluginError, match="no sampler 'topk'"):
        replayed(recorded, starter, registry=neurogen.Registry(entry_points=[]))


def test_the_command_prints_texts_and_tells_by_its_exit_code(recorded: Path, tmp_path: Path) -> None:
    same = CliRunner().invoke(main, ["replay", str(recorded)])
    assert same.exit_code == 0
    assert "are those recorded" in same.stderr
    assert len(same.stdout.splitlines()) >= 4

    def other_token(lines: list[dict[str, Any]]) -> None:
        lines[1]["token"] = 5

    file = changed(recorded, tmp_path, other_token)
    different = CliRunner().invoke(main, ["replay", str(file), "--json"])
    assert different.exit_code == 1
    assert json.loads(different.stdout)["differences"][0]["recorded"] == 5
    assert CliRunner().invoke(main, ["replay", str(file), "--quiet"]).output == ""
