"""Checks that go beyond the CPU's results: the CUDA kernels, on a card or simulated, and the speed."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from torch import Tensor

from neurogen.bench.cells import Cell
from neurogen.bench.measure import measure, set_threads
from neurogen.contract.cuda_extra import MissingExtraError, lacking
from neurogen.contract.sampler import TruncationSampler
from neurogen.errors import ContractError
from neurogen.testing.conformance.case import Case, per_row_numbers, summary
from neurogen.testing.conformance.cases import KINDS, batch_of
from neurogen.testing.conformance.kit import Kit, Skip, check
from neurogen.testing.conformance.simulated import SimulationError, simulation
from neurogen.testing.conformance.subject import Subject
from neurogen.testing.conformance.trial import CALLS, Trial, Violation

__all__: list[str] = []

SIMULATED_KINDS = ("normal", "ties", "removed", "saturated", "zeros")
BENCH_SECONDS = (0.1, 0.4)


@check("cuda", "CUDA gives what the CPU gives, bit for bit: on a card, or its kernels simulated")
def cuda(kit: Kit) -> None:
    cls = kit.subject.cls
    if torch.cuda.is_available() and kit.subject.device.type == "cpu":
        if cls.backends and "cuda" not in cls.backends:
            raise Skip(f"it supports {', '.join(cls.backends)} alone")
        if reason := lacking():
            raise Skip(reason)
        cases = map(per_row_numbers, kit.batches(large=True, sets=(4, 10)))
        kit.hold(cases, card_law)
        return
    if kit.subject.device.type == "cuda":
        raise Skip("the other checks ran on the card; run it with the device cpu to compare both")
    _simulate(kit, _cuda_modules(cls))


def card_law(trial: Trial) -> None:
    """The three results on the card are those on the CPU."""
    other = Trial(Subject(trial.sampler, torch.device("cuda")), trial.case)
    for name in CALLS:
        here, there = getattr(trial, name)(), getattr(other, name)()
        if not here.equal(there):
            raise Violation(f"{summary(here)}, as on the CPU", f"{summary(there)} on the card")


NEEDS_A_CARD = re.compile(r"^(Cuda\w*|RuntimeError|AssertionError):.*(CUDA|NVIDIA)", re.IGNORECASE)
"""How torch and Numba say that there is no card."""


def _cuda_modules(cls: Any) -> list[str]:
    """The modules for CUDA of a sampler, or of all samplers of a chain; imported.

    Raises:
        Skip: there is nothing to simulate.
    """
    links = getattr(cls, "links", None) or (cls,)
    if all(link.backends is TruncationSampler.backends for link in links):
        raise Skip("no card here; what it keeps is computed by torch, and the kernels behind are neurogen's own")
    for link in links:
        if "cuda" not in link.backends:
            raise Skip("it has no module for CUDA, and there is no card here")
    modules = list(dict.fromkeys(link.backends["cuda"] for link in links))
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, MissingExtraError) as error:
            raise Skip(f"no card here, and {module} cannot be imported: {lacking() or error}") from None
    return modules


def _simulate(kit: Kit, modules: list[str]) -> None:
    """The sampler with its modules for CUDA, and each kernel that it launches simulated."""
    with simulation() as simulated:
        for case in _simulated_cases(kit):
            kit.count()
            here = _results(Trial(kit.subject, case))
            trial = Trial(kit.subject, case)
            try:
                with simulated.in_place_of_a_card():
                    there = _results(trial)
            except SimulationError as error:
                kit.fail("kernels that can be simulated", str(error))
            except Exception as error:
                _refuse(kit, trial, modules, error)
            _compare(kit, case, here, there, f"when {' and '.join(modules)} is simulated")
        if not simulated.launches:
            raise Skip("no card here, and it launched no kernel of neurogen.kernels.cuda, which alone can be simulated")
    kit.notes.append("no card here: the kernels were run thread by thread on the CPU")


def _results(trial: Trial) -> dict[str, Tensor]:
    """What the three calls give; of a sampler with memory also what two calls after each other leave in that."""
    found = {"sample": trial.sample(), "probs": trial.probs(), "support": trial.support()}
    if trial.subject.cls.stateful:
        trial.run(f"state = {trial.new_state(trial.case.batch)}")
        for _ in range(2):
            found["sample"] = trial.sample(state="state")
        found |= {f"state[{name!r}]": memory.clone() for name, memory in trial.names["state"].items()}
    return found


def _refuse(kit: Kit, trial: Trial, modules: list[str], error: Exception) -> None:
    """Report an error that the modules for CUDA have raised, unless it says that there is no card."""
    cause = error.__cause__ or error
    text = f"{type(cause).__name__}: {cause}"
    if not isinstance(error, ContractError) and NEEDS_A_CARD.search(text):
        raise Skip(f"no card here, and {' and '.join(modules)} needs one: {text.splitlines()[0]}") from error
    kit.fail("a result, as on the CPU", f"{text} from {' and '.join(modules)}", trial.snippet())


def _compare(kit: Kit, case: Case, here: dict[str, Tensor], there: dict[str, Tensor], when: str) -> None:
    for name, expected in here.items():
        got = there[name]
        if not got.equal(expected):
            row = _first_row(got, expected)
            shown = Trial(kit.subject, case.with_rows([row]))
            getattr(shown, name if name in CALLS else "sample")()
            kit.fail(
                f"{summary(expected[row])}, the {name} on the CPU",
                f"{summary(got[row])} {when}",
                shown.snippet(),
            )


def _first_row(one: Tensor, other: Tensor) -> int:
    different = (one != other).reshape(len(one), -1).any(dim=1)
    return int(different.nonzero()[0])


def _simulated_cases(kit: Kit) -> list[Case]:
    """A few batches; simulating is slow."""
    number, found = kit.first_row, []
    vocabs = (50,) if kit.quick else (1, 6, 70, 300)
    for vocab in vocabs:
        for params in kit.params(1, 3):
            for dtype in kit.dtypes()[:1] if kit.quick or vocab != 70 else kit.dtypes():
                kinds = SIMULATED_KINDS[:3] if kit.quick else SIMULATED_KINDS
                found.append(per_row_numbers(batch_of(kinds, number, vocab, params, dtype)))
                number += len(KINDS)
    return found


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


@check("speed", "the speed, as a ratio to one read of the logits and to plain torch; for information")
def speed(kit: Kit) -> None:
    kit.count()
    sampler = kit.subject.make({})
    cell = Cell(vocab=32_000, batch=8, dtype=kit.dtypes()[0])  # type: ignore[arg-type]
    seconds = BENCH_SECONDS[0] if kit.quick else BENCH_SECONDS[1]
    try:
        with set_threads(1):
            result = measure(sampler, cell, device=kit.subject.device, seconds=seconds, peers=("floor", "torch"))
    except Exception as error:
        raise Skip(f"it cannot be measured: {type(error).__name__}: {error}") from error
    times = [f"{result.microseconds:.0f} us for {cell.batch} rows of {cell.vocab:,} on one thread"]
    times.append(f"{_ratio(result.ratio_to_floor)} times one read of the logits")
    if "torch" in result.to_peers:
        times.append(f"{_ratio(result.times_faster_than('torch'))} times as fast as plain torch")
    kit.notes.append(", ".join(times))
