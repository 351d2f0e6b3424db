"""The contract between the engine and a sampler: `Sampler`, and `TruncationSampler` for the common case.

Users call `sample`, `probs` and `support`, which check their arguments and the results. Each calls the method
that an author writes, of the same name with an underscore: `_sample`, `_probs` and `_support` receive checked tensors.
By default these call the kernel modules named in `backends`; the author of a `TruncationSampler` writes only `keep`.
Importing this module imports neither torch nor numba, so that listing samplers stays fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from neurogen.contract.checks import CACHED_BATCHES, CheckedCalls, State, empty_rows, one_per_row
from neurogen.contract.checks import NO_TOKEN as NO_TOKEN  # engines import it from here
from neurogen.contract.cuda_extra import require_cuda_extra
from neurogen.contract.display import Displayed
from neurogen.contract.old_names import accept_old_names
from neurogen.contract.parameters import RowParams, SamplerParams, build_params, row_params
from neurogen.errors import ContractError, PluginError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neurogen.contract.stages import SamplerStage

__all__ = ["API_VERSION", "Sampler", "State", "TruncationSampler"]

API_VERSION = 1
"""Version of this contract. A plugin states the one it was written for as `api_version`."""

DTYPES = frozenset({"float32", "float16", "bfloat16"})


class Sampler(CheckedCalls, Displayed):
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
            exp(x / temperature) renormalised over the support, also `probs(logits, **params)`, float64 [vocab]. The
            conformance kit compares the sampler with it.
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
        seeds = one_per_row("seed", seed, batch, device)
        positions = one_per_row("position", position, batch, device)
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
        """The stages of sampling one row, for explanations; the token is drawn from what the last stage leaves.

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

    # How both are joined; the checks are in `checks`.

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
            self._raise_for_rows(empty_rows(result), logits, call)
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
