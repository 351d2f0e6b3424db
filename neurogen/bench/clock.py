"""Times several functions in alternating turns, so that noise of the machine affects all of them alike.

Each contender is called before: the first call compiles, the next ones estimate its time. A quick one is called several
times a turn, after one call that is not timed and refills the cache; a slow one gets fewer turns, spread over the same
time.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["LEAST_TURNS", "Turns", "cuda_microseconds", "take_turns"]

LEAST_TURNS = 3
MOST_TURNS = 61
TURN_US = 400.0
"""About how long a turn of a quick contender lasts."""

MOST_CALLS = 64
WARM_CALLS = 4
SLOW_US = 10_000.0
LEAST_US = 0.1

Call = Callable[[], object]
Stopwatch = Callable[[Call, int], float]


@dataclass
class Turns:
    """The measured times of one contender.

    Attributes:
        calls: calls a turn.
        times: round -> microseconds a call.
    """

    calls: int
    times: dict[int, float] = field(default_factory=dict)


def take_turns(contenders: Mapping[str, Call], device: torch.device, seconds: float) -> dict[str, Turns]:
    """Measure all contenders for about `seconds`, warming up not included; each gets at least LEAST_TURNS.

    Args:
        contenders: name -> a call without arguments, which may compile when it is first called.
        device: where they work; on CUDA they are timed by events.
        seconds: to be shared out equally.
    """
    watch = cuda_microseconds if device.type == "cuda" else _cpu_microseconds
    turns: dict[str, Turns] = {}
    wanted: dict[str, int] = {}
    for name, call in contenders.items():
        call()
        estimate = _estimate(call, watch)
        turns[name] = Turns(calls=min(MOST_CALLS, math.ceil(TURN_US / estimate)))
        fitting = seconds * 1e6 / len(contenders) / (estimate * (turns[name].calls + 1))
        wanted[name] = min(MOST_TURNS, max(LEAST_TURNS, int(fitting)))
    with _no_collector():
        for number, order in _rounds(wanted):
            for name in order:
                turns[name].times[number] = _turn(contenders[name], turns[name].calls, watch)
    return turns


def _estimate(call: Call, watch: Stopwatch) -> float:
    """Microseconds of a call; for a quick one the best of several, since the first calls are often slower."""
    first = watch(call, 1)
    more = [watch(call, 1) for _ in range(WARM_CALLS)] if first < SLOW_US else []
    return max(min([first, *more]), LEAST_US)


def _rounds(wanted: Mapping[str, int]) -> Iterator[tuple[int, list[str]]]:
    """The contenders of each round in order. The first place rotates; slow contenders are left out of some rounds."""
    names = list(wanted)
    rounds = max(wanted.values())
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        yield number, [name for name in order if _takes_part(number, wanted[name], rounds)]


def _takes_part(number: int, turns: int, rounds: int) -> bool:
    """Whether one of `turns` that are spread evenly over `rounds` falls on this round."""
    return (number + 1) * turns // rounds > number * turns // rounds


def _turn(call: Call, calls: int, watch: Stopwatch) -> float:
    if calls > 1:
        call()
    return watch(call, calls)


def _cpu_microseconds(call: Call, calls: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - started) / calls / 1000


def cuda_microseconds(call: Call, calls: int) -> float:
    """Microseconds a call on torch's current stream, between two events around `calls` calls."""
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000 / calls


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running during a turn."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
