"""What is measured: cells, and the grids that make them. Knows neither samplers nor torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from neurogen.errors import ParameterError

__all__ = ["BATCHES", "DTYPES", "KINDS", "MAX_LOGITS", "VOCABS", "Cell", "Dtype", "Kind", "check_size", "grid"]

Kind = Literal["normal", "real", "flat", "equal"]
Dtype = Literal["float32", "bfloat16", "float16"]

KINDS: tuple[Kind, ...] = ("normal", "real", "flat")
"""Kinds of a full grid; `equal` is the fourth, for worst cases."""

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
VOCABS = (32_000, 128_256, 262_144)
BATCHES = (1, 8, 64)

MAX_LOGITS = 1 << 26
"""Of one cell: 256 MiB in float32, of which peers that sort make eight copies or so."""


class Cell(BaseModel):
    """The logits that a sampler and its peers are measured on.

    Attributes:
        kind: see `neurogen.bench.logits`.
        dtype: number format of the logits.
        vocab, batch: their shape.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "normal"
    dtype: Dtype = "float32"
    vocab: int = Field(32_000, ge=1)
    batch: int = Field(1, ge=1)

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype} vocab={self.vocab} batch={self.batch}"

    @property
    def size(self) -> int:
        """The number of logits."""
        return self.vocab * self.batch


def grid(
    kinds: Sequence[Kind] = KINDS,
    dtypes: Sequence[Dtype] = DTYPES,
    vocabs: Iterable[int] = VOCABS,
    batches: Iterable[int] = BATCHES,
) -> list[Cell]:
    """Every combination once, in the order given.

    Raises:
        ParameterError: a cell is too large for the memory of common machines.
    """
    combinations = dict.fromkeys(product(kinds, dtypes, vocabs, batches))
    return [
        check_size(Cell(kind=kind, dtype=dtype, vocab=vocab, batch=batch)) for kind, dtype, vocab, batch in combinations
    ]


def check_size(cell: Cell) -> Cell:
    """The cell itself.

    Raises:
        ParameterError: it is too large for the memory of common machines.
    """
    if cell.size > MAX_LOGITS:
        raise ParameterError(
            f"A vocab of {cell.vocab:,} at batch {cell.batch:,} makes {cell.size:,} logits; a cell may hold "
            f"{MAX_LOGITS:,}, since peers that sort need several copies. Lower one of the two."
        )
    return cell
