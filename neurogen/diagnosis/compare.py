"""Several samplers on the same model and prompts: texts side by side, and what they are like, with intervals.

Tokens are those of the engine; log-probabilities, entropies and agreement with greedy are of the model's own
distribution, before processors, temperature and truncation. Knows no terminal and no page.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from neurogen.contract.display import Displayed
from neurogen.contract.sampler import Sampler
from neurogen.decoding.engine import engine_for
from neurogen.decoding.request import DecodableModel, RequestState, SampledToken
from neurogen.decoding.scores import sequence_score
from neurogen.diagnosis.text_metrics import distinct, is_right, repeated, self_bleu
from neurogen.errors import ParameterError
from neurogen.models.foreign import check_loaded
from neurogen.text.generation import Failure, Prompt, Result, RunOptions
from neurogen.text.runner import Runner

__all__ = ["METRICS", "Comparison", "Estimate", "Outcome", "Sample", "compare", "sweep"]

RESAMPLES = 1000
CONFIDENCE = 0.95
LONGEST_SWEEP = 1000

METRICS: dict[str, str] = {
    "perplexity": "of the tokens chosen, under the model",
    "entropy": "mean of the model's, in nats",
    "agreement": "share of tokens that greedy would have chosen",
    "distinct_1": "share of tokens that differ, among the samples of a prompt",
    "distinct_2": "the same for pairs of tokens",
    "repetition": "share of runs of four tokens that occurred before in their text",
    "self_bleu": "likeness of the samples of a prompt, 0 to 100; needs two of them",
    "length": "tokens a text",
    "accuracy": "share of texts that hold a reference of their prompt; needs references",
}
"""Measure -> its description."""


@dataclass(frozen=True)
class Estimate:
    """A measure and its interval.

    Attributes:
        value: over all prompts.
        low, high: 95 % bootstrap interval over prompts (percentiles of 1,000 resamples); None for fewer than two.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """As tables show it: 3.12 [2.9, 3.4]."""
        if self.low is None or self.high is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Sample:
    """One text, and sums over its tokens (end of sequence included).

    Attributes:
        index, sample: which prompt, which of its samples.
        text, token_ids: as the runner gave them.
        tokens: how many tokens were chosen.
        loss: sum of their negative log-probabilities under the model, in nats.
        entropy: sum of the model's entropies, in nats.
        agreed: how many are the model's most probable token.
        notices: what processors say about the text; None where they say nothing.
    """

    index: int
    sample: int
    text: str
    token_ids: list[int]
    tokens: int
    loss: float
    entropy: float
    agreed: int
    notices: list[str] | None = None

    @property
    def score(self) -> float:
        """The mean log-probability of its tokens, in nats; see `neurogen.decoding.scores`."""
        return sequence_score(-self.loss, self.tokens)


@dataclass(frozen=True)
class Outcome:
    """The texts of one sampler, and their measures.

    Attributes:
        label: the sampler with its parameters.
        samples: all its texts, by prompt and sample, except those that failed.
        measures: name of a measure of `METRICS` -> estimate; those that do not apply are left out.
        seconds: wall time; tokens_per_second: tokens over it.
        failures: what went wrong, by the numbers of prompt and sample (None: all of them); these are not measured.
    """

    label: str
    samples: list[Sample]
    measures: dict[str, Estimate]
    seconds: float
    tokens_per_second: float
    failures: list[tuple[int, int | None, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison(Displayed):
    """Samplers side by side.

    Attributes:
        model: its name.
        prompts: their texts.
        options: of every run.
        outcomes: one for each sampler, in the order given.
    """

    model: str
    prompts: list[str]
    options: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)

    def metrics(self) -> dict[str, str]:
        """The entries of `METRICS` that were measured of any sampler."""
        measured = {name for outcome in self.outcomes for name in outcome.measures}
        return {name: meaning for name, meaning in METRICS.items() if name in measured}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    model: DecodableModel,
    samplers: Sequence[Sampler],
    prompts: Sequence[Prompt],
    *,
    references: Sequence[Sequence[str]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Comparison:
    """Run every sampler over the same prompts.

    Args:
        model: gives the logits.
        samplers: at least one.
        prompts: at least one; sample i of prompt j has the same seed with every sampler.
        references: for each prompt the right answers, for accuracy.
        progress: called with the number of texts done and their total.
        **options: as for `RunOptions`: n, max_new_tokens, seed, stop, chat, batch_size, processors, parse_special.

    Raises:
        ParameterError: nothing to compare, or an option outside its domain.
        NeurogenError: no text at all could be finished. Otherwise see `Outcome.failures`.
    """
    if not samplers or not prompts:
        raise ParameterError("There is nothing to compare: give at least one sampler and one prompt.", "samplers")
    check_loaded(model, "compare", "name", "tokenizer", "context_length")
    run = RunOptions(**options)
    shown = {name: value for name, value in vars(run).items() if name != "processors"}
    shown["processors"] = list(map(repr, run.processors))
    comparison = Comparison(model.name, [prompt.text for prompt in prompts], shown)
    answers = {one.index: given for one, given in zip(prompts, references or (), strict=references is not None)}
    total = len(samplers) * len(prompts) * run.n
    for number, sampler in enumerate(samplers):
        done = number * len(prompts) * run.n
        report = partial(_tell, progress, done, total)
        samples, failures, seconds = _run(model, sampler, prompts, run, report)
        tokens = sum(sample.tokens for sample in samples)
        measures = _measures(samples, answers)
        label = repr(sampler).removesuffix("()")
        failed = [(one.index, one.sample, one.error.reason) for one in failures]
        comparison.outcomes.append(Outcome(label, samples, measures, seconds, tokens / max(seconds, 1e-9), failed))
    if not any(one.samples for one in comparison.outcomes):
        raise failures[0].error
    return comparison


def _tell(progress: Callable[[int, int], None] | None, before: int, total: int, count: int) -> None:
    if progress is not None:
        progress(before + count, total)


def sweep(text: str) -> list[str]:
    """The samplers of a sweep.

    Args:
        text: `SPEC.PARAMETER=START:STOP:STEP`, both ends included, such as "topp.p=0.5:1.0:0.1".

    Returns:
        a spec each, such as "topp(p=0.5)".

    Raises:
        ParameterError: it is not a sweep.
    """
    left, equals, right = text.partition("=") if "(" not in text else text.rpartition("=")
    spec, dot, parameter = left.rpartition(".")
    try:
        start, stop, step = map(Decimal, right.split(":"))
        count = int((stop - start) / step) + 1
    except (ValueError, InvalidOperation, ArithmeticError):
        count = 0
    if not (equals and dot and spec and parameter.isidentifier() and 1 <= count <= LONGEST_SWEEP):
        raise ParameterError(
            f"{text!r} is no sweep. It is written SAMPLER.PARAMETER=START:STOP:STEP, such as topp.p=0.5:1.0:0.1, and "
            f"has at most {LONGEST_SWEEP} values.",
            "sweep",
        )
    return [_with(spec, parameter, start + i * step) for i in range(count)]


def _with(spec: str, parameter: str, value: Decimal) -> str:
    """A spec whose last link has one more parameter."""
    plain = f"{parameter}={value:f}"
    if spec.endswith(")"):
        return f"{spec[:-1]}{'' if spec.endswith('()') else ', '}{plain})"
    return f"{spec}({plain})"


class _TokenSums:
    """Observes the steps of an engine and adds up what is measured, by sequence."""

    def __init__(self) -> None:
        self.of: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0])

    def __call__(
        self, rows: Sequence[RequestState], logits: Tensor, processed: Tensor, drawn: Sequence[SampledToken]
    ) -> None:
        logs = torch.log_softmax(logits.float(), dim=-1)
        entropies = torch.special.entr(logs.exp()).sum(-1).tolist()
        best = logits.argmax(-1).tolist()
        for i, (row, one) in enumerate(zip(rows, drawn, strict=True)):
            if row.finished or one.error is not None:
                continue
            sums = self.of[row.request.key.prompt.index, row.request.key.sample]
            sums[0] += 1
            sums[1] -= float(logs[i, one.token_id])
            sums[2] += entropies[i]
            sums[3] += one.token_id == best[i]


def _run(
    model: DecodableModel,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    options: RunOptions,
    progress: Callable[[int], Any],
) -> tuple[list[Sample], list[Failure], float]:
    sums = _TokenSums()
    engine = engine_for(model, sampler, batch_size=options.batch_size, observer=sums)
    results: list[Result] = []
    failures: list[Failure] = []
    started = time.perf_counter()
    for event in Runner(model, sampler, options, engine=engine).run(iter(prompts)):
        if isinstance(event, Failure):
            failures.append(event)
        elif isinstance(event, Result):
            results.append(event)
            progress(len(results))
    seconds = time.perf_counter() - started
    in_order = sorted(results, key=lambda one: (one.index, one.sample))
    return [_sample(one, *sums.of[one.index, one.sample]) for one in in_order], failures, seconds


def _sample(result: Result, tokens: float, loss: float, entropy: float, agreed: float) -> Sample:
    chosen = result.index, result.sample, result.text, result.token_ids
    return Sample(*chosen, int(tokens), loss, entropy, int(agreed), result.notices)


def _measures(samples: Sequence[Sample], references: Mapping[int, Sequence[str]]) -> dict[str, Estimate]:
    """An estimate of every measure that applies; each is a ratio, with a numerator and a denominator a prompt."""
    of_prompt: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        of_prompt[sample.index].append(sample)
    ratios = {name: [ratio(group) for group in of_prompt.values()] for name, ratio in _RATIOS.items()}
    scores = [self_bleu([sample.text for sample in group]) for group in of_prompt.values()]
    ratios["self_bleu"] = [(score, 1) for score in scores if score is not None]
    ratios["accuracy"] = [
        (sum(is_right(sample.text, references[index]) for sample in group), len(group))
        for index, group in of_prompt.items()
        if references.get(index)
    ]
    return {name: _estimate(name, pairs) for name, pairs in ratios.items() if any(below for _, below in pairs)}


def _per_token(name: str) -> Callable[[Sequence[Sample]], tuple[float, float]]:
    return lambda group: (sum(getattr(one, name) for one in group), sum(one.tokens for one in group))


def _repetition(group: Sequence[Sample]) -> tuple[int, int]:
    pairs = [repeated(one.token_ids) for one in group]
    return sum(above for above, _ in pairs), sum(below for _, below in pairs)


_RATIOS: dict[str, Callable[[Sequence[Sample]], tuple[float, float]]] = {
    "perplexity": _per_token("loss"),
    "entropy": _per_token("entropy"),
    "agreement": _per_token("agreed"),
    "distinct_1": lambda group: distinct([one.token_ids for one in group], 1),
    "distinct_2": lambda group: distinct([one.token_ids for one in group], 2),
    "repetition": _repetition,
    "length": lambda group: (sum(len(one.token_ids) for one in group), len(group)),
}


def _estimate(name: str, pairs: Sequence[tuple[float, float]]) -> Estimate:
    above, below = np.array(pairs, dtype=float).T
    shape = math.exp if name == "perplexity" else float
    value = shape(above.sum() / below.sum())
    if len(pairs) < 2:
        return Estimate(value, None, None)
    interval = bootstrap(
        (above, below),
        lambda one, other, axis=-1: one.sum(axis=axis) / np.maximum(other.sum(axis=axis), 1e-12),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, shape(interval.low), shape(interval.high))
