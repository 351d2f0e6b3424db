"""Hints: what is asked for without effect, or otherwise than it was meant, is told once and stops nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Invoke, lines, neurogen_command

import neurogen
from neurogen import ParameterError
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.text.best_of import score_of
from neurogen.text.near_misses import advice_for
from neurogen.text.prompts import parse_lines
from neurogen.text.runner import Prompt, Runner, RunOptions


def hinted(*objects: dict[str, Any], sampler: str = "topk") -> list[str]:
    told: list[str] = []
    data = [json.dumps({"prompt": "x", **one}).encode() for one in objects]
    prompts, broken = parse_lines(data, neurogen.load_sampler(sampler), "p.jsonl", told=told.append)
    assert (len(prompts), broken) == (len(objects), [])
    return told


def test_a_field_that_looks_like_an_option_is_told_of_once_a_file() -> None:
    assert hinted({"temperature": 0.1}, {"temperature": 0.2, "id": 3}, {"max_tokens": 4}) == [
        'p.jsonl: the field \'temperature\' of 2 lines has no effect. Write "params": {"temperature": ...}.',
        "p.jsonl: the field 'max_tokens' of 1 line has no effect. Write \"max_new_tokens\".",
    ]


def test_fields_of_a_data_set_are_no_matter() -> None:
    fields = ("id", "meta", "source", "url", "label", "answer", "reference", "references", "title", "date", "steps")
    assert hinted(dict.fromkeys(fields, 1), {"seed": 1, "stop": "a", "stop_ids": [3], "processors": ""}) == []
    assert hinted({"temperature": None}) == []


@pytest.mark.parametrize(
    ("field", "advice"),
    [
        ("max_length", '"max_new_tokens"'),
        ("n_predict", '"max_new_tokens"'),
        ("maxNewTokens", '"max_new_tokens"'),
        ("max-new-tokens", '"max_new_tokens"'),
        ("Seed", '"seed"'),
        ("stop_sequences", '"stop"'),
        ("stop_token_ids", '"stop_ids"'),
        ("max_new_token", '"max_new_tokens"'),
        ("parms", '"params"'),
        ("processor", '"processors"'),
        ("top_k", '"params": {"k": ...}'),
        ("k", '"params": {"k": ...}'),
        ("temprature", '"params": {"temperature": ...}'),
        ("n", "-n on the command line, for the whole run"),
        ("num_beams", "--beams on the command line, for the whole run"),
        ("repetition_penalty", '"processors": a text such as repetition-penalty(penalty=1.2)'),
    ],
)
def test_what_to_write_instead(field: str, advice: str) -> None:
    assert advice_for(field, neurogen.load_sampler("topk")) == advice


def test_a_parameter_of_other_samplers_and_a_conversation_are_told_of() -> None:
    topk = neurogen.load_sampler("topk")
    assert "topk has no such parameter (it has: k, temperature)" in str(advice_for("top_p", topk))
    for field in ("system", "messages", "message"):
        assert "what the user says" in str(advice_for(field, topk))
    for example in ("repetition_penalty", "presence_penalty", "logit_bias", "min_tokens", "bad_words", "grammar",
                    "no_repeat_ngram_size", "dry_multiplier"):  # fmt: skip
        spec = str(advice_for(example, topk)).partition("such as ")[2]
        assert neurogen.load_processors(spec)


def test_the_command_hints_once_and_goes_on(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "the", "max_tokens": 2}\n{"prompt": "a", "max_tokens": 2, "stop": ["\\\\n"]}\n')
    outcome = run("greedy", "--prompts", str(path), "-n", "2", "--json")
    assert outcome.exit_code == 0
    assert len(lines(outcome.stdout)) == 4
    told = outcome.stderr
    assert told.count("max_tokens") == 1
    assert told.count("The 2 samples of a prompt are all the same: greedy() draws nothing.") == 1
    assert told.count("holds a backslash and the letter n, which is no line break") == 1
    assert "draws nothing" not in run("greedy", "--prompt", "the").stderr
    assert "draws nothing" in run("topk", "--temperature", "0", "--best-of", "2", "--prompt", "the").stderr
    assert run("topk", "-n", "2", "--prompt", "the", "--stop", "\n", "--quiet").stderr == ""


def test_the_hints_of_a_runner(tiny: LanguageModel) -> None:
    greedy, drawing = neurogen.load_sampler("greedy"), neurogen.load_sampler("topk")
    assert Runner(tiny, drawing, n=3, stop=("\n",)).hints == []
    same, stop = Runner(tiny, greedy, n=3, stop=(r"a\n",)).hints
    assert same.startswith("The 3 samples of a prompt are all the same")
    assert stop.startswith(r"The stop string 'a\\n' holds a backslash and the letter n")
    (special,) = Runner(tiny, greedy, stop=("</s>\n",)).hints
    assert "special token '</s>'" in special


# Stops at tokens


def test_a_stop_that_spells_a_special_token_ends_at_it(tiny: LanguageModel) -> None:
    """The tiny model's start of sequence, which it is not ended by otherwise."""
    bos = tiny.tokenizer.bos_id
    assert bos is not None
    assert bos not in tiny.eos_ids
    processors = neurogen.load_processors(f'allowed-tokens(tokens="300, 301, {bos}", end=false)')
    plain = Runner(tiny, neurogen.load_sampler("temperature"), n=8, seed=1, max_new_tokens=8, processors=processors)
    assert any(bos in one.token_ids for one in plain.generate("the"))
    for options in ({"stop": ("<s>",)}, {"stop_ids": (bos,)}):
        ended_by = Runner(
            tiny, plain.sampler, n=8, seed=1, max_new_tokens=8, logprobs=0, processors=processors, **options
        )
        for before, one in zip(plain.generate("the"), ended_by.generate("the"), strict=True):
            cut = before.token_ids.index(bos) if bos in before.token_ids else len(before.token_ids)
            assert one.token_ids == before.token_ids[:cut]
            ended = cut < len(before.token_ids)
            assert one.finish_reason == ("stop" if ended else "length")
            assert (one.end_logprob is not None) == ended
            assert score_of(one) < 0


def test_stop_ids_of_prompts_options_and_the_command(run: Invoke, tiny: LanguageModel, tmp_path: Path) -> None:
    first, second, *_ = lines(run("greedy", "--prompt", "the", "--json").stdout)[0]["token_ids"]
    (result,) = lines(run("greedy", "--prompt", "the", "--json", "--stop-id", str(second), "--stop-id", "5").stdout)
    assert result["finish_reason"] == "stop"
    assert result["token_ids"] == [first][: [first, second].index(second)]
    path, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps({"prompt": "the", "stop_ids": second}) + "\n" + '"the"\n')
    own, whole = lines(run("greedy", "--prompts", str(path), "--json", "--batch-size", "1").stdout)
    assert own["token_ids"] == result["token_ids"]
    assert len(whole["token_ids"]) == 6
    assert run("greedy", "--prompt", "the", "--output", str(out), "--stop-id", str(second)).exit_code == 0
    assert run("greedy", "--prompt", "the", "--output", str(out), "--stop-id", str(second)).exit_code == 0
    assert "stop ids" in run("greedy", "--prompt", "the", "--output", str(out)).stderr
    refused = run("greedy", "--prompt", "the", "--stop-id", "320")
    assert refused.exit_code == 1
    assert "stop_ids must be in [0, 319]" in refused.stderr
    with pytest.raises(ParameterError, match="stop_ids must be a list of integers >= 0"):
        RunOptions(stop_ids=(-1,))
    assert Prompt(0, "x").stop_ids is None


# What fits


def test_unset_means_what_fits_the_context(tiny: LanguageModel) -> None:
    """The tiny model's context holds 64 tokens."""
    greedy = neurogen.load_sampler("greedy")
    (short,) = Runner(tiny, greedy, stop_ids=(319,)).generate("the")
    assert short.max_new_tokens == 64 - short.prompt_tokens
    assert short.to_json()["max_new_tokens"] == short.max_new_tokens
    (few,) = Runner(tiny, greedy, default_new_tokens=3).generate("the")
    assert (few.new_tokens, few.max_new_tokens) == (3, 3)
    (given,) = Runner(tiny, greedy, max_new_tokens=3).generate("the")
    assert given.max_new_tokens is None
    with pytest.raises(ParameterError, match="hold"):
        Runner(tiny, greedy, max_new_tokens=64).generate("the")
    with pytest.raises(ParameterError, match=r"there is no room for any\. Shorten the prompt"):
        Runner(tiny, greedy).generate("red ball " * 60)


@pytest.mark.parametrize("command", ["run", "explain", "compare"])
def test_a_long_prompt_is_continued_as_far_as_it_fits(command: str) -> None:
    """Of `starter`, whose context holds 256 tokens."""
    count = 253
    text = "Once upon a time" + ", and then" * 200
    model = load_model("starter")
    text = model.tokenizer.decode(model.tokenizer.encode(text)[: count - 1])
    tokens = len(model.tokenizer.encode(text))
    assert 245 < tokens < 256
    samplers = ("-s", "greedy", "-s", "topk", "-n", "1") if command == "compare" else ("-s", "greedy")
    outcome = neurogen_command(command, *samplers, "--prompt", text, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    if command == "run":
        assert found["max_new_tokens"] == 256 - tokens
    refused = neurogen_command(command, *samplers, "--prompt", text, "--json", "--max-new-tokens", "12")
    assert refused.exit_code == 1
    assert "256" in refused.stderr


def test_a_results_file_of_the_old_default_is_gone_on_with(run: Invoke, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    fixed = ("run", "-s", "topk", "--model", str(tiny_model_dir), "--prompt", "the", "-n", "2", "--seed", "1")
    assert neurogen_command(*fixed, "--output", str(out)).exit_code == 0
    one, two = lines(out.read_text())
    assert one["run"]["max_new_tokens"] == 128  # as it was written when 128 were the default
    assert one["max_new_tokens"] == 64 - one["prompt_tokens"]
    del one["max_new_tokens"]
    out.write_text(json.dumps(one) + "\n")
    assert neurogen_command(*fixed, "--output", str(out)).exit_code == 0
    assert [line["token_ids"] for line in lines(out.read_text())] == [one["token_ids"], two["token_ids"]]


@pytest.mark.parametrize(
    ("stop", "told"),
    [
        ("<|endoftext|>", "this model has none of that name, so it will hardly come. The tokens that end this model's"),
        ("<end_of_turn>", "this model has none of that name"),
        ("<0x0A>", "spells the byte 0A as some tokenizers do; a text holds the byte itself. Give the character '\\n'"),
        ("\u2581the", "holds U+2581, which stands for a space"),
    ],
)
def test_a_stop_spelled_as_tokens_are_is_told_of(tiny: LanguageModel, stop: str, told: str) -> None:
    (hint,) = Runner(tiny, neurogen.load_sampler("topk"), stop=(stop,)).hints
    assert told in hint


@pytest.mark.parametrize("stop", ["</s>", "<s>", "<br>", "</div>", "[1]", "<|", "|>", "a<b>c"])
def test_a_stop_that_can_come_is_not(tiny: LanguageModel, stop: str) -> None:
    assert Runner(tiny, neurogen.load_sampler("topk"), stop=(stop,)).hints == []


def test_a_parameter_of_another_sampler_is_named_with_its_owners() -> None:
    def told(spec: str) -> str:
        with pytest.raises(ParameterError) as caught:
            neurogen.load_sampler(spec)
        return str(caught.value)

    for spec, owner in (("topk(p=0.9)", "topp"), ("topk(top_p=0.9)", "topp"), ("topp(k=5)", "topk")):
        assert "Did you mean" not in told(spec)
        assert f"is a parameter of: {owner}" in re.sub(r"of: .*?\b(topp|topk)(?=[,.])", r"of: \1", told(spec))
    assert told("topk(top_k=3)").endswith("Did you mean 'k'?")
    assert told("topk(nonsense=3)").endswith("it has: k, temperature.")


def test_a_line_that_ends_with_a_question_ends_with_no_full_stop(run: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "params": {"temprature": 1}}\n"b"\n', "utf-8")
    told = run("topk", "--prompts", str(file)).stderr
    assert "Did you mean 'temperature'?\n" in told
