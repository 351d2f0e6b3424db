"""Texts as the token sequences that spell them, and the sequences that the next token may complete. Knows no logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from neurogen.errors import ParameterError
from neurogen.processors.listing import Item

if TYPE_CHECKING:
    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["SequenceTable", "behind", "checked_id", "pieces_of", "spellings", "spellings_of"]

CONTEXTS = ("x", "1", ".", "\n", "-")
"""A text is encoded after the first of these whose end does not merge with the text's beginning."""

Value = TypeVar("Value")

_pieces: WeakKeyDictionary[Tokenizer, Sequence[bytes]] = WeakKeyDictionary()


class SequenceTable(Generic[Value]):
    """Token sequences of two or more, found by their last token but one, so that a step looks at few.

    Args:
        entries: sequences, each with a value.
    """

    def __init__(self, entries: Iterable[tuple[tuple[int, ...], Value]]) -> None:
        self._by_last: dict[int, list[tuple[tuple[int, ...], int, Value]]] = {}
        for tokens, value in entries:
            *prefix, last = tokens
            self._by_last.setdefault(prefix[-1], []).append((tuple(prefix), last, value))

    def completed_by(self, ids: Sequence[int]) -> list[tuple[int, Value]]:
        """The tokens that complete a sequence whose beginning `ids` end with, each with the sequence's value."""
        entries = self._by_last.get(ids[-1], ()) if ids else ()
        return [(last, value) for prefix, last, value in entries if tuple(ids[-len(prefix) :]) == prefix]


def pieces_of(tokenizer: Tokenizer, vocab_size: int) -> Sequence[bytes]:
    """The bytes of every token below `vocab_size`; kept as long as the tokenizer is."""
    if len(_pieces.get(tokenizer, ())) != vocab_size:
        _pieces[tokenizer] = tuple(tokenizer.token_bytes(token) for token in range(vocab_size))
    return _pieces[tokenizer]


def spellings_of(name: str, parameter: str, item: Item, tokenizer: Tokenizer, vocab: int) -> list[tuple[int, ...]]:
    """The token sequences that an id or a text means.

    Raises:
        ParameterError: the id has no logit, or the text no tokens.
    """
    if isinstance(item, int):
        return [(checked_id(name, parameter, item, vocab),)]
    found = [tokens for tokens in spellings(item, tokenizer) if max(tokens) < vocab]
    if not found:
        raise ParameterError(
            f"{name}: {parameter} holds the text {item!r}, which this model's tokenizer has no tokens for.", parameter
        )
    return found


def checked_id(name: str, parameter: str, token: int, vocab: int) -> int:
    """Return the id.

    Raises:
        ParameterError: it has no logit.
    """
    if token >= vocab:
        raise ParameterError(
            f"{name}: {parameter} holds the id {token}; ids of this model are 0 to {vocab - 1}. A text of digits is "
            "written in quotes.",
            parameter,
        )
    return token


def spellings(text: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The token sequences that the tokenizer spells a text with.

    Args:
        text: not empty.

    Returns:
        its tokens at the start of a text, inside one, and, unless it begins with white space, after a space: without
        repetition, and without the empty one. Other ways to spell it with smaller tokens are not among them.
    """
    forms = [tokenizer.encode(text, add_bos=False), behind(text, tokenizer)]
    if not text[:1].isspace():
        forms.append(behind(f" {text}", tokenizer))
    return list(dict.fromkeys(tuple(form) for form in forms if form))


def behind(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text inside another; empty if every context merges with its beginning."""
    for context in CONTEXTS:
        head = tokenizer.encode(context, add_bos=False)
        whole = tokenizer.encode(context + text, add_bos=False)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return []
