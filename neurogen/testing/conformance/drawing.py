"""Checks of how a sampler draws: ids in range, frequencies, and what seed and position do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurogen.testing.conformance.case import Case, Value, on, summary
from neurogen.testing.conformance.cases import KINDS, batch_of
from neurogen.testing.conformance.kit import Kit, Skip, check
from neurogen.testing.conformance.trial import Law, Trial, Violation

__all__ = ["g_test"]

ALPHA = 1e-8
"""How unlikely draws must be to be called wrong, over all G-tests of one check together."""

DRAWS = (20_000, 100_000)
"""Of one G-test, in the quick and in the full form."""

LEAST_EXPECTED = 5
"""Tokens expected less often are pooled (Cochran, 1954)."""

MANY = 2000
PLAYS = 64
"""Draws of which not all may be alike where a distribution has no token above MOST_CERTAIN: 0.7**64 is 1e-10."""

MOST_CERTAIN = 0.7
PAIR_VOCAB = 6


@check("ids", "ids are int64 between 0 and vocab - 1, one a row, for many seeds")
def ids(kit: Kit) -> None:
    kit.hold(kit.batches(sets=(3, 8)), ids_law)


def ids_law(trial: Trial) -> None:
    """Of MANY seeds on every row."""
    count = MANY // trial.case.batch + 1
    seeds = _counting(trial, 0, count * trial.case.batch)
    got = trial.sample(f"logits.repeat({count}, 1)", seed=seeds)
    outside = (got < 0) | (got >= trial.case.vocab)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise Violation(f"ids from 0 to {trial.case.vocab - 1}", f"the id {int(got[first])} with the seed {first}")


# Frequencies.


def g_test(counts: NDArray[np.int64], probs: NDArray[np.float64]) -> float:
    """The p-value of `counts` [cells] under `probs` [cells] by the G-test; cells of which few are expected are pooled.

    Returns:
        1 where fewer than two cells are left.
    """
    expected = probs * counts.sum()
    seldom = expected < LEAST_EXPECTED
    observed, wanted = counts[~seldom].astype(np.float64), expected[~seldom]
    if not len(wanted):
        return 1.0
    if expected[seldom].sum() >= LEAST_EXPECTED:
        observed, wanted = np.append(observed, counts[seldom].sum()), np.append(wanted, expected[seldom].sum())
    else:  # too few even together: they join the smallest of the others
        smallest = wanted.argmin()
        observed[smallest] += counts[seldom].sum()
        wanted[smallest] += expected[seldom].sum()
    if len(wanted) < 2:
        return 1.0
    drawn = observed > 0
    statistic = 2 * float((observed[drawn] * np.log(observed[drawn] / wanted[drawn])).sum())
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(max(statistic, 0.0) / 2, dtype=torch.float64)))


@check("frequencies", "tokens are drawn as often as probs says (G-test)")
def frequencies(kit: Kit) -> None:
    kinds = ("normal", "ties", "removed") if kit.quick else ("normal", "peaked", "near", "ties", "removed", "bimodal")
    rows = list(zip(kinds, (40, 12, 25, 3, 33, 60), strict=False))
    _hold_counts(kit, rows, kit.params(3, 6), _compare_tokens)


@check("independence", "neighbouring seeds, and neighbouring positions, draw independently (G-test of pairs)")
def independence(kit: Kit) -> None:
    _hold_counts(kit, [(kind, PAIR_VOCAB) for kind in ("peaked", "equal", "near")], kit.params(2, 4), _compare_pairs)


Compare = Callable[[Trial, NDArray[np.float64], NDArray[np.int64], float], None]
"""(trial, probs, tokens drawn, alpha): raises `Violation` where the tokens are too unlikely."""


def _hold_counts(kit: Kit, rows: list[tuple[str, int]], params: list[dict[str, Value]], compare: Compare) -> None:
    """Draw often from rows of some (kind, vocab), while the seed or the position counts up."""
    if kit.subject.cls.deterministic:
        raise Skip("it declares itself deterministic")
    cases = [
        batch_of((kind,), kit.first_row + number, vocab, chosen, kit.dtypes()[0])
        for number, chosen in enumerate(params)
        for kind, vocab in rows
    ]
    draws = DRAWS[0] if kit.quick else DRAWS[1]
    for by in ("seed", "position"):

        def law(trial: Trial, by: str = by) -> None:
            probs = _distribution(trial)
            compare(trial, probs, _drawn(trial, by, draws, kit.seed * draws), ALPHA / (2 * len(cases)))

        kit.hold(cases, law)


def _compare_tokens(trial: Trial, probs: NDArray[np.float64], drawn: NDArray[np.int64], alpha: float) -> None:
    """Tokens are distributed as probs."""
    counts = np.bincount(drawn, minlength=trial.case.vocab)
    trial.apply(f"torch.bincount({{}}, minlength={trial.case.vocab})", torch.from_numpy(counts))
    impossible = np.flatnonzero((counts > 0) & (probs == 0))
    if len(impossible):
        token = impossible[0]
        raise Violation(f"token {token} never, since probs gives it 0", f"{counts[token]} times in {len(drawn):,}")
    _compare_counts(counts, probs, alpha, f"in {len(drawn):,} draws, by token,")


def _compare_pairs(trial: Trial, probs: NDArray[np.float64], drawn: NDArray[np.int64], alpha: float) -> None:
    """Pairs drawn at n and n + 1 (not overlapping) fill their table as independent draws do."""
    size, pairs = trial.case.vocab, drawn.reshape(-1, 2)
    table = np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size * size)
    both = f"{{}}.reshape(-1, 2) @ torch.tensor([{size}, 1])"
    trial.apply(f"torch.bincount({both}, minlength={size * size})", torch.from_numpy(table))
    _compare_counts(table, np.outer(probs, probs).ravel(), alpha, "pairs of neighbours, by first and second token,")


def _compare_counts(counts: NDArray[np.int64], probs: NDArray[np.float64], alpha: float, what: str) -> None:
    p_value = g_test(counts, probs)
    if p_value < alpha:
        expected = torch.from_numpy((probs * counts.sum()).round().astype(np.int64))
        got = f"{summary(torch.from_numpy(counts))} (p = {p_value:.1g})"
        raise Violation(f"{what} about {summary(expected)}", got)


def _distribution(trial: Trial) -> NDArray[np.float64]:
    probs = trial.probs()[0].numpy().astype(np.float64)
    if not np.isfinite(probs).all() or probs.min() < 0 or not 0.5 < probs.sum() < 2:
        raise Violation("probabilities", torch.from_numpy(probs))
    return np.asarray(probs / probs.sum())


def _drawn(trial: Trial, by: str, draws: int, start: int) -> NDArray[np.int64]:
    """Tokens of the first row while one number counts up; ids outside the vocabulary are a difference."""
    numbers = {by: _counting(trial, start, start + draws)}
    got = trial.sample(f"logits[:1].repeat({draws}, 1)", **numbers).numpy()
    if got.min() < 0 or got.max() >= trial.case.vocab:
        raise Violation(f"ids from 0 to {trial.case.vocab - 1}", f"{got.min()} to {got.max()}")
    return np.asarray(got)


# Seeds and positions.


@check("seeds", "the same seed and position give the same token; others, of all 64 bits, give others")
def seeds(kit: Kit) -> None:
    if kit.subject.cls.deterministic:
        raise Skip("it declares itself deterministic")
    kit.hold(kit.batches(quick=(7, 60), full=(3, 33, 300), sets=(3, 6)), same_law)
    open_cases = list(_open_cases(kit))
    if not open_cases:
        raise Skip(f"with no parameters tried is the best token below {MOST_CERTAIN:.0%}: nothing depends on the seed")
    for name, (seeds, positions) in VARIATIONS.items():
        kit.hold(open_cases, _varied_law(name, seeds, positions))
    kit.hold(open_cases, swapped_law)


def _open_cases(kit: Kit) -> Iterator[Case]:
    """Single rows whose best token is not nearly certain."""
    for params in kit.params(4, 8):
        for kind in ("equal", "near", "normal"):
            case = batch_of((kind,), kit.first_row, 40, params, kit.dtypes()[0])
            kit.count()
            if float(Trial(kit.subject, case).probs().max()) < MOST_CERTAIN:
                yield case


def same_law(trial: Trial) -> None:
    """A repetition, and a number in a tensor, change nothing."""
    first = trial.sample()
    again = trial.sample()
    if not again.equal(first):
        raise Violation(f"{summary(first)}, as at the first call", again)
    batch = trial.case.batch
    if isinstance(trial.case.seed, int) and isinstance(trial.case.position, int):
        written = trial.sample(seed=(trial.case.seed,) * batch, position=(trial.case.position,) * batch)
        if not written.equal(first):
            raise Violation(f"{summary(first)}, as with a number for all rows", written)


COUNTING, UPPER = range(PLAYS), range(0, PLAYS * 2**32, 2**32)
VARIATIONS: dict[str, tuple[range | int, range | int]] = {
    "seeds 0, 1, 2, ...": (COUNTING, 3),
    "negative seeds": (range(0, -PLAYS, -1), 3),
    "seeds that differ in their upper 32 bits": (UPPER, 3),
    "positions 0, 1, 2, ...": (3, COUNTING),
    "positions that differ in their upper 32 bits": (3, UPPER),
    "seeds and positions of one sum": (COUNTING, range(PLAYS, 0, -1)),
}
"""Name -> seeds and positions, PLAYS of them or one for all, of which not all give the same token."""


def _is_open(trial: Trial) -> bool:
    """Whether a case, perhaps made smaller, still leaves something to chance."""
    return float(trial.subject.make(trial.uniform).probs(trial.logits[:1]).max()) < MOST_CERTAIN


def _plays(trial: Trial, seed: range | int, position: range | int) -> Tensor:
    numbers = {
        name: value if isinstance(value, int) else _counting(trial, value.start, value.stop, value.step)
        for name, value in (("seed", seed), ("position", position))
    }
    return trial.sample(f"logits[:1].repeat({PLAYS}, 1)", **numbers)


def _counting(trial: Trial, start: int, stop: int, step: int = 1) -> str:
    """A tensor of evenly spaced numbers, as code."""
    bounds = f"{stop}" if (start, step) == (0, 1) else f"{start}, {stop}" if step == 1 else f"{start}, {stop}, {step}"
    return f"torch.arange({bounds}{on(trial.subject.device)})"


def _varied_law(name: str, seeds: range | int, positions: range | int) -> Law:
    def law(trial: Trial) -> None:
        if _is_open(trial):
            got = _plays(trial, seeds, positions)
            if bool((got == got[0]).all()):
                raise Violation(f"{name}: different tokens in {PLAYS} draws", f"token {int(got[0])} each time")

    return law


def swapped_law(trial: Trial) -> None:
    """(seed, position) and (position, seed) are different numbers."""
    if _is_open(trial):
        low, high = COUNTING, range(1000, 1000 + PLAYS)
        one, other = _plays(trial, low, high), _plays(trial, high, low)
        if one.equal(other):
            raise Violation("other tokens when seed and position are exchanged", one)


@check("deterministic", "a sampler that declares itself deterministic chooses the same whatever seed and position")
def deterministic(kit: Kit) -> None:
    if not kit.subject.cls.deterministic:
        raise Skip("it does not declare itself deterministic")
    kit.hold(kit.batches(KINDS), deterministic_law)


def deterministic_law(trial: Trial) -> None:
    """The same ids for many seeds and positions."""
    numbers = _counting(trial, 0, PLAYS * trial.case.batch)
    expected = trial.sample()
    got = trial.sample(f"logits.repeat({PLAYS}, 1)", seed=numbers, position=numbers).reshape(PLAYS, -1)
    different = (got != expected).any(dim=1).nonzero()
    if len(different):
        raise Violation(f"{summary(expected)} for every seed", f"{summary(got[int(different[0])])} for another")
