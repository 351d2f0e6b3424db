"""What `Remembering` of wrong_samplers means: top-k whose k is 5 after the first token, and one less after each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neurogen.reference import Mask, Row, topk_support


def support(logits: Row, k: int, temperature: float, state: Mapping[str, Any] | None = None) -> Mask:
    kept = topk_support(logits, k, temperature)
    tokens = 0 if state is None else int(state["tokens"])
    return kept & topk_support(logits, max(6 - tokens, 1), temperature) if tokens else kept


def next_state(logits: Row, token: int, state: Mapping[str, Any], k: int, temperature: float) -> dict[str, int]:
    return {"tokens": int(state["tokens"]) + 1}
