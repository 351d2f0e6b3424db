"""Continuous decoding, whatever runs the model: who waits joins as rows become free, who finishes leaves at once.

`ContinuousEngine` is the loop; a subclass says what a batch is. Knows no text and no tensors.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from neurogen.contract.parameters import INT64, is_whole
from neurogen.decoding.request import Drawn, FinishReason, Request, Row, Step
from neurogen.decoding.selection import row_of, values_of
from neurogen.errors import ParameterError

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.decoding.request import DecodableModel

__all__ = ["Column", "ContinuousEngine", "RunningBatch", "check_count", "check_request", "emit"]

Column = tuple[Sequence[Row], Sequence[Drawn]]
"""Rows, and the next token of each."""


class RunningBatch(Protocol):
    """The rows that are decoded together, and what belongs to them."""

    @property
    def rows(self) -> list[Row]:
        """The sequences."""

    def has_room(self, row: Row, before: int) -> bool:
        """Whether a row can join those that are there and `before` others, as far as memory goes."""

    def add(self, rows: Sequence[Row], upcoming: tuple[int, ...] | None) -> None:
        """Admit rows: run their prompts. `upcoming` is the prompt that is likely asked for next."""

    def columns(self) -> Iterator[Column]:
        """The next tokens: one for every row, or several, one after another. At least one row."""

    def drop_finished(self) -> None:
        """Take out the rows that are finished, with all that belongs to them."""

    def read_on(self) -> None:
        """Run the model over what was chosen; at least one row."""


class ContinuousEngine(ABC):
    """Decodes requests together. To be used from one thread at a time.

    Args:
        model: gives the logits.
        sampler: chooses the tokens.
        batch_size: the most sequences that are decoded together.

    Attributes:
        vocab_size: ids from here on have no text and are never drawn, though the model's logits may be wider.
        context_length: the most tokens of a prompt and what follows it.

    Raises:
        ParameterError: `batch_size` is below 1.
    """

    def __init__(self, model: DecodableModel, sampler: Sampler, batch_size: int) -> None:
        check_count("batch_size", batch_size)
        self.sampler = sampler
        self.batch_size = batch_size
        self.vocab_size = min(model.vocab_size, model.tokenizer.vocab_size)
        self.context_length = model.context_length
        self._running: list[tuple[RunningBatch, _Waiting]] = []

    @abstractmethod
    def _new_batch(self) -> RunningBatch:
        """A batch without rows."""

    @abstractmethod
    def _check(self, request: Request) -> None:
        """Refuse a request that cannot be decoded, by ParameterError."""

    def check(self, request: Request) -> dict[str, Any]:
        """Make sure that a request can be decoded.

        Returns:
            the value of every parameter of the sampler for this request.

        Raises:
            ParameterError: no token, a token the model does not have, more tokens than its context holds, or a value
                outside its domain.
        """
        self._check(request)
        return values_of(self.sampler, request)

    def generate(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Decode requests, yielding each token as it is chosen.

        Args:
            requests: a list or tuple is checked as a whole before the first token. Anything else is read when a row is
                free, one request ahead, each being checked as it is read.

        Raises:
            ParameterError: see `check`.
            ContractError, PluginError: the sampler does not do what it declared, or fails.
        """
        waiting = _Waiting(requests, self._row)
        if isinstance(requests, Sequence):
            waiting = _Waiting([self._row(request) for request in requests], lambda row: row)
        return self._steps(self._new_batch(), waiting)

    def cancel(self, key: Any) -> bool:
        """End the sequences whose request has this key; no token of theirs follows.

        Returns:
            whether there was one, in the batch or next to be admitted.
        """
        found = False
        for batch, waiting in self._running:
            for row in batch.rows:
                if row.request.key == key and not row.finished:
                    row.finished = found = True
            following = waiting.peek_if_read()
            if following is not None and following.request.key == key:
                waiting.pop()
                found = True
        return found

    def _steps(self, batch: RunningBatch, waiting: _Waiting) -> Iterator[Step]:
        """The loop.

        1. Admit: requests take the free rows; their prompts are run, equal ones once.
        2. Sample: the next token for every row, from the logits of step 1 or 5.
        3. Emit: the tokens leave as events; the receiver may cancel sequences.
        4. Drop: finished and cancelled rows leave the batch.
        5. Read on: one forward pass over the tokens just chosen.
        """
        running = (batch, waiting)
        self._running.append(running)
        try:
            while True:
                self._admit(batch, waiting)
                if not batch.rows:
                    return
                for rows, drawn in batch.columns():
                    yield from emit(rows, drawn)
                batch.drop_finished()
                if batch.rows:
                    batch.read_on()
        finally:
            self._running.remove(running)

    def _admit(self, batch: RunningBatch, waiting: _Waiting) -> None:
        newcomers: list[Row] = []
        while len(batch.rows) + len(newcomers) < self.batch_size:
            following = waiting.peek()
            if following is None or any(following.settings != row.settings for row in (batch.rows + newcomers)[:1]):
                break
            if batch.rows and not batch.has_room(following, len(newcomers)):
                break
            newcomers.append(waiting.pop())
        if newcomers:
            following = waiting.peek()
            batch.add(newcomers, following.prompt if following is not None else None)

    def _row(self, request: Request) -> Row:
        self._check(request)
        return row_of(self.sampler, request)


class _Waiting:
    """Requests that have no row yet, read and checked one ahead."""

    def __init__(self, requests: Iterable[Any], to_row: Callable[[Any], Row]) -> None:
        self._requests = iter(requests)
        self._to_row = to_row
        self._next: Row | None = None

    def peek(self) -> Row | None:
        """The next row, read now if it was not; None at the end."""
        if self._next is None:
            self._next = next(map(self._to_row, self._requests), None)
        return self._next

    def peek_if_read(self) -> Row | None:
        """The next row if it has been read."""
        return self._next

    def pop(self) -> Row:
        """Take the row that `peek` showed."""
        row, self._next = self._next, None
        assert row is not None
        return row


def emit(rows: Sequence[Row], drawn: Sequence[Drawn]) -> Iterator[Step]:
    """The tokens just chosen as events; rows that were cancelled meanwhile are passed over, those that end marked."""
    now = time.perf_counter()
    for row, new in zip(rows, drawn, strict=True):
        if row.finished:
            continue
        row.produced += 1
        reason = _finish_reason(row, new)
        row.finished = reason is not None
        yield Step(row.request, new.token_id, new.logprobs, reason, now - row.admitted, new.error)


def _finish_reason(row: Row, new: Drawn) -> FinishReason | None:
    if new.error is not None:
        return "error"
    if new.token_id in row.request.stop_ids:
        return "eos"
    return "length" if row.produced >= row.request.max_new_tokens else None


def check_count(name: str, value: Any) -> None:
    """Refuse what is not an integer of at least 1.

    Raises:
        ParameterError: it is none.
    """
    if not is_whole(value, range(1, INT64.stop)):
        raise ParameterError(f"{name} must be an integer >= 1, got {value!r}.", name)


def check_request(request: Request, model: DecodableModel) -> None:
    """Refuse a request that the model cannot continue.

    Raises:
        ParameterError: no token, one that the model does not have, or more than its context holds.
    """
    prompt, new, limit = request.prompt_ids, request.max_new_tokens, model.context_length
    if not prompt:
        raise ParameterError(
            "The prompt has no token, and there is nothing to continue: this model has no start-of-sequence token that "
            "could stand for an empty text. Give at least one character.",
            "prompt_ids",
        )
    if min(prompt) < 0 or max(prompt) >= model.vocab_size:
        raise ParameterError(
            f"prompt_ids must be in [0, {model.vocab_size - 1}], the model's vocabulary.", "prompt_ids"
        )
    if not is_whole(new, range(1, INT64.stop)):
        raise ParameterError(f"max_new_tokens must be an integer >= 1, got {new!r}.", "max_new_tokens")
    if len(prompt) + new > limit:
        raise ParameterError(_too_long(len(prompt), new, limit, model.name), "max_new_tokens")
    if not is_whole(request.seed):
        raise ParameterError(f"seed must be an integer of 64 bits, got {request.seed!r}.", "seed")
    if request.logprobs is not None and not is_whole(request.logprobs, range(INT64.stop)):
        raise ParameterError(f"logprobs must be an integer >= 0, got {request.logprobs!r}.", "logprobs")


def _too_long(prompt: int, new: int, limit: int, name: str) -> str:
    advice = (
        f"ask for at most {limit - prompt} new tokens, or shorten the prompt"
        if prompt < limit
        else "shorten the prompt"
    )
    return (
        f"The prompt has {prompt} tokens and max_new_tokens is {new}: {prompt + new} tokens, but the context of "
        f"{name!r} holds {limit}. To fit, {advice}."
    )
