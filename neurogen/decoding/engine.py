"""The decoding loop: how requests become tokens. Knows ids, no text; runs a model only through its `ForwardPass`.

`Engine.step` is the loop's body. Other engines are this one with another forward pass (`PrefixEngine`, llama.cpp) or
with another body (`SpeculativeEngine`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from neurogen.decoding.batch import Batch
from neurogen.decoding.forward import ForwardPass, ModelForward
from neurogen.decoding.request import (
    DecodableModel,
    DecodingEngine,
    EndReason,
    Observer,
    Request,
    RequestState,
    SampledToken,
    Step,
    TokenLogprobs,
    check_count,
    check_request,
    sampler_values,
)
from neurogen.models.kvcache import check_cache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler

__all__ = ["EndReason", "Engine", "Request", "RequestQueue", "Step", "TokenLogprobs", "emit", "engine_for"]


class Engine:
    """Decodes requests with a model and a sampler.

    A sequence's tokens do not depend on what is decoded beside it, up to the rounding of the model's own arithmetic,
    which may differ between batch sizes. To be used from one thread at a time.

    Args:
        model: gives the logits.
        sampler: chooses the tokens.
        batch_size: the most sequences that are decoded together.
        observer: is shown every step; see `neurogen.decoding.request.Observer`.

    Attributes:
        vocab_size: ids from here on have no text and are never drawn, though the model's logits may be wider.
        context_length: the most tokens of a prompt and what follows it.

    Raises:
        ParameterError: `batch_size` is below 1.
        ModelError: the model's memory is not keys and values.
    """

    def __init__(self, model: Any, sampler: Sampler, *, batch_size: int = 8, observer: Observer | None = None) -> None:
        check_count("batch_size", batch_size)
        self.model = model
        self.sampler = sampler
        self.batch_size = batch_size
        self.observer = observer
        self.vocab_size = min(model.vocab_size, model.tokenizer.vocab_size)
        self.context_length = model.context_length
        self._running: list[tuple[Batch, RequestQueue]] = []
        self._check_model()

    def generate(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Decode requests, yielding each token as it is chosen.

        Args:
            requests: a list or tuple is checked as a whole before the first token. Anything else is read when a row is
                free, one request ahead, each being checked as it is read.

        Raises:
            ParameterError: see `check`.
            ContractError, PluginError: the sampler does not do what it declared, or fails.
        """
        states = map(self._admissible, requests)
        return self._run(RequestQueue(iter(list(states)) if isinstance(requests, Sequence) else states))

    def _run(self, queue: RequestQueue) -> Iterator[Step]:
        batch = Batch(self._forward_pass(), self.sampler, self.vocab_size, self.model.device)
        running = (batch, queue)
        self._running.append(running)
        try:
            while batch.rows or queue.peek():
                yield from self.step(batch, queue)
        finally:
            self._running.remove(running)

    def step(self, batch: Batch, queue: RequestQueue) -> Iterator[Step]:
        """One more token for every row of a batch.

        1. Admit: requests take the free rows.
        2. Forward: the model runs over the last token of every row and the prompts of new ones, equal prompts once.
        3. Process: each row's processors change its logits.
        4. Sample: the sampler chooses the next token of all rows at once.
        5. Emit: the tokens leave as steps; the receiver may cancel sequences.
        6. Retire: rows that are finished or cancelled leave the batch.
        """
        new, upcoming = self._admit(batch, queue)
        with torch.inference_mode():
            logits = batch.forward(new, upcoming)
            processed = batch.process(logits)
            # check=False: the ids are checked where they are read anyway, so that the GPU is waited for only once.
            ids = self.sampler.sample(processed, check=False, **batch.arguments)
            tokens = batch.accept(ids, logits, processed)
            if self.observer is not None:
                self.observer(batch.rows, logits, processed, tokens)
        yield from emit(batch.rows, tokens)
        batch.retire()

    def _admit(self, batch: Batch, queue: RequestQueue) -> tuple[list[RequestState], tuple[int, ...] | None]:
        """The rows that join the batch now, and the prompt that probably comes next."""
        new: list[RequestState] = []
        while len(batch.rows) + len(new) < self.batch_size:
            following = queue.peek()
            if following is None or any(following.settings != row.settings for row in (batch.rows + new)[:1]):
                break
            if batch.rows and not batch.forward_pass.has_room(following, len(new)):
                break
            new.append(queue.pop())
        upcoming = queue.peek() if new else None
        return new, None if upcoming is None else upcoming.prompt

    def cancel(self, key: Any) -> bool:
        """End the sequences whose request has this key; no token of theirs follows.

        Returns:
            whether there was one, in the batch or next to be admitted.
        """
        found = False
        for batch, queue in self._running:
            for row in batch.rows:
                if row.request.key == key and not row.finished:
                    row.finished = found = True
            if queue.following is not None and queue.following.request.key == key:
                queue.pop()
                found = True
        return found

    def check(self, request: Request) -> dict[str, Any]:
        """Make sure that a request can be decoded.

        Returns:
            the value of every parameter of the sampler for this request.

        Raises:
            ParameterError: no token, a token the model does not have, more tokens than its context holds, or a value
                outside its domain.
        """
        self._check_request(request)
        return sampler_values(self.sampler, request)

    def _admissible(self, request: Request) -> RequestState:
        self._check_request(request)
        return RequestState.of(request, self.sampler)

    # What other engines do differently.

    def _forward_pass(self) -> ForwardPass:
        """What runs the model over a new batch."""
        return ModelForward(self.model)

    def _check_model(self) -> None:
        """Refuse a model that this engine cannot decode."""
        check_cache(self.model)

    def _check_request(self, request: Request) -> None:
        """Refuse a request that cannot be decoded, by ParameterError."""
        check_request(request, self.model)


class RequestQueue:
    """Requests that have no row yet, read and checked one ahead.

    Attributes:
        following: the next one, if it has been read.
    """

    def __init__(self, states: Iterator[RequestState]) -> None:
        self._states = states
        self.following: RequestState | None = None

    def peek(self) -> RequestState | None:
        """The next one, read now if it was not; None at the end."""
        if self.following is None:
            self.following = next(self._states, None)
        return self.following

    def pop(self) -> RequestState:
        """Take the one that `peek` showed."""
        state, self.following = self.following, None
        assert state is not None
        return state


def emit(rows: Sequence[RequestState], tokens: Sequence[SampledToken]) -> Iterator[Step]:
    """The tokens just chosen, as steps; skips rows cancelled meanwhile and marks the rows that end."""
    now = time.perf_counter()
    for row, token in zip(rows, tokens, strict=True):
        if row.finished:
            continue
        row.produced += 1
        reason = _finish_reason(row, token)
        row.finished = reason is not None
        yield Step(row.request, token.token_id, token.logprobs, reason, now - row.prefilled_at, token.error)


def _finish_reason(row: RequestState, token: SampledToken) -> EndReason | None:
    if token.error is not None:
        return "error"
    if token.token_id in row.request.stop_ids:
        return "eos"
    return "length" if row.produced >= row.request.max_new_tokens else None


def engine_for(
    model: DecodableModel, sampler: Sampler, *, batch_size: int = 8, observer: Observer | None = None
) -> DecodingEngine:
    """The engine that decodes a model with a sampler: the model's own where it has one, as those of llama.cpp have."""
    make = getattr(model, "engine", None) or partial(Engine, model)
    engine: DecodingEngine = make(sampler, batch_size=batch_size, observer=observer)
    return engine
