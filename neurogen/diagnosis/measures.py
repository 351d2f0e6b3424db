"""Measures of every position of raw logits, in float64, and their means over positions.

A sampler's chance to choose the target is its probability after temperature, truncation and renormalisation, as the
installed plugin itself gives it; nothing is drawn. Knows no model, no text and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurogen.contract.sampler import Sampler
from neurogen.diagnosis.health import TOP, Health
from neurogen.models.probabilities import Kind, least_probability, log_of

__all__ = [
    "MASS_KS",
    "NUCLEUS_PS",
    "Measures",
    "join",
    "measure",
    "unigram_entropy",
    "unigram_loss",
]

MASS_KS = (1, 5, 10, 40, 50, 100)
NUCLEUS_PS = (0.5, 0.9, 0.95)
HEAD = 1024
"""Logits of a row that are sorted at first; a row whose nucleus is larger is sorted whole."""

CHUNK_LOGITS = 1 << 21
"""Logits that are worked on at a time: 16 MiB as float64, and about eight times as much at the peak."""

WHOLE = ("vocab_size", "predicted", "kind")
"""Fields of `Measures` that describe all positions together."""

NEGLIGIBLE = -800.0
"""Stands for -inf where it is multiplied by its weight: exp(-800) is 0 in float64."""

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Measures:
    """Measures of N positions; NaN (and the id -1) where the logits have no valid distribution.

    Attributes:
        vocab_size: width of the logits.
        targets: int64 [N], the right next token.
        inputs: int64 [N], the token at which it is predicted; -1 where unknown.
        positions: int64 [N], index of that token in its context; -1 where unknown.
        greedy: int64 [N], the token that `greedy` chooses.
        sampled: float64 [N, len(SETTINGS)], the probability that each setting chooses the target.
        loss: float64 [N], -log of the target's probability, nats; inf where its logit is -inf.
        rank: float64 [N], place of the target in the order of tokens, from 1.
        entropy: float64 [N], nats.
        top1: float64 [N], probability of the most probable token.
        margin: float64 [N], largest minus second-largest logit; inf where there is no second.
        low, high, std: float64 [N], of the row's finite logits.
        mass: float64 [N, len(MASS_KS)], probability of the k most probable tokens together.
        nucleus: float64 [N, len(NUCLEUS_PS)], size of the smallest set of tokens whose mass reaches p.
        non_finite: int64 [N, 3], how many logits are NaN, +inf, -inf.
        rounded: bool [N], probabilities were given and the target's is zero, so that `loss` is a lower bound.
        predicted: float64 [vocab], sum of the predicted probabilities over the valid positions.
        kind: whether logits were given, or probabilities, whose logarithms are measured.
    """

    vocab_size: int
    targets: Ids
    inputs: Ids
    positions: Ids
    greedy: Ids
    sampled: Floats
    loss: Floats
    rank: Floats
    entropy: Floats
    top1: Floats
    margin: Floats
    low: Floats
    high: Floats
    std: Floats
    mass: Floats
    nucleus: Floats
    non_finite: Ids
    rounded: NDArray[np.bool_]
    predicted: Floats
    kind: Kind = "logits"

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """bool [N]: the row has a distribution."""
        return np.asarray(~np.isnan(self.entropy))

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """bool [N]: greedy chooses the target."""
        return np.asarray(self.greedy == self.targets)

    @cached_property
    def target_probability(self) -> Floats:
        """float64 [N]: the target's probability before temperature and truncation."""
        return np.asarray(np.exp(-self.loss))

    @cached_property
    def entropy_share(self) -> Floats:
        """float64 [N]: entropy over log(vocab); 1 is a uniform guess."""
        return np.asarray(self.entropy / np.log(self.vocab_size))

    @cached_property
    def health(self) -> Health:
        """Means over the valid positions; NaN if there is no valid position."""

        def mean(values: NDArray[Any]) -> float:
            return float(values[self.valid].mean()) if self.valid.any() else math.nan

        return Health(
            positions=int(self.valid.sum()),
            vocab_size=self.vocab_size,
            loss=mean(self.loss),
            accuracy=mean(self.correct),
            top5_accuracy=mean((self.rank <= TOP) & np.isfinite(self.loss)),
            entropy=mean(self.entropy),
            top1_probability=mean(self.top1),
        )

    @cached_property
    def unigram_loss(self) -> float:
        """Loss of a unigram model of the same text, nats; see the function `unigram_loss`."""
        return unigram_loss(self.targets, self.vocab_size)


@torch.no_grad()
def measure(
    logits: Tensor,
    targets: Tensor,
    samplers: Sequence[Sampler],
    *,
    inputs: Tensor | None = None,
    positions: Tensor | None = None,
    kind: Kind = "logits",
) -> Measures:
    """Measure every row, some rows at a time.

    Args:
        logits: [N >= 1, vocab >= 2], float32, float16 or bfloat16.
        targets: int64 [N], ids in 0 .. vocab - 1, on the device of `logits`.
        samplers: what `load_samplers` gave.
        inputs, positions: int64 [N], where they are known.
        kind: whether `logits` are logits or probabilities, whose logarithms are measured. A target's probability of
            zero is one that was rounded away: its loss is that of the smallest number of the format, a lower bound.
    """
    rows = max(1, CHUNK_LOGITS // logits.shape[1])
    columns: dict[str, NDArray[Any]] = {}
    predicted: Floats | None = None
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        rows_of_part = logits[part] if kind == "logits" else log_of(logits[part])
        columns_of_part, mass = _chunk(rows_of_part, targets[part], samplers)
        predicted = mass if predicted is None else predicted + mass
        for name, values in columns_of_part.items():
            if name not in columns:  # made at once: small results kept between large temporaries fragment the heap
                columns[name] = np.empty((len(logits), *values.shape[1:]), values.dtype)
            columns[name][part] = values
    columns["rounded"] = np.isinf(columns["loss"]) & (kind == "probabilities")
    if kind == "probabilities":
        columns["loss"] = np.minimum(columns["loss"], -math.log(least_probability(logits.dtype)))
    assert predicted is not None
    unknown = torch.full_like(targets, -1)
    return Measures(
        vocab_size=logits.shape[1],
        predicted=predicted,
        kind=kind,
        inputs=_array(unknown if inputs is None else inputs),
        positions=_array(unknown if positions is None else positions),
        **columns,
    )


def join(parts: Sequence[Measures]) -> Measures:
    """The positions of all parts, one after another; there is at least one, and all have the same vocabulary."""
    names = [item.name for item in fields(Measures) if item.name not in WHOLE]
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    predicted = np.sum([part.predicted for part in parts], axis=0)
    return replace(parts[0], predicted=predicted, **columns)


def unigram_entropy(targets: NDArray[np.int64]) -> float:
    """Entropy of the frequencies of `targets`, nats: the loss of a unigram model that was fitted to this very text."""
    _, counts = np.unique(targets, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0


def unigram_loss(targets: NDArray[np.int64], vocab_size: int) -> float:
    """Loss, nats, of a unigram model that sees all the other targets, but not the one it predicts.

    Fitted to the text itself, a unigram model of a short text knows too much: of 100 different tokens each would have
    1 %. So each target is predicted from the N - 1 others, mixed with a uniform guess: (1 - s) (count - 1) / (N - 1) +
    s / vocab, where s is the share of tokens that occur once, which estimates how often the next one is new (Good,
    1953, "The population frequencies of species and the estimation of population parameters"); never worse than that
    guess alone. For long texts this becomes `unigram_entropy`. On 500 tokens of web text in SmolLM2's vocabulary, a
    unigram model of other web text has 7.35 nats; this function gives 7.60, the fitted entropy is 5.16. On 2,000 tokens
    the three are 7.09, 6.99 and 5.65; below 200 this one says too much.
    """
    _, counts = np.unique(targets, return_counts=True)
    total = int(counts.sum())
    new = float((counts == 1).sum()) / total
    seen = (counts - 1) / max(total - 1, 1)
    loss = -(counts * np.log((1 - new) * seen + new / vocab_size)).sum() / total
    return float(min(loss, math.log(vocab_size))) + 0.0


def _chunk(
    logits: Tensor, targets: Tensor, samplers: Sequence[Sampler]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    """All columns of some rows, and the sum of what they predict."""
    greedy, sampled = _chances(logits, targets, samplers)
    x = logits.double()
    valid = x.amax(-1).isfinite()  # NaN and +inf come out as the maximum; so does -inf where nothing else is
    columns = {
        "targets": targets,
        "greedy": greedy,
        "sampled": sampled,
        "non_finite": torch.stack([x.isnan().sum(-1), (x == torch.inf).sum(-1), (x == -torch.inf).sum(-1)], -1),
    }
    whole = bool(valid.all())
    measured = _of_rows(x if whole else x[valid], targets if whole else targets[valid])
    predicted = _array(measured.pop("predicted"))
    for name, values in measured.items():
        columns[name] = torch.full((len(x), *values.shape[1:]), torch.nan, dtype=torch.float64, device=x.device)
        columns[name][valid] = values
    return {name: _array(values) for name, values in columns.items()}, predicted


def _chances(logits: Tensor, targets: Tensor, samplers: Sequence[Sampler]) -> tuple[Tensor, Tensor]:
    """What greedy chooses, int64 [rows], and how probably each setting chooses the target, float64 [rows, settings]."""
    first, *others = samplers
    greedy = first.sample(logits, check=False)
    index = targets.unsqueeze(1)
    columns = [(greedy == targets).double()]
    columns += [other.probs(logits, check=False).gather(1, index).squeeze(1).double() for other in others]
    return greedy, torch.stack(columns, -1)


def _of_rows(x: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The measures of valid rows float64 [rows, vocab], and `predicted`, the sum of their probabilities."""
    top = x.amax(-1, keepdim=True)
    centred = x - top
    weights = centred.exp()
    total = weights.sum(-1)
    of_target = centred.gather(1, targets.unsqueeze(1))
    largest = x.topk(2).values
    return {
        "loss": total.log() - of_target.squeeze(1),
        "rank": _rank(centred, of_target, targets),
        "entropy": total.log() - torch.linalg.vecdot(weights, centred.clamp(min=NEGLIGIBLE)) / total,
        "top1": 1 / total,
        "margin": largest[:, 0] - largest[:, 1],
        "high": top.squeeze(1),
        **_spread(x),
        **_prefixes(weights, total),
        "predicted": torch.mv(weights.T, 1 / total),
    }


def _rank(centred: Tensor, of_target: Tensor, targets: Tensor) -> Tensor:
    """The target's place, from 1, by logit descending, then id ascending."""
    ids = torch.arange(centred.shape[1], device=centred.device)
    before = (centred > of_target) | ((centred == of_target) & (ids < targets.unsqueeze(1)))
    return (before.sum(-1) + 1).double()


def _spread(x: Tensor) -> dict[str, Tensor]:
    """Smallest and standard deviation of the finite logits of a row."""
    finite = x.isfinite()
    count = finite.sum(-1)
    mean = torch.where(finite, x, 0.0).sum(-1) / count
    squares = torch.where(finite, x - mean.unsqueeze(1), 0.0).square().sum(-1)
    return {"low": torch.where(finite, x, torch.inf).amin(-1), "std": (squares / count).sqrt()}


def _prefixes(weights: Tensor, total: Tensor) -> dict[str, Tensor]:
    """Mass of the k first tokens, and how many tokens reach p; equal tokens may stand in any order for both."""
    vocab = weights.shape[1]
    sums = weights.topk(min(max(HEAD, *MASS_KS), vocab)).values.cumsum(-1)
    nucleus = _nucleus_sizes(sums, total)
    wide = sums[:, -1] < max(NUCLEUS_PS) * total
    if wide.any():
        nucleus[wide] = _nucleus_sizes(weights[wide].sort(-1, descending=True).values.cumsum(-1), total[wide])
    columns = torch.tensor([min(k, vocab) - 1 for k in MASS_KS], device=weights.device)
    mass = (sums[:, columns] / total.unsqueeze(1)).clamp(max=1.0)
    return {"mass": mass, "nucleus": nucleus.clamp(max=vocab).double()}


def _nucleus_sizes(sums: Tensor, total: Tensor) -> Tensor:
    """int64 [rows, len(NUCLEUS_PS)]: the prefix sums below p, and the token that crosses."""
    return torch.stack([(sums < p * total.unsqueeze(1)).sum(-1) + 1 for p in NUCLEUS_PS], -1)


def _array(values: Tensor) -> NDArray[Any]:
    return np.asarray(values.cpu().numpy())
