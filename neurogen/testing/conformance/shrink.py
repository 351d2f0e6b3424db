"""Makes a case that breaks a law as small as it can: fewer rows, fewer tokens, its own parameters, round logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from neurogen.testing.conformance.case import MOST_WRITTEN, Case

__all__ = ["shrink"]

MOST_ATTEMPTS = 1500
MOST_SINGLE = 40
"""Logits that are tried one by one."""

Breaks = Callable[[Case], bool]


def shrink(case: Case, breaks: Breaks, seconds: float) -> Case:
    """The smallest case found within this time that still breaks the law.

    Args:
        case: breaks it.
        breaks: whether a case does, in the same manner.
        seconds: wall time.
    """
    search = _Shrinking(case, breaks, seconds)
    before = None
    while before is not search.case and not search.is_over:
        before = search.case
        search.remove("batch", lambda case, rows: case.with_rows(rows))
        search.remove("vocab", lambda case, columns: case.with_columns(columns))
        search.first(_plainer_params)
        search.first(_plainer_numbers)
        search.first(_rounder_logits)
    small = search.case
    if small.logits.numel() > MOST_WRITTEN and not small.recipe:
        return search.last_with_recipe
    return small


class _Shrinking:
    def __init__(self, case: Case, breaks: Breaks, seconds: float) -> None:
        self.case = case
        self.last_with_recipe = case
        self._breaks = breaks
        self._end = time.monotonic() + seconds
        self._attempts = 0

    @property
    def is_over(self) -> bool:
        return self._attempts >= MOST_ATTEMPTS or time.monotonic() > self._end

    def take(self, candidate: Case) -> bool:
        """Go on from a candidate if it breaks the law too."""
        if self.is_over:
            return False
        self._attempts += 1
        if not self._breaks(candidate):
            return False
        self.case = candidate
        if candidate.recipe:
            self.last_with_recipe = candidate
        return True

    def remove(self, size: str, keep: Callable[[Case, Sequence[int]], Case]) -> None:
        """Leave out pieces, halves first, then ever smaller ones (Zeller and Hildebrandt, 2002, "ddmin")."""
        piece = getattr(self.case, size) // 2
        while piece >= 1 and not self.is_over:
            start = 0
            while start < getattr(self.case, size) and not self.is_over:
                count = getattr(self.case, size)
                rest = [*range(start), *range(start + piece, count)]
                if not rest or not self.take(keep(self.case, rest)):
                    start += piece
            piece //= 2

    def first(self, candidates: Callable[[Case], Iterator[Case]]) -> None:
        """Take candidates as long as one breaks the law."""
        while not self.is_over and any(self.take(candidate) for candidate in candidates(self.case)):
            pass


def _plainer_params(case: Case) -> Iterator[Case]:
    for name in case.params:
        yield replace(case, params={other: value for other, value in case.params.items() if other != name})
    for name, value in case.params.items():
        if isinstance(value, float) and round(value, 1) != value:
            yield replace(case, params={**case.params, name: round(value, 1)})


def _plainer_numbers(case: Case) -> Iterator[Case]:
    seed, position = _plain(case.seed), _plain(case.position)
    if seed != case.seed:
        yield replace(case, seed=seed)
    if position != case.position:
        yield replace(case, position=position)


def _plain(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return tuple(range(len(value))) if isinstance(value, tuple) else 0


def _rounder_logits(case: Case) -> Iterator[Case]:
    """Ranks in place of logits, then fewer digits, then zeros one by one."""
    x = case.logits
    finite = x.isfinite()
    everywhere: tuple[Callable[[Tensor], Tensor], ...] = (lambda y: y + 0.0, _ranks, torch.round, _to_tenths)
    for change in everywhere:
        other = torch.where(finite, change(x.float()).to(x.dtype), x)
        if _digits(other) < _digits(x):
            yield replace(case, logits=other, recipe=())
    if x.numel() <= MOST_SINGLE:
        for row, column in finite.nonzero().tolist():
            if x[row, column] != 0:
                other = x.clone()
                other[row, column] = 0
                yield replace(case, logits=other, recipe=())


def _to_tenths(x: Tensor) -> Tensor:
    return (x * 10).round() / 10


def _ranks(x: Tensor) -> Tensor:
    values: Tensor = torch.unique(x[x.isfinite()])
    return torch.searchsorted(values, x.clamp(-3e38, 3e38)).float()


def _digits(x: Tensor) -> int:
    """How much there is to write."""
    return sum(len(f"{value:.9g}") for value in x.float().flatten().tolist()[:2000])
