"""What the CPU kernels are made of: selection among keys, rough masses within their bound, vectors, arrays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from torch.utils._pytree import tree_map

import neurogen
from neurogen.errors import ContractError, ParameterError
from neurogen.kernels.cpu import kernel, next_row, run
from neurogen.kernels.cpu_arrays import arrays_at, layout_of
from neurogen.kernels.cpu_lists import collect, list_reached
from neurogen.kernels.cpu_rough import ROUGH, estimate_exponent, logit_at, skim
from neurogen.kernels.cpu_rows import INVALID_RANK, at_row, first_of, open_row, rank_of, rank_value, scan
from neurogen.kernels.cpu_select import FEW, select
from neurogen.kernels.numerics import key_of, to_float32

compiled_select = njit(select)
compiled_rank_value = njit(rank_value)


@njit
def skimmed(flat, temperature, depth):  # type: ignore[no-untyped-def]
    """Rough mass below a threshold, the threshold, and the ids from there on."""
    row = at_row(open_row(flat, len(flat)), flat, 0, temperature)
    threshold = np.float32(row.top - np.float32(depth))
    rest = skim(row, threshold)
    return rest, threshold, row.ids[: list_reached(row, threshold)].copy()


@njit
def collected(flat, threshold, ties):  # type: ignore[no-untyped-def]
    row = at_row(open_row(flat, len(flat)), flat, 0, 1.0)
    count = collect(row, threshold, ties)
    return row.ids[:count].copy(), row.keys[:count].copy()


@njit
def estimated(flat, temperature, share):  # type: ignore[no-untyped-def]
    row = at_row(open_row(flat, len(flat)), flat, 0, temperature)
    return logit_at(row, estimate_exponent(row, share))


@njit
def first_largest(flat):  # type: ignore[no-untyped-def]
    maxima, scratch = np.empty((len(flat) + 127) // 128, np.uint32), np.empty(128, np.float32)
    return first_of(flat, scan(flat, maxima, scratch), maxima, scratch)


def by_sorting(keys: np.ndarray, weights: np.ndarray, wanted: int) -> tuple[int, int]:
    """The definition: go through the keys in descending order until the weights reach what is wanted."""
    for key in np.unique(keys)[::-1]:
        if weights[keys >= key].sum() >= wanted:
            return int(key), int(weights[keys > key].sum())
    raise AssertionError("there is less than wanted")


@settings(deadline=None)  # the first call compiles
@given(st.data())
def test_selection_is_where_a_prefix_of_sorted_keys_reaches_what_is_wanted(data: st.DataObject) -> None:
    span = data.draw(st.sampled_from([1, 2, 50, 1 << 16, 1 << 32]))
    count = data.draw(st.integers(1, 3 * FEW))
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    first = data.draw(st.integers(0, (1 << 32) - span))
    keys = (generator.integers(0, span, count) + first).astype(np.uint32)
    counted = data.draw(st.booleans())
    weights = np.ones(count, np.int64) if counted else generator.integers(0, 1 << 45, count)
    weights[0] = max(weights[0], 1)
    wanted = data.draw(st.integers(1, int(weights.sum())))
    assert compiled_select(keys, weights, count, wanted, counted) == by_sorting(keys, weights, wanted)


@pytest.mark.parametrize("temperature", [0.05, 0.8, 1.0, 30.0])
@pytest.mark.parametrize("vocab", [1, 130, 1024, 32_003, 128_256])
@pytest.mark.parametrize("depth", [-1.0, 0.0, 3.0, 200.0])
def test_the_rough_mass_below_a_threshold_is_within_its_bound(vocab: int, depth: float, temperature: float) -> None:
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)).mul(4).numpy()
    row[vocab // 3] = -np.inf if vocab > 3 else row[vocab // 3]
    rest, threshold, ids = skimmed(row, temperature, depth)
    below = row < threshold
    assert np.array_equal(ids, np.flatnonzero(~below))
    # t as kernels compute it, rounded to float32 twice: what a rough mass may differ from by ROUGH.
    scale = np.float32(np.log2(np.e) / temperature)
    t = (row - row.max()) * scale
    exact = np.exp2(np.maximum(t, -126.0)[below].astype(np.float64)).sum()
    assert abs(rest - exact) <= ROUGH * exact + 2.0**-100


@pytest.mark.parametrize("vocab", [1_100, 128 * 64, 128 * 70 + 5])  # chunks are looked through 64 at a time
@pytest.mark.parametrize("ties", [1, 3, 1_000_000])
def test_a_list_holds_what_reaches_a_threshold_and_of_ties_at_least_the_first(ties: int, vocab: int) -> None:
    row = torch.randint(0, 9, (vocab,), generator=torch.Generator().manual_seed(1)).float().numpy()
    row[vocab // 2 :] -= 5 * (np.random.default_rng(2).random(vocab - vocab // 2) < 0.99)
    ids, keys = collected(row, np.float32(5), ties)
    assert set(ids) <= set(np.flatnonzero(row >= 5))
    assert list(ids) == sorted(ids)
    assert set(ids) >= set(np.flatnonzero(row > 5)) | set(np.flatnonzero(row == 5)[:ties])
    assert [int(key) for key in keys] == [int(key_of(row[i])) for i in ids]


@njit
def scanned(flat):  # type: ignore[no-untyped-def]
    maxima, scratch = np.empty(len(flat) // 128, np.uint32), np.empty(128, np.float32)
    return scan(flat, maxima, scratch), maxima


@njit
def ranks_of_maxima(flat):  # type: ignore[no-untyped-def]
    """By integers alone."""
    maxima = np.zeros(len(flat) // 128, np.uint32)
    for i in range(len(flat)):
        maxima[i // 128] = max(maxima[i // 128], rank_of(to_float32(flat[i])))
    return maxima


def scanned_rows() -> Iterator[np.ndarray]:
    """Rows whose largest logits are of every kind of float32."""
    rng = np.random.default_rng(0)
    for chunks in (1, 10):
        x = (rng.normal(size=128 * chunks) * 3).astype(np.float32)
        yield from (x, -np.abs(x), x * np.float32(1e-41), -np.abs(x) * np.float32(1e-41))
        for special in (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1.2e-38, 3e38):
            for count in (1, 5, len(x)):
                row = x - np.float32(20) if special in (0.0, 1e-40, -1e-40) else x.copy()
                row[rng.integers(0, len(x), count)] = special
                yield row
        huge = np.full(len(x), 3e38, np.float32)
        huge[::2] = -np.inf  # their sum is not a number, and they are valid
        yield huge
        yield np.where(rng.random(len(x)) < 0.5, np.float32(0.0), np.float32(-0.0))
        yield rng.integers(0, 2**32, len(x), dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("flush", [False, True])
def test_a_scan_finds_what_integers_find(dtype: torch.dtype, flush: bool) -> None:
    seen = 0
    torch.set_flush_denormal(False)
    rows = [torch.from_numpy(row).to(dtype) for row in scanned_rows()]
    stored = [row.numpy() if dtype == torch.float32 else row.view(torch.int16).numpy() for row in rows]
    if dtype == torch.bfloat16:
        stored = [row.view(np.uint16) for row in stored]
    try:
        torch.set_flush_denormal(flush)
        for row in stored:
            top, maxima = scanned(row)
            wanted = ranks_of_maxima(row)
            if wanted.max() >= INVALID_RANK:
                assert top == -np.inf
                continue
            assert maxima.tolist() == wanted.tolist()
            assert np.float32(top).tobytes() == np.float32(compiled_rank_value(wanted.max())).tobytes()
            seen += 1
    finally:
        torch.set_flush_denormal(False)
    assert 2 * seen > len(stored)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_an_estimated_threshold_leaves_about_the_share_below_it(share: float) -> None:
    """Normal logits: a sample of 4,000 of 128,256 tells what lies below to some tenths."""
    left = []
    for seed in range(20):
        row = torch.randn(128_256, generator=torch.Generator().manual_seed(seed)).mul(3).numpy()
        weights = np.exp((row - row.max()).astype(np.float64))
        left.append(weights[row < estimated(row, 1.0, share)].sum() / weights.sum())
    assert 0.7 * share < np.mean(left) < 1.1 * share
    assert max(left) < 1.5 * share


@pytest.mark.parametrize("top", [5.0, 0.0, -0.0, 1e-42])
def test_the_first_of_the_largest_is_found_wherever_it_stands(top: float) -> None:
    for vocab, place in ((1, 0), (64, 63), (129, 128), (1_000, 700), (1_000, 999)):
        row = np.full(vocab, -3.0, np.float32)
        row[place:] = top
        assert first_largest(row) == place


def test_arrays_are_made_of_addresses_and_a_layout() -> None:
    layout = layout_of(torch.bfloat16, (torch.float64, torch.float32), (1,))
    assert layout == "uint16[];float64[];float32[,]"

    @njit
    def changed(numbers, length):  # type: ignore[no-untyped-def]
        logits, values, table = arrays_at(numbers, length, layout)
        values[1] = logits[3]
        table[1, 2] = len(logits) + 10 * table.shape[0] + 100 * table.shape[1]

    logits = torch.tensor([0, 1, 2, 3], dtype=torch.int16)
    values, table = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 3)
    changed((logits.data_ptr(), values.data_ptr(), table.data_ptr(), 3), (4, 2))
    assert values.tolist() == [0, 3]
    assert table.tolist() == [[0, 0, 0], [0, 0, 324]]


# Tensors whose memory is not what they say.


class Elsewhere(torch.Tensor):
    """A tensor whose elements another one has, as those of a distributed tensor."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=held.device)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        def held(value):  # type: ignore[no-untyped-def]
            return value.held if isinstance(value, Elsewhere) else value

        return function(*tree_map(held, args), **tree_map(held, kwargs or {}))


@pytest.mark.parametrize("call", ["sample", "probs", "support"])
def test_a_tensor_that_is_yet_to_be_negated_is_read_as_it_says(call: str) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    lazy = (torch.complex(torch.zeros_like(logits), logits).conj()).imag
    assert lazy.is_neg()
    sampler = neurogen.load_sampler("topk", k=5)
    assert getattr(sampler, call)(lazy).equal(getattr(sampler, call)(-logits))


def test_so_are_a_seed_and_a_parameter() -> None:
    def lazy(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch._neg_view(torch.tensor(values, dtype=dtype))

    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(2))
    sampler = neurogen.load_sampler("topk", k=50)
    found = sampler.sample(logits, seed=lazy([-5, -6], torch.int64), temperature=lazy([-2, -3], torch.float64))
    assert found.equal(sampler.sample(logits, seed=torch.tensor([5, 6]), temperature=torch.tensor([2.0, 3.0]).double()))


@pytest.mark.parametrize("call", ["sample", "probs", "support"])
def test_a_tensor_without_memory_is_refused(call: str) -> None:
    logits = torch.randn(2, 10)
    sampler = neurogen.load_sampler("greedy")
    with pytest.raises(ParameterError, match=r"type Elsewhere, which has no memory .* full_tensor\(\) or to_local\(\)"):
        getattr(sampler, call)(Elsewhere(logits))
    if call == "sample":
        with pytest.raises(ParameterError, match="type Elsewhere"):
            sampler.sample(logits, seed=Elsewhere(torch.zeros(2, dtype=torch.int64)))


def test_a_kernel_is_told_which_of_its_arrays_are_matrices() -> None:
    @kernel
    def doubled(flat, row_stride, vocab, rows, out):  # type: ignore[no-untyped-def]
        r = next_row(rows, -1)
        while r >= 0:
            out[r] = 2 * flat[r * row_stride]
            r = next_row(rows, r)

    logits, out = torch.arange(6.0).reshape(2, 3), torch.zeros(2)
    run(doubled, logits, out)
    assert out.tolist() == [0, 6]
    with pytest.raises(
        ContractError, match=r"Array 0 of the kernel .*doubled is int16 \[2\]\. It must have 1 dimension"
    ):
        run(doubled, logits, torch.zeros(2, dtype=torch.int16))
    with pytest.raises(ContractError, match=r"is float64 \[2, 3\]\. .* `kernel_with\(-1\)` for the last"):
        run(doubled, logits, torch.zeros(2, 3, dtype=torch.float64))


def test_threads_that_come_at_once_share_a_form() -> None:
    """Or each would compile its own, one after the other: seconds for every thread of a server that starts."""

    @kernel
    def idle(flat, row_stride, vocab, rows, out):  # type: ignore[no-untyped-def]
        pass

    start = threading.Barrier(8)

    def form(_: int) -> object:
        start.wait()
        return idle.form(torch.float32, [torch.zeros(2)])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(form, range(8)))) == 1
