"""Samplers side by side: what is measured is what the texts are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import neurogen
from neurogen.cli.program import main
from neurogen.diagnosis.compare import METRICS, Comparison, compare, sweep
from neurogen.diagnosis.text_metrics import distinct, is_right, repeated, self_bleu
from neurogen.errors import ParameterError
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.pages.compare import fragment, page
from neurogen.text.runner import Prompt, Runner

TEXTS = ("Once upon a time", "The dog", "A little girl")


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", dtype="float32")


@pytest.fixture(scope="module")
def comparison(starter: LanguageModel) -> Comparison:
    samplers = [neurogen.load_sampler(spec) for spec in ("greedy", "topk(k=50, temperature=1.2)")]
    prompts = [Prompt(index, text) for index, text in enumerate(TEXTS)]
    return compare(starter, samplers, prompts, n=3, max_new_tokens=20, seed=4, references=[["girl"], [], ["zebra"]])


# Measures of texts, by hand.


def test_distinct_counts_over_all_samples_of_a_prompt() -> None:
    assert distinct([[1, 2, 1], [2, 3]], 1) == (3, 5)
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == (2, 4)  # 12 21 12, 12
    assert distinct([[1]], 2) == (0, 0)


def test_repetition_counts_runs_seen_before_in_the_same_text() -> None:
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == (1, 5)
    assert repeated([7] * 10) == (6, 7)
    assert repeated([1, 2, 3]) == (0, 0)


def test_self_bleu_is_100_for_equal_texts_and_0_for_texts_without_a_common_word() -> None:
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(100)
    assert self_bleu(["the cat sat on the mat", "dogs like bones very much"]) == pytest.approx(0, abs=5)
    assert self_bleu(["alone"]) is None


@pytest.mark.parametrize(
    ("text", "references", "right"),
    [
        ("It is Paris.", ["paris"], True),
        ("It is Parisian.", ["Paris"], False),
        ("the answer is: New   York!", ["new york"], True),
        ("Zürich", ["zürich"], True),
        ("no", ["yes", "no"], True),
        ("no", [], False),
    ],
)
def test_a_reference_is_found_as_whole_words(text: str, references: list[str], right: bool) -> None:
    assert is_right(text, references) == right


# A comparison.


def test_texts_are_those_of_a_run_with_the_same_seeds(starter: LanguageModel, comparison: Comparison) -> None:
    runner = Runner(starter, neurogen.load_sampler("topk(k=50, temperature=1.2)"), n=3, max_new_tokens=20, seed=4)
    expected = [result.token_ids for result in runner.generate(*TEXTS)]
    assert [sample.token_ids for sample in comparison.outcomes[1].samples] == expected


def test_sums_are_those_of_the_models_own_distribution(starter: LanguageModel, comparison: Comparison) -> None:
    sample = comparison.outcomes[1].samples[4]
    prompt = starter.tokenizer.encode(TEXTS[sample.index])
    ids = torch.tensor([prompt + sample.token_ids])
    with torch.inference_mode():
        logits = starter.model(ids).logits[0, len(prompt) - 1 : -1].float()
    logs = torch.log_softmax(logits[:, : starter.tokenizer.vocab_size], -1)
    chosen = torch.tensor(sample.token_ids)
    if sample.tokens == len(sample.token_ids):  # ended by its length, so no end of sequence is counted
        assert sample.loss == pytest.approx(-float(logs.gather(1, chosen[:, None]).sum()), rel=1e-3)
        assert sample.entropy == pytest.approx(float(-(logs.exp() * logs).nan_to_num().sum()), rel=1e-3)
        assert sample.agreed == int((logs.argmax(-1) == chosen).sum())
    else:
        pytest.fail("choose another sample: this one ended early")


def test_greedy_agrees_with_itself_and_says_the_same_every_time(comparison: Comparison) -> None:
    measures = comparison.outcomes[0].measures
    assert measures["agreement"].value == 1.0
    assert measures["self_bleu"].value == pytest.approx(100)
    assert measures["distinct_2"].value <= 1 / 3 + 1e-9
    assert comparison.outcomes[1].measures["self_bleu"].value < 80
    assert comparison.outcomes[1].measures["perplexity"].value > measures["perplexity"].value


def test_perplexity_is_over_all_tokens(comparison: Comparison) -> None:
    samples = comparison.outcomes[1].samples
    expected = math.exp(sum(one.loss for one in samples) / sum(one.tokens for one in samples))
    assert comparison.outcomes[1].measures["perplexity"].value == pytest.approx(expected)


def test_accuracy_counts_prompts_with_references_only(comparison: Comparison) -> None:
    samples = comparison.outcomes[0].samples
    right = sum("girl" in one.text for one in samples if one.index == 0)
    assert comparison.outcomes[0].measures["accuracy"].value == pytest.approx(right / 6)


def test_intervals_hold_their_values(comparison: Comparison) -> None:
    for outcome in comparison.outcomes:
        for estimate in outcome.measures.values():
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9


def test_one_prompt_has_no_intervals_and_one_sample_no_self_bleu(starter: LanguageModel) -> None:
    measures = (
        compare(starter, [neurogen.load_sampler("greedy")], [Prompt(0, "The")], max_new_tokens=6).outcomes[0].measures
    )
    assert measures["perplexity"].low is None
    assert not {"self_bleu", "accuracy"} & measures.keys()


def test_nothing_to_compare_is_refused(starter: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="nothing to compare"):
        compare(starter, [], [Prompt(0, "The")])


def test_json_and_page_hold_everything(comparison: Comparison) -> None:
    values = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert values["outcomes"][1]["label"] == "topk(k=50, temperature=1.2)"
    assert set(values["outcomes"][1]["measures"]) == set(METRICS)
    text = page(comparison)
    assert text.count("<svg") == 7
    assert "<script" not in text
    assert fragment(comparison).startswith("<style>")


def test_what_a_model_writes_is_escaped(comparison: Comparison) -> None:
    from dataclasses import replace

    nasty = "<script>alert(1)</script>"
    outcome = comparison.outcomes[0]
    other = replace(outcome, label=nasty, samples=[replace(outcome.samples[0], text=nasty)])
    assert "<script>" not in page(Comparison("m", [nasty], comparison.options, [other]))


# Sweeps.


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("topp.p=0.5:0.7:0.1", ["topp(p=0.5)", "topp(p=0.6)", "topp(p=0.7)"]),
        ("topk.k=10:30:10", ["topk(k=10)", "topk(k=20)", "topk(k=30)"]),
        ("topk(k=5)+topp.p=0.9:0.9:1", ["topk(k=5)+topp(p=0.9)"]),
        ("topp(temperature=1).p=0.5:0.6:0.1", ["topp(temperature=1, p=0.5)", "topp(temperature=1, p=0.6)"]),
        ("topp.p=1:0.5:-0.5", ["topp(p=1.0)", "topp(p=0.5)"]),
    ],
)
def test_a_sweep_is_a_spec_for_every_value(text: str, specs: list[str]) -> None:
    assert sweep(text) == specs


@pytest.mark.parametrize(
    "text",
    [
        "",
        "topp",
        "topp.p",
        "topp.p=0.5",
        "topp=1:2:1",
        "topp.p=1:0:0.1",
        "topp.p=0:1:0",
        "t.p=0:1:1e-9",
        "t.p=a:b:c",
        "t.p=nan:1:1",
    ],
)
def test_what_is_no_sweep_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="is no sweep"):
        sweep(text)


# The command.


def run(*arguments: str, **others: Any) -> Any:
    return CliRunner().invoke(
        main, ["compare", "--seed", "1", "--max-new-tokens", "6", "-n", "2", *arguments], **others
    )


def test_the_command_prints_a_table_texts_and_writes_a_page(tmp_path: Path) -> None:
    outcome = run("-s", "greedy", "--sweep", "topp.p=0.5:1:0.5", "--html", str(tmp_path / "c.html"))
    assert outcome.exit_code == 0, outcome.output
    for label in ("greedy", "topp(p=0.5, temperature=0.8)", "topp(p=1.0, temperature=0.8)"):
        assert outcome.stdout.count(f"{label} ") == 2
    assert "PERPLEXITY" in outcome.stdout
    assert (tmp_path / "c.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_prompts_may_have_references_and_broken_lines_are_told(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "Once upon a time there was a", "reference": "girl"}\nbroken\n{"text": "The"}\n')
    outcome = run("-s", "greedy", "-s", "topk", "--prompts", str(file), "--json")
    assert outcome.exit_code == 0, outcome.output
    assert "line 2: not JSON" in outcome.stderr
    assert "accuracy" in json.loads(outcome.stdout)["outcomes"][0]["measures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "greedy"], "Give --sampler SPEC at least twice"),
        (["-s", "greedy", "-s", "tpok"], "There is no sampler 'tpok'"),
        (["-s", "greedy", "-s", "topk", "--prompt", "a", "--prompts", "b"], "not both"),
        (["-s", "greedy", "-s", "topk", "--prompts", "/absent"], "/absent cannot be read: No such file"),
        (["-s", "greedy", "-s", "topk", "--html", "/absent/x.html"], "there is no folder /absent"),
        (["--sweep", "topp"], "is no sweep"),
    ],
)
def test_what_is_wrong_is_refused_in_one_paragraph(arguments: list[str], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code in (1, 2)
    assert message in outcome.stderr
