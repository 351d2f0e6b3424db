"""Turns measures into a verdict, its reasons and next steps. The thresholds of predictions are in `health`.

In order, the first that holds:

- *broken*: rows of logits without a distribution, a target that has been masked out, or weights that are not finite;
- *saturated*, *diverged*, *flat*, *worse than uniform*: as `health.judge` tells them, with the same constants as during
  training. What is above a uniform guess, however far, because predictions and targets are shifted against each other
  or the ids are not the model's, is *worse than uniform* and not diverged; see `causes`;
- *undertrained*: the loss is not clearly below `unigram_loss`, that of a model which knows how frequent every token of
  this text is and nothing of what stands before it. Frequencies are the first thing a model learns; a model no better
  than them has learnt nothing from context yet, whatever else its curves do;
- *healthy*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurogen.diagnosis.accuracies import SamplerAccuracy
from neurogen.diagnosis.causes import Cause, find_causes
from neurogen.diagnosis.health import judge
from neurogen.diagnosis.measures import Measures
from neurogen.diagnosis.weights import TensorHealth

__all__ = ["Judgement", "Verdict", "decide", "percent"]

Verdict = Literal["healthy", "undertrained", "flat", "saturated", "worse than uniform", "diverged", "broken"]

LEARNT = 0.95
"""Loss, in units of the unigram's, below which a model has learnt from context. `unigram_loss` is up to 4 % above the
loss of a real unigram model from 500 positions on, and a story model of 260,000 parameters has 0.84 on web text."""

FEW_POSITIONS = 200  # see `measures.unigram_loss`
MOSTLY = 0.5
NAMED = 8

NEXT_STEPS: dict[Verdict, tuple[str, ...]] = {
    "healthy": ("Measure accuracy with greedy decoding while training, and keep sampling for inference.",),
    "undertrained": (
        "Train longer, and watch loss and greedy accuracy, not a sampled one: the loss has to fall below the unigram "
        "model's.",
        "If it has stood there for long: raise the learning rate, check that gradients reach every layer and that "
        "inputs and targets belong together.",
        "If the model is known to be good: this text, or its tokenizer, is not what it was trained with.",
    ),
    "flat": (
        "In a new model this is where training starts: go on, and watch the entropy fall.",
        "Later: check that the optimizer's steps are applied and the learning rate is not about zero; then look for "
        "exploded weights and for a last norm or head that flattens everything.",
    ),
    "saturated": (
        "Check that targets are the inputs shifted by one position.",
        "Lower the learning rate, clip gradients, and look at weights and logit range: the logits are too large.",
        "Go back to the last checkpoint that was not saturated; such a model hardly recovers, its gradients vanish.",
    ),
    "worse than uniform": (
        "Longer training is no remedy: check that the tokenizer is the model's own, that targets are the inputs "
        "shifted by one position, and that weights and logit range are as usual.",
        "In the first steps of a new model it may pass: look again later, and lower the learning rate if it does not.",
    ),
    "diverged": (
        "Go back to the last good checkpoint, and go on with a lower learning rate and clipped gradients.",
        "Check that the tokenizer is the one of training, and that targets are the inputs shifted by one position.",
    ),
    "broken": (
        "Find the first step whose loss was not finite, and go back to the checkpoint before it.",
        "Look for overflow (float16 without loss scaling, logits above 65,504), a division by zero, or a mask that "
        "leaves nothing.",
    ),
}

RETURN_LOGITS = (
    "Let the model's forward return logits, not probabilities: losses and samplers take the softmax themselves, and "
    "twice is nearly uniform."
)

AGAIN = "Then measure again, before any longer training."


class Judgement(NamedTuple):
    """A verdict, the reasons for it as sentences with numbers, and what to do next."""

    verdict: Verdict
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]


def percent(share: float) -> str:
    """A share as a percentage with three significant digits, also where it is tiny: "0.00313 %"."""
    if not math.isfinite(share):
        return "-"
    if 0 < share < 1e-6:
        return "< 0.0001 %"
    return f"{100 * share:.3g} %"


def decide(
    measures: Measures, accuracies: Sequence[SamplerAccuracy], weights: Sequence[TensorHealth], unit: str = "row"
) -> Judgement:
    """The verdict.

    Args:
        measures: of at least one position.
        accuracies: what samplers would have reported; empty where no position is valid.
        weights: the model's; empty where they are unknown.
        unit: what a position is called: "row" of a file of logits, "position" in a text.
    """
    remarks = _remarks_on_probabilities(measures, unit)
    steps = (RETURN_LOGITS,) if measures.kind == "probabilities" and unit == "position" else ()
    problems = [*_broken_rows(measures, unit), *_broken_weights(weights)]
    if problems:
        return Judgement("broken", (*problems, *remarks), (*steps, *NEXT_STEPS["broken"]))
    verdict, reason, causes = _verdict(measures, weights, unit)
    repair = tuple(step for cause in causes for step in cause.steps)
    usual = (AGAIN,) if causes and verdict == "undertrained" else NEXT_STEPS[verdict]
    reasons = (
        *([] if verdict in ("undertrained", "worse than uniform") else [f"{reason[0].upper()}{reason[1:]}."]),
        _numbers(verdict, measures),
        *(cause.reason for cause in causes if cause.reason),
        *_odd_weights(weights),
        *remarks,
        _sampled_accuracies(verdict, accuracies),
        *_habits(measures, verdict),
        *_few(len(measures), unit),
    )
    return Judgement(verdict, reasons, (*steps, *repair, *usual))


def _verdict(measures: Measures, weights: Sequence[TensorHealth], unit: str) -> tuple[Verdict, str, list[Cause]]:
    """The verdict on finite logits and weights, the reason by `judge`, and the causes that fit."""
    health = measures.health
    verdict: Verdict
    verdict, reason = judge(health)
    if verdict == "healthy" and health.loss >= LEARNT * measures.unigram_loss:
        verdict = "undertrained"
    if verdict in ("healthy", "flat"):
        return verdict, reason, []
    causes = find_causes(measures, weights, unit)
    if verdict == "saturated":
        causes = [cause for cause in causes if cause.kind != "tokens"]
    kinds = {cause.kind for cause in causes}
    # A saturated model may be right: the targets are shifted, and no inputs show that they are not.
    innocent = verdict != "saturated" or ("shift" in kinds and bool((measures.inputs < 0).all()))
    if health.loss > math.log(health.vocab_size) and kinds & {"shift", "tokens"} and innocent:
        verdict = "worse than uniform"
    return verdict, reason, causes


def _remarks_on_probabilities(measures: Measures, unit: str) -> list[str]:
    """That probabilities were measured, and what had been rounded away."""
    if measures.kind == "logits":
        return []
    remarks = [
        f"The {unit}s hold probabilities (none below 0, and their sum is 1), not logits: their logarithms were "
        "measured. If they are logits, say so with logits_are='logits' (--logits-are logits)."
    ]
    count = int(measures.rounded.sum())
    if count:
        largest = measures.loss[measures.rounded][0]
        remarks.append(
            f"At {count:,} of {len(measures):,} {unit}s the right token has the probability 0, rounded from a small "
            f"number: the loss counts as {largest:.1f} nats there and may be larger. Save logits to know it."
        )
    return remarks


def _broken_rows(measures: Measures, unit: str) -> list[str]:
    rows = np.flatnonzero(~measures.valid)
    problems = []
    if len(rows):
        nan, high, low = measures.non_finite[rows].sum(0).tolist()
        problems.append(
            f"{len(rows):,} of {len(measures):,} {unit}s have no distribution ({nan:,} logits are NaN, {high:,} +inf, "
            f"{low:,} -inf): {unit}{_s(len(rows))} {_listed(rows)}."
        )
    masked = np.flatnonzero(np.isinf(measures.loss))
    if len(masked):
        problems.append(
            f"The right token has the logit -inf, so that the loss is infinite: {unit}{_s(len(masked))} "
            f"{_listed(masked)}. A mask over the vocabulary removes tokens that the text has."
        )
    return problems


def _broken_weights(weights: Sequence[TensorHealth]) -> list[str]:
    broken = [tensor for tensor in weights if tensor.status == "non-finite"]
    if not broken:
        return []
    values = sum(tensor.non_finite for tensor in broken)
    are = "weight is" if values == 1 else "weights are"
    return [f"{values:,} {are} NaN or infinite, in {_listed([tensor.name for tensor in broken])}."]


def _numbers(verdict: Verdict, measures: Measures) -> str:
    """The numbers on which the verdict is based."""
    health, target, unigram = measures.health, measures.target_probability, measures.unigram_loss
    uniform = math.log(health.vocab_size)
    if verdict == "flat":
        return (
            f"The most probable token holds {percent(health.top1_probability)} on average and the right one "
            f"{percent(float(target.mean()))}; a uniform guess gives each of {health.vocab_size:,} tokens "
            f"{percent(1 / health.vocab_size)}."
        )
    rank = f"{np.median(measures.rank):,.0f}"
    if verdict in ("saturated", "diverged"):
        return (
            f"The right token holds {percent(float(target.mean()))} on average ({percent(float(np.median(target)))} in "
            f"the median) and stands at rank {rank} in the median; the top logit is "
            f"{float(np.median(measures.margin)):.1f} above the second in the median."
        )
    if verdict == "worse than uniform":
        return (
            f"The loss of {health.loss:.2f} nats is worse than the {uniform:.2f} of a uniform guess over "
            f"{health.vocab_size:,} tokens: the model would do better by knowing nothing. The right token stands at "
            f"rank {rank} in the median."
        )
    compared = f"{unigram:.2f} nats of a unigram model of the same text"
    if verdict == "undertrained":
        return (
            f"The loss of {health.loss:.2f} nats is not clearly below the {compared}, which knows how frequent each "
            f"token is and nothing of what stands before it; a uniform guess has {uniform:.2f}."
        )
    return f"The loss of {health.loss:.2f} nats is below the {compared}; a uniform guess has {uniform:.2f}."


def _sampled_accuracies(verdict: Verdict, accuracies: Sequence[SamplerAccuracy]) -> str:
    """What the samplers would have reported, and what follows from it."""
    greedy, *mistakes = [score for score in accuracies if score.setting.params.get("temperature", 1.0) == 1.0]
    said = " and ".join(f"{score.setting.label} {percent(score.accuracy)}" for score in mistakes)
    never = max(mistakes, key=lambda score: score.never)
    sentence = f"As accuracy, greedy reports {percent(greedy.accuracy)}; drawn at temperature 1.0, {said} on average."
    if never.never >= MOSTLY:
        sentence += f" {never.setting.label} cannot draw the right token at {percent(never.never)} of positions."
    if verdict in ("flat", "saturated"):
        sentence += (
            " Such numbers look alike for a flat and a saturated model; entropy and top-1 probability tell which it is."
        )
    return sentence


def _habits(measures: Measures, verdict: Verdict) -> list[str]:
    """What the model does instead of predicting: it repeats its input, or says the same everywhere."""
    if verdict == "healthy":
        return []
    habits = []
    known = measures.inputs >= 0
    copies = float((measures.greedy == measures.inputs)[known].mean()) if known.any() else 0.0
    if copies > MOSTLY and verdict != "flat":  # with tied embeddings, a new model does so faintly
        habits.append(
            f"At {percent(copies)} of positions the top token is the one just read: the model copies its input, as one "
            "does that was trained on targets that are not shifted, or whose tied embeddings are far too large."
        )
    ids, counts = np.unique(measures.greedy, return_counts=True)
    share = float(counts.max() / counts.sum())
    if share > MOSTLY and len(measures) > NAMED:
        habits.append(
            f"At {percent(share)} of positions the top token is the same, id {ids[counts.argmax()]}: what stands "
            "before hardly matters to the model."
        )
    return habits


def _odd_weights(weights: Sequence[TensorHealth]) -> list[str]:
    sentences = []
    for status in ("dead", "exploded"):
        names = [f"{tensor.name} ({tensor.reason})" for tensor in weights if tensor.status == status]
        if names:
            looks = "looks" if len(names) == 1 else "look"
            sentences.append(
                f"{len(names)} of {len(weights)} weight tensors {looks} {status}: {_listed(names, limit=3)}."
            )
    return sentences


def _few(positions: int, unit: str) -> list[str]:
    if positions >= FEW_POSITIONS:
        return []
    return [f"Only {positions} {unit}{_s(positions)} measured: give more text before trusting the numbers."]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _listed(items: Sequence[object] | NDArray[np.int64], limit: int = NAMED) -> str:
    named = ", ".join(str(item) for item in items[:limit])
    more = len(items) - limit
    return f"{named} and {more:,} more" if more > 0 else named
