"""The contract between the engine and a sampler: `Sampler`, and `TruncationSampler` for the common case.

Users call `sample`, `probs` and `support`, which check their arguments and the results. Behind each of them stands the
method that an author writes, of the same name with an underscore: `_sample`, `_probs` and `_support` receive checked
tensors. By default they call the kernel modules named in `backends`; the author of a `TruncationSampler` writes `keep`
alone. Importing this module imports neither torch nor numba, so that listing samplers stays fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from neurogen.contract.cuda_extra import require_cuda_extra
from neurogen.contract.display import Displayed
from neurogen.contract.mistakes import explained, where_written
from neurogen.contract.old_names import accept_old_names
from neurogen.contract.parameters import INT64, RowParams, SamplerParams, build_params, row_params
from neurogen.errors import ContractError, InvalidLogitsError, NeurogenError, ParameterError, PluginError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neurogen.contract.stages import SamplerStage

__all__ = ["API_VERSION", "Sampler", "State", "TruncationSampler"]

API_VERSION = 1
"""Version of this contract. A plugin states the one it was written for as `api_version`."""

NO_TOKEN = -1
"""The id a kernel gives a row that has no valid distribution."""

DTYPES = frozenset({"float32", "float16", "bfloat16"})
CACHED_BATCHES = 32

State = dict[str, "Tensor"]
"""Memory of a stateful sampler: tensors whose first dimension is the batch, so that an engine can move rows."""


class Sampler(Displayed):
    """Turns logits into token ids. Subclass it, declare, and implement; see `TruncationSampler` for the short way.

    Declarations (class attributes):
        name: what users call it; equal to the entry-point name.
        api_version: the `neurogen.API_VERSION` it was written for.
        deterministic: the result depends on the logits alone, never on seed or position.
        stateful: has memory; see `new_state`.
        backends: device type -> module with functions `sample(logits, seed, position, params)` (and state),
            `probs(logits, params)` and `support(logits, params)`. Imported when first needed on that device.
        dtypes: names of the torch dtypes it accepts.
        reference: module with what the sampler means in float64 on one row, slow and readable: `support(logits,
            **params)` gives bool [vocab] for a NumPy row [vocab]. Where the distribution is another than the weights
            exp(x / temperature) renormalised over the support, also `probs(logits, **params)`, float64 [vocab]. What
            the conformance kit holds the sampler against.
        truncates: all it does is to remove tokens, so that it can stand before another in a chain. False for one that
            changes the temperature, removes tokens by chance, or has memory.
        Params: its parameters, a `SamplerParams`.

    Args:
        **params: values for `Params`; what is not given takes its default.

    Raises:
        ParameterError: unknown name or value outside its domain.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    deterministic: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    backends: ClassVar[Mapping[str, str]] = {}
    dtypes: ClassVar[frozenset[str]] = DTYPES
    reference: ClassVar[str] = ""
    truncates: ClassVar[bool] = True
    Params: ClassVar[type[SamplerParams]] = SamplerParams

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        accept_old_names(cls)

    def __init__(self, /, **params: Any) -> None:
        self.params = build_params(self.name, self.Params, params)
        self.origin = f"class {type(self).__module__}.{type(self).__qualname__}"
        self._row_cache: dict[tuple[int, Any], RowParams] = {}

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.params.model_dump().items())
        return f"{self.name}({values})"

    # What users call.

    def sample(
        self,
        /,
        logits: Tensor,
        *,
        seed: int | Tensor = 0,
        position: int | Tensor = 0,
        check: bool = True,
        state: State | None = None,
        **params: Any,
    ) -> Tensor:
        """Choose one token a row.

        Args:
            logits: [batch, vocab], float32, float16 or bfloat16, any strides, CPU or CUDA. Never modified.
            seed: an int for all rows, or an int64 tensor [batch] on the device of `logits`.
            position: likewise: index within its sequence of the token to be chosen, prompt included.
            check: raise for rows without a valid distribution; on CUDA this waits for the device. With False such
                rows get the id -1.
            state: for stateful samplers: made by `new_state`, updated in place.
            **params: a parameter for this call, one number or a tensor [batch] with one value a row.

        Returns:
            int64 [batch] on the device of `logits`.

        Raises:
            ParameterError: an argument of the wrong shape, dtype, device or outside its domain.
            InvalidLogitsError: with `check`, when a row holds NaN, +inf, or only -inf.
            ContractError, PluginError: when the plugin does not do what it declared, or fails.
        """
        logits = self._checked_logits(logits)
        (batch, vocab), device = logits.shape, logits.device
        rows = self._rows(params, batch, device)
        self._check_state(state, batch, device)
        seeds = _per_row("seed", seed, batch, device)
        positions = _per_row("position", position, batch, device)
        if batch == 0:
            return seeds.new_empty(0)
        arguments = (logits, seeds, positions, rows) if state is None else (logits, seeds, positions, rows, state)
        try:
            ids = self._sample(*arguments)
        except Exception as error:
            self._raise_failure("sample", error)
        self._check_result("sample", ids, seeds.dtype, (batch,), device)
        if check:
            self._check_ids(ids, logits, vocab)
        return ids

    def probs(self, /, logits: Tensor, *, check: bool = True, state: State | None = None, **params: Any) -> Tensor:
        """The distribution that `sample` draws from.

        Args:
            logits, check, **params: as for `sample`. With `check=False` an invalid row is all zeros.
            state: of a sampler with memory: what the next token of each row is drawn from. It is not changed; without
                it, the first token of a sequence is meant.

        Returns:
            float32 [batch, vocab] on the device of `logits`; at temperature 0 one-hot.
        """
        import torch

        return self._whole_row("probs", self._probs, torch.float32, logits, check, state, params)

    def support(self, /, logits: Tensor, *, check: bool = True, state: State | None = None, **params: Any) -> Tensor:
        """The tokens that can be drawn.

        Args:
            logits, check, **params: as for `sample`. With `check=False` an invalid row is all False.
            state: as for `probs`.

        Returns:
            bool [batch, vocab] on the device of `logits`.
        """
        import torch

        return self._whole_row("support", self._support, torch.bool, logits, check, state, params)

    def stages(
        self, /, logits: Tensor, *, seed: int = 0, position: int = 0, state: State | None = None, **params: Any
    ) -> list[SamplerStage]:
        """What is done to one row, step by step, for explanations; the last stage leaves what the token is drawn from.

        By default the temperature and then one truncation. A sampler that does more, or in another order, overrides it.

        Args:
            logits: [1, vocab], valid.
            seed, position: as for `sample`: a sampler that decides by chance tells what was decided.
            state: of a sampler with memory, before the token; not changed.
            **params: as for `sample`, one number each.
        """
        from neurogen.contract.stages import SamplerStage, named, tempered

        values = {**self.params.model_dump(), **params}
        kept = self.support(logits, state=state, **params)
        probs = self.probs(logits, state=state, **params).double()
        truncation = SamplerStage("truncation", named(self.name, values), kept, probs)
        return [*tempered(logits, values.get("temperature", 1.0)), truncation]

    def new_state(self, batch: int) -> State:
        """Fresh memory for `batch` sequences of a stateful sampler.

        Raises:
            ContractError: the sampler declares no memory.
        """
        raise ContractError(f"Sampler {self.name!r} ({self.origin}) has no memory (stateful is False).")

    def fresh_state(self, batch: int, device: torch.device) -> State:
        """What `new_state` gives, on a device: for an engine.

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

    # What authors write.

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: State) -> Tensor:
        """Choose one token a row, for `sample`; by default the `sample` of the backend's module.

        Args:
            logits: [batch >= 1, vocab >= 1] of a declared dtype on a declared device; do not modify.
            seed, position: int64 [batch].
            params: one attribute a parameter; int64 or float64 [batch].
            *state: for stateful samplers, the state to update.

        Returns:
            int64 [batch]; -1 for a row without a valid distribution.
        """
        return self._backend(logits).sample(logits, seed, position, params, *state)  # type: ignore[no-any-return]

    def _probs(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        """float32 [batch, vocab], the distribution, for `probs`; by default the `probs` of the backend's module.

        A sampler with memory may be given its state, not to be changed; without it, the first token is meant.
        """
        return self._backend(logits).probs(logits, params, *state)  # type: ignore[no-any-return]

    def _support(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        """bool [batch, vocab], for `support`; by default the `support` of the backend's module. See `_probs`."""
        return self._backend(logits).support(logits, params, *state)  # type: ignore[no-any-return]

    # Checks at the border.

    def _backend(self, logits: Tensor) -> Any:
        module = self.backends.get("cpu" if logits.is_cpu else logits.device.type)
        if module is None:
            raise ContractError(
                f"Sampler {self.name!r} ({self.origin}) supports {', '.join(self.backends) or 'no device'}; "
                f"these logits are on {logits.device}. Move them, or choose another sampler."
            )
        return sys.modules.get(module) or _kernels(module, on_cuda=logits.is_cuda)

    def _rows(self, overrides: Mapping[str, Any], batch: int, device: torch.device) -> RowParams:
        if overrides:
            return row_params(self.name, self.params, overrides, batch, device)
        rows = self._row_cache.get((batch, device))
        if rows is None:
            if len(self._row_cache) >= CACHED_BATCHES:
                self._row_cache.clear()
            rows = self._row_cache[batch, device] = row_params(self.name, self.params, {}, batch, device)
        return rows

    def _checked_logits(self, logits: Any) -> Tensor:
        """The logits without their history. Torch is asked each thing once: this is done at every call."""
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
        """What is wrong with logits that `_checked_logits` does not take."""
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
        """Refuse a memory that is not of this sampler and these rows: kernels read it by address."""
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
        """Raise an error of neurogen as it is, and any other as one of the plugin."""
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

    def _whole_row(
        self,
        call: str,
        function: Callable[..., Tensor],
        dtype: torch.dtype,
        logits: Tensor,
        check: bool,
        state: State | None,
        params: Mapping[str, Any],
    ) -> Tensor:
        import torch

        logits = self._checked_logits(logits)
        rows = self._rows(params, logits.shape[0], logits.device)
        if state is not None:
            self._check_state(state, logits.shape[0], logits.device)
        if logits.shape[0] == 0:
            return torch.empty(logits.shape, dtype=dtype, device=logits.device)
        try:
            result = function(logits, rows) if state is None else function(logits, rows, state)
        except Exception as error:
            self._raise_failure(call, error)
        self._check_result(call, result, dtype, logits.shape, logits.device)
        if check:
            self._raise_for_rows(_empty_rows(result), logits, call)
        return result


accept_old_names(Sampler)


class TruncationSampler(Sampler):
    """A sampler that removes tokens and draws from the rest by probability: the author writes `keep` alone.

    `Params` must have a `temperature`. Temperature 0, invalid rows, drawing with (seed, position) and `probs` are done
    here, by neurogen's kernels on the CPU and on CUDA; `keep` never sees a temperature of 0.
    """

    backends: ClassVar[Mapping[str, str]] = {
        "cpu": "neurogen.kernels.temperature.cpu",
        "cuda": "neurogen.kernels.temperature.cuda",
    }

    def keep(self, logits: Tensor, params: RowParams) -> Tensor:
        """Which tokens can be drawn.

        Args:
            logits: [batch, vocab], to be divided by `params.temperature[:, None]` where the definition is one of
                probabilities. Rows with NaN or +inf may occur; what is returned for them does not matter.
            params: one attribute a parameter; int64 or float64 [batch].

        Returns:
            bool [batch, vocab]; at least one True in a valid row.
        """
        raise PluginError(f"Sampler {self.name!r} ({self.origin}) does not implement keep().")

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._sample(self._masked(logits, params), seed, position, params, *state)

    def _probs(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._probs(self._masked(logits, params), params, *state)

    def _support(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._support(self._masked(logits, params), params, *state)

    def _masked(self, logits: Tensor, params: RowParams) -> Tensor:
        """The logits with -inf for every token removed; NaN and +inf stay, rows at temperature 0 stay whole."""
        import torch

        warm = RowParams(**vars(params))
        warm.temperature = torch.where(params.temperature > 0, params.temperature, 1.0)
        mask = self.keep(logits, warm)
        self._check_result("keep", mask, torch.bool, logits.shape, logits.device)
        removed = ~mask & (logits < torch.inf) & (params.temperature > 0)[:, None]
        return logits.masked_fill(removed, -torch.inf)


@cache
def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kernels(module: str, *, on_cuda: bool) -> Any:
    """The module of kernels of a backend.

    Raises:
        MissingExtraError: it is for CUDA, and what compiles kernels for that is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        if on_cuda:  # a plugin may import Numba's own parts before those of neurogen, which say so themselves
            require_cuda_extra()
        raise


def _per_row(name: str, value: Any, batch: int, device: torch.device) -> Tensor:
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


def _empty_rows(result: Tensor) -> list[int]:
    """Rows of probabilities or of a support without any token."""
    import numpy as np

    if result.device.type == "cpu":  # by NumPy: an operation of torch's that uses its threads hangs after a fork
        kept = (result.detach().numpy() > 0).any(axis=-1)
        return np.flatnonzero(~kept).tolist()
    return (~(result > 0).any(dim=-1)).nonzero().flatten().tolist()


def _is_valid_row(row: Tensor) -> bool:
    import torch

    return not bool(row.isnan().any()) and bool(torch.isfinite(row.max()))
