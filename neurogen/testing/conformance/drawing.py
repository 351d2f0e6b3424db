"""Checks of how a sampler draws: ids in range, frequencies, and what seed and position do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurogen.testing.conformance.case import Case, Shown, summary
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
    repeated = trial.view(f"logits.repeat({count}, 1)", lambda logits: logits.repeat(count, 1))
    seeds = torch.arange(count * trial.case.batch, device=trial.subject.device)
    got = trial.sample(repeated, seed=Shown(f"torch.arange({len(seeds)})", seeds))
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
    if kit.subject.cls.deterministic:
        raise Skip("it declares itself deterministic")
    kinds = ("normal", "ties", "removed") if kit.quick else ("normal", "peaked", "near", "ties", "removed", "bimodal")
    cases = [
        batch_of((kind,), kit.first_row + number, vocab, params, kit.dtypes()[0])
        for number, params in enumerate(kit.params(3, 6))
        for kind, vocab in zip(kinds, (40, 12, 25, 3, 33, 60), strict=False)
    ]
    draws = DRAWS[0] if kit.quick else DRAWS[1]
    alpha = ALPHA / (2 * len(cases))
    for by in ("seed", "position"):
        kit.hold(cases, _frequency_law(by, draws, kit.seed * draws, alpha))


def _frequency_law(by: str, draws: int, start: int, alpha: float) -> Law:
    """The law that `draws` tokens, while the seed or the position counts up from `start`, are distributed as probs."""

    def law(trial: Trial) -> None:
        probs = _distribution(trial)
        counts = np.bincount(_drawn(trial, by, draws, start), minlength=trial.case.vocab)
        trial.apply(f"torch.bincount({{}}, minlength={trial.case.vocab})", torch.from_numpy(counts))
        impossible = np.flatnonzero((counts > 0) & (probs == 0))
        if len(impossible):
            token = impossible[0]
            raise Violation(f"token {token} never, since probs gives it 0", f"{counts[token]} times in {draws:,}")
        p_value = g_test(counts, probs)
        if p_value < alpha:
            expected = torch.from_numpy((probs * draws).round().astype(np.int64))
            got = f"{summary(torch.from_numpy(counts))} (p = {p_value:.1g})"
            raise Violation(f"in {draws:,} draws, by token, about {summary(expected)}", got)

    return law


def _distribution(trial: Trial) -> NDArray[np.float64]:
    probs = trial.probs()[0].numpy().astype(np.float64)
    if not np.isfinite(probs).all() or probs.min() < 0 or not 0.5 < probs.sum() < 2:
        raise Violation("probabilities", torch.from_numpy(probs))
    return np.asarray(probs / probs.sum())


def _drawn(trial: Trial, by: str, draws: int, start: int) -> NDArray[np.int64]:
    """Tokens of the first row while one number counts up; ids outside the vocabulary are a difference."""
    row = trial.view(f"logits[:1].repeat({draws}, 1)", lambda logits: logits[:1].repeat(draws, 1))
    counting = torch.arange(start, start + draws, device=trial.subject.device)
    numbers = {by: Shown(f"torch.arange({start}, {start + draws})", counting)}
    got = trial.sample(row, **numbers).numpy()  # type: ignore[arg-type]
    if got.min() < 0 or got.max() >= trial.case.vocab:
        raise Violation(f"ids from 0 to {trial.case.vocab - 1}", f"{got.min()} to {got.max()}")
    return np.asarray(got)


@check("independence", "neighbouring seeds, and neighbouring positions, draw independently (G-test of pairs)")
def independence(kit: Kit) -> None:
    if kit.subject.cls.deterministic:
        raise Skip("it declares itself deterministic")
    cases = [
        batch_of((kind,), kit.first_row + number, PAIR_VOCAB, params, kit.dtypes()[0])
        for number, params in enumerate(kit.params(2, 4))
        for kind in ("peaked", "equal", "near")
    ]
    draws = DRAWS[0] if kit.quick else DRAWS[1]
    for by in ("seed", "position"):
        kit.hold(cases, _pair_law(by, draws, kit.seed * draws, ALPHA / (2 * len(cases))))


def _pair_law(by: str, draws: int, start: int, alpha: float) -> Law:
    """The law that pairs drawn at n and n + 1 (not overlapping) fill their table as independent draws do."""

    def law(trial: Trial) -> None:
        probs = _distribution(trial)
        pairs = _drawn(trial, by, draws, start).reshape(-1, 2)
        size = trial.case.vocab
        table = np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size * size)
        both = "{}.reshape(-1, 2) @ torch.tensor([" + f"{size}, 1])"
        trial.apply(f"torch.bincount({both}, minlength={size * size})", torch.from_numpy(table))
        expected = np.outer(probs, probs).ravel()
        p_value = g_test(table, expected)
        if p_value < alpha:
            got = f"{summary(torch.from_numpy(table))} (p = {p_value:.1g})"
            wanted = torch.from_numpy((expected * len(pairs)).round().astype(np.int64))
            raise Violation(f"pairs of neighbours, by first and second token, about {summary(wanted)}", got)

    return law


# Seeds and positions.


@check("seeds", "the same seed and position give the same token; others, of all 64 bits, give others")
def seeds(kit: Kit) -> None:
    if kit.subject.cls.deterministic:
        raise Skip("it declares itself deterministic")
    kit.hold(kit.batches(quick=(7, 60), full=(3, 33, 300), sets=(3, 6)), same_law)
    open_cases = list(_open_cases(kit))
    if not open_cases:
        raise Skip(f"with no parameters tried is the best token below {MOST_CERTAIN:.0%}: nothing depends on the seed")
    for vary in VARIATIONS:
        kit.hold(open_cases, _varied_law(vary))
    kit.hold(open_cases, swapped_law)
    kit.hold(open_cases, summed_law)


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


def _count(step: int) -> Callable[[], Sequence[int]]:
    return lambda: [number * step for number in range(PLAYS)]


VARIATIONS: dict[str, tuple[str, Callable[[], Sequence[int]]]] = {
    "seeds 0, 1, 2, ...": ("seed", _count(1)),
    "negative seeds": ("seed", _count(-1)),
    "seeds that differ in their upper 32 bits": ("seed", _count(2**32)),
    "positions 0, 1, 2, ...": ("position", _count(1)),
    "positions that differ in their upper 32 bits": ("position", _count(2**32)),
}


def _is_open(trial: Trial) -> bool:
    """Whether a case, perhaps made smaller, still leaves something to chance."""
    return float(trial.subject.make(trial.uniform).probs(trial.logits.value[:1]).max()) < MOST_CERTAIN


def _plays(trial: Trial, seed: Sequence[int], position: Sequence[int]) -> Tensor:
    row = trial.view(f"logits[:1].repeat({len(seed)}, 1)", lambda logits: logits[:1].repeat(len(seed), 1))
    return trial.sample(row, seed=_column(seed, trial), position=_column(position, trial))


def _column(numbers: Sequence[int], trial: Trial) -> Shown:
    """A tensor of evenly spaced numbers."""
    first, step = numbers[0], numbers[1] - numbers[0]
    tensor = torch.tensor(numbers, device=trial.subject.device)
    if step == 0:
        return Shown(f"torch.full(({len(numbers)},), {first})", tensor)
    return Shown(f"torch.arange({first}, {first + step * len(numbers)}, {step})", tensor)


def _varied_law(name: str) -> Law:
    """The law that numbers which differ so do not all give one token."""
    which, numbers = VARIATIONS[name]

    def law(trial: Trial) -> None:
        if not _is_open(trial):
            return
        other = [3] * PLAYS
        got = _plays(trial, numbers(), other) if which == "seed" else _plays(trial, other, numbers())
        if bool((got == got[0]).all()):
            raise Violation(f"{name}: different tokens in {PLAYS} draws", f"token {int(got[0])} each time")

    return law


def swapped_law(trial: Trial) -> None:
    """(seed, position) and (position, seed) are different numbers."""
    if not _is_open(trial):
        return
    low, high = list(range(PLAYS)), list(range(1000, 1000 + PLAYS))
    one, other = _plays(trial, low, high), _plays(trial, high, low)
    if one.equal(other):
        raise Violation("other tokens when seed and position are exchanged", one)


def summed_law(trial: Trial) -> None:
    """(seed + 1, position - 1) is another number than (seed, position)."""
    if not _is_open(trial):
        return
    got = _plays(trial, list(range(PLAYS)), list(range(PLAYS, 0, -1)))
    if bool((got == got[0]).all()):
        raise Violation(f"different tokens in {PLAYS} draws with one sum of seed and position", f"token {int(got[0])}")


@check("deterministic", "a sampler that declares itself deterministic chooses the same whatever seed and position")
def deterministic(kit: Kit) -> None:
    if not kit.subject.cls.deterministic:
        raise Skip("it does not declare itself deterministic")
    kit.hold(kit.batches(KINDS), deterministic_law)


def deterministic_law(trial: Trial) -> None:
    """The same ids for many seeds and positions."""
    count = PLAYS
    repeated = trial.view(f"logits.repeat({count}, 1)", lambda logits: logits.repeat(count, 1))
    numbers = torch.arange(count * trial.case.batch, device=trial.subject.device)
    written = Shown(f"torch.arange({len(numbers)})", numbers)
    expected = trial.sample()
    got = trial.sample(repeated, seed=written, position=written).reshape(count, -1)
    different = (got != expected).any(dim=1).nonzero()
    if len(different):
        raise Violation(f"{summary(expected)} for every seed", f"{summary(got[int(different[0])])} for another")
