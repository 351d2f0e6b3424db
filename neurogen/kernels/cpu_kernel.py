"""A CPU kernel and its compiled forms, one for each combination of dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from neurogen.errors import ContractError
from neurogen.kernels.cpu_arrays import ELEMENTS, arrays_at, layout_of
from neurogen.kernels.cpu_cache import cached

__all__ = ["Kernel", "kernel", "kernel_with"]

DTYPE = attrgetter("dtype")


class Kernel:
    """A kernel and its compiled forms, made at the first call with such tensors.

    Attributes:
        function: called as function(flat, row_stride, vocab, rows, *arrays) by every thread, where row r of the logits
            is flat[r * row_stride:][:vocab]: float32, uint16 (bfloat16) or int16 (float16). `next_row` says which r.
            The arrays are row parameters and outputs.
        matrices: which of the arrays are [batch, n]; the others are [batch].
        weight: what a logit costs, about, with that of top-k as 1: from how much work on a batch is shared by threads.
        forms: compiled, by the dtype of the logits and those of the arrays.
    """

    def __init__(self, function: Callable[..., Any], matrices: tuple[int, ...] = (), weight: float = 1.0) -> None:
        self.function = function
        self.matrices = matrices
        self.weight = weight
        self.forms: dict[Any, Any] = {}

    def form(self, logits: torch.dtype, arrays: Sequence[Tensor]) -> Any:
        """The compiled form for logits of this dtype, and for such arrays.

        It is called as form(address of rows, batch, vocab, row_stride, *numbers), see `cpu_arrays.arrays_at`; the first
        number is the address of the logits. That of rows is 0 where one thread does all of them.

        Raises:
            ContractError: the kernel is not made for arrays of these dtypes and dimensions.
        """
        key = (logits, *map(DTYPE, arrays))
        form = self.forms.get(key)
        if form is None:
            # One for all threads that come here at once: it is compiled when called, and then by one of them.
            form = self.forms.setdefault(key, _compiled(self.function, self._layout(logits, arrays)))
        return form

    def _layout(self, logits: torch.dtype, arrays: Sequence[Tensor]) -> str:
        matrices = {place % len(arrays) for place in self.matrices}
        for place, array in enumerate(arrays):
            wanted = 2 if place in matrices else 1
            if array.ndim != wanted or array.dtype not in ELEMENTS:
                given = f"{array.dtype} {list(array.shape)}".removeprefix("torch.")
                dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in ELEMENTS)
                raise ContractError(
                    f"Array {place} of the kernel {self.function.__qualname__} is {given}. It must have {wanted} "
                    f"dimension(s), and one of the dtypes {dtypes}. Which arrays are [batch, n] is said where a kernel "
                    "is made: `kernel_with(-1)` for the last, `kernel` for none."
                )
        return layout_of(logits, [array.dtype for array in arrays], matrices)


def kernel(function: Callable[..., Any]) -> Kernel:
    """A function over rows as a kernel, see `Kernel.function`; a decorator. All its arrays are [batch]."""
    return Kernel(function)


def kernel_with(*matrices: int, weight: float = 1.0) -> Callable[[Callable[..., Any]], Kernel]:
    """The same where some arrays are [batch, n], given by their places, -1 the last; or with another weight."""
    return lambda function: Kernel(function, matrices, weight)


def _compiled(function: Callable[..., Any], layout: str) -> Any:
    body = register_jitable(function)

    def form(claims, batch, vocab, row_stride, *numbers):  # type: ignore[no-untyped-def]
        arrays = arrays_at(numbers, ((batch - 1) * row_stride + vocab, batch), layout)
        if claims == 0:
            rows = np.array([0, 0, batch])
        else:
            (rows,) = arrays_at((claims,), (3, 0), "int64[]")
        body(arrays[0], row_stride, vocab, rows, *arrays[1:])

    return cached(form)
