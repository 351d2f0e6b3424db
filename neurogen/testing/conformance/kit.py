"""Checks and how they are run: the registry of checks, and the `Kit` with which a check tries its laws on cases.

A check is a function of a kit. It yields nothing: it calls `kit.hold(cases, law)`, or raises `Skip`.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from neurogen.contract.declarations import sampler_problem
from neurogen.contract.sampler import Sampler
from neurogen.errors import NeurogenError, ParameterError
from neurogen.testing.conformance.case import Case, Value
from neurogen.testing.conformance.cases import KINDS, batch_of, param_sets
from neurogen.testing.conformance.report import CheckFailure, CheckResult, Report
from neurogen.testing.conformance.shrink import shrink
from neurogen.testing.conformance.subject import Subject
from neurogen.testing.conformance.trial import Law, Trial, Violation

__all__ = ["CHECKS", "Check", "Kit", "Skip", "check", "run", "run_check"]

RUN_ROWS = 64
"""Rows are numbered from here for every run: runs with neighbouring seeds have no row in common."""

SHRINK_SECONDS = (5.0, 10.0)
"""For making a case small, in the quick and in the full form."""


NOT_COMPILED = re.compile(
    r"^PluginError: .*(it cannot be compiled|was compiled\.)|^ContractError: .*in every branch\.$", re.S
)
"""How samplers say so."""


class Skip(Exception):  # noqa: N818  (it says why a check does not apply, and never leaves the kit)
    """A check does not apply to this sampler, or cannot be made here."""


class Broken(Exception):  # noqa: N818  (what a check has found, and never leaves the kit)
    """A check fails."""

    def __init__(self, failure: CheckFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: short, as in reports and options.
        title: what must hold, in a sentence.
        function: tries it.
    """

    name: str
    title: str
    function: Callable[[Kit], None]


CHECKS: dict[str, Check] = {}
"""Name -> check, in the order in which they are run."""


def check(name: str, title: str) -> Callable[[Callable[[Kit], None]], Callable[[Kit], None]]:
    """Register a function as a check."""

    def register(function: Callable[[Kit], None]) -> Callable[[Kit], None]:
        CHECKS[name] = Check(name, title, function)
        return function

    return register


class Kit:
    """What a check works with.

    Attributes:
        subject: the sampler.
        quick: the short form.
        seed: of the cases.
        cases: how many have been tried.
        notes: what is to be said beside the result.
    """

    def __init__(self, subject: Subject, *, quick: bool, seed: int) -> None:
        self.subject = subject
        self.quick = quick
        self.seed = seed
        self.cases = 0
        self.notes: list[str] = []

    # What is tried.

    @property
    def first_row(self) -> int:
        """The seed of the first row of logits of this run."""
        return self.seed * 100_000 + RUN_ROWS

    def dtypes(self) -> list[str]:
        """The dtypes that the sampler declares, the widest first."""
        return [name for name in ("float32", "float16", "bfloat16") if name in self.subject.cls.dtypes]

    def params(self, quick: int, full: int) -> list[dict[str, Value]]:
        """Sets of parameters: at most `quick` in the quick form, `full` in the full one."""
        return list(param_sets(self.subject, self.seed, quick if self.quick else full))

    def batches(
        self,
        kinds: Iterable[str] = KINDS,
        *,
        quick: tuple[int, ...] = (2, 7, 60, 300),
        full: tuple[int, ...] = (1, 2, 3, 7, 33, 130, 1000),
        sets: tuple[int, int] = (6, 14),
        dtype: str | None = None,
        large: bool = False,
    ) -> Iterator[Case]:
        """Batches with a row of each kind, for vocabularies and sets of parameters.

        Args:
            kinds: of the rows.
            quick, full: vocabularies.
            sets: how many sets of parameters, in the quick and in the full form.
            dtype: of the logits; the widest that the sampler takes by default.
            large: also a vocabulary of 32,000, with a few kinds.
        """
        stored = dtype or self.dtypes()[0]
        number = self.first_row
        params = self.params(*sets)
        for vocab in quick if self.quick else full:
            for chosen in params:
                yield batch_of(tuple(kinds), number, vocab, chosen, stored)
                number += len(KINDS)
        if large:
            for chosen in params[:2] if self.quick else params:
                yield batch_of(("normal", "peaked", "removed"), number, 32_000, chosen, stored)
                number += 3

    # What must hold.

    def hold(self, cases: Iterable[Case], law: Law, *, valid: bool = True) -> None:
        """Try a law on cases; the first that breaks it is made small and fails the check.

        Args:
            cases: any number.
            law: raises where it does not hold.
            valid: it says something of rows that have a distribution alone.
        """
        for case in cases:
            self.cases += 1
            found = self._break(case, law, valid)
            if found is not None:
                raise Broken(self._smallest(case, law, valid, found))

    def fail(self, expected: str, got: str, snippet: str = "") -> None:
        """Fail the check without a case."""
        raise Broken(CheckFailure(expected, got, snippet))

    def count(self) -> None:
        """Another case has been tried without `hold`."""
        self.cases += 1

    def _break(self, case: Case, law: Law, valid: bool) -> tuple[str, CheckFailure] | None:
        """How a case breaks the law, and the report of it; None where it holds."""
        try:
            trial = Trial(self.subject, case)
        except NeurogenError:
            return None  # parameters that do not go together, met while shrinking
        if valid and not trial.is_valid:
            return None
        try:
            law(trial)
        except Violation as difference:
            return "difference", CheckFailure(difference.expected, difference.got, trial.snippet())
        except Skip:
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return type(error).__name__, CheckFailure("a result", message, trial.snippet())
        return None

    def _smallest(self, case: Case, law: Law, valid: bool, found: tuple[str, CheckFailure]) -> CheckFailure:
        manner, failure = found

        def breaks(candidate: Case) -> bool:
            other = self._break(candidate, law, valid)
            return other is not None and other[0] == manner

        small = shrink(case, breaks, seconds=SHRINK_SECONDS[0 if self.quick else 1])
        again = self._break(small, law, valid)
        return again[1] if again is not None else failure


def run_check(kit_check: Check, subject: Subject, *, quick: bool, seed: int) -> CheckResult:
    """Run one check and return its result."""
    kit = Kit(subject, quick=quick, seed=seed)
    started = time.perf_counter()
    result = partial(CheckResult, kit_check.name, kit_check.title)
    failure = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the sampler; what it returns is looked at
            kit_check.function(kit)
        done = result("passed")
    except Skip as reason:
        kit.notes.insert(0, str(reason))
        done = result("skipped")
    except Broken as broken:
        failure = broken.failure
        done = result("failed")
    except NeurogenError as error:
        failure = CheckFailure("a check that can be made", f"{type(error).__name__}: {error}")
        done = result("failed")
    return replace(
        done, cases=kit.cases, notes=tuple(kit.notes), failure=failure, seconds=time.perf_counter() - started
    )


def run(
    sampler: Sampler | type[Sampler],
    *,
    device: str = "cpu",
    quick: bool = False,
    seed: int = 0,
    only: Iterable[str] = (),
    told: Callable[[CheckResult], None] | None = None,
) -> Report:
    """Run the checks; see `neurogen.testing.conformance.check` for the arguments."""
    where = torch.device(device)
    chosen = list(only) or list(CHECKS)
    unknown = [name for name in chosen if name not in CHECKS]
    if unknown:
        raise ParameterError(f"There is no check {unknown[0]!r}. There are: {', '.join(CHECKS)}.", "only")
    problem = sampler_problem(sampler) if isinstance(sampler, type) else None
    if problem is not None:
        return _undeclared(sampler, problem, chosen, Report("", "", str(where), quick, seed, ()))
    subject = Subject(sampler, where)
    results: list[CheckResult] = []
    for name in chosen:
        if results and _cannot_be_compiled(results):
            results.append(CheckResult(name, CHECKS[name].title, "skipped", notes=("its kernels cannot be compiled",)))
        else:
            results.append(run_check(CHECKS[name], subject, quick=quick, seed=seed))
        if told is not None:
            told(results[-1])
    return Report(subject.label, subject.origin, str(where), quick, seed, results)


def _cannot_be_compiled(results: Iterable[CheckResult]) -> bool:
    """Whether a check has found that the kernels for this device cannot be compiled, which every other would find."""
    return any(
        result.failure is not None and result.check != "arithmetic" and NOT_COMPILED.search(result.failure.got)
        for result in results
    )


def _undeclared(cls: Any, problem: str, chosen: Iterable[str], report: Report) -> Report:
    """The report of a class whose declaration is such that it cannot be made."""
    first = next(iter(CHECKS.values()))
    failed = CheckResult(first.name, first.title, "failed", 1, failure=CheckFailure("a complete declaration", problem))
    skipped = [
        CheckResult(name, CHECKS[name].title, "skipped", notes=("its declaration cannot be used",))
        for name in chosen
        if name != first.name
    ]
    origin = f"class {cls.__module__}.{cls.__qualname__}"
    return replace(report, sampler=cls.__name__, origin=origin, results=[failed, *skipped])
