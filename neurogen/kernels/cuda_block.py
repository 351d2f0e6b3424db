"""What the threads of one block do together on CUDA: sums, maxima and prefix sums in integers, and reads four wide.

Functions of a block or a warp are called by all its threads at once (they contain barriers or shuffles). Sums are of
integers, so they do not depend on the order in which threads arrive.

Importing this module makes the functions of `numerics` that are not plain Python known to the CUDA compiler; without
the extra `cuda` that is a MissingExtraError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, cuda

from neurogen.contract.cuda_extra import require_cuda_extra
from neurogen.kernels.host import check_returned
from neurogen.kernels.numerics import exact_mul, exponential, fused_mul_add, to_float32

__all__ = [
    "WARP",
    "add_at",
    "add_in_words",
    "add_shared",
    "block_before",
    "block_largest",
    "block_sum",
    "device",
    "four_at",
    "lane_of",
    "logit_of",
    "mass",
    "warp_of",
    "warp_sum",
    "warps",
]

WARP = 32
ALL_LANES = 0xFFFFFFFF

SINGLE_TO_DOUBLE = np.uint64(29)  # float64 has 52 bits of mantissa, float32 has 23
REBIAS = np.int64(1023 - 127)
EXPONENT_SHIFT = np.uint64(52)
ROUND = np.float64(1.5 * 2**52)  # adding it rounds |t| < 2**51 to the nearest integer, which is then in its low bits
ROUND_BITS = np.int64(0x4338000000000000)


def logit_of(value: Any) -> Any:
    """A stored logit as float32: `numerics.to_float32`."""
    return to_float32(value)


def add_in_words(builder: Any, address: Any, amount: Any) -> None:
    """Build what adds 64 bits in memory as two words of 32: no addition is lost, and the number is right in the end.

    What the lower word carries over, the thread that made it overflow adds to the upper one. A card adds 64 bits to
    shared memory by trying again until nobody came between, and 32 bits at once.

    Args:
        builder: an llvmlite IRBuilder.
        address: of the lower word, a pointer to 32 bits.
        amount: 64 bits.
    """
    word = ir.IntType(32)
    low = builder.trunc(amount, word)
    high = builder.trunc(builder.lshr(amount, ir.IntType(64)(32)), word)
    before = builder.atomic_rmw("add", address, low, "monotonic")
    overflows = builder.icmp_unsigned("<", builder.add(before, low), low)
    high = builder.add(high, builder.zext(overflows, word))
    with builder.if_then(builder.icmp_unsigned("!=", high, word(0))):
        builder.atomic_rmw("add", builder.gep(address, [word(1)], source_etype=word), high, "monotonic")


if config.ENABLE_CUDASIM:

    def device(function: Callable[..., Any]) -> Any:
        """A function called from kernels: the simulator calls it as it is."""
        return function

    def four_at(logits: Any, index: Any) -> Any:
        """Four stored logits from `index` on."""
        return logits[index], logits[index + 1], logits[index + 2], logits[index + 3]

    def add_at(values: Any, index: Any, amount: Any) -> Any:
        """Add to an int64 in global memory atomically; what was there."""
        before = values[index]
        values[index] = before + amount
        return before

    def add_shared(values: Any, index: Any, amount: Any) -> None:
        """Add to an int64 in shared memory atomically."""
        cuda.atomic.add(values, index, amount)

    def checked(where: str, is_right: Callable[[Any], bool], wanted: str) -> Callable[..., Any]:
        """A function that gives what it is given: the simulator compiles nothing that could be refused."""
        return lambda value: value

else:
    require_cuda_extra()
    from numba.cuda import libdevice, types
    from numba.cuda.extending import intrinsic, overload

    def device(function: Callable[..., Any]) -> Any:
        """A function called from kernels, compiled into each of them."""
        return cuda.jit(device=True, forceinline=True)(function)

    def checked(where: str, is_right: Callable[[Any], bool], wanted: str) -> Callable[..., Any]:
        """A function that gives what it is given, compiled only if that is of a right type.

        Args:
            where: the definition whose result it is given, and where that stands.
            is_right: says so of a type of Numba's.
            wanted: what the definition must return, in words.
        """

        def returned(value: Any) -> Any:
            return value

        @overload(returned, target="cuda", strict=False)
        def _returned(value: Any) -> Any:
            check_returned(where, is_right(value), str(value), wanted)
            return lambda value: value

        return returned

    @overload(exact_mul, target="cuda", strict=False)
    def _exact_mul_cuda(a: Any, b: Any) -> Any:
        if a == types.float64:
            return lambda a, b: libdevice.dmul_rn(a, b)
        return lambda a, b: libdevice.fmul_rn(a, b)  # the only multiplication NVVM and ptxas never fuse

    @overload(fused_mul_add, target="cuda", strict=False)
    def _fused_mul_add_cuda(a: Any, b: Any, c: Any) -> Any:
        return lambda a, b, c: libdevice.fmaf_rn(a, b, c)

    @intrinsic
    def _widened(typing_context: Any, bits: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.int16), generate

    @overload(logit_of, target="cuda", strict=False)
    def _logit_of_cuda(value: Any) -> Any:
        if value == types.int16:
            return lambda value: _widened(value)  # one instruction, exact like the dozen of `to_float32`
        return lambda value: to_float32(value)

    @intrinsic
    def four_at(typing_context: Any, logits: Any, index: Any) -> Any:
        """Four stored logits from `index` on, read at once: they stand at a multiple of their size."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer, offset = arguments
            element = context.get_value_type(logits.dtype)
            address = builder.gep(pointer, [offset], source_etype=element)
            # Halves as two words, which stay one read; four halves become two.
            halves = logits.dtype.bitwidth == 16
            wide = ir.VectorType(ir.IntType(32), 2) if halves else ir.VectorType(element, 4)
            in_global = builder.addrspacecast(address, ir.PointerType(wide, addrspace=1))
            four = builder.load(in_global, align=logits.dtype.bitwidth // 2)
            if halves:
                words = [builder.extract_element(four, ir.IntType(32)(word)) for word in range(2)]
                shifted = [builder.lshr(word, ir.IntType(32)(shift)) for word in words for shift in (0, 16)]
                lanes = [builder.trunc(word, element) for word in shifted]
            else:
                lanes = [builder.extract_element(four, ir.IntType(32)(lane)) for lane in range(4)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return types.UniTuple(logits.dtype, 4)(logits, index), generate

    @intrinsic
    def add_at(typing_context: Any, values: Any, index: Any, amount: Any) -> Any:
        """Add to an int64 in global memory atomically; what was there. Adding 0 reads past the cache of one's own."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer, offset, own = arguments
            word = ir.IntType(64)
            address = builder.gep(pointer, [offset], source_etype=word)
            in_global = builder.addrspacecast(address, ir.PointerType(word, addrspace=1))
            return builder.atomic_rmw("add", in_global, own, "monotonic")

        return types.int64(values, types.int64, types.int64), generate

    @intrinsic
    def add_shared(typing_context: Any, values: Any, index: Any, amount: Any) -> Any:
        """Add to an int64 in shared memory atomically, to be read after a barrier."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, offset, own = arguments
            data = context.make_array(values)(context, builder, array).data
            address = builder.gep(data, [offset], source_etype=ir.IntType(64))
            add_in_words(builder, builder.addrspacecast(address, ir.PointerType(ir.IntType(32), addrspace=3)), own)
            return context.get_dummy_value()

        return types.void(values, types.int64, types.int64), generate


@device
def lane_of():  # type: ignore[no-untyped-def]
    """This thread's place in its warp."""
    return np.int32(np.uint32(cuda.threadIdx.x) % np.uint32(WARP))  # as signed numbers it would take more registers


@device
def warp_of():  # type: ignore[no-untyped-def]
    """This thread's warp."""
    return np.int32(np.uint32(cuda.threadIdx.x) // np.uint32(WARP))


@device
def warps():  # type: ignore[no-untyped-def]
    """Warps in the block; its threads are a multiple of WARP, and at most WARP**2."""
    return np.int32(np.uint32(cuda.blockDim.x) // np.uint32(WARP))


@device
def warp_sum(value):  # type: ignore[no-untyped-def]
    """The sum of an int64 over the lanes of a warp, known to all of them."""
    step = WARP // 2
    while step > 0:
        value += cuda.shfl_xor_sync(ALL_LANES, value, step)
        step //= 2
    return value


@device
def _warp_largest(value):  # type: ignore[no-untyped-def]
    step = WARP // 2
    while step > 0:
        value = max(value, cuda.shfl_xor_sync(ALL_LANES, value, step))
        step //= 2
    return value


@device
def block_sum(sums, value):  # type: ignore[no-untyped-def]
    """The sum of an int64 over all threads, known to all. `sums`: shared int64 [WARP], free to use. A barrier."""
    value = warp_sum(value)
    cuda.syncthreads()
    if lane_of() == 0:
        sums[warp_of()] = value
    cuda.syncthreads()
    return warp_sum(sums[lane_of()] if lane_of() < warps() else np.int64(0))


@device
def block_largest(sums, value):  # type: ignore[no-untyped-def]
    """The largest of an int64 >= 0 over all threads, known to all. A barrier."""
    value = _warp_largest(value)
    cuda.syncthreads()
    if lane_of() == 0:
        sums[warp_of()] = value
    cuda.syncthreads()
    return _warp_largest(sums[lane_of()] if lane_of() < warps() else np.int64(0))


@device
def _warp_up_to(value):  # type: ignore[no-untyped-def]
    """The sum of an int64 over the lanes up to this one."""
    step = 1
    while step < WARP:
        below = cuda.shfl_up_sync(ALL_LANES, value, step)
        if lane_of() >= step:
            value += below
        step *= 2
    return value


@device
def block_before(sums, value):  # type: ignore[no-untyped-def]
    """The sum of an int64 over the threads before this one. A barrier."""
    up_to = _warp_up_to(value)
    cuda.syncthreads()
    if lane_of() == WARP - 1:
        sums[warp_of()] = up_to
    cuda.syncthreads()
    earlier = warp_sum(sums[lane_of()] if lane_of() < warp_of() else np.int64(0))
    return earlier + up_to - value


@device
def mass(x, top, scale, bits):  # type: ignore[no-untyped-def]
    """`numerics.mass_of`, the same integer without a conversion, which costs a card as much as four additions.

    The float32 becomes a float64 2**bits times as large by its bits; adding 1.5 * 2**52 leaves the nearest integer in
    the low ones. 0 becomes a number far below 1/2.
    """
    v = np.uint64(exponential(x, top, scale, np.float32(-bits)).view(np.uint32))
    wide = (v << SINGLE_TO_DOUBLE) + (np.uint64(REBIAS + bits) << EXPONENT_SHIFT)
    return np.int64(np.float64(wide.view(np.float64) + ROUND).view(np.int64) - ROUND_BITS)
