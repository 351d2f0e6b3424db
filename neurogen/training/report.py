"""What is known of a chunk of training: a line of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.diagnosis.health import Health
    from neurogen.training.trainer import StepResult

__all__ = ["ChunkReport", "means_of", "sums_of"]


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
        validation: means over the held-out tokens, where they were measured behind this chunk.
        checkpoint: written behind this chunk.
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
        health = self.health
        line: dict[str, Any] = {
            "chunk": self.chunk,
            "step": self.step,
            "tokens": self.tokens,
            "epoch": self.epoch,
            "loss": health.loss,
            "accuracy": health.accuracy,
            "top5_accuracy": health.top5_accuracy,
            "entropy_share": health.entropy_share,
            "top1_probability": health.top1_probability,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            "tokens_per_second": self.tokens_per_second,
            "verdict": self.verdict,
            "reason": self.reason,
            "broken_rows": self.broken_rows,
            "skipped_steps": self.skipped_steps,
        }
        if self.contrast_accuracy is not None:
            line["contrast_accuracy"] = self.contrast_accuracy
        if self.validation is not None:
            line["val_loss"] = self.validation.loss
            line["val_accuracy"] = self.validation.accuracy
            line["val_top5_accuracy"] = self.validation.top5_accuracy
        return {name: _finite(value) for name, value in line.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sums_of(result: StepResult) -> Tensor:
    """What of a step is added up over a chunk and over processes, float64 [7]; `means_of` takes it apart again."""
    import torch

    health = result.health
    means = (
        health.loss,
        health.top5_accuracy,
        health.entropy,
        health.top1_probability,
        1.0,
        health.accuracy,
        0.0 if result.contrast_accuracy is None else result.contrast_accuracy,
    )
    if not health.positions:  # a process without a share of the last batch, whose means are no numbers
        return torch.zeros(len(means), dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64) * health.positions


def means_of(total: Sequence[float], vocab_size: int) -> tuple[Health, float]:
    """The health of a chunk from its sums, and the accuracy of the contrast."""
    import torch

    from neurogen.diagnosis.health import HealthSums

    sums = torch.tensor(total[:5], dtype=torch.float64)
    health = HealthSums(sums, vocab_size).health(correct=total[5])
    return health, total[6] / max(health.positions, 1)
