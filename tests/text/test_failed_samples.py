"""One sequence that cannot go on takes none beside it along: in a run, best of several, a file, a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import lines, neurogen_command

import neurogen
from neurogen import ParameterError
from neurogen.contract.processor import History, Processor
from neurogen.decoding.engine import engine_for
from neurogen.diagnosis.compare import compare
from neurogen.diagnosis.explain import explain_answer
from neurogen.diagnosis.recording import Recorder, read_recording
from neurogen.diagnosis.replay import replay
from neurogen.models.language_model import LanguageModel
from neurogen.text.best_of import BestOf
from neurogen.text.conversation import Conversation
from neurogen.text.runner import Failure, Prompt, Result, Runner, RunOptions


class DeadEnd(Processor):
    """Refuses the sequences whose first new token is odd, at a call."""

    name = "dead-end"
    api_version = 1
    call = "process"

    def _refuse(self, call: str, history: History) -> None:
        if self.call == call and history.new_tokens >= 1 and history.ids[history.prompt_tokens] % 2:
            raise ParameterError("there is no way on")

    def process(self, logits: Any, history: History, memory: Any) -> None:
        self._refuse("process", history)

    def accept(self, token_id: int, history: History, memory: Any) -> None:
        self._refuse("accept", history)


class DeadEndAfter(DeadEnd):
    call = "accept"


def is_odd(result: Result) -> bool:
    """Whether the dead end is on its way; an empty text has ended before."""
    return bool(result.token_ids) and result.token_ids[0] % 2 == 1


def parted(events: Any) -> tuple[list[Result], list[Failure]]:
    everything = list(events)
    return [e for e in everything if isinstance(e, Result)], [e for e in everything if isinstance(e, Failure)]


def runner(model: LanguageModel, **options: Any) -> Runner:
    return Runner(model, neurogen.load_sampler("temperature"), max_new_tokens=4, seed=3, **options)


@pytest.mark.parametrize("kind", [DeadEnd, DeadEndAfter])
def test_the_other_samples_of_the_only_prompt_are_given(tiny: LanguageModel, kind: type[Processor]) -> None:
    free = {one.sample: one for one in runner(tiny, n=8).generate("the")}
    odd = {sample for sample, one in free.items() if is_odd(one)}
    assert 0 < len(odd) < 8
    results, failures = parted(runner(tiny, n=8, processors=[kind()]).run([Prompt(0, "the")]))
    assert {one.sample for one in failures} == odd
    assert all(isinstance(one.error, ParameterError) for one in failures)
    assert {one.sample: one.token_ids for one in results} == {i: free[i].token_ids for i in free if i not in odd}


def test_generate_says_what_went_well(tiny: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="no way on") as caught:
        runner(tiny, n=8, processors=[DeadEnd()]).generate("the")
    done = [one.sample for one in caught.value.results]
    assert 0 < len(done) < 8
    assert done == sorted(done)


def test_a_sample_fails_where_all_its_candidates_do(tiny: LanguageModel) -> None:
    sampler = neurogen.load_sampler("temperature")
    free = runner(tiny, n=24).generate("the")
    odd = list(map(is_odd, free))
    options = RunOptions(n=12, max_new_tokens=4, seed=3, processors=[DeadEnd()])
    results, failures = parted(BestOf(tiny, sampler, options, candidates=2).run([Prompt(0, "the")]))
    pairs = [sum(odd[2 * i : 2 * i + 2]) for i in range(12)]
    assert {0, 1, 2} <= set(pairs)
    assert [one.sample for one in failures] == [i for i, bad in enumerate(pairs) if bad == 2]
    for one in results:
        told = [] if pairs[one.sample] == 0 else ["1 of 2 candidates could not be finished and were left out: "]
        assert [notice.partition("there is")[0] for notice in one.notices or []] == told
    alone = RunOptions(max_new_tokens=4, seed=3 + 2 * pairs.index(2), processors=[DeadEnd()])
    with pytest.raises(ParameterError, match="no way on"):
        list(BestOf(tiny, sampler, alone, candidates=2).run([Prompt(0, "the")]))


def test_a_comparison_goes_on_without_a_text(tiny: LanguageModel) -> None:
    samplers = [neurogen.load_sampler("greedy"), neurogen.load_sampler("temperature")]
    found = compare(tiny, samplers, [Prompt(0, "the"), Prompt(1, "red")], n=4, max_new_tokens=4, processors=[DeadEnd()],
                    references=[["x"], ["y"]])  # fmt: skip
    for outcome in found.outcomes:
        failed = {(index, sample) for index, sample, _ in outcome.failures}
        there = {(one.index, one.sample) for one in outcome.samples}
        assert failed | there == {(i, j) for i in (0, 1) for j in range(4)}
    assert any(one.failures for one in found.outcomes)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_failed_answer_leaves_the_one_before(tiny: LanguageModel) -> None:
    talk = Conversation(tiny, neurogen.load_sampler("greedy"), RunOptions(max_new_tokens=4))
    list(talk.say("the"))
    before = list(talk.messages)
    end = tiny.tokenizer.encode(before[0].content + before[1].content)

    class Fails(Processor):
        name = "fails"
        api_version = 1

        def process(self, logits: Any, history: History, memory: Any) -> None:
            if history.new_tokens == 2:
                raise ParameterError("there is no way on")

    assert end
    talk.options = RunOptions(max_new_tokens=4, processors=[Fails()])
    for turn in (talk.retry, lambda: talk.say("red")):
        with pytest.raises(ParameterError, match="no way on"):
            list(turn())
        assert talk.messages == before
    assert explain_answer(talk).result.text == before[1].content


def test_a_recording_with_a_failed_sample_is_replayed(tiny: LanguageModel, tmp_path: Path) -> None:
    sampler, options = neurogen.load_sampler("temperature"), RunOptions(n=8, max_new_tokens=4, seed=3)
    path, prompt = tmp_path / "run.jsonl", Prompt(0, "the", processors='grammar(regex="(a|b|c)x?[0-9]{9}")')
    recorder = Recorder(path, tiny, sampler, options, [prompt])
    engine = engine_for(tiny, sampler, observer=recorder)
    parted(Runner(tiny, sampler, options, engine=engine).run(iter([prompt])))
    recorder.close(complete=True)
    report = replay(read_recording(path), lambda name: tiny)
    assert report.same, report.reason()


# The command

DEAD_END = ("--regex", "[a-m]|[n-z]0", "--ban-texts", "'0'")
"""Whose first letter is one of the later ones has nothing to go on with."""


def run(model: Path, *arguments: str) -> Any:
    fixed = ("run", "-s", "temperature", "--model", str(model), "--seed", "3", "--max-new-tokens", "4", *DEAD_END)
    return neurogen_command(*fixed, *arguments)


def test_the_command_gives_the_others_tells_the_error_and_goes_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    outcome = run(tiny_model_dir, "--prompt", "the", "-n", "8", "--json")
    assert outcome.exit_code == 1
    given = lines(outcome.stdout)
    assert 0 < len(given) < 8
    assert all(one["text"] in "abcdefghijklm" for one in given)
    assert f"{8 - len(given)} of 8 samples gave no result" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    texts = run(tiny_model_dir, "--prompt", "the", "-n", "8")
    assert texts.exit_code == 1
    assert texts.stdout.split() == [one["text"] for one in sorted(given, key=lambda one: one["sample"])]
    out = tmp_path / "out.jsonl"
    assert run(tiny_model_dir, "--prompt", "the", "-n", "8", "--output", str(out)).exit_code == 1
    written = lines(out.read_text())
    out.write_text("".join(out.read_text().splitlines(keepends=True)[1:]))
    assert run(tiny_model_dir, "--prompt", "the", "-n", "8", "--output", str(out)).exit_code == 1
    again = lines(out.read_text())
    assert {one["sample"]: one["text"] for one in again} == {one["sample"]: one["text"] for one in written}
    assert len(again) == len(written) == len(given)


def test_the_count_of_failed_lines_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from neurogen.cli.session import Session

    class Of:
        n = 3

    session = Session(Of(), None, (), dict.fromkeys(range(4)), "p.jsonl", 1)  # type: ignore[arg-type]
    session.fail(Failure(0, ParameterError("too long")))
    for sample in (0, 2):
        session.fail(Failure(2, ParameterError("dead end"), sample))
    assert session.report_failures() == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "p.jsonl, line 1: too long",
        "p.jsonl, line 3, sample 1: dead end",
        "2 of 5 lines of p.jsonl gave no result (1 not a prompt, 1 could not be run); see above.",
        "1 of 5 lines of p.jsonl gave some results only (2 of their 3 samples could not be finished); see above.",
    ]


def test_the_command_names_a_failed_sample_once_counted_from_one(tiny_model_dir: Path) -> None:
    dead = ["--allow", "5, 6", "--no-allow-end", "--no-repeat-ngram", "1", "--max-new-tokens", "9", "--seed", "1"]
    for more in (["-n", "2"], ["-n", "2", "--best-of", "2"]):
        result = neurogen_command("run", "--model", str(tiny_model_dir), "-s", "topk", "--prompt", "once", *dead, *more)
        assert result.exit_code == 1
        told = result.stderr.splitlines()
        assert [line.partition(" left")[0] for line in told[:2]] == [f"sample {n}: Nothing is" for n in (1, 2)]
        assert not any("request" in line or "sample 0" in line for line in told)
