"""The conformance checks as a pytest class, for the tests of a sampler's package: one test a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from neurogen.contract.sampler import Sampler
from neurogen.errors import PluginError
from neurogen.testing.conformance import CHECKS, Check, check

__all__ = ["SamplerConformance"]


class SamplerConformance:
    """Subclass it in a test module, and name the sampler:

        class TestMine(SamplerConformance):
            sampler = "mine"

    Attributes:
        sampler: a name, with or without parameters, a sampler, or a class.
        quick: the short form; False takes about a minute.
        device: "cpu" or "cuda".
        seed: of the cases.
    """

    sampler: ClassVar[str | Sampler | type[Sampler] | None] = None
    quick: ClassVar[bool] = True
    device: ClassVar[str] = "cpu"
    seed: ClassVar[int] = 0


def _test_of(one: Check) -> Callable[[Any], None]:
    def test(self: SamplerConformance) -> None:
        __tracebackhide__ = True
        if self.sampler is None:
            raise PluginError(f'{type(self).__name__} names no sampler: write `sampler = "mine"` in the class.')
        report = check(self.sampler, quick=self.quick, device=self.device, seed=self.seed, only=[one.name])
        result = next(iter(report.results))
        if result.status == "skipped":
            pytest.skip(result.notes[0])
        if result.failure is not None:
            pytest.fail(f"{report.sampler}: {result.title}\n\n{result.failure}", pytrace=False)

    test.__doc__ = one.title
    test.__name__ = f"test_{one.name.replace('-', '_')}"
    return test


for _check in CHECKS.values():
    _test = _test_of(_check)
    setattr(SamplerConformance, _test.__name__, _test)
