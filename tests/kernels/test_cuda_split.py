"""Rows split over several blocks on CUDA, without a GPU: the tokens are those of one block a row, and of the CPU."""

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
    make_case,
    nearly_flat,
    run_simulator,
)

import neurogen
from neurogen.errors import ParameterError
from neurogen.kernels import cuda, cuda_compile, cuda_launch


def rows_of(case: dict[str, Any], *rows: int) -> dict[str, Any]:
    """A case with these of its rows (see `hard_rows`)."""
    return {name: value[list(rows)] if isinstance(value, np.ndarray) else value for name, value in case.items()}


SPLIT_CASES: dict[str, dict[str, Any]] = {
    "4 pieces": rows_of(make_case(21, vocab=431, pieces=4), 0, 1, 3, 4, 5, 6, 7, 9, 12),
    "2 pieces, bfloat16": rows_of(
        as_half(make_case(22, block=16, offset=2, gap=5, pieces=2), torch.bfloat16), 0, 2, 7, 12
    ),
    "8 pieces, float16": rows_of(as_half(make_case(23, parts=8, offset=1, gap=3, pieces=8), torch.float16), 0, 5, 8),
    "few listed": rows_of(make_case(24, listed=16, ranked=4, pieces=4), 0, 1, 5, 11),
    "all listed": rows_of(make_case(25, vocab=301, listed=512, ranked=512, offset=3, gap=2, pieces=4), 0, 7, 13),
    "nearly flat": nearly_flat(few_rows(make_case(26, pieces=4))),
    "fewer tokens than pieces": rows_of(make_case(27, vocab=3, pieces=4) | {"k": np.full(14, 2)}, 0, 1),
    "16 pieces": rows_of(make_case(28, block=32, warp=8, parts=16, listed=128, vocab=1_201, pieces=16), 0, 5),
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    return run_simulator(SPLIT_CASES, tmp_path_factory.mktemp("simulator"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case_name", SPLIT_CASES)
def test_split_rows_give_the_tokens_of_whole_rows(
    name: str, case_name: str, simulated: dict[str, dict[str, np.ndarray]]
) -> None:
    result = simulated[case_name]
    assert result[f"{name}.split"].tolist() == result[f"{name}.ids"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("case_name", ["4 pieces", "few listed", "nearly flat"])
@pytest.mark.parametrize("name", ["greedy", "topk", "topp"])
def test_and_those_of_the_cpu(
    name: str,
    case_name: str,
    simulated: dict[str, dict[str, np.ndarray]],
    samplers: dict[str, neurogen.Sampler],
) -> None:
    assert_equal_bit_for_bit(name, samplers[name], SPLIT_CASES[case_name], simulated[case_name])


def test_the_cases_hold_rows_that_are_invalid_in_one_piece_only() -> None:
    logits = SPLIT_CASES["4 pieces"]["logits"]
    assert np.isnan(logits).sum(axis=1).tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert np.isposinf(logits).sum(axis=1).tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert np.isneginf(logits[3]).all()


# What is launched.


def test_a_split_launch_is_two_with_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    survey, finish = (cuda_launch.Kernel(lambda *_: None, block=cuda_launch.SPLIT_BLOCK) for _ in range(2))
    kernel = cuda_launch.Kernel(lambda *_: None, cuda_launch.Split(survey, finish, 10))
    ids, logits = torch.empty(2, dtype=torch.int64), torch.zeros(2, 8)
    cuda_launch.launch(kernel, logits, ids)
    assert len(launches.made) == 1, "nobody asked for it"
    launches.made.clear()
    cuda_launch.launch(kernel, logits, ids, pieces=4)
    (grid, block, *_, first), (same_grid, same_block, *_, second) = launches.made
    assert (grid, block) == (same_grid, same_block) == (8, cuda_launch.SPLIT_BLOCK)
    assert len(first) == 1
    assert second == (ids.data_ptr(), first[0])
    monkeypatch.setattr(cuda_launch, "PIECES", 16)
    cuda_launch.launch(kernel, logits, ids)
    assert [launch[0] for launch in launches.made[2:]] == [32, 32]
    cuda_launch.launch(cuda_launch.Kernel(lambda *_: None), logits, ids)
    assert len(launches.made) == 5, "a kernel without such a form"
    with pytest.raises(ParameterError, match="pieces is 3: on CUDA a row can be split into 1, 2, 4, 8 or 16 pieces"):
        cuda_launch.launch(kernel, logits, ids, pieces=3)


@pytest.mark.parametrize(("given", "launched"), [(None, 1), ("1", 1), ("8", 2)])
def test_the_environment_says_into_how_many_pieces_rows_are_split(
    monkeypatch: pytest.MonkeyPatch, given: str | None, launched: int
) -> None:
    launches = Launches(monkeypatch)
    use_environment(monkeypatch, given)
    split = cuda_launch.Split(cuda_launch.Kernel(lambda *_: None), cuda_launch.Kernel(lambda *_: None), 10)
    ids = torch.empty(2, dtype=torch.int64)
    cuda_launch.launch(cuda_launch.Kernel(lambda *_: None, split), torch.zeros(2, 8), ids)
    assert len(launches.made) == launched


@pytest.mark.parametrize("given", ["", "0", "3", "-4", "many", "1e1"])
def test_another_number_in_the_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    Launches(monkeypatch)
    use_environment(monkeypatch, given)
    with pytest.raises(
        ParameterError, match=f"NEUROGEN_CUDA_PIECES is '?{given}'?: on CUDA a row can be split into 1, 2"
    ):
        cuda_launch.launch(cuda_launch.Kernel(lambda *_: None), torch.zeros(2, 8), torch.zeros(2))


def use_environment(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """What is read once is read anew, for this test alone."""
    monkeypatch.setattr(cuda_launch, "_pieces_of_environment", cuda_launch._pieces_of_environment.__wrapped__)
    monkeypatch.delenv("NEUROGEN_CUDA_PIECES", raising=False)
    if given is not None:
        monkeypatch.setenv("NEUROGEN_CUDA_PIECES", given)


def test_only_samplers_whose_masses_are_known_at_once_are_split() -> None:
    def keep(row: Any, *parameters: float) -> Any:
        return cuda.everything(row)

    assert cuda.truncation(keep).sample.kernel.split
    assert cuda.argmax().sample.kernel.split
    assert not cuda.truncation(keep, temper=lambda row: 1.0).sample.kernel.split
    assert not cuda.truncation(keep, chance="probability").sample.kernel.split
    assert not cuda.truncation(keep).probs.kernel.split


@pytest.mark.parametrize(
    ("module", "dtype"),
    [
        ("neurogen_greedy.cuda", torch.float32),
        pytest.param("neurogen_topk.cuda", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_both_launches_compile_and_fit_a_card(module: str, dtype: torch.dtype, compiler: None) -> None:
    for name, kernel, arrays in cuda_compile.split_kernels_of(module):
        ptx = cuda_compile.ptx_of(kernel, dtype, arrays, (9, 0))
        usage = cuda_compile.usage_of(ptx, (9, 0), kernel.block)
        print(f"{module} {name} {dtype}: {usage}")  # noqa: T201
        assert ".local" not in ptx
        assert usage is None or usage.fits
