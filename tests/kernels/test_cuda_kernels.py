"""CUDA kernels without a GPU: their sources run thread by thread, against the CPU kernels and the reference.

Ids, probabilities and supports must equal the CPU's bit for bit, since both come from the same integer masses.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_helpers import (
    NAMES,
    Launches,
    as_half,
    assert_equal_bit_for_bit,
    few_rows,
    logits_of,
    make_case,
    nearly_flat,
    run_simulator,
)
from numba import njit, types
from numba.extending import intrinsic

import neurogen
from neurogen import reference
from neurogen.errors import DeviceError
from neurogen.kernels import cuda_compile, cuda_launch
from neurogen.kernels.numerics import mass_bits, mass_of, scale_of


def beyond_the_list(case: dict[str, Any]) -> dict[str, Any]:
    """Rows whose nuclei and largest logits are some more than are listed at first, in a near histogram and below it."""
    rows = len(case["logits"])
    logits = (np.random.default_rng(0).normal(size=case["logits"].shape) * 3).astype(np.float32)
    logits[::2] = np.round(logits[::2] * 16) / 16  # ties
    p = np.array([0.85, 0.9, 0.93, 0.95, 0.97, 0.99])
    return case | {"logits": logits, "k": np.array([17, 24, 33, 48, 60, 64]), "p": p, "temperature": np.full(rows, 0.8)}


CASES = {
    "float32": make_case(1),
    "float16": as_half(make_case(5, block=16, offset=3, gap=1), torch.float16),
    "bfloat16": as_half(make_case(6, block=16, offset=2, gap=5), torch.bfloat16),
    "one warp": few_rows(make_case(2, block=4, grid=1, offset=1, gap=2)),
    "wide warps": few_rows(make_case(3, block=32, warp=8, parts=8, grid=5)),
    "all listed": make_case(7, vocab=301, listed=512, ranked=512),
    "few listed": few_rows(make_case(8, listed=16, ranked=4)),
    "nearly flat": nearly_flat(few_rows(make_case(9))),
    "beyond the list": beyond_the_list(few_rows(make_case(11, vocab=900, offset=1, gap=1))),
    "vocab 1": few_rows(make_case(4) | {"logits": np.zeros((14, 1), np.float32)}),
    "vocab 6": few_rows(make_case(10, vocab=6, offset=3, gap=1) | {"k": np.full(14, 3)}),
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    return run_simulator(CASES, tmp_path_factory.mktemp("simulator"))


HALVES = {"float16", "bfloat16"}


@pytest.mark.parametrize(
    ("name", "case_name"),  # min-p is compiled for the CPU here, which takes long: in float32 alone
    [(name, case) for case in CASES for name in NAMES if name != "minp" or case not in HALVES],
)
def test_simulated_kernels_equal_the_cpu_bit_for_bit(
    name: str, case_name: str, simulated: dict[str, dict[str, np.ndarray]], samplers: dict[str, neurogen.Sampler]
) -> None:
    assert_equal_bit_for_bit(name, samplers[name], CASES[case_name], simulated[case_name])


@pytest.mark.parametrize("case_name", CASES)
def test_simulated_supports_equal_the_reference(case_name: str, simulated: dict[str, dict[str, np.ndarray]]) -> None:
    case, result = CASES[case_name], simulated[case_name]
    compared = 0
    for r, row in enumerate(logits_of(case).float().numpy()):
        k, p, temperature = int(case["k"][r]), float(case["p"][r]), float(case["temperature"][r])
        if not reference.is_valid(row):
            assert result["greedy.ids"][r] == result["topk.ids"][r] == result["topp.ids"][r] == -1
            assert not result["topk.support"][r].any()
            assert not result["topp.probs"][r].any()
            continue
        assert result["greedy.ids"][r] == reference.argmax(row)
        assert np.array_equal(result["topk.support"][r], reference.topk_support(row, k, temperature))
        if temperature == 0 or p == 1 or reference.nucleus_margin(row, p, temperature) > 1e-6:
            assert np.array_equal(result["topp.support"][r], reference.topp_support(row, p, temperature))
            compared += 1
    assert compared >= len(case["logits"]) // 2


@pytest.mark.slow
def test_simulated_kernels_agree_with_sizes_as_on_a_card(tmp_path: Path, samplers: dict[str, neurogen.Sampler]) -> None:
    sizes = {"block": 64, "warp": 32, "parts": 32, "listed": 2048, "ranked": 256, "grid": 2}
    cases = {str(seed): few_rows(make_case(seed, vocab=3000, **sizes)) for seed in (8, 9)}
    results = run_simulator(cases, tmp_path)
    for seed, case in cases.items():
        for name, sampler in samplers.items():
            assert_equal_bit_for_bit(name, sampler, case, results[seed])


@intrinsic
def _add_in_words(typing_context: Any, values: Any, index: Any, amount: Any) -> Any:
    """What the kernels add to shared memory with, on the CPU."""
    from llvmlite import ir

    from neurogen.kernels.cuda_block import add_in_words

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset, own = arguments
        data = context.make_array(values)(context, builder, array).data
        address = builder.gep(data, [offset])
        add_in_words(builder, builder.bitcast(address, ir.PointerType(ir.IntType(32))), own)
        return context.get_dummy_value()

    return types.void(values, types.int64, types.int64), generate


@njit(nogil=True)
def _add_all(values: Any, places: Any, amounts: Any) -> None:
    for i in range(len(places)):
        _add_in_words(values, places[i], amounts[i])


def test_what_is_added_in_words_by_several_threads_is_the_sum() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.integers(0, 1 << rng.integers(1, 45, 400_000))
    amounts[:1000] = (1 << 32) - 1  # carries nearly always
    places = rng.integers(0, 5, len(amounts))
    _add_all(np.zeros(5, np.int64), places[:1], amounts[:1])  # compiles
    values = np.zeros(5, np.int64)
    with ThreadPoolExecutor(4) as pool:
        shares = [slice(start, None, 4) for start in range(4)]
        list(pool.map(lambda share: _add_all(values, places[share].copy(), amounts[share].copy()), shares))
    assert values.tolist() == [int(amounts[places == place].sum()) for place in range(5)]


def test_masses_made_of_bits_are_the_masses() -> None:
    """`cuda_block.mass` takes another way to the integer that `numerics.mass_of` gives."""
    from neurogen.kernels.cuda_block import mass

    same = mass.py_func
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=400) * 10, -np.geomspace(1e-30, 1e30, 100)]).astype(np.float32)
    x[:5] = -np.inf
    top = x.max()
    for vocab in (1, 300, 131_072, 200_000, 2**24):
        bits = mass_bits(vocab)
        for temperature in (0.01, 0.7, 1.0, 30.0):
            scale = scale_of(temperature)
            with np.errstate(over="ignore"):
                masses = [same(value, top, scale, np.int64(bits)) for value in x]
                assert masses == [mass_of(value, top, scale, np.int64(bits)) for value in x]


# Launching, without a card.


def test_a_launch_hands_over_pointers_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    kernel = cuda_launch.Kernel(lambda *arguments: None)
    storage = torch.zeros(1000)
    logits = storage[3:].as_strided((4, 200), (210, 1))
    k, ids = torch.tensor([1, 0, 2, 0, 3, 0, 4, 0])[::2], torch.empty(4, dtype=torch.int64)
    for _ in range(2):
        cuda_launch.launch(kernel, logits, k, ids)
    grid, block, stream, pointer, offset, stride, vocab, batch, arrays = launches.made[0]
    assert (grid, block, stream) == (4, cuda_launch.BLOCK, "stream 7")
    assert (pointer, stride, vocab, batch) == (logits.data_ptr(), 210, 200, 4)
    assert offset == (storage.data_ptr() // 4 + 3) % 4
    assert arrays[0] != k.data_ptr(), "what is not contiguous is copied"
    assert arrays[1] == ids.data_ptr()
    assert len(launches.compiled) == 1
    cuda_launch.launch(kernel, logits.bfloat16(), k, ids)
    assert len(launches.compiled) == 2


def test_a_kernel_is_not_compiled_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    kernel, logits, ids = (
        cuda_launch.Kernel(lambda *arguments: None),
        torch.zeros(2, 8),
        torch.zeros(2, dtype=torch.int64),
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        DeviceError, match=r"torch.float32, torch.int64 cannot be compiled while a CUDA graph is captured"
    ):
        cuda_launch.launch(kernel, logits, ids)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    cuda_launch.launch(kernel, logits, ids)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cuda_launch.launch(kernel, logits, ids)
    assert len(launches.made) == 2


def test_a_large_batch_shares_multiprocessors_and_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    kernel = cuda_launch.Kernel(lambda *arguments: None)
    cuda_launch.launch(kernel, torch.zeros(70_000, 2), torch.zeros(70_000))
    assert launches.made[0][:2] == (cuda_launch.MAX_GRID, cuda_launch.BLOCK // 2)
    columns = torch.zeros(8, 3).t()
    cuda_launch.launch(kernel, columns, torch.zeros(3))
    assert launches.made[1][3] != columns.data_ptr()
    assert launches.made[1][5:8] == (8, 8, 3)
    cuda_launch.launch(kernel, torch.zeros(0, 8), torch.zeros(0))
    assert len(launches.made) == 2


# Compilation, without a card.

QUICK = [
    ("neurogen_greedy.cuda", "sample", torch.float32),
    ("neurogen_greedy.cuda", "sample", torch.float16),
]
EVERY = [(module, name) for module in cuda_compile.MODULES for name in ("sample", "probs", "support")]
MEASURES_DEPTHS = {"neurogen_typical.cuda"}  # has the product without the mass too, where it halves an interval of keys
FUSED = re.compile(r"\bfma\.rn\.f32\b")


def check_kernel(module: str, name: str, dtype: torch.dtype, cc: tuple[int, int]) -> None:
    """It compiles, multiplies as the CPU does, fits a card without spilling; prints a line of the table."""
    kernel, arrays = next(rest for own, *rest in cuda_compile.kernels_of(module) if own == name)
    ptx = cuda_compile.ptx_of(kernel, dtype, arrays, cc)
    assert f".target sm_{cc[0]}{cc[1]}" in ptx
    assert ".visible .entry" in ptx
    assert ".local" not in ptx, "an array that is not in registers"
    halves = r"\bld\.global\.(v2\.u32|v4\.[bu]16)\b"  # what the compiler makes of it depends on the architecture
    four = r"\bld\.global\.v4\." if dtype == torch.float32 else halves
    assert re.search(four, ptx), "logits are read four at a time"
    masses = len(re.findall(r"\bmul\.rn\.f32\b", ptx))
    fused = len(FUSED.findall(ptx))
    assert fused % 6 == 0
    assert fused <= 6 * masses, "each mass has one product that is never fused, and six fused multiply-adds"
    assert fused == 6 * masses or module in MEASURES_DEPTHS
    usage = cuda_compile.usage_of(ptx, cc)
    print(f"{module} {name} {dtype} sm_{cc[0]}{cc[1]}: {usage}")  # noqa: T201
    assert usage is None or usage.fits


@pytest.mark.parametrize(("module", "name", "dtype"), QUICK)
def test_a_kernel_compiles_and_fits_a_card(module: str, name: str, dtype: torch.dtype, compiler: None) -> None:
    check_kernel(module, name, dtype, (9, 0))


FIRST = ("neurogen_greedy.cuda", "neurogen_topk.cuda")
"""Of these CI compiles more forms, of the others `sample` of float32 for one card: each takes seconds."""


def forms() -> Iterator[Any]:
    for module, name in EVERY:
        for dtype in cuda_compile.STORED:
            for cc in cuda_compile.ARCHITECTURES:
                differences = (name != "sample") + (dtype != torch.float32) + (cc != (9, 0))
                usual = differences == 0 or (differences == 1 and module in FIRST)
                marks = pytest.mark.slow if usual else pytest.mark.exhaustive
                told = f"{module}-{name}-{dtype}-sm_{cc[0]}{cc[1]}"
                yield pytest.param(module, name, dtype, cc, marks=marks, id=told)


@pytest.mark.parametrize(("module", "name", "dtype", "cc"), list(forms()))
def test_every_kernel_compiles_and_fits_every_card(
    module: str, name: str, dtype: torch.dtype, cc: tuple[int, int], compiler: None
) -> None:
    check_kernel(module, name, dtype, cc)
