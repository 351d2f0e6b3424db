"""How often each token has occurred, kept up to date token by token. Knows no logits.

The tokens that occur lie densely in arrays, so that a penalty is one indexed operation on their logits, whatever the
length of the sequence; an addition or removal moves at most one entry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["TokenCounts"]

FIRST_CAPACITY = 64


class TokenCounts:
    """Counts of tokens, of all that were added or of the last ones.

    Args:
        tokens: what to begin with, oldest first.
        last_n: how many of the last tokens to count; -1 for all.
    """

    def __init__(self, tokens: Iterable[int] = (), last_n: int = -1) -> None:
        import numpy as np

        self._last_n = last_n
        self._window: deque[int] = deque()
        self._slots: dict[int, int] = {}
        self._ids = np.zeros(FIRST_CAPACITY, dtype=np.int64)
        self._counts = np.zeros(FIRST_CAPACITY, dtype=np.float32)
        for token in tokens:
            self.add(token)

    def __len__(self) -> int:
        """How many different tokens there are."""
        return len(self._slots)

    def add(self, token: int) -> None:
        """Count one more token; the oldest leaves a full window."""
        if self._last_n == 0:
            return
        self._change(token, 1)
        if self._last_n > 0:
            self._window.append(token)
            if len(self._window) > self._last_n:
                self._change(self._window.popleft(), -1)

    def tensors(self, vocab: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tokens that occur and how often.

        Args:
            vocab: tokens from here on are left out: a prompt may hold some that have no logit.
            device: where to put them.

        Returns:
            int64 [n] ids, each once, and float32 [n] counts, all above 0.
        """
        import torch

        ids = torch.from_numpy(self._ids[: len(self)])
        counts = torch.from_numpy(self._counts[: len(self)])
        inside = ids < vocab
        if not bool(inside.all()):
            ids, counts = ids[inside], counts[inside]
        return ids.to(device), counts.to(device)

    def _change(self, token: int, by: int) -> None:
        slot = self._slots.get(token)
        if slot is None:
            slot = self._new_slot(token)
        self._counts[slot] += by
        if self._counts[slot] == 0:
            self._free(token, slot)

    def _new_slot(self, token: int) -> int:
        import numpy as np

        slot = len(self._slots)
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._slots[token] = slot
        self._ids[slot] = token
        self._counts[slot] = 0
        return slot

    def _free(self, token: int, slot: int) -> None:
        """Let the last entry fill the place of one that has ended."""
        del self._slots[token]
        last = len(self._slots)
        if slot != last:
            moved = int(self._ids[last])
            self._ids[slot], self._counts[slot] = moved, self._counts[last]
            self._slots[moved] = slot
