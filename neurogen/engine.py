"""Token ids to token ids: continuous decoding of many sequences with one model and one sampler. Knows no text.

Requests wait until a row of the batch is free, are prefilled, and join those that are being decoded; whoever finishes
leaves at once. `batch.py` holds the rows and their tensors, `kvcache.py` their keys and values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from neurogen.batch import Batch, Prefill
from neurogen.errors import ParameterError
from neurogen.kvcache import check_cache
from neurogen.parameters import INT64, is_whole
from neurogen.request import Drawn, FinishReason, Request, Row, Step, TokenLogprobs
from neurogen.selection import Observer, row_of, values_of

if TYPE_CHECKING:
    from neurogen.models import LanguageModel
    from neurogen.request import DecodableModel
    from neurogen.sampler import Sampler

__all__ = ["Engine", "FinishReason", "Request", "Step", "TokenLogprobs"]


class Engine:
    """Decodes requests with a model and a sampler.

    A sequence's tokens do not depend on what is decoded beside it, up to the rounding of the model's own arithmetic,
    which may differ between batch sizes. To be used from one thread at a time.

    Args:
        model: gives the logits.
        sampler: chooses the tokens.
        batch_size: the most sequences that are decoded together.
        observer: is shown every step; see `neurogen.selection.Observer`.

    Attributes:
        vocab_size: ids from here on have no text and are never drawn, though the model's logits may be wider.

    Raises:
        ParameterError: `batch_size` is below 1.
        ModelError: the model's memory is not keys and values.
    """

    def __init__(
        self, model: LanguageModel, sampler: Sampler, *, batch_size: int = 8, observer: Observer | None = None
    ) -> None:
        if not is_whole(batch_size, range(1, INT64.stop)):
            raise ParameterError(f"batch_size must be an integer >= 1, got {batch_size!r}.", "batch_size")
        check_cache(model)
        self.model = model
        self.sampler = sampler
        self.batch_size = batch_size
        self.observer = observer
        self.vocab_size = min(model.vocab_size, model.tokenizer.vocab_size)
        self._running: list[tuple[Batch, Waiting]] = []

    def check(self, request: Request) -> dict[str, Any]:
        """Make sure that a request can be decoded.

        Returns:
            the value of every parameter of the sampler for this request.

        Raises:
            ParameterError: no token, a token the model does not have, more tokens than its context holds, or a value
                outside its domain.
        """
        check_request(request, self.model)
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
        waiting = Waiting(requests, self._row)
        if isinstance(requests, Sequence):
            waiting = Waiting([self._row(request) for request in requests], lambda row: row)
        return self._steps(Batch(self.model, self.sampler, self.vocab_size, self.observer), waiting)

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

    def _steps(self, batch: Batch, waiting: Waiting) -> Iterator[Step]:
        """The loop.

        1. Admit: requests take the free rows; prefill runs their prompts, equal ones once.
        2. Sample: one token for every row, from the logits of step 1 or 5.
        3. Emit: the tokens leave as events; the receiver may cancel sequences.
        4. Drop: finished and cancelled rows leave the batch with their keys and values.
        5. Decode: one forward pass over the tokens just chosen.
        """
        running = (batch, waiting)
        prefill = Prefill(self.model)
        self._running.append(running)
        try:
            while True:
                self._admit(batch, waiting, prefill)
                if not batch.rows:
                    return
                yield from emit(batch.rows, batch.sample())
                batch.drop_finished()
                if batch.rows:
                    batch.decode()
        finally:
            self._running.remove(running)

    def _admit(self, batch: Batch, waiting: Waiting, prefill: Prefill) -> None:
        newcomers: list[Row] = []
        while len(batch.rows) + len(newcomers) < self.batch_size:
            following = waiting.peek()
            if following is None or any(following.settings != row.settings for row in (batch.rows + newcomers)[:1]):
                break
            newcomers.append(waiting.pop())
        if newcomers:
            following = waiting.peek()
            upcoming = following.prompt if following is not None else None
            batch.add(newcomers, *prefill([row.prompt for row in newcomers], upcoming))

    def _row(self, request: Request) -> Row:
        check_request(request, self.model)
        return row_of(self.sampler, request)


class Waiting:
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
