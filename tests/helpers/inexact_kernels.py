"""Kernels with arithmetic that rounds differently from one device to another; `exact` has none."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from math import exp as raised
from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels import cpu
from neurogen.kernels.numerics import exact_mul, log2_of, two_to


@register_jitable
def inner(x):
    return raised(x) / 2


@register_jitable
def outer(x):
    return inner(-x)


def keep(row, share):
    return cpu.heavier(row, outer(share))


sample, probs, support = cpu.truncation(keep, "k")


def definitions(kit: Any) -> dict[str, Callable[..., Any]]:
    """Name of an operation -> a definition with it, of (row, share)."""
    heavier, entropy = kit.heavier, kit.entropy

    def exp(row, share):
        return heavier(row, math.exp(-share))

    def helper(row, share):
        return heavier(row, outer(share))

    def local_name(row, share):
        f = math.log
        return heavier(row, f(share))

    def numpys(row, share):
        return heavier(row, np.tanh(share))

    def power(row, share):
        return heavier(row, share**0.5)

    def power_of_two(row, share):
        return heavier(row, 2 ** -entropy(row))

    def built_in(row, share):
        return heavier(row, pow(share, 0.5))

    def of_operator(row, share):
        return heavier(row, operator.pow(share, 0.5))

    def exact(row, share):
        return heavier(row, min(math.sqrt(share), exact_mul(share, share) + 0.1, two_to(log2_of(share) - entropy(row))))

    def squares(row, share):
        return heavier(row, share**2 / 4)

    def fused(row, share):
        product = share * 0.3
        return heavier(row, product + 0.1)

    return {name: value for name, value in locals().items() if name not in ("kit", "heavier", "entropy")}
