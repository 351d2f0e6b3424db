"""What makes a loss worse than a uniform guess, told from real models: shifted targets, other ids, exploded weights."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diagnosis_helpers import confident, text_like
from safetensors.torch import save_file
from torch import Tensor

from neurogen.cli.diagnose import command
from neurogen.diagnosis.causes import shift_of
from neurogen.diagnosis.diagnose import Diagnosis, diagnose_logits, diagnose_model
from neurogen.diagnosis.verdict import NEXT_STEPS
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.pages.diagnosis import page

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high. Lily asked her mom to help her. Her mom took the "
    "ball and gave it to Lily. Lily was very happy and said thank you. They played with the ball all day."
)


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", device="cpu")


@pytest.fixture(scope="module")
def read(starter: LanguageModel) -> tuple[Tensor, Tensor]:
    """Logits [positions, vocab] of the story, and its ids [positions + 1]."""
    ids = torch.tensor(starter.tokenizer.encode(STORY))
    with torch.inference_mode():
        return starter.model(input_ids=ids[None, :-1]).logits[0], ids


def told(diagnosis: Diagnosis) -> str:
    return " ".join(diagnosis.reasons)


# Shifted targets


@pytest.mark.parametrize(("first", "offset"), [(0, 1), (2, -1), (3, -2)])
def test_shifted_targets_are_named(read: tuple[Tensor, Tensor], first: int, offset: int) -> None:
    logits, ids = read
    targets = ids[first:][: len(logits)]
    diagnosis = diagnose_logits(logits[: len(targets)], targets)
    assert diagnosis.verdict == "worse than uniform"
    assert diagnosis.reasons[0].startswith(f"The loss of {diagnosis.health.loss:.2f} nats is worse than the 7.62 of a")
    assert "predictions and targets are shifted against each other" in diagnosis.reasons[1]
    assert diagnosis.next_steps[0].startswith("Give as the target of each row the token after the one that was read")
    assert "rain longer" not in " ".join(diagnosis.next_steps)
    found = shift_of(diagnosis.measures)
    assert found is not None
    assert found[0] == offset
    assert found[1] > 0.7 > 0.1 > found[2]


def test_the_right_targets_show_no_shift(read: tuple[Tensor, Tensor]) -> None:
    diagnosis = diagnose_logits(read[0], read[1][1:])
    assert diagnosis.verdict == "healthy"
    assert shift_of(diagnosis.measures) is None


def test_a_shift_is_told_where_the_loss_is_below_a_uniform_guess(read: tuple[Tensor, Tensor]) -> None:
    logits, ids = read
    diagnosis = diagnose_logits(logits[:-1] / 2, ids[2:])  # less certain, so that being wrong costs less
    assert diagnosis.health.loss < math.log(2048)
    assert diagnosis.verdict == "undertrained"
    assert "shifted against each other" in diagnosis.reasons[1]
    assert diagnosis.next_steps[-1] == "Then measure again, before any longer training."


def test_where_the_targets_are_right_the_model_was_trained_on_shifted_ones(read: tuple[Tensor, Tensor]) -> None:
    logits, ids = read
    later = diagnose_logits(logits[1:], ids[1:-1], inputs=ids[:-2])  # as a model that predicts the next but one
    assert "it is the model that skips tokens" in told(later)
    assert "models of transformers shift `labels` themselves" in later.next_steps[0]
    earlier = diagnose_logits(logits[:-1], ids[2:], inputs=ids[1:-1])  # as a model that predicts what it has just read
    assert "it is the model that repeats a token it has read" in told(earlier)
    assert (later.verdict, earlier.verdict) == ("worse than uniform", "worse than uniform")


def test_a_model_that_repeats_its_input_where_the_text_does_is_not_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    words = text_like(400, 50)
    ids = words.repeat_interleave(torch.randint(2, 9, (400,), generator=generator))[:1001]
    diagnosis = diagnose_logits(confident(ids[1:], ids[:-1], 0.9), ids[1:], inputs=ids[:-1])
    assert shift_of(diagnosis.measures) is None
    assert diagnosis.verdict == "healthy"


def test_a_model_that_always_says_the_same_is_not_shifted() -> None:
    targets = text_like(500, 50)
    for certainty in (0.3, 0.9, 0.999):
        diagnosis = diagnose_logits(confident(targets, torch.zeros_like(targets), certainty), targets)
        assert shift_of(diagnosis.measures) is None
        assert "mean of all predictions" not in told(diagnosis)


def test_a_certain_model_is_not_called_saturated_where_the_targets_are_shifted() -> None:
    ids = text_like(502, 50)
    logits = confident(ids[1:-1], ids[1:-1], 0.99)
    for targets in (ids[:-2], ids[2:]):
        diagnosis = diagnose_logits(logits, targets)
        assert diagnosis.verdict == "worse than uniform"
        assert "shifted against each other" in diagnosis.reasons[1]
    copying = diagnose_logits(logits, ids[2:], inputs=ids[1:-1])
    assert copying.verdict == "saturated"
    assert "it is the model that repeats a token it has read" in told(copying)


def test_a_model_that_is_never_right_is_not_shifted_by_chance() -> None:
    targets = text_like(400, 50)
    diagnosis = diagnose_logits(confident(targets, (targets + 1) % 50, 0.998), targets)
    assert diagnosis.verdict == "saturated"
    assert "shifted against each other" not in told(diagnosis)


def test_a_shift_in_a_vocabulary_of_two_is_seen() -> None:
    ids = torch.randint(2, (1001,), generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose_logits(confident(ids[1:], ids[:-1], 0.95, vocab=2), ids[1:])
    assert diagnosis.verdict != "undertrained"
    found = shift_of(diagnosis.measures)
    assert found is not None
    assert found[0] == -1


# Other ids


def test_the_ids_of_another_tokenizer_are_named(starter: LanguageModel) -> None:
    order = torch.randperm(starter.vocab_size, generator=torch.Generator().manual_seed(0)).tolist()

    class Other:
        """The same pieces under other ids, as a tokenizer has that was trained again."""

        def encode(self, text: str) -> list[int]:
            return [order[token] for token in starter.tokenizer.encode(text)]

        def token_text(self, token: int) -> str:
            return starter.tokenizer.token_text(order.index(token))

    model = copy.copy(starter)
    model.tokenizer = Other()  # type: ignore[assignment]
    diagnosis = diagnose_model(model, [STORY])
    assert diagnosis.verdict == "worse than uniform"
    assert "the model expects other ids, as with a wrong tokenizer" in diagnosis.reasons[1]
    assert diagnosis.next_steps[0].startswith("Use the tokenizer that the model was trained with")


def test_the_first_steps_of_training_are_not_taken_for_another_tokenizer() -> None:
    targets = text_like(500, 50)
    logits = confident(targets, torch.full_like(targets, 40), 0.5)
    logits[:, :20] -= 0.8  # the frequent tokens of the text are improbable, at every position alike
    diagnosis = diagnose_logits(logits, targets)
    assert diagnosis.verdict == "worse than uniform"
    assert "other ids" not in told(diagnosis)
    assert diagnosis.next_steps == NEXT_STEPS["worse than uniform"]


def test_a_model_and_the_vocabulary_of_another_one(starter: LanguageModel, stories_dir: Path) -> None:
    stories = load_model(str(stories_dir), device="cpu")
    for model, other in ((starter, stories), (stories, starter)):
        ids = [token for token in other.tokenizer.encode(STORY) if token < model.vocab_size]
        with torch.inference_mode():
            logits = model.model(input_ids=torch.tensor([ids[:-1]])).logits[0]
        diagnosis = diagnose_logits(logits, torch.tensor(ids[1:]))
        assert diagnosis.verdict == "worse than uniform"
        assert "as with a wrong tokenizer" in told(diagnosis)


# Weights, and logits that are too large


def test_an_exploded_norm_is_named_as_the_cause(starter: LanguageModel) -> None:
    name = "model.layers.2.input_layernorm.weight"
    model = copy.copy(starter)
    model.model = copy.deepcopy(starter.model)
    with torch.no_grad():
        model.model.get_parameter(name).mul_(300)
    diagnosis = diagnose_model(model, [STORY])
    assert diagnosis.verdict == "worse than uniform"
    assert diagnosis.next_steps[0].startswith(f"Look at {name}, which looks exploded")
    assert f"1 of 47 weight tensors looks exploded: {name}" in told(diagnosis)


def test_a_last_norm_that_is_too_large_is_told_by_its_certainty(starter: LanguageModel) -> None:
    model = copy.copy(starter)
    model.model = copy.deepcopy(starter.model)
    with torch.no_grad():
        model.model.model.norm.weight.mul_(12)
    diagnosis = diagnose_model(model, [STORY])
    assert diagnosis.verdict == "worse than uniform"
    assert "the model is far too certain where it is wrong" in told(diagnosis)
    assert diagnosis.next_steps[0].startswith("Look at what scales the logits: the last norm")


def test_a_certain_model_that_is_often_right_has_logits_that_are_too_large(starter: LanguageModel) -> None:
    """It is saturated, and yet its targets are the right ones: what scales the logits comes first."""
    model = copy.deepcopy(starter)
    with torch.no_grad():
        model.model.get_parameter("model.norm.weight").mul_(20)
    diagnosis = diagnose_model(model)
    assert diagnosis.verdict == "saturated"
    assert "of positions and yet holds 96.8% on average: the model is far too certain" in told(diagnosis)
    assert diagnosis.next_steps[0].startswith("Look at what scales the logits: the last norm")


def test_an_exploded_last_norm_has_no_peers_and_is_named(starter: LanguageModel) -> None:
    model = copy.copy(starter)
    model.model = copy.deepcopy(starter.model)
    with torch.no_grad():
        model.model.model.norm.weight.mul_(300)
    diagnosis = diagnose_model(model, [STORY])
    assert [tensor.name for tensor in diagnosis.weights or () if tensor.status == "exploded"] == ["model.norm.weight"]


# Where it shows


@pytest.mark.parametrize(("loss", "verdict"), [(1.02, "undertrained"), (1.1, "worse than uniform"), (1.6, "diverged")])
def test_the_border_is_just_above_a_uniform_guess(loss: float, verdict: str) -> None:
    targets = text_like(2000, 50)
    logits = torch.zeros(2000, 50)
    logits[:, 49] = 3.0  # the same everywhere, and seldom right
    rows = torch.arange(2000)
    for _ in range(60):  # the logits of the targets that give this loss
        missing = loss * math.log(50) + logits.log_softmax(-1)[rows, targets].mean()
        logits[rows, targets] -= missing * 1.02
    diagnosis = diagnose_logits(logits, targets)
    assert diagnosis.health.loss == pytest.approx(loss * math.log(50), rel=1e-3)
    assert diagnosis.verdict == verdict


def test_it_is_a_verdict_everywhere(read: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    logits, ids = read
    diagnosis = diagnose_logits(logits, ids[:-1])
    assert '<span class="pill bad">worse than uniform</span>' in page(diagnosis)
    path = str(tmp_path / "l.safetensors")
    save_file({"logits": logits.contiguous(), "targets": ids[:-1].contiguous()}, path)
    assert CliRunner().invoke(command, ["--logits", path]).stdout.startswith(f"{path}: worse than uniform\n")
    found = json.loads(CliRunner().invoke(command, ["--logits", path, "--json"]).stdout)
    assert found["verdict"] == "worse than uniform"
    assert set(NEXT_STEPS) >= {"worse than uniform"}
