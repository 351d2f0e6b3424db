"""A law is tried on a case through a `Trial`, which calls the sampler and keeps the calls as Python for the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from neurogen.contract.sampler import State
from neurogen.testing.conformance.case import Case, Shown, Value, as_shown, is_valid, summary
from neurogen.testing.conformance.subject import Subject

__all__ = ["CALLS", "Law", "Trial", "Violation", "all_rows", "one_row"]


CALLS = ("sample", "probs", "support")

Rows = Callable[[Tensor], Tensor]
"""Picks rows of a result."""


class Violation(Exception):  # noqa: N818  (it is what was found, and never leaves the kit)
    """A law does not hold.

    Attributes:
        expected, got: in words or numbers.
    """

    def __init__(self, expected: Any, got: Any) -> None:
        super().__init__(f"expected {summary(expected)}, got {summary(got)}")
        self.expected = expected if isinstance(expected, str) else summary(expected)
        self.got = got if isinstance(got, str) else summary(got)


def all_rows(result: Tensor) -> Tensor:
    """Every row."""
    return result


def one_row(row: int) -> Rows:
    """One row, still as a batch."""
    return lambda result: result[row : row + 1]


class Trial:
    """Calls a sampler on one case.

    Parameters that are the same for all rows are given to the sampler when it is made, others per row at the call. The
    results lie on the CPU.

    Attributes:
        case: what it is tried on.
        subject: whose sampler.
        logits: the case's, on the device, with the expression `logits`.
        lines: the calls so far, as Python.
    """

    def __init__(self, subject: Subject, case: Case) -> None:
        self.subject = subject
        self.case = case
        self.uniform = {name: value for name, value in case.params.items() if not isinstance(value, tuple)}
        self.per_row = {name: value for name, value in case.params.items() if isinstance(value, tuple)}
        self.sampler = subject.make(self.uniform)
        self.logits = Shown("logits", case.logits.to(subject.device, copy=True))
        self.lines: list[str] = []
        self._last_call = ""

    @property
    def is_valid(self) -> bool:
        """Whether every row of the case has a distribution."""
        return is_valid(self.case.logits)

    def rows(self) -> Iterator[tuple[int, NDArray[Any], dict[str, Value]]]:
        """Index, logits [vocab] and all parameters of each row."""
        for index, row in enumerate(self.case.numpy_rows()):
            yield index, row, {**self.subject.base, **self.case.params_of(index)}

    def view(self, code: str, function: Callable[[Tensor], Tensor]) -> Shown:
        """Other logits made of the case's; `code` is the same in terms of `logits`."""
        return Shown(code, function(self.logits.value))

    def sample(
        self,
        logits: Shown | None = None,
        *,
        seed: Any = None,
        position: Any = None,
        params: Mapping[str, Any] | None = None,
        state: Shown | None = None,
        check: bool = False,
    ) -> Tensor:
        """Ids [batch]; a stateful sampler gets a fresh state where none is given."""
        logits = logits or self.logits
        given = {
            "seed": self.case.seed if seed is None else seed,
            "position": self.case.position if position is None else position,
            **(self.per_row if params is None else params),
        }
        if self.subject.cls.stateful:
            given["state"] = state or self.fresh_state(len(logits.value))
        return self._call("sample", logits, given, check)

    def probs(
        self, logits: Shown | None = None, *, params: Mapping[str, Any] | None = None, check: bool = False
    ) -> Tensor:
        """float32 [batch, vocab]."""
        return self._call("probs", logits or self.logits, self.per_row if params is None else params, check)

    def support(
        self, logits: Shown | None = None, *, params: Mapping[str, Any] | None = None, check: bool = False
    ) -> Tensor:
        """bool [batch, vocab]."""
        return self._call("support", logits or self.logits, self.per_row if params is None else params, check)

    def fresh_state(self, batch: int) -> Shown:
        """A new state, made within the call."""
        return Shown(f"sampler.new_state({batch})", self.sampler.new_state(batch))

    def keep_state(self, name: str, code: str, state: State) -> Shown:
        """A state with a name of its own, for several calls."""
        self.lines.append(f"{name} = {code}")
        return Shown(name, state)

    def same(self, other: Mapping[str, Any], expected: Mapping[str, Any], rows: Rows, why: str) -> None:
        """Make each of the three calls in two ways, and raise `Violation` where the results are not the same.

        Args:
            other, expected: arguments of the call that is looked at, and of the one that says what is right: `logits`,
                `params`, and for `sample` also `seed`, `position`.
            rows: which rows of the expected result are to be compared.
            why: what the right result is, after "as".
        """
        for name in CALLS:
            self.lines.clear()
            wanted = rows(self.call(name, expected))
            got = self.call(name, other)
            if not got.equal(wanted):
                raise Violation(f"{summary(wanted)}, as {why}", got)

    def call(self, name: str, arguments: Mapping[str, Any]) -> Tensor:
        """One of the three calls; `seed` and `position` are for `sample` alone."""
        if name == "sample":
            return self.sample(**arguments)
        allowed = {key: value for key, value in arguments.items() if key in ("logits", "params", "check")}
        return self.probs(**allowed) if name == "probs" else self.support(**allowed)

    def apply(self, template: str, result: Tensor) -> None:
        """Write what was made of the last call, in place of it: `template` has {} where the call stands."""
        self.lines[-1] = f"{template.format(self._last_call)}  # {summary(result)}"

    def do(self, code: str, function: Callable[[], Any]) -> Any:
        """Something beside the sampler that belongs to the story."""
        self.lines.append(code)
        return function()

    def _call(self, name: str, logits: Shown, given: Mapping[str, Any], check: bool) -> Tensor:
        device = self.subject.device
        arguments = {key: value if key == "state" else as_shown(value, device) for key, value in given.items()}
        written = ", ".join([logits.code, *(f"{key}={shown.code}" for key, shown in arguments.items())])
        line = f"sampler.{name}({written}{'' if check else ', check=False'})"
        self._last_call = line
        method: Callable[..., Tensor] = getattr(self.sampler, name)
        try:
            result = method(logits.value, check=check, **{key: shown.value for key, shown in arguments.items()})
        except Exception as error:
            self.lines.append(f"{line}  # raises {type(error).__name__}")
            raise
        result = result.cpu()
        self.lines.append(f"{line}  # {summary(result)}")
        return result

    def snippet(self) -> str:
        """A program that makes the calls of this trial; what each gave is a comment behind it."""
        logits = self.case.logits_code(str(self.subject.device))
        body = [f"sampler = {self.subject.code(self.uniform)}", f"logits = {logits}", *self.lines]
        text = "\n".join(body)
        code = " ".join(line.partition("  # ")[0] for line in text.splitlines())
        imports = ["import torch", *self.subject.imports()]
        names = [name for name in ("inf", "nan") if re.search(rf"\b{name}\b", code)]
        if names:
            imports.insert(0, f"from math import {', '.join(names)}")
        if "row_of(" in logits:
            imports.append("from neurogen.testing.conformance.cases import row_of")
        return "\n".join([*imports, "", text])


Law = Callable[[Trial], None]
"""Raises `Violation`, or lets the sampler's own error through, where it does not hold on the trial's case."""
