"""Events for TensorBoard: the numbers of a run's `metrics.jsonl`, each chunk once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurogen.files import writing

if TYPE_CHECKING:
    from neurogen.training.report import ChunkReport

__all__ = ["check_tensorboard", "tensorboard_writer"]

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.*"
EVENTS_WORD = "The events for TensorBoard"
NOT_DRAWN = ("chunk", "step")


def check_tensorboard() -> None:
    """Raise click.UsageError where the package tensorboard is not installed; imports nothing."""
    if find_spec("tensorboard") is None:
        raise click.UsageError(
            "--tensorboard needs the package tensorboard. Install it by `pip install tensorboard`, or leave the option "
            "out: metrics.jsonl holds the same numbers."
        )


def tensorboard_writer(run: Path, metrics: Path) -> Callable[[ChunkReport], None]:
    """What writes the events of a report into the folder of a run.

    Earlier events are written again from the metrics, which end where the run is resumed: a process that was killed may
    have left events of chunks that are trained again, or no events of the last chunk.

    Raises:
        click.UsageError: the package tensorboard is not installed.
        DataError: the events cannot be written.
    """
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    folder = run / FOLDER
    old = sorted(folder.glob(EVENTS))
    times = _times(old)
    with writing(EVENTS_WORD, folder):
        writer: Any = SummaryWriter(str(folder))
        for line in _lines(metrics):
            _write(writer, line, times.get(line["chunk"]))
        writer.flush()
    for file in old:
        file.unlink()

    def write(report: ChunkReport) -> None:
        with writing(EVENTS_WORD, folder):
            _write(writer, report.to_json(), None)
            writer.flush()

    return write


def _lines(metrics: Path) -> list[dict[str, Any]]:
    from neurogen.pages.training_charts import read_metrics

    return read_metrics(metrics) if metrics.is_file() and metrics.stat().st_size else []


def _write(writer: Any, line: Mapping[str, Any], time: float | None) -> None:
    for name, value in line.items():
        if isinstance(value, int | float) and math.isfinite(value) and name not in NOT_DRAWN:
            writer.add_scalar(name, value, line["chunk"], walltime=time)


def _times(files: list[Path]) -> dict[int, float]:
    """When the events of each chunk were written first, as far as they can be read: a process may have been killed."""
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
        LegacyEventFileLoader,
    )

    times: dict[int, float] = {}
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            if event.HasField("summary"):
                times[event.step] = event.wall_time
    return times
