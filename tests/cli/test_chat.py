"""Conversations, and `neurogen chat` as a person uses it: through a pipe, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import neurogen
from neurogen.cli.program import main
from neurogen.decoding.engine import Engine, Request
from neurogen.decoding.prefix_engine import PrefixEngine
from neurogen.diagnosis.explain import explain_answer
from neurogen.errors import DataError, ParameterError
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.text.conversation import Conversation, Message, continued
from neurogen.text.runner import RunOptions, TextDelta


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", dtype="float32")


def conversation(model: LanguageModel, sampler: str = "topk", **options: Any) -> Conversation:
    return Conversation(
        model, neurogen.load_sampler(sampler), RunOptions(**{"max_new_tokens": 12, "seed": 3, **options})
    )


def said(events: Any) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# The engine behind it.


def test_tokens_are_those_of_the_usual_engine(starter: LanguageModel) -> None:
    sampler = neurogen.load_sampler("topk", k=30)
    prompt = tuple(starter.tokenizer.encode("Once upon a time, there was a dog"))
    requests = [
        Request(prompt[:n], 10, seed, stop_ids=starter.eos_ids, key=n) for n, seed in ((5, 1), (8, 2), (3, 3), (8, 4))
    ]
    engine = PrefixEngine(starter, sampler)
    for request in requests:
        usual = [step.token_id for step in Engine(starter, sampler).generate([request])]
        assert [step.token_id for step in engine.generate([request])] == usual


def test_only_what_is_new_of_a_prompt_is_read(starter: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    forward = starter.forward

    def counting(ids: Any, *others: Any) -> Any:
        widths.append(ids.shape[1])
        return forward(ids, *others)

    monkeypatch.setattr(starter, "forward", counting)
    prompt = tuple(starter.tokenizer.encode("Once upon a time, there was a dog"))
    engine = PrefixEngine(starter, neurogen.load_sampler("greedy"))
    first = [step.token_id for step in engine.generate([Request(prompt, 4, 0)])]
    engine.sampler = neurogen.load_sampler("topk")
    list(engine.generate([Request((*prompt, *first, 5, 6), 2, 0)]))
    assert widths == [len(prompt), 1, 1, 1, 3, 1]  # the last token of the first answer, and the two new ones
    assert engine.reused == len(prompt) + 3


def test_a_prompt_that_was_read_whole_gives_its_logits_again(starter: LanguageModel) -> None:
    prompt = tuple(starter.tokenizer.encode("Once upon a time"))
    engine = PrefixEngine(starter, neurogen.load_sampler("greedy"))
    one = [step.token_id for step in engine.generate([Request(prompt, 3, 0)])]
    assert [step.token_id for step in engine.generate([Request(prompt, 3, 0)])] == one
    assert engine.reused == len(prompt) - 1


# Turns.


def test_an_answer_joins_the_turns(starter: LanguageModel) -> None:
    talk = conversation(starter)
    answer = said(talk.say("Once upon a time"))
    assert talk.messages == [Message("user", "Once upon a time"), Message("assistant", answer)]


def test_a_retry_draws_with_the_next_seed_and_replaces_the_answer(starter: LanguageModel) -> None:
    talk = conversation(starter)
    first = said(talk.say("Once upon a time"))
    second = said(talk.retry())
    assert (talk.seed, len(talk.messages)) == (4, 2)
    assert second != first
    again = conversation(starter, seed=4)
    assert said(again.say("Once upon a time")) == second


def test_the_sampler_may_change_and_the_beginning_is_not_read_again(starter: LanguageModel) -> None:
    talk = conversation(starter)
    said(talk.say("Once upon a time"))
    talk.sampler = neurogen.load_sampler("greedy")
    said(talk.say("Then"))
    assert talk.reused > 8
    alone = conversation(starter, "greedy")
    alone.messages = talk.messages[:2]
    assert said(alone.say("Then")) == talk.messages[-1].content


def test_an_answer_that_is_broken_off_stays_as_far_as_it_went(starter: LanguageModel) -> None:
    talk = conversation(starter, max_new_tokens=50)
    events = talk.say("Once upon a time")
    first = next(event for event in events if isinstance(event, TextDelta) and event.text)
    events.close()  # type: ignore[attr-defined]
    assert talk.messages[-1] == Message("assistant", first.text)
    with pytest.raises(ParameterError, match="no whole answer to explain"):
        explain_answer(talk)


def test_a_turn_that_cannot_be_answered_is_taken_back(starter: LanguageModel) -> None:
    talk = conversation(starter)
    talk.sampler = Failing()
    with pytest.raises(neurogen.PluginError, match="no luck"):
        said(talk.say("Once upon a time"))
    assert talk.messages == []


class Failing(neurogen.Sampler):
    name = "failing"
    api_version = 1

    def _sample(self, *arguments: Any) -> Any:
        raise ValueError("no luck")


def test_the_oldest_turns_are_left_out_where_the_context_is_full(starter: LanguageModel) -> None:
    talk = conversation(starter, max_new_tokens=100)
    talk.messages = [Message("user" if i % 2 == 0 else "assistant", f"Part {i} of the story. " * 6) for i in range(10)]
    said(talk.say("The end"))
    assert talk.left_out >= 2
    assert talk.left_out % 2 == 0
    assert len(talk.messages) == 12


def test_a_turn_longer_than_the_context_is_refused(starter: LanguageModel) -> None:
    talk = conversation(starter)
    with pytest.raises(ParameterError, match="shorten the prompt"):
        said(talk.say("word " * 2000))
    assert talk.messages == []


def test_text_is_continued_on_a_new_line_unless_it_has_its_own_space() -> None:
    turns = [Message("user", "A"), Message("assistant", " b."), Message("user", "C"), Message("assistant", " d")]
    assert continued(turns) == "A b.\nC d"
    assert continued([*turns, Message("user", " e")]) == "A b.\nC d e"


def test_an_explanation_is_of_the_logits_that_were_drawn_from(starter: LanguageModel) -> None:
    talk = conversation(starter)
    said(talk.say("Once upon a time"))
    said(talk.say("Then"))
    explanation = explain_answer(talk)
    assert [step.token_id for step in explanation.steps][
        : len(explanation.result.token_ids)
    ] == explanation.result.token_ids
    assert explanation.result.text == talk.messages[-1].content


def test_saved_and_loaded_a_conversation_goes_on_alike(starter: LanguageModel, tmp_path: Path) -> None:
    talk = conversation(starter)
    said(talk.say("Once upon a time"))
    said(talk.retry())
    talk.save(tmp_path / "talk.json")
    other = conversation(starter, "greedy", seed=99)
    other.load(tmp_path / "talk.json")
    assert (other.messages, other.seed, repr(other.sampler)) == (talk.messages, talk.seed, repr(talk.sampler))
    assert said(other.retry()) == said(talk.retry())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"neurogen_conversation": 1, "messages": [5]}', "\x00"])
def test_what_is_no_conversation_changes_nothing(text: str, tmp_path: Path, starter: LanguageModel) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    talk = conversation(starter)
    said(talk.say("Once upon a time"))
    before = list(talk.messages)
    with pytest.raises(DataError, match="is no conversation that this neurogen can read"):
        talk.load(file)
    assert talk.messages == before


def test_an_empty_system_text_is_one(starter: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter.tokenizer, "has_chat_template", True)
    greedy = neurogen.load_sampler("greedy")
    assert Conversation(starter, greedy, system="").messages == [Message("system", "")]
    assert Conversation(starter, greedy).messages == []


def test_a_model_without_template_cannot_be_told_anything(starter: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="no chat template"):
        Conversation(starter, neurogen.load_sampler("greedy"), system="Be kind.")


# The command, through a pipe.


def chat(*lines: str, arguments: tuple[str, ...] = ()) -> Any:
    options = ["chat", "--seed", "1", "--max-new-tokens", "8", *arguments]
    return CliRunner().invoke(main, options, input="".join(line + "\n" for line in lines))


def test_lines_of_a_pipe_are_turns() -> None:
    outcome = chat("Once upon a time", '"""', "Two", "lines", '"""', "/history")
    assert outcome.exit_code == 0, outcome.output
    assert "> Once upon a time\n" in outcome.stdout
    assert "> Two\nlines\n" in outcome.stdout


def test_parameters_and_sampler_change_on_the_way() -> None:
    outcome = chat("/set p 0.5", "/sampler topk(k=7)+topp", "/set temperature=0", "/set max_new_tokens 3", "/params")
    assert outcome.exit_code == 0, outcome.output
    assert "p = 0.5" in outcome.stderr
    assert "k = 7" in outcome.stderr
    assert "temperature = 0.0" in outcome.stderr
    assert "max_new_tokens = 3" in outcome.stderr


def test_seeds_are_shown_and_set_and_a_retry_adds_one() -> None:
    outcome = chat("/seed 41", "Once upon a time", "/retry", "/seed")
    assert outcome.stderr.splitlines() == ["seed 41", "seed 42"]
    assert len(outcome.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/bogus", "There is no command /bogus. There are: /help, "),
        ("/set", "Give a parameter and a value: p, temperature and max_new_tokens."),
        ("/set k 5", "topp has no parameter 'k'; it has: p, temperature."),
        ("/set p 1.5", "topp: p must be a number in (0, 1], got 1.5."),
        ("/set p word", "topp: p must be a number in (0, 1], got 'word'."),
        ("/set max_new_tokens 0", "max_new_tokens must be an integer >= 1, got '0'."),
        ("/sampler", "Which sampler? There are: "),
        ("/sampler tpok", "There is no sampler 'tpok'."),
        ("/seed x", "The seed must be an integer of 64 bits, got 'x'."),
        ("/retry", "There is no answer to draw again."),
        ("/explain", "There is no whole answer to explain."),
        ("/save", "To which file? Give /save FILE."),
        ("/save /absent/file", "The conversation cannot be written to /absent/file: No such file"),
        ("/load /absent/file", "/absent/file cannot be read: No such file"),
        ("/processors bogus", "There is no processor 'bogus'."),
    ],
)
def test_what_is_wrong_is_said_and_the_conversation_goes_on(line: str, message: str) -> None:
    outcome = chat(line, "Once upon a time")
    assert message in outcome.stderr
    assert outcome.stdout.strip()
    assert outcome.exit_code == 1  # a script finds out


def test_an_answer_is_explained_here_or_as_a_page(tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    outcome = chat("Once upon a time", "/explain", f"/explain {page}", "/explain /absent/x.html")
    assert outcome.stdout.count("for the model, rank") == 8
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "there is no folder /absent" in outcome.stderr


def test_quit_ends_and_help_lists_every_command() -> None:
    outcome = chat("/help", "/quit", "Never said")
    assert outcome.stdout == ""
    for command in ("/sampler", "/set", "/params", "/retry", "/seed", "/save", "/load", "/explain", "/help"):
        assert f"{command} " in outcome.stderr


def test_a_saved_conversation_is_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    assert chat("Once upon a time", f"/save {file}").exit_code == 0
    assert json.loads(file.read_text())["messages"][0] == {"role": "user", "content": "Once upon a time"}
    outcome = chat("/history", arguments=("--load", str(file)))
    assert outcome.stdout.startswith("> Once upon a time\n")


# The command, in a terminal.


class Terminal:
    """The command in a pseudo-terminal: what is typed, and what is shown."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(folder), "COLUMNS": "100"}
        command = [sys.executable, "-m", "neurogen", "chat", "--seed", "1", *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            close_fds=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._master = master
        self.shown = ""
        self._at = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while (found := self.shown.find(text, self._at)) < 0:
            assert time.monotonic() < end, f"{text!r} did not come; shown: {self.shown[-2000:]!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                data = os.read(self._master, 65536).decode(errors="replace")
                self.shown += data
                if "\x1b[6n" in data:  # it asks where the cursor is
                    self.type("\x1b[1;1R")
        self._at = found + len(text)

    def end(self) -> int:
        self.wait_for("\x1b[?2004h")  # the line editor waits
        self.type("\x04")
        return self._process.wait(30)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *problem: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    with Terminal(tmp_path, "--max-new-tokens", "400", "--sampler", "topk", "--top-k", "1") as terminal:
        terminal.wait_for("/help shows what can be done")
        terminal.type("Once upon a time\r")
        terminal.wait_for("there was")  # a story of more than a hundred tokens has begun
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("\x1b[?2004h")  # the line editor is back
        terminal.type("/sam\t")
        terminal.wait_for("pler")  # what Tab completes
        terminal.type(" topp\r")
        terminal.wait_for("topp (neurogen-topp")
        terminal.wait_for("\x1b[?2004h")
        terminal.type("/set temperature 0.1\r")
        terminal.wait_for("temperature = 0.1")
        assert terminal.end() == 0
    assert (tmp_path / "neurogen" / "chat_history").exists()
