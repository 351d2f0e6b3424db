"""The sequences that are decoded together: their keys and values, and the logits behind them. Knows no text.

`Prefill` runs prompts, `Batch` the tokens that follow; what is chosen from the logits is the affair of `selection`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neurogen.decoding.continuous import Column
from neurogen.decoding.request import Observer, Row
from neurogen.decoding.selection import Selection
from neurogen.models.kvcache import KVBlock, new_cache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.models.language_model import LanguageModel

__all__ = ["Batch", "Prefill"]

SPARE_COLUMNS = 256
"""Columns for tokens to come that an attention mask is made with, at most."""

PADDED_SHARE = 2
"""Prompts are prefilled together as long as the longest has at most this many times the shortest's tokens."""


class Prefill:
    """Runs the model over prompts; those that are asked for several times are run once.

    Args:
        model: gives the logits.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._kept: tuple[tuple[int, ...], KVBlock, Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[tuple[int, ...]], upcoming: tuple[int, ...] | None) -> tuple[KVBlock, Tensor]:
        """Keys, values and logits behind each prompt.

        Args:
            prompts: at least one, of at least one token each; may repeat each other.
            upcoming: the prompt that is likely asked for next: if it is the last one here, it is remembered.

        Returns:
            a block with one row a prompt, and logits [len(prompts), vocab] of the model's dtype.
        """
        different = sorted(set(prompts), key=len)
        parts = [self._remembered(prompt) for prompt in different if self._is_kept(prompt)]
        order = [prompt for prompt in different if self._is_kept(prompt)]
        for group in _similar_lengths([prompt for prompt in different if not self._is_kept(prompt)]):
            parts.append(self._run(group))
            order += group
        block, logits = parts[0]
        for more, more_logits in parts[1:]:
            block, logits = block.join(more), torch.cat([logits, more_logits])
        rows = [order.index(prompt) for prompt in prompts]
        self._keep(prompts[-1] if prompts[-1] == upcoming else None, rows[-1], block, logits)
        return block.select(rows), logits[rows]

    def _is_kept(self, prompt: tuple[int, ...]) -> bool:
        return self._kept is not None and self._kept[0] == prompt

    def _remembered(self, prompt: tuple[int, ...]) -> tuple[KVBlock, Tensor]:
        assert self._kept is not None
        return self._kept[1].copy_row(0), self._kept[2]

    def _keep(self, prompt: tuple[int, ...] | None, row: int, block: KVBlock, logits: Tensor) -> None:
        if prompt is None:
            self._kept = None
        elif not self._is_kept(prompt):
            self._kept = (prompt, block.copy_row(row), logits[row : row + 1])

    def _run(self, prompts: Sequence[tuple[int, ...]]) -> tuple[KVBlock, Tensor]:
        device = self._model.device
        width = max(map(len, prompts))
        block = KVBlock(new_cache(), [width - len(prompt) for prompt in prompts])
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = block.attention_mask(width, device)
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        logits, block.cache = self._model.forward(ids, mask, positions, block.cache)
        return block, logits


def _similar_lengths(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Prompts, sorted by length, in groups that waste little work on padding."""
    groups: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if groups and len(prompt) <= PADDED_SHARE * len(groups[-1][0]):
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups


class Batch:
    """The rows that are being decoded.

    Args:
        model: gives the logits.
        sampler: chooses the tokens, for all rows at once.
        vocab_size: ids from here on are never drawn.
        observer: is shown every step.
    """

    def __init__(
        self, model: LanguageModel, sampler: Sampler, vocab_size: int, observer: Observer | None = None
    ) -> None:
        self._model = model
        self._selection = Selection(sampler, vocab_size, model.device, observer)
        self._prefill = Prefill(model)
        self._block: KVBlock
        self._logits: Tensor
        self._positions: Tensor
        self._mask: Tensor | None = None

    @property
    def rows(self) -> list[Row]:
        """The sequences, in the order of the tensors' rows."""
        return self._selection.rows

    @torch.inference_mode()
    def add(self, rows: Sequence[Row], upcoming: tuple[int, ...] | None) -> None:
        """Admit rows and run their prompts, equal ones once.

        Args:
            rows: the sequences.
            upcoming: the prompt that is likely asked for next.
        """
        block, logits = self._prefill([row.prompt for row in rows], upcoming)
        if self.rows:
            block, logits = self._block.join(block), torch.cat([self._logits, logits])
        now = time.perf_counter()
        for row in rows:
            row.admitted = now
        self._selection.add(rows)
        self._block, self._logits, self._mask = block, logits, None

    def has_room(self, row: Row, before: int) -> bool:
        """Always: keys and values grow as they must."""
        return True

    def columns(self) -> Iterator[Column]:
        """The next token of every row.

        Raises:
            ContractError, PluginError: the sampler does not do what it declared, or fails.
        """
        yield self.rows, self._selection.choose(self._logits)

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Take out the rows that are finished, with all that belongs to them."""
        keep = [i for i, row in enumerate(self.rows) if not row.finished]
        if len(keep) < len(self.rows):
            self._selection.keep(keep)
            self._block = self._block.select(keep)
            self._mask = None

    @torch.inference_mode()
    def read_on(self) -> None:
        """Run the model over the token that was chosen last in every row; at least one row."""
        columns = self._block.width + 1
        if self._mask is None or self._mask.shape[1] < columns:
            left = max(row.request.max_new_tokens - row.produced for row in self.rows)
            device = self._model.device
            self._mask = self._block.attention_mask(columns + min(left, SPARE_COLUMNS), device)
            self._positions = self._block.next_positions(device)
        self._logits, self._block.cache = self._model.forward(
            self._selection.ids.unsqueeze(1), self._mask[:, :columns], self._positions, self._block.cache
        )
        self._positions.add_(1)
