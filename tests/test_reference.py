"""The reference itself: cases whose result is worked out by hand, and properties that define each function."""

import numpy as np
import pytest

from neurogen import reference

INF = np.inf


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def of_probabilities(*values: float) -> np.ndarray:
    """Logits whose softmax is `values`, in float64."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(values, dtype=np.float64))


def ids(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def random_rows(count: int = 200) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        x = rng.normal(size=int(rng.integers(1, 40))) * 3
        x = np.round(x) if number % 2 else x
        x[rng.random(len(x)) < 0.2] = -INF
        x[rng.integers(len(x))] = 1.0
        rows.append(x.astype(np.float32))
    return rows


@pytest.mark.parametrize(
    ("logits", "valid"),
    [
        (row(1, 2), True),
        (row(1, -INF), True),
        (row(-INF, -INF), False),
        (row(1, INF), False),
        (row(1, np.nan), False),
        (row(-INF, np.nan), False),
        (row(np.finfo(np.float32).max), True),
    ],
)
def test_a_row_is_valid_without_nan_and_inf_and_with_something_left(logits: np.ndarray, valid: bool) -> None:
    assert bool(reference.is_valid(logits)) is valid


def test_order_is_by_logit_descending_then_id_ascending() -> None:
    assert reference.order(row(1, 3, -INF, 3, 2, 1)).tolist() == [1, 3, 4, 0, 5, 2]


def test_signed_zeros_are_equal() -> None:
    assert reference.order(row(-0.0, 0.0, -0.0)).tolist() == [0, 1, 2]
    assert reference.argmax(row(-0.0, 0.0)) == 0


def test_argmax_is_the_lowest_id_among_equals() -> None:
    assert reference.argmax(row(-5, 2, 2, 1)) == 1


def test_weights_divide_the_distance_to_the_top_by_the_temperature() -> None:
    # (0 - ln 4) / 2 = -ln 2
    np.testing.assert_allclose(reference.weights(np.array([np.log(4.0), 0.0, -INF]), 2.0), [1, 0.5, 0], rtol=1e-15)


def test_weights_at_temperature_zero_are_one_hot_at_the_argmax() -> None:
    assert reference.weights(row(3, 7, 7), 0).tolist() == [0, 1, 0]


def test_weights_neither_overflow_nor_warn() -> None:
    largest = np.finfo(np.float32).max
    assert reference.weights(row(largest, -largest), 1e-300).tolist() == [1, 0]
    assert reference.weights(row(largest, -largest, -INF), 1e300).tolist() == [1, 1, 0]


def test_drawable_leaves_out_minus_infinity_and_at_zero_all_but_the_argmax() -> None:
    logits = row(1, -INF, 2, 2)
    assert ids(reference.drawable(logits, 1.0)) == [0, 2, 3]
    assert ids(reference.drawable(logits, 0)) == [2]
    assert ids(reference.greedy_support(logits)) == [2]


@pytest.mark.parametrize(
    ("k", "kept"),
    [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 3, 4, 5]), (9, [0, 1, 3, 4, 5])],
)
def test_topk_keeps_exactly_k_of_those_above_minus_infinity(k: int, kept: list[int]) -> None:
    assert ids(reference.topk_support(row(1, 3, -INF, 3, 2, 1), k)) == kept


def test_topk_with_k_zero_keeps_all_and_temperature_zero_the_argmax() -> None:
    logits = row(1, 3, -INF, 3)
    assert ids(reference.topk_support(logits, 0)) == [0, 1, 3]
    assert ids(reference.topk_support(logits, 3, temperature=0)) == [1]
    assert ids(reference.topk_support(logits, 0, temperature=0)) == [1]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (1e-9, [2]),
        (0.39, [2]),
        (0.41, [0, 2]),  # 0.4 < 0.41: the crossing token is kept
        (0.69, [0, 2]),
        (0.71, [0, 2, 3]),  # 0.4 + 0.3 = 0.7 < 0.71
        (0.91, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_topp_keeps_the_smallest_prefix_that_reaches_p(p: float, kept: list[int]) -> None:
    assert ids(reference.topp_support(of_probabilities(0.3, 0.1, 0.4, 0.2), p)) == kept


def test_topp_stops_where_p_is_reached_exactly() -> None:
    # Four equal weights sum to 0.25, 0.5, ... exactly; of equals the lowest ids are kept.
    assert ids(reference.topp_support(row(1, 1, 1, 1), 0.5)) == [0, 1]


def test_topp_is_measured_at_the_temperature() -> None:
    # At temperature 1/2 the probabilities 0.4 0.3 0.2 0.1 become 16 9 4 1 of 30: 25/30 = 0.83 reaches 0.8, 0.7 did not.
    logits = of_probabilities(0.4, 0.3, 0.2, 0.1)
    assert ids(reference.topp_support(logits, 0.8)) == [0, 1, 2]
    assert ids(reference.topp_support(logits, 0.8, 0.5)) == [0, 1]
    assert ids(reference.topp_support(logits, 0.8, 0)) == [0]


def test_topp_one_keeps_what_has_no_weight_left() -> None:
    assert ids(reference.topp_support(row(0, -5000, -INF), 1.0)) == [0, 1]


def test_margin_is_the_distance_from_p_to_the_nearest_step() -> None:
    # Steps at 0.4, 0.7, 0.9, 1.0.
    logits = of_probabilities(0.3, 0.1, 0.4, 0.2)
    assert reference.nucleus_margin(logits, 0.72) == pytest.approx(0.02)
    assert reference.nucleus_margin(logits, 0.68) == pytest.approx(0.02)
    assert reference.nucleus_margin(logits, 0.1) == pytest.approx(0.3)
    assert reference.nucleus_margin(logits, 0.9) == pytest.approx(0, abs=1e-12)


def test_probs_renormalise_over_the_support() -> None:
    support = np.array([True, False, True, False])
    np.testing.assert_allclose(
        reference.probs(of_probabilities(0.3, 0.1, 0.4, 0.2), support), [3 / 7, 0, 4 / 7, 0], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("u", "token"),
    [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1 - 2.0**-53, 4)],
)
def test_draw_takes_the_first_id_whose_cumulative_probability_exceeds_u(u: float, token: int) -> None:
    assert reference.draw(np.array([0, 0.25, 0, 0.5, 0.25, 0]), u) == token


def test_draw_never_leaves_the_support_by_rounding() -> None:
    tenths = np.append(np.full(10, 0.1), 0.0)  # sums to 0.9999999999999999
    assert reference.draw(tenths, 1 - 2.0**-53) == 9
    assert reference.draw(tenths, 1.0) == 9


def test_supports_grow_with_k_and_are_prefixes_of_the_order() -> None:
    for logits in random_rows():
        last = np.zeros(len(logits), dtype=bool)
        for k in range(1, len(logits) + 2):
            kept = reference.topk_support(logits, k)
            assert kept.sum() == min(k, np.isfinite(logits).sum())
            assert (last <= kept).all()
            assert set(ids(kept)) == set(reference.order(logits)[: kept.sum()].tolist())
            last = kept
        np.testing.assert_array_equal(last, reference.topk_support(logits, 0))


def test_nuclei_reach_p_and_no_shorter_prefix_does() -> None:
    for logits in random_rows():
        for p, temperature in [(0.05, 1.0), (0.5, 0.7), (0.9, 1.0), (0.999, 2.0)]:
            if reference.nucleus_margin(logits, p, temperature) < 1e-9:
                continue
            kept = reference.topp_support(logits, p, temperature)
            prefix = reference.order(logits)[: kept.sum()]
            assert set(ids(kept)) == set(prefix.tolist())
            share = reference.probs(logits, reference.drawable(logits, temperature), temperature)
            assert share[prefix].sum() >= p > share[prefix[:-1]].sum()


def test_probs_sum_to_one_on_their_support_alone() -> None:
    for logits in random_rows():
        kept = reference.topk_support(logits, 5)
        probabilities = reference.probs(logits, kept, 0.8)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_array_equal(probabilities > 0, kept)


def test_draws_at_evenly_spread_numbers_count_out_the_probabilities() -> None:
    probabilities = np.array([0.1, 0.0, 0.6, 0.3])
    drawn = np.bincount([reference.draw(probabilities, (i + 0.5) / 1000) for i in range(1000)], minlength=4)
    assert drawn.tolist() == [100, 0, 600, 300]
