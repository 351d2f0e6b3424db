"""Where the checkpoints of a training run are, each the folder of a model. Knows nothing else of training."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["FOLDER", "STATE_FILE", "checkpoints_of", "latest_checkpoint"]

FOLDER = "checkpoints"
STATE_FILE = "trainer.json"
NAME = re.compile(r"chunk-(\d+)")


def checkpoints_of(run: Path) -> list[Path]:
    """The whole checkpoints of a run, the oldest first."""
    found = {}
    for folder in (run / FOLDER).glob("chunk-*") if (run / FOLDER).is_dir() else ():
        match = NAME.fullmatch(folder.name)
        if match and (folder / STATE_FILE).is_file():
            found[int(match[1])] = folder
    return [found[number] for number in sorted(found)]


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None; loads nothing."""
    return next(reversed(checkpoints_of(run)), None)
