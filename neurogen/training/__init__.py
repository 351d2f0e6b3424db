"""Training: a step (`trainer.Trainer.train_step`), and a run of steps with reports and checkpoints (`run.TrainingRun`).

From a text to a report: `neurogen.data.documents` gives texts, `neurogen.data.batches` packs them,
`run.TrainingRun.chunks` trains on the batches of a chunk and measures, and `report.ChunkReport` is what was found.
Nothing here prints or draws; `pages` and `cli` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen._lazy import names_of

if TYPE_CHECKING:
    from neurogen.training.run import METRICS_FILE, SAMPLES_FILE, ChunkReport, TrainingOptions, TrainingRun

__all__ = ["METRICS_FILE", "SAMPLES_FILE", "ChunkReport", "TrainingOptions", "TrainingRun"]

__getattr__ = names_of(__name__, "run")
