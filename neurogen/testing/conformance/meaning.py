"""Checks of a sampler's meaning: support and probabilities against the reference, ties, -inf, rows without a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from neurogen import reference
from neurogen.errors import InvalidLogitsError
from neurogen.testing.conformance.case import Case, Value, summary
from neurogen.testing.conformance.cases import KINDS, TIED, batch_of
from neurogen.testing.conformance.kit import Kit, Skip, check
from neurogen.testing.conformance.trial import CALLS, Trial, Violation

__all__: list[str] = []

NO_REFERENCE = "no float64 reference is given (Sampler.reference)"
SUM_TOLERANCE = 1e-5
TOTAL_VARIATION = 1e-6
UNDERFLOW = 2.0**-40
"""A kept token with less than this share of the largest weight may have the probability 0."""

KEYS = ((0, 0), (1, 17), (2**40 + 3, 5), (-9, 123_456))
"""(seed, position) at which what does not depend on them is tried."""


def _ids(mask: NDArray[np.bool_]) -> str:
    return f"tokens {summary(torch.from_numpy(np.flatnonzero(mask)))}"


@check("support", "the support is that of the author's float64 reference")
def support(kit: Kit) -> None:
    if not kit.subject.meaning.given:
        raise Skip(f"{NO_REFERENCE}; what it keeps is only held against its own probs and sample")
    kit.hold(kit.batches(large=True), support_law)
    for dtype in kit.dtypes()[1:]:
        kit.hold(kit.batches(quick=(60,), full=(7, 130), sets=(3, 8), dtype=dtype), support_law)


def support_law(trial: Trial) -> None:
    """Kept is what the reference keeps; where it changes within the precision of masses, either will do."""
    got = trial.support().numpy()
    for index, row, params in trial.rows():
        must, may = trial.subject.meaning.bounds(row, params)
        wrong = (must & ~got[index]) | (got[index] & ~may)
        if wrong.any():
            where = trial.where(index)
            raise Violation(f"{where}{_ids(must)} kept", f"{where}{_ids(got[index])} kept")


@check("probs", "probs sum to one and are those of the reference, within a total variation of 1e-6")
def probs(kit: Kit) -> None:
    if not kit.subject.meaning.given:
        kit.notes.append(f"{NO_REFERENCE}: only that they are probabilities has been checked")
    kit.hold(kit.batches(large=True), probs_law)


def probs_law(trial: Trial) -> None:
    """Non-negative, finite, summing to one, and close to the reference in total variation."""
    found = trial.probs().numpy()
    for index, row, params in trial.rows():
        got = found[index].astype(np.float64)
        where = trial.where(index)
        if not np.isfinite(got).all() or got.min() < 0:
            raise Violation(f"{where}finite numbers >= 0", where + summary(torch.from_numpy(got)))
        if abs(got.sum() - 1) > SUM_TOLERANCE:
            raise Violation(f"{where}a sum of 1", f"{where}a sum of {got.sum():.7g}")
        if trial.subject.meaning.given:
            _compare_with_reference(trial, got, row, params, where)


def _compare_with_reference(
    trial: Trial, got: NDArray[np.float64], row: NDArray[np.float32], params: dict[str, Value], where: str
) -> None:
    meaning = trial.subject.meaning
    must, may = meaning.bounds(row, params)
    kept = must | (may & (got > 0))
    expected = meaning.probs(row, params, kept)
    if expected is None:
        return
    distance = 0.5 * float(np.abs(got - expected).sum())
    if not distance <= TOTAL_VARIATION:
        raise Violation(
            f"{where}{summary(torch.from_numpy(expected))}",
            f"{where}{summary(torch.from_numpy(got))}, a total variation of {distance:.2g}",
        )


@check("agreement", "support, probs and sample agree: what has a probability is kept, what is drawn is kept")
def agreement(kit: Kit) -> None:
    kit.hold(kit.batches(), agreement_law)


def agreement_law(trial: Trial) -> None:
    """A token is kept if and only if it has a probability (or one that underflows), and only kept tokens are drawn."""
    kept, given = trial.support().numpy(), trial.probs().numpy() > 0
    for index, row, params in trial.rows():
        temperature = float(params.get("temperature", 1.0))
        tiny = reference.weights(row, temperature) < UNDERFLOW
        if (given[index] & ~kept[index]).any() or (kept[index] & ~given[index] & ~tiny).any():
            where = trial.where(index)
            raise Violation(
                f"{where}a probability for {_ids(kept[index])}, which are kept", f"{where}one for {_ids(given[index])}"
            )
    for seed, position in KEYS:
        ids = trial.sample(seed=seed, position=position)
        for index, token in enumerate(ids.tolist()):
            if 0 <= token < trial.case.vocab and not kept[index, token]:
                raise Violation(f"one of the {_ids(kept[index])}", f"token {token}")


@check("ties", "among equal logits the tokens of the reference are kept; the argmax is the lowest id")
def ties(kit: Kit) -> None:
    has_temperature = "temperature" in kit.subject.base
    if not kit.subject.meaning.given and not has_temperature:
        raise Skip(f"{NO_REFERENCE}, and no temperature")
    for dtype in kit.dtypes():
        cases = list(kit.batches(TIED, quick=(2, 7, 60), full=(2, 3, 7, 33, 130), sets=(6, 12), dtype=dtype))
        if kit.subject.meaning.given:
            kit.hold(cases, support_law)
        if has_temperature:
            kit.hold((replace(case, params={**case.params, "temperature": 0.0}) for case in cases), argmax_law)


@check("temperature-zero", "at temperature 0 the argmax is chosen, whatever else is given")
def temperature_zero(kit: Kit) -> None:
    if "temperature" not in kit.subject.base:
        raise Skip("it has no temperature")
    cold = ({**params, "temperature": 0.0} for params in kit.params(6, 14))
    cases = (
        batch_of(KINDS, kit.first_row + number, vocab, params, dtype)
        for number, params in enumerate(cold)
        for vocab in ((7, 300) if kit.quick else (1, 2, 7, 130, 3000))
        for dtype in kit.dtypes()
    )
    kit.hold(cases, argmax_law)


def argmax_law(trial: Trial) -> None:
    """ids, probs and support are those of the argmax, whatever seed and position."""
    if any(params.get("temperature") != 0 for _, _, params in trial.rows()):
        return  # a candidate of the shrinker
    expected = [reference.argmax(row) for row in trial.case.numpy_rows()]
    for seed, position in KEYS:
        ids = trial.sample(seed=seed, position=position)
        if ids.tolist() != expected:
            raise Violation(expected, ids)
    one_hot = torch.nn.functional.one_hot(torch.tensor(expected), trial.case.vocab)
    for got in (trial.support(), trial.probs()):
        if not got.equal(one_hot.to(got.dtype)):
            raise Violation(f"{summary(one_hot.to(got.dtype))}, the argmax alone", got)


@check("minus-infinity", "a token at -inf is not kept, has the probability 0 and is not drawn")
def minus_infinity(kit: Kit) -> None:
    kit.hold(kit.batches(("removed", "sparse"), quick=(2, 7, 60), full=(2, 3, 7, 33, 130, 1000)), removed_law)
    kit.hold(kit.batches(("removed", "sparse"), quick=(60,), full=(60,), dtype=kit.dtypes()[-1]), removed_law)


def removed_law(trial: Trial) -> None:
    """Nothing of a token at -inf."""
    removed = trial.case.logits == -torch.inf
    kept = trial.support()
    if bool((kept & removed).any()):
        raise Violation("no token at -inf kept", kept)
    given = trial.probs()
    if bool((given[removed] > 0).any()):
        raise Violation("the probability 0 at -inf", given)
    for seed, position in KEYS:
        ids = trial.sample(seed=seed, position=position)
        drawn = removed.gather(1, ids.clamp(0, trial.case.vocab - 1)[:, None])
        if bool(drawn.any()):
            raise Violation("no token at -inf", ids)


@check("invalid-rows", "rows with NaN, +inf or nothing left are named and get -1; other rows are not disturbed")
def invalid_rows(kit: Kit) -> None:
    kit.hold(_spoilt(kit), invalid_law, valid=False)


def _spoilt(kit: Kit) -> Iterator[Case]:
    """Batches in which some rows have no distribution."""
    fillings = ((1, torch.nan), (3, torch.inf), (4, None), (6, -torch.nan))
    for dtype in kit.dtypes():
        for case in kit.batches(KINDS[:8], quick=(3, 60), full=(1, 2, 7, 130), sets=(4, 9), dtype=dtype):
            logits = case.logits.clone()
            for row, value in fillings:
                if value is None:
                    logits[row] = -torch.inf
                else:
                    logits[row, (7 * row) % case.vocab] = value
            yield replace(case, logits=logits, recipe=())
            yield replace(case.with_rows([0, 4]), logits=logits[[1, 4]], recipe=())


def invalid_law(trial: Trial) -> None:
    """InvalidLogitsError with the rows; -1, zeros and False with check=False; valid rows as they are by themselves."""
    invalid = [not reference.is_valid(row) for row in trial.case.numpy_rows()]
    wrong = tuple(index for index, bad in enumerate(invalid) if bad)
    good = [index for index, bad in enumerate(invalid) if not bad]
    for name, nothing in (("sample", -1), ("probs", 0), ("support", False)):
        trial.lines.clear()
        got = trial.call(name, {})
        for index in wrong:
            if bool((got[index] != nothing).any()):
                raise Violation(f"{'the id -1' if name == 'sample' else nothing} in row {index}", got)
    if good and wrong:
        trial.same({"logits": f"logits[{good}]"}, {}, lambda result: result[good], f"rows {good} beside the others")
    if wrong:
        _expect_error(trial, wrong)


def _expect_error(trial: Trial, rows: tuple[int, ...]) -> None:
    for name in CALLS:
        trial.lines.clear()
        try:
            got = trial.call(name, {"check": True})
        except InvalidLogitsError as error:
            if error.rows != rows:
                raise Violation(
                    f"InvalidLogitsError for rows {list(rows)}", f"one for rows {list(error.rows)}"
                ) from None
        else:
            raise Violation(f"InvalidLogitsError for rows {list(rows)}", got)
