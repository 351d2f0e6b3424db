"""Loss, gradient and health from one softmax, against torch in float64; and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional

from neurogen import health
from neurogen.health import Health, cross_entropy, judge, measure

SHAPES = [(1, 1), (1, 7), (5, 33), (64, 512), (9, 4096), (3, 32_000)]


def case(positions: int, vocab: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(positions * 7 + vocab)
    logits = torch.randn(positions, vocab, generator=generator) * scale
    return logits, torch.randint(vocab, (positions,), generator=generator)


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making the measures: the CPU's kernel, and torch operations as on a GPU."""
    if request.param == "torch":

        def by_torch(logits: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor:
            measures = torch.empty((logits.shape[0], 4), dtype=torch.float64)
            probabilities = health._torch_softmax(logits.detach().float(), targets, measures)
            if gradient is not None:
                probabilities[torch.arange(len(targets)), targets] -= 1
                torch.mul(probabilities, 1 / len(targets), out=gradient)
            return measures

        monkeypatch.setattr(health, "_softmax", by_torch)
    return str(request.param)


@pytest.mark.parametrize(("positions", "vocab"), SHAPES)
def test_loss_and_gradient_are_those_of_torch(positions: int, vocab: int, way: str) -> None:
    logits, targets = case(positions, vocab)
    wanted = logits.double().requires_grad_()
    loss = functional.cross_entropy(wanted, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    own = logits.clone().requires_grad_()
    found, _ = cross_entropy(own, targets)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss.item(), rel=2e-6, abs=2e-6)
    assert own.grad is not None
    assert wanted.grad is not None
    assert (own.grad - wanted.grad).abs().max() < 2e-6 / positions


@pytest.mark.parametrize(("positions", "vocab"), SHAPES)
def test_measures_are_those_of_the_definition(positions: int, vocab: int, way: str) -> None:
    logits, targets = case(positions, vocab)
    log_probs = torch.log_softmax(logits.double(), -1)
    probs = log_probs.exp()
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)
    found = measure(logits, targets).health(correct=0)
    assert found.positions == positions
    assert found.loss == pytest.approx(functional.nll_loss(log_probs, targets).item(), rel=2e-6, abs=1e-6)
    assert found.entropy == pytest.approx(-(probs * log_probs).sum(-1).mean().item(), rel=1e-5, abs=1e-5)
    assert found.top1_probability == pytest.approx(probs.amax(-1).mean().item(), rel=1e-5)
    assert found.top5_accuracy == (order[:, :5] == targets[:, None]).any(-1).double().mean().item()


def test_among_equal_logits_the_lowest_ids_are_the_first_five(way: str) -> None:
    """Counting only larger logits would call every token of a flat model one of the first five."""
    targets = torch.arange(10)
    found = measure(torch.zeros(10, 10), targets).health(correct=1)
    assert found.top5_accuracy == 0.5
    assert found.entropy_share == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e4, 1e30])
def test_extreme_logits_have_finite_measures(scale: float, way: str) -> None:
    logits, targets = case(20, 300, scale)
    found = measure(logits, targets).health(correct=0)
    assert math.isfinite(found.loss)
    assert 0 <= found.entropy_share <= 1 + 1e-6
    assert 0 < found.top1_probability <= 1


def test_minus_infinity_is_a_token_without_probability(way: str) -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]])
    found = measure(logits, torch.tensor([2])).health(correct=0)
    assert found.loss == pytest.approx(math.log(2), abs=1e-6)
    assert found.entropy == pytest.approx(math.log(2), abs=1e-6)
    assert found.top1_probability == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_loss(bad: float, way: str) -> None:
    logits, targets = case(4, 50)
    logits[2, 7] = bad
    assert not math.isfinite(measure(logits, targets).health(correct=0).loss)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_where_logits_are_not_finite_no_token_is_among_the_first_five(bad: float, way: str) -> None:
    for vocab in (3, 50):
        logits, targets = case(4, vocab)
        logits[0], logits[1, targets[1]], logits[2, (targets[2] + 1) % vocab] = bad, bad, bad
        logits[3] = 0.0
        logits[3, targets[3]] = 1.0
        assert measure(logits, targets).health(correct=0).top5_accuracy == 0.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_float32(dtype: torch.dtype) -> None:
    logits, targets = case(6, 200)
    half = logits.to(dtype).requires_grad_()
    loss, _ = cross_entropy(half, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    wanted = functional.cross_entropy(half.detach().double(), targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert half.grad is not None
    assert half.grad.dtype == dtype


def test_a_scaled_loss_scales_the_gradient() -> None:
    logits, targets = case(6, 40)
    grads = []
    for factor in (1.0, 0.25):
        own = logits.clone().requires_grad_()
        (cross_entropy(own, targets)[0] * factor).backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        grads.append(own.grad)
    assert torch.allclose(grads[0] * 0.25, grads[1], atol=1e-9)


def test_the_number_of_threads_changes_no_bit() -> None:
    logits, targets = case(64, 4096)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            own = logits.clone().requires_grad_()
            cross_entropy(own, targets)[0].backward()  # type: ignore[no-untyped-call]
            results.append(own.grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])  # type: ignore[arg-type]


HEALTHY = {"positions": 100, "vocab_size": 32_000, "loss": 4.0, "accuracy": 0.3, "top5_accuracy": 0.5}
Build = Callable[..., Health]


def build(**values: float) -> Health:
    defaults = {**HEALTHY, "entropy": 4.0, "top1_probability": 0.35}
    return Health(**{**defaults, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "gradient_norm", "verdict", "words"),
    [
        ({}, 1.0, "healthy", "right at 30.0%"),
        ({"entropy": 10.36, "loss": 10.4, "accuracy": 0.0, "top1_probability": 0.0001}, 1.0, "flat", "99.9%"),
        ({"entropy": 0.02, "loss": 6.9, "accuracy": 0.0, "top1_probability": 0.998}, 1.0, "saturated", "99.8%"),
        ({"entropy": 0.02, "loss": 60.0, "accuracy": 0.0, "top1_probability": 0.998}, 1.0, "saturated", "certain"),
        ({"loss": math.nan}, 1.0, "diverged", "not all finite"),
        ({}, math.inf, "diverged", "not all finite"),
        ({"loss": 20.0}, 1.0, "diverged", "far above 10.37"),
    ],
)
def test_verdicts_name_what_they_saw(values: dict[str, float], gradient_norm: float, verdict: str, words: str) -> None:
    found, reason = judge(build(**values), gradient_norm)
    assert found == verdict
    assert words in reason


def test_a_model_that_is_certain_and_right_is_healthy() -> None:
    assert judge(build(entropy=0.1, loss=0.1, accuracy=0.97, top1_probability=0.98))[0] == "healthy"
