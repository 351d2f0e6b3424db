"""`neurogen run` as a user meets it: what it prints where, what fails with which exit code, and the output file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_helpers import FIELDS, PROMPT, Invoke, lasting, lines, neurogen_command

import neurogen
from neurogen.cli.output import TextOutput
from neurogen.text.runner import Failure, TextDelta
from neurogen.text.runner import Result as Sequel

pytestmark = pytest.mark.usefixtures("registry")

# Output


def test_one_sequence_is_text_on_stdout_and_a_closing_line_on_stderr(run: Invoke) -> None:
    result = run("topk", "--prompt", PROMPT, "--seed", "7", "--top-k", "5")
    whole = lines(run("topk", "--prompt", PROMPT, "--seed", "7", "--top-k", "5", "--json").stdout)[0]
    assert result.exit_code == 0
    assert result.stdout == whole["text"] + "\n"
    assert result.stderr.startswith("topk(k=5, temperature=0.8) seed 7: 6 tokens in ")
    assert result.stderr.endswith(" tokens/s), finished by length\n")
    assert result.stderr.count("\n") == 1


def test_streamed_and_whole_texts_are_the_same(run: Invoke) -> None:
    several = ("topk", "--prompt", PROMPT, "-n", "3", "--seed", "7")
    assert run(*several, "--stream").stdout == run(*several, "--no-stream").stdout
    assert (
        run("topk", "--prompt", PROMPT, "--seed", "7").stdout == run(*several[:3], "--seed", "7", "--no-stream").stdout
    )


def test_json_has_one_object_a_sequence_with_all_fields(run: Invoke) -> None:
    result = run("topp", "--prompt", PROMPT, "-n", "2", "--seed", "7", "--json")
    found = lines(result.stdout)
    assert [list(item) for item in found] == [FIELDS, FIELDS]
    assert sorted((item["index"], item["sample"], item["seed"]) for item in found) == [(0, 0, 7), (0, 1, 8)]
    assert all(item["prompt"] == PROMPT and len(item["token_ids"]) == item["new_tokens"] == 6 for item in found)
    assert found[0]["params"] == {"p": 0.9, "temperature": 0.8}
    assert "topp(p=0.9, temperature=0.8) seed 7: 2 sequences, 12 tokens in " in result.stderr


def test_logprobs_are_there_when_asked_for(run: Invoke) -> None:
    (item,) = lines(run("greedy", "--prompt", PROMPT, "--logprobs", "2", "--json").stdout)
    assert list(item) == [*FIELDS, "logprobs"]
    assert len(item["logprobs"]) == 6
    assert all(len(entry["top"]) == 2 for entry in item["logprobs"])


def test_a_random_seed_is_shown_and_repeats_the_run(run: Invoke) -> None:
    first = run("topk", "--prompt", PROMPT)
    seed = first.stderr.split(" seed ")[1].split(":")[0]
    assert 0 <= int(seed) < 2**31
    assert run("topk", "--prompt", PROMPT, "--seed", seed).stdout == first.stdout
    assert run("topk", "--prompt", PROMPT).stderr.split(" seed ")[1].split(":")[0] != seed


def test_several_texts_come_in_order_with_an_empty_line_between(run: Invoke, prompts_file: Path) -> None:
    arguments = ("topk", "--prompts", str(prompts_file), "-n", "2", "--seed", "7", "--batch-size", "2")
    found = sorted(lines(run(*arguments, "--json").stdout), key=lambda item: (item["index"], item["sample"]))
    assert run(*arguments).stdout == "\n\n".join(item["text"] for item in found) + "\n"
    assert [(item["index"], item["seed"]) for item in found] == [(0, 7), (0, 8), (1, 90), (1, 91), (2, 11), (2, 12)]
    assert [item["params"]["k"] for item in found] == [50, 50, 1, 1, 50, 50]


def test_quiet_leaves_stderr_empty(run: Invoke) -> None:
    assert run("topk", "--prompt", PROMPT, "--quiet").stderr == ""


def test_standard_input_is_one_prompt(run: Invoke) -> None:
    found = lines(run("greedy", "--json", stdin="once upon\na time\n").stdout)
    assert [item["prompt"] for item in found] == ["once upon\na time"]
    assert run("greedy", stdin="").stderr.startswith("Error: The prompt is empty: there was no text on standard input.")
    assert run("greedy", stdin="").exit_code == 1


def test_prompts_may_come_from_standard_input(run: Invoke) -> None:
    result = run("greedy", "--prompts", "-", "--json", stdin=b'"once"\n\xff\n"upon"\n')
    assert [item["prompt"] for item in lines(result.stdout)] == ["once", "upon"]
    assert "standard input, line 2: not UTF-8: byte 0xff at offset 0." in result.stderr
    assert result.exit_code == 1


def test_a_stop_string_ends_the_text(run: Invoke, stories_dir: Path) -> None:
    result = run(
        "greedy", "--model", str(stories_dir), "--prompt", "Once upon a time, there was a little girl", "--stop", "She",
        "--stop", "zebra", "--max-new-tokens", "40",
    )  # fmt: skip
    assert result.stdout == " named Lily. \n"
    assert "finished by stop" in result.stderr


def finished(index: int, sample: int, text: str) -> Sequel:
    return Sequel(index, sample, "", text, [1], "greedy", {}, 0, "length", 1, 1, 1.0, 1.0)


def test_texts_that_finish_out_of_order_wait_and_the_first_in_line_streams(capsys: pytest.CaptureFixture[str]) -> None:
    output = TextOutput([(0, 0), (0, 1), (2, 0)], stream=True, terminal=False)
    output.delta(TextDelta(0, 1, "b"))
    output.delta(TextDelta(2, 0, "c"))
    output.result(finished(2, 0, "cc"))
    assert capsys.readouterr().out == ""
    output.delta(TextDelta(0, 0, "a"))
    assert capsys.readouterr().out == "a"
    output.result(finished(0, 0, "aa"))
    assert capsys.readouterr().out == "a\n\nb"
    output.result(finished(0, 1, "bb"))
    assert capsys.readouterr().out == "b\n\ncc\n"


def test_nobody_waits_for_a_prompt_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    output = TextOutput([(0, 0), (0, 1), (0, 2), (1, 0)], stream=True, terminal=False)
    output.delta(TextDelta(0, 0, "a"))
    output.delta(TextDelta(1, 0, "d"))
    output.failure(Failure(0, neurogen.DataError("no")))
    assert capsys.readouterr().out == "a\n\nd"
    output.result(finished(0, 2, "c"))  # its third sample did not fail
    output.result(finished(1, 0, "dd"))
    assert capsys.readouterr().out == "d\n\nc\n"


def test_closing_writes_what_waited_behind_a_sequence_that_was_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    output = TextOutput([(0, 0), (1, 0)], stream=False, terminal=False)
    output.result(finished(1, 0, "b"))
    output.close()
    assert capsys.readouterr().out == "b\n"


def test_a_model_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for terminal, shown in ((True, "a\\x1b[2J\\x9b\tb\n\n"), (False, "a\x1b[2J\x9b\tb\n\n")):
        TextOutput([(0, 0)], stream=False, terminal=terminal).result(finished(0, 0, "a\x1b[2J\x9b\tb\n"))
        assert capsys.readouterr().out == shown


# Failures


def test_broken_lines_are_named_and_do_not_lose_the_others(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'"once"\n{"prompt": 1}\n\n"upon' + b" a" * 100 + b'"\n{"prompt": "x", "params": {"p": 1}}\n"a time"\n'
    )
    result = run("topk", "--prompts", str(path), "--json")
    assert [item["prompt"] for item in lines(result.stdout)] == ["once", "a time"]
    errors = result.stderr.splitlines()
    assert errors[0] == f"{path}, line 2: 'prompt' must be a text, got 1."
    assert errors[1] == f"{path}, line 5: topk has no parameter 'p'; it has: k, temperature."
    assert errors[2].startswith(f"{path}, line 4: The prompt has ")
    assert errors[-1] == f"3 of 5 lines of {path} gave no result (2 not a prompt, 1 could not be run); see above."
    assert result.exit_code == 1


def test_texts_behind_a_prompt_that_fails_are_written_in_order(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'"once"\n{json.dumps("upon " * 99)}\n"a time"\n')
    for stream in ("--stream", "--no-stream"):
        result = run("greedy", "--prompts", str(path), stream)
        assert result.exit_code == 1
        assert len(result.stdout.rstrip("\n").split("\n\n")) == 2


@pytest.mark.usefixtures("no_model")
def test_lines_whose_own_seeds_do_not_fit_fail_before_the_model_is_loaded(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "once", "seed": {2**63 - 2}}}\n{{"prompt": "upon", "seed": {2**63 - 1}}}\n')
    result = run("greedy", "--prompts", str(path), "-n", "3", "--seed", str(2**63 - 1))
    assert (result.exit_code, result.stdout) == (1, "")
    first, second, summary = result.stderr.splitlines()
    assert first == (
        f"{path}, line 1: 'seed' is {2**63 - 2}, and the last of 3 samples would have {2**63}; the largest of 64 bits "
        f"is {2**63 - 1}. Give a smaller one."
    )
    assert second.startswith(f"{path}, line 2: 'seed' is {2**63 - 1}, and")
    assert summary == f"2 of 2 lines of {path} gave no result (2 could not be run); see above."


def test_a_line_whose_own_seed_does_not_fit_does_not_lose_the_others(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "once", "seed": {2**63 - 1}}}\n{{"prompt": "upon", "seed": {2**63 - 2}}}\n')
    assert run("greedy", "--prompts", str(path), "-n", "1").exit_code == 0
    for output in ([], ["--output", str(tmp_path / "r.jsonl")]):
        result = run("greedy", "--prompts", str(path), "-n", "2", "--json", *output)
        assert sorted(item["seed"] for item in lines(result.stdout)) == [2**63 - 2, 2**63 - 1]
        assert result.stderr.startswith(f"{path}, line 1: 'seed' is ")
        assert result.exit_code == 1


def test_a_file_of_broken_lines_alone_is_an_error(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("{}\n")
    result = run("topk", "--prompts", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: None of the lines of {path} holds a prompt" in result.stderr


@pytest.mark.parametrize("as_file", [True, False])
def test_a_prompt_that_is_too_long_is_an_error(run: Invoke, tmp_path: Path, as_file: bool) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps("upon " * 99) + "\n")
    source = ("--prompts", str(path)) if as_file else ("--prompt", "upon " * 99)
    result = run("topk", *source)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the context of" in result.stderr
    assert result.stderr.startswith(f"{path}, line 1: " if as_file else "Error: ")


def test_a_model_that_is_not_there_is_an_error_of_one_paragraph(run: Invoke) -> None:
    result = run("topk", "--prompt", PROMPT, "--model", "./absent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: There is no model './absent'")
    assert result.stderr.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("run", "--sampler", "topk", "--prompts", "absent.jsonl")
    assert "Traceback" not in neurogen_command(*wrong).stderr
    for arguments in (("--debug", *wrong), (*wrong, "--debug")):
        result = neurogen_command(*arguments)
        assert result.exit_code == 1
        assert "Traceback (most recent call last):" in result.stderr
        assert "Error: The prompts in absent.jsonl cannot be read" in result.stderr
    monkeypatch.setenv("NEUROGEN_DEBUG", "1")
    assert "Traceback" in neurogen_command(*wrong).stderr
    monkeypatch.setenv("NEUROGEN_DEBUG", "0")
    assert "Traceback" not in neurogen_command(*wrong).stderr


# The output file


def test_output_goes_to_the_file_and_stdout_stays_empty(run: Invoke, prompts_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    arguments = ("topk", "--prompts", str(prompts_file), "-n", "2", "--seed", "7")
    result = run(*arguments, "--output", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"; 6 results in {path}" in result.stderr
    written = lines(path.read_text())
    assert [list(item) for item in written] == [[*FIELDS, "run"]] * 6
    plain = {(item["index"], item["sample"]): lasting(item) for item in lines(run(*arguments, "--json").stdout)}
    for item in written:
        settings = item.pop("run")
        assert lasting(item) == plain[item["index"], item["sample"]]
        assert (settings["seed"], settings["n"], settings["plugin"]) == (7, 2, f"neurogen-topk {neurogen.__version__}")


def test_json_and_output_together_write_both(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    result = run("greedy", "--prompt", PROMPT, "--json", "--output", str(path))
    (written,) = lines(path.read_text())
    assert lines(result.stdout) == [{name: value for name, value in written.items() if name != "run"}]


def test_a_repeated_run_does_what_is_missing_with_the_seed_of_the_file(
    run: Invoke, prompts_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    arguments = ("topk", "--prompts", str(prompts_file), "-n", "2", "--output", str(path))
    assert run(*arguments).exit_code == 0
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:3]) + whole[4][:50])
    again = run(*arguments)
    assert again.exit_code == 0
    assert f"Going on with {path}: 3 of 6 results are there." in again.stderr
    assert path.read_text().splitlines(keepends=True)[:3] == whole[:3]
    key = str
    assert sorted((lasting(item) for item in lines(path.read_text())), key=key) == sorted(
        (lasting(item) for item in lines("".join(whole))), key=key
    )


def test_when_all_is_done_the_model_is_not_loaded(
    run: Invoke, prompts_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "r.jsonl"
    assert run("topk", "--prompts", str(prompts_file), "--output", str(path)).exit_code == 0
    before = path.read_bytes()
    request.getfixturevalue("no_model")
    result = run("topk", "--prompts", str(prompts_file), "--output", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{path} holds all 3 results already: there is nothing to do." in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (["--seed", "8"], "its seed is 7 and this run's is 8"),
        (["--seed", "7", "--top-k", "3"], "its k is 50 and this run's is 3"),
        (["--seed", "7", "-n", "2"], "its n is 1 and this run's is 2"),
        (["--seed", "7", "--stop", "x"], 'its stop is [] and this run\'s is ["x"]'),
        (["--seed", "7", "--max-new-tokens", "5"], "its max new tokens is 6 and this run's is 5"),
        (["--seed", "7", "--prompt", "other"], 'its prompt is "once upon a time" and this run\'s is "other"'),
    ],
)
def test_a_file_of_another_run_is_not_continued(
    run: Invoke, tmp_path: Path, changes: Sequence[str], difference: str
) -> None:
    path = tmp_path / "r.jsonl"
    assert run("topk", "--prompt", PROMPT, "--seed", "7", "--output", str(path)).exit_code == 0
    before = path.read_bytes()
    result = run("topk", "--prompt", PROMPT, "--output", str(path), *changes)
    assert (result.exit_code, result.stdout) == (1, "")
    assert difference in result.stderr
    assert path.read_bytes() == before


def test_a_run_that_fails_leaves_no_lock_and_can_be_repeated(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert run("topk", "--prompt", PROMPT, "--output", str(path), "--model", "./absent").exit_code == 1
    assert [item.name for item in tmp_path.iterdir()] == ["r.jsonl"]
    assert run("topk", "--prompt", PROMPT, "--output", str(path)).exit_code == 0
