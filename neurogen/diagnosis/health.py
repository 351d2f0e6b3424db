"""How healthy a model's predictions are: measures of every position, their means, and a verdict.

The trainer measures each step with `cross_entropy`, which gives loss, gradient and health from one softmax; the
diagnosis uses the same thresholds. Two failures look alike where accuracy is measured by sampling and are told apart
here: *flat* (every token about as probable as any other) and *saturated* (a wrong token holds nearly everything).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from neurogen.contract.parameters import is_whole
from neurogen.data.batches import IGNORE_INDEX
from neurogen.errors import ParameterError
from neurogen.models.probabilities import are_probabilities

__all__ = [
    "FLAT_ENTROPY",
    "IGNORE_INDEX",
    "SATURATED_TOP1",
    "Health",
    "HealthSums",
    "HealthVerdict",
    "cross_entropy",
    "judge",
    "measure",
]

FLAT_ENTROPY = 0.95
"""Mean entropy over log(vocab) from which predictions count as flat; a unigram model of English text has about 0.65."""

SATURATED_TOP1 = 0.8
"""Mean top-1 probability from which predictions are saturated, if they are right less than half as often."""

DIVERGED_LOSS = 1.5
"""Loss, in units of log(vocab), from which a model does far worse than guessing uniformly."""

WORSE_LOSS = 1.05
"""Loss, in units of log(vocab), from which a model that is not flat does worse than guessing uniformly."""

TOP = 5
CHUNK_BYTES = 256 << 20
"""Float32 logits that are worked on at a time where torch does the work."""

LEAST = -1e4
"""Stands for -inf where it is multiplied by its probability of zero."""

NO_TARGET = -1
"""Replaces every ignored target once the arguments are checked."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

HealthVerdict = Literal["healthy", "flat", "saturated", "worse than uniform", "diverged"]


@dataclass(frozen=True)
class Health:
    """Means over positions; NaN if there is no position.

    Attributes:
        positions: how many; those without a target do not count.
        vocab_size: width of the logits.
        loss: cross-entropy of the targets, in nats.
        accuracy: share of positions where the greedy token is the target.
        top5_accuracy: share where the target is among the five first in the order of tokens. Where the logits are
            not finite no token is right, for this share and for `accuracy`; the other means are NaN then.
        entropy: of the predicted distribution, in nats.
        top1_probability: of the most probable token.
    """

    positions: int
    vocab_size: int
    loss: float
    accuracy: float
    top5_accuracy: float
    entropy: float
    top1_probability: float

    @property
    def entropy_share(self) -> float:
        """Entropy over log(vocab): 1 is a uniform guess, 0 certainty."""
        return self.entropy / math.log(self.vocab_size) if self.vocab_size > 1 else 0.0


@dataclass(frozen=True)
class HealthSums:
    """Sums over positions, on the device of the logits, so that nothing waits for it.

    Attributes:
        sums: float64 [5]: loss, top-5 hits, entropy, top-1 probability, positions.
        vocab_size: width of the logits.
    """

    sums: Tensor
    vocab_size: int

    def health(self, correct: float) -> Health:
        """The means; waits for the device.

        Args:
            correct: positions where the greedy token is the target.
        """
        loss, top5, entropy, top1, positions = self.sums.tolist()
        count = positions or math.nan
        return Health(
            positions=int(positions),
            vocab_size=self.vocab_size,
            loss=loss / count,
            accuracy=correct / count,
            top5_accuracy=top5 / count,
            entropy=entropy / count,
            top1_probability=top1 / count,
        )


def judge(health: Health, gradient_norm: float | None = None) -> tuple[HealthVerdict, str]:
    """A verdict on means over many positions, and the reason for it.

    Args:
        health: the means.
        gradient_norm: of a training step, where there was one.

    Raises:
        ParameterError: there is no position.
    """
    if health.positions < 1:
        raise ParameterError("There is nothing to judge: no position was measured, or none has a target.", "health")
    uniform = math.log(max(health.vocab_size, 2))
    numbers = (health.loss, health.entropy, health.top1_probability, 0.0 if gradient_norm is None else gradient_norm)
    if not all(math.isfinite(number) for number in numbers):
        return "diverged", (
            f"loss {health.loss:g} and gradient norm {gradient_norm if gradient_norm is not None else float('nan'):g} "
            "are not all finite: lower the learning rate, or look for broken data"
        )
    if health.top1_probability >= SATURATED_TOP1 and health.accuracy < health.top1_probability / 2:
        return "saturated", (
            f"the top token holds {health.top1_probability:.1%} on average and is right at {health.accuracy:.1%} of "
            "positions: the model is certain and wrong; weights or learning rate are too large, or targets are shifted"
        )
    if health.loss > DIVERGED_LOSS * uniform:
        return "diverged", (
            f"loss {health.loss:.2f} is far above {uniform:.2f}, that of a uniform guess: lower the learning rate"
        )
    if health.entropy_share >= FLAT_ENTROPY:
        return "flat", (
            f"the entropy is {health.entropy_share:.1%} of that of a uniform guess over {health.vocab_size:,} tokens: "
            "normal in the first chunks of a new model, later a sign that nothing is learnt"
        )
    if health.loss > WORSE_LOSS * uniform:
        return "worse than uniform", (
            f"loss {health.loss:.2f} is above {uniform:.2f}, that of a uniform guess: look for a wrong tokenizer, "
            "targets that are not the inputs shifted by one position, exploded weights, or too large a learning rate"
        )
    return "healthy", (
        f"the entropy is {health.entropy_share:.1%} of that of a uniform guess, the top token holds "
        f"{health.top1_probability:.1%} and is right at {health.accuracy:.1%}"
    )


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> tuple[Tensor, HealthSums]:
    """Mean cross-entropy with its gradient, and the health of the same positions.

    The softmax that the gradient needs anyway gives entropy, top-1 probability and rank as well. The gradient is made
    in the forward pass, so the backward pass computes no second exponential.

    Args:
        logits: [positions, vocab], float32, float16 or bfloat16, any strides; worked on in float32.
        targets: int64 [positions] on the device of `logits`, ids in 0 .. vocab - 1, or `ignore_index`. The values are
            looked at before any kernel runs, which on CUDA waits for the device.
        ignore_index: target of the positions that do not count: neither in the loss nor in any measure, and their
            gradient is zero.

    Returns:
        the mean loss in nats over the positions that count, a float32 scalar that can be differentiated (NaN where
        none counts, as torch's; the gradient is zero then), and the sums.

    Raises:
        ParameterError: wrong shapes, dtypes or devices, a target outside the vocabulary, or probabilities for logits.
    """
    targets = _checked(logits, targets, ignore_index)
    loss, sums = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return loss, HealthSums(sums, logits.shape[-1])


@torch.no_grad()
def measure(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> HealthSums:
    """The health of positions, without a gradient; arguments and errors as for `cross_entropy`."""
    targets = _checked(logits, targets, ignore_index)
    return HealthSums(_sums(_softmax(logits, targets, None), targets), logits.shape[-1])


def _checked(logits: Any, targets: Any, ignore_index: Any) -> Tensor:
    """The targets, with `NO_TARGET` for each that is ignored; all others are ids of the vocabulary."""
    _check_logits(logits)
    if are_probabilities(logits):
        raise ParameterError(
            "logits must come from before the softmax, got probabilities: each row sums to 1. Give the logits, or "
            "probabilities.log(). If these are logits all the same, add 1 to them, which changes no measure.",
            "logits",
        )
    if not is_whole(ignore_index):
        raise ParameterError(
            f"ignore_index must be an integer, got {ignore_index!r}; targets have 64 bits.", "ignore_index"
        )
    if not isinstance(targets, Tensor):
        raise ParameterError(f"targets must be a torch tensor [positions], got {type(targets).__name__}.", "targets")
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:1] or targets.device != logits.device:
        raise ParameterError(
            f"targets must be int64 [{logits.shape[0]}] on {logits.device}, one for each row of logits, got "
            f"{_name(targets.dtype)} {list(targets.shape)} on {targets.device}.",
            "targets",
        )
    ignored = targets == ignore_index
    outside = ((targets < 0) | (targets >= logits.shape[1])) & ~ignored
    if outside.any():
        place = int(outside.nonzero()[0])
        raise ParameterError(
            f"targets must be ids in 0 .. {logits.shape[1] - 1}, the vocabulary of the logits, or {ignore_index} "
            f"(ignore_index) for a position that does not count, got {int(targets[place])} at position {place}.",
            "targets",
        )
    return targets.masked_fill(ignored, NO_TARGET)


def _check_logits(logits: Any) -> None:
    if not isinstance(logits, Tensor):
        raise ParameterError(
            f"logits must be a torch tensor [positions, vocab], got {type(logits).__name__}.", "logits"
        )
    if logits.ndim != 2 or logits.shape[1] < 1 or logits.layout != torch.strided:
        raise ParameterError(
            f"logits must be a dense tensor [positions, vocab] with vocab >= 1, got {list(logits.shape)}, "
            f"{_name(logits.layout)}. Join batch and positions with logits.reshape(-1, logits.shape[-1]).",
            "logits",
        )
    if logits.is_meta:
        raise ParameterError("logits must hold values, got a tensor on the device meta, which has none.", "logits")
    if logits.dtype not in DTYPES:
        allowed = ", ".join(map(_name, DTYPES))
        raise ParameterError(f"logits must be {allowed}, got {_name(logits.dtype)}.", "logits")


def _name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        sums = _sums(_softmax(logits, targets, gradient), targets)
        ctx.save_for_backward(gradient.to(logits.dtype) if gradient is not None else None)
        ctx.mark_non_differentiable(sums)
        return (sums[0] / sums[4]).float(), sums

    @staticmethod
    def backward(ctx: Any, loss: Tensor, sums: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        if loss.device.type == "cpu" and loss == 1:  # the usual case, which needs no pass over the gradient
            return gradient, None
        return gradient * loss.to(gradient.dtype), None


def _sums(measures: Tensor, targets: Tensor) -> Tensor:
    """What `HealthSums` holds, from the measures of every position (see `kernels.loss.MEASURES`)."""
    counts = targets != NO_TARGET
    loss, rank, entropy, top1 = measures.unbind(-1)  # zero where there is no target
    # A NaN is above nothing, so that it has the first rank; where there is no distribution no token is right.
    hits = (rank < TOP) & loss.isfinite() & counts
    columns = (loss, hits.double(), entropy, top1, counts.double())
    return torch.stack([column.sum() for column in columns])


def _softmax(logits: Tensor, targets: Tensor, gradient: Tensor | None) -> Tensor:
    """Measures float64 [positions, 4], and the gradient of the mean loss where there is room for it.

    Both are zero where the target is `NO_TARGET`.
    """
    if logits.device.type == "cpu":
        from neurogen.kernels.loss import softmax_rows

        return softmax_rows(logits.detach(), targets, gradient)
    return _softmax_by_torch(logits, targets, gradient)


def _softmax_by_torch(logits: Tensor, targets: Tensor, gradient: Tensor | None) -> Tensor:
    """The same by operations of torch, some rows at a time."""
    measures = torch.empty((logits.shape[0], 4), dtype=torch.float64, device=logits.device)
    counts = targets != NO_TARGET
    shares = counts / counts.sum().clamp(min=1)
    rows = max(1, CHUNK_BYTES // (4 * logits.shape[1]))
    for start in range(0, logits.shape[0], rows):
        part = slice(start, start + rows)
        ids = targets[part].clamp(min=0)
        probabilities = _torch_softmax(logits[part].float(), ids, measures[part])
        if gradient is not None:
            probabilities[torch.arange(len(probabilities), device=logits.device), ids] -= 1
            torch.mul(probabilities, shares[part].unsqueeze(1), out=gradient[part])
            gradient[part][~counts[part]] = 0  # also where a row without a target is not finite
    measures[~counts] = 0
    return measures


def _torch_softmax(x: Tensor, targets: Tensor, measures: Tensor) -> Tensor:
    """The same measures as `kernels.loss`, by torch; returns the probabilities [positions, vocab]."""
    index = targets.unsqueeze(1)
    centred = x - x.amax(-1, keepdim=True)
    probabilities = torch.softmax(centred, -1)
    top1 = probabilities.amax(-1)
    log_total = -top1.log()  # the top logit is 0 now, so that its probability is 1 / total
    of_target = centred.gather(1, index)
    before = (centred > of_target).sum(-1)
    before += ((centred == of_target) & (torch.arange(x.shape[1], device=x.device) < index)).sum(-1)
    measures[:, 0] = log_total - of_target.squeeze(1)
    measures[:, 1] = before
    measures[:, 2] = log_total - torch.linalg.vecdot(probabilities, centred.clamp_(min=LEAST))
    measures[:, 3] = top1
    return probabilities
