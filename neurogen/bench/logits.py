"""The logits of a cell: made up, or a real model's. Made on the CPU from fixed seeds, so that they never vary.

normal   3 * N(0, 1): a nucleus of hundreds of tokens
flat     0.01 * N(0, 1): like those of a model with exploded weights; nothing stands out, so nothing can be skipped
equal    all 0: every token ties
real     a model's logits after each token of a text. If the model's vocabulary is wider than the cell's, the first ids
         are taken; a narrower one is widened by tokens as improbable as its own improbable ones.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from neurogen.bench.cells import Cell
from neurogen.diagnosis.input import SAMPLE_TEXT
from neurogen.errors import ModelError
from neurogen.models.known import KNOWN_MODELS, STARTER, find_gguf
from neurogen.models.language_model import load_model
from neurogen.models.weights import DTYPES

__all__ = ["make_logits", "widened"]

SCALES = {"normal": 3.0, "flat": 0.01, "equal": 0.0}
POSITIONS = 128
"""Rows that a model is asked for; a larger batch repeats them."""

LARGER_MODEL = "smollm2-135m"
STARTER_VOCAB = 2048
HEAD = 64
"""An added token is less probable than the token of this rank, so that the head of a row stays as the model made it."""


def make_logits(cell: Cell, device: torch.device) -> tuple[Tensor, str]:
    """The logits of a cell, and where they come from.

    Returns:
        [batch, vocab] of the cell's dtype on `device`, and a phrase for the table's notes.
    """
    if cell.kind == "real":
        rows, source = _real(cell.vocab)
        chosen = torch.arange(cell.batch) * _stride(cell.batch, len(rows)) % len(rows)
        logits = rows[chosen]
    else:
        generator = torch.Generator().manual_seed(0)
        scale = SCALES[cell.kind]
        logits = torch.randn(cell.batch, cell.vocab, generator=generator) * scale
        source = f"{scale:g} * N(0, 1)" if scale else "all equal"
    return logits.to(device, DTYPES[cell.dtype]).contiguous(), source


def _stride(batch: int, rows: int) -> int:
    """Spread a small batch over the whole text: neighbours are alike."""
    return max(1, rows // batch)


@lru_cache(maxsize=2)
def _real(vocab: int) -> tuple[Tensor, str]:
    rows, model = _rows_of_a_model(vocab)
    width = rows.shape[1]
    source = f"next-token logits of {model} over a text"
    if vocab < width:
        return rows[:, :vocab].contiguous(), f"{source}, the first {vocab:,} of {width:,} ids"
    if vocab == width:
        return rows, source
    return widened(rows, vocab), f"{source}, widened from {width:,} to {vocab:,} ids by improbable tokens"


def _rows_of_a_model(vocab: int) -> tuple[Tensor, str]:
    """The larger model's where it is installed and wanted: nothing is fetched for a benchmark."""
    if vocab > STARTER_VOCAB and find_gguf(KNOWN_MODELS[LARGER_MODEL]) is not None:
        try:
            return _next_token_logits(LARGER_MODEL), LARGER_MODEL
        except ModelError:  # its cache cannot be written, or its file is damaged
            pass
    return _next_token_logits(STARTER), STARTER


@lru_cache(maxsize=2)
def _next_token_logits(name: str) -> Tensor:
    """float32 [POSITIONS or fewer, vocabulary of the model]."""
    model = load_model(name, device="cpu", dtype="float32")
    ids = torch.tensor([model.tokenizer.encode(SAMPLE_TEXT)[:POSITIONS]])
    with torch.no_grad():
        rows: Tensor = model.model(input_ids=ids).logits[0].float()
    return rows


def widened(rows: Tensor, vocab: int) -> Tensor:
    """Rows of a larger vocabulary, with the head and the shape of these.

    An added token repeats one of the row, with some noise against ties, at most as probable as the token of rank HEAD;
    all of them are scaled down so that together they weigh no more than what they repeat.

    Args:
        rows: [batch, narrower vocabulary].
        vocab: the width wanted, larger.
    """
    width = rows.shape[1]
    generator = torch.Generator().manual_seed(0)
    copied = torch.randint(width, (vocab - width,), generator=generator)
    noise = torch.randn(vocab - width, generator=generator) * 0.5
    ceiling = rows.topk(min(HEAD, width)).values[:, -1:]
    added = torch.minimum(rows[:, copied] + noise, ceiling) - math.log(max(1.0, (vocab - width) / width))
    return torch.cat([rows, added], dim=1)
