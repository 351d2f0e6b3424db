"""What vLLM loads: one logits processor for both of its model runners.

Translates what vLLM says about its batch into rows; what is chosen, and how, is in `rows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

import neurogen
from neurogen_vllm.request import check_request, sampler_request
from neurogen_vllm.rows import Choosing, Parked, Row

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2
except ImportError:  # a vLLM without the second model runner
    LogitsProcessorV2 = LogitsProcessor

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

__all__ = ["NeurogenLogitsProcessor", "PersistentBatch", "RequestSlots"]

_BASES = (LogitsProcessor,) if LogitsProcessorV2 is LogitsProcessor else (LogitsProcessor, LogitsProcessorV2)


class _Validating:
    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that cannot be sampled as it asks.

        Raises:
            ValueError: with neurogen's message; vLLM makes it its own error, and its server answers 400.
        """
        try:
            check_request(sampling_params)
            request = sampler_request(sampling_params)
            if request is not None:
                _check_device(request.sampler)
        except neurogen.NeurogenError as error:
            raise ValueError(str(error)) from error


class NeurogenLogitsProcessor(_Validating, *_BASES):  # type: ignore[misc]
    """The entry point. Making one gives the processor of the model runner that asks."""

    def __new__(cls, vllm_config: Any, *rest: Any) -> Any:
        """The first runner asks with (config, device, is_pin_memory), the second with (config, states)."""
        return PersistentBatch(vllm_config, *rest) if len(rest) == 2 else RequestSlots(vllm_config, *rest)


class PersistentBatch(_Validating, LogitsProcessor):
    """For the first model runner, which says what joined, left and moved in its batch."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, Row] = {}
        self._parked = Parked()
        self._choosing = Choosing()

    def is_argmax_invariant(self) -> bool:
        """False: it is applied to greedy requests too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: removals, then additions, then moves."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._put(index, None)
        for index, params, prompt, output in batch_update.added:
            row = self._parked.row_of(params)
            if row is not None:
                row.output, row.prompt_length = output, len(prompt or ())
            self._put(index, row)
        for source, target, direction in batch_update.moved:
            row, other = self._rows.pop(source, None), self._rows.pop(target, None)
            self._put(target, row)
            if direction == MoveDirectionality.SWAP:
                self._put(source, other)
            else:
                self._parked.put(other)

    def apply(self, logits: Tensor) -> Tensor:
        """Leave in each row of ours the token that its sampler chooses."""
        if not self._rows:
            return logits
        return self._choosing(logits, sorted(self._rows.items(), key=lambda item: item[0]), None, frozenset())

    def _put(self, index: int, row: Row | None) -> None:
        self._parked.put(self._rows.pop(index, None))
        if row is not None:
            self._rows[index] = row


class RequestSlots(_Validating, LogitsProcessorV2):  # type: ignore[misc, valid-type]
    """For the second model runner, where a request keeps its slot and every step says which rows are whose."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self._states = req_states
        self._speculative = vllm_config.speculative_config is not None
        self._rows: dict[int, Row] = {}
        self._parked = Parked()
        self._choosing = Choosing()

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take a request into a slot; whether it is one of ours."""
        self._parked.put(self._rows.pop(req_idx, None))
        row = self._parked.row_of(sampling_params)
        if row is not None:
            if self._speculative and row.sampler is not None and row.sampler.stateful:
                row.sampler = None  # drafts are several choices at once, and a memory is of one
            self._rows[req_idx] = row
        return row is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Leave in each row of ours the token that its sampler chooses."""
        slots = ctx.idx_mapping_np.tolist()
        if len(slots) != len(logits):  # drafts: several rows a request
            slots = ctx.expanded_idx_mapping.tolist()
        rows = [(index, self._rows[slot]) for index, slot in enumerate(slots) if slot in self._rows]
        if not rows:
            return logits
        return self._choosing(logits, rows, ctx.pos.to(torch.int64) + 1, self._unfinished_prompts(slots, ctx))

    def _unfinished_prompts(self, slots: list[int], ctx: LogitsContext) -> frozenset[int]:
        """Rows whose prompt is not read to its end, so that no token follows yet."""
        if len(slots) != len(ctx.seq_lens_upper_bound_np):
            return frozenset()
        lengths, wanted = ctx.seq_lens_upper_bound_np.tolist(), self._states.prefill_len.np
        return frozenset(i for i, slot in enumerate(slots) if lengths[i] < wanted[slot])


def _check_device(sampler: neurogen.Sampler) -> None:
    device, backends = current_platform.device_type, type(sampler).backends
    if type(sampler)._sample is neurogen.Sampler._sample and device not in backends:
        raise neurogen.ContractError(
            f"Sampler {sampler.name!r} runs on {', '.join(backends)}, and this vLLM on {device}. Choose another."
        )
