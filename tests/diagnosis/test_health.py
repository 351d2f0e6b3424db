"""Loss, gradient and health from one softmax, against torch in float64; and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional

from neurogen import ParameterError
from neurogen.diagnosis import health
from neurogen.diagnosis.health import Health, cross_entropy, judge, measure
from neurogen.kernels.loss import softmax_rows

SHAPES = [(1, 1), (1, 7), (5, 33), (64, 512), (9, 4096), (3, 32_000)]


def case(positions: int, vocab: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(positions * 7 + vocab)
    logits = torch.randn(positions, vocab, generator=generator) * scale
    return logits, torch.randint(vocab, (positions,), generator=generator)


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making the measures: the CPU's kernel, and torch operations as on a GPU."""
    if request.param == "torch":
        monkeypatch.setattr(health, "_softmax", health._softmax_by_torch)
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


# Positions without a target, and arguments that cannot be


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignore_index", [-100, 3, -1])
def test_ignored_positions_count_nowhere(ignore_index: int, dtype: torch.dtype, way: str) -> None:
    logits, targets = case(40, 30)
    targets[targets == 3] = 4
    kept = torch.arange(40) % 3 != 0
    logits[0] = torch.nan  # of a position that does not count
    logits = logits.to(dtype)
    marked = targets.masked_fill(~kept, ignore_index)
    own, alone = logits.clone().requires_grad_(), logits[kept].clone().requires_grad_()
    loss, sums = cross_entropy(own, marked, ignore_index=ignore_index)
    wanted, wanted_sums = cross_entropy(alone, targets[kept])
    loss.backward()  # type: ignore[no-untyped-call]
    wanted.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert sums.health(correct=5).positions == int(kept.sum())
    assert sums.sums.tolist() == pytest.approx(wanted_sums.sums.tolist(), rel=1e-12)
    measured = measure(logits, marked, ignore_index=ignore_index)
    assert measured.sums.tolist() == pytest.approx(wanted_sums.sums.tolist(), rel=1e-12)
    assert own.grad is not None
    assert (own.grad[~kept] == 0).all()
    assert torch.equal(own.grad[kept], alone.grad)  # type: ignore[arg-type]


def test_the_loss_with_ignored_positions_is_that_of_torch(way: str) -> None:
    logits, targets = case(9, 30)
    targets[::2] = -100
    own, wanted = logits.clone().requires_grad_(), logits.double().requires_grad_()
    cross_entropy(own, targets)[0].backward()  # type: ignore[no-untyped-call]
    functional.cross_entropy(wanted, targets).backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert wanted.grad is not None
    assert (own.grad - wanted.grad).abs().max() < 1e-6


@pytest.mark.parametrize("positions", [0, 4])
def test_without_a_target_there_is_no_loss_and_no_gradient(positions: int, way: str) -> None:
    logits = torch.randn(positions, 7, requires_grad=True)
    loss, sums = cross_entropy(logits, torch.full((positions,), -100))
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isnan(loss.item())  # as torch's
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    found = sums.health(correct=0)
    assert found.positions == 0
    assert math.isnan(found.loss)
    assert math.isnan(found.accuracy)
    with pytest.raises(ParameterError, match="nothing to judge"):
        judge(found)


@pytest.mark.parametrize("call", [measure, cross_entropy])
@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(3, 5), [0, 5, 1], r"ids in 0 .. 4.*or -100 \(ignore_index\).*got 5 at position 1"),
        (torch.zeros(3, 5), [0, 1, -1], "got -1 at position 2"),
        (torch.zeros(3, 5), [-101, 1, 2], "got -101 at position 0"),
        (torch.zeros(3, 5), [0, 1, 2**40], "got 1099511627776 at position 2"),
        (torch.zeros(3, 5), [0, 1], r"targets must be int64 \[3\].*got int64 \[2\]"),
        (torch.zeros(3, 5), [[0, 1, 2]], r"got int64 \[1, 3\]"),
        (torch.zeros(3, 5), [0.0, 1.0, 2.0], "got float32"),
        (torch.zeros(3, 5), [True, False, True], "got bool"),
        (torch.zeros(3, 5, dtype=torch.float64), [0, 1, 2], "logits must be float32, float16, bfloat16, got float64"),
        (torch.zeros(3, 5, dtype=torch.int64), [0, 1, 2], "got int64"),
        (torch.zeros(1, 3, 5), [0], r"dense tensor \[positions, vocab\].*got \[1, 3, 5\]"),
        (torch.zeros(3, 0), [0, 0, 0], "vocab >= 1"),
        (torch.zeros(3, 5).to_sparse(), [0, 1, 2], "sparse_coo"),
        ([[0.0, 1.0]], [0], "logits must be a torch tensor"),
    ],
)
def test_what_is_no_logits_or_no_targets_never_reaches_a_kernel(
    call: Any, logits: Any, targets: Any, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        call(logits, torch.tensor(targets))


def test_targets_that_are_no_tensor_and_an_ignore_index_that_is_no_integer_are_refused() -> None:
    with pytest.raises(ParameterError, match="targets must be a torch tensor"):
        measure(torch.zeros(3, 5), [0, 1, 2])  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="ignore_index must be an integer, got None"):
        measure(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), ignore_index=None)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"ignore_index must be an integer, got .*; targets have 64 bits"):
        measure(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), ignore_index=2**63)
    with pytest.raises(ParameterError, match="logits must hold values, got a tensor on the device meta"):
        measure(torch.zeros(3, 5, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta"))


def test_strides_do_not_matter() -> None:
    logits, targets = case(6, 40)
    spread, shifted = torch.empty(40, 6).t(), torch.zeros(12, dtype=torch.int64)
    spread.copy_(logits)
    shifted[::2] = targets
    assert torch.equal(measure(spread, shifted[::2]).sums, measure(logits, targets).sums)


def test_the_kernel_itself_stays_within_memory() -> None:
    """Whatever a caller inside forgets to check: an id outside the vocabulary is a position that does not count."""
    gradient = torch.full((4, 5), torch.nan)
    measures = softmax_rows(torch.randn(4, 5), torch.tensor([2**62, -(2**62), 5, 1]), gradient)
    assert (measures[:3] == 0).all()
    assert (gradient[:3] == 0).all()
    assert gradient[3].sum() == pytest.approx(0, abs=1e-6)


# Verdicts


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
        ({"loss": 11.5}, 1.0, "worse than uniform", "above 10.37, that of a uniform guess: look for a wrong tokenizer"),
        ({"loss": 10.4}, 1.0, "healthy", "right at 30.0%"),
        ({"entropy": 10.36, "loss": 11.5, "accuracy": 0.0, "top1_probability": 0.0001}, 1.0, "flat", "99.9%"),
    ],
)
def test_verdicts_name_what_they_saw(values: dict[str, float], gradient_norm: float, verdict: str, words: str) -> None:
    found, reason = judge(build(**values), gradient_norm)
    assert found == verdict
    assert words in reason


def test_a_model_that_is_certain_and_right_is_healthy() -> None:
    assert judge(build(entropy=0.1, loss=0.1, accuracy=0.97, top1_probability=0.98))[0] == "healthy"
