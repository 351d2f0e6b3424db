"""Checks of samplers with memory: a new state, rows that move with theirs, and nobody else's state touched."""

from __future__ import annotations

import torch
from torch import Tensor

from neurogen.sampler import State
from neurogen.testing.conformance.case import Shown, per_row_numbers, summary
from neurogen.testing.conformance.kit import Kit, Skip, check
from neurogen.testing.conformance.trial import Difference, Trial

__all__: list[str] = []

STEPS = 6


@check("state", "a sampler with memory: rows move with their state, each has its own, and no other state is touched")
def state(kit: Kit) -> None:
    if not kit.subject.cls.stateful:
        raise Skip("it has no memory")
    cases = [*map(per_row_numbers, kit.batches(quick=(7, 60), full=(2, 7, 33, 300), sets=(4, 8)))]
    for law in (fresh_law, alone_law, moved_law, own_law):
        kit.hold(cases, law)


def _copy(state: State) -> State:
    return {name: memory.clone() for name, memory in state.items()}


def _at(state: State, rows: list[int]) -> State:
    return {name: memory[rows] for name, memory in state.items()}


def _is_same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(memory.equal(other[name]) for name, memory in one.items())


def _told(state: State) -> str:
    return "{" + ", ".join(f"{name!r}: {summary(memory)}" for name, memory in state.items()) + "}"


def _here(state: State, trial: Trial) -> State:
    return {name: memory.to(trial.subject.device) for name, memory in state.items()}


def fresh_law(trial: Trial) -> None:
    """new_state(n) gives tensors of n rows, all alike, that share no memory with those of another call."""
    size = trial.case.batch
    one, other = trial.sampler.new_state(size), trial.sampler.new_state(size)
    trial.lines.append(f"sampler.new_state({size})  # {_told(one)}")
    if not one or not all(isinstance(memory, Tensor) and len(memory) == size for memory in one.values()):
        raise Difference(f"tensors with {size} rows", _told(one))
    if not _is_same(one, other):
        raise Difference(f"{_told(one)} at every call", _told(other))
    if not _is_same(_at(one, [0]), trial.sampler.new_state(1)):
        raise Difference(f"{_told(_at(one, [0]))} for one row", _told(trial.sampler.new_state(1)))
    if any(one[name].data_ptr() == other[name].data_ptr() for name in one):
        raise Difference("memory of its own for every state", "two states that share it")


def _step(trial: Trial, number: int, state: Shown, rows: list[int] | None = None) -> Tensor:
    """The tokens of one step, on logits that differ from step to step, of some rows in an order."""
    batch = trial.case.batch
    seeds = trial.case.seed if isinstance(trial.case.seed, tuple) else (trial.case.seed,) * batch
    code = f"logits.roll({number}, 1)" + ("" if rows is None else f"[{rows}]")
    chosen = list(range(batch)) if rows is None else rows
    logits = trial.view(code, lambda x: x.roll(number, 1)[chosen])
    return trial.sample(logits, seed=tuple(seeds[row] for row in chosen), position=number, state=state)


def alone_law(trial: Trial) -> None:
    """A row alone with its state goes the way it goes in the batch."""
    batch = trial.case.batch
    together = trial.keep_state("state", f"sampler.new_state({batch})", _here(trial.sampler.new_state(batch), trial))
    steps = [_step(trial, number, together) for number in range(STEPS)]
    for row in range(batch):
        own = trial.keep_state("alone", "sampler.new_state(1)", _here(trial.sampler.new_state(1), trial))
        for number, expected in enumerate(steps):
            got = _step(trial, number, own, [row])
            if got[0] != expected[row]:
                raise Difference(f"[{int(expected[row])}] at step {number}, as of row {row} in its batch", got)
        if not _is_same(own.value, _at(together.value, [row])):
            raise Difference(f"{_told(_at(together.value, [row]))}, the memory of row {row}", _told(own.value))


def moved_law(trial: Trial) -> None:
    """When the rows of the state are put in another order, the tokens follow."""
    batch = trial.case.batch
    order = list(reversed(range(batch)))
    plain = trial.keep_state("state", f"sampler.new_state({batch})", _here(trial.sampler.new_state(batch), trial))
    for number in range(STEPS // 2):
        _step(trial, number, plain)
    code = "{name: memory.flip(0) for name, memory in state.items()}"
    turned = trial.keep_state("turned", code, _copy(_at(plain.value, order)))
    for number in range(STEPS // 2, STEPS):
        expected, got = _step(trial, number, plain)[order], _step(trial, number, turned, order)
        if not got.equal(expected):
            raise Difference(f"{summary(expected)}, as in the other order", got)


def own_law(trial: Trial) -> None:
    """A call changes the state that it is given and no other; the same state gives the same."""
    batch = trial.case.batch
    bystander = _here(trial.sampler.new_state(batch), trial)
    before = _copy(bystander)
    own = trial.keep_state("state", f"sampler.new_state({batch})", _here(trial.sampler.new_state(batch), trial))
    for number in range(STEPS // 2):
        _step(trial, number, own)
    if not _is_same(bystander, before):
        raise Difference(f"{_told(before)}, the state of another batch", _told(bystander))
    code = "{name: memory.clone() for name, memory in state.items()}"
    copy = trial.keep_state("copy", code, _copy(own.value))
    one = _step(trial, STEPS, own)
    other = _step(trial, STEPS, copy)
    if not one.equal(other) or not _is_same(own.value, copy.value):
        raise Difference(f"{summary(one)} from a copy of the state", other)
    if torch.is_grad_enabled() and any(memory.requires_grad for memory in own.value.values()):
        raise Difference("memory without gradients", _told(own.value))
