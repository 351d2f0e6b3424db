"""What a training run is asked to do, checked once, and what a resumed run may change of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neurogen.errors import DataError, ParameterError

__all__ = ["OPTIONS_FILE", "TrainingOptions", "options_in_force"]

OPTIONS_FILE = "training.json"
FREE_TO_CHANGE = frozenset({"max_chunks", "save_every", "keep", "val_every", "device"})
"""Options that a resumed run may be given anew; `max_chunks` is also where the learning rate ends."""

COUNTS = ("tokens_per_chunk", "max_chunks", "context", "batch_size", "val_every", "val_tokens", "save_every", "keep")
DEFAULT_WARMUP = 100


@dataclass(frozen=True)
class TrainingOptions:
    """What a run is, as `neurogen train` takes it.

    Attributes:
        data: files, folders or names of data sets on the hub; see `neurogen.data`.
        tokenizer: a SentencePiece file, or a folder with a tokenizer; None: one is trained on the data, with as many
            pieces as the preset says.
        preset, config: the architecture; see `presets.model_config`.
        tokens_per_chunk: about how many tokens a report covers, over all processes.
        max_chunks: where the run ends; None: after one pass over the data, at a constant learning rate.
        context: tokens in a sequence.
        batch_size: sequences a step of each process; None: as many as make a chunk one step.
        accumulation: the parts that a process's batch is worked on in.
        learning_rate: peak; None: the preset's.
        optimizer, weight_decay, warmup_steps, max_gradient_norm: see `TrainerOptions`.
        val: data to measure on.
        hold_out: without `val`, every so many-th document is kept from training and measured on; 0: none is.
        val_every, val_tokens: measure so many held-out tokens every so many chunks.
        save_every, keep: write a checkpoint every so many chunks, and keep so many.
        precision: "float32", or "bf16" for matrix products in bfloat16 with float32 weights.
        compile: compile the model with torch.compile.
        contrast: top-k 50 at temperature 1 beside the greedy accuracy, to show what it would have hidden.
        device: auto, cpu or cuda.
        seed: of the fresh weights.

    Raises:
        ParameterError: a value outside its domain.
    """

    data: tuple[str, ...]
    tokenizer: str | None = None
    preset: str = "tiny"
    config: str | None = None
    tokens_per_chunk: int = 4096
    max_chunks: int | None = None
    context: int = 256
    batch_size: int | None = None
    accumulation: int = 1
    learning_rate: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    warmup_steps: int | None = None
    max_gradient_norm: float = 1.0
    val: tuple[str, ...] = ()
    hold_out: int = 100
    val_every: int = 50
    val_tokens: int = 32_768
    save_every: int = 100
    keep: int = 2
    precision: str = "float32"
    compile: bool = False
    contrast: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (
            "tokens_per_chunk",
            "max_chunks",
            "context",
            "batch_size",
            "val_every",
            "val_tokens",
            "save_every",
            "keep",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ParameterError(f"{name} must be an integer >= 1, got {value!r}.", name)
        if self.precision not in ("float32", "bf16"):
            raise ParameterError(f"precision must be float32 or bf16, got {self.precision!r}.", "precision")
        if not isinstance(self.hold_out, int) or self.hold_out < 0 or self.hold_out == 1:
            raise ParameterError(f"hold_out must be 0 or an integer >= 2, got {self.hold_out!r}.", "hold_out")
        if not self.data:
            raise ParameterError("data must name at least one file, folder or data set.", "data")

    @property
    def sequences(self) -> int:
        """Sequences in a step of one process."""
        return self.batch_size or max(1, self.tokens_per_chunk // self.context)

    def is_trained_on(self, document: int) -> bool:
        """Whether the document of this number is for training rather than for measuring."""
        return bool(self.val) or self.hold_out == 0 or document % self.hold_out != 0

    def steps_per_chunk(self, processes: int) -> int:
        """Optimizer steps in a chunk."""
        return max(1, round(self.tokens_per_chunk / (self.sequences * self.context * processes)))

    def warmup(self, total_steps: int | None) -> int:
        """Steps over which the learning rate rises."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return DEFAULT_WARMUP if total_steps is None else min(DEFAULT_WARMUP, max(1, total_steps // 10))


def options_in_force(
    folder: Path, options: TrainingOptions | None, resume: bool, changes: Mapping[str, Any]
) -> TrainingOptions:
    """The options of a new run, or those that the run in a folder began with, with what is changed of them.

    Raises:
        DataError: there is a run where a new one is to begin, or none to resume.
        ParameterError: an option may not change.
    """
    file = folder / OPTIONS_FILE
    begun = _read_options(file) if file.is_file() else None
    if not resume:
        if begun is not None:
            raise DataError(f"{folder} holds a training run already. Go on with --resume, or choose another folder.")
        if options is None:
            raise ParameterError("options must be given for a new run.", "options")
        return options
    if begun is None:
        raise DataError(f"There is no training run in {folder} to resume. Start one without --resume.")
    changed = {name: value for name, value in changes.items() if getattr(begun, name) != value}
    refused = sorted(changed.keys() - FREE_TO_CHANGE)
    if refused:
        was = ", ".join(f"{name} = {getattr(begun, name)!r} (now {changed[name]!r})" for name in refused)
        raise ParameterError(
            f"The run in {folder} began with other options: {was}. To go on with it leave them out; to change them "
            f"start a new run in another folder. Only {', '.join(sorted(FREE_TO_CHANGE))} may change.",
            refused[0],
        )
    return replace(begun, **changed)


def _read_options(file: Path) -> TrainingOptions:
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        values |= {name: tuple(values[name]) for name in ("data", "val")}
        return TrainingOptions(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} cannot be read: {error}. It was damaged or written by another version of neurogen; its "
            "checkpoints can still be used as models."
        ) from None
