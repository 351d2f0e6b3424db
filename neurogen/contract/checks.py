"""Checks of the arguments and results of a plugin's methods, with the error messages.

`Sampler` inherits them. Nothing is checked here that depends on a particular sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from neurogen.contract.mistakes import explained, where_written
from neurogen.contract.parameters import INT64
from neurogen.errors import ContractError, InvalidLogitsError, NeurogenError, ParameterError, PluginError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CACHED_BATCHES", "NO_TOKEN", "CheckedCalls", "State", "empty_rows", "one_per_row"]

NO_TOKEN = -1
"""The id a kernel gives a row that has no valid distribution."""

CACHED_BATCHES = 32
"""How many batch sizes keep their ready-made parameter tensors."""

State = dict[str, "Tensor"]
"""Memory of a stateful sampler: tensors whose first dimension is the batch, so that an engine can move rows."""


class CheckedCalls:
    """The checks of a sampler; the attributes below are declared by `Sampler` and its subclasses."""

    name: ClassVar[str]
    stateful: ClassVar[bool]
    backends: ClassVar[Mapping[str, str]]
    dtypes: ClassVar[frozenset[str]]
    origin: str

    def new_state(self, batch: int) -> State:
        raise NotImplementedError

    def fresh_state(self, batch: int, device: torch.device) -> State:
        """The result of `new_state`, checked and moved to a device; engines call this.

        Raises:
            ContractError: it is no dictionary of tensors with a row for each sequence.
        """
        import torch

        state: Any = self.new_state(batch)
        if isinstance(state, dict) and all(isinstance(memory, torch.Tensor) for memory in state.values()):
            if all(memory.shape[:1] == (batch,) for memory in state.values()):
                return {name: memory.to(device) for name, memory in state.items()}
            got = ", ".join(f"{name!r}: {list(memory.shape)}" for name, memory in state.items())
        else:
            got = f"a {type(state).__name__}" if not isinstance(state, dict) else "other values"
        raise ContractError(
            f"new_state({batch}) of sampler {self.name!r} ({self.origin}) must return a dictionary of tensors whose "
            f"first dimension is {batch}, got {got}.{where_written(self, 'new_state')}"
        )

    def _checked_logits(self, logits: Any) -> Tensor:
        """The logits, detached. This runs at every call, so each property is read once."""
        import torch

        if (
            isinstance(logits, torch.Tensor)
            and logits.layout is torch.strided
            and len(shape := logits.shape) == 2
            and shape[1]
            and _name_of(logits.dtype) in self.dtypes
        ):
            return logits.detach() if logits.requires_grad else logits
        raise self._wrong_logits(logits)

    def _wrong_logits(self, logits: Any) -> ParameterError:
        """The error for logits that `_checked_logits` refuses."""
        import torch

        if not isinstance(logits, torch.Tensor):
            problem = f"logits must be a torch tensor [batch, vocab], got {type(logits).__name__}."
        elif logits.ndim != 2 or logits.shape[1] == 0:
            problem = f"logits must have the shape [batch, vocab] with vocab >= 1, got {list(logits.shape)}."
        elif logits.layout != torch.strided:
            layout = str(logits.layout).removeprefix("torch.")
            problem = f"logits must be a dense tensor, got the layout {layout}."
            problem += " Make them dense first, with logits.to_dense()."
        else:
            dtypes = ", ".join(sorted(self.dtypes))
            problem = f"Sampler {self.name!r} takes logits of {dtypes}, got {_name_of(logits.dtype)}."
        return ParameterError(problem, "logits")

    def _check_state(self, state: State | None, batch: int, device: torch.device) -> None:
        """Refuse a memory of another form, size or device than this call needs, since kernels read it by address."""
        if self.stateful and state is None:
            raise ParameterError(f"Sampler {self.name!r} has memory: pass state=sampler.new_state(batch).", "state")
        if state is None:
            return
        if not self.stateful:
            raise ParameterError(f"Sampler {self.name!r} has no memory: it takes no state.", "state")
        for name, (dtype, shape) in self._memory_form.items():
            tensor = state.get(name) if isinstance(state, Mapping) else None
            got = [getattr(tensor, of, None) for of in ("dtype", "shape", "device")]
            if got != [dtype, (batch, *shape), device]:
                raise _wrong_state(self.name, state, name, f"{_name_of(dtype)} {[batch, *shape]} on {device}")

    @cached_property
    def _memory_form(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """For each part of the memory its dtype, and the shape of one row."""
        import torch

        one = self.fresh_state(1, torch.device("cpu"))
        return {name: (tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in one.items()}

    def _raise_failure(self, call: str, error: Exception) -> NoReturn:
        """Raise an error of neurogen unchanged, and any other as a PluginError."""
        if isinstance(error, NeurogenError):
            raise error
        said = explained(error)
        where = "" if ", line " in said else where_written(self, call)
        raise PluginError(
            f"Sampler {self.name!r} ({self.origin}) failed in {call}: {said}.{where} "
            "This is an error of the plugin: update it or report it to its author, or choose another sampler."
        ) from error

    def _check_result(
        self, call: str, result: Any, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
    ) -> None:
        import torch

        if not isinstance(result, torch.Tensor):
            got = type(result).__name__
        elif result.dtype == dtype and result.shape == shape and result.device == device:
            return
        else:
            got = f"{result.dtype} {list(result.shape)} on {result.device}"
        raise ContractError(
            f"{call} of sampler {self.name!r} ({self.origin}) must return a tensor {dtype} {list(shape)} on {device}, "
            f"got {got}.{where_written(self, call)}"
        )

    def _check_ids(self, ids: Tensor, logits: Tensor, vocab: int) -> None:
        chosen = ids.tolist()
        if min(chosen) >= 0 and max(chosen) < vocab:
            return
        for row, token in enumerate(chosen):
            if not NO_TOKEN <= token < vocab:
                raise ContractError(
                    f"sample of sampler {self.name!r} ({self.origin}) returned the id {token} in row {row}; "
                    f"ids of this vocabulary are 0 to {vocab - 1}.{where_written(self, 'sample')}"
                )
        self._raise_for_rows([row for row, token in enumerate(chosen) if token == NO_TOKEN], logits, "sample")

    def _raise_for_rows(self, empty: list[int], logits: Tensor, call: str) -> None:
        """Blame the logits for rows without a result, unless those rows are valid: then the sampler is at fault."""
        if not empty:
            return
        wrong = [row for row in empty if _is_valid_row(logits[row])]
        if wrong:
            raise ContractError(
                f"{call} of sampler {self.name!r} ({self.origin}) kept no token in row(s) {wrong[:8]}, although their "
                f"logits are valid. A sampler keeps at least one token of a valid row.{where_written(self, call)}"
            )
        raise InvalidLogitsError(empty, self.name)


@cache
def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_per_row(name: str, value: Any, batch: int, device: torch.device) -> Tensor:
    import torch

    if isinstance(value, torch.Tensor):
        if value.dtype is torch.int64 and value.shape == (batch,) and value.device == device:
            return value.resolve_neg() if value.is_neg() else value
        if value.ndim > 0:
            raise ParameterError(
                f"{name} must be an int or an int64 tensor [{batch}] on {device}, "
                f"got {value.dtype} {list(value.shape)} on {value.device}.",
                name,
            )
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, int) or isinstance(number, bool) or number not in INT64:
        raise ParameterError(f"{name} must be an int of 64 bits or an int64 tensor [{batch}], got {value!r}.", name)
    return _filled(number, batch, device)


def _wrong_state(sampler: str, state: Any, name: str, wanted: str) -> ParameterError:
    found: Any = state.get(name) if isinstance(state, Mapping) else state
    if isinstance(state, Mapping) and name not in state:
        got = f"no {name!r}"
    elif hasattr(found, "dtype") and hasattr(found, "device"):
        got = f"{_name_of(found.dtype)} {list(found.shape)} on {found.device}"
    else:
        got = type(found).__name__
    return ParameterError(
        f"Sampler {sampler!r} remembers {name!r} of each row, {wanted}; got {got}. Pass what "
        "sampler.new_state(batch) gave for as many rows as the logits have, on their device.",
        "state",
    )


@lru_cache(maxsize=CACHED_BATCHES)
def _filled(number: int, batch: int, device: torch.device) -> Tensor:
    """One number for every row, int64 [batch]; kept for the next call, since making it costs as much as a small row."""
    import torch

    return torch.full((batch,), number, dtype=torch.int64, device=device)


def empty_rows(result: Tensor) -> list[int]:
    """Rows of probabilities or of a support without any token."""
    import numpy as np

    if result.device.type == "cpu":  # by NumPy: an operation of torch's that uses its threads hangs after a fork
        kept = (result.detach().numpy() > 0).any(axis=-1)
        return np.flatnonzero(~kept).tolist()
    return (~(result > 0).any(dim=-1)).nonzero().flatten().tolist()


def _is_valid_row(row: Tensor) -> bool:
    import torch

    return not bool(row.isnan().any()) and bool(torch.isfinite(row.max()))
