"""The settings of a beam search: its width, how lengths are weighed, when it may end. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from neurogen.contract.parameters import is_whole
from neurogen.decoding.scores import sequence_score
from neurogen.errors import ParameterError

__all__ = ["BeamSettings"]

MOST_BEAMS = 4096
"""The most beams: the memory for keys and values grows with each of them."""

LARGEST_PENALTY = 10.0
"""A length to a higher power may leave the range of float64."""


@dataclass(frozen=True)
class BeamSettings:
    """The settings of a beam search.

    Attributes:
        beams: sequences that are continued together.
        length_penalty: a finished sequence is ranked by its log-probability over its length to this power: 0 ranks by
            the log-probability, 1 by its mean a token, more prefers longer sequences.
        early_stopping: end as soon as there are `beams` finished sequences; if False, end when the best unfinished one
            is, at its present length, no better than the worst of them.

    Raises:
        ParameterError: a value outside its domain.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.beams, range(1, MOST_BEAMS + 1)):
            raise ParameterError(f"beams must be an integer from 1 to {MOST_BEAMS}, got {self.beams!r}.", "beams")
        penalty = self.length_penalty
        number = isinstance(penalty, int | float) and not isinstance(penalty, bool)
        if not number or not -LARGEST_PENALTY <= penalty <= LARGEST_PENALTY:
            raise ParameterError(
                f"length_penalty must be a number from {-LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}, got {penalty!r}.",
                "length_penalty",
            )
        if not isinstance(self.early_stopping, bool):
            raise ParameterError(
                f"early_stopping must be True or False, got {self.early_stopping!r}.", "early_stopping"
            )

    def score(self, logprob: float, length: int) -> float:
        """What a sequence of `length` new tokens, end-of-sequence counted, is ranked by."""
        return sequence_score(logprob, length, self.length_penalty)
