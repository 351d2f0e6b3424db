"""What `cooling` means, in float64 on one row of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neurogen.reference import Mask, Row, drawable


def support(logits: Row, cooling: float, temperature: float, state: Mapping[str, Any] | None = None) -> Mask:
    """Every token above -inf; at temperature 0 the argmax alone. `state` is None for the first token."""
    heat = 1.0 if state is None else float(state["heat"])
    return drawable(logits, temperature * heat)


def next_state(
    logits: Row, token: int, state: Mapping[str, Any], cooling: float, temperature: float
) -> dict[str, float]:
    """What is remembered after a token: so much less heat."""
    return {"heat": float(state["heat"]) * cooling}
