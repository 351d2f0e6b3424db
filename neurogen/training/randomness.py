"""One seed for all randomness of a run: what a step draws depends on the seed and the step's place alone.

A run that goes on behind a checkpoint, or begins anew, therefore draws what it would have drawn, and nobody has to keep
the state of a generator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch

__all__ = ["derived_seed", "seeded"]


def derived_seed(seed: int, *place: int) -> int:
    """A seed of 63 bits for one place in a run, such as (step, process); other places have unrelated ones."""
    digest = blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let the generators of torch, numpy and Python draw from a seed; behind the block they go on as before.

    Args:
        seed: at least 0.
        device: whose generator torch uses, beside that of the CPU.
    """
    states = random.getstate(), np.random.get_state()
    cards = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
