"""What a step says about sampled ids: their log-probabilities, and what is to blame where a row has no token.

That is the model if its logits are invalid, the processors if they leave no token, and else the sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neurogen.contract.mistakes import where_written
from neurogen.contract.sampler import NO_TOKEN
from neurogen.decoding.order import largest
from neurogen.decoding.processing import blamed
from neurogen.decoding.request import RequestState, SampledToken, TokenLogprobs
from neurogen.errors import ContractError, InvalidLogitsError, ParameterError

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler

__all__ = ["is_valid", "sampled_tokens"]


def sampled_tokens(
    sampler: Sampler,
    rows: Sequence[RequestState],
    ids: Tensor,
    logits: Tensor,
    processed: Tensor,
    refused: Mapping[int, ParameterError] | None = None,
    culprits: Mapping[int, Sequence[Processor]] | None = None,
) -> list[SampledToken]:
    """The tokens of the rows, or the error of a row without one.

    Args:
        sampler: has chosen them.
        rows: whose they are.
        ids: int64 [rows], -1 for a row without a token.
        logits: [rows, vocab], the model's, without ids that have no text.
        processed: what the sampler was given.
        refused: the error of a row that a processor has ended.
        culprits: the processors that left a row nothing, where it is known which.

    Raises:
        ContractError: the sampler gave an id outside the vocabulary, or no id for valid logits.
    """
    logprobs = _logprobs(rows, ids, logits)
    tokens = ids.tolist()
    if 0 <= min(tokens) <= max(tokens) < logits.shape[1]:
        return [SampledToken(token, info) for token, info in zip(tokens, logprobs, strict=True)]
    sampled = []
    for i, token in enumerate(tokens):
        if refused and i in refused:
            sampled.append(SampledToken(NO_TOKEN, error=refused[i]))
        elif 0 <= token < logits.shape[1]:
            sampled.append(SampledToken(token, logprobs[i]))
        else:
            _check_sampler(sampler, rows[i], token, processed[i])
            error = _invalid(sampler, i, rows[i], logits[i], (culprits or {}).get(i))
            sampled.append(SampledToken(NO_TOKEN, error=error))
    return sampled


def is_valid(logits: Tensor) -> bool:
    """Whether a row [vocab] has a distribution."""
    return bool(torch.isfinite(logits.max()))  # max is NaN if any value is


def _logprobs(rows: Sequence[RequestState], ids: Tensor, logits: Tensor) -> list[TokenLogprobs | None]:
    result: list[TokenLogprobs | None] = [None] * len(rows)
    asking = [i for i, row in enumerate(rows) if row.request.logprobs is not None]
    if not asking:
        return result
    logs = torch.log_softmax(logits[asking].float(), dim=-1)
    chosen = logs.gather(1, ids[asking].clamp(min=0).unsqueeze(1)).flatten().tolist()
    for i, row, logprob in zip(asking, logs, chosen, strict=True):
        result[i] = TokenLogprobs(logprob, _most_probable(row, rows[i].request.logprobs or 0))
    return result


def _most_probable(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The first `count` tokens of [vocab] and their log-probabilities, without those of probability zero."""
    if count == 0:
        return ()
    values, ids = largest(logprobs, count)
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple((token, value) for token, value in pairs if value > float("-inf"))


def _check_sampler(sampler: Sampler, row: RequestState, token: int, processed: Tensor) -> None:
    """Blame the sampler for an id outside the vocabulary, or for no id where the logits are valid."""
    of = f"Sampler {sampler.name!r} ({sampler.origin})"
    if token != NO_TOKEN:
        raise ContractError(
            f"{of} returned the id {token} for request {row.request.key!r}; ids of this vocabulary are 0 to "
            f"{len(processed) - 1}.{where_written(sampler, 'sample')}"
        )
    if is_valid(processed):
        raise ContractError(
            f"{of} kept no token for request {row.request.key!r}, although the logits are valid. A sampler keeps at "
            f"least one token of a valid row.{where_written(sampler, 'sample')}"
        )


def _invalid(
    sampler: Sampler, number: int, row: RequestState, logits: Tensor, culprits: Sequence[Processor] | None
) -> InvalidLogitsError:
    """The error of a row without a distribution; its message names the request, its reason does not."""
    error = InvalidLogitsError([number], sampler.name)
    named = f" for request {row.request.key!r}"
    error.args = (_blame(sampler, row, logits, culprits, named),)
    error.reason = _blame(sampler, row, logits, culprits, "")
    return error


def _blame(
    sampler: Sampler, row: RequestState, logits: Tensor, culprits: Sequence[Processor] | None, named: str
) -> str:
    if is_valid(logits):
        return (
            f"Nothing is left to draw{named} after {row.produced} new token(s): "
            f"{blamed(culprits or row.request.processors)}"
        )
    return (
        f"The model's logits{named} have no valid distribution after "
        f"{row.produced} new token(s): they hold NaN or +inf, or nothing above -inf, so sampler "
        f"{sampler.name!r} cannot draw. Often the number format overflows: try dtype float32 or bfloat16."
    )
