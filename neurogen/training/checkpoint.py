"""Checkpoints of a training run: folders that transformers (and `neurogen run`) load, with what training needs beside.

    RUN/checkpoints/chunk-000100/
        config.json  model.safetensors  generation_config.json  tokenizer.model ...   the model, float32
        optimizer.safetensors                                                           the optimizers' tensors
        trainer.json                                                                    steps, data position, numbers

A checkpoint is written into a folder with another name and renamed when it is whole, so whatever happens the last one
is intact. Nothing in it is a pickle: opening it runs no code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.contract.parameters import INT64, is_whole
from neurogen.errors import DataError
from neurogen.files import read_text, replacing, to_json, writing
from neurogen.training.processes import all_or_none

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.models.tokenizer import Tokenizer
    from neurogen.training.trainer import Trainer

__all__ = [
    "checkpoints_of",
    "kept_of",
    "latest_checkpoint",
    "load_checkpoint",
    "read_state",
    "remove_drafts",
    "save_checkpoint",
]

FOLDER = "checkpoints"
NAME = re.compile(r"chunk-(\d+)")
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer.json"
RANDOM_STATE = "random_state"  # of an earlier neurogen: what a step draws depends on seed and step alone now
SEPARATOR = "|"


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


def kept_of(run: Path) -> str:
    """A sentence on what of a run can be gone on from."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return f"There is no checkpoint in {run} yet: --resume begins the run anew."
    return f"The last checkpoint, {checkpoint}, is intact: --resume goes on from it."


def remove_drafts(run: Path) -> None:
    """Remove what processes that were killed have left of checkpoints; only while nobody else can write there."""
    for draft in (run / FOLDER).glob(".chunk-*.tmp"):
        shutil.rmtree(draft, ignore_errors=True)


def save_checkpoint(
    run: Path, chunk: int, trainer: Trainer, tokenizer: Tokenizer, state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write a checkpoint and remove old ones. Called by every process; the first one writes.

    Args:
        run: folder of the run.
        chunk: how many chunks have been trained; names the folder.
        trainer, tokenizer: what is saved.
        state: JSON values that belong to it, such as the data's position.
        keep: how many of the newest checkpoints stay.

    Raises:
        DataError: it cannot be written; earlier checkpoints are as they were.
    """
    accelerator = trainer.accelerator
    weights = _as_uncompiled(accelerator.get_state_dict(trainer.model))
    optimizer = _optimizer_state(trainer)
    target = run / FOLDER / f"chunk-{chunk:06d}"
    with all_or_none(accelerator):
        if accelerator.is_main_process:
            tensors, numbers = _split(optimizer)
            trainer_state = {"chunk": chunk, "step": trainer.step, "optimizer": numbers, **state}
            needed = sum(tensor.nbytes for tensor in (*weights.values(), *tensors.values()))
            advice = f"Free some space. {kept_of(run)}"
            with writing("The checkpoint", target, needed=needed, advice=advice):
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target) as draft:
                    _write(draft, trainer, weights, tokenizer, tensors, trainer_state)
            for old in checkpoints_of(run)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    return target


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `state`, with "chunk" and "step".

    Raises:
        DataError: it cannot be read.
    """
    try:
        state: dict[str, Any] = json.loads(read_text(checkpoint / STATE_FILE))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(checkpoint, str(error)) from None
    if not isinstance(state, dict):
        raise _unreadable(checkpoint, "it is no object of JSON")
    for name, least in (("chunk", 0), ("step", 0), ("processes", 1)):
        if name in state and not is_whole(state[name], range(least, INT64.stop)):
            raise _unreadable(checkpoint, f"its {name} is {state[name]!r}")
    for name in ("chunk", "step", "optimizer"):
        if name not in state:
            raise _unreadable(checkpoint, f"it has no {name}")
    return state


def _unreadable(checkpoint: Path, cause: str) -> DataError:
    return DataError(
        f"{checkpoint / STATE_FILE} cannot be read: {cause}. Remove that checkpoint to go on from the one before."
    )


def load_checkpoint(checkpoint: Path, trainer: Trainer) -> None:
    """Give a trainer, made with the checkpoint's model, its steps and optimizers.

    Raises:
        DataError: the checkpoint does not fit the trainer, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state = read_state(checkpoint)
    try:
        tensors = load_file(checkpoint / OPTIMIZER_FILE)
        tensors.pop(RANDOM_STATE, None)
        set_optimizer_state_dict(
            trainer.model,
            _plain_optimizers(trainer),
            _joined(tensors, state["optimizer"]),
            options=StateDictOptions(full_state_dict=True),
        )
    except (OSError, SafetensorError, LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"The optimizer's state in {checkpoint} cannot be used: {type(error).__name__}: {error}. Remove that "
            "checkpoint to go on from the one before."
        ) from None
    trainer.step = int(state["step"])


def _as_uncompiled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that they have without torch.compile, which puts its own before them."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}


def _optimizer_state(trainer: Trainer) -> dict[str, Any]:
    """The optimizers' state by name of the weight, on the CPU; gathered by all processes, whole on the first."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(trainer.model, _plain_optimizers(trainer), options=options))


def _plain_optimizers(trainer: Trainer) -> list[Any]:
    """Without accelerate's wrapper."""
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in trainer.optimizers]


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under names "weight|entry", and everything else as JSON values."""
    import torch

    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for weight, entries in state["state"].items():
        for entry, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{weight}{SEPARATOR}{entry}"] = value.contiguous()
            else:
                rest.setdefault(weight, {})[entry] = value
    return tensors, {"state": rest, "param_groups": [_json_values(group) for group in state["param_groups"]]}


def _joined(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, dict[str, Any]] = {weight: dict(entries) for weight, entries in numbers["state"].items()}
    for name, tensor in tensors.items():
        weight, _, entry = name.rpartition(SEPARATOR)
        state.setdefault(weight, {})[entry] = tensor
    return {"state": state, "param_groups": [_python_values(group) for group in numbers["param_groups"]]}


def _json_values(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in group.items()}


def _python_values(group: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, and optimizers take no lists for their coefficients."""
    return {
        name: tuple(value) if isinstance(value, list) and name != "params" else value for name, value in group.items()
    }


def _write(
    folder: Path,
    trainer: Trainer,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    from safetensors.torch import save_file

    from neurogen.models.weights import quiet_transformers

    folder.mkdir()
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=dict(weights))
    tokenizer.save(folder)
    save_file(dict(tensors), folder / OPTIMIZER_FILE)
    (folder / STATE_FILE).write_text(to_json(state), encoding="utf-8")
