"""What a resumed run takes from the run that was begun, which options may change, and what the user is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neurogen.errors import DataError, ParameterError
from neurogen.files import read_text
from neurogen.training.optimizers import learning_rate_at
from neurogen.training.options import TrainingOptions
from neurogen.training.run_folder import OPTIONS_FILE

__all__ = ["IDENTITY", "StoredRun", "changes_in_words", "check_identity", "options_in_force", "read_stored_run"]

IDENTITY = "identity"
"""In the options' file: names for the contents of `data` and `val`; see `data.sources.fingerprint`."""

FREE_TO_CHANGE = frozenset({"max_chunks", "save_every", "keep", "val_every", "chart_every", "tensorboard", "device"})
"""Options that may have a new value in a resumed run; `max_chunks` is also where the learning rate ends."""

MAY_MOVE = frozenset({"data", "val"})
"""Options that may name another place of the same data in a resumed run; see `check_identity`."""


@dataclass(frozen=True)
class StoredRun:
    """A run as it was when it was last begun or resumed.

    Attributes:
        options: what it was asked to do.
        identity: names for the contents of its data; none if it is a run of an earlier neurogen.
    """

    options: TrainingOptions
    identity: Mapping[str, str]


def read_stored_run(folder: Path) -> StoredRun | None:
    """The run in a folder, or None.

    Raises:
        DataError: its options cannot be read.
    """
    file = folder / OPTIONS_FILE
    if not file.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(read_text(file))
        identity = values.pop(IDENTITY, None)
        values |= {name: tuple(values[name]) for name in MAY_MOVE}
        return StoredRun(TrainingOptions(**values), identity if isinstance(identity, dict) else {})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} cannot be read: {error}. It was damaged or written by another version of neurogen; its "
            "checkpoints can still be used as models."
        ) from None


def options_in_force(
    folder: Path, begun: StoredRun | None, options: TrainingOptions | None, resume: bool, changes: Mapping[str, Any]
) -> TrainingOptions:
    """The options of a new run, or those that the run in a folder began with, with the changes applied.

    Raises:
        DataError: there is a run where a new one is to begin, or none to resume.
        ParameterError: an option may not change.
    """
    if not resume:
        if begun is not None:
            raise DataError(f"{folder} holds a training run already. Go on with --resume, or choose another folder.")
        if options is None or changes:
            raise ParameterError("options must be given for a new run, and no changes of others.", "options")
        return options
    if options is not None:
        raise ParameterError(
            "options must be left out with resume, which does as the run began; give what is to differ as changes.",
            "options",
        )
    if begun is None:
        raise DataError(f"There is no training run in {folder} to resume. Start one without --resume.")
    was = begun.options
    changed = {name: value for name, value in changes.items() if getattr(was, name) != value}
    refused = sorted(changed.keys() - FREE_TO_CHANGE - MAY_MOVE)
    if refused:
        named = ", ".join(f"{name} = {getattr(was, name)!r} (now {changed[name]!r})" for name in refused)
        raise ParameterError(
            f"The run in {folder} began with other options: {named}. To go on with it leave them out; to change them "
            f"start a new run in another folder. Only {', '.join(sorted(FREE_TO_CHANGE))} may change, and "
            "where the data are.",
            refused[0],
        )
    return replace(was, **changed)


def check_identity(begun: StoredRun, identity: Mapping[str, str]) -> list[str]:
    """Refuse other data to train on; other data to measure on are only reported.

    Args:
        begun: the run.
        identity: names for the contents of the data as they are now.

    Returns:
        sentences for the user.

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


def changes_in_words(
    begun: TrainingOptions, options: TrainingOptions, chunk: int, step: int, begun_processes: int, processes: int
) -> list[str]:
    """What has changed since the run was last begun or resumed, as sentences.

    Args:
        begun, options: the options before and now.
        chunk, step: how many chunks have been trained, and how many steps made.
        begun_processes, processes: how many there were at the last checkpoint, and are now.

    Raises:
        ParameterError: the run is to end at a chunk that it has reached.
    """
    most, moved = options.max_chunks, options.max_chunks != begun.max_chunks
    if moved and most is not None and most <= chunk:
        raise ParameterError(
            f"max_chunks must be more than the {chunk:,} chunks that the run has trained already, got {most:,}.",
            "max_chunks",
        )
    notices = []
    if processes != begun_processes:
        tokens = options.sequences * options.context
        notices.append(
            f"The run goes on with {processes} processes, of {begun_processes} before: a step is on "
            f"{tokens * processes:,} tokens, of {tokens * begun_processes:,} before."
        )
    before, now = _rate(begun, step, begun_processes), _rate(options, step, processes)
    if now != before:
        end = f"The run now ends after {_end(options)}, not after {_end(begun)}" if moved else "The steps are others"
        notices.append(
            f"{end}, and the learning rate follows: the next step has {now:.2e}, where it would have had {before:.2e}."
        )
    return notices


def _rate(options: TrainingOptions, step: int, processes: int) -> float:
    trainer = options.for_trainer(processes)
    return learning_rate_at(step, peak=trainer.learning_rate, warmup=trainer.warmup_steps, total=trainer.total_steps)


def _end(options: TrainingOptions) -> str:
    return "one pass over the data" if options.max_chunks is None else f"{options.max_chunks:,} chunks"
