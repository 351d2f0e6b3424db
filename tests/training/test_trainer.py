"""A training step: what it measures, that only greedy may measure, and that it learns."""

from __future__ import annotations

from importlib.metadata import entry_points
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from training_helpers import VOCAB, small_model

import neurogen
from neurogen import ContractError, ModelError, ParameterError, PluginError, Registry, Sampler, hookimpl
from neurogen.registry.registry import ENTRY_POINT_GROUP
from neurogen.training.optimizers import learning_rate_at, make_optimizers
from neurogen.training.options import PRESETS
from neurogen.training.presets import model_config
from neurogen.training.trainer import Trainer, TrainerOptions, UnmovedWarning


def tokenizer(vocab: int = VOCAB) -> Any:
    return SimpleNamespace(vocab_size=vocab, bos_id=1, eos_ids=frozenset({2}))


def batch(rows: int = 6, length: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def test_a_step_measures_the_model_as_it_was() -> None:
    model = small_model()
    contexts, targets = batch()
    with torch.no_grad():
        logits = model(input_ids=contexts).logits
    loss = functional.cross_entropy(logits.reshape(-1, VOCAB).double(), targets.reshape(-1)).item()
    result = Trainer(model, learning_rate=1e-2).train_step(contexts, targets)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert torch.equal(result.predicted_ids, logits.argmax(-1))
    assert result.accuracy == (logits.argmax(-1) == targets).double().mean().item()


def test_lists_and_one_sequence_are_taken_and_the_prediction_has_their_shape() -> None:
    trainer = Trainer(small_model())
    assert trainer.train_step([5, 17, 3], [17, 3, 9]).predicted_ids.shape == (3,)
    assert trainer.train_step([[5, 17, 3]], [[17, 3, 9]]).predicted_ids.shape == (1, 3)
    assert trainer.step == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_a_rule_and_accuracy_shows_it(optimizer: Any) -> None:
    trainer = Trainer(small_model(), learning_rate=1e-2, warmup_steps=5, optimizer=optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        start = torch.randint(VOCAB, (16, 1), generator=generator)
        ids = (start + 3 * torch.arange(17)) % VOCAB
        result = trainer.train_step(ids[:, :-1], ids[:, 1:])
    assert result.accuracy > 0.9
    assert result.loss < 0.6
    assert result.verdict[0] == "healthy"


def test_parts_of_a_batch_make_the_same_step() -> None:
    contexts, targets = batch()
    weights = []
    for accumulation in (1, 4):
        model = small_model()
        options = TrainerOptions(learning_rate=1e-2, accumulation=accumulation, warmup_steps=0)
        result = Trainer(model, options).train_step(contexts, targets)
        weights.append((torch.cat([p.detach().flatten() for p in model.parameters()]), result))
    assert torch.equal(weights[0][1].predicted_ids, weights[1][1].predicted_ids)
    assert weights[0][1].loss == pytest.approx(weights[1][1].loss, rel=1e-6)
    assert weights[0][1].gradient_norm == pytest.approx(weights[1][1].gradient_norm, rel=1e-4)
    # Adam's first step is the sign of the gradient, so where that is all but zero its rounding decides.
    different = ((weights[0][0] - weights[1][0]).abs() > 1e-5).double().mean()
    assert different < 2e-3


def test_evaluation_changes_nothing_and_agrees_with_a_step() -> None:
    model = small_model()
    trainer = Trainer(model)
    before = [p.detach().clone() for p in model.parameters()]
    contexts, targets = batch()
    health = trainer.evaluate([(contexts[:3], targets[:3]), (contexts[3:], targets[3:])])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.training
    result = trainer.train_step(contexts, targets)
    assert health.loss == pytest.approx(result.loss, rel=1e-6)
    assert health.accuracy == result.accuracy


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    model = small_model()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    trainer = Trainer(model)
    before = [p.detach().clone() for p in model.parameters()]
    result = trainer.train_step(*batch())
    assert result.skipped
    assert result.verdict[0] == "diverged"
    assert (result.predicted_ids == -1).all()
    pairs = zip(before, model.parameters(), strict=True)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def test_contrast_counts_draws_and_changes_nothing() -> None:
    contexts, targets = batch()
    plain = Trainer(small_model()).train_step(contexts, targets)
    sampler = neurogen.load_sampler("topk", k=50, temperature=1.0)
    contrasted = Trainer(small_model(), contrast=sampler).train_step(contexts, targets)
    assert contrasted.contrast_accuracy is not None
    assert 0 <= contrasted.contrast_accuracy < 0.3
    assert (plain.loss, plain.accuracy) == (contrasted.loss, contrasted.accuracy)
    assert plain.contrast_accuracy is None


@pytest.mark.parametrize(
    ("contexts", "targets", "message"),
    [
        ([1, 2, 3], [2, 3], "same shape, got .1, 3. and .1, 2."),
        ([1, 2, VOCAB], [2, 3, 4], rf"context_ids must be in \[0, {VOCAB - 1}\].*got 1 to {VOCAB}"),
        ([1, 2, 3], [2, 3, -1], rf"target_ids must be in \[0, {VOCAB - 1}\]"),
        ([], [], "at least one"),
        ([[1, 2], [3]], [[1, 2], [3]], "lists of one length"),
        ([1.5, 2.0], [1, 2], "must be integers"),
    ],
)
def test_ids_that_cannot_be_are_refused(contexts: Any, targets: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Trainer(small_model()).train_step(contexts, targets)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -1}, "weight_decay must be a finite number >= 0"),
        ({"accumulation": 0}, "accumulation must be an integer >= 1, got 0"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon, got 'sgd'"),
    ],
)
def test_options_outside_their_domain_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Trainer(small_model(), **values)


# Greedy by contract


def registry_with(cls: type[Sampler]) -> Registry:
    class Plugin:
        __name__ = "impostor"

        @hookimpl
        def neurogen_samplers(self) -> list[type[Sampler]]:
            return [cls]

    own = Registry([entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name != "greedy"])
    own.register(Plugin(), distribution="greedy-impostor", version="6.6")
    return own


class Samples(Sampler):
    name, api_version, deterministic = "greedy", 1, True

    def _sample(self, logits: Any, seed: Any, position: Any, params: Any, *state: Any) -> Any:
        return neurogen.load_sampler("topk", k=50, temperature=1.0).sample(logits, seed=seed, position=position)

    def _probs(self, logits: Any, params: Any) -> Any: ...

    def _support(self, logits: Any, params: Any) -> Any: ...


class BreaksTiesAtRandom(Samples):
    def _sample(self, logits: Any, seed: Any, position: Any, params: Any, *state: Any) -> Any:
        noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(int(seed[0]) % 1000))
        return torch.where(logits == logits.amax(-1, keepdim=True), noise, -1.0).argmax(-1)


class AdmitsIt(Samples):
    deterministic = False


@pytest.mark.parametrize("impostor", [Samples, BreaksTiesAtRandom, AdmitsIt])
def test_an_impostor_of_greedy_is_refused_before_the_first_step(impostor: type[Sampler]) -> None:
    with pytest.raises(ContractError, match=r"'greedy' \(greedy-impostor 6.6\) was required to be"):
        Trainer(small_model(), registry=registry_with(impostor))


def test_without_greedy_there_is_no_training() -> None:
    with pytest.raises(PluginError, match="no sampler 'greedy'"):
        Trainer(small_model(), registry=Registry([]))


def test_another_sampler_cannot_be_asked_for() -> None:
    with pytest.raises(TypeError, match="sampler"):
        Trainer(small_model(), sampler="topk")


# Presets, weights, learning rate


@pytest.mark.parametrize(("name", "low", "high"), [("tiny", 2.7, 3.4), ("small", 22, 28), ("base", 118, 130)])
def test_presets_have_the_size_they_say(name: str, low: float, high: float) -> None:
    config = model_config(tokenizer(PRESETS[name].vocab_size), context=256, preset=name)
    with torch.device("meta"):
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM(config)
    assert low < sum(p.numel() for p in model.parameters()) / 1e6 < high


def test_fresh_weights_depend_on_the_seed_alone_and_predict_a_flat_distribution() -> None:
    one, again, other = small_model(3), small_model(3), small_model(4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    result = Trainer(one).train_step(*batch())
    assert result.loss == pytest.approx(4.16, abs=0.1)  # log(64)
    assert result.verdict[0] == "flat"


def test_the_learning_rate_rises_falls_and_ends_at_a_tenth() -> None:
    rates = [learning_rate_at(step, peak=1.0, warmup=10, total=110) for step in range(120)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == rates[119] == pytest.approx(0.1)
    assert learning_rate_at(10**6, peak=1.0, warmup=10, total=None) == 1.0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_alone_decay_and_every_weight_is_in_one_group(name: Any) -> None:
    model = small_model()
    groups = [
        group for o in make_optimizers(model, name, learning_rate=1e-3, weight_decay=0.1) for group in o.param_groups
    ]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {n for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}


# Weights that would stay as they are


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused_with_what_to_do(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=r"float32, and model\.embed_tokens\.weight is .*float16.*model\.float\(\)"):
        Trainer(small_model().to(dtype))


def test_a_single_weight_in_half_precision_is_refused_unless_it_is_frozen() -> None:
    model = small_model()
    model.model.norm.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"model\.norm\.weight is bfloat16"):
        Trainer(model)
    model.model.norm.requires_grad_(False)
    Trainer(model)


def test_every_weight_of_a_model_that_was_made_float32_moves() -> None:
    model = small_model().to(torch.bfloat16).float()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = Trainer(model, learning_rate=1e-4, warmup_steps=0)
    trainer.train_step(*batch())
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


def test_a_model_of_which_all_is_frozen_is_refused() -> None:
    with pytest.raises(ModelError, match=r"none requires a gradient.*requires_grad_\(True\)"):
        Trainer(small_model().requires_grad_(False))


def test_parameters_that_never_move_are_named_once() -> None:
    model = small_model()
    model.unused = torch.nn.Linear(3, 3)
    trainer = Trainer(model, warmup_steps=0, weight_decay=0.0)
    steps = batch(rows=1, length=4)
    for _ in range(19):
        trainer.train_step(*steps)
    with pytest.warns(UnmovedWarning, match=r"2 of 22 parameters have not changed in 20 steps: unused\.weight, un"):
        trainer.train_step(*steps)
    trainer.train_step(*steps)


def test_frozen_parameters_and_rows_of_tokens_that_do_not_occur_are_no_news() -> None:
    model = small_model()
    model.model.layers[0].requires_grad_(False)
    trainer = Trainer(model, warmup_steps=100, weight_decay=0.0)
    for _ in range(25):
        trainer.train_step([5, 6], [6, 7])  # pytest makes an error of a warning
