"""An engine for conversations: one sequence at a time, and what was read of the last one is not read again.

A turn of a conversation begins with everything said before. Keys and values of that beginning are kept, whichever
sampler chose the tokens, so that a turn costs only what is new. Knows no text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.decoding.continuous import check_request, emit
from neurogen.decoding.request import Observer, Request, Row, Step
from neurogen.decoding.selection import Selection, row_of, values_of
from neurogen.models.kvcache import KVBlock, check_cache, new_cache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.models.language_model import LanguageModel

__all__ = ["PrefixEngine"]


class PrefixEngine:
    """Decodes requests one after another and keeps the keys and values of the last.

    Args:
        model: gives the logits.
        sampler: chooses the tokens.
        observer: is shown every step.

    Attributes:
        sampler, observer: may be replaced between requests; what has been read stays.
        vocab_size: ids from here on have no text and are never drawn.
        reused: how many tokens of the last request's prompt had not to be read.

    Raises:
        ModelError: the model's memory is not keys and values.
    """

    def __init__(self, model: LanguageModel, sampler: Sampler, observer: Observer | None = None) -> None:
        check_cache(model)
        self.model = model
        self.sampler = sampler
        self.observer = observer
        self.vocab_size = min(model.vocab_size, model.tokenizer.vocab_size)
        self.reused = 0
        self._block = KVBlock(new_cache(), [0])
        self._ids: list[int] = []  # whose keys and values are in the block
        self._row: Row | None = None

    def check(self, request: Request) -> dict[str, Any]:
        """The value of every parameter of the sampler for a request; see `neurogen.decoding.engine.Engine.check`."""
        check_request(request, self.model)
        return values_of(self.sampler, request)

    def generate(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Decode requests in turn, yielding each token as it is chosen; see `Engine.generate`."""
        for request in requests:
            check_request(request, self.model)
            yield from self._steps(row_of(self.sampler, request))

    def cancel(self, key: Any) -> bool:
        """End the sequence that is decoded, if its request has this key."""
        if self._row is None or self._row.request.key != key or self._row.finished:
            return False
        self._row.finished = True
        return True

    def _steps(self, row: Row) -> Iterator[Step]:
        row.admitted = time.perf_counter()
        selection = Selection(self.sampler, self.vocab_size, self.model.device, self.observer)
        selection.add([row])
        self._row = row
        try:
            logits = self._read_prompt(row.prompt)
            while True:
                yield from emit([row], selection.choose(logits))
                if row.finished:
                    return
                logits = self._read([int(selection.ids[0])])
        finally:
            self._row = None

    def _read_prompt(self, prompt: Sequence[int]) -> Tensor:
        """Logits [1, vocab] behind the prompt; its last token is always read, for there the logits come from."""
        common = min(_common(prompt, self._ids), len(prompt) - 1)
        self._block.crop(common)
        del self._ids[common:]
        self.reused = common
        return self._read(prompt[common:])

    @torch.inference_mode()
    def _read(self, tokens: Sequence[int]) -> Tensor:
        device = self.model.device
        start = len(self._ids)
        positions = torch.arange(start, start + len(tokens), device=device)[None]
        mask = self._block.attention_mask(start + len(tokens), device)
        ids = torch.tensor([list(tokens)], device=device)
        logits, self._block.cache = self.model.forward(ids, mask, positions, self._block.cache)
        self._ids += tokens
        return logits


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))
