"""A model, and the keys and values of the sequences that it is reading. Knows nothing of how tokens are chosen.

Sequences lie right-aligned, as `models.kvcache.KVBlock` says. Taking tokens back, which differs from row to row, thus
moves a row's columns to the right and makes its padding wider:

    take back 0   [ a0 a1 a2 a3 a4 ]
    take back 2   [ .  .  b0 b1 b2 ]   from  [ b0 b1 b2 b3 b4 ]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neurogen.models.kvcache import KVBlock

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

__all__ = ["Feed", "take_back"]


class Feed:
    """Reads tokens of a batch with one model.

    Args:
        model: gives the logits.
        block: what it has read already.
    """

    def __init__(self, model: LanguageModel, block: KVBlock) -> None:
        self.model = model
        self.block = block

    @torch.inference_mode()
    def read(self, ids: Tensor) -> Tensor:
        """Read tokens.

        Args:
            ids: int64 [rows, new]. Those beyond the context get its last position; their logits mean nothing.

        Returns:
            logits [rows, new, vocab] behind each of them, of the model's dtype.
        """
        new, device = ids.shape[1], self.model.device
        mask = self.block.attention_mask(self.block.width + new, device)
        positions = self.block.next_positions(device) + torch.arange(new, device=device)
        positions.clamp_(max=self.model.context_length - 1)
        logits, self.block.cache = self.model.forward_last(ids, mask, positions, self.block.cache, count=new)
        return logits

    @torch.inference_mode()
    def join(self, other: KVBlock) -> None:
        """Let rows join behind those that are there."""
        self.block = self.block.join(other)

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        self.block = self.block.select(rows)

    @torch.inference_mode()
    def take_back(self, counts: Sequence[int]) -> None:
        """Forget the last `counts[i]` tokens of row i."""
        self.block = take_back(self.block, counts)


def take_back(block: KVBlock, counts: Sequence[int]) -> KVBlock:
    """The block without the newest `counts[i]` tokens of row i; the given one is not to be used afterwards."""
    least = min(counts)
    padding = [columns + count - least for columns, count in zip(block.padding, counts, strict=True)]
    common = min(padding)
    width = block.width - least
    if max(counts) == least:
        block.crop(width)
        return block
    for layer in block.cache.layers:
        if layer.is_initialized:
            shifts = torch.tensor(counts, device=layer.keys.device)[:, None] - least
            source = (torch.arange(common, width, device=layer.keys.device) - shifts).clamp_(min=0)
            layer.keys = _moved(layer.keys, source)
            layer.values = _moved(layer.values, source)
    return KVBlock(block.cache, [columns - common for columns in padding])


def _moved(states: Tensor, source: Tensor) -> Tensor:
    """Column `source[i, c]` of row i as its column c: [rows, heads, width, size] and int64 [rows, columns]."""
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states.transpose(1, 2)[rows, source].transpose(1, 2).contiguous()
