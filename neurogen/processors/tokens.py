"""Processors that raise, lower or ban single tokens and words, or allow only some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neurogen.contract.parameters import Param, SamplerParams
from neurogen.contract.processor import History, Processor
from neurogen.processors.constants import Constant
from neurogen.processors.listing import FromText, TextParams, checksum_param, parse_biases, parse_list
from neurogen.processors.sequences import SequenceTable, spellings_of

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["AllowedTokens", "BannedTokens", "LogitBias", "MinNewTokens"]


class _Biases(FromText):
    """Adds numbers to tokens, always or where they complete a sequence."""

    def _set(self, biases: Sequence[tuple[tuple[int, ...], float]]) -> None:
        import torch

        single: dict[int, float] = {}
        for tokens, bias in biases:
            if len(tokens) == 1:
                single[tokens[0]] = single.get(tokens[0], 0.0) + bias
        self._ids = Constant(torch.tensor(list(single), dtype=torch.int64))
        self._values = Constant(torch.tensor(list(single.values()), dtype=torch.float32))
        self._sequences = SequenceTable((tokens, bias) for tokens, bias in biases if len(tokens) > 1)

    def process(self, logits: Tensor, history: History, memory: None) -> None:
        """O(biased tokens, and the sequences whose last token but one is the sequence's last)."""
        logits.index_add_(0, self._ids.on(logits.device), self._values.on(logits.device))
        for token, bias in self._sequences.completed_by(history.ids):
            logits[token] += bias


class LogitBias(_Biases):
    """Adds a number to the logit of a token, or of the last token of a text whose others stand before (`logit_bias` of
    OpenAI's API, for ids; `SequenceBiasLogitsProcessor` of transformers, for texts).

    A text is meant as the tokenizer spells it: at the start of a text, inside one, and after a space unless it begins
    with one.
    """

    name = "logit-bias"
    api_version = 1

    class Params(TextParams):
        """Parameters."""

        bias: str = Param(
            "",
            description="Numbers added to tokens: ID:NUMBER or 'TEXT':NUMBER with commas, such as 1234:-5, ' cat':2.5; "
            "-inf bans; or @FILE.",
            option="--logit-bias",
        )
        checksum: str = checksum_param()

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**params)
        self._pairs = parse_biases(self, "bias")

    def prepare(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Find the tokens of the texts."""
        self._set(
            [
                (tokens, bias)
                for item, bias in self._pairs
                for tokens in spellings_of(self.name, "bias", item, tokenizer, vocab_size)
            ]
        )


class BannedTokens(_Biases):
    """Bans tokens, and texts: a text of several tokens at its last, when the others stand before it
    (`NoBadWordsLogitsProcessor` of transformers).

    A text is meant as the tokenizer spells it: at the start of a text, inside one, and after a space unless it begins
    with one. Spelled with other, smaller tokens it can still come about.
    """

    name = "banned-tokens"
    api_version = 1

    class Params(TextParams):
        """Parameters."""

        tokens: str = Param(
            "",
            description="What must not occur: ids and quoted texts with commas, such as 5, ' cat'; or @FILE.",
            option="--ban-tokens",
        )
        checksum: str = checksum_param()

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**params)
        self._items = parse_list(self, "tokens")

    def prepare(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Find the tokens of the texts."""
        sequences = [spellings_of(self.name, "tokens", item, tokenizer, vocab_size) for item in self._items]
        self._set([(tokens, float("-inf")) for several in sequences for tokens in several])


class AllowedTokens(FromText):
    """Bans every token but those listed, the tokens of listed texts, and, unless asked not to, those that end the
    sequence (`allowed_token_ids` of vLLM).
    """

    name = "allowed-tokens"
    api_version = 1

    class Params(TextParams):
        """Parameters."""

        tokens: str = Param(
            "",
            description="The only tokens that may occur: ids and quoted texts with commas (5, ' cat'); or @FILE.",
            option="--allow",
        )
        end: bool = Param(True, description="The sequence may end, too.", option="--allow-end")
        checksum: str = checksum_param()

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**params)
        self._items = parse_list(self, "tokens")

    def prepare(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Find the tokens of the texts."""
        import torch

        banned = torch.ones(vocab_size, dtype=torch.bool)
        for item in self._items:
            for tokens in spellings_of(self.name, "tokens", item, tokenizer, vocab_size):
                banned[list(tokens)] = False
        self._banned = Constant(banned)

    def process(self, logits: Tensor, history: History, memory: None) -> None:
        """O(vocab)."""
        ends = [token for token in history.stop_ids if token < len(logits)] if self.params.end else []
        kept = logits[ends]
        logits.masked_fill_(self._banned.on(logits.device), float("-inf"))
        logits[ends] = kept


class MinNewTokens(Processor):
    """Bans the tokens that end a sequence until it has so many new ones (`MinNewTokensLengthLogitsProcessor` of
    transformers, `min_tokens` of vLLM). A stop string still ends it.
    """

    name = "min-new-tokens"
    api_version = 1
    gives_way_to = "all"  # as in vLLM, where a structured output that is complete ends before min_tokens

    class Params(SamplerParams):
        """Parameters."""

        tokens: int = Param(
            1, ge=0, description="The sequence does not end before so many new tokens.", option="--min-new-tokens"
        )

    @property
    def least_new_tokens(self) -> int:
        return int(self.params.tokens)

    def process(self, logits: Tensor, history: History, memory: None) -> None:
        """O(tokens that end a sequence)."""
        if history.new_tokens < self.params.tokens:
            ends = [token for token in history.stop_ids if token < len(logits)]
            logits[ends] = float("-inf")
