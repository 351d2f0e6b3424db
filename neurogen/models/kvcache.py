"""What a model remembers of the rows of a batch, and the forward pass over it. Knows ids and tensors, no requests.

`KVCache` is the only place that knows how rows share tensors. Their sequences have different lengths; they are aligned
at their newest token and padded on the left:

    padding 2   [ .  .  a0 a1 a2 ]
    padding 0   [ b0 b1 b2 b3 b4 ]

All rows then grow by one column a step, whatever their length, and rows join others by padding the shorter ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from neurogen.errors import ModelError

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

__all__ = ["KVCache", "check_cache"]

SPARE_COLUMNS = 256
"""How many columns an attention mask has in reserve for future tokens."""


def check_cache(model: LanguageModel) -> None:
    """Refuse a model whose memory is not keys and values alone, since rows of it cannot be padded and joined.

    Raises:
        ModelError: the model has recurrent layers (Mamba, linear attention) or another kind of cache.
    """
    layers = getattr(model.new_cache(), "layers", None) or []
    unknown = sorted(
        {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    )
    if unknown:
        raise ModelError(
            f"The model {model.name!r} keeps a memory other than keys and values ({', '.join(unknown)}), which "
            "neurogen's engine cannot batch. Use a model with attention layers only."
        )


class KVCache:
    """Keys and values of the rows that a model has read.

    A sliding-window layer keeps every column, too: its own cache would forget columns, and with them the padding that
    aligns the rows. The attention mask still hides what lies outside the window.

    Args:
        model: runs the forward passes.

    Attributes:
        padding: for each row, how many columns on the left belong to no token.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.padding: list[int] = []
        self._cache: Any = DynamicCache()
        self._mask: Tensor | None = None  # int64 [rows, columns], 0 at padding; None when the rows have changed
        self._positions: Tensor  # int64 [rows, 1], the index in its sequence of each row's next token

    @property
    def width(self) -> int:
        """Number of columns: the length of the longest sequence, as long as no padding is common to all rows."""
        return int(self._cache.get_seq_length())

    # The forward pass adds columns.

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts into an empty cache, one row each.

        Args:
            prompts: at least one, of at least one token each.

        Returns:
            logits [len(prompts), vocab] after each prompt, of the model's dtype.
        """
        width = max(map(len, prompts))
        self.padding = [width - len(prompt) for prompt in prompts]
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        return self.forward(torch.tensor(padded, device=self.model.device))

    def forward(self, ids: Tensor) -> Tensor:
        """Read tokens of every row.

        Args:
            ids: int64 [rows, new].

        Returns:
            logits [rows, vocab] after the last of them, of the model's dtype.
        """
        mask, positions = self._next(ids.shape[1])
        logits, self._cache = self.model.forward(ids, mask, positions, self._cache)
        self._positions.add_(ids.shape[1])
        return logits

    def forward_all(self, ids: Tensor) -> Tensor:
        """Read tokens as `forward` does, and return the logits after each of them, [rows, new, vocab].

        Tokens beyond the model's context get its last position; their logits mean nothing.
        """
        new = ids.shape[1]
        mask, positions = self._next(new)
        positions = positions.clamp(max=self.model.context_length - 1)
        logits, self._cache = self.model.forward_last(ids, mask, positions, self._cache, count=new)
        self._positions.add_(new)
        return logits

    def _next(self, new: int) -> tuple[Tensor, Tensor]:
        """Attention mask [rows, width + new] and positions [rows, new] of the next tokens."""
        width, device = self.width, self.model.device
        if self._mask is None or self._mask.shape[1] < width + new:
            padding = torch.tensor(self.padding, device=device)[:, None]
            self._mask = (torch.arange(width + new + SPARE_COLUMNS, device=device) >= padding).long()
            self._positions = width - padding
        positions = self._positions
        if new > 1:
            positions = (positions + torch.arange(new, device=device)).clamp_(min=0)
        return self._mask[:, : width + new], positions

    # Rows join, leave, are cropped and copied. Whatever else a layer may remember must do the same.

    def join(self, other: KVCache) -> None:
        """Add the rows of another cache after the present ones; the other must not be used afterwards."""
        if not self.padding:
            self.padding, self._cache, self._mask = other.padding, other._cache, None
            return
        width, added = self.width, other.width
        left, right = max(added - width, 0), max(width - added, 0)
        for layer, more in zip(self._layers(), other._layers(), strict=True):
            layer.keys = torch.cat([_padded(layer.keys, left), _padded(more.keys, right)])
            layer.values = torch.cat([_padded(layer.values, left), _padded(more.values, right)])
        self.padding = [columns + left for columns in self.padding] + [columns + right for columns in other.padding]
        self._mask = None

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be repeated. Columns that no row needs are left out."""
        padding = [self.padding[row] for row in rows]
        common = min(padding, default=0)
        if common or list(rows) != list(range(len(self.padding))):
            index = torch.tensor(rows, dtype=torch.int64, device=self.model.device)
            self._change(lambda states: states[:, :, common:].index_select(0, index.to(states.device)))
        self.padding = [columns - common for columns in padding]
        self._mask = None

    def crop(self, counts: Sequence[int]) -> None:
        """Forget the newest `counts[i]` tokens of row i.

        Where the rows forget different numbers of tokens, their columns move to the right and their padding grows:

            forget 0   [ a0 a1 a2 a3 a4 ]
            forget 2   [ .  .  b0 b1 b2 ]   from  [ b0 b1 b2 b3 b4 ]
        """
        least = min(counts)
        width = self.width - least
        if max(counts) == least:
            self._change(lambda states: states[:, :, :width].contiguous())
        else:
            padding = [columns + count - least for columns, count in zip(self.padding, counts, strict=True)]
            common = min(padding)
            shifts = torch.tensor(counts, device=self.model.device)[:, None] - least
            source = (torch.arange(common, width, device=self.model.device) - shifts).clamp_(min=0)
            self._change(lambda states: _moved(states, source.to(states.device)))
            self.padding = [columns - common for columns in padding]
        self._mask = None

    def copy(self, row: int) -> KVCache:
        """One row in memory of its own, without padding."""
        copied = KVCache(self.model)
        copied.padding = [0]
        for number, layer in enumerate(self._cache.layers):
            if layer.is_initialized:
                columns = slice(self.padding[row], None)
                copied._cache.update(
                    layer.keys[row : row + 1, :, columns], layer.values[row : row + 1, :, columns], number
                )
        return copied

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the keys and the values of every layer, [rows, heads, width, size]."""
        for layer in self._layers():
            layer.keys, layer.values = change(layer.keys), change(layer.values)

    def _layers(self) -> list[Any]:
        """The layers that hold something; layers that share another's keys and values never do."""
        return [layer for layer in self._cache.layers if layer.is_initialized]


def _padded(states: Tensor, columns: int) -> Tensor:
    """[rows, heads, width, size] with zeros for `columns` more tokens on the left."""
    return pad(states, (0, 0, columns, 0)) if columns else states


def _moved(states: Tensor, source: Tensor) -> Tensor:
    """Column `source[i, c]` of row i as its column c: [rows, heads, width, size] and int64 [rows, columns]."""
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states.transpose(1, 2)[rows, source].transpose(1, 2).contiguous()
