"""Hints about options that have no effect, or probably not the intended one. A hint is shown and stops nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["draws_nothing", "sample_hints", "stop_hints", "tokenizer_stop_hints"]

SPECIAL_LOOKING = re.compile(
    r"<\|[^|<>]+\|>|</?s>|<(?:unk|pad|[be]os|(?:start|end)_of_turn)>|\[(?:[BE]OS|SEP|CLS|PAD)\]"
)
"""How many models spell special tokens."""

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece spells a byte."""

ESCAPES = {"n": "line break", "r": "carriage return", "t": "tab"}


def draws_nothing(sampler: Sampler) -> bool:
    """Whether equal logits always give the same token, whatever the seed."""
    return sampler.deterministic or getattr(sampler.params, "temperature", None) == 0


def sample_hints(sampler: Sampler, samples: int, candidates: int = 1) -> Iterator[str]:
    """Hints about several samples, or candidates for each, of a sampler that draws nothing."""
    for count, what in ((samples, "samples"), (candidates, "candidates")):
        if count > 1 and draws_nothing(sampler):
            yield (
                f"The {count} {what} of a prompt are all the same: {sampler!r} draws nothing. Ask for one, or choose a "
                "sampler that draws."
            )


def spelled_stop_hints(stops: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Hints about stop strings that are spelled as tokens are and not as texts, so that they will hardly come."""
    ends = ", ".join(repr(tokenizer.token_text(token)) for token in sorted(tokenizer.eos_ids)) or "none"
    for stop in dict.fromkeys(stops):
        if SPECIAL_LOOKING.fullmatch(stop) and not tokenizer.special_in(stop):
            yield (
                f"The stop string {stop!r} is spelled as a special token, and this model has none of that name, so it "
                f"will hardly come. The tokens that end this model's texts: {ends}."
            )
        if found := BYTE.search(stop):
            yield (
                f"The stop string {stop!r} spells the byte {found[1]} as some tokenizers do; a text holds the byte "
                f"itself. Give the character {chr(int(found[1], 16))!r} instead."
            )
        if "\u2581" in stop:
            yield (
                f"The stop string {stop!r} holds U+2581, which stands for a space in the tokens of some tokenizers; a "
                "text holds the space itself. Give a space instead."
            )


def stop_hints(stops: Iterable[str]) -> Iterator[str]:
    r"""Hints about stop strings with a backslash and a letter where a line break was meant."""
    for stop in dict.fromkeys(stops):
        for letter in dict.fromkeys(re.findall(r"\\([nrt])", stop)):
            yield (
                f"The stop string {stop!r} holds a backslash and the letter {letter}, which is no {ESCAPES[letter]}. "
                f"In a shell a {ESCAPES[letter]} is written $'\\{letter}', as in --stop $'\\{letter}'; in JSON "
                f'"\\{letter}".'
            )


def special_stop_hints(stops: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Hints about stop strings that hold a special token beside other characters: such tokens have no text."""
    for stop in dict.fromkeys(stops):
        found = tokenizer.special_in(stop)
        if found and found != [stop]:
            yield (
                f"The stop string {stop!r} holds the special token {found[0]!r}, which is no part of a text, so this "
                f"string will hardly come. To end at the token, give {found[0]!r} alone."
            )


def tokenizer_stop_hints(stops: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Hints about stop strings that only the model's tokenizer tells."""
    stops = list(stops)
    yield from special_stop_hints(stops, tokenizer)
    yield from spelled_stop_hints(stops, tokenizer)
