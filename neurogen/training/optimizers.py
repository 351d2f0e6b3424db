"""The optimizers, AdamW or Muon for the matrices, and the learning rate's schedule. Knows no data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from neurogen.errors import ParameterError

__all__ = ["learning_rate_at", "make_optimizers"]

BETAS = (0.9, 0.95)
FINAL_SHARE = 0.1
"""Where the cosine ends, as a share of the peak (Hoffmann et al., 2022)."""


def make_optimizers(
    model: nn.Module, name: str, *, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model's weights.

    Weight decay is for matrices; norms, biases and embeddings have none. Muon (Jordan et al., 2024) takes the matrices
    of the layers, scaled to AdamW's step size (Liu et al., 2025) so that one learning rate serves both; AdamW the rest.

    Raises:
        ParameterError: no such optimizer.
    """
    if name not in ("adamw", "muon"):
        raise ParameterError(f"optimizer must be adamw or muon, got {name!r}.", "optimizer")
    matrices, embeddings, others = _sorted(model)
    decayed = {"params": matrices, "weight_decay": weight_decay}
    plain = {"params": embeddings + others, "weight_decay": 0.0}
    fused = all(weight.device.type in ("cpu", "cuda") for weight in model.parameters())
    if name == "adamw":
        groups = [group for group in (decayed, plain) if group["params"]]
        return [torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=fused)]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    if plain["params"]:
        found.append(torch.optim.AdamW([plain], lr=learning_rate, betas=BETAS, fused=fused))
    return found


def learning_rate_at(step: int, *, peak: float, warmup: int, total: int | None) -> float:
    """The learning rate of a step, from 0: linear warm-up, then a cosine to a tenth; constant without a total."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if total is None:
        return peak
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def _sorted(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of the layers; embeddings and the output head; everything else."""
    tables = {id(weight) for weight in _tables(model)}
    matrices, embeddings, others = [], [], []
    for weight in model.parameters():
        if id(weight) in tables:
            embeddings.append(weight)
        elif weight.ndim == 2:
            matrices.append(weight)
        else:
            others.append(weight)
    return matrices, embeddings, others


def _tables(model: nn.Module) -> Iterable[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield cast(nn.Parameter, module.weight)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None and getattr(head, "weight", None) is not None:
        yield cast(nn.Parameter, head.weight)
