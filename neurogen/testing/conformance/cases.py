"""The logits and parameters that checks are tried on. Made from a seed, the same everywhere; knows no law."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.fields import FieldInfo

from neurogen.contract.parameters import BOUNDS
from neurogen.errors import NeurogenError
from neurogen.testing import recorded
from neurogen.testing.conformance.case import Case, Value
from neurogen.testing.conformance.subject import Subject

__all__ = ["KINDS", "TIED", "accepted", "batch_of", "bounds_of", "param_sets", "row_of", "values_of"]

OWN_KINDS = ("near", "negative", "equal", "pair", "sparse")
KINDS = (*recorded.KINDS, *OWN_KINDS)
"""Kinds of logits: those of the recorded cases, and the ones below."""

TIED = ("ties", "equal", "zeros", "pair")
"""Kinds with equal logits among the largest."""

LARGE = 1_000_000
"""Beyond the vocabularies that are tried."""


def row_of(kind: str, seed: int, vocab: int, dtype: str = "float32") -> torch.Tensor:
    """One valid row of logits, float32 that `dtype` holds exactly.

    | kind | logit |
    |---|---|
    | those of `neurogen.testing.recorded` | see there |
    | near | 4 and a little: equal in half precision, not in float32 |
    | negative | normal less 40 |
    | equal | 2.5 |
    | pair | normal, and two tokens with the largest logit |
    | sparse | -inf, but for one token in eight |
    """
    if kind in recorded.KINDS:
        return torch.from_numpy(recorded.make_logits(kind, seed, vocab, dtype))
    base = recorded.make_logits("normal", seed, vocab, dtype)
    bits = _own_row(kind, seed, vocab, base).astype(np.float32).view(np.uint32) & np.uint32(recorded.KEPT_BITS[dtype])
    return torch.from_numpy(bits.view(np.float32))


def _own_row(kind: str, seed: int, vocab: int, base: NDArray[np.float32]) -> NDArray[Any]:
    if kind == "near":
        return np.asarray(4 + recorded.make_logits("flat", seed, vocab) / 4)
    if kind == "negative":
        return np.asarray(np.round(base * 4) / 4 - 40)
    if kind == "equal":
        return np.full(vocab, 2.5)
    return _paired(base, seed) if kind == "pair" else _thinned(base, seed)


def _paired(row: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    where = random.Random(seed).sample(range(len(row)), min(2, len(row)))
    row[where] = 16.0
    return row


def _thinned(row: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    ids = np.arange(len(row))
    first = seed % min(8, len(row))
    return np.where(ids % 8 == first % 8, row, np.float32(-np.inf)).astype(np.float32)


def batch_of(
    kinds: Sequence[str], seed: int, vocab: int, params: dict[str, Value], dtype: str = "float32", stored: str = ""
) -> Case:
    """A case with one row a kind.

    Args:
        kinds: of the rows.
        seed: of the first row; the next ones count on.
        vocab: >= 1.
        params: for all rows.
        dtype: that holds the logits exactly.
        stored: dtype of the tensor; that one by default.
    """
    rows = [row_of(kind, seed + index, vocab, dtype) for index, kind in enumerate(kinds)]
    exact = "" if dtype == "float32" else f', "{dtype}"'
    recipe = tuple(f'row_of("{kind}", {seed + index}, {vocab}{exact})' for index, kind in enumerate(kinds))
    tensor = torch.stack(rows).to(getattr(torch, stored or dtype))
    return Case(tensor, params, seed=seed % 1000, position=seed % 7, recipe=recipe)


# Parameters.


def bounds_of(field: FieldInfo) -> dict[str, float]:
    """The bounds of a number: `gt`, `ge`, `lt`, `le`, those it has."""
    found = ((bound, getattr(item, bound, None)) for item in field.metadata for bound, _ in BOUNDS)
    return {bound: limit for bound, limit in found if limit is not None}


def values_of(name: str, field: FieldInfo, base: Value) -> list[Value]:
    """Values of one parameter worth trying: its bounds, near them, between them, and what is usual."""
    if field.annotation is bool:
        return [False, True]
    if field.annotation is int:
        return _unique([base, *_whole_values(bounds_of(field))])
    if field.annotation is float:
        usual = [0.5, 1.0, 1.7] if name == "temperature" else []
        return _unique([base, *_real_values(bounds_of(field), float(base)), *usual])
    return [base]


def _whole_values(bounds: dict[str, float]) -> list[Value]:
    least = bounds.get("ge", bounds.get("gt", 0) + 1 if "gt" in bounds else None)
    most = bounds.get("le", bounds["lt"] - 1 if "lt" in bounds else None)
    low = int(least) if least is not None else -LARGE
    high = int(most) if most is not None else LARGE
    return [value for value in (low, low + 1, 1, 2, 3, 7, high) if low <= value <= high]


def _real_values(bounds: dict[str, float], base: float) -> list[Value]:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    found = [bounds[bound] for bound in ("ge", "le") if bound in bounds]
    if low is not None and high is not None:
        found += [low + (high - low) * share for share in (0.05, 0.3, 0.5, 0.7, 0.95)]
    else:
        size = abs(base) or 1.0
        found += [base - size / 2, base + size] if low is None else [low + size / 2, low + size * 2]
        if high is not None:
            found = [value for value in found if value <= high]
    return [float(value) for value in found]


def _unique(values: Sequence[Value]) -> list[Value]:
    return list(dict.fromkeys(values))


def param_sets(subject: Subject, seed: int, most: int) -> Iterator[dict[str, Value]]:
    """At most `most` sets of parameters: the base, then each parameter's values alone, then some together.

    Sets that the sampler's schema refuses, since its parameters depend on each other, are left out.
    """
    fields = subject.cls.Params.model_fields
    values = {name: values_of(name, field, subject.base[name]) for name, field in fields.items()}
    chosen = random.Random(seed)
    alone = [{name: value} for name, several in values.items() for value in several if value != subject.base[name]]
    chosen.shuffle(alone)
    together = ({name: chosen.choice(several) for name, several in values.items()} for _ in range(4 * most))
    first = alone[: most * 2 // 3] if len(values) > 1 else alone
    seen: set[str] = set()
    found = 0
    for params in itertools.chain([{}], first, together):
        if found == most:
            return
        if repr(sorted(params.items())) not in seen and accepted(subject, params):
            seen.add(repr(sorted(params.items())))
            found += 1
            yield params


def accepted(subject: Subject, params: dict[str, Value]) -> bool:
    """Whether the sampler takes these values together."""
    try:
        subject.make(params)
    except NeurogenError:
        return False
    return True
