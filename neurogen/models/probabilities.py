"""Tells rows of probabilities from rows of logits, and makes logits of them. Knows no model, no text and no verdict.

A softmax over probabilities is nearly uniform, whatever they say: a model whose `forward` ends with a softmax looks as
if it had learnt nothing. Log-probabilities are logits as they are.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from neurogen.errors import ParameterError

__all__ = ["Kind", "LogitsAre", "are_probabilities", "check_logits_are", "kind_of", "least_probability", "log_of"]

Kind = Literal["logits", "probabilities"]
LogitsAre = Literal["auto", "logits", "probabilities"]

TOLERANCE = 0.02
"""How far the sum of a row may be from 1. A softmax in float16 or bfloat16 is up to 0.01 off, and is often stored as
float32 afterwards, so that the number format says nothing. Rows of logits practically never have this sum."""

NEARLY_ALL = 0.95
"""Share of the rows from which all count as probabilities; up to 1 - NEARLY_ALL, all count as logits."""

CHUNK = 1 << 22
"""Values that are looked at at a time."""


def check_logits_are(value: str) -> None:
    """Refuse an unknown value of `logits_are`.

    Raises:
        ParameterError: it is unknown.
    """
    if value not in get_args(LogitsAre):
        raise ParameterError(f"logits_are must be {', '.join(get_args(LogitsAre))}, got {value!r}.", "logits_are")


def are_probabilities(rows: Tensor) -> bool:
    """Whether nearly all rows [N, vocab] are probabilities; looks at one row where these are logits, as nearly always.

    One row of two values is too little to tell, and counts as logits.
    """
    if rows.shape[1] < 2 or rows.shape[0] * (rows.shape[1] - 1) < 2 or not bool(_distributions(rows[:1]).any()):
        return False
    count, of = _counted(rows)
    return count >= NEARLY_ALL * of


def kind_of(rows: Tensor, logits_are: LogitsAre = "auto", names: str = "row") -> Kind:
    """What rows [N, vocab] are.

    Args:
        rows: float32, float16 or bfloat16; those with NaN or infinities are passed over.
        logits_are: what they are said to be; `auto` looks.
        names: what a row is called.

    Raises:
        ParameterError: some rows are probabilities and others are not, or they are said to be probabilities and are
            not.
    """
    check_logits_are(logits_are)
    if logits_are == "logits":
        return "logits"
    count, of = _counted(rows)
    if of and count >= NEARLY_ALL * of:
        return "probabilities"
    if logits_are == "auto" and count <= (1 - NEARLY_ALL) * of:
        return "logits"
    found = f"{count:,} of {of:,} {names}s are probabilities (none below 0, and their sum is 1), the others are not"
    if logits_are == "probabilities":
        raise ParameterError(
            f"These are no probabilities: {found}. Leave logits_are (--logits-are) at auto.", "logits_are"
        )
    raise ParameterError(
        f"logits must be of one kind: {found}. Give all as logits, before the softmax; or say logits_are='logits' "
        "(--logits-are logits) if they are.",
        "logits",
    )


def log_of(probabilities: Tensor) -> Tensor:
    """Logits float32 of probabilities [N, vocab]: their logarithms, -inf for zero."""
    return probabilities.double().log().float()  # in float64, since float32 may take the smallest numbers for zero


def least_probability(dtype: torch.dtype) -> float:
    """The smallest positive number of a format; whatever rounds to zero is at most this large."""
    info = torch.finfo(dtype)
    return float(info.smallest_normal * info.eps)


def _counted(rows: Tensor) -> tuple[int, int]:
    """How many rows are probabilities, and how many are finite."""
    size = max(1, CHUNK // rows.shape[1])
    count = finite = 0
    for part in torch.split(rows.detach(), size):
        count += int(_distributions(part).sum())
        finite += int(part.isfinite().all(-1).sum())
    return count, finite


def _distributions(rows: Tensor) -> Tensor:
    """bool [N]: no value is below 0, and the sum is 1; never where there is a NaN or an infinity."""
    sums = rows.detach().sum(-1, dtype=torch.float32)
    return (rows.detach().amin(-1) >= 0) & ((sums - 1).abs() <= TOLERANCE)
