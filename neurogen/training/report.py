"""The report of a chunk of training: a line of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurogen.diagnosis.health import Health, HealthSums
from neurogen.files import finite
from neurogen.training.trainer import StepResult

__all__ = ["ChunkReport", "means_of", "sums_of"]

MEASURES = ("loss", "accuracy", "top5_accuracy", "entropy_share", "top1_probability")


@dataclass(frozen=True)
class ChunkReport:
    """A line of `metrics.jsonl`.

    Attributes:
        chunk, step, tokens, epoch: how far the run is; tokens are targets over all processes.
        health: means over the chunk, all processes together; a single position without finite logits makes loss,
            entropy and top-1 probability NaN, and counts as wrong in both accuracies.
        gradient_norm: mean over the chunk's steps, before clipping.
        learning_rate: of its last step.
        tokens_per_second: of training alone, without validation and saving.
        verdict, reason: see `health.judge`.
        broken_rows: rows of the data without a text so far.
        skipped_steps: steps of the chunk whose gradient was not finite.
        contrast_accuracy: what drawing by top-k 50 would have reported, where asked for.
        validation: means over the held-out tokens, where they were measured after this chunk.
        checkpoint: written after this chunk.
    """

    chunk: int
    step: int
    tokens: int
    epoch: int
    health: Health
    gradient_norm: float
    learning_rate: float
    tokens_per_second: float
    verdict: str
    reason: str
    broken_rows: int
    skipped_steps: int
    contrast_accuracy: float | None = None
    validation: Health | None = None
    checkpoint: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of `metrics.jsonl`; None where a mean is no finite number."""
        line: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "health":
                line |= {measure: getattr(value, measure) for measure in MEASURES}
            elif name == "validation" and value is not None:
                line |= {f"val_{measure}": getattr(value, measure) for measure in MEASURES[:3]}
            elif name != "checkpoint" and value is not None:
                line[name] = value
        values: dict[str, Any] = finite(line)
        return values


def sums_of(result: StepResult) -> Tensor:
    """What of a step is added up over a chunk and over processes, float64 [7]; `means_of` takes it apart again."""
    health = result.health
    if not health.positions:  # a process without a share of the last batch, whose means are no numbers
        return torch.zeros(7, dtype=torch.float64)
    sums = (health.loss, health.top5_accuracy, health.entropy, health.top1_probability, 1.0)  # see `HealthSums`
    own = (health.accuracy, result.contrast_accuracy or 0.0)
    return torch.tensor((*sums, *own), dtype=torch.float64) * health.positions


def means_of(total: Sequence[float], vocab_size: int) -> tuple[Health, float]:
    """The health of a chunk from its sums, and the accuracy of the contrast."""
    sums = torch.tensor(total[:5], dtype=torch.float64)
    health = HealthSums(sums, vocab_size).health(correct=total[5])
    return health, total[6] / max(health.positions, 1)
