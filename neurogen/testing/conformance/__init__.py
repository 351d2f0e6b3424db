"""Checks a sampler against its contract, and shows the smallest case in which it does not keep it.

report = neurogen.testing.conformance.check(MySampler)
assert report.passed, report

case        logits and the other arguments        cases    which ones are tried
subject     the sampler and its reference          trial    its calls, as Python for the report
kit         the registry of checks                 shrink   making a case small
declared, meaning, drawing, invariance, memory, arithmetic, devices: the checks
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from neurogen.contract.cuda_extra import require_cuda_compilers
from neurogen.contract.sampler import Sampler
from neurogen.registry.registry import load_sampler
from neurogen.testing.conformance import arithmetic, declared, devices, drawing, invariance, meaning, memory
from neurogen.testing.conformance.kit import CHECKS, Check, run
from neurogen.testing.conformance.report import CheckFailure, CheckResult, Report

__all__ = ["CHECKS", "Check", "CheckFailure", "CheckResult", "Report", "check"]

ORDER = (declared, meaning, drawing, invariance, memory, arithmetic, devices)
"""The modules of the checks, in the order in which they are run."""

_NAMES = [module.__name__ for module in ORDER]
_SORTED = sorted(CHECKS.values(), key=lambda one: _NAMES.index(one.function.__module__))
CHECKS.clear()
CHECKS.update({one.name: one for one in _SORTED})


def check(
    sampler: str | Sampler | type[Sampler],
    *,
    device: str = "cpu",
    quick: bool = False,
    seed: int = 0,
    only: Iterable[str] = (),
    told: Callable[[CheckResult], None] | None = None,
) -> Report:
    """Run the conformance checks.

    Args:
        sampler: a name such as "topk" or "topk(k=3)", a sampler, or a class. Its parameters are the base of those
            that are tried.
        device: "cpu" or "cuda": where the checks run.
        quick: take a few seconds instead of a minute.
        seed: of the cases; the same seed tries the same.
        only: names of checks; None for all.
        told: called with each result as soon as it is known.

    Returns:
        what was found. `report.passed` says whether no check failed.

    Raises:
        PluginError, ParameterError: there is no such sampler or check, or its parameters are wrong.
        DeviceError: what compiles kernels for CUDA is not installed.
    """
    if device != "cpu":
        require_cuda_compilers()
    chosen = load_sampler(sampler) if isinstance(sampler, str) else sampler
    return run(chosen, device=device, quick=quick, seed=seed, only=only, told=told)
