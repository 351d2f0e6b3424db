"""The logits processors that come with neurogen, as one plugin module; each is found by its entry point like any other.

Importing this package imports neither torch nor the libraries that single processors need.
"""

from __future__ import annotations

from neurogen.contract.hookspecs import hookimpl
from neurogen.contract.processor import Processor
from neurogen.processors.dry import Dry
from neurogen.processors.grammar import Grammar
from neurogen.processors.penalties import FrequencyPenalty, PresencePenalty, RepetitionPenalty
from neurogen.processors.repeats import NoRepeatNgram
from neurogen.processors.texts import BannedTexts
from neurogen.processors.tokens import AllowedTokens, BannedTokens, LogitBias, MinNewTokens

__all__ = ["FIRST_PARTY"]

FIRST_PARTY: tuple[type[Processor], ...] = (
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    Dry,
    LogitBias,
    NoRepeatNgram,
    AllowedTokens,
    BannedTokens,
    BannedTexts,
    MinNewTokens,
    Grammar,
)
"""In the order in which the command line puts them: what scales logits, what shifts them, what bans tokens."""


@hookimpl
def neurogen_processors() -> tuple[type[Processor], ...]:
    """All of them."""
    return FIRST_PARTY
