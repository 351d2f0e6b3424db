"""Checks beside the CPU's results: the CUDA kernels, on a card or simulated, and the speed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurogen.sampler import TruncationSampler
from neurogen.testing.conformance.case import Case, Value, per_row_numbers, summary
from neurogen.testing.conformance.cases import KINDS, batch_of
from neurogen.testing.conformance.kit import Kit, Skip, check
from neurogen.testing.conformance.subject import Subject
from neurogen.testing.conformance.trial import Difference, Trial

__all__: list[str] = []

SIMULATED = {"grid": 3, "block": 8, "warp": 4, "parts": 4, "listed": 64, "ranked": 16, "offset": 0, "gap": 0}
"""Sizes of a launch, and of warps and lists: so small that rows of some dozen logits reach every branch."""

SIMULATED_KINDS = ("normal", "ties", "removed", "saturated", "zeros")
SIMULATE_SECONDS = 300
BENCH_SECONDS = (0.1, 0.4)


@check("cuda", "CUDA gives what the CPU gives, bit for bit: on a card, or its kernels simulated")
def cuda(kit: Kit) -> None:
    cls = kit.subject.cls
    if torch.cuda.is_available() and kit.subject.device.type == "cpu":
        if cls.backends and "cuda" not in cls.backends:
            raise Skip(f"it supports {', '.join(cls.backends)} alone")
        cases = map(per_row_numbers, kit.batches(large=True, sets=(4, 10)))
        kit.hold(cases, card_law)
        return
    if kit.subject.device.type == "cuda":
        raise Skip("the other checks ran on the card; run it with the device cpu to compare both")
    module = _toolkit_module(kit.subject)
    _simulate(kit, module)


def card_law(trial: Trial) -> None:
    """The three results on the card are those on the CPU."""
    other = Trial(Subject(trial.sampler, torch.device("cuda")), trial.case)
    for name in ("sample", "probs", "support"):
        here, there = getattr(trial, name)(), getattr(other, name)()
        if not here.equal(there):
            raise Difference(f"{summary(here)}, as on the CPU", f"{summary(there)} on the card")


def _toolkit_module(subject: Subject) -> str:
    """The module of CUDA kernels that the toolkit has made."""
    cls = subject.cls
    if issubclass(cls, TruncationSampler):
        raise Skip("no card here; what it keeps is computed by torch, and the kernels behind are neurogen's own")
    module = cls.backends.get("cuda")
    if module is None:
        raise Skip("it has no module for CUDA, and there is no card here")
    found = _loaded(module)
    if not all(hasattr(getattr(getattr(found, name, None), "kernel", None), "function") for name in FUNCTIONS):
        raise Skip(f"no card here, and {module} is not made by neurogen.kernels.cuda, which alone can be simulated")
    return module


FUNCTIONS = ("sample", "probs", "support")


def _loaded(module: str) -> Any:
    try:
        return sys.modules.get(module) or importlib.import_module(module)
    except ImportError as error:
        raise Skip(f"no card here, and {module} cannot be imported: {error}") from None


def _simulate(kit: Kit, module: str) -> None:
    cases = [_row_parameters(kit.subject, case) for case in _simulated_cases(kit)]
    results = _in_a_process(kit, module, cases)
    kit.notes.append("no card here: the kernels were run thread by thread on the CPU")
    for number, case in enumerate(cases):
        kit.count()
        trial = Trial(kit.subject, case)
        here = {"ids": trial.sample(), "probs": trial.probs(), "support": trial.support().to(torch.uint8)}
        for name, expected in here.items():
            got = torch.from_numpy(results[f"{number}/{name}"])
            if not got.equal(expected):
                row = _first_row(got, expected)
                shown = Trial(kit.subject, case.with_rows([row]))
                {"ids": shown.sample, "probs": shown.probs, "support": shown.support}[name]()
                kit.fail(
                    f"{summary(expected[row])}, as on the CPU",
                    f"{summary(got[row])} when {module}.{'sample' if name == 'ids' else name} is simulated",
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


def _row_parameters(subject: Subject, case: Case) -> Case:
    """The case with every number given per row, as a kernel takes it."""
    whole: dict[str, Value | tuple[Value, ...]] = {**subject.base, **case.params}
    numbers = {name: (value,) * case.batch for name, value in whole.items() if type(value) in (int, float)}
    return replace(case, params={**case.params, **numbers})  # type: ignore[dict-item]


def _in_a_process(kit: Kit, module: str, cases: list[Case]) -> dict[str, np.ndarray[Any, Any]]:
    """What the simulated kernels give: CASE/ids, CASE/probs and CASE/support."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.npz", Path(folder) / "results.npz"
        arrays = {
            f"{number}/{name}": array
            for number, case in enumerate(cases)
            for name, array in _arrays(kit.subject, case).items()
        }
        np.savez(source, **arrays)
        command = [sys.executable, "-m", "neurogen.testing.simulator", module, str(source), str(target)]
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=SIMULATE_SECONDS, check=False)
        if done.returncode:
            kit.fail("kernels that can be simulated", done.stderr.strip()[-2000:])
        with np.load(target) as file:
            return {key: file[key] for key in file}


def _arrays(subject: Subject, case: Case) -> dict[str, Any]:
    """A case as the simulator takes it."""
    stored = {torch.bfloat16: (torch.int16, np.uint16), torch.float16: (torch.int16, np.int16)}
    bits = case.logits
    if bits.dtype in stored:
        view, kind = stored[bits.dtype]
        logits: Any = bits.view(view).numpy().view(kind)
    else:
        logits = bits.numpy()
    fields = subject.cls.Params.model_fields
    columns = {
        name: np.array(value, dtype=np.int64 if fields[name].annotation is int else np.float64)
        for name, value in case.params.items()
        if isinstance(value, tuple)
    }
    numbers = {"seed": np.array(case.seed, np.int64), "position": np.array(case.position, np.int64)}
    return {**SIMULATED, **columns, **numbers, "logits": logits}


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


@check("speed", "the speed, as a ratio to one read of the logits and to plain torch; for information")
def speed(kit: Kit) -> None:
    from neurogen.bench.cells import Cell
    from neurogen.bench.measure import measure, set_threads

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
