"""Whole training runs: files, resumption to the bit, kills, Ctrl-C, several processes, impostors, the command line."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from training_helpers import arguments, invoke, lines, process, train, wait_for_chunk

from neurogen import DataError, ModelError, ParameterError
from neurogen.models.checkpoints import checkpoints_of, latest_checkpoint
from neurogen.models.language_model import load_model
from neurogen.training.checkpoint import read_state
from neurogen.training.run import TrainingOptions, TrainingRun


def test_a_run_writes_a_line_and_a_sample_a_chunk_and_checkpoints(tmp_path: Path, options: dict[str, Any]) -> None:
    found = train(tmp_path / "run", options)
    assert [line["chunk"] for line in found] == list(range(1, 13))
    assert [line["tokens"] for line in found] == [128 * chunk for chunk in range(1, 13)]
    assert found[-1]["loss"] < found[0]["loss"] - 1
    assert found[-1]["accuracy"] > found[0]["accuracy"]
    assert found[0]["verdict"] == "flat"
    wanted = {
        "chunk", "step", "tokens", "epoch", "loss", "accuracy", "top5_accuracy", "entropy_share", "top1_probability",
        "gradient_norm", "learning_rate", "verdict", "reason", "broken_rows", "skipped_steps",
    }  # fmt: skip
    assert set(found[0]) == wanted
    samples = lines(tmp_path / "run", "samples.jsonl")
    assert [sample["chunk"] for sample in samples] == list(range(1, 13))
    for sample in samples:
        pairs = zip(sample["expected_ids"], sample["predicted_ids"], strict=True)
        assert sample["right"] == sum(a == b for a, b in pairs)
        assert sample["context"]
    assert [folder.name for folder in checkpoints_of(tmp_path / "run")] == ["chunk-000008", "chunk-000012"]


def test_the_folder_of_a_run_is_a_model(tmp_path: Path, options: dict[str, Any]) -> None:
    from neurogen import load_sampler
    from neurogen.models.language_model import load_model
    from neurogen.text.runner import Runner

    train(tmp_path / "run", options)
    model = load_model(str(tmp_path / "run"), device="cpu")
    (result,) = Runner(model, load_sampler("greedy"), max_new_tokens=5).generate("the little girl")
    assert result.new_tokens
    (same,) = Runner(
        load_model(str(latest_checkpoint(tmp_path / "run")), device="cpu"), load_sampler("greedy"), max_new_tokens=5
    ).generate("the little girl")
    assert same.token_ids == result.token_ids


def test_several_steps_a_chunk_are_reported_together(tmp_path: Path, options: dict[str, Any]) -> None:
    found = train(tmp_path / "run", {**options, "batch_size": 2, "max_chunks": 3})
    assert [line["step"] for line in found] == [4, 8, 12]
    assert [line["tokens"] for line in found] == [128, 256, 384]


def test_without_an_end_one_pass_is_made_over_the_data(tmp_path: Path, options: dict[str, Any]) -> None:
    found = train(tmp_path / "run", {**options, "max_chunks": None})
    assert found[-1]["epoch"] <= 1
    assert len(found) > 5
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / f"chunk-{len(found):06d}"


def test_held_out_data_is_measured_every_so_often(tmp_path: Path, data: Path, options: dict[str, Any]) -> None:
    found = train(tmp_path / "run", {**options, "val": (str(data),), "val_every": 4, "val_tokens": 256})
    assert [line["chunk"] for line in found if "val_loss" in line] == [4, 8, 12]
    assert found[11]["val_loss"] < found[3]["val_loss"]


def test_without_other_data_some_documents_are_held_out_and_not_trained_on(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    odd = tmp_path / "odd.jsonl"  # every 4th document speaks of what no other does
    rows = ["zebra " * 30 if number % 4 == 0 else "the little girl " * 20 for number in range(1, 101)]
    odd.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    options |= {"data": (str(odd),), "max_chunks": 40, "val_every": 40}
    held_out = train(tmp_path / "held-out", {**options, "hold_out": 4})[-1]
    assert held_out["val_loss"] > 2 * held_out["loss"]
    assert "val_loss" not in train(tmp_path / "none", {**options, "hold_out": 0})[-1]
    assert "val_loss" not in train(tmp_path / "too-few", {**options, "hold_out": 1000})[-1]


def test_contrast_reports_what_sampling_would_have(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = train(tmp_path / "plain", options)
    contrasted = train(tmp_path / "run", {**options, "contrast": True})
    assert all(0 <= line.pop("contrast_accuracy") < 1 for line in contrasted)
    assert contrasted == plain


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    tmp_path: Path, options: dict[str, Any], optimizer: str
) -> None:
    options["optimizer"] = optimizer
    whole = train(tmp_path / "whole", options)
    part = TrainingRun(tmp_path / "part", TrainingOptions(**options))
    for report in part.chunks():
        if report.chunk == 6:
            break  # two chunks behind the checkpoint, as a crash would
    part.close()
    resumed = TrainingRun(tmp_path / "part", resume=True)
    assert resumed.chunk == 4
    assert len(lines(tmp_path / "part")) == 4
    for _ in resumed.chunks():
        pass
    resumed.close()
    assert lines(tmp_path / "part") == whole
    weights = [
        folder / "checkpoints" / "chunk-000012" / "model.safetensors"
        for folder in (tmp_path / "part", tmp_path / "whole")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.fixture
def with_dropout(options: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "gpt2.json"
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.3)
    file.write_text(json.dumps({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, **rates}))
    return {**options, "config": str(file), "max_chunks": 4, "save_every": 2, "contrast": True}


def test_one_seed_makes_one_run_whatever_was_drawn_before(tmp_path: Path, with_dropout: dict[str, Any]) -> None:
    import torch

    torch.manual_seed(1)
    whole = train(tmp_path / "whole", with_dropout)
    torch.rand(7)
    assert train(tmp_path / "same", with_dropout) == whole
    run = TrainingRun(tmp_path / "ended", TrainingOptions(**with_dropout))
    for report in run.chunks():
        if report.chunk == 3:  # one behind the last checkpoint
            break
    run.close()
    torch.rand(7)
    resumed = TrainingRun(tmp_path / "ended", resume=True)
    assert [report.chunk for report in resumed.chunks()] == [3, 4]
    resumed.close()
    assert lines(tmp_path / "ended") == whole


def test_a_run_that_ended_before_its_first_checkpoint_is_repeated(tmp_path: Path, with_dropout: dict[str, Any]) -> None:
    whole = train(tmp_path / "whole", with_dropout)
    run = TrainingRun(tmp_path / "ended", TrainingOptions(**with_dropout))
    next(run.chunks())
    run.close()
    resumed = TrainingRun(tmp_path / "ended", resume=True)
    assert len(list(resumed.chunks())) == 4
    resumed.close()
    assert lines(tmp_path / "ended") == whole


def test_the_seed_is_that_of_dropout_too(with_dropout: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig

    from neurogen.training.presets import new_model
    from neurogen.training.trainer import Trainer

    values = json.loads(Path(with_dropout["config"]).read_text())
    config = AutoConfig.for_model(**{**values, "vocab_size": 30, "eos_token_id": 2, "bos_token_id": 1})
    ids = torch.arange(16)

    def loss(seed: int, step: int = 0) -> float:
        trainer = Trainer(new_model(config, 0), seed=seed)
        trainer.step = step
        state = torch.get_rng_state()
        found = trainer.train_step(ids, ids).loss
        assert torch.equal(torch.get_rng_state(), state)
        return found

    assert loss(0) == loss(0)
    assert len({loss(0), loss(1), loss(-1), loss(0, step=1)}) == 4


def test_a_run_that_wants_to_stop_saves_behind_the_chunk(tmp_path: Path, options: dict[str, Any]) -> None:
    run = TrainingRun(tmp_path / "run", TrainingOptions(**options))
    for report in run.chunks():
        run.stop_requested = report.chunk == 5
    run.close()
    assert [line["chunk"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "chunk-000006"


def test_a_line_that_a_crash_cut_short_is_written_again(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = train(tmp_path / "run", options)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])
    resumed = TrainingRun(tmp_path / "run", resume=True, changes={"max_chunks": 13})
    for _ in resumed.chunks():
        pass
    resumed.close()
    assert [line["chunk"] for line in lines(tmp_path / "run")] == [*range(1, 12), 13]
    assert lines(tmp_path / "run")[:11] == whole[:11]


def test_a_model_without_a_finite_gradient_stops_and_saves_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    import torch

    run = TrainingRun(tmp_path / "run", TrainingOptions(**{**options, "max_chunks": 30}))
    chunks = run.chunks()
    while next(chunks).chunk < 5:
        pass
    with torch.no_grad():
        next(run.trainer.model.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match=r"for 10 chunks no gradient was finite"):
        list(chunks)
    run.close()
    assert [folder.name for folder in checkpoints_of(tmp_path / "run")] == ["chunk-000004"]
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    line = json.loads(last, parse_constant=pytest.fail)  # NaN is no JSON
    assert line["verdict"] == "diverged"
    assert (line["accuracy"], line["top5_accuracy"]) == (0, 0)
    assert [line[name] for name in ("loss", "entropy_share", "top1_probability", "gradient_norm")] == [None] * 4


@pytest.mark.parametrize("max_chunks", [3, 30])
def test_nothing_is_said_of_a_checkpoint_that_is_not_there(
    tmp_path: Path, options: dict[str, Any], max_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from neurogen.training import presets

    def broken(config: Any, seed: int) -> Any:
        model = new_model(config, seed)
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        return model

    new_model = presets.new_model
    monkeypatch.setattr(presets, "new_model", broken)
    result = invoke(*arguments(tmp_path / "run", {**options, "save_every": 2, "max_chunks": max_chunks}))
    assert result.exit_code == (0 if max_chunks == 3 else 1)
    assert "There is no checkpoint" in result.stderr
    assert "is intact" not in result.stderr
    assert checkpoints_of(tmp_path / "run") == []


def test_rows_without_text_are_counted_and_named(tmp_path: Path, data: Path, options: dict[str, Any]) -> None:
    bad = tmp_path / "bad.jsonl"
    text = data.read_text()
    bad.write_text('{"text": ""}\n' + text + '{"other": 1}\n{broken\n' + text)
    named = []
    run = TrainingRun(
        tmp_path / "run",
        TrainingOptions(**{**options, "data": (str(bad),), "max_chunks": None}),
        on_broken=named.append,
    )
    reports = list(run.chunks())
    run.close()
    assert reports[-1].broken_rows == len(named) == 3
    assert [row.line for row in named] == [1, 122, 123]


# What is refused


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path, options: dict[str, Any]) -> None:
    before = train(tmp_path / "run", options)
    with pytest.raises(DataError, match="holds a training run already"):
        TrainingRun(tmp_path / "run", TrainingOptions(**options))
    assert lines(tmp_path / "run") == before


def test_a_run_is_resumed_with_the_options_it_began_with(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "run", options)
    with pytest.raises(ParameterError, match=r"learning_rate = 0.01 \(now 0.5\)"):
        TrainingRun(tmp_path / "run", resume=True, changes={"learning_rate": 0.5})
    with pytest.raises(DataError, match=r"no training run in .*absent to resume"):
        TrainingRun(tmp_path / "absent", resume=True)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    run = TrainingRun(tmp_path / "run", TrainingOptions(**options))
    with pytest.raises(DataError, match="Another process is training"):
        TrainingRun(tmp_path / "run", resume=True)
    run.close()
    TrainingRun(tmp_path / "run", resume=True).close()


def test_a_damaged_checkpoint_is_named(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "run", options)
    file = tmp_path / "run" / "checkpoints" / "chunk-000012" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"chunk-000012.*damaged.*remove that checkpoint"):
        TrainingRun(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"chunk": -1}, "its chunk is -1"), ({"step": True}, "its step is True"), ({"processes": "x"}, "its processes")],
)
def test_a_damaged_state_is_named(tmp_path: Path, change: dict[str, Any], cause: str) -> None:
    state = {"chunk": 3, "step": 3, "optimizer": {}, "processes": 1}
    (tmp_path / "trainer.json").write_text(json.dumps({**state, **change}))
    with pytest.raises(DataError, match=rf"trainer.json cannot be read: {cause}.*Remove that checkpoint"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": 0}, "context must be an integer >= 1, got 0"),
        ({"context": 64}, "allows 32 positions and --context asks for 64"),
        ({"precision": "fp8"}, "precision must be float32 or bf16, got 'fp8'"),
        ({"data": ()}, "data must name at least one"),
        ({"data": ("absent.jsonl",)}, "absent.jsonl"),
        ({"config": None, "preset": "huge"}, "no preset 'huge'. Choose one of tiny, small, base"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0"),
        ({"max_gradient_norm": 0}, "max_gradient_norm must be a finite number > 0, got 0"),
        ({"accumulation": 0}, "accumulation must be an integer >= 1, got 0"),
        ({"seed": 2**63}, "seed must be an integer of 64 bits"),
        ({"val": ("absent.jsonl",)}, "absent.jsonl"),
        ({"tokenizer": "absent.model"}, "absent.model"),
        ({"preset": "huge"}, "no preset 'huge'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, options: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    from neurogen import NeurogenError

    with pytest.raises(NeurogenError, match=message):
        TrainingRun(tmp_path / "run", TrainingOptions(**{**options, **values}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no model configuration"),
        ("[]", "is no model configuration"),
        ('{"model_type": []}', "does not know the architecture"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "No causal language model can be made of"),
        ('{"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}', "No causal language model"),
        ('{"model_type": "clip"}', "No causal language model can be made of"),
    ],
)
def test_a_configuration_is_tried_before_a_tokenizer_is_trained(
    tmp_path: Path, options: dict[str, Any], text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "neurogen.data.tokenizer_training.train_tokenizer", lambda *_, **__: pytest.fail("it was trained")
    )
    config = tmp_path / "config.json"
    config.write_text(text)
    with pytest.raises(ModelError, match=message):
        TrainingRun(tmp_path / "run", TrainingOptions(**{**options, "config": str(config), "tokenizer": None}))
    assert not (tmp_path / "run").exists()


# The command line


def test_the_command_trains_draws_and_says_how_to_use_the_model(tmp_path: Path, options: dict[str, Any]) -> None:
    result = invoke(*arguments(tmp_path / "run", options), "--tensorboard")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "Trained 12 chunks" in result.stderr
    assert f"neurogen run --model {tmp_path / 'run'}" in result.stderr
    assert (tmp_path / "run" / "charts.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    run = invoke(
        "run", "--model", str(tmp_path / "run"), "-s", "greedy", "--prompt", "the girl", "--max-new-tokens", "4"
    )
    assert run.exit_code == 0


def test_without_a_tokenizer_one_is_trained(tmp_path: Path, options: dict[str, Any], monkeypatch: Any) -> None:
    from dataclasses import replace

    from neurogen.training.options import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], vocab_size=300))
    del options["tokenizer"]
    assert invoke(*arguments(tmp_path / "run", {**options, "max_chunks": 2})).exit_code == 0
    assert (tmp_path / "run" / "checkpoints" / "chunk-000002" / "tokenizer.model").is_file()


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        ((), 2, "There is no data"),
        (("--resume",), 1, "no training run in"),
        (("--sampler", "topk"), 2, "No such option '--sampler'"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(
    tmp_path: Path, extra: tuple[str, ...], code: int, message: str
) -> None:
    result = invoke("train", "--out", str(tmp_path / "run"), *extra)
    assert result.exit_code == code
    assert message in result.stderr


@pytest.mark.slow
def test_losses_after_kills_at_random_moments_equal_those_of_an_unbroken_run(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    options |= {"max_chunks": 120, "save_every": 7}
    whole = train(tmp_path / "whole", options)
    folder = tmp_path / "killed"
    chance = random.Random(11)
    command = arguments(folder, options)
    for _ in range(4):
        with process(*command) as running:
            wait_for_chunk(folder, _chunks_so_far(folder) + chance.randrange(3, 25), running)
            time.sleep(chance.random() * 0.05)
            running.kill()
        command = ["train", "--resume", "--out", str(folder)]
    with process(*command) as running:
        _, errors = running.communicate()
    assert running.returncode == 0, errors
    assert lines(folder) == whole
    assert lines(folder, "samples.jsonl") == lines(tmp_path / "whole", "samples.jsonl")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_gives_an_ordinary_model_and_can_be_resumed(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = train(tmp_path / "plain", options | {"max_chunks": 4})
    first = process(*arguments(tmp_path / "run", options | {"max_chunks": 4, "save_every": 2}), "--compile")
    _, errors = first.communicate(timeout=400)
    assert first.returncode == 0, errors
    for checkpoint in checkpoints_of(tmp_path / "run")[1:]:
        shutil.rmtree(checkpoint)
    again = process("train", "--resume", "--out", str(tmp_path / "run"))
    _, errors = again.communicate(timeout=400)
    assert again.returncode == 0, errors
    assert len(lines(tmp_path / "run")) == 4
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses == pytest.approx([line["loss"] for line in plain], rel=1e-4)
    load_model(str(tmp_path / "run"))


def _chunks_so_far(folder: Path) -> int:
    """Where a resumed run begins."""
    checkpoint = latest_checkpoint(folder)
    return int(checkpoint.name.removeprefix("chunk-")) if checkpoint else 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, options: dict[str, Any], number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "run"
    with process(*arguments(folder, {**options, "max_chunks": 5000})) as running:
        wait_for_chunk(folder, 5, running)
        running.send_signal(number)
        _, errors = running.communicate()
    assert running.returncode == code, errors
    assert f"neurogen train --resume --out {folder}" in errors
    assert "Traceback" not in errors
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    assert len(lines(folder)) == int(checkpoint.name.removeprefix("chunk-"))


@pytest.mark.slow
def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path, data: Path, options: dict[str, Any]) -> None:
    options |= {"val": (str(data),), "val_every": 4, "val_tokens": 512, "tokens_per_chunk": 256}
    one = train(tmp_path / "one", {**options, "batch_size": 16})
    given = arguments(tmp_path / "two", {**options, "batch_size": 8} | {"val": str(data)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [process(*given, **world, RANK=str(r), LOCAL_RANK=str(r), ACCELERATE_USE_CPU="true") for r in range(2)]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "".join(errors)
    two = lines(tmp_path / "two")
    assert len(two) == len(one) == 12
    for a, b in zip(one, two, strict=True):
        assert a["tokens"] == b["tokens"]
        for name in ("loss", "accuracy", "top5_accuracy", "entropy_share", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-6), (a["chunk"], name)
        assert ("val_loss" in a) == ("val_loss" in b) == (a["chunk"] % 4 == 0)
        if "val_loss" in a:
            assert b["val_loss"] == pytest.approx(a["val_loss"], rel=2e-4)
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-7)
