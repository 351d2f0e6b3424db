"""The diagnosis: exact measures, what each sampler would have scored, and the verdicts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor

import neurogen
from neurogen import DataError, ModelError, ParameterError, reference
from neurogen.cli.diagnose import command
from neurogen.diagnose import Diagnosis, diagnose_logits, diagnose_model
from neurogen.diagnosis_input import SAMPLE_TEXT, load_logits, read_texts, windows
from neurogen.diagnosis_measures import MASS_KS, NUCLEUS_PS, SETTINGS, Measures, load_samplers, measure
from neurogen.diagnosis_verdict import percent, unigram_entropy, unigram_loss
from neurogen.diagnosis_weights import examine
from neurogen.models import LanguageModel, load_model

VOCAB = 32_000
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high. Lily asked her mom to help her. Her mom took the "
    "ball and gave it to Lily. Lily was very happy and said thank you. They played with the ball all day."
)
SCORES = [(setting.sampler, setting.params.get("temperature")) for setting in SETTINGS]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> LanguageModel:
    return load_model(str(tiny_model_dir), device="cpu")


def random_logits(dtype: torch.dtype = torch.float32, vocab: int = 137, rows: int = 24) -> tuple[Tensor, Tensor]:
    """Rows with ties, with -inf, flat and peaked ones, and targets among all tokens that can be drawn."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, vocab, generator=generator) * torch.linspace(0.01, 6, rows)[:, None]
    logits[::3] = logits[::3].round()
    logits[1, : vocab // 2] = -torch.inf
    logits[2] = 0.0
    targets = torch.randint(vocab // 2, vocab, (rows,), generator=generator)
    return logits.to(dtype), targets


def scores(diagnosis: Diagnosis) -> dict[tuple[str, float | None], float]:
    return dict(zip(SCORES, (score.accuracy for score in diagnosis.accuracies), strict=True))


def confident(targets: Tensor, chosen: Tensor, share: float, vocab: int = 50) -> Tensor:
    """Logits that give `chosen` the probability `share`, and all others the same of what is left."""
    probs = torch.full((len(targets), vocab), (1 - share) / (vocab - 1))
    probs[torch.arange(len(targets)), chosen] = share
    return probs.log()


def text_like(positions: int, vocab: int, seed: int = 0) -> Tensor:
    """Targets whose frequencies fall as those of words do."""
    chances = 1 / torch.arange(1.0, vocab + 1)
    return torch.multinomial(chances, positions, replacement=True, generator=torch.Generator().manual_seed(seed))


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
    monkeypatch.setattr("neurogen.diagnosis_measures.CHUNK_LOGITS", 5 * logits.shape[1])
    _assert_same(measure(logits, targets, load_samplers()), whole)


def test_the_logits_are_not_modified() -> None:
    logits, targets = random_logits()
    before = logits.clone()
    diagnose_logits(logits, targets)
    assert torch.equal(logits, before)


def _assert_same(measures: Measures, other: Measures, rel: float = 1e-12) -> None:
    for name in Measures.__dataclass_fields__:
        np.testing.assert_allclose(getattr(measures, name), getattr(other, name), rtol=rel, err_msg=name)


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


# What is refused


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (
            torch.zeros(3),
            torch.zeros(3, dtype=torch.int64),
            r"shape \[N, vocab\] with N >= 1 and vocab >= 2, got \[3\]",
        ),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), r"got \[0, 5\]"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), r"got \[3, 1\]"),
        (torch.zeros(3, 5).double(), torch.zeros(3, dtype=torch.int64), "float32, float16, bfloat16, got float64"),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int32), "targets must be int64, got int32"),
        (torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64), r"the shape \[3\], got \[4\]"),
        (torch.zeros(3, 5), torch.tensor([0, -100, 5]), r"ids in 0 .. 4, but 2 are not: row 1 \(id -100\), 2 \(id 5\)"),
    ],
)
def test_logits_and_targets_that_do_not_fit_are_refused(
    logits: Tensor, targets: Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=message):
        diagnose_logits(logits, targets)
    path = tmp_path / "l.safetensors"
    save_file({"logits": logits, "targets": targets}, path)
    with pytest.raises(DataError, match=message):
        load_logits(path)


def test_inputs_must_fit_the_targets() -> None:
    logits, targets = random_logits()
    with pytest.raises(ParameterError, match="inputs must be int64"):
        diagnose_logits(logits, targets, inputs=targets[:3])


def test_a_file_without_the_two_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    save_file({"weights": torch.zeros(2), "targets": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=r"has no logits; its tensors are: targets, weights\. Save `logits`"):
        load_logits(path)
    path.write_bytes(b"nonsense, and long enough to hold a header")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        load_logits(path)
    with pytest.raises(DataError, match="There is no file"):
        load_logits(tmp_path / "absent")


def test_logits_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    logits, targets = random_logits(torch.bfloat16)
    save_file({"logits": logits, "targets": targets}, tmp_path / "l.safetensors")
    read, of_file = load_logits(tmp_path / "l.safetensors")
    assert torch.equal(read, logits)
    assert torch.equal(of_file, targets)


# Text


class Letters:
    """A tokenizer of one id a letter, with a start-of-sequence id."""

    def encode(self, text: str) -> list[int]:
        return [0, *map(ord, text)]


def test_windows_make_every_token_a_target_once() -> None:
    pieces = windows(["abcdefg", "", "xy"], Letters(), context=3, max_tokens=100)  # type: ignore[arg-type]
    assert [(piece.document, "".join(map(chr, piece.ids[1:]))) for piece in pieces] == [
        (0, "abc"),
        (0, "def"),
        (0, "g"),
        (2, "xy"),
    ]
    assert [chr(piece.ids[0]) for piece in pieces] == ["\0", "c", "f", "\0"]


def test_windows_stop_at_the_limit_and_read_no_further() -> None:
    def texts() -> Iterator[str]:
        yield "abcdefg"
        pytest.fail("read too far")

    pieces = windows(texts(), Letters(), context=3, max_tokens=5)  # type: ignore[arg-type]
    assert ["".join(map(chr, piece.ids[1:])) for piece in pieces] == ["abc", "de"]


def test_text_without_two_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="no text has two tokens"):
        windows([""], Letters(), context=3, max_tokens=5)  # type: ignore[arg-type]


def test_prompts_are_read_as_texts_whatever_their_settings(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('"one"\n{"prompt": "two", "params": {"k": 3, "nonsense": 1}, "seed": "x"}\n{"text": "three"}\n7\n')
    texts, broken = read_texts(str(path))
    assert texts == ["one", "two", "three"]
    assert [str(line) for line in broken] == [f"{path}, line 4: a line must be a JSON object or string, got 7"]
    path.write_text("[]\n")
    with pytest.raises(DataError, match=r"There is no text in .*line 1: a line must be"):
        read_texts(str(path))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_texts(str(tmp_path / "absent"))


# Models


def test_a_models_logits_are_measured_at_every_position(tiny: LanguageModel) -> None:
    text = "once upon a time there was a little girl named lily"
    diagnosis = diagnose_model(tiny, [text])
    ids = torch.tensor(tiny.tokenizer.encode(text))
    with torch.inference_mode():
        logits = tiny.model(input_ids=ids[None, :-1]).logits[0]
    direct = diagnose_logits(logits, ids[1:], inputs=ids[:-1], positions=torch.arange(len(ids) - 1))
    _assert_same(diagnosis.measures, direct.measures, rel=1e-6)


def test_batches_and_padding_change_nothing(tiny: LanguageModel) -> None:
    texts = [SAMPLE_TEXT[:90], "she loved", SAMPLE_TEXT[200:500]]
    alone = diagnose_model(tiny, texts, context=20, batch_size=1)
    together = diagnose_model(tiny, texts, context=20, batch_size=5)
    assert len(alone.measures) == sum(len(tiny.tokenizer.encode(text)) - 1 for text in texts)
    assert alone.measures.positions.max() == 19
    names = ("loss", "entropy", "top1", "high", "sampled")
    for name in names:
        np.testing.assert_allclose(getattr(together.measures, name), getattr(alone.measures, name), atol=1e-5)
    np.testing.assert_array_equal(together.measures.targets, alone.measures.targets)


def test_a_new_model_is_flat_on_the_built_in_text(tiny: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    diagnosis = diagnose_model(tiny, max_tokens=300, batch_size=2, progress=lambda *numbers: told.append(numbers))
    assert diagnosis.verdict == "flat"
    assert len(diagnosis.measures) == 300
    assert [done for done, _ in told] == [128, 256, 300]
    assert {total for _, total in told} == {300}
    assert [token.text for token in diagnosis.document[:3]] == ["<s>", " ", "T"]
    assert [token.position for token in diagnosis.document] == [None, *range(300)]
    assert {tensor.status for tensor in diagnosis.weights or ()} == {"ok"}


def test_a_model_with_large_last_weights_is_saturated(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(2000)  # type: ignore[no-untyped-call]
    diagnosis = diagnose_model(model, max_tokens=200)
    assert diagnosis.verdict == "saturated"
    assert "1 of 21 weight tensors looks exploded: lm_head.weight" in " ".join(diagnosis.reasons)


def test_a_nan_weight_is_broken_and_named(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    with torch.no_grad():
        model.model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = torch.nan
    diagnosis = diagnose_model(model, ["once upon a time"])
    assert diagnosis.verdict == "broken"
    assert "positions 0, 1, 2" in diagnosis.reasons[0]
    assert diagnosis.reasons[1] == "1 weight is NaN or infinite, in model.layers.1.mlp.up_proj.weight."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 65}, r"context must be an integer in \[1, 64\], what .* can take, got 65"),
        ({"context": 0}, "context must be"),
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_numbers_outside_their_domain_are_refused(tiny: LanguageModel, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        diagnose_model(tiny, **arguments)  # type: ignore[arg-type]


def test_a_real_model_is_healthy_on_a_story(stories_dir: Path) -> None:
    diagnosis = diagnose_model(load_model(str(stories_dir), device="cpu"), [STORY])
    assert diagnosis.verdict == "healthy"
    found = scores(diagnosis)
    assert found["greedy", None] > 0.7
    assert found["greedy", None] - found["topk", 1.0] > 0.05
    assert found["topk", 1.0] < found["topk", 0.8] < found["greedy", None]


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


# The command


@pytest.fixture
def diagnose(tiny_model_dir: Path) -> Callable[..., Result]:
    """The command; `tiny` among its arguments is the tiny model's folder."""

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        given = [str(tiny_model_dir) if argument == "tiny" else argument for argument in arguments]
        result = CliRunner().invoke(command, given, input=stdin, standalone_mode=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def logits_file(tmp_path: Path) -> Path:
    targets = text_like(400, 50)
    path = tmp_path / "l.safetensors"
    save_file({"logits": confident(targets, (targets + 1) % 50, 0.99), "targets": targets}, path)
    return path


def test_the_command_prints_verdict_table_and_steps(diagnose: Callable[..., Result]) -> None:
    result = diagnose("--model", "tiny", "--max-tokens", "300")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].endswith(": flat")
    rows = [line.split() for line in lines]
    at = rows.index(["SAMPLER", "TEMPERATURE", "ACCURACY", "+/-", "(ONE", "DRAWING)", "NEVER", "RIGHT", "USE"])
    assert [row[:2] for row in rows[at + 1 : at + 6]] == [
        ["greedy", "-"],
        ["topk(k=50)", "1.0"],
        ["topp(p=0.9)", "1.0"],
        ["topk(k=50)", "0.8"],
        ["topp(p=0.9)", "0.8"],
    ]
    assert "Weights: 21 tensors, none of them dead, exploded or not finite" in lines
    assert "What to do" in lines
    assert "\x1b" not in result.stdout


def test_json_is_one_object_with_everything(diagnose: Callable[..., Result], logits_file: Path) -> None:
    result = diagnose("--logits", str(logits_file), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["verdict"], found["positions"], found["vocab_size"]) == ("saturated", 400, 50)
    assert [item["sampler"] for item in found["samplers"]] == ["greedy", "topk", "topp", "topk", "topp"]
    assert found["samplers"][1]["params"] == {"k": 50, "temperature": 1.0}
    assert found["measures"]["top1_probability"]["mean"] == pytest.approx(0.99)
    assert found["measures"]["nucleus_size_0.9"]["max"] == 1
    assert found["loss"]["uniform"] == pytest.approx(math.log(50))
    assert found["weights"] is None


def test_a_page_is_written_beside_the_output(
    diagnose: Callable[..., Result], logits_file: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    result = diagnose("--logits", str(logits_file), "--json", "--html", str(page))
    assert json.loads(result.stdout)["verdict"] == "saturated"
    assert result.stderr == f"The page with charts is in {page}.\n"
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["l.safetensors", "page.html"]
    assert diagnose("--logits", str(logits_file), "--html", str(page), "--quiet").stderr == ""


def test_texts_come_from_prompts_or_data(diagnose: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "once upon a time"}\n{"nothing": 1}\n{"text": "the red ball"}\n')
    by_prompts = diagnose("--model", "tiny", "--prompts", str(path), "--json")
    by_stdin = diagnose("--model", "tiny", "--prompts", "-", "--json", stdin=path.read_text())
    by_data = diagnose("--model", "tiny", "--data", str(path), "--json")
    assert json.loads(by_prompts.stdout) == json.loads(by_stdin.stdout) == json.loads(by_data.stdout)
    assert f"{path}, line 2: there is neither 'prompt' nor 'text'" in by_prompts.stderr
    assert f"{path}, line 2: " in by_data.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --model NAME, or --logits FILE.safetensors"),
        (["--model", "tiny", "--logits", "x"], "--model belongs to --model; with --logits nothing is run"),
        (["--logits", "x", "--max-tokens", "5"], "--max-tokens belongs to --model"),
        (["--logits", "x", "--data", "y"], "--data belongs to --model"),
        (["--model", "tiny", "--prompts", "x", "--data", "y"], "either --prompts or --data, not both"),
        (["--model", "tiny", "--max-tokens", "0"], "it must be an integer >= 1, got '0'"),
        (["--model", "tiny", "--device", "gpu"], "it must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_usage_ends_with_2(diagnose: Callable[..., Result], arguments: list[str], message: str) -> None:
    result = diagnose(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--model", "./absent"], ModelError, "There is no model './absent'"),
        (["--model", "./absent", "--prompts", "absent.jsonl"], DataError, "prompts in absent.jsonl cannot be read"),
        (["--logits", "absent"], DataError, "There is no file absent"),
        (["--logits", "absent", "--html", "no/folder/x.html"], DataError, "there is no folder .*no/folder"),
        (["--logits", "absent", "--html", "."], DataError, "it is a folder"),
        (["--model", "tiny", "--context", "65"], ParameterError, r"in \[1, 64\]"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_ours(
    diagnose: Callable[..., Result], arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        diagnose(*arguments)


def test_the_verdict_is_no_exit_code(diagnose: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    save_file({"logits": torch.full((3, 9), torch.nan), "targets": torch.zeros(3, dtype=torch.int64)}, path)
    result = diagnose("--logits", str(path))
    assert result.exit_code == 0
    assert f"{path}: broken" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numba", "transformers", "rich", "numpy", "safetensors")
    code = (
        "import sys\nfrom neurogen.cli.diagnose import command\n"
        "try: command(['--help'], prog_name='neurogen diagnose')\n"
        f"except SystemExit as stop: assert not stop.code\nprint([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
