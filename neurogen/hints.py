"""What was asked for and does nothing, or probably something else than was meant. A hint stops nothing: it is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurogen.sampler import Sampler
    from neurogen.tokenizer import Tokenizer

__all__ = ["draws_nothing", "sample_hints", "special_stop_hints", "stop_hints"]

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
