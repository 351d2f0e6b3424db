"""What is drawn follows the reference's probabilities: G-tests over 200,000 and 10,000,000 draws, with seeds fixed.

With the seeds fixed a test either always passes or always fails; the threshold says how unlikely the draws may be.
"""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import neurogen
from neurogen import Sampler, reference

DRAWS = 200_000
ROWS = 20_000  # of one call
VOCAB = 1000
MANY_DRAWS, MANY_VOCAB = 10_000_000, 200
SIGNIFICANCE = 0.001

SHAPES = ("peaked", "normal", "flat")
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {"k": 50, "temperature": 0.8}),
    "topp": ("topp", {"p": 0.9, "temperature": 1.0}),
    "temperature": ("topk", {"k": 0, "temperature": 1.3}),
}
CASES = [(name, shape) for name in SAMPLERS for shape in SHAPES]
TESTS = 2 * len(CASES) + 6 + len(SAMPLERS)  # Bonferroni: every G-test and chi-square test of this file


def logits_of(shape: str) -> np.ndarray:
    rng = np.random.default_rng(12345)
    x = {
        "peaked": rng.normal(size=VOCAB) + np.where(np.arange(VOCAB) == 700, 9.0, 0.0),
        "normal": rng.normal(size=VOCAB) * 3,
        "flat": rng.normal(size=VOCAB) * 0.01,
    }[shape]
    return np.asarray(x, dtype=np.float32)


def expected_probs(name: str, row: np.ndarray, **params: Any) -> np.ndarray:
    x, temperature = row.astype(np.float64), params["temperature"]
    if name == "topk":
        return reference.probs(x, reference.topk_support(x, params["k"], temperature), temperature)
    assert reference.nucleus_margin(x, params["p"], temperature) > 1e-6
    return reference.probs(x, reference.topp_support(x, params["p"], temperature), temperature)


def count_draws(
    sampler: Sampler, row: np.ndarray, *, by: str, start: int = 0, fixed: int = 0, draws: int = DRAWS
) -> np.ndarray:
    """How often each token is drawn while the seed, or the position, counts up and the other stays fixed."""
    logits = torch.from_numpy(row).expand(ROWS, len(row))
    counts = np.zeros(len(row), dtype=np.int64)
    other = "position" if by == "seed" else "seed"
    for first in range(start, start + draws, ROWS):
        numbers = {by: torch.arange(first, first + ROWS), other: fixed}
        counts += np.bincount(sampler.sample(logits, **numbers).numpy(), minlength=len(row))
    return counts


def g_test(counts: np.ndarray, probs: np.ndarray) -> float:
    """The p-value of `counts` under `probs`; tokens of which fewer than 5 are expected are pooled."""
    expected = probs * counts.sum()
    seldom = expected < 5
    observed, wanted = counts[~seldom], expected[~seldom]
    if expected[seldom].sum() >= 5:
        observed, wanted = np.append(observed, counts[seldom].sum()), np.append(wanted, expected[seldom].sum())
    else:  # too few even together: they join the smallest of the others
        smallest = wanted.argmin()
        observed[smallest] += counts[seldom].sum()
        wanted[smallest] += expected[seldom].sum()
    return float(stats.power_divergence(observed, wanted, lambda_="log-likelihood").pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["seed", "position"])
@pytest.mark.parametrize(("case", "shape"), CASES)
def test_draws_follow_the_reference_probabilities(case: str, shape: str, by: str) -> None:
    name, params = SAMPLERS[case]
    row = logits_of(shape)
    probs = expected_probs(name, row, **params)
    counts = count_draws(neurogen.load_sampler(name, **params), row, by=by, fixed=17)
    assert counts.sum() == DRAWS
    assert not counts[probs == 0].any()
    assert g_test(counts, probs) > SIGNIFICANCE / TESTS


@pytest.mark.slow
@pytest.mark.parametrize("case", SAMPLERS)
def test_ten_million_draws_follow_the_reference_probabilities(case: str) -> None:
    name, params = SAMPLERS[case]
    row = logits_of("normal")[:MANY_VOCAB]
    counts = count_draws(neurogen.load_sampler(name, **params), row, by="seed", start=5, fixed=77, draws=MANY_DRAWS)
    assert counts.sum() == MANY_DRAWS
    assert g_test(counts, expected_probs(name, row, **params)) > SIGNIFICANCE / TESTS


@pytest.mark.parametrize("name", ["topk", "topp"])
@pytest.mark.parametrize("fixed", [-1, 2**62 + 12345])
def test_draws_of_extreme_seeds_follow_a_small_distribution(name: str, fixed: int) -> None:
    row = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05])).astype(np.float32)
    truncation = {"topk": {"k": 4}, "topp": {"p": 0.9}}[name]
    # Top-k 4 and top-p 0.9 keep the first four: (0.5 0.2 0.15 0.1) / 0.95. 0.5 + 0.2 + 0.15 = 0.85 does not reach 0.9.
    probs = np.array([0.5, 0.2, 0.15, 0.1, 0.0]) / 0.95
    sampler = neurogen.load_sampler(name, temperature=1.0, **truncation)
    counts = count_draws(sampler, row, by="position", fixed=fixed)
    assert counts[4] == 0
    assert g_test(counts, probs) > SIGNIFICANCE / TESTS


@pytest.mark.parametrize("error", [0.98, 1.02])
@pytest.mark.parametrize("shape", ["normal", "flat"])
def test_a_distribution_two_percent_off_is_noticed(shape: str, error: float) -> None:
    """The power of the test: half of the tokens 2 % too likely or too unlikely, at the support of top-k 50.

    The statistic grows by about 200,000 * 0.01**2 = 20 for the flattest case when all masses are off by 1 % from
    their mean, so what is wrong here is the mass of half of the tokens by 2 % *each way*: 200,000 * 0.02**2 = 80 over
    49 degrees of freedom, whose standard deviation is 10.
    """
    name, params = SAMPLERS["topk"]
    row = logits_of(shape)
    probs = expected_probs(name, row, **params)
    counts = count_draws(neurogen.load_sampler(name, **params), row, by="seed", fixed=17)
    heavier_first = np.argsort(-probs)
    wrong = probs.copy()
    wrong[heavier_first[0::2]] *= error
    wrong[heavier_first[1::2]] *= 2 - error
    assert g_test(counts, wrong / wrong.sum()) < SIGNIFICANCE / TESTS


def test_a_temperature_two_percent_off_is_noticed() -> None:
    row = logits_of("normal")
    sampler = neurogen.load_sampler("topk", k=50, temperature=0.8 * 1.02)
    counts = count_draws(sampler, row, by="seed", fixed=17)
    assert g_test(counts, expected_probs("topk", row, k=50, temperature=0.8)) < SIGNIFICANCE / TESTS


@pytest.mark.parametrize("by", ["seed", "position"])
def test_neighbouring_numbers_draw_independently(by: str) -> None:
    """Pairs of tokens drawn at n and n + 1 (not overlapping) fill their table like independent draws."""
    probs = np.array([0.35, 0.25, 0.15, 0.1, 0.1, 0.05])
    logits = torch.from_numpy(np.log(probs).astype(np.float32)).expand(DRAWS, 6)
    other = "position" if by == "seed" else "seed"
    sampler = neurogen.load_sampler("topk", k=0, temperature=1.0)
    pairs = sampler.sample(logits, **{by: torch.arange(DRAWS), other: 3}).numpy().reshape(-1, 2)
    table = np.zeros((6, 6), dtype=np.int64)
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    assert stats.chi2_contingency(table).pvalue > SIGNIFICANCE / TESTS
    assert g_test(table.ravel(), np.outer(probs, probs).ravel()) > SIGNIFICANCE / TESTS


def test_seed_and_position_are_not_interchangeable() -> None:
    """Token (seed, position) says nothing about (seed + 1, position - 1) or (position, seed)."""
    count, vocab = 5000, 50
    logits = torch.zeros(count, vocab)
    sampler = neurogen.load_sampler("topk", k=0, temperature=1.0)
    numbers = torch.arange(count)
    here = sampler.sample(logits, seed=numbers + 10_000, position=numbers)
    shifted = sampler.sample(logits, seed=numbers + 10_001, position=numbers - 1)
    swapped = sampler.sample(logits, seed=numbers, position=numbers + 10_000)
    for other in (shifted, swapped):
        # Equal by chance once in 50: 100 of 5000, standard deviation 10.
        assert 50 < int((here == other).sum()) < 150
