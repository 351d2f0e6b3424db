"""What must not change a token: layout, a dtype that holds the same values, the other rows, threads, earlier calls.

Rows alone, in their batch and permuted are held in test_reference_agreement; here everything else that surrounds a row
is drawn by Hypothesis. Results are compared bit for bit: ids, probabilities and supports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import neurogen
from neurogen.testing.recorded import KINDS, PARAMETERS, make_logits

SAMPLERS = {name: neurogen.load_sampler(name) for name in PARAMETERS}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INT64 = st.integers(-(2**63), 2**63 - 1)

invariance = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@dataclass
class Batch:
    """Logits that every dtype holds exactly, and everything that is given a row."""

    name: str
    logits: Tensor
    columns: dict[str, Tensor]

    def results(self) -> list[Tensor]:
        """ids, probabilities and support."""
        sampler = SAMPLERS[self.name]
        params = {name: self.columns[name] for name in PARAMETERS[self.name]}
        numbers = {name: self.columns[name] for name in ("seed", "position")}
        return [
            sampler.sample(self.logits, check=False, **numbers, **params),
            sampler.probs(self.logits, check=False, **params),
            sampler.support(self.logits, check=False, **params),
        ]

    def join(self, other: Batch) -> Batch:
        columns = {name: torch.cat([column, other.columns[name]]) for name, column in self.columns.items()}
        return Batch(self.name, torch.cat([self.logits, other.logits]), columns)


@st.composite
def batches(draw: st.DrawFn, name: str | None = None, vocab: int | None = None, most_rows: int = 6) -> Batch:
    name = name or draw(st.sampled_from(sorted(SAMPLERS)))
    vocab = vocab or draw(st.sampled_from([1, 2, 31, 64, 65, 200, 1000]))
    rows = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32)), min_size=1, max_size=most_rows))
    count = len(rows)

    def column(values: st.SearchStrategy[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=dtype)

    return Batch(
        name=name,
        logits=torch.from_numpy(np.stack([make_logits(kind, seed, vocab, "bfloat16") for kind, seed in rows])),
        columns={
            "k": column(st.integers(0, vocab + 1), torch.int64),
            "p": column(st.floats(0, 1, exclude_min=True), torch.float64),
            "temperature": column(st.sampled_from([0.0, 1e-6, 0.3, 0.7, 1.0, 1.7, 30.0]), torch.float64),
            "seed": column(INT64, torch.int64),
            "position": column(st.integers(0, 2**63 - 1), torch.int64),
        },
    )


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for found, wanted in zip(got, expected, strict=True):
        assert torch.equal(found, wanted)


def between_columns(x: Tensor) -> Tensor:
    wide = torch.full((x.shape[0], 3 * x.shape[1]), torch.nan, dtype=x.dtype)
    wide[:, 1::3] = x
    return wide[:, 1::3]


def between_rows(x: Tensor) -> Tensor:
    wide = torch.full((2 * x.shape[0], x.shape[1] + 7), torch.nan, dtype=x.dtype)
    wide[1::2, 5:-2] = x
    return wide[1::2, 5:-2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "by column": lambda x: x.t().contiguous().t(),
    "between columns": between_columns,
    "between rows": between_rows,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_nothing(layout: str, dtype: torch.dtype) -> None:
    @invariance
    @given(batch=batches())
    def check(batch: Batch) -> None:
        plain = replace(batch, logits=batch.logits.to(dtype))
        moved = replace(plain, logits=LAYOUTS[layout](plain.logits))
        assert torch.equal(moved.logits, plain.logits)
        assert_equal(moved.results(), plain.results())

    check()


@invariance
@given(batch=batches(most_rows=1), times=st.integers(2, 9))
def test_a_row_expanded_without_memory_is_the_row(batch: Batch, times: int) -> None:
    columns = {name: column.repeat(times) for name, column in batch.columns.items()}
    expanded = Batch(batch.name, batch.logits.expand(times, -1), columns)
    assert_equal(expanded.results(), [result.repeat(times, *[1] * (result.ndim - 1)) for result in batch.results()])


@invariance
@given(batch=batches())
def test_the_same_values_in_any_dtype_give_the_same(batch: Batch) -> None:
    single, half, brain = (replace(batch, logits=batch.logits.to(dtype)) for dtype in DTYPES)
    assert torch.equal(half.logits.float(), batch.logits)
    assert torch.equal(brain.logits.float(), batch.logits)
    expected = single.results()
    assert_equal(half.results(), expected)
    assert_equal(brain.results(), expected)


@invariance
@given(data=st.data())
def test_other_rows_change_nothing_valid_or_not(data: st.DataObject) -> None:
    batch = data.draw(batches())
    count, vocab = batch.logits.shape
    before, after = (data.draw(batches(name=batch.name, vocab=vocab)) for _ in range(2))
    spoilt = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    before.logits[-1, data.draw(st.integers(0, vocab - 1))] = spoilt
    after.logits[0] = spoilt
    expected = batch.results()
    surrounded = before.join(batch).join(after).results()
    start = len(before.logits)
    assert_equal([result[start : start + count] for result in surrounded], expected)
    assert surrounded[0][start + count] == -1


@invariance
@given(batch=batches(), other=batches())
def test_earlier_calls_and_the_global_generator_change_nothing_nor_are_they_changed(batch: Batch, other: Batch) -> None:
    expected = batch.results()
    other.results()
    torch.rand(1)
    generator = torch.get_rng_state()
    assert_equal(batch.results(), expected)
    assert torch.get_rng_state().equal(generator)


@settings(invariance, max_examples=25)
@given(batch=batches(vocab=20_000, most_rows=12), counts=st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_the_number_of_threads_changes_nothing(batch: Batch, counts: tuple[int, int]) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(batch.results())
    finally:
        torch.set_num_threads(before)
    assert_equal(*results)
