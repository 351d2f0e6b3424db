"""From logits to tokens, for the sequences that are decoded together: processors, then the sampler, then its answer.

Knows the rows and their parameters, but neither the model nor its keys and values: every engine chooses its tokens
here. What the sampler is given changes only when a row joins or leaves; in between, a step adds one to the positions in
place and makes nothing anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.contract.mistakes import where_written
from neurogen.contract.parameters import NUMBERS, build_params, clamped
from neurogen.contract.sampler import NO_TOKEN
from neurogen.decoding.order import largest
from neurogen.decoding.processing import Processing, blamed
from neurogen.decoding.request import Drawn, Observer, Request, Row, TokenLogprobs
from neurogen.errors import ContractError, InvalidLogitsError, ParameterError

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler, State

__all__ = ["Selection", "row_of", "values_of"]


def values_of(sampler: Sampler, request: Request) -> dict[str, Any]:
    """The value of every parameter of the sampler for a request.

    Raises:
        ParameterError: a value outside its domain.
    """
    own = sampler.params
    return build_params(sampler.name, type(own), own.model_dump() | dict(request.params)).model_dump()


def row_of(sampler: Sampler, request: Request) -> Row:
    """A request as a row to come.

    Raises:
        ParameterError: a value outside its domain.
    """
    values = values_of(sampler, request)
    fields = type(sampler.params).model_fields
    numbers = {name: value for name, value in values.items() if fields[name].annotation in NUMBERS}
    settings = {name: value for name, value in values.items() if name not in numbers}
    return Row(request, numbers, settings)


class Selection:
    """Chooses the next token of every row.

    Args:
        sampler: chooses the tokens, for all rows at once.
        vocab_size: ids from here on are never drawn, though the logits may be wider.
        device: where the logits are.
        observer: is shown every step.

    Attributes:
        rows: the sequences, in the order of the logits' rows.
        ids: int64 [rows] on `device`, the tokens chosen last.
    """

    def __init__(
        self, sampler: Sampler, vocab_size: int, device: torch.device, observer: Observer | None = None
    ) -> None:
        self.rows: list[Row] = []
        self.ids: Tensor
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._device = device
        self._observer = observer
        self._state: State | None = None
        self._arguments: dict[str, Any] | None = None
        self._processing: list[Processing | None] = []
        self._refused: dict[int, ParameterError] = {}
        self._culprits: dict[int, Sequence[Processor]] = {}

    @torch.inference_mode()
    def add(self, rows: Sequence[Row]) -> None:
        """Let rows join behind those that are there."""
        if self._sampler.stateful:
            fresh = self._sampler.fresh_state(len(rows), self._device)
            if self.rows and self._state is not None:
                fresh = {name: torch.cat([self._state[name], new]) for name, new in fresh.items()}
            self._state = fresh
        self.rows += rows
        self._processing += [Processing(row.request) if row.request.processors else None for row in rows]
        self._arguments = None

    @torch.inference_mode()
    def keep(self, keep: Sequence[int]) -> None:
        """Let all rows leave but these, with all that belongs to them."""
        index = torch.tensor(keep, dtype=torch.int64, device=self._device)
        self.rows = [self.rows[i] for i in keep]
        self._processing = [self._processing[i] for i in keep]
        self.ids = self.ids[index]
        if self._state is not None:
            self._state = {name: memory[index] for name, memory in self._state.items()}
        self._arguments = None

    @torch.inference_mode()
    def choose(self, logits: Tensor) -> list[Drawn]:
        """Choose the next token of every row.

        Args:
            logits: [rows, >= vocab_size], the model's; not modified.

        Raises:
            ContractError, PluginError: the sampler or a processor does not do what it declared, or fails.
        """
        if self._arguments is None:
            self._arguments = self.arguments()
        logits = logits[:, : self._vocab_size]
        processed = self._processed(logits)
        # check=False: the ids are looked at here, where they are read anyway, so that nothing waits for a GPU twice.
        self.ids = self._sampler.sample(processed, check=False, **self._arguments)
        self._arguments["position"].add_(1)
        drawn = self._drawn(logits, processed)
        if processed is not logits:
            self._accept(self.ids.tolist())
        if self._observer is not None:
            self._observer(self.rows, logits, processed, drawn)
        return drawn

    @torch.inference_mode()
    def report(self, ids: Tensor, logits: Tensor) -> list[Drawn]:
        """What `choose` would say of tokens that were chosen elsewhere; for rows without processors.

        Args:
            ids: int64 [rows], -1 where the logits gave none.
            logits: [rows, >= vocab_size], the model's, that they were chosen from.

        Raises:
            ContractError: an id that cannot be.
        """
        self.ids = ids
        logits = logits[:, : self._vocab_size]
        return self._drawn(logits, logits)

    def _drawn(self, logits: Tensor, processed: Tensor) -> list[Drawn]:
        """What `ids` are worth."""
        logprobs = self._logprobs(logits)
        tokens = self.ids.tolist()
        if 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            return [Drawn(token, info) for token, info in zip(tokens, logprobs, strict=True)]
        return [self._checked(i, token, logits, processed, logprobs[i]) for i, token in enumerate(tokens)]

    def _processed(self, logits: Tensor) -> Tensor:
        """The logits as the processors leave them, float32; the same tensor where no row has any.

        A row that a processor refuses has nothing left, and its error in `_refused`.
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
        """Where the processors have left a row nothing valid, let one give way, or note which are to blame."""
        self._culprits.clear()
        for i in (~processed.amax(dim=-1).isfinite()).nonzero().flatten().tolist():
            processing, model = self._processing[i], logits[i].float()
            if processing is not None and i not in self._refused and _is_valid(model):
                self._culprits[i] = processing.settle(processed[i], model)
                self.rows[i].request.notices[:] = processing.notices

    def _accept(self, tokens: Sequence[int]) -> None:
        for token, processing in zip(tokens, self._processing, strict=True):
            if processing is not None and token >= 0:
                processing.accept(token)

    def arguments(self) -> dict[str, Any]:
        """What `Sampler.sample` takes beside the logits for the rows' next tokens.

        Returns:
            `seed` and `position`, int64 [rows] on the device; the state; where a row's parameters are not the
            sampler's own, parameters a row.
        """
        device = self._device
        arguments: dict[str, Any] = {
            "seed": torch.tensor([row.request.seed for row in self.rows], device=device),
            "position": torch.tensor([len(row.prompt) + row.produced for row in self.rows], device=device),
        }
        if self._state is not None:
            arguments["state"] = self._state
        for name, own in self._sampler.params.model_dump().items():
            if name in self.rows[0].settings:
                if self.rows[0].settings[name] != own:
                    arguments[name] = self.rows[0].settings[name]
            elif any(row.numbers[name] != own for row in self.rows):
                arguments[name] = self._column(name)
        return arguments

    def _column(self, name: str) -> Tensor:
        values = [row.numbers[name] for row in self.rows]
        whole = all(isinstance(value, int) for value in values)
        if whole:
            values = [clamped(value) for value in values]
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float64, device=self._device)

    def _logprobs(self, logits: Tensor) -> list[TokenLogprobs | None]:
        result: list[TokenLogprobs | None] = [None] * len(self.rows)
        asking = [i for i, row in enumerate(self.rows) if row.request.logprobs is not None]
        if not asking:
            return result
        logs = torch.log_softmax(logits[asking].float(), dim=-1)
        chosen = logs.gather(1, self.ids[asking].clamp(min=0).unsqueeze(1)).flatten().tolist()
        for i, row, logprob in zip(asking, logs, chosen, strict=True):
            result[i] = TokenLogprobs(logprob, _most_probable(row, self.rows[i].request.logprobs or 0))
        return result

    def _checked(self, row: int, token: int, logits: Tensor, processed: Tensor, info: TokenLogprobs | None) -> Drawn:
        """Blame the logits or the processors for a row without a token, the sampler for an id that cannot be."""
        if row in self._refused:
            return Drawn(NO_TOKEN, error=self._refused[row])
        if 0 <= token < self._vocab_size:
            return Drawn(token, info)
        request, sampler = self.rows[row].request, self._sampler
        if token != NO_TOKEN:
            raise ContractError(
                f"Sampler {sampler.name!r} ({sampler.origin}) returned the id {token} for request {request.key!r}; ids "
                f"of this vocabulary are 0 to {self._vocab_size - 1}.{where_written(sampler, 'sample')}"
            )
        if _is_valid(processed[row]):
            raise ContractError(
                f"Sampler {sampler.name!r} ({sampler.origin}) kept no token for request {request.key!r}, although the "
                "logits are valid. A sampler keeps at least one token of a valid row."
                f"{where_written(sampler, 'sample')}"
            )
        error = InvalidLogitsError([row], sampler.name)
        error.args = (self._blame(row, _is_valid(logits[row]), f" for request {request.key!r}"),)
        error.reason = self._blame(row, _is_valid(logits[row]), "")
        return Drawn(NO_TOKEN, error=error)

    def _blame(self, row: int, model_is_right: bool, which: str) -> str:
        request, produced, sampler = self.rows[row].request, self.rows[row].produced, self._sampler
        if model_is_right:
            return (
                f"Nothing is left to draw{which} after {produced} new token(s): "
                f"{blamed(self._culprits.get(row) or request.processors)}"
            )
        return (
            f"The model's logits{which} have no valid distribution after "
            f"{produced} new token(s): they hold NaN or +inf, or nothing above -inf, so sampler "
            f"{sampler.name!r} cannot draw. Often the number format overflows: try dtype float32 or bfloat16."
        )


def _is_valid(row: Tensor) -> bool:
    return bool(torch.isfinite(row.max()))  # max is NaN if any value is


def _most_probable(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The first `count` tokens of [vocab] and their log-probabilities, without those of probability zero."""
    if count == 0:
        return ()
    values, ids = largest(logprobs, count)
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple((token, value) for token, value in pairs if value > float("-inf"))
