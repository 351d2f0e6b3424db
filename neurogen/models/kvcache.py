"""Keys and values of a batch whose sequences come and go. Knows tensors, not tokens.

A `KVBlock` holds sequences of different length aligned at their newest token, padded on the left:

    padding 2   [ .  .  a0 a1 a2 ]
    padding 0   [ b0 b1 b2 b3 b4 ]

All rows then grow by one column a step, whatever their length, and a block joins another by padding the shorter one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from neurogen.errors import ModelError

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

__all__ = ["KVBlock", "check_cache", "new_cache"]


def check_cache(model: LanguageModel) -> None:
    """Refuse a model whose memory is not keys and values alone, since rows of it cannot be padded and joined.

    Raises:
        ModelError: the model has recurrent layers (Mamba, linear attention) or another kind of cache.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(model.new_cache(), "layers", None) or []
    unknown = sorted(
        {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    )
    if unknown:
        raise ModelError(
            f"The model {model.name!r} keeps a memory other than keys and values ({', '.join(unknown)}), which "
            "neurogen's engine cannot batch. Use a model with attention layers only."
        )


def new_cache() -> Any:
    """An empty cache that keeps every column of every layer.

    A sliding-window layer's own cache would forget columns, and with them the padding that aligns the rows; the
    attention mask still hides what lies outside the window.
    """
    from transformers import DynamicCache

    return DynamicCache()


class KVBlock:
    """Keys and values of `len(padding)` sequences.

    Attributes:
        cache: a transformers `DynamicCache`; every layer has keys and values [batch, heads, width, size].
        padding: for each row, how many columns on the left belong to no token.
    """

    def __init__(self, cache: Any, padding: Sequence[int]) -> None:
        self.cache = cache
        self.padding = list(padding)

    @property
    def width(self) -> int:
        """Number of columns: the length of the longest sequence, as long as no padding is common to all rows."""
        return int(self.cache.get_seq_length())

    def attention_mask(self, columns: int, device: torch.device) -> Tensor:
        """int64 [batch, columns], 0 at padding; `columns` may go beyond `width`, for tokens to come."""
        padding = torch.tensor(self.padding, device=device)
        return (torch.arange(columns, device=device) >= padding[:, None]).long()

    def next_positions(self, device: torch.device) -> Tensor:
        """int64 [batch, 1], the index in its sequence of the token that each row is given next."""
        width = self.width
        return torch.tensor([[width - padding] for padding in self.padding], device=device)

    def select(self, rows: Sequence[int]) -> KVBlock:
        """The block of these rows, in this order; a row may be repeated. Columns that no row needs are left out.

        The result may share memory with this block, which is not to be used afterwards.
        """
        padding = [self.padding[row] for row in rows]
        common = min(padding, default=0)
        if common or list(rows) != list(range(len(self.padding))):
            for layer in self._layers():
                index = torch.tensor(rows, dtype=torch.int64, device=layer.keys.device)
                layer.keys = layer.keys[:, :, common:].index_select(0, index)
                layer.values = layer.values[:, :, common:].index_select(0, index)
        return KVBlock(self.cache, [columns - common for columns in padding])

    def crop(self, columns: int) -> None:
        """Keep the first columns of every row, padding counted, and forget the others."""
        for layer in self._layers():
            layer.keys = layer.keys[:, :, :columns].contiguous()
            layer.values = layer.values[:, :, :columns].contiguous()

    def copy_row(self, row: int) -> KVBlock:
        """One row in memory of its own, without padding."""
        cache = new_cache()
        for number, layer in enumerate(self.cache.layers):
            if layer.is_initialized:
                columns = slice(self.padding[row], None)
                cache.update(layer.keys[row : row + 1, :, columns], layer.values[row : row + 1, :, columns], number)
        return KVBlock(cache, [0])

    def join(self, other: KVBlock) -> KVBlock:
        """The rows of this block, then those of `other`; neither block is to be used afterwards."""
        width = max(self.width, other.width)
        left, right = width - self.width, width - other.width
        for layer, more in zip(self._layers(), other._layers(), strict=True):
            layer.keys = torch.cat([_widened(layer.keys, left), _widened(more.keys, right)])
            layer.values = torch.cat([_widened(layer.values, left), _widened(more.values, right)])
        padding = [columns + left for columns in self.padding] + [columns + right for columns in other.padding]
        return KVBlock(self.cache, padding)

    def _layers(self) -> list[Any]:
        """The layers that hold something; layers that share another's keys and values never do."""
        return [layer for layer in self.cache.layers if layer.is_initialized]


def _widened(states: Tensor, columns: int) -> Tensor:
    """[batch, heads, width, size] with zeros for `columns` more tokens on the left."""
    return pad(states, (0, 0, columns, 0)) if columns else states
