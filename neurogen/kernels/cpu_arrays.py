"""Tensors as the arrays of a CPU kernel, made inside it from addresses.

A NumPy view of a tensor costs about a microsecond, which for the half dozen tensors of a call is as much as a small
row. An address costs a tenth of that. What the arrays are like is a text that the kernel is compiled for:

    float32[], float64[], int64[], float32[,]        logits; a parameter a row, ids; probabilities
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["ELEMENTS", "STORED", "arrays_at", "layout_of"]

STORED = {torch.float32: "float32[]", torch.bfloat16: "uint16[]", torch.float16: "int16[]"}
"""How a kernel reads logits of each dtype, see `numerics.to_float32`."""
ELEMENTS = {
    torch.int64: "int64",
    torch.int32: "int32",
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bool: "boolean",
    torch.uint8: "uint8",
}


def layout_of(logits: torch.dtype, arrays: Sequence[torch.dtype], matrices: Collection[int]) -> str:
    """The arrays of a kernel: the logits of a batch one after another, and others [batch], or [batch, n].

    Args:
        logits: their dtype.
        arrays: the dtypes of the others.
        matrices: which of these are [batch, n].
    """
    parts = [ELEMENTS[dtype] + ("[,]" if place in matrices else "[]") for place, dtype in enumerate(arrays)]
    return ";".join([STORED[logits], *parts])


@intrinsic(prefer_literal=True)
def arrays_at(context: Any, numbers: Any, length: Any, layout: Any) -> Any:
    """A tuple of arrays.

    Args:
        numbers: int64, the address of each array of the layout, and then the length of the rows of each matrix.
        length: int64 [2], the elements of the first array, and the first dimension of all others.
        layout: of `layout_of`, a literal.
    """
    kinds = [types.Array(getattr(types, part.split("[")[0]), 1 + part.count(","), "C") for part in _parts(layout)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = cgutils.unpack_tuple(builder, arguments[0])
        first, others = cgutils.unpack_tuple(builder, arguments[1])
        widths = iter(given[len(kinds) :])
        made = [
            _array(context, builder, kind, address, [others if place else first, *_width(kind, widths)])
            for place, (kind, address) in enumerate(zip(kinds, given, strict=False))
        ]
        return context.make_tuple(builder, signature.return_type, made)

    return types.Tuple(kinds)(numbers, length, layout), generate


def _parts(layout: Any) -> list[str]:
    return str(layout.literal_value).split(";")


def _width(kind: Any, widths: Any) -> list[Any]:
    return [next(widths)] if kind.ndim == 2 else []


def _array(context: Any, builder: Any, kind: Any, address: Any, shape: list[Any]) -> Any:
    array = context.make_array(kind)(context, builder)
    size = ir.Constant(ir.IntType(64), context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [builder.mul(shape[1], size), size] if kind.ndim == 2 else [size]
    data = builder.inttoptr(address, array.data.type)
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
    return array._getvalue()
