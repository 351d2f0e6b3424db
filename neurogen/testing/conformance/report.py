"""What a conformance run found: plain data, printed by the command and by pytest. Knows neither samplers nor torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["CheckFailure", "CheckResult", "Report", "Status"]

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class CheckFailure:
    """What is wrong, by the smallest case that shows it.

    Attributes:
        expected, got: in words or numbers.
        snippet: Python that shows it; empty where the fault lies in the declaration.
    """

    expected: str
    got: str
    snippet: str = ""

    def __str__(self) -> str:
        text = f"expected: {self.expected}\ngot:      {self.got}"
        return f"{text}\n\n{self.snippet}" if self.snippet else text


@dataclass(frozen=True)
class CheckResult:
    """Of one check.

    Attributes:
        check: its name.
        title: what must hold.
        status: passed, failed or skipped.
        cases: how many were tried.
        notes: why it was skipped, or what else is to be said.
        failure: what is wrong.
        seconds: wall time.
    """

    check: str
    title: str
    status: Status
    cases: int = 0
    notes: tuple[str, ...] = ()
    failure: CheckFailure | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """All checks of one sampler.

    Attributes:
        sampler: with its parameters.
        origin: where it comes from.
        device: where it ran.
        quick: the short form.
        seed: of the cases.
        results: one a check, in the order of `CHECKS`.
    """

    sampler: str
    origin: str
    device: str
    quick: bool
    seed: int
    results: Sequence[CheckResult]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [result.check for result in self.results if result.status == "failed"]

    def count(self, status: Status) -> int:
        """How many checks ended so."""
        return sum(result.status == status for result in self.results)

    def __getitem__(self, check: str) -> CheckResult:
        """The result of one check.

        Raises:
            KeyError: it was not run.
        """
        for result in self.results:
            if result.check == check:
                return result
        raise KeyError(check)

    def __str__(self) -> str:
        failures = [f"{result.check}: {result.title}\n{result.failure}" for result in self.results if result.failure]
        return "\n\n".join([self.verdict, *failures])

    @property
    def verdict(self) -> str:
        """One line: how many checks passed, failed and were skipped."""
        cases = sum(result.cases for result in self.results)
        counts = f"{self.count('passed')} passed, {self.count('failed')} failed, {self.count('skipped')} skipped"
        return f"{self.sampler}: {counts} ({cases:,} cases)"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sampler": self.sampler,
            "origin": self.origin,
            "device": self.device,
            "quick": self.quick,
            "seed": self.seed,
            "passed": self.passed,
            "results": [asdict(result) for result in self.results],
        }
