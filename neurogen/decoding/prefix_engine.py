"""An engine for conversations: decodes one sequence at a time and reuses what was read of the last one.

A turn of a conversation begins with everything said before. Keys and values of that beginning are kept, whichever
sampler chose the tokens, so that a turn costs only what is new. Knows no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neurogen.decoding.engine import Engine
from neurogen.decoding.request import Observer, RequestState
from neurogen.models.kvcache import KVCache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.models.language_model import LanguageModel

__all__ = ["PrefixEngine"]


class PrefixEngine(Engine):
    """Decodes requests one after another and keeps the keys and values of the last.

    Args:
        model: gives the logits.
        sampler: chooses the tokens.
        observer: is shown every step.

    Attributes:
        sampler, observer: may be replaced between calls of `generate`; what has been read stays.
        vocab_size: ids from here on have no text and are never drawn.

    Raises:
        ModelError: the model's memory is not keys and values.
    """

    def __init__(self, model: LanguageModel, sampler: Sampler, observer: Observer | None = None) -> None:
        super().__init__(model, sampler, batch_size=1, observer=observer)
        self._prefix = _PrefixForward(model)

    @property
    def reused(self) -> int:
        """How many tokens of the last request's prompt did not have to be read."""
        return self._prefix.reused

    def _forward_pass(self) -> _PrefixForward:
        return self._prefix


class _PrefixForward:
    """A model and what it has read of one sequence; the part with which the next prompt begins is kept."""

    def __init__(self, model: LanguageModel) -> None:
        self.reused = 0
        self._model = model
        self._cache = KVCache(model)
        self._ids: list[int] = []  # whose keys and values are in the cache

    def has_room(self, row: RequestState, before: int) -> bool:
        """Always False: it holds one row."""
        return False

    def prefill(self, new: Sequence[RequestState], upcoming: tuple[int, ...] | None) -> Tensor:
        """See `ForwardPass.prefill`. A prompt's last token is always read, since the logits come from it."""
        prompt = new[0].prompt
        self.reused = common = min(_common(prompt, self._ids), len(prompt) - 1)
        if not common:
            self._cache, self._ids = KVCache(self._model), []
            logits = self._cache.prefill([prompt])
        else:
            self._cache.crop([self._cache.width - common])
            del self._ids[common:]
            logits = self._cache.forward(torch.tensor([prompt[common:]], device=self._model.device))
        self._ids += prompt[common:]
        return logits

    def decode(self, ids: Tensor) -> Tensor:
        """See `ForwardPass.decode`."""
        logits = self._cache.forward(ids.unsqueeze(1))
        self._ids += ids.tolist()
        return logits

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Nothing is forgotten before the next prompt."""


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))
