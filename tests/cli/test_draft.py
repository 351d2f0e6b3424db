"""`neurogen run --draft`: what it prints, what it refuses, and how results files know it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import neurogen_command

RUN = ("run", "--sampler", "greedy", "--model", "starter", "--device", "cpu", "--seed", "1", "--max-new-tokens", "12")
PROMPT = ("--prompt", "Once upon a time")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_draft_changes_no_greedy_text_and_the_closing_line_says_how_it_has_done() -> None:
    plain, drafted = neurogen_command(*RUN, *PROMPT), neurogen_command(*RUN, *PROMPT, "--draft", "starter")
    assert (plain.exit_code, drafted.exit_code) == (0, 0)
    assert drafted.stdout == plain.stdout
    # 12 tokens: one behind the prompt, two rounds of five, and one for which nothing is drafted.
    assert "; 100% of the drafted tokens accepted, 3.67 tokens a pass of the model" in drafted.stderr
    assert "drafted" not in plain.stderr


def test_one_token_needs_no_draft_and_is_told_without_a_rate() -> None:
    one = neurogen_command(*RUN, *PROMPT, "--max-new-tokens", "1", "--draft", "starter")
    assert one.exit_code == 0
    assert "; no token was drafted" in one.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--draft-tokens", "3"), "--draft-tokens says how far a draft runs ahead: add --draft MODEL"),
        (("--draft", "starter", "--draft-tokens", "0"), "'--draft-tokens': it must be an integer >= 1, got '0'"),
        (("--draft", " "), "--draft must not be empty"),
        (("--draft", "starter", "--record", "x"), "--record does not go with --draft"),
        (("--draft", "starter", "--engine", "vllm"), "--draft does not go with --engine vllm"),
        (("--draft", "starter", "--beams", "2"), "--beams does not go with --draft"),
        (("--draft", "starter", "--processor", "repetition-penalty(penalty=1.2)"), "--draft takes no processors, got"),
        (("--draft", "starter", "--sampler", "mirostat"), "samplers without memory, and 'mirostat' has one"),
    ],
)
def test_what_does_not_go_with_a_draft_is_refused(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurogen.cli.run.check_engine", lambda values, ctx: None)  # whether vLLM is here or not
    result = neurogen_command(*RUN, *PROMPT, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_draft_that_does_not_fit_is_refused_in_words(tiny_model_dir: Path) -> None:
    result = neurogen_command(*RUN, *PROMPT, "--draft", str(tiny_model_dir))
    assert result.exit_code == 1
    assert "has another vocabulary than the model 'starter': it has 320 tokens, not 2,048." in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_is_continued_with_the_draft_that_began_it_alone(tmp_path: Path) -> None:
    prompts, output, plain = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    prompts.write_text('"Tom"\n"One day"\n', encoding="utf-8")
    run = (*RUN, "--prompts", str(prompts), "--output")
    with_draft = ("--draft", "starter", "--draft-tokens", "2")
    assert neurogen_command(*run, str(output), *with_draft).exit_code == 0
    assert [line["run"]["draft"] for line in lines_of(output)] == [{"model": "starter", "tokens": 2}] * 2
    whole = output.read_bytes()
    output.write_bytes(whole.splitlines(keepends=True)[0])
    for other in ((), ("--draft", "starter")):
        refused = neurogen_command(*run, str(output), *other)
        assert refused.exit_code == 1
        assert re.search(
            r"line 1 does not belong to this run, its (draft|tokens) is .* and this run's is", refused.stderr
        )
    assert neurogen_command(*run, str(output), *with_draft).exit_code == 0
    assert [line["token_ids"] for line in lines_of(output)] == [
        json.loads(line)["token_ids"] for line in whole.splitlines()
    ]

    assert neurogen_command(*run, str(plain)).exit_code == 0
    assert all("draft" not in line["run"] for line in lines_of(plain))
    assert "there is nothing to do" in neurogen_command(*run, str(plain)).stderr
    assert neurogen_command(*run, str(plain), *with_draft).exit_code == 1


def test_a_line_that_asks_for_processors_fails_and_the_others_do_not(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    asking = {"prompt": "Tom", "processors": "repetition-penalty(penalty=1.2)"}
    prompts.write_text(f'"Tom"\n{json.dumps(asking)}\n', encoding="utf-8")
    result = neurogen_command(*RUN, "--prompts", str(prompts), "--json", "--draft", "starter")
    assert result.exit_code == 1
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0]
    assert "line 2: Speculative decoding takes no processors" in result.stderr
