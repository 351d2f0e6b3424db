"""Continuing a prompt with a model, and where the repository lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from neurogen.models.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[2]


def greedy(model: LanguageModel, prompt: Sequence[int], count: int) -> list[int]:
    """Continue by argmax, one token at a time with the cache."""
    ids = torch.tensor([prompt], device=model.device)
    mask, cache, continuation = torch.ones_like(ids), None, []
    for _ in range(count):
        positions = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1], device=model.device)[None]
        logits, cache = model.forward(ids, mask, positions, cache)
        token = int(logits.argmax(dim=-1))
        if token in model.eos_ids:
            break
        continuation.append(token)
        ids = torch.tensor([[token]], device=model.device)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return continuation
