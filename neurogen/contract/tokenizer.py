"""What every tokenizer can do. Those that read files are in `neurogen.models.tokenizer`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["Tokenizer"]


class Tokenizer(ABC):
    """Turns text into token ids and ids into text.

    Attributes:
        vocab_size: number of ids that the tokenizer has a text for; the ids are 0 <= id < vocab_size.
        bos_id: id that starts a sequence, or None.
        eos_ids: ids that end a sequence or, in a chat model, a turn.
        special_ids: ids without text: `decode` skips them.
        has_chat_template: whether `encode_chat` can be used.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    has_chat_template: bool

    @abstractmethod
    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Return the ids of `text`.

        Args:
            text: any text. A special token that is spelled out in it, such as "<|endoftext|>", is ordinary text: what
                others have written does not end documents or begin turns.
            add_bos: put the start-of-sequence id first, where this tokenizer's convention has one.
            parse_special: make special tokens of their spellings instead, for a text that is meant so.

        Raises:
            ParameterError: the text holds half of a character (a lone surrogate), which no UTF-8 has.
        """

    @abstractmethod
    def token_text(self, token: int) -> str:
        """Return one token's own text for listings: leading space kept, control tokens and raw bytes spelled out."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of UTF-8 that an id adds inside a text, leading space included; none without text."""
        return self.token_text(token).encode() if self.has_text(token) else b""

    def special_in(self, text: str) -> list[str]:
        """Return the special tokens that are spelled out in a text, each once; `parse_special` is about them."""
        return []

    @abstractmethod
    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, parse_special: bool = False) -> list[int]:
        """Return the ids of a conversation up to where the assistant's next turn begins.

        Args:
            messages: mappings with `role` and `content`, oldest first. Special tokens that are spelled out in them are
                ordinary text; those of the template are tokens.
            parse_special: make special tokens of the spellings in the messages too.

        Raises:
            ModelError: there is no chat template, or the template refuses these messages.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files from which `load_tokenizer(folder)` makes this tokenizer again."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special tokens and ids outside the vocabulary have none and are skipped."""
        return self._decode([token for token in ids if self.has_text(token)])

    def has_text(self, token: int) -> bool:
        """Tell whether `decode` gives this id a text."""
        return 0 <= token < self.vocab_size and token not in self.special_ids

    def special_spelled(self, texts: Iterable[str]) -> frozenset[int]:
        """The special tokens, which `decode` skips, that any of these texts is the whole spelling of."""
        wanted = frozenset(texts)
        return frozenset(token for token in self.special_ids if wanted and self.token_text(token) in wanted)

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Decode ids that all have a text."""
