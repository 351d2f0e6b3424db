"""A run that goes on: all of it once in every file, what may change and what is told, ends that are no successes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import arguments, invoke, lines, small_model, train

from neurogen import DataError, ParameterError
from neurogen.diagnosis.health import IGNORE_INDEX, measure
from neurogen.models.checkpoints import checkpoints_of, latest_checkpoint
from neurogen.training.optimizers import learning_rate_at
from neurogen.training.report import means_of, sums_of
from neurogen.training.run import TrainingOptions, TrainingRun
from neurogen.training.trainer import StepResult, Trainer


def go_on(folder: Path, **changes: Any) -> TrainingRun:
    run = TrainingRun(folder, resume=True, changes=changes)
    for _ in run.chunks():
        pass
    run.close()
    return run


def crash_behind(folder: Path, options: dict[str, Any], chunk: int) -> None:
    run = TrainingRun(folder, TrainingOptions(**options))
    for report in run.chunks():
        if report.chunk == chunk:
            break
    run.close()


# The end of the data


def test_the_last_part_of_the_data_is_trained_on_too(
    tmp_path: Path, data: Path, options: dict[str, Any], stories_dir: Path
) -> None:
    from neurogen.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(stories_dir)
    options |= {"tokenizer": str(stories_dir / "tokenizer.model"), "max_chunks": None}
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    ids = sum(len(tokenizer.encode(text, add_bos=False)) + 1 for text in texts)
    found = train(tmp_path / "run", options)
    assert ids % 128
    assert found[-1]["tokens"] == ids
    assert [line["tokens"] for line in found[:-1]] == [128 * chunk for chunk in range(1, len(found))]
    assert all(math.isfinite(line["loss"]) for line in found)
    assert len(lines(tmp_path / "run", "samples.jsonl")) == len(found)


def test_data_of_less_than_a_sequence_make_one_step(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "short.jsonl").write_text('{"text": "the girl"}\n')
    (line,) = train(tmp_path / "run", {**options, "data": (str(tmp_path / "short.jsonl"),), "max_chunks": None})
    assert 0 < line["tokens"] < 16
    (sample,) = lines(tmp_path / "run", "samples.jsonl")
    assert 0 < len(sample["expected_ids"]) <= line["tokens"]


def test_a_pass_that_is_over_is_not_made_again_and_can_be_extended(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    once = train(folder, {**options, "max_chunks": None})
    again = invoke("train", "--resume", "--out", str(folder))
    assert again.exit_code == 0
    assert f"Nothing was trained: the run has reached its end, with {len(once)} chunks" in again.stderr
    assert "Trained" not in again.stderr
    assert lines(folder) == once
    for most in (len(once), 1):
        with pytest.raises(ParameterError, match=rf"more than the {len(once)} chunks .* trained already, got {most}"):
            TrainingRun(folder, resume=True, changes={"max_chunks": most})
    more = invoke("train", "--resume", "--out", str(folder), "--max-chunks", str(len(once) + 3), "--json")
    assert json.loads(more.stdout)["trained"] == 3
    found = lines(folder)
    assert [line["chunk"] for line in found] == list(range(1, len(once) + 4))
    assert found[-1]["tokens"] == once[-1]["tokens"] + 3 * 128
    assert found[len(once)]["epoch"] == 1


def test_a_run_that_has_its_chunks_says_that_nothing_was_trained(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "run", {**options, "max_chunks": 2})
    result = invoke("train", "--resume", "--out", str(tmp_path / "run"), "--json")
    assert json.loads(result.stdout)["trained"] == 0


# What is told


def test_a_new_end_is_told_with_the_learning_rate(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "run", options)
    run = TrainingRun(tmp_path / "run", resume=True, changes={"max_chunks": 120})
    before = learning_rate_at(12, peak=1e-2, warmup=1, total=12)
    now = learning_rate_at(12, peak=1e-2, warmup=12, total=120)
    assert run.notices == [
        "The run now ends after 120 chunks, not after 12 chunks, and the learning rate follows: the next step has "
        f"{now:.2e}, where it would have had {before:.2e}."
    ]
    assert now / before == pytest.approx(10)
    assert next(run.chunks()).learning_rate == now
    run.close()


def test_a_run_that_goes_on_as_it_was_tells_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    crash_behind(tmp_path / "run", options, 6)
    assert go_on(tmp_path / "run").notices == []


def test_too_few_documents_to_hold_one_out_are_told(tmp_path: Path, options: dict[str, Any]) -> None:
    result = invoke(*arguments(tmp_path / "run", {**options, "max_chunks": 1, "hold_out": 1000}))
    assert "every 1,000-th document would be, and there are 120. Give --val DATA" in result.stderr
    assert "held out" not in invoke(*arguments(tmp_path / "all", {**options, "max_chunks": 1, "hold_out": 5})).stderr


def test_held_out_data_that_are_never_measured_on_are_told(tmp_path: Path, data: Path, options: dict[str, Any]) -> None:
    options |= {"val": (str(data),), "max_chunks": 2}
    told = "never measured on: this is done every 50 chunks, and the run ends after 2"
    run = TrainingRun(tmp_path / "run", TrainingOptions(**options))
    run.close()
    assert told in " ".join(run.notices)
    measured = TrainingRun(tmp_path / "measured", TrainingOptions(**options, val_every=2))
    measured.close()
    assert measured.notices == []


def test_documents_that_are_held_out_and_never_measured_on_are_told(tmp_path: Path, options: dict[str, Any]) -> None:
    run = TrainingRun(tmp_path / "run", TrainingOptions(**options | {"hold_out": 5, "max_chunks": 2}))
    run.close()
    assert run.notices == [
        "The held-out documents, every 5-th, are not trained on and are never measured on: this is done every 50 "
        "chunks, and the run ends after 2. Give --val-every with a smaller number, or --hold-out 0."
    ]


# Which data


@pytest.mark.parametrize("saved", [True, False])
def test_data_may_be_moved_and_not_changed(tmp_path: Path, data: Path, options: dict[str, Any], saved: bool) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    shutil.copy(data, here)
    options["data"] = (str(here / data.name),)
    whole = train(tmp_path / "whole", options)
    crash_behind(tmp_path / "run", options, 6 if saved else 3)
    here.rename(there)
    with pytest.raises(DataError, match=r"no file or folder .*neurogen train DATA --resume --out"):
        TrainingRun(tmp_path / "run", resume=True)
    moved = there / data.name
    text = moved.read_text()
    moved.write_text(text.replace("girl", "boys", 1))
    with pytest.raises(DataError, match="data are others than the run began with"):
        TrainingRun(tmp_path / "run", resume=True, changes={"data": (str(moved),)})
    moved.write_text(text)
    assert invoke("train", str(moved), "--resume", "--out", str(tmp_path / "run")).exit_code == 0
    assert lines(tmp_path / "run") == whole


def test_other_held_out_data_are_told(tmp_path: Path, data: Path, options: dict[str, Any]) -> None:
    held_out = tmp_path / "val.jsonl"
    shutil.copy(data, held_out)
    crash_behind(tmp_path / "run", {**options, "val": (str(held_out),), "val_every": 4}, 6)
    held_out.write_text(data.read_text().replace("girl", "boys"))
    assert go_on(tmp_path / "run").notices == [
        "The data of --val have changed: val_loss is not comparable with that so far."
    ]


# What was asked for is used or refused


def test_a_run_that_failed_early_leaves_no_tokenizer_to_the_next(
    tmp_path: Path, options: dict[str, Any], stories_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurogen.training import presets

    folder = tmp_path / "run"
    folder.mkdir()  # one that the run makes itself it removes
    with monkeypatch.context() as patch:
        patch.setattr(presets, "new_model", lambda *_: pytest.fail("no memory"))
        with pytest.raises(pytest.fail.Exception):
            TrainingRun(folder, TrainingOptions(**options))
    assert (folder / "tokenizer").is_dir()
    train(folder, {**options, "tokenizer": str(stories_dir / "tokenizer.model"), "max_chunks": 1})
    for made in (folder / "tokenizer", latest_checkpoint(folder)):
        assert made is not None
        assert (made / "tokenizer.model").read_bytes() == (stories_dir / "tokenizer.model").read_bytes()


def test_a_picture_that_cannot_be_written_ends_no_training(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurogen.pages import training_charts as charts

    def in_no_folder(figure: Any, picture: Path, *, dpi: int) -> None:
        drawn(figure, picture.parent / "removed" / picture.name, dpi=dpi)

    drawn = charts.save_picture
    monkeypatch.setattr(charts, "save_picture", in_no_folder)
    result = invoke(*arguments(tmp_path / "run", {**options, "max_chunks": 3, "chart_every": 2}))
    during, _, after = result.stderr.partition("The training goes on.")
    assert "charts.png: No such file or directory" in " ".join(during.split())
    assert "Trained 3 chunks; the model is in" in " ".join(after.split())
    assert result.exit_code == 1
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "chunk-000003"


def test_a_run_that_could_not_begin_leaves_no_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="There is no text"):
        TrainingRun(tmp_path / "run", TrainingOptions(**{**options, "data": (str(empty),), "hold_out": 2}))
    with pytest.raises(ParameterError, match=r"neurogen tokenizer train. makes one with another --vocab-size"):
        TrainingRun(tmp_path / "run", TrainingOptions(**{**options, "tokenizer": None}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("remains", ["metrics.jsonl", "checkpoints"])
def test_what_is_left_of_another_run_is_neither_taken_nor_lost(
    tmp_path: Path, options: dict[str, Any], remains: str
) -> None:
    train(tmp_path / "old", {**options, "max_chunks": 1})
    (tmp_path / "run").mkdir()
    (tmp_path / "old" / remains).rename(tmp_path / "run" / remains)
    with pytest.raises(DataError, match=r"of another run, but not its training.json"):
        TrainingRun(tmp_path / "run", TrainingOptions(**options))
    assert (tmp_path / "run" / remains).exists()


def test_options_that_would_not_be_used_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "run", {**options, "max_chunks": 1})
    with pytest.raises(ParameterError, match="options must be left out with resume"):
        TrainingRun(tmp_path / "run", TrainingOptions(**options), resume=True)
    with pytest.raises(ParameterError, match="options must be given for a new run, and no changes"):
        TrainingRun(tmp_path / "other", TrainingOptions(**options), changes={"max_chunks": 3})


# Every file holds each chunk once


def scalars(folder: Path) -> dict[str, list[int]]:
    """Name -> the chunks of its events, in every file, as they lie there."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, list[int]] = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_events_for_tensorboard_are_kept_and_there_once(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    assert invoke(*arguments(folder, options), "--tensorboard", "--chart-every", "5").exit_code == 0
    assert scalars(folder)["loss"] == list(range(1, 13))
    shutil.rmtree(checkpoints_of(folder)[-1])  # as after a kill before it was written: the last is that of chunk 8
    for file in (folder / "tensorboard").iterdir():
        file.write_bytes(file.read_bytes()[:-7])  # an event that was cut short
    assert invoke("train", "--resume", "--out", str(folder)).exit_code == 0
    assert json.loads((folder / "training.json").read_text())["chart_every"] == 5
    found = scalars(folder)
    assert set(found) >= {"loss", "accuracy", "learning_rate"}
    assert all(chunks == list(range(1, 13)) for chunks in found.values())
    last = invoke("train", "--resume", "--out", str(folder), "--max-chunks", "13", "--no-tensorboard")
    assert last.exit_code == 0
    assert scalars(folder)["loss"] == list(range(1, 13))


def test_events_may_be_asked_for_later(tmp_path: Path, options: dict[str, Any]) -> None:
    crash_behind(tmp_path / "run", options, 6)
    assert invoke("train", "--resume", "--out", str(tmp_path / "run"), "--tensorboard").exit_code == 0
    assert scalars(tmp_path / "run")["loss"] == list(range(1, 13))


def test_a_checkpoint_does_not_grow_with_a_document(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "the little girl saw a red ball " * 30_000}) + "\n")
    options |= {"data": (str(tmp_path / "long.jsonl"),), "max_chunks": 4, "save_every": 2}
    whole = train(tmp_path / "whole", options)
    crash_behind(tmp_path / "run", options, 3)
    for checkpoint in checkpoints_of(tmp_path / "run"):
        assert (checkpoint / "trainer.json").stat().st_size < 10_000
    go_on(tmp_path / "run")
    assert lines(tmp_path / "run") == whole


# Targets to ignore


def trainers(**values: Any) -> Any:
    return Trainer(small_model(), learning_rate=1e-2, **values)


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(64, (3, 9), generator=torch.Generator().manual_seed(5))
    contexts, targets = ids[:, :-1].contiguous(), ids[:, 1:].clone()
    targets[1, 3:] = -100
    targets[2] = -100
    return contexts, targets


def test_a_process_without_a_target_changes_no_mean_of_a_chunk() -> None:
    none = measure(torch.zeros(2, 5), torch.full((2,), IGNORE_INDEX)).health(0)
    some = measure(torch.zeros(2, 5), torch.tensor([0, 4])).health(1)
    ids = torch.zeros(2, dtype=torch.int64)
    total = sum(sums_of(StepResult(health, ids, 1.0, 1e-3, False, 0.0)) for health in (some, none))
    assert means_of(total.tolist(), 5) == (some, 0.0)


def test_targets_to_ignore_count_nowhere() -> None:
    contexts, targets = padded()
    trainer = trainers()
    logits = trainer.model(input_ids=contexts).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, targets.flatten())
    held_out = trainer.evaluate([(contexts, targets)])
    result = trainer.train_step(contexts, targets)
    right = (logits.argmax(-1) == targets.flatten()).sum() / 11
    for health in (held_out, result.health):
        assert health.positions == 11
        assert health.loss == pytest.approx(expected.item(), rel=1e-6)
        assert health.accuracy == pytest.approx(right.item())
    assert (result.predicted_ids == -1).tolist() == (targets == -100).tolist()


@pytest.mark.parametrize("accumulation", [2, 3])
def test_every_target_has_the_same_weight_however_the_batch_is_divided(accumulation: int) -> None:
    contexts, targets = padded()
    whole, parts = trainers(), trainers(accumulation=accumulation)
    norms = [trainer.train_step(contexts, targets).gradient_norm for trainer in (whole, parts)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_step_without_any_target_is_refused() -> None:
    with pytest.raises(ParameterError, match="target_ids must hold at least one target"):
        trainers().train_step([1, 2], [-100, -100])
