"""The scalar functions of the kernels: published vectors, exhaustive checks, compiled against plain form."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from neurogen.kernels import numerics

PHILOX_VECTORS = [  # Random123, kat_vectors: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
STORED = {torch.float16: np.int16, torch.bfloat16: np.uint16}
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
LARGEST = float(numerics.LARGEST_FLOAT32)
SMALLEST = 2.0**-149
NUMBERS_32 = np.array(
    [-LARGEST, -1e30, -2.5, -1.0, -(2.0**-126), -SMALLEST, 0.0, SMALLEST, 2.0**-126, 1.0, 1.0 + 2**-23, 3e38, LARGEST],
    dtype=np.float32,
)


def words(text: str) -> list[np.uint64]:
    return [np.uint64(int(word, 16)) for word in text.split()]


@njit(error_model="numpy")
def decode_all(bits):  # type: ignore[no-untyped-def]
    out = np.empty(len(bits), np.float32)
    for i in range(len(bits)):
        out[i] = numerics.to_float32(bits[i])
    return out


@njit(error_model="numpy")
def keys_and_values(numbers):  # type: ignore[no-untyped-def]
    keys, values = np.empty(len(numbers), np.uint32), np.empty(len(numbers), np.float32)
    for i in range(len(numbers)):
        keys[i] = numerics.key_of(numbers[i])
        values[i] = numerics.value_of(keys[i])
    return keys, values


@njit(error_model="numpy")
def masses_of(numbers, top, temperature, vocab):  # type: ignore[no-untyped-def]
    bits, scale = numerics.mass_bits(vocab), numerics.scale_of(temperature)
    out = np.empty(len(numbers), np.int64)
    for i in range(len(numbers)):
        out[i] = numerics.mass_of(numbers[i], top, scale, bits)
    return out


@njit(error_model="numpy")
def scales_of(temperatures):  # type: ignore[no-untyped-def]
    return np.array([numerics.scale_of(temperature) for temperature in temperatures])


@njit(error_model="numpy")
def bits_of(seeds, positions, index):  # type: ignore[no-untyped-def]
    out = np.empty(len(seeds), np.uint64)
    for i in range(len(seeds)):
        out[i] = numerics.random_bits(seeds[i], positions[i], index)
    return out


@njit(error_model="numpy")
def high_products(a, b):  # type: ignore[no-untyped-def]
    out = np.empty(len(a), np.uint64)
    for i in range(len(a)):
        out[i] = numerics.mul_high(a[i], b[i])
    return out


@njit(error_model="numpy")
def uniforms(bits):  # type: ignore[no-untyped-def]
    out = np.empty(len(bits), np.float64)
    for i in range(len(bits)):
        out[i] = numerics.uniform(bits[i])
    return out


@njit(error_model="numpy")
def wanted_masses(shares, totals):  # type: ignore[no-untyped-def]
    out = np.empty(len(shares), np.int64)
    for i in range(len(shares)):
        out[i] = numerics.nucleus_mass(shares[i], totals[i])
    return out


def fused_mul_adds(a: Any, b: Any, c: Any) -> Any:
    out = np.empty(len(a), np.float32)
    for i in range(len(a)):
        out[i] = numerics.fused_mul_add(a[i], b[i], c[i])
    return out


def nearest_float32(value: Fraction) -> np.float32:
    """The float32 next to an exact value, the even one of two."""
    near = np.float32(float(value))
    candidates = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(candidates, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(np.uint32)) & 1))


def plain_masses(numbers: np.ndarray, top: float, temperature: float, vocab: int) -> np.ndarray:
    scale, bits = numerics.scale_of(temperature), numerics.mass_bits(vocab)
    with np.errstate(all="ignore"):
        return np.array([numerics.mass_of(x, np.float32(top), scale, bits) for x in numbers], dtype=np.int64)


# Random numbers.


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX_VECTORS, ids=["zeros", "ones", "pi"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "njit"])
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str, compiled: bool) -> None:
    function = njit(numerics._philox) if compiled else numerics._philox
    assert [int(word) for word in function(*words(counter), *words(key))] == [int(word) for word in words(expected)]


def test_random_bits_are_the_low_words_of_philox_keyed_by_seed_and_counted_by_position() -> None:
    # 6627e8d5 e169c58d of the vector of zeros: the first word is the lower half.
    assert int(numerics.random_bits(0, 0, 0)) == 0xE169C58D6627E8D5
    seed, position, index = 0x299F31D0A4093822, -0x7A5CF72C_DBC0_9578, 5
    counter = position % 2**64
    expected = numerics._philox(
        *(np.uint64(word) for word in (counter % 2**32, counter >> 32, index, 0, seed % 2**32, seed >> 32))
    )
    assert int(numerics.random_bits(seed, position, index)) == int(expected[0]) | int(expected[1]) << 32


def test_random_bits_use_every_bit_of_seed_position_and_index() -> None:
    edges = [0, *(1 << bit for bit in range(63)), INT64_MIN, -1, INT64_MAX]
    numbers = [int(numerics.random_bits(seed, 0, 0)) for seed in edges]
    numbers += [int(numerics.random_bits(0, position, 0)) for position in edges[1:]]
    numbers += [int(numerics.random_bits(0, 0, index)) for index in range(1, 20)]
    assert len(set(numbers)) == len(numbers)


def test_random_bits_are_the_same_compiled() -> None:
    rng = np.random.default_rng(0)
    seeds = np.append(rng.integers(INT64_MIN, INT64_MAX, 200), [INT64_MIN, -1, 0, 1, INT64_MAX])
    positions = rng.permutation(seeds)
    for index in (0, 3):
        plain = [numerics.random_bits(s, p, index) for s, p in zip(seeds, positions, strict=True)]
        np.testing.assert_array_equal(bits_of(seeds, positions, index), np.array(plain, dtype=np.uint64))


def test_uniform_lies_in_zero_to_one_and_is_exact() -> None:
    bits = np.array([0, 2**11 - 1, 2**11, 2**63, 2**64 - 1], dtype=np.uint64)
    expected = [0.0, 0.0, 2.0**-53, 0.5, 1 - 2.0**-53]
    assert uniforms(bits).tolist() == expected
    assert [float(numerics.uniform(number)) for number in bits] == expected


# Decoding and ordering.


@pytest.mark.parametrize("dtype", STORED, ids=["float16", "bfloat16"])
def test_every_half_decodes_exactly(dtype: torch.dtype) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(dtype).to(torch.float32).numpy()
    decoded = decode_all(bits.view(STORED[dtype]))
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(decoded), nan)
    np.testing.assert_array_equal(decoded[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("dtype", STORED, ids=["float16", "bfloat16"])
def test_decoding_is_the_same_uncompiled(dtype: torch.dtype) -> None:
    specials = [0, 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7C01, 0x7F80, 0x7FFF, 0x8000, 0x8001, 0xFC00, 0xFFFF]
    bits = np.append(np.random.default_rng(1).integers(0, 65536, 2000), specials).astype(np.uint16).view(STORED[dtype])
    plain = np.array([numerics.to_float32(pattern) for pattern in bits])
    np.testing.assert_array_equal(plain.view(np.uint32), decode_all(bits).view(np.uint32))


def test_a_float32_is_not_decoded() -> None:
    assert numerics.to_float32(np.float32(0.1)) == np.float32(0.1)
    np.testing.assert_array_equal(decode_all(NUMBERS_32), NUMBERS_32)


def test_keys_order_like_the_numbers_and_come_back() -> None:
    patterns = np.random.default_rng(2).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    numbers = np.concatenate([patterns[~np.isnan(patterns)], NUMBERS_32, [np.float32(np.inf), np.float32(-np.inf)]])
    numbers = np.unique(numbers)
    keys, values = keys_and_values(numbers)
    assert (keys[1:] > keys[:-1]).all()
    np.testing.assert_array_equal(values, numbers)
    some = slice(None, None, 97)
    plain = np.array([numerics.key_of(number) for number in numbers[some]])
    np.testing.assert_array_equal(plain, keys[some])
    np.testing.assert_array_equal([numerics.value_of(key) for key in plain], numbers[some])


def test_nothing_changes_where_subnormals_are_taken_for_zero() -> None:
    numbers = np.arange(-40, 41).astype(np.float32) * np.float32(2.0**-130)  # normal from 16 on
    halves = np.array([0x8001, 0x8000, 0, 1, 0x3FF], dtype=np.uint16).view(STORED[torch.float16])

    def everything() -> list[Any]:
        decoded = decode_all(halves).view(np.uint32).tolist()
        masses = [masses_of(numbers[:i], numbers[i - 1], 5e-324, 81).tolist() for i in (41, 50, 60, 81)]
        return [keys_and_values(numbers)[0].tolist(), decoded, masses]

    expected = everything()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        found = everything()
    finally:
        torch.set_flush_denormal(False)
    assert found == expected
    assert len(set(expected[0])) == len(numbers)


@pytest.mark.parametrize(
    ("temperature", "warm"),
    [(5e-324, True), (0.8, True), (1e300, True), (math.inf, True)]
    + [(x, False) for x in (0.0, -0.0, -1.0, -5e-324, -math.inf, math.nan, -math.nan)],
)
def test_a_temperature_above_zero_is_warm_however_small(temperature: float, warm: bool) -> None:
    assert bool(numerics.is_warm(np.float64(temperature))) is warm
    assert bool(njit(numerics.is_warm)(temperature)) is warm


def test_zeros_of_either_sign_share_one_key() -> None:
    keys, values = keys_and_values(np.array([-0.0, 0.0], dtype=np.float32))
    assert keys[0] == keys[1] == 0x80000000
    assert numerics.key_of(np.float32(-0.0)) == numerics.key_of(np.float32(0.0))
    assert values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("x", "valid"), [(np.nan, False), (np.inf, False), (-np.inf, True), (LARGEST, True), (-LARGEST, True), (0.0, True)]
)
def test_only_nan_and_positive_infinity_are_invalid(x: float, valid: bool) -> None:
    assert bool(numerics.is_valid(np.float32(x))) is valid


# Masses.


@pytest.mark.parametrize(
    ("vocab", "bits"),
    [(1, 45), (2, 45), (2**16, 45), (2**17, 45), (128_256, 45), (2**17 + 1, 44), (2**31, 31), (2**31 + 1, 30)],
)
def test_masses_of_a_whole_row_sum_to_at_most_2_to_the_62(vocab: int, bits: int) -> None:
    assert numerics.mass_bits(vocab) == njit(numerics.mass_bits)(vocab) == bits
    assert vocab << bits <= 2**62


@pytest.mark.parametrize("vocab", [1, 1000, 128_256])
@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 0.8, 1.0, 7.0, 1e300])
@pytest.mark.parametrize("top", [-LARGEST, -1.0, 0.0, SMALLEST, 37.5, LARGEST])
def test_the_top_logit_has_exactly_the_unit_mass(vocab: int, temperature: float, top: float) -> None:
    top = np.float32(top)
    row = np.array([top, -np.inf], dtype=np.float32)
    assert masses_of(row, top, temperature, vocab).tolist() == [1 << numerics.mass_bits(vocab), 0]


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-3, 1.0, 1e3, 1e300])
def test_masses_lie_between_one_and_the_unit_and_never_fall_with_the_logit(temperature: float) -> None:
    numbers = np.sort(np.append(NUMBERS_32, np.linspace(-200, 0, 5001, dtype=np.float32)))
    masses = masses_of(numbers, numbers[-1], temperature, 50_000)
    assert masses.min() >= 1
    assert masses.max() == masses[-1] == 1 << 45
    assert (np.diff(masses) >= 0).all()


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top", [0.0, 12.25, -3.0])
def test_masses_are_exponentials_to_seven_digits(temperature: float, top: float) -> None:
    # A product rounded to 24 bits near 2**4 is off by up to 2**-20 in log2: what weighs less than 2**-4 counts less.
    # Distances are multiples of 2**-12, so that x - top is exact and the error is that of the exponential alone.
    below = np.arange(0, 12 * 4096, 7, dtype=np.float64) / 4096
    numbers = (top - below).astype(np.float32)
    exact = np.exp((numbers.astype(np.float64) - top) / temperature)
    masses = masses_of(numbers, np.float32(top), temperature, 1000) / 2.0**45
    exponent = -np.log2(exact)
    seen = exponent < 16  # below that, the 45 bits run out of digits slowly
    relative = np.abs(masses[seen] / exact[seen] - 1)
    assert relative[exponent[seen] < 1].max() < 2.0**-21
    assert (relative <= 2.0**-22 + (exponent[seen] + 1) * 2.0**-23).all()
    assert np.abs(masses - exact).max() < 2.0**-21


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 0.33, 1.0, 45.0, 1e300])
@pytest.mark.parametrize("vocab", [7, 200_000])
def test_masses_are_the_same_uncompiled(temperature: float, vocab: int) -> None:
    rng = np.random.default_rng(3)
    parts: list[Any] = [-np.abs(rng.normal(size=400)) * scale for scale in (1e-4, 1.0, 10.0)]
    numbers = np.concatenate([*parts, NUMBERS_32[:7], [-np.inf]]).astype(np.float32)
    compiled = masses_of(numbers, np.float32(0), temperature, vocab)
    np.testing.assert_array_equal(compiled, plain_masses(numbers, 0.0, temperature, vocab))


def test_the_scale_stays_finite_and_normal() -> None:
    temperatures = np.array([5e-324, 1e-300, 1e-10, 0.8, 1.0, 1e10, 1e300])
    scales = scales_of(temperatures)
    assert scales.dtype == np.float32
    np.testing.assert_array_equal(scales, np.array([numerics.scale_of(float(t)) for t in temperatures]))
    assert scales[0] == 2.0**76
    assert scales[-1] == 2.0**-126
    assert scales[4] == np.float32(math.log2(math.e))


def test_mul_high_is_the_upper_half_of_the_product() -> None:
    rng = np.random.default_rng(4)
    edges = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**62, 2**63, 2**64 - 1]
    a = np.append(rng.integers(0, 2**64, 1000, dtype=np.uint64), np.repeat(np.array(edges, np.uint64), len(edges)))
    b = np.append(rng.integers(0, 2**64, 1000, dtype=np.uint64), np.tile(np.array(edges, np.uint64), len(edges)))
    expected = np.array([int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)], dtype=np.uint64)
    np.testing.assert_array_equal(high_products(a, b), expected)
    plain = [int(numerics.mul_high(x, y)) for x, y in zip(a, b, strict=True)]
    assert plain == expected.tolist()


@pytest.mark.parametrize(
    ("p", "total", "wanted"),
    [
        (1.0, 2**62, 2**62),  # all, exactly
        (1.5, 10, 10),  # clamped
        (0.5, 10, 5),
        (0.51, 10, 6),  # 5.1, rounded up
        (0.9, 1, 1),
        (1e-300, 2**62, 1),  # never nothing
        (-3.0, 10, 1),
        (0.0, 10, 1),
        (1 - 2.0**-53, 2**62, 2**62 - 2**9),
    ],
)
def test_the_mass_of_a_nucleus_is_p_of_the_total_rounded_up(p: float, total: int, wanted: int) -> None:
    assert numerics.nucleus_mass(p, np.int64(total)) == wanted
    assert wanted_masses(np.array([p]), np.array([total])).tolist() == [wanted]


def test_exact_mul_rounds_once() -> None:
    multiply = njit(lambda a, b, c: np.float32(numerics.exact_mul(a, b) + c))
    a = np.float32(1 + 2**-23)
    # a * a = 1 + 2**-22 + 2**-46 rounds to 1 + 2**-22; a fused operation would leave 2**-46.
    assert multiply(a, a, np.float32(-(1 + 2**-22))) == 0


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "njit"])
def test_a_fused_multiply_add_rounds_once(compiled: bool) -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.normal(size=3000).astype(np.float32) for _ in range(2))
    c = -(a.astype(np.float64) * b * (1 + rng.normal(size=3000) * 2.0 ** rng.integers(-60, 3, 3000))).astype(np.float32)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    multiply_add = njit(fused_mul_adds) if compiled else fused_mul_adds
    np.testing.assert_array_equal(multiply_add(a, b, c), [nearest_float32(value) for value in exact])


def test_a_fused_multiply_add_does_not_round_twice() -> None:
    # 1 + 2**-24 + 2**-60: float64 takes it for the middle between two float32, and ties go down to 1.
    a, b, c = np.float32(1 + 2**-12), np.float32(2**-24), np.float32(1)
    assert numerics.fused_mul_add(a, b, c) == 1 + 2**-23
    a = np.float32(2**-30)
    assert numerics.fused_mul_add(a, a, np.float32(1 + 2**-23)) == 1 + 2**-23
