"""Scalar functions that give the same bits on the CPU, on CUDA and in the CUDA simulator.

Three ideas make a result independent of device, thread count and order of addition:

- *keys*: a float32 maps to a uint32 that orders the same way, so selection compares integers;
- *masses*: exp((x - max) / temperature) becomes a fixed-point int64, so sums are exact in any order;
- *Philox*: the random number of a row is a pure function of (seed, position).

Only IEEE additions, multiplications, fused multiply-adds and integer operations are used, and it is written which: a
CUDA compiler would contract a * b + c on its own, and an older processor would not. `exact_mul` is never fused,
`fused_mul_add` always. A thread may be set to take subnormal floats for 0 (torch.set_flush_denormal), so what has to be
exact is done on bits: whether numbers are equal, which is larger, how a half is decoded, whether a temperature is above
0.

A stored logit is a float32, the bits of a bfloat16 as uint16, or those of a float16 as int16: its type tells which.

Every function here is plain Python over NumPy scalars: called directly it is the simulator's version, inside a
`numba.njit` or `numba.cuda.jit` function it is compiled for that target.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

__all__ = [
    "NEGATIVE_INFINITY",
    "exact_mul",
    "exponential",
    "fused_mul_add",
    "is_valid",
    "is_warm",
    "key_of",
    "log2_of",
    "mass_bits",
    "mass_of",
    "mul_high",
    "nucleus_mass",
    "random_bits",
    "scale_of",
    "split_exponent",
    "times_power",
    "to_float32",
    "two_to",
    "uniform",
    "value_of",
]

NEGATIVE_INFINITY = np.float32(-np.inf)
LARGEST_FLOAT32 = np.float32(3.4028234663852886e38)

SIGN_BIT = np.uint32(0x80000000)
MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
HALF_SMALLEST_NORMAL = np.uint32(0x0400)
HALF_INFINITY = np.uint32(0x7C00)
HALF_TO_SINGLE = np.uint32(13)  # float16 has 10 bits of mantissa, float32 has 23
REBIAS = np.uint32((127 - 15) << 23)
SUBNORMAL_BASE = np.float32(2.0**-14)
SUBNORMAL_BASE_BITS = np.uint32((127 - 14) << 23)
FLOAT64_INFINITY = np.int64(0x7FF0000000000000)

LOG2_E = 1.4426950408889634
MIN_SCALE = 2.0**-126
# A subnormal logit is below 2**-126, and where it alters x - top at all, a mass is that of x = top until
# (x - top) * scale reaches 2**-25. So up to this scale a mass does not depend on whether subnormals are taken for 0.
MAX_SCALE = 2.0**76

ROUND_TO_INTEGER = np.float32(1.5 * 2**23)  # adding and subtracting it rounds |t| < 2**22 to the nearest integer
ROUND_FLOAT64 = 1.5 * 2**52  # the same for |t| < 2**51
MANTISSA_SHIFT = np.uint32(23)
MOST_MASS_BITS = 45
SUM_BITS = 62

# 2**f on [-1/2, 1/2]: the Taylor coefficients ln(2)**n / n!, whose remainder there is below 2**-26; the constant
# is exactly 1, so the largest logit has exactly the mass 2**bits.
EXP2_1 = np.float32(0.6931471805599453)
EXP2_2 = np.float32(0.2402265069591007)
EXP2_3 = np.float32(0.05550410866482158)
EXP2_4 = np.float32(0.009618129107628477)
EXP2_5 = np.float32(0.0013333558146428443)
EXP2_6 = np.float32(0.00015403530393381608)
ZERO = np.float32(0.0)
ONE = np.float32(1.0)

PHILOX_M0 = np.uint64(0xD2511F53)
PHILOX_M1 = np.uint64(0xCD9E8D57)
PHILOX_W0 = np.uint64(0x9E3779B9)
PHILOX_W1 = np.uint64(0xBB67AE85)
LOW_32 = np.uint64(0xFFFFFFFF)
SHIFT_32 = np.uint64(32)


def exact_mul(a: Any, b: Any) -> Any:
    """The product of two float32 or two float64, rounded once and never fused with a following addition."""
    return a * b


@overload(exact_mul, target="cpu", strict=False)
def _exact_mul_cpu(a: Any, b: Any) -> Any:
    return lambda a, b: a * b  # LLVM's CPU targets do not contract without being told to


def fused_mul_add(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32, rounded once.

    Uncompiled, the product is exact in float64, and so is what its addition to c loses. Where it loses anything, the
    sum is made odd (its last bit set, towards the exact value), so that rounding it to float32 cannot round twice.
    """
    product = np.float64(a) * np.float64(b)
    addend = np.float64(c)
    total = product + addend
    behind = total - product
    lost = (product - (total - behind)) + (addend - behind)
    if lost != 0 and total.view(np.int64) & 1 == 0:
        total = np.nextafter(total, np.copysign(np.inf, lost))
    return np.float32(total)


@intrinsic
def _fused_mul_add(context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@overload(fused_mul_add, target="cpu", strict=False)
def _fused_mul_add_cpu(a: Any, b: Any, c: Any) -> Any:
    return lambda a, b, c: np.float32(_fused_mul_add(a, b, c))


def to_float32(value: Any) -> Any:
    """A stored logit as float32, exactly.

    Args:
        value: a float32, the bits of a bfloat16 as uint16, or the bits of a float16 as int16.
    """
    if isinstance(value, np.floating):
        return np.float32(value)
    return _from_bfloat16(value) if isinstance(value, np.uint16) else _from_float16(value)


@overload(to_float32, strict=False)
def _to_float32(value: Any) -> Any:
    if value == types.float32:
        return lambda value: value
    if value == types.uint16:
        return lambda value: _from_bfloat16(value)
    return lambda value: _from_float16(value)


@register_jitable
def _from_bfloat16(bits: Any) -> Any:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@register_jitable
def _from_float16(bits: Any) -> Any:
    wide = np.uint32(np.uint16(bits))
    sign = np.uint32((wide & np.uint32(0x8000)) << np.uint32(16))
    half = np.uint32(wide & np.uint32(0x7FFF))
    magnitude = np.uint32(half << HALF_TO_SINGLE)
    if half < HALF_SMALLEST_NORMAL:
        # With the exponent of 2**-14 the mantissa is that of 2**-14 + x. Every float here is normal, or 0.
        behind = np.uint32(magnitude | SUBNORMAL_BASE_BITS).view(np.float32)
        magnitude = np.float32(behind - SUBNORMAL_BASE).view(np.uint32)
    elif half < HALF_INFINITY:
        magnitude = np.uint32(magnitude + REBIAS)
    else:
        magnitude = np.uint32(magnitude | np.uint32(0x7F800000))  # an exponent of all ones stays all ones
    return np.uint32(sign | magnitude).view(np.float32)


@register_jitable
def key_of(x: Any) -> Any:
    """The uint32 that orders float32 `x` among all others: 2**31 plus or minus the bits of its magnitude.

    -0 is equal to +0, and a subnormal to itself alone. Not for NaN.
    """
    bits = np.float32(x).view(np.uint32)
    magnitude = np.uint32(bits & MAGNITUDE_BITS)
    return np.uint32(SIGN_BIT - magnitude) if bits & SIGN_BIT else np.uint32(SIGN_BIT + magnitude)


@register_jitable
def value_of(key: Any) -> Any:
    """The float32 whose key is the uint32 `key`: the inverse of `key_of`."""
    if key & SIGN_BIT:
        return np.uint32(key ^ SIGN_BIT).view(np.float32)
    return np.uint32(SIGN_BIT | np.uint32(SIGN_BIT - key)).view(np.float32)


@register_jitable
def is_valid(x: Any) -> Any:
    """Whether a logit may stand in a row: neither NaN nor +inf."""
    return x <= LARGEST_FLOAT32


@register_jitable
def is_warm(temperature: Any) -> Any:
    """Whether a float64 temperature is above 0; NaN is not. By its bits, which are those of a positive integer."""
    bits = np.float64(temperature).view(np.int64)
    return 0 < bits <= FLOAT64_INFINITY


@register_jitable
def scale_of(temperature: Any) -> Any:
    """log2(e) / temperature as float32, kept finite and normal, for a float64 `temperature` above 0."""
    return np.float32(min(max(LOG2_E / temperature, MIN_SCALE), MAX_SCALE))


@register_jitable
def mass_bits(vocab: Any) -> Any:
    """Fixed-point bits of a mass, so that a row of `vocab` masses sums to at most 2**62."""
    bits = SUM_BITS
    reach = 1
    while reach < vocab:
        reach *= 2
        bits -= 1
    return min(bits, MOST_MASS_BITS)


@register_jitable
def split_exponent(x: Any, top: Any, scale: Any, lowest: Any) -> Any:
    """t = scale * (x - top), not below `lowest`, as a fraction in [-1/2, 1/2] and a whole number, both float32.

    The whole number stands in the low bits of the second, as `times_power` takes it.
    """
    t = exact_mul(np.float32(x - top), scale)
    t = t if t > lowest else lowest
    shifted = np.float32(t + ROUND_TO_INTEGER)
    return np.float32(t - np.float32(shifted - ROUND_TO_INTEGER)), shifted


@register_jitable
def times_power(p: Any, shifted: Any) -> Any:
    """p * 2**whole for a float32 p near 1: the low bits of `shifted` are added to its exponent."""
    power = np.uint32(np.float32(shifted).view(np.uint32) << MANTISSA_SHIFT)
    return np.uint32(np.float32(p).view(np.uint32) + power).view(np.float32)


@register_jitable
def exponential(x: Any, top: Any, scale: Any, lowest: Any) -> Any:
    """2**(scale * (x - top)) as float32, not below 2**lowest; 0 for -inf. Arguments as for `mass_of`."""
    f, shifted = split_exponent(x, top, scale, lowest)
    p = fused_mul_add(EXP2_6, f, EXP2_5)
    p = fused_mul_add(p, f, EXP2_4)
    p = fused_mul_add(p, f, EXP2_3)
    p = fused_mul_add(p, f, EXP2_2)
    p = fused_mul_add(p, f, EXP2_1)
    p = fused_mul_add(p, f, ONE)
    return times_power(p, shifted) if x > NEGATIVE_INFINITY else ZERO


@register_jitable
def mass_of(x: Any, top: Any, scale: Any, bits: Any) -> Any:
    """exp((x - top) / temperature) as an integer: in units of 2**-bits, rounded to the nearest.

    The top logit has exactly 2**bits; -inf has 0; every finite logit has at least 1, so that a token in the support can
    always be drawn. What is raised to 1 so, and what rounding adds or takes, is together at most vocab * 2**-bits of
    the top's mass: below 2**-28 up to a vocab of 131,072, where `bits` is 45, and 2**(2c - 62) for c =
    ceil(log2(vocab)) above, so below 2**-25 up to 262,144.

    Where t = log2(e) * (x - top) / temperature, the relative error is at most 2**-22 for the exponential and
    3 * |t| * 2**-24 * ln(2) for t: the difference, the scale and their product are each rounded once to 24 bits. Its
    mean over a row is largest where one token holds a tenth and the others share the rest, |t| being 13.4 on average at
    a vocab of 262,144: half of it, the most that probabilities can be off in total variation, is below 1e-6. This holds
    where x - top is finite in float32 and `scale_of` does not clamp, between temperatures of log2(e) * 2**-76 (2e-23)
    and log2(e) * 2**126 (1e38); a difference of -inf has the mass 1.

    Args:
        x: the logit, float32, not NaN, not +inf, at most `top`.
        top: the largest logit of the row, float32, finite.
        scale: `scale_of(temperature)`.
        bits: `mass_bits(vocab)`.

    Returns:
        int64 in 0 .. 2**bits.
    """
    v = exponential(x, top, scale, np.float32(-bits))
    units = np.float64(v) * np.float64(np.int64(1) << np.int64(bits))
    return np.int64((units + ROUND_FLOAT64) - ROUND_FLOAT64)


@register_jitable
def mul_high(a: Any, b: Any) -> Any:
    """The upper 64 bits of the 128-bit product of two uint64."""
    a_low, a_high = a & LOW_32, a >> SHIFT_32
    b_low, b_high = b & LOW_32, b >> SHIFT_32
    low = a_low * b_low
    middle = a_high * b_low + (low >> SHIFT_32)
    other = a_low * b_high + (middle & LOW_32)
    return a_high * b_high + (middle >> SHIFT_32) + (other >> SHIFT_32)


@register_jitable
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11); 32-bit words in uint64."""
    for _ in range(10):
        first = PHILOX_M0 * c0
        second = PHILOX_M1 * c2
        c0 = (second >> SHIFT_32) ^ c1 ^ k0
        c1 = second & LOW_32
        c2 = (first >> SHIFT_32) ^ c3 ^ k1
        c3 = first & LOW_32
        k0 = (k0 + PHILOX_W0) & LOW_32
        k1 = (k1 + PHILOX_W1) & LOW_32
    return c0, c1, c2, c3


@register_jitable
def random_bits(seed: Any, position: Any, index: Any) -> Any:
    """The `index`-th uint64 that belongs to (seed, position): 64 random bits, the same on every device.

    Args:
        seed: int64; all 64 bits count.
        position: int64, the index within its sequence of the token to be chosen.
        index: 0 for the number that selects the token; a sampler that needs more takes 1, 2, ...
    """
    key = np.uint64(np.int64(seed))
    counter = np.uint64(np.int64(position))
    c0, c1, _, _ = _philox(
        counter & LOW_32,
        counter >> SHIFT_32,
        np.uint64(index),
        np.uint64(0),
        key & LOW_32,
        key >> SHIFT_32,
    )
    return c0 | (c1 << SHIFT_32)


@register_jitable
def uniform(bits: Any) -> Any:
    """64 random bits as a float64 in [0, 1)."""
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@register_jitable
def nucleus_mass(p: Any, total: Any) -> Any:
    """The mass a nucleus must reach: p of `total`, rounded up, at least 1 and at most `total`.

    Args:
        p: float64; values outside (0, 1] are taken for the nearest bound.
        total: int64 >= 1, the mass of the row.
    """
    if p >= 1:
        return total
    wanted = np.int64(math.ceil(np.float64(max(p, 0.0)) * np.float64(total)))
    return min(max(wanted, np.int64(1)), total)


# Logarithms and powers, for what depends on a row's entropy: in integers, so that they are the same on every target.

LOG_BITS = 30
LOG_ONE = np.uint64(1 << 31)
LOG_TWO = np.uint64(1 << 32)
EXPONENT_SHIFT_64 = np.int64(52)
EXPONENT_BIAS_64 = np.int64(1023)
MANTISSA_TO_31 = np.int64(21)
MANTISSA_MASK_64 = np.int64((1 << 52) - 1)
LEAST_EXPONENT = np.float32(-126.0)


@register_jitable
def log2_of(x: Any) -> Any:
    """log2 of a float64 above 0, normal, within 2**-29: bit by bit, by squaring a number of [1, 2)."""
    bits = np.float64(x).view(np.int64)
    y = LOG_ONE + np.uint64((bits & MANTISSA_MASK_64) >> MANTISSA_TO_31)
    fraction = np.int64(0)
    for _ in range(LOG_BITS):
        y = (y * y) >> np.uint64(31)
        fraction *= 2
        if y >= LOG_TWO:
            y >>= np.uint64(1)
            fraction += 1
    return np.float64((bits >> EXPONENT_SHIFT_64) - EXPONENT_BIAS_64) + np.float64(fraction) * 2.0**-LOG_BITS


@register_jitable
def two_to(x: Any) -> Any:
    """2**x as float64 for x <= 0, at least 2**-126, with the precision of a mass."""
    return np.float64(exponential(np.float32(x), ZERO, ONE, LEAST_EXPONENT))
