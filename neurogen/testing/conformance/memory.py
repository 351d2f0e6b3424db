"""Checks of samplers with memory: its contents, rows that move with their memory, and that no other state changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurogen.contract.sampler import State
from neurogen.testing.conformance.case import Case, per_row_numbers, summary
from neurogen.testing.conformance.invariance import with_row_parameters
from neurogen.testing.conformance.kit import Kit, Skip, check
from neurogen.testing.conformance.trial import Trial, Violation

__all__: list[str] = []

STEPS = 6
LONG = 20
PLAYS = 64
TOLERANCE = 1e-5
"""Of a number that is remembered, as a share where it is above 1: it may be made of a probability in float32."""


@check(
    "state", "a sampler with memory: it changes as the reference says, rows move with theirs, and no other is touched"
)
def state(kit: Kit) -> None:
    if not kit.subject.cls.stateful:
        raise Skip("it has no memory")
    cases = [*map(per_row_numbers, kit.batches(quick=(7, 60), full=(2, 7, 33, 300), sets=(4, 8)))]
    for law in (fresh_law, alone_law, moved_law, own_law):
        kit.hold(cases, law)
    kit.hold(with_row_parameters(kit, quick=(7,), full=(2, 33)), alone_law)
    if kit.subject.meaning.tells_next_state:
        kit.hold(kit.batches(quick=(2, 7, 60), full=(1, 2, 7, 33, 300), sets=(8, 16)), next_state_law)
    else:
        kit.notes.append("no reference says what comes next (next_state): that memory changes and matters was checked")
    _is_used(kit, cases)


def _copy(state: State) -> State:
    return {name: memory.clone() for name, memory in state.items()}


def _at(state: State, rows: list[int]) -> State:
    return {name: memory[rows] for name, memory in state.items()}


def _is_same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(memory.equal(other[name]) for name, memory in one.items())


def _told(state: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name!r}: {summary(torch.as_tensor(memory))}" for name, memory in state.items()) + "}"


def _new(trial: Trial, name: str, batch: int) -> State:
    """A new state under a name of the program."""
    trial.run(f"{name} = {trial.new_state(batch)}")
    state: State = trial.names[name]
    return state


def fresh_law(trial: Trial) -> None:
    """new_state(n) gives tensors of n rows, all alike, that share no memory with those of another call."""
    size = trial.case.batch
    one, other, single = _new(trial, "one", size), _new(trial, "other", size), _new(trial, "single", 1)
    if not isinstance(one, dict):
        raise Violation(f"a dictionary of tensors with {size} rows", f"a {type(one).__name__}")
    if not one or not all(isinstance(memory, Tensor) and len(memory) == size for memory in one.values()):
        raise Violation(f"tensors with {size} rows", _told(one))
    if not _is_same(one, other):
        raise Violation(f"{_told(one)} at every call", _told(other))
    if not _is_same(_at(one, [0]), single):
        raise Violation(f"{_told(_at(one, [0]))} for one row", _told(single))
    if any(one[name].data_ptr() == other[name].data_ptr() for name in one):
        raise Violation("memory of its own for every state", "two states that share it")


def _step(trial: Trial, number: int, state: str, rows: list[int] | None = None) -> Tensor:
    """The tokens of one step, on logits that differ from step to step, of some rows in an order."""
    batch = trial.case.batch
    seeds = trial.case.seed if isinstance(trial.case.seed, tuple) else (trial.case.seed,) * batch
    chosen = list(range(batch)) if rows is None else rows
    logits = f"logits.roll({number}, 1)" + ("" if rows is None else f"[{rows}]")
    params = {name: tuple(values[row] for row in chosen) for name, values in trial.per_row.items()}
    return trial.sample(logits, seed=tuple(seeds[row] for row in chosen), position=number, params=params, state=state)


def alone_law(trial: Trial) -> None:
    """A row alone with its state goes the way it goes in the batch."""
    batch = trial.case.batch
    together = _new(trial, "state", batch)
    steps = [_step(trial, number, "state") for number in range(STEPS)]
    for row in range(batch):
        own = _new(trial, "alone", 1)
        for number, expected in enumerate(steps):
            got = _step(trial, number, "alone", [row])
            if got[0] != expected[row]:
                raise Violation(f"[{int(expected[row])}] at step {number}, as of row {row} in its batch", got)
        if not _is_same(own, _at(together, [row])):
            raise Violation(f"{_told(_at(together, [row]))}, the memory of row {row}", _told(own))


def moved_law(trial: Trial) -> None:
    """When the rows of the state are put in another order, the tokens follow."""
    order = list(reversed(range(trial.case.batch)))
    _new(trial, "state", trial.case.batch)
    for number in range(STEPS // 2):
        _step(trial, number, "state")
    trial.run("turned = {name: memory.flip(0) for name, memory in state.items()}")
    for number in range(STEPS // 2, STEPS):
        expected, got = _step(trial, number, "state")[order], _step(trial, number, "turned", order)
        if not got.equal(expected):
            raise Violation(f"{summary(expected)}, as in the other order", got)


def own_law(trial: Trial) -> None:
    """A call changes the state that it is given and no other; the same state gives the same."""
    bystander = _new(trial, "bystander", trial.case.batch)
    before = _copy(bystander)
    own = _new(trial, "state", trial.case.batch)
    for number in range(STEPS // 2):
        _step(trial, number, "state")
    if not _is_same(bystander, before):
        raise Violation(f"{_told(before)}, the state of another batch", _told(bystander))
    trial.run("copy = {name: memory.clone() for name, memory in state.items()}")
    one, other = _step(trial, STEPS, "state"), _step(trial, STEPS, "copy")
    if not one.equal(other) or not _is_same(own, trial.names["copy"]):
        raise Violation(f"{summary(one)} from a copy of the state", other)
    if any((memory.dtype, memory.shape) != (before[n].dtype, before[n].shape) for n, memory in own.items()):
        raise Violation(f"memory of the dtypes and shapes of {_told(before)}", _told(own))
    if torch.is_grad_enabled() and any(memory.requires_grad for memory in own.values()):
        raise Violation("memory without gradients", _told(own))


# What is remembered.


def next_state_law(trial: Trial) -> None:
    """The memory after each token is that of the reference, and the token is one that this allows with what was before.

    Raises:
        Violation: by the first row in which it is not.
    """
    meaning, batch = trial.subject.meaning, trial.case.batch
    params = [own for _, _, own in trial.rows()]
    state = _new(trial, "state", batch)
    _compare_first(trial, state)
    for number in range(STEPS):
        before = [_of_row(state, row) for row in range(batch)]
        ids = _step(trial, number, "state").tolist()
        logits = trial.case.logits.roll(number, 1).float().numpy()
        for row, token in enumerate(ids):
            where = f"in row {row}, " if batch > 1 else ""
            if meaning.takes_state and not meaning.bounds(logits[row], params[row], before[row])[1][token]:
                raise Violation(f"{where}a token that can be drawn with {_told(before[row])}", f"token {token}")
            possible = meaning.next_states(logits[row], token, before[row], params[row])
            got = _of_row(state, row)
            if not _is_among(got, possible):
                after = f"{where}after token {token} with {_told(before[row])}"
                raise Violation(f"{_told(possible[0])} {after}", _told(got))


def _compare_first(trial: Trial, state: State) -> None:
    """What can be drawn with a new state is what can be drawn first."""
    meaning = trial.subject.meaning
    if not meaning.takes_state:
        return
    for index, row, params in trial.rows():
        first = meaning.support(row, params)
        must, may = meaning.bounds(row, params, _of_row(state, index))
        if (must & ~first).any() or (first & ~may).any():
            new = _told(_of_row(state, index))
            trial.support()
            raise Violation(
                f"a new state with which tokens {np.flatnonzero(first).tolist()} can be drawn, as of the first token",
                f"{new}, with which tokens {np.flatnonzero(may).tolist()} can",
            )


def _of_row(state: State, row: int) -> dict[str, Any]:
    """The memory of a row, as the reference takes it."""
    return {name: memory[row].cpu().numpy().copy() for name, memory in state.items()}


def _is_among(got: dict[str, Any], possible: list[dict[str, Any]]) -> bool:
    """Whether numbers lie between those that the reference gives, and what is no number is one of those."""
    for name, value in got.items():
        several = np.stack([np.asarray(one[name], dtype=np.float64) for one in possible])
        own = np.asarray(value, dtype=np.float64)
        if np.asarray(value).dtype.kind == "f":
            slack = TOLERANCE * np.maximum(1, np.abs(several[0]))
            is_right = (own >= several.min(0) - slack) & (own <= several.max(0) + slack)
        else:
            is_right = (several == own).any(0)
        if not np.all(is_right):
            return False
    return True


def _is_used(kit: Kit, cases: list[Case]) -> None:
    """Fail unless each memory changes in some case, and what is remembered changes what is drawn in some case."""
    unchanged = set(kit.subject.make({}).new_state(1))
    matters = False
    for case in cases:
        kit.count()
        trial = Trial(kit.subject, case.with_rows([0]))
        state = _new(trial, "state", 1)
        fresh = _copy(state)
        for number in range(LONG):
            _step(trial, number, "state")
        unchanged -= {name for name, memory in state.items() if not memory.equal(fresh[name])}
        matters = matters or _draws_otherwise(trial)
        if matters and not unchanged:
            return
    shown = f"in {len(cases)} cases with {LONG} tokens each"
    if unchanged:
        kit.fail("memory that changes", f"{sorted(unchanged)} as new_state gives it, {shown}", trial.snippet())
    kit.fail(
        "memory that has an effect on what is drawn", f"the same tokens with a new state, {shown}", trial.snippet()
    )


def _draws_otherwise(trial: Trial) -> bool:
    """Whether many seeds give another token somewhere than with a new state."""
    rows, seeds = f"logits.repeat({PLAYS}, 1)", tuple(range(PLAYS))
    trial.run(f"used = {{name: memory.repeat_interleave({PLAYS}, 0) for name, memory in state.items()}}")
    later = trial.sample(rows, seed=seeds, position=LONG, state="used")
    return not later.equal(trial.sample(rows, seed=seeds, position=LONG))
