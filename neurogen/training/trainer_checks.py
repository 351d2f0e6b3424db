"""What a trainer refuses or warns about: wrong ids, weights that would not change, logits without a gradient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from neurogen.data.batches import IGNORE_INDEX
from neurogen.errors import ModelError, ParameterError

__all__ = ["Ids", "UnmovedParameters", "UnmovedWarning", "check_differentiable", "check_trainable", "checked_ids"]

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Number formats in which a weight can take a small update, and integers of the same width."""

UNMOVED_STEPS = 20
"""Steps that change weights after which the parameters that never moved are named."""

NAMED = 5
"""Parameters that a message names at most."""

Ids = Tensor | Sequence[int] | Sequence[Sequence[int]]


class UnmovedWarning(UserWarning):
    """Some parameters have not changed in many steps."""


class UnmovedParameters:
    """Warns once, after 20 steps, of the parameters that are to be trained and have not changed in any."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._steps = 0
        self._before: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Called before each step; the first call records the weights."""
        if self._steps == 0:
            self._before = self._checksums()

    def after_step(self, *, warn: bool) -> None:
        """A step has changed the weights."""
        self._steps += 1
        if self._steps != UNMOVED_STEPS:
            return
        now = self._checksums()
        names = [name for name, checksum in self._before.items() if torch.equal(checksum, now[name])]
        if names and warn:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            warnings.warn(
                f"{len(names)} of {len(now)} parameters have not changed in {UNMOVED_STEPS} steps: "
                f"{', '.join(names[:NAMED])}{more}. Either the loss does not depend on them, or the learning rate is "
                "too small beside them. Freeze them with requires_grad_(False) if that is meant.",
                UnmovedWarning,
                stacklevel=3,
            )

    @torch.no_grad()
    def _checksums(self) -> dict[str, Tensor]:
        """For each parameter to be trained the sum of the bits of its values, which changes with them."""
        return {
            name: weight.detach().contiguous().view(BITS[weight.dtype]).sum(dtype=torch.int64)
            for name, weight in self._model.named_parameters()
            if weight.requires_grad and weight.dtype in BITS
        }


def check_trainable(model: torch.nn.Module) -> None:
    """Refuse weights that training would leave as they are without a warning.

    Raises:
        ModelError: no weight is to be trained, or one in half precision is.
    """
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not trained:
        raise ModelError(
            "Trainer needs weights to train: of this model none requires a gradient. Call model.requires_grad_(True), "
            "or leave at least one of its parameters unfrozen."
        )
    for name, weight in trained:
        if weight.dtype not in BITS:
            raise ModelError(
                f"Trainer changes weights in float32, and {name} is {str(weight.dtype).removeprefix('torch.')}: there "
                "an update that is small beside its weight is rounded away, and the weights of norms, which are near "
                "1, would never move. Call model.float(), or load the model with neurogen.models.load_model(name, "
                'dtype="float32"). For matrix products in half precision give Trainer an accelerator, '
                'Accelerator(mixed_precision="bf16").'
            )


def check_differentiable(logits: Tensor) -> None:
    """Raise ModelError for logits that no gradient can come from."""
    if not logits.requires_grad:
        raise ModelError(
            "The logits depend on no weight that is trained, so that there is no gradient. Call train_step outside "
            "torch.no_grad() and torch.inference_mode(), and look for detach() or no_grad() in the model's forward."
        )


def checked_ids(context_ids: Ids, target_ids: Ids, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Contexts and targets as int64 [batch, positions].

    Raises:
        ParameterError: they are no ids of the vocabulary, or not of one shape.
    """
    contexts = _tensor_of("context_ids", context_ids, vocab_size)
    targets = _tensor_of("target_ids", target_ids, vocab_size, ignored=IGNORE_INDEX)
    if contexts.shape != targets.shape:
        raise ParameterError(
            f"context_ids and target_ids must have the same shape, got {list(contexts.shape)} and "
            f"{list(targets.shape)}: the target of a position is the token that follows it.",
            "target_ids",
        )
    return contexts, targets


def _tensor_of(name: str, ids: Ids, vocab_size: int, *, ignored: int | None = None) -> Tensor:
    """Ids as int64 [batch, positions]; `ignored` is allowed too."""
    try:
        tensor = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ParameterError(f"{name} must be ids, a list of integers or lists of one length: {error}.", name) from None
    if tensor.dtype != torch.int64 or tensor.ndim not in (1, 2) or tensor.numel() == 0:
        raise ParameterError(
            f"{name} must be integers [positions] or [batch, positions], at least one, got {tensor.dtype} "
            f"{list(tensor.shape)}.",
            name,
        )
    checked = tensor if ignored is None else tensor[tensor != ignored]
    if checked.numel() and not 0 <= int(checked.min()) <= int(checked.max()) < vocab_size:
        raise ParameterError(
            f"{name} must be in [0, {vocab_size - 1}], the model's vocabulary, got {int(checked.min())} to "
            f"{int(checked.max())}.",
            name,
        )
    return tensor.reshape(-1, tensor.shape[-1])
