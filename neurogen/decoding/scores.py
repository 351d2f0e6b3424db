"""The score that sequences are ranked by, in best-of, beam search and comparisons.

It is the summed log-probability of the chosen tokens, including the one that ended the sequence, divided by
their number to the power `length_penalty`. Importing this module does not import torch.
"""

from __future__ import annotations

__all__ = ["sequence_score"]


def sequence_score(logprob: float, tokens: int, length_penalty: float = 1.0) -> float:
    """The score of a sequence, in nats; -inf for one without any token.

    Args:
        logprob: sum of the natural logarithms of its tokens' probabilities.
        tokens: how many were chosen, end-of-sequence counted.
        length_penalty: 0 ranks by the sum, 1 by its mean a token, more prefers longer sequences.
    """
    return float(logprob / tokens**length_penalty) if tokens else float("-inf")
