"""A law is tried on a case through a `Trial`: a program that is run line by line and shown in the report as it was run.

What a law gives the sampler is code, in terms of `sampler`, `logits` and what the program has named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from neurogen.testing.conformance.case import Case, Value, is_valid, summary, written
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
        sampler, logits: the program's variables of these names; the logits are the case's, on the device.
        lines: the program after these two, so far.
        names: all variables of the program.
    """

    def __init__(self, subject: Subject, case: Case) -> None:
        self.subject = subject
        self.case = case
        self.uniform = {name: value for name, value in case.params.items() if not isinstance(value, tuple)}
        self.per_row = {name: value for name, value in case.params.items() if isinstance(value, tuple)}
        self.sampler = subject.make(self.uniform)
        self.logits = case.logits.to(subject.device, copy=True)
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"torch": torch, "inf": math.inf, "nan": math.nan}
        self.names |= {"sampler": self.sampler, "logits": self.logits}
        self._last_call = ""

    @property
    def is_valid(self) -> bool:
        """Whether every row of the case has a distribution."""
        return is_valid(self.case.logits)

    def rows(self) -> Iterator[tuple[int, NDArray[Any], dict[str, Value]]]:
        """Index, logits [vocab] and all parameters of each row."""
        for index, row in enumerate(self.case.numpy_rows()):
            yield index, row, {**self.subject.base, **self.case.params_of(index)}

    def where(self, row: int) -> str:
        """The row in words, where there are several."""
        return f"row {row}: " if self.case.batch > 1 else ""

    def written(self, value: Any) -> str:
        """A number, or a tuple with one number a row, as code for this device."""
        return written(value, self.subject.device)

    def run(self, line: str) -> None:
        """Run a statement, which names something or does something beside the sampler."""
        exec(line, self.names)
        self.lines.append(line)

    def sample(self, logits: str = "logits", **arguments: Any) -> Tensor:
        """Ids [batch]; a sampler with memory gets a new state if no state is given. See `call`."""
        return self.call("sample", {"logits": logits, **arguments})

    def probs(self, logits: str = "logits", **arguments: Any) -> Tensor:
        """float32 [batch, vocab]. See `call`."""
        return self.call("probs", {"logits": logits, **arguments})

    def support(self, logits: str = "logits", **arguments: Any) -> Tensor:
        """bool [batch, vocab]. See `call`."""
        return self.call("support", {"logits": logits, **arguments})

    def call(self, name: str, arguments: Mapping[str, Any]) -> Tensor:
        """Make one of the three calls.

        Args:
            name: of `CALLS`.
            arguments: `logits` as code; `seed` and `position`, which are for `sample` alone, as numbers or code;
                `params`, name -> number, numbers or code; `state` as code, and `check`. The case has what is missing.
        """
        code = self._code(name, arguments)
        self._last_call = code
        try:
            result: Tensor = eval(code, self.names)
        except Exception as error:
            self.lines.append(f"{code}  # raises {type(error).__name__}")
            raise
        self.lines.append(f"{code}  # {summary(result)}")
        return result.cpu()

    def _code(self, name: str, arguments: Mapping[str, Any]) -> str:
        logits = arguments.get("logits", "logits")
        given = dict(arguments.get("params", self.per_row))
        if name == "sample":
            given = {key: arguments.get(key, getattr(self.case, key)) for key in ("seed", "position")} | given
            if self.subject.cls.stateful:
                given["state"] = arguments.get("state") or self.new_state(len(eval(logits, self.names)))
        values = {key: value if isinstance(value, str) else self.written(value) for key, value in given.items()}
        check = "" if arguments.get("check") else ", check=False"
        return f"sampler.{name}({', '.join([logits, *(f'{key}={value}' for key, value in values.items())])}{check})"

    def new_state(self, batch: int) -> str:
        """The memory of new rows, on the device of the logits, as code."""
        on_cpu = self.subject.device.type == "cpu"
        return f"sampler.new_state({batch})" if on_cpu else f"sampler.fresh_state({batch}, logits.device)"

    def same(self, other: Mapping[str, Any], expected: Mapping[str, Any], rows: Rows, why: str) -> None:
        """Make each of the three calls in two ways, and raise `Violation` where the results are not the same.

        Args:
            other, expected: arguments of the call that is looked at, and of the one that says what is right.
            rows: which rows of the expected result are to be compared.
            why: what the right result is, after "as".
        """
        for name in CALLS:
            self.lines.clear()
            wanted = rows(self.call(name, expected))
            got = self.call(name, other)
            if not got.equal(wanted):
                raise Violation(f"{summary(wanted)}, as {why}", got)

    def apply(self, template: str, result: Tensor) -> None:
        """Write what was made of the last call, in place of it: `template` has {} where the call stands."""
        self.lines[-1] = f"{template.format(self._last_call)}  # {summary(result)}"

    def snippet(self) -> str:
        """The program, with the result of each call as a comment after it."""
        logits = self.case.logits_code(self.subject.device)
        text = "\n".join([f"sampler = {self.subject.code(self.uniform)}", f"logits = {logits}", *self.lines])
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
