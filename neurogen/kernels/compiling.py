"""Tells when kernels are being compiled, which takes seconds, to whoever has asked: the command line shows it.

Importing this loads neither numba nor torch, and costs a call of a sampler nothing: compilers call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["compiling", "finished", "started", "unwatched", "watch"]

Told = Callable[[bool], None]
"""told(True) when a kernel begins to be compiled, told(False) when that has ended, whatever came of it."""

_told: list[Told] = []
_depth = 0


def watch(told: Told) -> None:
    """Be told of every compilation of this process, from one that is asked for to its end."""
    _told[:] = [told]


def started() -> None:
    """A function begins to be compiled, perhaps for another that is."""
    global _depth
    _depth += 1
    if _depth == 1:
        for told in _told:
            told(True)


def finished() -> None:
    """It has been compiled, or cannot be."""
    global _depth
    _depth -= 1
    if _depth == 0:
        for told in _told:
            told(False)


@contextmanager
def compiling() -> Iterator[None]:
    """What is done within is to compile."""
    started()
    try:
        yield
    finally:
        finished()


@contextmanager
def unwatched() -> Iterator[None]:
    """Within, nobody is told: who compiles says so in other words."""
    told = list(_told)
    _told.clear()
    try:
        yield
    finally:
        _told[:] = told
