"""Vectors of 64 float32 on the CPU, and what is done with all lanes at once.

Numba makes vector code of plain loops, but in an order of instructions that leaves the processor waiting for the
previous one where there are many for every number. Here each operation is one on a vector of LLVM's, which every target
lowers to what it has: AVX-512, AVX2, NEON, or scalar code.

    x = load(values, start)          64 stored logits, decoded
    x + y, x - y, x * y              lane by lane; `everywhere` makes a vector of one number
    bits = at_least(x, threshold)    one bit a lane, for `lowest_bit`, `add_where`
    bits_between(keys, start, ...)   the same of 64 integers
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_jitable, register_model

__all__ = [
    "LANES",
    "add_where",
    "at_least",
    "bits_between",
    "bits_not_zero",
    "count_bits",
    "everywhere",
    "fused",
    "greater",
    "largest_of",
    "load",
    "lowest_bit",
    "scaled_by_power",
    "store",
    "total_of",
]

LANES = 64

FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTEGERS = ir.VectorType(ir.IntType(32), LANES)
BITS = ir.VectorType(ir.IntType(1), LANES)
MANTISSA_BITS = 23


class Lanes(types.Type):  # type: ignore[misc]
    """The Numba type of a vector of LANES float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, FLOATS)


def _constant(vector: ir.VectorType, value: Any) -> Any:
    return ir.Constant(vector, [value] * LANES)


def _spread(builder: Any, value: Any, vector: ir.VectorType = FLOATS) -> Any:
    """A vector that has one number in every lane."""
    nowhere = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(nowhere, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, nowhere, _constant(INTEGERS, 0))


def _decoded(builder: Any, loaded: Any, dtype: Any) -> Any:
    """A vector of stored logits as float32."""
    if dtype == types.float32:
        return loaded
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(loaded, ir.VectorType(ir.HalfType(), LANES)), FLOATS)
    return builder.bitcast(builder.shl(builder.zext(loaded, INTEGERS), _constant(INTEGERS, 16)), FLOATS)


@intrinsic
def load(context: Any, values: Any, start: Any) -> Any:
    """64 stored logits from `start` on as float32.

    Args:
        values: float32, uint16 (bfloat16) or int16 (float16), contiguous; that it is long enough is not checked.
        start: int64.
    """
    dtype = values.dtype
    stored = ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.IntType(16), LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        loaded = builder.load(builder.bitcast(pointer, stored.as_pointer()))
        loaded.align = dtype.bitwidth // 8
        return _decoded(builder, loaded, dtype)

    return lanes(types.Array(dtype, 1, "C"), types.int64), generate


@intrinsic
def store(context: Any, values: Any, start: Any, a: Any) -> Any:
    """Write a vector to float32 `values` from `start` on; that they are long enough is not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        builder.store(arguments[2], builder.bitcast(pointer, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.Array(types.float32, 1, "C"), types.int64, lanes), generate


@intrinsic
def everywhere(context: Any, value: Any) -> Any:
    """A vector of one float32."""
    return lanes(types.float32), lambda context, builder, signature, arguments: _spread(builder, arguments[0])


def _lane_by_lane(instruction: str) -> Any:
    """An operation on two vectors that LLVM has an instruction for."""

    @intrinsic
    def operation(context: Any, a: Any, b: Any) -> Any:
        return lanes(lanes, lanes), lambda context, builder, signature, arguments: getattr(builder, instruction)(
            *arguments
        )

    return operation


def _define(symbol: Any, instruction: str) -> None:
    operation = _lane_by_lane(instruction)

    @overload(symbol, strict=False)
    def of_lanes(a: Any, b: Any) -> Callable[..., Any] | None:
        return (lambda a, b: operation(a, b)) if a == lanes and b == lanes else None


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")


def _greater(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def greater(context: Any, a: Any, b: Any) -> Any:
    """The greater of two vectors, lane by lane; that of `b` where either is NaN."""

    return lanes(lanes, lanes), lambda context, builder, signature, arguments: _greater(builder, *arguments)


@intrinsic
def fused(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c lane by lane, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(FLOATS, [FLOATS] * 3)
        fma = cgutils.get_or_insert_function(builder.module, function, f"llvm.fma.v{LANES}f32")
        return builder.call(fma, arguments)

    return lanes(lanes, lanes, lanes), generate


@intrinsic
def scaled_by_power(context: Any, p: Any, shifted: Any) -> Any:
    """`numerics.times_power` lane by lane: p * 2**whole, with the whole number in the low bits of `shifted`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p, shifted = (builder.bitcast(argument, INTEGERS) for argument in arguments)
        power = builder.shl(shifted, _constant(INTEGERS, MANTISSA_BITS))
        return builder.bitcast(builder.add(p, power), FLOATS)

    return lanes(lanes, lanes), generate


def _folded(join: Callable[..., Any]) -> Callable[..., Any]:
    """Code that joins all lanes into one number: half of them with the other half, six times."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        folded, width = arguments[0], LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(folded, folded, ir.Constant(ir.VectorType(ir.IntType(32), width), list(places)))
                for places in (range(width), range(width, 2 * width))
            ]
            folded = join(builder, *halves)
        return builder.extract_element(folded, ir.Constant(ir.IntType(32), 0))

    return generate


@intrinsic
def total_of(context: Any, a: Any) -> Any:
    """The sum of all lanes, float32; NaN where one is, or where two infinities are added up."""
    return types.float32(lanes), _folded(lambda builder, a, b: builder.fadd(a, b))


@intrinsic
def largest_of(context: Any, a: Any) -> Any:
    """The largest of all lanes, float32; any number where one is NaN."""
    return types.float32(lanes), _folded(_greater)


# Bits, one a lane.


@intrinsic
def at_least(context: Any, a: Any, threshold: Any) -> Any:
    """A uint64 whose bit i tells whether lane i is at least a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        reached = builder.fcmp_ordered(">=", arguments[0], _spread(builder, arguments[1]))
        return builder.bitcast(reached, ir.IntType(LANES))

    return types.uint64(lanes, types.float32), generate


@intrinsic
def _between(context: Any, values: Any, start: Any, low: Any, last: Any) -> Any:
    """`bits_between` of LANES values, whose number is not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), INTEGERS.as_pointer())
        loaded = builder.load(pointer)
        loaded.align = 4
        above = builder.sub(loaded, _spread(builder, arguments[2], INTEGERS))
        return builder.bitcast(
            builder.icmp_unsigned("<=", above, _spread(builder, arguments[3], INTEGERS)), ir.IntType(LANES)
        )

    return types.uint64(types.Array(types.uint32, 1, "C"), types.int64, types.uint32, types.uint32), generate


@register_jitable
def bits_between(values: Any, start: Any, stop: Any, low: Any, last: Any) -> Any:
    """A uint64 whose bit i tells whether values[start + i], uint32, is one of `low` .. `low` + `last`; up to `stop`."""
    if start + LANES <= stop:
        return _between(values, start, low, last)
    bits = np.uint64(0)
    for i in range(stop - start):
        inside = np.uint64(np.uint32(values[start + i] - low) <= last)
        bits |= inside << np.uint64(i)
    return bits


@intrinsic
def _not_zero(context: Any, values: Any, start: Any) -> Any:
    """`bits_not_zero` of LANES values, whose number is not checked."""
    words = ir.VectorType(ir.IntType(64), LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), words.as_pointer())
        loaded = builder.load(pointer)
        loaded.align = 8
        return builder.bitcast(builder.icmp_unsigned("!=", loaded, _constant(words, 0)), ir.IntType(LANES))

    return types.uint64(types.Array(types.uint64, 1, "C"), types.int64), generate


@register_jitable
def bits_not_zero(values: Any, start: Any, stop: Any) -> Any:
    """A uint64 whose bit i tells whether values[start + i], uint64, is not 0; up to `stop`."""
    if start + LANES <= stop:
        return _not_zero(values, start)
    bits = np.uint64(0)
    for i in range(stop - start):
        bits |= np.uint64(values[start + i] != 0) << np.uint64(i)
    return bits


@intrinsic
def add_where(context: Any, a: Any, b: Any, bits: Any) -> Any:
    """a + b in the lanes whose bit is set, a in the others."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, bits = arguments
        return builder.select(builder.bitcast(bits, BITS), builder.fadd(a, b), a)

    return lanes(lanes, lanes, types.uint64), generate


@intrinsic
def lowest_bit(context: Any, bits: Any) -> Any:
    """The index of the lowest bit that is set in a uint64; 64 where none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.int64(types.uint64), generate


@intrinsic
def count_bits(context: Any, bits: Any) -> Any:
    """How many bits of a uint64 are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate
