"""One seed for all random numbers of a run: what a step draws depends on the seed and the number of the step alone.

A run that is resumed therefore draws what it would have drawn without the interruption, and no state of a generator has
to be saved.
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
    """Let the generators of torch, numpy and Python draw from a seed; after the block they continue as before.

    Args:
        seed: at least 0.
        device: its generator is seeded too.
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
