"""Step 2 of the decoding loop: runs the model over the rows of a batch, and keeps their KV cache.

The loop runs a model only through `ForwardPass`; `ModelForward` is ours, for transformers models. Knows no sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from neurogen.decoding.request import RequestState
from neurogen.models.kvcache import KVCache

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

__all__ = ["ForwardPass", "ModelForward"]

PromptIds = tuple[int, ...]

PADDED_SHARE = 2
"""Prompts are prefilled together as long as the longest has at most this many times the shortest's tokens."""


class ForwardPass(Protocol):
    """Runs a model over the rows of one batch. Rows are numbered in the order in which they were prefilled."""

    def has_room(self, row: RequestState, before: int) -> bool:
        """Whether there is memory for a row beside those in the batch and `before` others that join first."""

    def prefill(self, new: Sequence[RequestState], upcoming: PromptIds | None) -> Tensor:
        """Run the prompts of new rows, equal ones once; the new rows come after the present ones.

        Args:
            new: at least one.
            upcoming: the prompt that probably comes next: if it is the last one here, it is remembered.

        Returns:
            logits [len(new), vocab] after each prompt.
        """

    def decode(self, ids: Tensor) -> Tensor:
        """Run one more token of every row, int64 [rows], on the device of the logits.

        Returns:
            logits [rows, vocab] after them; may be overwritten by the next call.
        """

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""


class ModelForward:
    """A transformers model and its KV cache.

    Args:
        model: gives the logits.

    Attributes:
        cache: what the model has read of the rows.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.cache = KVCache(model)
        self._model = model
        self._kept: tuple[PromptIds, KVCache, Tensor] | None = None

    def has_room(self, row: RequestState, before: int) -> bool:
        """Always True: the KV cache grows as needed."""
        return True

    def prefill(self, new: Sequence[RequestState], upcoming: PromptIds | None) -> Tensor:
        """See `ForwardPass.prefill`."""
        prompts = [row.prompt for row in new]
        different = sorted(set(prompts), key=len)
        cache, logits, order = KVCache(self._model), [], []
        if self._kept is not None and self._kept[0] in different:
            kept, kept_cache, kept_logits = self._kept
            cache.join(kept_cache.copy(0))
            logits.append(kept_logits)
            order.append(kept)
            different.remove(kept)
        for group in _similar_lengths(different):
            read = KVCache(self._model)
            logits.append(read.prefill(group))
            cache.join(read)
            order += group
        behind = torch.cat(logits)
        rows = [order.index(prompt) for prompt in prompts]
        self._remember(prompts[-1] if prompts[-1] == upcoming else None, rows[-1], cache, behind)
        cache.select(rows)
        self.cache.join(cache)
        return behind[rows]

    def decode(self, ids: Tensor) -> Tensor:
        """See `ForwardPass.decode`."""
        return self.cache.forward(ids.unsqueeze(1))

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `ForwardPass.keep_rows`."""
        self.cache.select(rows)

    def _remember(self, prompt: PromptIds | None, row: int, cache: KVCache, logits: Tensor) -> None:
        if prompt is None:
            self._kept = None
        elif self._kept is None or self._kept[0] != prompt:
            self._kept = (prompt, cache.copy(row), logits[row : row + 1])


def _similar_lengths(prompts: Sequence[PromptIds]) -> list[list[PromptIds]]:
    """Prompts, sorted by length, in groups that waste little work on padding."""
    groups: list[list[PromptIds]] = []
    for prompt in prompts:
        if groups and len(prompt) <= PADDED_SHARE * len(groups[-1][0]):
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups
