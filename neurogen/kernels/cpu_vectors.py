"""Two instructions that Numba has no name for: comparing 64 floats at once, and finding the lowest bit that is set.

Written as vectors of LLVM's, which every target lowers to what it has: AVX-512, AVX2, NEON, or scalar code.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["LANES", "at_least", "lowest_bit"]

LANES = 64


def _vector(bits: ir.Type) -> ir.VectorType:
    return ir.VectorType(bits, LANES)


def _decoded(builder: Any, loaded: Any, dtype: Any) -> Any:
    """A vector of stored logits as float32."""
    if dtype == types.float32:
        return loaded
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(loaded, _vector(ir.HalfType())), _vector(ir.FloatType()))
    wide = builder.zext(loaded, _vector(ir.IntType(32)))
    sixteen = ir.Constant(_vector(ir.IntType(32)), [16] * LANES)
    return builder.bitcast(builder.shl(wide, sixteen), _vector(ir.FloatType()))


@intrinsic
def at_least(context: Any, values: Any, start: Any, threshold: Any) -> Any:
    """A uint64 whose bit i tells whether values[start + i] >= threshold, for 64 logits from `start` on.

    Args:
        values: float32, uint16 (bfloat16) or int16 (float16), contiguous; that it is long enough is not checked.
        start: int64.
        threshold: float32.
    """
    dtype = values.dtype
    stored = ir.FloatType() if dtype == types.float32 else ir.IntType(16)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        loaded = builder.load(builder.bitcast(pointer, _vector(stored).as_pointer()))
        loaded.align = dtype.bitwidth // 8
        nowhere = ir.Constant(_vector(ir.FloatType()), ir.Undefined)
        single = builder.insert_element(nowhere, arguments[2], ir.Constant(ir.IntType(32), 0))
        everywhere = builder.shuffle_vector(single, nowhere, ir.Constant(_vector(ir.IntType(32)), [0] * LANES))
        reached = builder.fcmp_ordered(">=", _decoded(builder, loaded, dtype), everywhere)
        return builder.bitcast(reached, ir.IntType(LANES))

    return types.uint64(types.Array(dtype, 1, "C"), types.int64, types.float32), generate


@intrinsic
def lowest_bit(context: Any, bits: Any) -> Any:
    """The index of the lowest bit that is set in a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.true_bit)

    return types.int64(types.uint64), generate
