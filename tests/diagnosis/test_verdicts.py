"""The diagnosis of logits and weights: exact measures, what each sampler would have scored, and the verdicts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diagnosis_helpers import SCORES, _assert_same, confident, random_logits, scores, text_like
from torch import Tensor

import neurogen
from neurogen import reference
from neurogen.diagnosis.accuracies import SETTINGS, load_samplers
from neurogen.diagnosis.diagnose import diagnose_logits
from neurogen.diagnosis.measures import MASS_KS, NUCLEUS_PS, measure, unigram_entropy, unigram_loss
from neurogen.diagnosis.verdict import percent
from neurogen.diagnosis.weights import examine

VOCAB = 32_000


# Measures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_measures_are_those_of_a_plain_float64_computation(dtype: torch.dtype) -> None:
    logits, targets = random_logits(dtype)
    measures = measure(logits, targets, load_samplers())
    for index, (row, target) in enumerate(zip(logits.double().numpy(), targets.tolist(), strict=True)):
        probs = reference.probs(row, reference.topk_support(row, 0))
        drawable = probs[probs > 0]
        order = reference.order(row)
        finite = row[np.isfinite(row)]
        first, second = np.sort(row)[-2:][::-1]
        expected = {
            "loss": -np.log(probs[target]),
            "rank": 1 + order.tolist().index(target),
            "entropy": -(drawable * np.log(drawable)).sum(),
            "top1": probs.max(),
            "margin": first - second,
            "low": finite.min(),
            "high": finite.max(),
            "std": finite.std(),
        }
        for name, value in expected.items():
            assert getattr(measures, name)[index] == pytest.approx(value, rel=1e-11, abs=1e-13), name
        assert measures.mass[index] == pytest.approx([probs[order[:k]].sum() for k in MASS_KS], rel=1e-11)
        assert measures.greedy[index] == reference.argmax(row)
        assert measures.non_finite[index].tolist() == [0, 0, (row == -np.inf).sum()]


@pytest.mark.parametrize("vocab", [137, 3000])  # 3,000: flat rows need more than the part that is sorted first
def test_nucleus_size_is_that_of_the_reference(vocab: int) -> None:
    logits, targets = random_logits(vocab=vocab)
    measures = measure(logits, targets, load_samplers())
    sure = 0
    for index, row in enumerate(logits.double().numpy()):
        for column, p in enumerate(NUCLEUS_PS):
            if reference.nucleus_margin(row, p) > 1e-12:
                assert measures.nucleus[index, column] == reference.topp_support(row, p).sum()
                sure += 1
    assert sure > 2.5 * len(logits)
    assert measures.nucleus.max() > vocab / 2


def test_a_nucleus_that_reaches_p_exactly_takes_no_more() -> None:
    measures = measure(torch.zeros(1, 4), torch.tensor([0]), load_samplers())
    assert NUCLEUS_PS[:2] == (0.5, 0.9)
    assert measures.nucleus[0, :2].tolist() == [2, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_samplers_chance_is_the_references_probability_of_the_target(dtype: torch.dtype) -> None:
    logits, targets = random_logits(dtype)
    measures = measure(logits, targets, load_samplers())
    for index, (row, target) in enumerate(zip(logits.double().numpy(), targets.tolist(), strict=True)):
        for column, setting in enumerate(SETTINGS):
            temperature = setting.params.get("temperature", 0)
            if setting.sampler == "topp" and reference.nucleus_margin(row, 0.9, temperature) < 1e-6:
                continue
            support = {
                "greedy": lambda row, _: reference.greedy_support(row),
                "topk": lambda row, temperature: reference.topk_support(row, 50, temperature),
                "topp": lambda row, temperature: reference.topp_support(row, 0.9, temperature),
            }[setting.sampler](row, temperature)
            expected = reference.probs(row, support, temperature)[target]
            assert measures.sampled[index, column] == pytest.approx(expected, abs=1e-6)


def test_the_expected_accuracy_and_its_spread_are_what_drawing_gives() -> None:
    logits, targets = random_logits(rows=40)
    logits *= 0.3
    diagnosis = diagnose_logits(logits, targets)
    assert SCORES[1] == ("topk", 1.0)
    score = diagnosis.accuracies[1]
    sampler = neurogen.load_sampler("topk", k=50, temperature=1.0)
    draws = 2000
    seeds = torch.arange(draws * 40).view(draws, 40)  # rows that share a seed and a position share their number
    hits = np.array([(sampler.sample(logits, seed=seed) == targets).double().mean() for seed in seeds])
    assert hits.mean() == pytest.approx(score.accuracy, abs=4 * score.deviation / math.sqrt(draws))
    assert hits.std() == pytest.approx(score.deviation, rel=0.08)


def test_a_fair_coin_scatters_by_half_the_root_of_its_throws() -> None:
    score = diagnose_logits(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)).accuracies[1]
    assert (score.accuracy, score.never) == (0.5, 0)
    assert score.deviation == pytest.approx(0.5 / math.sqrt(4))


def test_means_are_taken_over_positions() -> None:
    logits = torch.arange(8.0, 0, -1).repeat(4, 1)
    health = diagnose_logits(logits, torch.tensor([0, 4, 5, 0])).health  # ranks 1, 5, 6, 1
    assert (health.positions, health.accuracy, health.top5_accuracy) == (4, 0.5, 0.75)


def test_confidence_is_compared_with_accuracy_bin_by_bin() -> None:
    targets = text_like(40, 50)
    right = torch.arange(40) % 2 == 0
    sure = confident(targets[:20], targets[:20], 0.65)
    unsure = confident(targets[20:], torch.where(right[20:], targets[20:], (targets[20:] + 1) % 50), 0.35)
    diagnosis = diagnose_logits(torch.cat([sure, unsure]), targets)
    assert [value for row in diagnosis.confidence() for value in row] == pytest.approx([20, 0.35, 0.5, 20, 0.65, 1])
    assert diagnosis.calibration_error() == pytest.approx((0.15 + 0.35) / 2)


def test_the_number_of_rows_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = random_logits()
    logits[5] = torch.nan
    whole = measure(logits, targets, load_samplers())
    monkeypatch.setattr("neurogen.diagnosis.measures.CHUNK_LOGITS", 5 * logits.shape[1])
    _assert_same(measure(logits, targets, load_samplers()), whole)


def test_the_logits_are_not_modified() -> None:
    logits, targets = random_logits()
    before = logits.clone()
    diagnose_logits(logits, targets)
    assert torch.equal(logits, before)


# The two failures that look alike where accuracy is sampled


def test_flat_logits_are_told_with_their_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(150, VOCAB, generator=generator) * 0.02
    targets = torch.randint(0, VOCAB, (150,), generator=generator)
    targets[0] = logits[0].argmax()
    diagnosis = diagnose_logits(logits, targets)
    assert diagnosis.verdict == "flat"
    found = scores(diagnosis)
    assert found["greedy", None] == pytest.approx(1 / 150)
    assert 1e-5 < found["topk", 1.0] < 2e-4
    assert found["topp", 1.0] == pytest.approx(1 / VOCAB, rel=0.15)
    text = " ".join(diagnosis.reasons)
    assert "The entropy is 100.0% of that of a uniform guess over 32,000 tokens" in text
    assert re.search(r"the right one 0\.0031\d? %; a uniform guess gives each of 32,000 tokens 0\.00313 %", text)
    assert "topk(k=50) cannot draw the right token at 99." in text


def test_one_wrong_token_at_99_8_percent_is_told_with_its_numbers() -> None:
    targets = torch.randint(0, VOCAB, (150,), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(150)
    probs = torch.full((150, VOCAB), 0.001 / (VOCAB - 2))
    probs[rows, (targets + 1) % VOCAB] = 0.998
    probs[rows, targets] = 0.001
    diagnosis = diagnose_logits(probs.log(), targets)
    assert diagnosis.verdict == "saturated"
    found = scores(diagnosis)
    assert found["greedy", None] == 0
    assert found["topk", 1.0] == pytest.approx(0.001 / (0.999 + 48 * 0.001 / VOCAB), rel=1e-3)
    assert found["topk", 0.8] == pytest.approx((0.001 / 0.998) ** 1.25, rel=1e-2)  # 0.018 %: sharper, so worse
    assert (found["topp", 1.0], found["topp", 0.8]) == (0, 0)
    assert [score.never for score in diagnosis.accuracies] == [1, 0, 1, 0, 1]
    text = " ".join(diagnosis.reasons)
    assert "The top token holds 99.8% on average and is right at 0.0% of positions" in text
    assert "The right token holds 0.1 % on average (0.1 % in the median) and stands at rank 2" in text
    assert "greedy reports 0 %; drawn at temperature 1.0, topk(k=50) 0.1 % and topp(p=0.9) 0 % on average" in text
    assert "topp(p=0.9) cannot draw the right token at 100 % of positions" in text
    assert any("shifted" in step for step in diagnosis.next_steps)


# Verdicts


def test_a_model_that_only_knows_frequencies_is_undertrained() -> None:
    vocab = 300
    targets = text_like(3000, vocab)
    frequencies = torch.bincount(text_like(100_000, vocab, seed=1), minlength=vocab) + 0.5
    diagnosis = diagnose_logits(frequencies.log().expand(3000, vocab).float(), targets)
    assert diagnosis.verdict == "undertrained"
    assert f"not clearly below the {diagnosis.unigram_loss:.2f} nats of a unigram model" in diagnosis.reasons[0]
    assert "At 100 % of positions the top token is the same, id 0" in " ".join(diagnosis.reasons)


def test_a_model_that_knows_more_than_frequencies_is_healthy() -> None:
    vocab = 300
    targets = text_like(3000, vocab)
    frequencies = torch.bincount(targets, minlength=vocab) + 0.5
    logits = frequencies.log().repeat(3000, 1).float()
    logits[torch.arange(3000), targets] += 1.0
    diagnosis = diagnose_logits(logits, targets)
    assert diagnosis.verdict == "healthy"
    assert f"The loss of {diagnosis.health.loss:.2f} nats is below the {diagnosis.unigram_loss:.2f}" in " ".join(
        diagnosis.reasons
    )


def test_greedy_says_more_than_sampling_of_a_healthy_model() -> None:
    targets = text_like(2000, 50)
    guesses = torch.where(torch.arange(2000) % 10 < 7, targets, (targets + 1) % 50)
    diagnosis = diagnose_logits(confident(targets, guesses, 0.6), targets)
    assert diagnosis.verdict == "healthy"
    found = scores(diagnosis)
    assert found["greedy", None] == pytest.approx(0.7)
    assert found["topk", 1.0] == pytest.approx(0.7 * 0.6 + 0.3 * 0.4 / 49, abs=1e-6)


def test_a_model_far_worse_than_a_uniform_guess_has_diverged() -> None:
    targets = torch.arange(400) % 50
    logits = torch.zeros(400, 50)
    logits[torch.arange(400), targets] = -60.0
    assert diagnose_logits(logits, targets).verdict == "diverged"


def test_rows_without_a_distribution_are_broken_and_named() -> None:
    logits, targets = random_logits()
    logits[3, 7], logits[9, 0], logits[17] = torch.nan, torch.inf, -torch.inf
    diagnosis = diagnose_logits(logits, targets)
    assert diagnosis.verdict == "broken"
    assert diagnosis.reasons[0].endswith("(1 logits are NaN, 1 +inf, 137 -inf): rows 3, 9, 17.")
    kept = [index for index in range(len(targets)) if index not in (3, 9, 17)]
    rest = diagnose_logits(logits[kept], targets[kept])
    assert scores(diagnosis) == pytest.approx(scores(rest))
    assert diagnosis.health.loss == pytest.approx(rest.health.loss)
    assert diagnosis.to_json()["invalid_positions"] == {"count": 3, "first": [3, 9, 17]}


def test_nothing_but_nan_is_broken_without_numbers() -> None:
    diagnosis = diagnose_logits(torch.full((20, 40), torch.nan), torch.zeros(20, dtype=torch.int64))
    assert diagnosis.verdict == "broken"
    assert "20 of 20 rows" in diagnosis.reasons[0]
    assert "and 12 more" in diagnosis.reasons[0]
    assert diagnosis.accuracies == ()
    assert diagnosis.to_json()["loss"]["mean"] is None


def test_a_target_that_is_masked_out_is_broken() -> None:
    logits, targets = random_logits()
    logits[4, targets[4]] = -torch.inf
    diagnosis = diagnose_logits(logits, targets)
    assert diagnosis.verdict == "broken"
    assert "the logit -inf, so that the loss is infinite: row 4." in diagnosis.reasons[0]
    json.dumps(diagnosis.to_json(), allow_nan=False)


def test_a_model_that_copies_its_input_is_told_so() -> None:
    inputs, targets = text_like(500, 50, seed=1), text_like(500, 50)
    logits = confident(targets, inputs, 0.99)
    known = diagnose_logits(logits, targets, inputs=inputs)
    assert known.verdict == "saturated"
    assert "At 100 % of positions the top token is the one just read" in " ".join(known.reasons)
    assert "just read" not in " ".join(diagnose_logits(logits, targets).reasons)
    flat = diagnose_logits(logits * 0.01, targets, inputs=inputs)  # as a new model with tied embeddings does
    assert flat.verdict == "flat"
    assert "just read" not in " ".join(flat.reasons)


def test_few_positions_are_told() -> None:
    targets = text_like(250, 50)
    logits = confident(targets, targets, 0.5)
    assert diagnose_logits(logits[:7], targets[:7]).reasons[-1].startswith("Only 7 rows measured")
    assert "Only" not in diagnose_logits(logits, targets).reasons[-1]


def test_unigram_loss_sees_the_other_targets_only() -> None:
    # Counts 2 and 1 of 3: a third is new. Token 0: 2/3 * 1/2 + 1/3 / 20 = 0.35; token 1: 2/3 * 0 + 1/3 / 20.
    expected = -(2 * math.log(0.35) + math.log(1 / 60)) / 3
    assert unigram_loss(np.array([0, 0, 1]), 20) == pytest.approx(expected)
    assert unigram_entropy(np.array([0, 0, 1])) == pytest.approx(-(2 / 3 * math.log(2 / 3) + math.log(1 / 3) / 3))
    assert unigram_loss(np.arange(5), 20) == pytest.approx(math.log(20))  # all new: a uniform guess
    assert unigram_loss(np.array([3]), 20) == pytest.approx(math.log(20))
    assert unigram_loss(np.zeros(9, np.int64), 20) == 0


def test_unigram_loss_of_a_long_text_is_its_entropy() -> None:
    targets = text_like(200_000, 100).numpy()
    assert unigram_loss(targets, 100) == pytest.approx(unigram_entropy(targets), abs=1e-3)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.998, "99.8 %"), (1, "100 %"), (0, "0 %"), (1 / 32000, "0.00313 %"), (2e-9, "< 0.0001 %"), (math.nan, "-")],
)
def test_percentages_have_three_digits(share: float, text: str) -> None:
    assert percent(share) == text


# Weights


def layers(change: Callable[[dict[str, Tensor]], None]) -> dict[str, SimpleNamespace]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"model.layers.{i}.mlp.weight": torch.randn(8, 16, generator=generator) * 0.1 for i in range(5)}
    tensors |= {f"model.layers.{i}.mlp.bias": torch.zeros(8) for i in range(5)}
    tensors["lm_head.weight"] = torch.randn(8, 16, generator=generator) * 0.1
    change(tensors)
    return {tensor.name: tensor for tensor in examine(tensors.items())}  # type: ignore[misc]


def test_usual_weights_and_zero_biases_are_fine() -> None:
    found = layers(lambda tensors: None)
    assert {tensor.status for tensor in found.values()} == {"ok"}
    expected = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).double() * 0.1
    assert found["model.layers.0.mlp.weight"].rms == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "factor", "status", "reason"),
    [
        ("model.layers.2.mlp.weight", 0, "dead", "all about zero"),
        ("model.layers.2.mlp.weight", 1e-4, "dead", "that of its peers"),
        ("model.layers.2.mlp.weight", 12, "exploded", "that of its peers"),
        ("model.layers.2.mlp.weight", 7, "ok", ""),
        ("lm_head.weight", 1000, "exploded", "-fold"),
        ("lm_head.weight", 12, "ok", ""),
    ],
)
def test_weights_that_stand_out_are_named(name: str, factor: float, status: str, reason: str) -> None:
    found = layers(lambda tensors: tensors[name].mul_(factor))
    assert found[name].status == status
    assert reason in found[name].reason
    assert {tensor.status for other, tensor in found.items() if other != name} == {"ok"}


def test_weights_that_are_not_finite_are_counted_beside_the_rms_of_the_rest() -> None:
    values = torch.tensor([3.0, torch.nan, -3.0, torch.inf])
    (found,) = examine([("w", values)])
    assert (found.status, found.non_finite, found.rms) == ("non-finite", 2, pytest.approx(3.0))
