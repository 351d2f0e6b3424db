"""Processes that train together, as torchrun and accelerate launch start them: if one fails, all of them end.

A process that failed alone would leave the others waiting for it forever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object

from neurogen.errors import DataError, NeurogenError

__all__ = ["all_or_none", "peers_lost", "same_in_all"]

BROKEN_CONNECTION = ("gloo", "nccl", "closed by peer", "reset by peer", "broken pipe", "connection refused")


@contextmanager
def all_or_none() -> Iterator[None]:
    """Do something in which each process may fail by itself, such as reading and writing: if one fails, all fail.

    Within it no process may wait for another.

    Raises:
        DataError: another process has failed; that one raises its own error.
    """
    try:
        yield
    except Exception:
        with peers_lost():
            gather_object([True])
        raise
    if any(gather_object([False])):
        raise DataError("Another process of this run has failed, so that this one ends too; its message says why.")


def same_in_all(value: Any) -> bool:
    """Whether all processes give the same value, which can be pickled. Called by every process."""
    return all(other == value for other in gather_object([value]))


@contextmanager
def peers_lost() -> Iterator[None]:
    """Turn the failure to reach another process into a message.

    Raises:
        DataError: another process has ended.
    """
    try:
        yield
    except NeurogenError:
        raise
    except RuntimeError as error:
        known = isinstance(error, getattr(torch.distributed, "DistError", ()))
        if not known and not any(word in str(error).lower() for word in BROKEN_CONNECTION):
            raise
        raise DataError(
            "Another process of this run has ended, or cannot be reached any more, so that this one ends too. See the "
            "other's message; --resume goes on after the last checkpoint."
        ) from None
