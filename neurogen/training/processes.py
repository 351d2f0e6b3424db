"""Several processes that train together, as torchrun and accelerate launch start them: what one cannot do, none does.

What they decide they decide from the same numbers. Where one fails alone, the others would wait for it for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from neurogen.errors import DataError, NeurogenError

__all__ = ["all_or_none", "one_each", "peers_lost"]

BROKEN_CONNECTION = ("gloo", "nccl", "closed by peer", "reset by peer", "broken pipe", "connection refused")


@contextmanager
def all_or_none(accelerator: Any) -> Iterator[None]:
    """Do something in which each process may fail by itself, such as reading and writing: all fail where one does.

    Within it no process may wait for another.

    Raises:
        DataError: another process has failed; that one raises its own error.
    """
    try:
        yield
    except Exception:
        if accelerator.num_processes > 1:
            with peers_lost():
                one_each(accelerator, [1])
        raise
    if accelerator.num_processes > 1 and any(failed for (failed,) in one_each(accelerator, [0])):
        raise DataError("Another process of this run has failed, so that this one ends too; its message says why.")


def one_each(accelerator: Any, numbers: Sequence[int]) -> list[list[int]]:
    """The numbers of every process, in the order of ranks; each gives as many, of 64 bits."""
    import torch

    if accelerator.num_processes == 1:
        return [list(numbers)]
    own = torch.tensor([list(numbers)], dtype=torch.int64, device=accelerator.device)
    every: list[list[int]] = accelerator.gather(own).tolist()
    return every


@contextmanager
def peers_lost() -> Iterator[None]:
    """Turn the failure to reach another process into a message.

    Raises:
        DataError: another process has ended.
    """
    import torch

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
            "other's message; --resume goes on behind the last checkpoint."
        ) from None
