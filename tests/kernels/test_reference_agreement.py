"""The kernels against the float64 reference, over generated batches; rows alone, in batches, permuted, threaded.

Kept sets are compared, never counts. Where p lies within the precision of a mass (1e-6) of a step of the cumulative
distribution, the nucleus is ambiguous: then a kernel must still keep a prefix of the order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neurogen
from neurogen import reference
from neurogen.kernels import numerics

PRECISION = 1e-6
VOCABS = [1, 2, 3, 5, 31, 64, 65, 257, 1000]
KINDS = ["normal", "rounded", "constant", "half_removed", "one_left", "huge", "tiny", "saturated", "flat", "zeros"]
LAYOUTS = ["contiguous", "transposed", "sliced", "every_other", "overlapping", "expanded"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TEMPERATURES = [0.0, 1e-6, 0.05, 0.7, 1.0, 1.7, 30.0, 1e6]
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 1234567890123456789]

agreement = settings(derandomize=True, deadline=None, max_examples=120, database=None)


@dataclass
class Case:
    logits: torch.Tensor
    k: torch.Tensor
    p: torch.Tensor
    temperature: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        known: dict[str, dict[str, torch.Tensor]] = {
            "greedy": {},
            "topk": {"k": self.k, "temperature": self.temperature},
            "topp": {"p": self.p, "temperature": self.temperature},
        }
        return known[name]

    def rows(self) -> list[np.ndarray]:
        return list(self.logits.to(torch.float64).numpy())


def make_row(rng: np.random.Generator, kind: str, vocab: int, dtype: torch.dtype) -> np.ndarray:
    x = rng.normal(size=vocab) * 3
    if kind == "rounded":
        x = np.round(x)
    elif kind == "constant":
        x[:] = x[0]
    elif kind == "half_removed":
        x[rng.random(vocab) < 0.5] = -np.inf
    elif kind == "one_left":
        x[:] = -np.inf
    elif kind == "huge":
        x *= 5e3 if dtype == torch.float16 else 2e37
    elif kind == "tiny":
        x *= 1e-4
    elif kind == "saturated":
        x[rng.integers(vocab)] = 25
    elif kind == "flat":
        x = rng.random(vocab) * 0.01
    elif kind == "zeros":
        x = np.where(rng.random(vocab) < 0.5, 0.0, -0.0)
    if not np.isfinite(x).any():
        x[rng.integers(vocab)] = -2.5
    return x


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values (or, overlapping and expanded, values of the same kind) at other strides."""
    batch, vocab = x.shape
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "sliced":
        return torch.nn.functional.pad(x, (3, 2), value=torch.nan)[:, 3 : 3 + vocab]
    if layout == "every_other":
        wide = torch.full((2 * batch, 2 * vocab), torch.nan, dtype=x.dtype)
        wide[::2, ::2] = x
        return wide[::2, ::2]
    if layout == "overlapping":
        line = torch.cat([x[0], x[0]]) if batch <= vocab else x[0].repeat(batch // vocab + 2)
        return line.as_strided((batch, vocab), (1, 1))
    if layout == "expanded":
        return x[:1].expand(batch, vocab)
    return x


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, vocab = draw(st.integers(1, 6)), draw(st.sampled_from(VOCABS))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=batch, max_size=batch))
    values = np.stack([make_row(rng, kind, vocab, dtype) for kind in kinds])
    temperatures = draw(st.lists(st.sampled_from(TEMPERATURES), min_size=batch, max_size=batch))
    seeds = draw(st.lists(st.sampled_from(SEEDS), min_size=batch, max_size=batch))
    counts = draw(st.lists(st.sampled_from([0, 1, 2, 3, 17, 50, vocab, vocab + 1]), min_size=batch, max_size=batch))
    shares = draw(st.lists(st.sampled_from([None, 1.0, 1e-9, 0.9]), min_size=batch, max_size=batch))
    return Case(
        logits=lay_out(torch.from_numpy(values).to(dtype), layout),
        k=torch.tensor(counts),
        p=torch.tensor([1 - rng.random() if p is None else p for p in shares], dtype=torch.float64),
        temperature=torch.tensor(temperatures, dtype=torch.float64),
        seed=torch.tensor(seeds),
        position=torch.from_numpy(rng.integers(0, 2**40, batch)),
    )


def expected_support(name: str, row: np.ndarray, case: Case, r: int) -> np.ndarray:
    temperature = float(case.temperature[r])
    if name == "greedy":
        return reference.greedy_support(row)
    if name == "topk":
        return reference.topk_support(row, int(case.k[r]), temperature)
    return reference.topp_support(row, float(case.p[r]), temperature)


def is_ambiguous(name: str, row: np.ndarray, case: Case, r: int) -> bool:
    p = float(case.p[r])
    return name == "topp" and p < 1 and reference.nucleus_margin(row, p, float(case.temperature[r])) < PRECISION


def equivalent_temperature(name: str, case: Case, r: int) -> float:
    return 0.0 if name == "greedy" else float(case.temperature[r])


SAMPLERS = {name: neurogen.load_sampler(name) for name in ("greedy", "topk", "topp")}


@pytest.fixture(params=list(SAMPLERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestAgreement:
    """One method a property; `name` is drawn, since Hypothesis does not mix with function-scoped fixtures."""

    names = st.sampled_from(list(SAMPLERS))

    @agreement
    @given(name=names, case=cases())
    def test_kept_sets_equal_the_reference(self, name: str, case: Case) -> None:
        kept = SAMPLERS[name].support(case.logits, **case.parameters(name)).numpy()
        for r, row in enumerate(case.rows()):
            if is_ambiguous(name, row, case, r):
                prefix = reference.order(row)[: kept[r].sum()]
                assert kept[r].any()
                assert set(np.flatnonzero(kept[r]).tolist()) == set(prefix.tolist())
            else:
                expected = expected_support(name, row, case, r)
                assert np.flatnonzero(kept[r]).tolist() == np.flatnonzero(expected).tolist()

    @agreement
    @given(name=names, case=cases())
    def test_probabilities_are_within_a_millionth_of_the_reference(self, name: str, case: Case) -> None:
        sampler, parameters = SAMPLERS[name], case.parameters(name)
        probs = sampler.probs(case.logits, **parameters).numpy().astype(np.float64)
        kept = sampler.support(case.logits, **parameters).numpy()
        for r, row in enumerate(case.rows()):
            expected = reference.probs(row, kept[r], equivalent_temperature(name, case, r))
            assert 0.5 * np.abs(probs[r] - expected).sum() < PRECISION
            assert not probs[r][~kept[r]].any()

    @agreement
    @given(name=names, case=cases())
    def test_drawn_tokens_equal_the_reference_at_the_same_random_number(self, name: str, case: Case) -> None:
        sampler, parameters = SAMPLERS[name], case.parameters(name)
        kept = sampler.support(case.logits, **parameters).numpy()
        ids = sampler.sample(case.logits, seed=case.seed, position=case.position, **parameters).tolist()
        for r, row in enumerate(case.rows()):
            assert kept[r][ids[r]]
            u = int(numerics.random_bits(int(case.seed[r]), int(case.position[r]), 0)) / 2**64
            probs = reference.probs(row, kept[r], equivalent_temperature(name, case, r))
            cumulative = np.cumsum(probs)
            if np.abs(cumulative / cumulative[-1] - u).min() > PRECISION:
                assert ids[r] == reference.draw(probs, u)

    @agreement
    @given(name=names, case=cases(), data=st.data())
    def test_a_row_is_the_same_alone_in_its_batch_and_in_any_order(
        self, name: str, case: Case, data: st.DataObject
    ) -> None:
        sampler, parameters = SAMPLERS[name], case.parameters(name)

        def results(rows: list[int]) -> list[torch.Tensor]:
            logits = case.logits[rows]
            chosen = {key: value[rows] for key, value in parameters.items()}
            ids = sampler.sample(logits, seed=case.seed[rows], position=case.position[rows], **chosen)
            return [ids, sampler.probs(logits, **chosen), sampler.support(logits, **chosen)]

        whole = [
            sampler.sample(case.logits, seed=case.seed, position=case.position, **parameters),
            sampler.probs(case.logits, **parameters),
            sampler.support(case.logits, **parameters),
        ]
        batch = len(case.seed)
        order = data.draw(st.permutations(range(batch)))
        for rows in [order, *([r] for r in range(batch))]:
            for got, expected in zip(results(list(rows)), whole, strict=True):
                assert torch.equal(got, expected[list(rows)])


def test_one_number_for_all_rows_equals_the_same_number_a_row(name: str) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    given_once: dict[str, dict[str, Any]] = {
        "greedy": {},
        "topk": {"k": 7, "temperature": 0.6},
        "topp": {"p": 0.7, "temperature": 0.6},
    }
    once = given_once[name]
    by_row = {key: torch.full((5,), value) for key, value in once.items()}
    for parameter in by_row:
        if parameter != "k":
            by_row[parameter] = torch.full((5,), once[parameter], dtype=torch.float64)
    made_with = neurogen.load_sampler(name, **once)
    sampler = SAMPLERS[name]
    for call in ("support", "probs", "sample"):
        expected = getattr(made_with, call)(logits)
        assert torch.equal(getattr(sampler, call)(logits, **once), expected)
        assert torch.equal(getattr(sampler, call)(logits, **by_row), expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [2, 3, 17])
def test_the_number_of_threads_changes_nothing(name: str, dtype: torch.dtype, batch: int) -> None:
    rng = np.random.default_rng(batch)
    vocab = 50_000  # enough work for every row to be worth a thread
    x = rng.normal(size=(batch, vocab)) * 3
    x[1::2] = np.round(x[1::2])
    logits = torch.from_numpy(x).to(dtype)
    seed, position = torch.arange(batch) - 5, torch.arange(batch) * 3
    sampler = SAMPLERS[name]
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        ids = sampler.sample(logits, seed=seed, position=position)
        results.append((ids, sampler.probs(logits), sampler.support(logits)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def between_steps(row: np.ndarray, p: float, temperature: float) -> float:
    """The middle of the step of the cumulative distribution that `p` falls on: there the nucleus is not ambiguous."""
    mass = reference.weights(row, temperature)
    prefix = np.cumsum(mass[reference.order(row)]) / mass.sum()
    crossing = int(np.searchsorted(prefix, p))
    return float((prefix[crossing - 1] + prefix[crossing]) / 2)


@pytest.mark.parametrize("vocab", [32_000, 128_256])
def test_large_vocabularies_agree_with_the_reference(name: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    x = (rng.normal(size=(3, vocab)) * [[1.0], [3.0], [0.01]]).astype(np.float32)
    x[1] = np.round(x[1] * 8) / 8
    temperature = [0.7, 1.0, 1.0]
    case = Case(
        logits=torch.from_numpy(x),
        k=torch.tensor([40, 50, 1000]),
        p=torch.tensor(
            [between_steps(*row) for row in zip(x, [0.9, 0.95, 0.5], temperature, strict=True)], dtype=torch.float64
        ),
        temperature=torch.tensor(temperature, dtype=torch.float64),
        seed=torch.arange(3),
        position=torch.arange(3),
    )
    parameters = case.parameters(name)
    kept = SAMPLERS[name].support(case.logits, **parameters).numpy()
    probs = SAMPLERS[name].probs(case.logits, **parameters).numpy()
    for r, row in enumerate(case.rows()):
        assert not is_ambiguous(name, row, case, r)
        np.testing.assert_array_equal(kept[r], expected_support(name, row, case, r))
        expected = reference.probs(row, kept[r], equivalent_temperature(name, case, r))
        assert 0.5 * np.abs(probs[r] - expected).sum() < PRECISION


def test_topk_keeps_exactly_k_where_keys_differ_in_every_bit() -> None:
    """A radix selection whose digits overlapped by a bit kept one token too few for a third of these k."""
    rng = np.random.default_rng(128_256)
    row = (rng.normal(size=20_000) * 0.01).astype(np.float32)
    ks = np.arange(1, 2_000, 7)
    logits = torch.from_numpy(row).expand(len(ks), -1)
    kept = SAMPLERS["topk"].support(logits, k=torch.from_numpy(ks)).numpy()
    ranks = np.empty(len(row), np.int64)
    ranks[reference.order(row)] = np.arange(len(row))
    np.testing.assert_array_equal(kept, ranks < ks[:, None])
