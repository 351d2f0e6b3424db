"""The diagnosis of a model, or of anyone's logits: what is measured, the verdict, its reasons and what to do next.

    texts -> windows -> model -> logits -> measures -> accuracies, verdict -> Diagnosis

The core of it is one table: what greedy, top-k and top-p would each have reported as accuracy on the same positions,
exactly, without drawing. `diagnose_logits` takes anyone's logits, `diagnose_model` a model and texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurogen.contract.display import Displayed
from neurogen.contract.tokenizer import Tokenizer
from neurogen.diagnosis.accuracies import SamplerAccuracy, accuracies, load_samplers
from neurogen.diagnosis.health import Health
from neurogen.diagnosis.input import SAMPLE_TEXT, Window, check_logits, windows
from neurogen.diagnosis.measures import MASS_KS, NUCLEUS_PS, Measures, join, measure, unigram_entropy
from neurogen.diagnosis.verdict import Verdict, decide
from neurogen.diagnosis.weights import TensorHealth, examine
from neurogen.errors import DeviceError, ParameterError
from neurogen.files import finite
from neurogen.models.foreign import check_loaded
from neurogen.models.language_model import LanguageModel
from neurogen.models.probabilities import Kind, LogitsAre, check_logits_are, kind_of

__all__ = ["CONTEXT", "MAX_TOKENS", "Diagnosis", "Token", "diagnose_logits", "diagnose_model"]

MAX_TOKENS = 4096
CONTEXT = 512
BATCH_SIZE = 8
LOGITS_BYTES = 512 << 20
"""Logits of one forward pass, as float32; batches are made smaller to stay below."""

SHOWN_TOKENS = 400
ASCII_BYTE = re.compile(r"<0x([0-7][0-9A-Fa-f])>")
CONFIDENCE_BINS = 10
QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}
ROWS_LISTED = 100


@dataclass(frozen=True)
class Token:
    """A token of the first text, and the token that the model preferred there.

    Attributes:
        text: its own text.
        token: its id.
        position: its index among the measured positions, or None for the one that nothing was predicted for.
        best: text of the token that greedy would have chosen; empty where nothing was predicted.
    """

    text: str
    token: int
    position: int | None
    best: str


@dataclass(frozen=True)
class Diagnosis(Displayed):
    """The result of a diagnosis.

    Attributes:
        source: the model or file.
        verdict: healthy, undertrained, flat, saturated, worse than uniform, diverged or broken; see
            `verdict`.
        reasons: sentences with the numbers it rests on.
        next_steps: what to do.
        accuracies: what each sampler would have reported; empty where no position is valid.
        measures: every position.
        weights: every parameter, or None where there is no model.
        document: the first tokens of the first text; empty where there is no text.
    """

    source: str
    verdict: Verdict
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]
    accuracies: tuple[SamplerAccuracy, ...]
    measures: Measures
    weights: tuple[TensorHealth, ...] | None = None
    document: tuple[Token, ...] = ()

    @property
    def health(self) -> Health:
        """Means over the valid positions."""
        return self.measures.health

    @property
    def unigram_loss(self) -> float:
        """Loss of a unigram model of the same text, nats; see `measures.unigram_loss`."""
        return self.measures.unigram_loss

    def summaries(self) -> dict[str, dict[str, float]]:
        """Mean, smallest, 5 %, median, 95 % and largest of every measure, over the finite values."""
        return {name: _summary(values) for name, values in _columns(self.measures).items()}

    def confidence(self) -> list[tuple[int, float, float]]:
        """Positions by top-1 probability, in ten equal bins: how many, their mean probability, their accuracy."""
        valid = self.measures.valid
        top1, correct = self.measures.top1[valid], self.measures.correct[valid]
        bins = np.minimum((top1 * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
        members = [bins == index for index in range(CONFIDENCE_BINS)]
        return [(int(m.sum()), float(top1[m].mean()), float(correct[m].mean())) for m in members if m.any()]

    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy over the bins of `confidence`."""
        bins = self.confidence()
        positions = sum(count for count, _, _ in bins)
        return sum(count * abs(top1 - right) for count, top1, right in bins) / positions if positions else math.nan

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, without single positions; a number that is not finite is None."""
        invalid = np.flatnonzero(~self.measures.valid)
        report: dict[str, Any] = {
            "source": self.source,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "next_steps": list(self.next_steps),
            "positions": len(self.measures),
            "vocab_size": self.measures.vocab_size,
            "logits_are": self.measures.kind,
            "invalid_positions": {"count": len(invalid), "first": invalid[:ROWS_LISTED].tolist()},
            "loss": {
                "mean": self.health.loss,
                "unigram": self.unigram_loss,
                "unigram_entropy": unigram_entropy(self.measures.targets),
                "uniform": math.log(self.measures.vocab_size),
            },
            "accuracy": {"greedy": self.health.accuracy, "top5": self.health.top5_accuracy},
            "samplers": [score.to_json() for score in self.accuracies],
            "measures": self.summaries(),
            "non_finite_logits": dict(
                zip(("nan", "inf", "minus_inf"), self.measures.non_finite.sum(0).tolist(), strict=True)
            ),
            "calibration_error": self.calibration_error(),
            "weights": None if self.weights is None else [tensor.to_json() for tensor in self.weights],
        }
        return finite(report)  # type: ignore[no-any-return]


def diagnose_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    inputs: Tensor | None = None,
    positions: Tensor | None = None,
    source: str = "logits",
    logits_are: LogitsAre = "auto",
) -> Diagnosis:
    """Diagnose anyone's logits.

    Args:
        logits: [N, vocab], float32, float16 or bfloat16, before temperature; worked on some rows at a time.
        targets: int64 [N], the right next token of each row.
        inputs, positions: int64 [N], the token at which each row was computed and its index in its context, where
            known; they tell whether the model copies its input, and draw the chart by position.
        source: what to call it.
        logits_are: `logits`, `probabilities` (what a softmax gave; their logarithms are measured), or `auto`: they
            are probabilities where nearly all rows have no value below 0 and the sum 1. Log-probabilities are logits.

    Raises:
        ParameterError: wrong shapes, dtypes or ids, or rows of both kinds.
        PluginError: greedy, topk or topp is not installed.
    """
    check_logits(logits, targets)
    for name, known in (("inputs", inputs), ("positions", positions)):
        if known is not None and (known.shape != targets.shape or known.dtype != torch.int64):
            raise ParameterError(
                f"{name} must be int64 [{len(targets)}] as targets, got {known.dtype} {list(known.shape)}.", name
            )
    targets = targets.to(logits.device)
    kind = kind_of(logits, logits_are)
    measures = measure(logits.detach(), targets, load_samplers(), inputs=inputs, positions=positions, kind=kind)
    return _diagnosis(source, measures, None, (), "row")


def diagnose_model(
    model: LanguageModel,
    texts: Iterable[str] | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
    context: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
    parse_special: bool = False,
    logits_are: LogitsAre = "auto",
) -> Diagnosis:
    """Run a model over texts and diagnose its logits and weights.

    Args:
        model: what `load_model` gave.
        texts: each is a document of its own; None is a short built-in English text.
        max_tokens: the most positions that are measured.
        context: tokens that are fed at once; by default 512, or what the model can take if that is less.
        batch_size: windows at a time; fewer where their logits would be too large.
        progress: called now and then with the number of positions done and their total.
        parse_special: make special tokens of their spellings in the texts; see `Tokenizer.encode`.
        logits_are: what the model's `forward` returns; see `diagnose_logits`.

    Raises:
        DataError: the texts have no two tokens.
        DeviceError: the device's memory is too small.
        ModelError: the model was not made by `load_model`.
        ParameterError: a number outside its domain, or `forward` returns rows of both kinds.
        PluginError: greedy, topk or topp is not installed.
    """
    needed = ("name", "model", "tokenizer", "vocab_size", "context_length", "device")
    check_loaded(model, "diagnose_model", *needed, otherwise="diagnose_logits takes the logits of any program.")
    length = _context(model, context)
    check_logits_are(logits_are)
    for name, number in (("max_tokens", max_tokens), ("batch_size", batch_size)):
        if number < 1:
            raise ParameterError(f"{name} must be an integer >= 1, got {number}.", name)
    samplers = load_samplers()
    given = [SAMPLE_TEXT] if texts is None else texts
    pieces = windows(given, model.tokenizer, length, max_tokens, parse_special=parse_special)
    total, parts = sum(len(piece.ids) - 1 for piece in pieces), []
    kind: Kind | None = None
    for batch in _batches(pieces, batch_size, model.vocab_size):
        logits, targets, inputs, positions = _forward(model, batch)
        kind = kind or kind_of(logits, logits_are, "position")
        parts.append(measure(logits, targets, samplers, inputs=inputs, positions=positions, kind=kind))
        if progress is not None:
            progress(sum(map(len, parts)), total)
    measures = join(parts)
    document = _document(pieces, measures, model.tokenizer)
    weights = examine(model.model.named_parameters())
    return _diagnosis(model.name, measures, weights, document, "position")


def _diagnosis(
    source: str,
    measures: Measures,
    weights: tuple[TensorHealth, ...] | None,
    document: tuple[Token, ...],
    unit: str,
) -> Diagnosis:
    scores = accuracies(measures) if measures.valid.any() else ()
    judgement = decide(measures, scores, weights or (), unit)
    return Diagnosis(source, *judgement, scores, measures, weights, document)


def _context(model: LanguageModel, context: int | None) -> int:
    if context is None:
        return min(CONTEXT, model.context_length)
    if not 1 <= context <= model.context_length:
        raise ParameterError(
            f"context must be an integer in [1, {model.context_length}], what {model.name} can take, got {context}.",
            "context",
        )
    return context


def _batches(pieces: Sequence[Window], batch_size: int, vocab_size: int) -> Iterator[Sequence[Window]]:
    """Neighbouring windows, as many as the logits' memory allows and at least one."""
    longest = max(len(piece.ids) for piece in pieces)
    fitting = max(1, LOGITS_BYTES // (4 * longest * vocab_size))
    size = min(batch_size, fitting)
    return (pieces[start : start + size] for start in range(0, len(pieces), size))


def _forward(model: LanguageModel, batch: Sequence[Window]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The logits [positions, vocab] of some windows, and for each position target, input and place in the window."""
    width = max(len(piece.ids) for piece in batch) - 1
    padded = torch.zeros((len(batch), width + 1), dtype=torch.int64)
    mask = torch.zeros((len(batch), width), dtype=torch.int64)
    for row, piece in enumerate(batch):
        padded[row, : len(piece.ids)] = torch.tensor(piece.ids)
        mask[row, : len(piece.ids) - 1] = 1
    padded, mask = padded.to(model.device), mask.to(model.device)
    inputs, targets = padded[:, :-1], padded[:, 1:]
    try:
        with torch.inference_mode():  # padding is on the right, where no earlier token sees it
            logits = model.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
            chosen = mask.bool()
            places = torch.arange(width, device=model.device).expand_as(mask)
            return logits[chosen], targets[chosen], inputs[chosen], places[chosen]
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"{len(batch)} windows of {width} tokens do not fit into the free memory of {model.device}. Use a smaller "
            "--batch-size or --context, or --device cpu."
        ) from None


def _document(pieces: Sequence[Window], measures: Measures, tokenizer: Tokenizer) -> tuple[Token, ...]:
    """The first tokens of the first text that has two."""
    first = pieces[0]
    ids = [first.ids[0], *measures.targets[: sum(len(p.ids) - 1 for p in pieces if p.document == first.document)]]
    return tuple(
        Token(
            text=_text_of(tokenizer, int(token)),
            token=int(token),
            position=index - 1 if index else None,
            best=_text_of(tokenizer, int(measures.greedy[index - 1])) if index else "",
        )
        for index, token in enumerate(ids[: SHOWN_TOKENS + 1])
    )


def _text_of(tokenizer: Tokenizer, token: int) -> str:
    """A token's text, an ASCII byte's as its character; nothing for the id -1."""
    text = tokenizer.token_text(token) if token >= 0 else ""
    return ASCII_BYTE.sub(lambda match: chr(int(match[1], 16)), text)


def _columns(measures: Measures) -> dict[str, NDArray[np.float64]]:
    """The measures that are summarised, by their names in JSON."""
    columns = {
        "loss": measures.loss,
        "target_probability": measures.target_probability,
        "target_rank": measures.rank,
        "entropy": measures.entropy,
        "entropy_share": measures.entropy_share,
        "top1_probability": measures.top1,
        "margin": measures.margin,
        "logit_min": measures.low,
        "logit_max": measures.high,
        "logit_std": measures.std,
    }
    columns |= {f"mass_top{k}": measures.mass[:, index] for index, k in enumerate(MASS_KS)}
    return columns | {f"nucleus_size_{p:g}": measures.nucleus[:, index] for index, p in enumerate(NUCLEUS_PS)}


def _summary(values: NDArray[np.float64]) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return dict.fromkeys(("mean", "min", *QUANTILES, "max"), math.nan)
    quantiles = np.quantile(finite, list(QUANTILES.values()))
    return {
        "mean": float(finite.mean()),
        "min": float(finite.min()),
        **{name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
        "max": float(finite.max()),
    }
