"""What a training run that goes on shares with the one that was begun, and what is told where it differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neurogen.errors import DataError, ParameterError
from neurogen.files import read_text
from neurogen.training.files import IDENTITY
from neurogen.training.options import OPTIONS_FILE, TrainingOptions, read_options

__all__ = ["Begun", "check_identity", "check_more", "read_begun", "told_changes"]


@dataclass(frozen=True)
class Begun:
    """A run as it was when it was last begun or gone on with.

    Attributes:
        options: what it was asked to do.
        identity: names for the contents of its data; none if it is a run of an earlier neurogen.
    """

    options: TrainingOptions
    identity: Mapping[str, str]


def read_begun(folder: Path) -> Begun:
    """What is known of the run in a folder.

    Raises:
        DataError: it cannot be read.
    """
    file = folder / OPTIONS_FILE
    options = read_options(file)
    identity = json.loads(read_text(file)).get(IDENTITY)
    return Begun(options, identity if isinstance(identity, dict) else {})


def check_identity(begun: Begun, identity: Mapping[str, str]) -> list[str]:
    """Refuse other data to train on, and tell of other data to measure on.

    Args:
        begun: the run.
        identity: names for the contents of the data as they are now.

    Returns:
        what is to be told.

    Raises:
        DataError: the data to train on are not those that the run began with.
    """
    changed = [name for name, content in begun.identity.items() if identity.get(name) != content]
    if "data" in changed:
        raise DataError(
            "The data are others than the run began with: a file was added, removed, renamed, or has another content. "
            "Give the data that training began with, in the same order, or start a new run in another folder."
        )
    return ["The data of --val have changed: val_loss is not comparable with that so far."] if changed else []


def check_more(begun: TrainingOptions, options: TrainingOptions, chunk: int) -> None:
    """Refuse a new end that has been reached already.

    Raises:
        ParameterError: there are as many chunks or more.
    """
    most = options.max_chunks
    if most is not None and most != begun.max_chunks and most <= chunk:
        raise ParameterError(
            f"max_chunks must be more than the {chunk:,} chunks that the run has trained already, got {most:,}.",
            "max_chunks",
        )


def told_changes(
    begun: TrainingOptions, options: TrainingOptions, step: int, begun_processes: int, processes: int
) -> list[str]:
    """What goes on otherwise than before, as sentences.

    Args:
        begun, options: before and now.
        step: how many steps have been made.
        begun_processes, processes: how many there were at the last checkpoint, and are now.
    """
    told = []
    if processes != begun_processes:
        tokens = options.sequences * options.context
        told.append(
            f"The run goes on with {processes} processes, of {begun_processes} before: a step is on "
            f"{tokens * processes:,} tokens, of {tokens * begun_processes:,} before."
        )
    before, now = _rate(begun, step, begun_processes), _rate(options, step, processes)
    if now != before:
        moved = options.max_chunks != begun.max_chunks
        end = f"The run now ends after {_end(options)}, not after {_end(begun)}" if moved else "The steps are others"
        told.append(
            f"{end}, and the learning rate follows: the next step has {now:.2e}, where it would have had {before:.2e}."
        )
    return told


def _rate(options: TrainingOptions, step: int, processes: int) -> float:
    from neurogen.training.optimizers import learning_rate_at

    chunks = options.max_chunks
    trainer = options.for_trainer(None if chunks is None else chunks * options.steps_per_chunk(processes))
    return learning_rate_at(step, peak=trainer.learning_rate, warmup=trainer.warmup_steps, total=trainer.total_steps)


def _end(options: TrainingOptions) -> str:
    return "one pass over the data" if options.max_chunks is None else f"{options.max_chunks:,} chunks"
