"""Definitions of what is kept, each with a mistake; test_mistakes says what is said of it. `kit` is a toolkit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba.extending import register_jitable

SETTINGS = {"share": 0.5}


def helper(x):
    return x / 2


@register_jitable
def in_compiled(x):
    return below(x)  # noqa: F821


def definitions(kit: Any) -> dict[str, Callable[..., Any]]:
    """Name of the mistake -> the definition, of (row, share)."""
    heavier = kit.heavier

    def attribute(row, share):
        return heavier(row, row.largest_logit)

    def too_few(row, share):
        return heavier(row)

    def too_many(row, share):
        return heavier(row, share, 3)

    def unknown_keyword(row, share):
        return heavier(row, least=share)

    def returns_nothing(row, share):
        heavier(row, share)

    def missing_branch(row, share):  # noqa: RET503
        if share > 0.5:
            return heavier(row, share)

    def returns_number(row, share):
        return share

    def returns_list(row, share):
        return [1, 2]

    def returns_whole_number(row, share):
        return 5

    def returns_yes(row, share):
        return True

    def returns_more(row, share):
        return heavier(row, share), 1

    def unknown_in_helper(row, share):
        return heavier(row, in_compiled(share))

    def unknown_function(row, share):
        return heavier(row, np.no_such_function(share))

    def wrong_type(row, share):
        return heavier(row, "much")

    def unknown_name(row, share):
        return heavier(row, shar)  # noqa: F821

    def plain_helper(row, share):
        return heavier(row, helper(share))

    def dictionary(row, share):
        return heavier(row, SETTINGS["share"])

    def uses_torch(row, share):
        return heavier(row, torch.exp(share))

    def indexed(row, share):
        return heavier(row, share[0])

    def adds_text(row, share):
        return heavier(row, share + "a")

    return {name: value for name, value in locals().items() if name not in ("kit", "heavier")}
