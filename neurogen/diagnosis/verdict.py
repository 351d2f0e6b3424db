"""From measures to a verdict with its reasons and what to do next. The thresholds of predictions are `health`'s.

In order, the first that holds:

- *broken*: rows of logits without a distribution, a target that has been masked out, or weights that are not finite;
- *saturated*, *diverged*, *flat*, *worse than uniform*: as `health.judge` tells them, with the same constants as during
  training. What is above a uniform guess, however far, because predictions and targets are shifted against each other
  or the ids are not the model's, is *worse than uniform* and not diverged; see `diagnosis_causes`;
- *undertrained*: the loss is not clearly below `unigram_loss`, that of a model which knows how frequent every token of
  this text is and nothing of what stands before it. Frequencies are the first thing a model learns; a model no better
  than them has learnt nothing from context yet, whatever else its curves do;
- *healthy*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurogen.diagnosis.causes import Cause, find_causes
from neurogen.diagnosis.health import Health, judge
from neurogen.diagnosis.measures import Measures, SamplerAccuracy
from neurogen.diagnosis.weights import TensorHealth

__all__ = ["Judgement", "Verdict", "decide", "health_of", "percent", "unigram_entropy", "unigram_loss"]

Verdict = Literal["healthy", "undertrained", "flat", "saturated", "worse than uniform", "diverged", "broken"]

LEARNT = 0.95
"""Loss, in units of the unigram's, below which a model has learnt from context. `unigram_loss` is up to 4 % above the
loss of a real unigram model from 500 positions on, and a story model of 260,000 parameters has 0.84 on web text."""

FEW_POSITIONS = 200  # see unigram_loss
MOSTLY = 0.5
NAMED = 8
TOP = 5

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


@dataclass(frozen=True)
class Judgement:
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


def health_of(measures: Measures) -> Health:
    """The means over valid positions; NaN where there is none."""
    valid = measures.valid
    count = int(valid.sum())

    def mean(values: NDArray[np.generic]) -> float:
        return float(values[valid].mean()) if count else math.nan

    return Health(
        positions=count,
        vocab_size=measures.vocab_size,
        loss=mean(measures.loss),
        accuracy=mean(measures.correct),
        top5_accuracy=mean((measures.rank <= TOP) & np.isfinite(measures.loss)),
        entropy=mean(measures.entropy),
        top1_probability=mean(measures.top1),
    )


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


def decide(
    measures: Measures, accuracies: Sequence[SamplerAccuracy], weights: Sequence[TensorHealth], names: str = "row"
) -> Judgement:
    """The verdict.

    Args:
        measures: of at least one position.
        accuracies: what samplers would have reported; empty where no position is valid.
        weights: the model's; empty where they are unknown.
        names: what a position is called: "row" of a file of logits, "position" in a text.
    """
    given = _given(measures, names)
    steps: tuple[str, ...] = (RETURN_LOGITS,) if measures.kind == "probabilities" and names == "position" else ()
    problems = [*_broken_rows(measures, names), *_broken_weights(weights)]
    if problems:
        return Judgement("broken", (*problems, *given), (*steps, *NEXT_STEPS["broken"]))
    health = health_of(measures)
    verdict: Verdict
    verdict, reason = judge(health)
    reasons = [_sentence(reason)]
    unigram = unigram_loss(measures.targets, measures.vocab_size)
    if verdict == "healthy" and health.loss >= LEARNT * unigram:
        verdict = "undertrained"
    causes = _causes(verdict, measures, health, weights, unigram, names)
    if (verdict in ("undertrained", "diverged") or _only_shifted(verdict, measures, causes)) and _explains_all(
        causes, health
    ):
        verdict = "worse than uniform"
    if verdict in ("undertrained", "worse than uniform"):
        reasons = []
    steps += tuple(step for cause in causes for step in cause.steps)
    steps += (AGAIN,) if causes and verdict == "undertrained" else NEXT_STEPS[verdict]
    reasons += _numbers(verdict, health, measures, unigram)
    reasons += [*(cause.reason for cause in causes if cause.reason), *_odd_weights(weights), *given]
    reasons += [*_scores(verdict, accuracies), *_habits(measures, verdict), *_few(len(measures), names)]
    return Judgement(verdict, tuple(reasons), steps)


def _causes(
    verdict: Verdict,
    measures: Measures,
    health: Health,
    weights: Sequence[TensorHealth],
    unigram: float,
    names: str,
) -> list[Cause]:
    if verdict in ("healthy", "flat"):
        return []
    causes = find_causes(measures, health, weights, unigram, names)
    return [cause for cause in causes if verdict != "saturated" or cause.kind != "tokens"]


def _only_shifted(verdict: str, measures: Measures, causes: Sequence[Cause]) -> bool:
    """Whether a saturated model may be right: the targets are shifted, and no inputs show that they are not."""
    unread = bool((measures.inputs < 0).all())
    return verdict == "saturated" and unread and any(cause.kind == "shift" for cause in causes)


def _explains_all(causes: Sequence[Cause], health: Health) -> bool:
    """Whether the loss is above a uniform guess, and not because of the model alone."""
    return health.loss > math.log(health.vocab_size) and any(cause.kind in ("shift", "tokens") for cause in causes)


def _given(measures: Measures, names: str) -> list[str]:
    """That probabilities were measured, and what had been rounded away."""
    if measures.kind == "logits":
        return []
    found = [
        f"The {names}s hold probabilities (none below 0, and their sum is 1), not logits: their logarithms were "
        "measured. If they are logits, say so with logits_are='logits' (--logits-are logits)."
    ]
    count = int(measures.rounded.sum())
    if count:
        largest = measures.loss[measures.rounded][0]
        found.append(
            f"At {count:,} of {len(measures):,} {names}s the right token has the probability 0, rounded from a small "
            f"number: the loss counts as {largest:.1f} nats there and may be larger. Save logits to know it."
        )
    return found


def _broken_rows(measures: Measures, names: str) -> list[str]:
    rows = np.flatnonzero(~measures.valid)
    problems = []
    if len(rows):
        nan, high, low = measures.non_finite[rows].sum(0).tolist()
        problems.append(
            f"{len(rows):,} of {len(measures):,} {names}s have no distribution ({nan:,} logits are NaN, {high:,} +inf, "
            f"{low:,} -inf): {names}{_s(len(rows))} {_listed(rows)}."
        )
    masked = np.flatnonzero(np.isinf(measures.loss))
    if len(masked):
        problems.append(
            f"The right token has the logit -inf, so that the loss is infinite: {names}{_s(len(masked))} "
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


def _numbers(verdict: Verdict, health: Health, measures: Measures, unigram: float) -> list[str]:
    """What the verdict rests on."""
    uniform = math.log(health.vocab_size)
    target = measures.target_probability
    if verdict == "flat":
        return [
            f"The most probable token holds {percent(health.top1_probability)} on average and the right one "
            f"{percent(float(target.mean()))}; a uniform guess gives each of {health.vocab_size:,} tokens "
            f"{percent(1 / health.vocab_size)}."
        ]
    if verdict in ("saturated", "diverged"):
        return [
            f"The right token holds {percent(float(target.mean()))} on average ({percent(float(np.median(target)))} in "
            f"the median) and stands at rank {np.median(measures.rank):,.0f} in the median; the top logit is "
            f"{float(np.median(measures.margin)):.1f} above the second in the median."
        ]
    compared = f"{unigram:.2f} nats of a unigram model of the same text"
    if verdict == "worse than uniform":
        return [
            f"The loss of {health.loss:.2f} nats is worse than the {uniform:.2f} of a uniform guess over "
            f"{health.vocab_size:,} tokens: the model would do better by knowing nothing. The right token stands at "
            f"rank {np.median(measures.rank):,.0f} in the median."
        ]
    if verdict == "undertrained":
        return [
            f"The loss of {health.loss:.2f} nats is not clearly below the {compared}, which knows how frequent each "
            f"token is and nothing of what stands before it; a uniform guess has {uniform:.2f}."
        ]
    return [f"The loss of {health.loss:.2f} nats is below the {compared}; a uniform guess has {uniform:.2f}."]


def _scores(verdict: Verdict, accuracies: Sequence[SamplerAccuracy]) -> list[str]:
    """What the samplers would have said, and what can be read from it."""
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
    return [sentence]


def _habits(measures: Measures, verdict: Verdict) -> list[str]:
    """What the model does instead of predicting: it repeats its input, or says the same everywhere."""
    if verdict == "healthy":
        return []
    found = []
    known = measures.inputs >= 0
    copies = float((measures.greedy == measures.inputs)[known].mean()) if known.any() else 0.0
    if copies > MOSTLY and verdict != "flat":  # with tied embeddings, a new model does so faintly
        found.append(
            f"At {percent(copies)} of positions the top token is the one just read: the model copies its input, as one "
            "does that was trained on targets that are not shifted, or whose tied embeddings are far too large."
        )
    ids, counts = np.unique(measures.greedy, return_counts=True)
    share = float(counts.max() / counts.sum())
    if share > MOSTLY and len(measures) > NAMED:
        found.append(
            f"At {percent(share)} of positions the top token is the same, id {ids[counts.argmax()]}: what stands "
            "before hardly matters to the model."
        )
    return found


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


def _few(positions: int, names: str) -> list[str]:
    if positions >= FEW_POSITIONS:
        return []
    return [f"Only {positions} {names}{_s(positions)} measured: give more text before trusting the numbers."]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _listed(items: Sequence[object] | NDArray[np.int64], limit: int = NAMED) -> str:
    named = ", ".join(str(item) for item in items[:limit])
    more = len(items) - limit
    return f"{named} and {more:,} more" if more > 0 else named


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
