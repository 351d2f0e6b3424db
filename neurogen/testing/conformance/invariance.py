"""Checks that dtype, strides, other rows, earlier calls and threads change no result, and that no input is changed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurogen.testing.conformance.case import Case, Value, per_row_numbers, summary
from neurogen.testing.conformance.cases import KINDS, accepted, values_of
from neurogen.testing.conformance.kit import Kit, Skip, check
from neurogen.testing.conformance.subject import Subject
from neurogen.testing.conformance.trial import CALLS, Trial, Violation, all_rows, one_row

__all__: list[str] = []

THREADS = 4
CALLS_A_THREAD = 25
ATTEMPTS = 50


@check("dtypes", "float16 and bfloat16 give the same as float32 with the same values")
def dtypes(kit: Kit) -> None:
    narrow = [dtype for dtype in kit.dtypes() if dtype != "float32"]
    if "float32" not in kit.dtypes() or not narrow:
        raise Skip(f"it takes {', '.join(kit.dtypes())} alone")
    for dtype in narrow:
        kit.hold(kit.batches(quick=(7, 300), full=(2, 7, 33, 300, 3000), sets=(4, 10), dtype=dtype), dtype_law)


def dtype_law(trial: Trial) -> None:
    """Comparisons are made on the exact values, so that a wider dtype changes nothing."""
    trial.same({}, {"logits": "logits.float()"}, all_rows, "of the same values in float32")


LAYOUTS = (
    "logits.t().contiguous().t()",
    "torch.stack([logits * nan, logits, logits * nan], -1).flatten(1)[:, 1::3]",
    "torch.nn.functional.pad(logits.repeat_interleave(2, 0), (5, 2), value=nan)[1::2, 5:-2]",
    "torch.nn.functional.pad(logits.flatten(), (3, 0), value=nan)[3:].view(logits.shape)",
)
"""The same logits in other memory layouts."""


@check(
    "strides", "any layout in memory gives the same: transposed, every third column, slices, an offset, expanded rows"
)
def strides(kit: Kit) -> None:
    for dtype in kit.dtypes():
        kit.hold(kit.batches(quick=(7, 60), full=(1, 2, 33, 1000), sets=(2, 6), dtype=dtype), stride_law)
        kit.hold(kit.batches(("normal",), quick=(60,), full=(33, 1000), sets=(2, 4), dtype=dtype), expanded_law)


def stride_law(trial: Trial) -> None:
    """Each layout gives what contiguous logits give."""
    for code in LAYOUTS:
        trial.same({"logits": code}, {}, all_rows, "of contiguous logits")


def expanded_law(trial: Trial) -> None:
    """A row expanded without memory is that row in each place."""
    expanded, copied = "logits[:1].expand(5, -1)", "logits[:1].repeat(5, 1)"
    trial.same({"logits": expanded}, {"logits": copied}, all_rows, "of a contiguous copy")


@check("per-row-parameters", "a parameter with one value a row gives each row what that value gives it alone")
def per_row_parameters(kit: Kit) -> None:
    fields = kit.subject.cls.Params.model_fields
    if not any(field.annotation in (int, float) for field in fields.values()):
        raise Skip("it has no parameter that is a number")
    kit.hold(with_row_parameters(kit), per_row_law)


def with_row_parameters(
    kit: Kit, *, quick: tuple[int, ...] = (7, 60), full: tuple[int, ...] = (2, 7, 33, 300, 3000)
) -> Iterator[Case]:
    """Batches in which every number differs from row to row, with vocabularies in the quick and in the full form."""
    subject, chosen = kit.subject, random.Random(kit.seed)
    fields = subject.cls.Params.model_fields
    for case in kit.batches(quick=quick, full=full, sets=(2, 4)):
        several = {
            name: values_of(name, field, subject.base[name])
            for name, field in fields.items()
            if field.annotation in (int, float)
        }
        for name, values in several.items():
            alone = [value for value in values if accepted(subject, {name: value})]
            column = tuple(chosen.choice(alone) for _ in range(case.batch))
            yield per_row_numbers(replace(case, params={name: column}))
        rows = [_together(subject, several, chosen) for _ in range(case.batch)]
        params = {name: tuple(row[name] for row in rows) for name in several}
        yield per_row_numbers(replace(case, params=params))


def _together(subject: Subject, several: Mapping[str, Sequence[Value]], chosen: random.Random) -> dict[str, Value]:
    """A value of each parameter, such that the sampler takes them together."""
    for _ in range(ATTEMPTS):
        row = {name: chosen.choice(values) for name, values in several.items()}
        if accepted(subject, row):
            return row
    return {name: subject.base[name] for name in several}


def per_row_law(trial: Trial) -> None:
    """Each row equals a call with that row, and its parameters for the whole call."""
    if not trial.per_row:
        return
    for row in range(trial.case.batch):
        own = {name: value[row] for name, value in trial.per_row.items()}
        written = ", ".join(f"{name}={value!r}" for name, value in own.items())
        alone = {**row_alone(trial, row), "params": own}
        trial.same(alone, {}, one_row(row), f"of row {row} in the batch; alone, it has {written}")


def _numbers(value: int | tuple[int, ...], trial: Trial) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * trial.case.batch


@check("batch", "a row alone, in its batch and in a permuted batch gives the same")
def batch(kit: Kit) -> None:
    cases = kit.batches(quick=(7, 60, 300), full=(1, 2, 7, 33, 300, 3000), sets=(4, 10))
    kit.hold(map(per_row_numbers, cases), batch_law)


def batch_law(trial: Trial) -> None:
    """Neither its place in the batch nor the other rows change a row's result."""
    seeds, positions = _numbers(trial.case.seed, trial), _numbers(trial.case.position, trial)
    if trial.case.batch > 1:
        backwards = {"logits": "logits.flip(0)", "seed": seeds[::-1], "position": positions[::-1]}
        trial.same(backwards, {}, lambda result: result.flip(0), "in the other order")
    for row in range(trial.case.batch):
        trial.same(row_alone(trial, row), {}, one_row(row), f"of row {row} in its batch")


def row_alone(trial: Trial, row: int) -> dict[str, Any]:
    """The arguments of a call with one row."""
    return {
        "logits": f"logits[{row}:{row + 1}]",
        "seed": _numbers(trial.case.seed, trial)[row],
        "position": _numbers(trial.case.position, trial)[row],
    }


@check("earlier-calls", "earlier calls and global random generators change nothing, nor are the generators changed")
def earlier_calls(kit: Kit) -> None:
    cases = list(kit.batches(quick=(7, 60), full=(2, 33, 300), sets=(3, 6)))
    states = random.getstate(), np.random.get_state()
    devices = [kit.subject.device] if kit.subject.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            kit.hold(cases, earlier_law)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def earlier_law(trial: Trial) -> None:
    """The same after other calls and after the generators of torch, NumPy and Python have been set."""
    other = {"logits": "logits[:1, :1].nan_to_num(neginf=0)", "params": {}, "seed": 5, "position": 5}
    for name in CALLS:
        trial.lines.clear()
        _seed_all(trial, 1)
        before = _generators()
        expected = trial.call(name, {})
        moved = [generator for generator, state in _generators().items() if state != before[generator]]
        if moved:
            raise Violation("global generators that are left alone", f"a draw from that of {moved[0]}")
        _seed_all(trial, 2)
        trial.call(name, other)
        got = trial.call(name, {})
        if not got.equal(expected):
            raise Violation(f"{summary(expected)}, as before another call", got)


def _generators() -> dict[str, Any]:
    """The states of the global generators."""
    numpy_state: Any = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy.random": (numpy_state[1].tolist(), *numpy_state[2:]),
        "random": random.getstate(),
    }


def _seed_all(trial: Trial, seed: int) -> None:
    trial.run(f"torch.manual_seed({seed})")
    random.seed(seed)
    np.random.seed(seed)


@check("input", "logits, seeds, positions and parameters are never modified")
def untouched(kit: Kit) -> None:
    for dtype in kit.dtypes():
        cases = kit.batches((*KINDS,), quick=(7, 60), full=(1, 7, 33, 300, 3000), sets=(4, 10), dtype=dtype)
        kit.hold(map(_with_tensors, cases), untouched_law)


def _with_tensors(case: Case) -> Case:
    numbers = {name: (value,) * case.batch for name, value in case.params.items() if type(value) in (int, float)}
    return per_row_numbers(replace(case, params={**case.params, **numbers}))  # type: ignore[dict-item]


def untouched_law(trial: Trial) -> None:
    """Bit for bit, after each of the three calls."""
    given = {"seed": trial.case.seed, "position": trial.case.position, **trial.per_row}
    named = [name for name, value in given.items() if isinstance(value, tuple)]
    for name in named:
        trial.run(f"{name} = {trial.written(given[name])}")
    before = {name: trial.names[name].clone() for name in ("logits", *named)}
    arguments = {name: name for name in named if name not in trial.per_row}
    arguments |= {"params": {name: name for name in named if name in trial.per_row}}  # type: ignore[dict-item]
    for call in CALLS:
        trial.call(call, arguments)
        for name, expected in before.items():
            if not _same_bits(trial.names[name], expected):
                raise Violation(f"{name} that is still {summary(expected)}", trial.names[name])


def _same_bits(one: Tensor, other: Tensor) -> bool:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.view(whole).equal(other.view(whole))


@check("small-shapes", "a vocabulary of one token and an empty batch work")
def small_shapes(kit: Kit) -> None:
    for dtype in kit.dtypes():
        kit.hold(kit.batches(("normal", "equal"), quick=(1,), full=(1,), dtype=dtype), single_law)
        kit.hold(kit.batches(("normal",), quick=(1, 9), full=(1, 9, 1000), sets=(3, 6), dtype=dtype), empty_law)


def single_law(trial: Trial) -> None:
    """Of one token, that one, with certainty."""
    if trial.case.vocab != 1:
        return
    ids, probs, support = trial.sample(), trial.probs(), trial.support()
    if ids.any() or not bool((probs == 1).all()) or not bool(support.all()):
        raise Violation("id 0, probability 1, kept", f"{summary(ids)}, {summary(probs)}, {summary(support)}")


def empty_law(trial: Trial) -> None:
    """Of no rows, results without rows."""
    shapes = [list(trial.call(name, {"logits": "logits[:0]"}).shape) for name in CALLS]
    vocab = trial.case.vocab
    if shapes != [[0], [0, vocab], [0, vocab]]:
        raise Violation(f"the shapes [0], [0, {vocab}], [0, {vocab}]", f"{shapes}")


@check("threads", "calls from several threads at once give the same")
def threads(kit: Kit) -> None:
    cases = map(per_row_numbers, kit.batches(quick=(300,), full=(7, 300, 3000), sets=(2, 4)))
    kit.hold(cases, threads_law)


def threads_law(trial: Trial) -> None:
    """Each thread calls with rows of its own, many times, on one sampler."""
    sampler, logits = trial.sampler, trial.logits

    def call(number: int) -> list[list[int]]:
        rows = logits.roll(number, 1)
        state: dict[str, Any] = {"state": sampler.fresh_state(len(rows), rows.device)} if sampler.stateful else {}
        return [sampler.sample(rows, seed=seed, check=False, **state).tolist() for seed in range(CALLS_A_THREAD)]

    expected = [call(number) for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        got = list(pool.map(call, range(THREADS)))
    trial.lines.append(THREADED)
    for wanted, found in zip(expected, got, strict=True):
        if found != wanted:
            turn = next(turn for turn in range(CALLS_A_THREAD) if found[turn] != wanted[turn])
            raise Violation(f"{wanted[turn]}, as from one thread", f"{found[turn]}")


THREADED = f"""
def call(number):
    rows = logits.roll(number, 1)
    state = {{"state": sampler.new_state(len(rows))}} if sampler.stateful else {{}}
    return [sampler.sample(rows, seed=seed, check=False, **state).tolist() for seed in range({CALLS_A_THREAD})]

from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor({THREADS}) as pool:
    several = list(pool.map(call, range({THREADS})))
several == [call(number) for number in range({THREADS})]  # False"""
