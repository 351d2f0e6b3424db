"""What a backend module's functions `sample`, `probs` and `support` do around a kernel, the same on every device.

They allocate what is returned, hand the kernel the parameters of the rows by name, and run it. They are objects, so
that a test or a benchmark finds the kernel: `neurogen_topk.cpu.sample.kernel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neurogen.errors import ParameterError
from neurogen.parameters import RowParams

__all__ = ["Calls", "Choose", "Describe", "Temperatures", "calls", "check_memory", "with_row_parameters"]

Run = Callable[..., None]
"""run(kernel, logits, *tensors): a kernel over all rows of logits [batch, vocab]."""


@dataclass(frozen=True)
class Choose:
    """`sample` of a backend module: one id a row, int64 [batch]; -1 for a row without a valid distribution.

    Attributes:
        kernel: called with the logits, the row parameters `names`, seed, position and the ids to write.
        run: `cpu.run` or `cuda.launch`.
        names: row parameters, int64 or float64 [batch], in the order the kernel takes them.
    """

    kernel: Any
    run: Run
    names: tuple[str, ...]

    def __call__(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams) -> Tensor:
        ids = logits.new_empty(logits.shape[0], dtype=torch.int64)
        self.run(self.kernel, logits, *map(params.__getattribute__, self.names), seed, position, ids)
        return ids


@dataclass(frozen=True)
class Describe:
    """`probs` or `support` of a backend module: [batch, vocab] of `dtype`; zeros in an invalid row.

    Attributes:
        kernel: called with the logits, the row parameters `names` and the array to write.
        run, names: as of `Choose`.
        dtype: float32 of probabilities, bool of a support.
    """

    kernel: Any
    run: Run
    names: tuple[str, ...]
    dtype: torch.dtype

    def __call__(self, logits: Tensor, params: RowParams) -> Tensor:
        out = logits.new_empty(logits.shape, dtype=self.dtype)
        self.run(self.kernel, logits, *map(params.__getattribute__, self.names), out)
        return out


class Calls(NamedTuple):
    """The three functions of a backend module: `sample, probs, support = calls(...)`."""

    sample: Choose
    probs: Describe
    support: Describe


class Temperatures(NamedTuple):
    """Which temperature a row has, by two functions compiled for a target.

    Attributes:
        before: of (arrays, r), with which the row is read.
        after: of (row, arrays, r), that of the row read; where it is 0 the argmax is kept.
    """

    before: Any
    after: Any


def check_memory(tensors: list[Tensor]) -> None:
    """Refuse tensors that begin nowhere, where an address is 0; those without elements may.

    Raises:
        ParameterError: one has no memory of its own.
    """
    elsewhere = sorted({type(tensor).__name__ for tensor in tensors if tensor.numel() > 0 and tensor.data_ptr() == 0})
    if elsewhere:
        raise ParameterError(
            f"The logits, or what is given for each row, are of the type {', '.join(elsewhere)}, which has no memory "
            "of its own that a kernel could read. Give plain tensors: full_tensor() or to_local() make one of a "
            "distributed tensor."
        )


def calls(run: Run, sample: Any, probs: Any, support: Any, names: tuple[str, ...]) -> Calls:
    """The functions of a backend module from its three kernels."""
    return Calls(
        Choose(sample, run, names),
        Describe(probs, run, names, torch.float32),
        Describe(support, run, names, torch.bool),
    )


def with_row_parameters(keep: Callable[..., Any], count: int) -> Callable[..., Any]:
    """keep(row, *parameters of row r) as a function of (row, arrays, r), to be compiled.

    Written out, for Numba does not spread a tuple whose elements differ in type.

    Raises:
        ValueError: more parameters than are written out.
    """
    spread: tuple[Callable[..., Any], ...] = (
        lambda row, arrays, r: keep(row),
        lambda row, arrays, r: keep(row, arrays[0][r]),
        lambda row, arrays, r: keep(row, arrays[0][r], arrays[1][r]),
        lambda row, arrays, r: keep(row, arrays[0][r], arrays[1][r], arrays[2][r]),
    )
    if count >= len(spread):
        raise ValueError(
            f"truncation() was given {count} parameters; a definition takes at most {len(spread) - 1}. Compute what "
            "depends on several of them before, or write a kernel of your own."
        )
    return spread[count]
