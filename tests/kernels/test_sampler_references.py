"""What the samplers in `plugins` mean: each reference against arithmetic by hand and against other programs.

The other programs are transformers' warpers and, where llama-cpp-python is installed, llama.cpp's samplers. Both
compute in float32: rows in which a token lies within their precision of a border are passed over, and counted.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import neurogen

NAMES = ["temperature", "minp", "typical", "topnsigma", "epsilon", "eta", "xtc", "mirostat", "dynatemp"]
INF = np.inf
NUDGE = 1e-5
"""A row is compared where its support stays the same when a parameter or the logits change by this share."""

REF: dict[str, Any] = {name: importlib.import_module(f"neurogen_{name}.reference") for name in NAMES}

REGISTRY = neurogen.Registry()


def defaults(name: str) -> dict[str, Any]:
    """Every parameter of a sampler with its default."""
    values: dict[str, Any] = REGISTRY.load_class(name).Params().model_dump()
    return values


def of_probabilities(*values: float) -> np.ndarray:
    """Logits whose softmax is `values`, in float64."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(values, dtype=np.float64))


def ids(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def kept(name: str, logits: np.ndarray, **params: Any) -> list[int]:
    return ids(REF[name].support(logits, **{**defaults(name), **params}))


# By hand.

LOGITS = of_probabilities(0.05, 0.4, 0.1, 0.3, 0.0, 0.15)


def test_temperature_keeps_everything_above_minus_infinity() -> None:
    assert kept("temperature", LOGITS) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize(
    ("min_p", "tokens"),
    [
        (0.0, [0, 1, 2, 3, 5]),
        (0.12, [0, 1, 2, 3, 5]),  # 0.05 / 0.4 = 0.125
        (0.13, [1, 2, 3, 5]),
        (0.3, [1, 3, 5]),  # 0.15 / 0.4 = 0.375, 0.1 / 0.4 = 0.25
        (0.76, [1]),
        (1.0, [1]),
    ],
)
def test_minp_is_a_share_of_the_best(min_p: float, tokens: list[int]) -> None:
    assert kept("minp", LOGITS, min_p=min_p) == tokens


def test_minp_is_measured_at_the_temperature_and_one_keeps_what_ties() -> None:
    # At temperature 2 shares become square roots: sqrt(0.125) = 0.354 passes 0.3.
    assert kept("minp", LOGITS, min_p=0.3, temperature=2.0) == [0, 1, 2, 3, 5]
    assert kept("minp", np.array([1.0, 3.0, 3.0, -INF]), min_p=1.0) == [1, 2]


@pytest.mark.parametrize(
    ("typical_p", "tokens"),
    [
        # Entropy: -(0.5 ln 0.5 + 2 * 0.2 ln 0.2 + 0.1 ln 0.1) = 0.3466 + 0.6438 + 0.2303 = 1.2206.
        # Distances: |0.6931 - H| = 0.5275; |1.6094 - H| = 0.3888, twice; |2.3026 - H| = 1.0820.
        (0.15, [1]),  # of the two at 0.2 the lower id
        (0.25, [1, 2]),
        (0.39, [1, 2]),  # 0.4 reaches it; the best token is left out
        (0.41, [0, 1, 2]),
        (0.89, [0, 1, 2]),
        (0.91, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_typical_takes_those_nearest_to_the_entropy_first(typical_p: float, tokens: list[int]) -> None:
    assert kept("typical", of_probabilities(0.5, 0.2, 0.2, 0.1, 0.0), typical_p=typical_p) == tokens


def test_typical_of_equal_logits_is_the_smallest_set_of_the_lowest_ids() -> None:
    assert kept("typical", np.array([2.0, 2.0, 2.0, 2.0]), typical_p=0.5) == [0, 1]


def test_typical_counts_tokens_whose_probability_underflows_as_far_off() -> None:
    assert kept("typical", np.array([0.0, -5000.0]), typical_p=0.5) == [0]
    assert kept("typical", np.array([0.0, -5000.0]), typical_p=1.0) == [0, 1]


@pytest.mark.parametrize(
    ("n", "tokens"),
    [
        # Of 0, 1, 2, 3 the mean is 1.5 and the deviation sqrt((2.25 + 0.25 + 0.25 + 2.25) / 4) = 1.118.
        (0.0, [0, 1, 2, 3]),
        (0.5, [3]),
        (0.9, [2, 3]),  # 3 - 1.006 = 1.994
        (1.0, [2, 3]),
        (1.8, [1, 2, 3]),  # 3 - 2.012 = 0.988
        (2.7, [0, 1, 2, 3]),  # 3 - 3.019 < 0
    ],
)
def test_topnsigma_counts_deviations_of_the_finite_logits(n: float, tokens: list[int]) -> None:
    for temperature in (0.5, 1.0, 3.0):
        assert kept("topnsigma", np.array([0.0, 1.0, 2.0, 3.0, -INF]), n=n, temperature=temperature) == tokens


def test_topnsigma_of_equal_logits_keeps_all() -> None:
    assert kept("topnsigma", np.float32([0.1, 0.1, 0.1]), n=0.01) == [0, 1, 2]


@pytest.mark.parametrize(
    ("epsilon", "tokens"),
    [(0.0, [0, 1, 2, 3, 5]), (0.06, [1, 2, 3, 5]), (0.14, [1, 3, 5]), (0.16, [1, 3]), (0.39, [1]), (0.9, [1])],
)
def test_epsilon_is_a_least_probability_and_the_argmax_stays(epsilon: float, tokens: list[int]) -> None:
    assert kept("epsilon", LOGITS, epsilon=epsilon) == tokens


def test_epsilon_above_every_probability_keeps_the_lowest_id_among_equals() -> None:
    assert kept("epsilon", np.array([1.0, 2.0, 2.0]), epsilon=0.9) == [1]
    assert kept("eta", np.array([2.0, 2.0, 2.0]), epsilon=0.9) == [0, 1, 2]  # sqrt(0.9) / 3 = 0.316 < 1/3


@pytest.mark.parametrize(
    ("epsilon", "tokens"),
    [
        # exp(-H) of (0.5, 0.25, 0.125, 0.125): H = 1.75 ln 2, so 2**-1.75 = 0.2973.
        (0.0, [0, 1, 2, 3]),
        (0.04, [0, 1, 2, 3]),  # min(0.04, 0.2 * 0.2973) = 0.04
        (0.16, [0, 1, 2, 3]),  # min(0.16, 0.4 * 0.2973 = 0.1189) = 0.1189 < 0.125; epsilon sampling keeps two
        (0.25, [0, 1]),  # 0.5 * 0.2973 = 0.1486
        (0.81, [0]),  # 0.9 * 0.2973 = 0.2676
    ],
)
def test_eta_is_the_lesser_of_epsilon_and_what_follows_the_entropy(epsilon: float, tokens: list[int]) -> None:
    assert kept("eta", of_probabilities(0.5, 0.25, 0.125, 0.125), epsilon=epsilon) == tokens


def test_eta_takes_the_entropy_at_the_temperature() -> None:
    # At temperature 1/2 the squares: 16 4 1 1 of 22, H = 0.8376, exp(-H) = 0.4327; 0.3 * 0.4327 = 0.130 > 1/22.
    logits = of_probabilities(0.5, 0.25, 0.125, 0.125)
    assert kept("eta", logits, epsilon=0.09, temperature=0.5) == [0, 1]  # min(0.09, 0.130) = 0.09 < 4/22


@pytest.mark.parametrize(
    ("threshold", "left"),
    [
        (0.04, [0]),  # all reach it: the least probable stays
        (0.06, [0, 2]),  # 0.4, 0.1, 0.3, 0.15 reach it
        (0.12, [0, 2, 5]),
        (0.2, [0, 2, 3, 5]),
        (0.35, [0, 1, 2, 3, 5]),  # one alone reaches it
        (0.5, [0, 1, 2, 3, 5]),
    ],
)
def test_xtc_leaves_the_least_probable_of_the_top_choices(threshold: float, left: list[int]) -> None:
    assert ids(REF["xtc"].excluding(LOGITS, threshold, 1.0)) == left
    assert kept("xtc", LOGITS, threshold=threshold, probability=1.0) == left
    assert kept("xtc", LOGITS, threshold=threshold, probability=0.5) == [0, 1, 2, 3, 5]


def test_xtc_leaves_the_highest_id_of_equal_top_choices() -> None:
    assert kept("xtc", np.array([0.0, 2.0, 2.0, 2.0]), threshold=0.2, probability=1.0) == [0, 3]


def test_xtc_probs_mix_both_outcomes() -> None:
    # Without 0.4 and 0.3 there is 0.3 left: 0.05, 0.1 and 0.15 of it.
    p = REF["xtc"].probs(LOGITS, threshold=0.12, probability=0.25, temperature=1.0)
    out, whole = np.array([1 / 6, 0, 1 / 3, 0, 0, 1 / 2]), np.array([0.05, 0.4, 0.1, 0.3, 0, 0.15])
    np.testing.assert_allclose(p, 0.25 * out + 0.75 * whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("tau", "tokens"),
    [
        # Surprises of (0.5, 0.25, 0.125, 0.125): 1, 2, 3, 3 bits; mu = 2 tau.
        (0.0, [0]),
        (0.4, [0]),  # nothing is below 0.8 bits: the best token
        (0.6, [0]),
        (1.1, [0, 1]),
        (1.6, [0, 1, 2, 3]),
    ],
)
def test_mirostat_keeps_surprises_up_to_twice_tau_at_first(tau: float, tokens: list[int]) -> None:
    assert kept("mirostat", of_probabilities(0.5, 0.25, 0.125, 0.125, 0.0), tau=tau) == tokens


def test_mirostat_moves_mu_by_the_surprise_among_the_tokens_kept() -> None:
    # mu = 2.2 keeps 0.5 and 0.25, which become 2/3 and 1/3: the second has log2(3) = 1.585 bits, over all it had 2.
    logits = of_probabilities(0.5, 0.25, 0.125, 0.125)
    given = {"tau": 1.1, "eta": 0.5, "temperature": 1.0}
    assert REF["mirostat"].next_mu(logits, 1, 2.2, **given) == pytest.approx(2.2 - 0.5 * (np.log2(3) - 1.1))
    assert REF["mirostat"].next_mu(logits, 0, 2.2, **given) == pytest.approx(2.2 - 0.5 * (np.log2(1.5) - 1.1))
    assert REF["mirostat"].next_mu(logits, 0, 2.2, tau=1.1, eta=0.5, temperature=0.0) == 2.2


def test_mirostat_starts_each_row_at_twice_its_own_tau_and_moves_mu_as_the_reference() -> None:
    sampler = neurogen.load_sampler("mirostat", tau=5.0, eta=0.5)
    rows = list(random_rows(1, 5)) * 3
    logits, taus = torch.from_numpy(np.stack(rows)), [1.0, 5.0, 0.0]
    state = sampler.new_state(3)
    assert state["mu"].tolist() == [10.0, 10.0, 10.0]
    mu = [2 * tau for tau in taus]
    for step in range(6):
        chosen = sampler.sample(logits, seed=4, position=step, state=state, tau=torch.tensor(taus, dtype=torch.float64))
        for i, token in enumerate(chosen.tolist()):
            assert REF["mirostat"].support_at(rows[i], mu[i], 1.0)[token]
            mu[i] = REF["mirostat"].next_mu(rows[i], token, mu[i], tau=taus[i], eta=0.5, temperature=1.0)
        own = [value + 2 * (tau - 5.0) for value, tau in zip(state["mu"].tolist(), taus, strict=True)]
        assert own == pytest.approx(mu, abs=1e-4)


def test_dynatemp_goes_from_the_least_to_the_largest_temperature_with_the_entropy() -> None:
    temperature_of = REF["dynatemp"].temperature_of
    assert temperature_of(np.array([3.0, -INF]), 0.5, 1.5, 1.0) == 0.5
    assert temperature_of(np.array([3.0, 3.0, -INF]), 0.5, 1.5, 2.0) == pytest.approx(1.5)
    # H = 1.75 ln 2 of at most 2 ln 2: a share of 0.875, of the finite tokens alone.
    logits = of_probabilities(0.5, 0.25, 0.125, 0.125, 0.0)
    assert temperature_of(logits, 0.5, 1.5, 1.0) == pytest.approx(1.375)
    assert temperature_of(logits, 0.5, 1.5, 2.0) == pytest.approx(0.5 + 0.875**2)
    assert temperature_of(logits, 0.5, 1.5, 0.0) == 1.5
    assert temperature_of(logits, 2.0, 1.5, 1.0) == 2.0  # the largest counts as the least


def test_dynatemp_draws_from_all_tokens_at_that_temperature() -> None:
    # 0.5, 0.25, 0.125, 0.125 at temperature 2: square roots, 1 : 0.7071 : 0.5 : 0.5.
    logits = of_probabilities(0.5, 0.25, 0.125, 0.125, 0.0)
    given = {"min_temperature": 2.0, "max_temperature": 2.0, "exponent": 1.0}
    expected = np.array([1, 0.5**0.5, 0.5, 0.5, 0]) / (2 + 0.5**0.5)
    np.testing.assert_allclose(REF["dynatemp"].probs(logits, **given), expected, rtol=1e-12)
    assert ids(REF["dynatemp"].support(logits, **given)) == [0, 1, 2, 3]


# What holds of all.

COLD: dict[str, dict[str, float]] = {
    name: {"temperature": 0.0} if name != "dynatemp" else {"min_temperature": 0.0, "max_temperature": 0.0}
    for name in NAMES
}


def random_rows(count: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of float32 without ties, of 2 to 60 tokens, some of them at -inf."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        row = (rng.normal(size=int(rng.integers(2, 60))) * rng.choice([0.3, 1.0, 3.0])).astype(np.float32)
        if number % 3 == 0:
            row[rng.random(len(row)) < 0.2] = -INF
        row[rng.integers(len(row))] = 2.5
        yield row


def probs_of(name: str, row: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    own: Callable[..., np.ndarray] | None = getattr(REF[name], "probs", None)  # as the conformance kit finds it
    if own is not None:
        return own(row, **given)
    return neurogen.reference.probs(row, REF[name].support(row, **given), given.get("temperature", 1.0))


@pytest.mark.parametrize("name", NAMES)
def test_temperature_zero_is_the_lowest_argmax(name: str) -> None:
    given = {**defaults(name), **COLD[name]}
    for row in [np.array([1.0, 3.0, 3.0, -INF]), np.array([-2.0]), *random_rows(20, 1)]:
        assert ids(REF[name].support(row, **given)) == [neurogen.reference.argmax(row)]
        assert probs_of(name, row, given).tolist() == np.eye(len(row))[neurogen.reference.argmax(row)].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_supports_are_of_drawable_tokens_and_have_the_probabilities(name: str) -> None:
    for row in random_rows(60, 2):
        for warm in (0.3, 1.0, 2.0):
            given = defaults(name)
            given |= {"temperature": warm} if name != "dynatemp" else {"max_temperature": warm}
            support, p = REF[name].support(row, **given), probs_of(name, row, given)
            assert support.dtype == bool
            assert support.any()
            assert not support[np.isneginf(row)].any()
            np.testing.assert_array_equal(support, p > 0)
            assert p.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_and_temperatures_neither_warn_nor_leave_nothing(name: str) -> None:
    largest = np.finfo(np.float32).max
    for row in (np.float32([largest, -largest, 0]), np.float32([0, -1e-30]), np.float32([5]), np.float32([7, 7])):
        for temperature in (1e-300, 1e-6, 1e6, 1e300):
            given = defaults(name)
            given |= {"temperature": temperature} if name != "dynatemp" else {"max_temperature": temperature}
            assert REF[name].support(row, **given).any()
            assert probs_of(name, row, given).sum() == pytest.approx(1)


# transformers.


def is_clear(name: str, row: np.ndarray, given: dict[str, Any]) -> bool:
    """Whether the support does not hang on the last digits of a float32."""
    found = REF[name].support(row, **given)
    others = [REF[name].support(row.astype(np.float64) * (1 + sign), **given) for sign in (-NUDGE, NUDGE)]
    for parameter, value in given.items():
        if parameter not in ("temperature", "probability"):
            for sign in (-NUDGE, NUDGE):
                others.append(REF[name].support(row, **{**given, parameter: value * (1 + sign)}))
    return all(np.array_equal(found, other) for other in others)


def warper_of(name: str, value: float) -> Any:
    from transformers.generation import logits_process

    known: dict[str, Callable[[float], Any]] = {
        "minp": lambda x: logits_process.MinPLogitsWarper(min_p=x),
        "typical": lambda x: logits_process.TypicalLogitsWarper(mass=x),
        "epsilon": lambda x: logits_process.EpsilonLogitsWarper(epsilon=x),
        "eta": lambda x: logits_process.EtaLogitsWarper(epsilon=x),
    }
    return known[name](value)


WARPED = [("minp", "min_p"), ("typical", "typical_p"), ("epsilon", "epsilon"), ("eta", "epsilon")]


@pytest.mark.parametrize(("name", "parameter"), WARPED)
def test_kept_sets_are_those_of_transformers(name: str, parameter: str) -> None:
    """On rows without ties. It differs where there are: `TypicalLogitsWarper` keeps all tokens as near as the one that
    crosses, `EpsilonLogitsWarper` and `EtaLogitsWarper` all that tie with the most probable; we the first in order.
    transformers has no top-n-sigma, XTC, mirostat or dynamic temperature.
    """
    compared = 0
    for row in random_rows(60, 3):
        for value in (0.001, 0.02, 0.2, 0.6, 0.95):
            for temperature in (0.6, 1.0, 1.6):
                given = {parameter: value, "temperature": temperature}
                if not is_clear(name, row, given):
                    continue
                scores = torch.from_numpy(row)[None] / temperature
                theirs = torch.isfinite(warper_of(name, value)(torch.zeros(1, 1, dtype=torch.int64), scores))[0].numpy()
                np.testing.assert_array_equal(REF[name].support(row, **given), theirs)
                compared += 1
    assert compared > 700


def test_ties_that_transformers_keeps_and_we_do_not() -> None:
    """So that the difference above stays true."""
    tied = np.float32([0, 1, 1, -3])
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    for name, value, ours, theirs in [("typical", 0.3, [1], [1, 2]), ("epsilon", 0.9, [1], [1, 2])]:
        assert kept(name, tied, **dict(zip(dict(WARPED)[name].split(), [value], strict=True))) == ours
        assert ids(torch.isfinite(warper_of(name, value)(nothing, torch.from_numpy(tied)[None]))[0].numpy()) == theirs


# llama.cpp.


class LlamaSampler:
    """One sampler of llama.cpp on one row: the tokens that it leaves, with their probabilities."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.api = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra bench)")
        self.sampler = make(self.api)

    def __call__(self, row: np.ndarray) -> tuple[list[int], np.ndarray]:
        api = self.api
        data = (api.llama_token_data * len(row))(*((i, float(x), 0.0) for i, x in enumerate(row)))
        array = api.llama_token_data_array(
            data=ctypes.cast(data, api.llama_token_data_p), size=len(row), selected=-1, sorted=False
        )
        api.llama_sampler_apply(self.sampler, ctypes.byref(array))
        left = [(array.data[i].id, array.data[i].logit) for i in range(array.size)]
        logits = np.full(len(row), -INF)
        logits[[token for token, _ in left]] = [logit for _, logit in left]
        self.selected = left[array.selected][0] if array.selected >= 0 else -1
        p = np.exp(logits - logits.max())
        return sorted(token for token, logit in left if logit > -INF), p / p.sum()

    def free(self) -> None:
        self.api.llama_sampler_free(self.sampler)


LLAMA: list[tuple[str, dict[str, float], Callable[[Any], Any]]] = [
    *(("minp", {"min_p": x}, lambda a, x=x: a.llama_sampler_init_min_p(x, 0)) for x in (0.02, 0.3, 0.9)),
    *(("typical", {"typical_p": x}, lambda a, x=x: a.llama_sampler_init_typical(x, 0)) for x in (0.1, 0.5, 0.95)),
    *(("topnsigma", {"n": x}, lambda a, x=x: a.llama_sampler_init_top_n_sigma(x)) for x in (0.5, 1.0, 2.0)),
    *(
        ("xtc", {"threshold": x, "probability": 1.0}, lambda a, x=x: a.llama_sampler_init_xtc(1.0, x, 0, 1))
        for x in (0.02, 0.1, 0.3)
    ),
    *(("mirostat", {"tau": x, "eta": 0.1}, lambda a, x=x: a.llama_sampler_init_mirostat_v2(1, x, 0.1)) for x in (1, 2)),
    *(
        (
            "dynatemp",
            {"min_temperature": 1 - x, "max_temperature": 1 + x, "exponent": e},
            lambda a, x=x, e=e: a.llama_sampler_init_temp_ext(1.0, x, e),
        )
        for x, e in ((0.5, 1.0), (0.25, 2.0))
    ),
]


@pytest.mark.parametrize(("name", "params", "make"), LLAMA, ids=[f"{n}-{list(p.values())}" for n, p, _ in LLAMA])
def test_kept_sets_and_probabilities_are_those_of_llama_cpp(
    name: str, params: dict[str, float], make: Callable[[Any], Any]
) -> None:
    """Without -inf for the samplers that take an entropy: llama.cpp's `typical` then has 0 * log 0, which is not a
    number, and its dynamic temperature counts removed tokens as possible ones. Its `typical` goes on until the mass is
    above p, where ours stops when it is reached: no difference on rows that are clear.
    """
    given = {**defaults(name), **params}
    compared = 0
    for row in random_rows(120, 4):
        if (name in ("typical", "dynatemp") and np.isneginf(row).any()) or not is_clear(name, row, given):
            continue
        sampler = LlamaSampler(make)
        tokens, p = sampler(row)
        sampler.free()
        if name == "mirostat":
            _mirostat_goes_on_alike(row, given, make)
        assert tokens == ids(REF[name].support(row, **given))
        np.testing.assert_allclose(p, probs_of(name, row, given), atol=2e-6)
        compared += 1
    assert compared > 40


def _mirostat_goes_on_alike(row: np.ndarray, given: dict[str, Any], make: Callable[[Any], Any]) -> None:
    """Its mu is hidden: what it keeps over eight steps shows it."""
    sampler, mu = LlamaSampler(make), 2 * given["tau"]
    for _ in range(8):
        expected = REF["mirostat"].support_at(row, mu, 1.0)
        near = [REF["mirostat"].support_at(row, mu * (1 + sign), 1.0) for sign in (-1e-4, 1e-4)]
        tokens, _ = sampler(row)
        if not all(np.array_equal(expected, other) for other in near):
            break
        assert tokens == ids(expected)
        mu = REF["mirostat"].next_mu(row, sampler.selected, mu, **given)
    sampler.free()
