"""Training: one step at a time (`trainer`), and a whole run of steps with reports and checkpoints (`run`).

Prints nothing and draws nothing; that is done by `pages` and `cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen._lazy import names_of

if TYPE_CHECKING:
    from neurogen.training.run import METRICS_FILE, SAMPLES_FILE, ChunkReport, TrainingOptions, TrainingRun

__all__ = ["METRICS_FILE", "SAMPLES_FILE", "ChunkReport", "TrainingOptions", "TrainingRun"]

__getattr__ = names_of(__name__, "run")
