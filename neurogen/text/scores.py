"""What a sequence is worth to who ranks sequences: the same for best-of, beam search and comparisons.

The score is the summed log-probability of the tokens that were chosen, the one that ended the sequence among them, over
their number to the power `length_penalty`. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen.errors import ParameterError

if TYPE_CHECKING:
    from neurogen.text.generation import Result

__all__ = ["score_of", "sequence_score"]


def sequence_score(logprob: float, tokens: int, length_penalty: float = 1.0) -> float:
    """The score of a sequence, in nats; -inf for one without any token.

    Args:
        logprob: sum of the natural logarithms of its tokens' probabilities.
        tokens: how many were chosen, end-of-sequence counted.
        length_penalty: 0 ranks by the sum, 1 by its mean a token, more prefers longer sequences.
    """
    return float(logprob / tokens**length_penalty) if tokens else float("-inf")


def score_of(result: Result, length_penalty: float = 1.0) -> float:
    """The score of a result under the model, before processors, temperature and truncation.

    Raises:
        ParameterError: it has no log-probabilities.
    """
    if result.logprobs is None:
        raise ParameterError("A result is scored by its log-probabilities: run with logprobs=0 or more.", "logprobs")
    chosen = [entry["logprob"] for entry in result.logprobs]
    if result.end_logprob is not None:
        chosen.append(result.end_logprob)
    return sequence_score(sum(chosen), len(chosen), length_penalty)
