"""No n-gram twice: the tokens that would repeat one are banned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen.contract.parameters import Param, SamplerParams
from neurogen.contract.processor import History, Processor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NoRepeatNgram"]

Table = dict[tuple[int, ...], list[int]]
"""The first n - 1 tokens of an n-gram that has occurred -> the tokens that came after them."""


class NoRepeatNgram(Processor):
    """Bans every token that would complete an n-gram of the sequence a second time, the prompt's included (Paulus et
    al., 2017, "A Deep Reinforced Model for Abstractive Summarization", for trigrams; as in fairseq and transformers).
    """

    name = "no-repeat-ngram"
    api_version = 1
    gives_way_to = ("grammar",)  # which may force a repetition: the marks between the parts of JSON

    class Params(SamplerParams):
        """Parameters."""

        size: int = Param(3, ge=1, description="So many tokens in a row never occur twice.", option="--no-repeat-ngram")

    def start(self, history: History) -> Table:
        """The n-grams of the prompt."""
        table: Table = {}
        for end in range(self.params.size, len(history.ids) + 1):
            self._note(history.ids[end - self.params.size : end], table)
        return table

    def process(self, logits: Tensor, history: History, memory: Table) -> None:
        """O(tokens that came after the last n - 1)."""
        before = self.params.size - 1
        prefix = tuple(history.ids[len(history.ids) - before :]) if before <= len(history.ids) else ()
        banned = [token for token in memory.get(prefix, ()) if token < len(logits)]
        if banned:
            logits[banned] = float("-inf")

    def accept(self, token_id: int, history: History, memory: Table) -> None:
        """Note the n-gram that ends with it."""
        if len(history.ids) >= self.params.size:
            self._note(history.ids[-self.params.size :], memory)

    def _note(self, ngram: list[int], table: Table) -> None:
        table.setdefault(tuple(ngram[:-1]), []).append(ngram[-1])
