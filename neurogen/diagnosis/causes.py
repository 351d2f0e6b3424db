"""Why a model's loss is as high as it is: the causes that the measures of its positions and its weights fit.

- *shift*: the top token is often that of another position's target, and hardly ever that of its own;
- *weights*: some are dead or exploded;
- *scale*: the top token is often right, and yet the loss is above that of a uniform guess: the logits are too large;
- *tokens*: even the mean of all predictions, which knows nothing of single positions, gives the text's tokens far less
  than their frequencies do: the ids are not those of the model's tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurogen.diagnosis.health import Health
from neurogen.diagnosis.measures import Measures
from neurogen.diagnosis.weights import TensorHealth

__all__ = ["Cause", "find_causes", "shift_of"]

OFFSETS = (1, -1, 2, -2)
LEAST_SHIFT = 0.05
"""How much more of another position's targets than of its own, and than by chance, a model must hit. A story model of
260,000 parameters hits 22 % of web text and 1 to 2 % at any other offset; another one 10 % and 1 to 2 %."""

CERTAIN = 3.0
"""The same in standard errors, for short texts."""

MISFIT = 1.1
"""Loss of the mean prediction, in units of the unigram's, from which the ids are not the model's. Two story models have
0.8 to 1.0 on stories and web text, 1.1 to 3.6 with each other's tokenizer or a permuted one."""

VARIED = 0.5
"""Entropy of the mean prediction, in units of the unigram loss, below which it says too little to be compared."""

MONOTONOUS = 0.9
"""Share of positions with the same top token from which the same holds: 98 % in the first steps of a training, up
to 70 % of models that read permuted ids."""

ENOUGH = 50
"""Positions below which the mean prediction says nothing."""

OFTEN = 0.1
OVERCONFIDENT = 0.2


@dataclass(frozen=True)
class Cause:
    """What may have gone wrong.

    Attributes:
        kind: see the module.
        reason: a sentence with the numbers that speak for it; empty where other sentences state them.
        steps: what to do.
    """

    kind: Literal["shift", "weights", "scale", "tokens"]
    reason: str
    steps: tuple[str, ...]


def find_causes(measures: Measures, weights: Sequence[TensorHealth], unit: str) -> list[Cause]:
    """The causes that fit the figures of a model that is neither healthy nor flat; one is enough to explain them.

    Args:
        measures: of valid positions only.
        weights: the model's; empty where they are unknown.
        unit: what a position is called.
    """
    causes = [_weights(weights), _shift(measures, unit)]
    if measures.health.loss > math.log(measures.vocab_size) and not any(causes):
        causes = [_scale(measures.health, unit) or _tokens(measures)]
    return [cause for cause in causes if cause is not None]


def shift_of(measures: Measures) -> tuple[int, float, float] | None:
    """The offset between predictions and targets, in positions; None if they are not shifted.

    Returns:
        the offset, from -2 to 2: the top token of a position is the target of the one `offset` further on; and the
        share of positions where it is, and where it is the position's own target.
    """
    scores = [score for offset in OFFSETS if (score := _score(measures, offset)) is not None]
    return max(scores, key=lambda score: score[1], default=None)


def _score(measures: Measures, offset: int) -> tuple[int, float, float] | None:
    here, there = _pairs(measures, offset)
    if not len(here):
        return None
    greedy, targets, others = measures.greedy[here], measures.targets[here], measures.targets[there]
    hits, right = float((greedy == others).mean()), float((greedy == targets).mean())
    chance = _chance(greedy, others, measures.vocab_size)
    spread = math.sqrt((_variance(hits, len(here)) + _variance(right, len(here))) / len(here))
    if hits - max(right, chance) < max(LEAST_SHIFT, CERTAIN * spread):
        return None
    if hits - chance < 2 * (right - chance):  # a model that repeats its input, on a text that repeats itself
        return None
    return offset, hits, right


def _pairs(measures: Measures, offset: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of positions, and of those `offset` further on in the same context; rows of a file are one context."""
    here = np.arange(max(0, -offset), len(measures) - max(0, offset))
    known = measures.positions[here] >= 0
    together = ~known | (measures.positions[here + offset] - measures.positions[here] == offset)
    here = here[together]
    return here, here + offset


def _chance(first: NDArray[np.int64], second: NDArray[np.int64], vocab: int) -> float:
    """Share of positions where two lists of ids agree by their frequencies alone."""
    counts = [np.bincount(ids[ids >= 0], minlength=vocab) / len(ids) for ids in (first, second)]
    return float(counts[0] @ counts[1])


def _variance(share: float, count: int) -> float:
    """Of one trial, with one success and one failure added to what was seen (Laplace)."""
    smooth = (share * count + 1) / (count + 2)
    return smooth * (1 - smooth)


def _shift(measures: Measures, unit: str) -> Cause | None:
    found = shift_of(measures)
    if found is None:
        return None
    offset, hits, right = found
    where = f"{abs(offset)} {unit}{'s' if abs(offset) > 1 else ''} {'later' if offset > 0 else 'earlier'}"
    explained, step = _explained(offset, _in_order(measures))
    return Cause(
        "shift",
        f"The top token is the target of {where} at {hits:.1%} of {unit}s, and its own target at {right:.1%}: "
        f"predictions and targets are shifted against each other. {explained}",
        (step,),
    )


def _in_order(measures: Measures) -> bool:
    """Whether the inputs are known, and each is the target before it: then the targets are right."""
    here, before = _pairs(measures, -1)
    return bool(len(here)) and bool((measures.inputs[here] == measures.targets[before]).mean() > 1 - OFTEN)


def _explained(offset: int, in_order: bool) -> tuple[str, str]:
    """What the shift means, and what to do."""
    if in_order and offset < 0:
        return (
            "The targets follow their inputs, so that it is the model that repeats a token it has read: it was trained "
            "on targets that were not shifted, or its tied embeddings are far too large.",
            "Train again on targets that are the inputs shifted by one position.",
        )
    if in_order:
        return (
            "The targets follow their inputs, so that it is the model that skips tokens: it was trained on targets "
            "that were shifted too far.",
            "Train again on targets that are shifted by one position, once: models of transformers shift `labels` "
            "themselves.",
        )
    if offset > 0:
        return (
            "The targets come too early: they are the inputs, not shifted; or the model was trained on targets that "
            "were shifted twice.",
            "Give as the target of each row the token after the one that was read there: shift the inputs by one "
            "position. In training, shift once: models of transformers shift `labels` themselves.",
        )
    return (
        "The targets come too late: they were shifted too far; or the model repeats the token just read, as after "
        "training on targets that were not shifted.",
        "Give as the target of each row the token after the one that was read there: shift the inputs by one position, "
        "once.",
    )


def _weights(weights: Sequence[TensorHealth]) -> Cause | None:
    odd = [tensor for tensor in weights if tensor.status in ("dead", "exploded")]
    if not odd:
        return None
    first, more = odd[0], f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return Cause(
        "weights",
        "",
        (
            f"Look at {first.name}{more}, which {'look' if more else 'looks'} {first.status}: restore it from an "
            "earlier checkpoint, or find what scaled it (a wrong conversion, a too large learning rate).",
        ),
    )


def _scale(health: Health, unit: str) -> Cause | None:
    if health.accuracy < OFTEN or health.top1_probability < health.accuracy + OVERCONFIDENT:
        return None
    return Cause(
        "scale",
        f"The top token is right at {health.accuracy:.1%} of {unit}s and yet holds {health.top1_probability:.1%} on "
        "average: the model is far too certain where it is wrong, as where the logits are too large.",
        ("Look at what scales the logits: the last norm, the head, or a division by a temperature below 1.",),
    )


def _tokens(measures: Measures) -> Cause | None:
    mean, unigram = measures.predicted / measures.predicted.sum(), measures.unigram_loss
    entropy = -float(mean @ np.log(np.maximum(mean, np.finfo(float).tiny)))
    same = np.bincount(measures.greedy).max() / len(measures)
    if len(measures) < ENOUGH or same > MONOTONOUS or entropy < VARIED * unigram:
        return None
    loss = -float(np.log(np.maximum(mean[measures.targets], np.finfo(float).tiny)).mean())
    if loss < MISFIT * unigram:
        return None
    return Cause(
        "tokens",
        f"Even the mean of all predictions gives this text's tokens {loss:.2f} nats, where their own frequencies give "
        f"{unigram:.2f}: the model expects other ids, as with a wrong tokenizer, with a text of a kind or language "
        "that it has not seen, or with weights that are random or damaged.",
        (
            "Use the tokenizer that the model was trained with: the same file, vocabulary and special tokens.",
            "If it is the right one: measure on a text like those of training; if that changes nothing, look whether "
            "the weights that were loaded are those that were trained.",
        ),
    )
