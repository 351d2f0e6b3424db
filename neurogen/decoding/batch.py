"""The rows that are decoded together, and what the model, the processors and the sampler are given for each.

`Batch` does what the steps of the loop in `engine` need. What the sampler is given changes only when a row joins or
leaves; in between, a step adds one to the positions in place and makes nothing anew. Knows no text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.contract.parameters import clamped
from neurogen.decoding.forward import ForwardPass
from neurogen.decoding.processing import Processing
from neurogen.decoding.request import RequestState, SampledToken
from neurogen.decoding.sampled import is_valid, sampled_tokens
from neurogen.errors import ParameterError

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler, State

__all__ = ["Batch", "sampler_arguments"]


class Batch:
    """The rows that are decoded together.

    Args:
        forward_pass: runs the model.
        sampler: chooses the tokens, for all rows at once.
        vocab_size: ids from here on are never drawn, though the logits may be wider.
        device: where the logits are.

    Attributes:
        rows: the requests, in the order of the logits' rows.
        ids: int64 on `device`, the sampled ids of each row that the model has not read yet.
    """

    def __init__(self, forward_pass: ForwardPass, sampler: Sampler, vocab_size: int, device: torch.device) -> None:
        self.rows: list[RequestState] = []
        self.ids: Tensor
        self.forward_pass = forward_pass
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._device = device
        self._state: State | None = None
        self._arguments: dict[str, Any] | None = None
        self._processing: list[Processing | None] = []
        self._refused: dict[int, ParameterError] = {}
        self._culprits: dict[int, Sequence[Processor]] = {}

    def forward(self, new: Sequence[RequestState], upcoming: tuple[int, ...] | None) -> Tensor:
        """Run the model over the last token of every row and over the prompts of new rows, which join.

        Args:
            new: the rows that join; may be empty if the batch has rows already.
            upcoming: the prompt that probably comes next.

        Returns:
            logits [rows, vocab]; those of the new rows come last.
        """
        logits = self.forward_pass.decode(self.ids) if self.rows else None
        if not new:
            assert logits is not None
            return logits[:, : self._vocab_size]
        running = [] if logits is None else [logits[:, : self._vocab_size].clone()]  # the prefill may overwrite them
        return torch.cat([*running, self.prefill(new, upcoming)])

    def prefill(self, new: Sequence[RequestState], upcoming: tuple[int, ...] | None) -> Tensor:
        """Run the prompts of new rows, which join; see `forward`. Returns their logits."""
        logits = self.forward_pass.prefill(new, upcoming)[:, : self._vocab_size]
        now = time.perf_counter()
        for row in new:
            row.prefilled_at = now
        if self._sampler.stateful:
            fresh = self._sampler.fresh_state(len(new), self._device)
            if self.rows and self._state is not None:
                fresh = {name: torch.cat([self._state[name], memory]) for name, memory in fresh.items()}
            self._state = fresh
        self.rows += new
        self._processing += [Processing(row.request) if row.request.processors else None for row in new]
        self._arguments = None
        return logits

    def process(self, logits: Tensor) -> Tensor:
        """The logits as the processors leave them, float32; the same tensor where no row has any.

        A row that a processor ends is -inf throughout.
        """
        self._refused.clear()
        if not any(self._processing):
            return logits
        processed = logits.to(torch.float32, copy=True)
        for i, processing in enumerate(self._processing):
            if processing is not None:
                try:
                    processing.process(processed[i])
                except ParameterError as error:  # this sequence cannot go on, the others can
                    processed[i] = float("-inf")
                    self._refused[i] = error
        self._settle(logits, processed)
        return processed

    def _settle(self, logits: Tensor, processed: Tensor) -> None:
        """For a row in which the processors left no valid token, drop one that may give way, or note the culprits."""
        self._culprits.clear()
        for i in (~processed.amax(dim=-1).isfinite()).nonzero().flatten().tolist():
            processing, model = self._processing[i], logits[i].float()
            if processing is not None and i not in self._refused and is_valid(model):
                self._culprits[i] = processing.settle(processed[i], model)
                self.rows[i].request.notices[:] = processing.notices

    @property
    def arguments(self) -> dict[str, Any]:
        """What `Sampler.sample` takes beside the logits for the rows' next tokens."""
        if self._arguments is None:
            self._arguments = sampler_arguments(self._sampler, self.rows, self._device)
            if self._state is not None:
                self._arguments["state"] = self._state
        return self._arguments

    def accept(self, ids: Tensor, logits: Tensor, processed: Tensor) -> list[SampledToken]:
        """Take the sampled ids, int64 [rows], and return what the step says about each.

        Raises:
            ContractError: see `sampled_tokens`.
        """
        self.ids = ids
        self.arguments["position"].add_(1)
        tokens = sampled_tokens(self._sampler, self.rows, ids, logits, processed, self._refused, self._culprits)
        if processed is not logits:
            for token, processing in zip(ids.tolist(), self._processing, strict=True):
                if processing is not None and token >= 0:
                    processing.accept(token)
        return tokens

    def retire(self) -> None:
        """Remove the finished rows and everything that belongs to them."""
        keep = [i for i, row in enumerate(self.rows) if not row.finished]
        if len(keep) == len(self.rows):
            return
        index = torch.tensor(keep, dtype=torch.int64, device=self._device)
        self.forward_pass.keep_rows(keep)
        self.rows = [self.rows[i] for i in keep]
        self.ids = self.ids[index]
        self._processing = [self._processing[i] for i in keep]
        if self._state is not None:
            self._state = {name: memory[index] for name, memory in self._state.items()}
        self._arguments = None


def sampler_arguments(sampler: Sampler, rows: Sequence[RequestState], device: torch.device) -> dict[str, Any]:
    """What a sampler without memory takes beside the logits for the rows' next tokens.

    Returns:
        `seed` and `position`, int64 [rows] on the device; where a row's parameters are not the sampler's own, these
        parameters for each row.
    """
    arguments: dict[str, Any] = {
        "seed": torch.tensor([row.request.seed for row in rows], device=device),
        "position": torch.tensor([len(row.prompt) + row.produced for row in rows], device=device),
    }
    for name, own in sampler.params.model_dump().items():
        if name in rows[0].settings:
            if rows[0].settings[name] != own:
                arguments[name] = rows[0].settings[name]
        elif any(row.numbers[name] != own for row in rows):
            arguments[name] = _per_row([row.numbers[name] for row in rows], device)
    return arguments


def _per_row(values: Sequence[int | float], device: torch.device) -> Tensor:
    whole = [clamped(value) for value in values if isinstance(value, int)]
    if len(whole) == len(values):
        return torch.tensor(whole, dtype=torch.int64, device=device)
    return torch.tensor(values, dtype=torch.float64, device=device)
