"""Checkpoints of a training run: folders that transformers and `neurogen run` load, with what training needs.

    RUN/checkpoints/chunk-000100/
        config.json  model.safetensors  generation_config.json  tokenizer.model ...   the model, float32
        optimizer.safetensors                                                           the optimizers' tensors
        trainer.json                                                                    steps, data position, numbers

A checkpoint is written into a folder with another name and renamed when it is whole, so whatever happens the last one
is intact. Nothing in it is a pickle: opening it runs no code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from neurogen.contract.parameters import INT64, is_whole
from neurogen.contract.tokenizer import Tokenizer
from neurogen.errors import DataError
from neurogen.files import read_text, replacing, to_json, writing
from neurogen.models.checkpoints import FOLDER, STATE_FILE, checkpoints_of, latest_checkpoint
from neurogen.models.weights import quiet_transformers
from neurogen.training.processes import all_or_none
from neurogen.training.run_folder import resume_advice
from neurogen.training.trainer import Trainer

__all__ = ["checkpoints_of", "latest_checkpoint", "load_checkpoint", "read_state", "resume_advice", "save_checkpoint"]

OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_STATE = "random_state"  # of an earlier neurogen: what a step draws depends on seed and step alone now
SEPARATOR = "|"


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
    # torch.compile puts a prefix of its own before the names.
    weights = {name.replace("_orig_mod.", ""): w for name, w in accelerator.get_state_dict(trainer.model).items()}
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    optimizer = get_optimizer_state_dict(trainer.model, _optimizers(trainer), options=whole)
    target = run / FOLDER / f"chunk-{chunk:06d}"
    with all_or_none():
        if accelerator.is_main_process:
            tensors, values = _split(optimizer)
            trainer_state = {"chunk": chunk, "step": trainer.step, "optimizer": values, **state}
            needed = sum(tensor.nbytes for tensor in (*weights.values(), *tensors.values()))
            advice = f"Free some space. {resume_advice(run)}"
            with writing("The checkpoint", target, needed=needed, advice=advice):
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target) as draft:
                    draft.mkdir()
                    model: Any = accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
                    with quiet_transformers():
                        model.save_pretrained(draft, state_dict=weights)
                    tokenizer.save(draft)
                    save_file(tensors, draft / OPTIMIZER_FILE)
                    (draft / STATE_FILE).write_text(to_json(trainer_state), encoding="utf-8")
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
    state = read_state(checkpoint)
    try:
        tensors = load_file(checkpoint / OPTIMIZER_FILE)
        tensors.pop(RANDOM_STATE, None)
        set_optimizer_state_dict(
            trainer.model,
            _optimizers(trainer),
            _joined(tensors, state["optimizer"]),
            options=StateDictOptions(full_state_dict=True),
        )
    except (OSError, SafetensorError, LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"The optimizer's state in {checkpoint} cannot be used: {type(error).__name__}: {error}. Remove that "
            "checkpoint to go on from the one before."
        ) from None
    trainer.step = int(state["step"])


def _optimizers(trainer: Trainer) -> list[torch.optim.Optimizer]:
    """Without accelerate's wrappers."""
    return [optimizer.optimizer for optimizer in trainer.optimizers]


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under names "weight|entry", and everything else as JSON values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for weight, entries in state["state"].items():
        for entry, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{weight}{SEPARATOR}{entry}"] = value.contiguous()
            else:
                values.setdefault(weight, {})[entry] = value
    return tensors, {"state": values, "param_groups": state["param_groups"]}


def _joined(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """What `_split` has taken apart. JSON has no tuples, which optimizers need for their coefficients."""
    state: dict[str, dict[str, Any]] = {weight: dict(entries) for weight, entries in values["state"].items()}
    for name, tensor in tensors.items():
        weight, _, entry = name.rpartition(SEPARATOR)
        state.setdefault(weight, {})[entry] = tensor
    groups = [
        {name: tuple(value) if isinstance(value, list) and name != "params" else value for name, value in group.items()}
        for group in values["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
