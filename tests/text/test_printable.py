"""What others have written cannot steer the terminal that it is shown on, wherever it is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import neurogen_command, offer
from click.testing import CliRunner
from torch import Tensor

import neurogen
from neurogen.cli import common, output
from neurogen.cli.explain import report
from neurogen.cli.program import main
from neurogen.cli.training_display import Display
from neurogen.diagnosis.explain import Explanation, explain
from neurogen.models.language_model import load_model
from neurogen.text.printable import json_printable, printable

pytestmark = pytest.mark.usefixtures("registry")

EVIL = "\x1b]0;evil\x07\x1b[2J\x9b31m\u202eback\u2066"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHOWN = r"\x1b]0;evil\x07\x1b[2J\x9b31m\u202eback\u2066"
CLI = Path(neurogen.__file__).parent / "cli"
OWN_COLOURS = {"common.py", "explain.py", "completion.py"}
"""Modules that print what rich or click has coloured: `echo` itself, and two that hold escapes of their own alone."""


def assert_harmless(text: str) -> None:
    assert OBEYED.search(text) is None, repr(text)


def test_each_character_that_a_terminal_obeys_or_that_reorders_is_shown_as_an_escape() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("a\tb\nc \u00e4 \u6f22 \u05d0\u200f \U0001f642") == "a\tb\nc \u00e4 \u6f22 \u05d0\u200f \U0001f642"
    assert printable("\r\x00\x7f\x85") == r"\x0d\x00\x7f\x85"


def test_json_is_harmless_and_has_the_same_values() -> None:
    text = json_printable(json.dumps({EVIL: [EVIL]}, ensure_ascii=False))
    assert_harmless(text)
    assert json.loads(text) == {EVIL: [EVIL]}


def test_what_the_commands_print_by_is_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    common.tell(f"Error: {EVIL}")
    common.echo(EVIL)
    common.echo_table(("NAME", "TEXT"), [(EVIL, f"[red]{EVIL}[/red]\nforged row")])
    common.write_json({"text": EVIL})
    Display().say(EVIL)
    said = capfd.readouterr()
    assert_harmless(said.out + said.err)
    assert said.err == f"Error: {SHOWN}\n{SHOWN}\n"
    assert f"[red]{SHOWN}[/red] forged row" in said.out
    assert EVIL in json.loads(said.out[said.out.index("{") :])["text"]


def test_colours_of_our_own_stay(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    common.echo(EVIL, before="\x1b[32mpassed\x1b[0m ", bold=True)
    assert capfd.readouterr().out == f"\x1b[32mpassed\x1b[0m \x1b[1m{SHOWN}\x1b[0m\n"


def test_a_status_line_is_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    with output.loading(EVIL, shown=True):
        pass
    assert_harmless(capfd.readouterr().err.replace(output.ERASE_LINE, ""))


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--sampler", "greedy", "--prompt", "x", "--model", f"no/such{EVIL}"],
        ["run", "--sampler", f"gre{EVIL}edy", "--prompt", "x"],
        ["run", "--sampler", "greedy", "--prompt", "x", f"--{EVIL}"],
        ["run", "--sampler", "greedy", "--prompts", f"absent{EVIL}.jsonl"],
        ["run", "--sampler", "greedy", "--prompts", "{folder}/prompts.jsonl"],
        ["run", "--sampler", "greedy", "--prompt", "x", "--grammar", f"root ::= {EVIL}"],
        ["run", "--sampler", "greedy", "--prompt", f"<s>{EVIL}</s>", "--max-new-tokens", "1", "--json"],
        ["explain", "--sampler", "greedy", "--prompt", EVIL, "--max-new-tokens", "2"],
        ["compare", "-s", "greedy", "-s", "topk", "--prompt", EVIL, "-n", "1", "--max-new-tokens", "2"],
        ["diagnose", "--logits", f"absent{EVIL}.safetensors"],
        ["diagnose", "--model", "starter", "--prompts", "{folder}/prompts.jsonl", "--max-tokens", "9"],
        ["chat", "--load", "{folder}/" + EVIL],
        ["tokenizer", "train", f"absent{EVIL}.txt", "--out", "x.model"],
        ["train", f"absent{EVIL}.jsonl", "--out", "{folder}/run"],
        ["replay", f"absent{EVIL}"],
        ["conformance", f"absent{EVIL}"],
        ["new-sampler", EVIL],
        [EVIL],
        ["--config-file", f"{{folder}}/{EVIL}", "samplers"],
    ],
    ids=lambda arguments: "-".join(arguments[:2])[:30].encode("ascii", "replace").decode(),
)
def test_no_command_prints_what_a_terminal_obeys(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps({EVIL: 1}) + "\n" + json.dumps({"prompt": "Once upon a time", "params": {EVIL: 1}}) + "\n"
        f'{{"prompt": {json.dumps(f"Once upon {EVIL}")}, "seed": 1}}\n{{"{EVIL}\n',
        encoding="utf-8",
    )
    (tmp_path / EVIL).write_text(f"{EVIL} = [", encoding="utf-8")
    result = CliRunner().invoke(main, [one.replace("{folder}", str(tmp_path)) for one in arguments])
    assert result.output
    shown = result.stderr if arguments[0] == "run" and "--json" not in arguments else result.output
    assert_harmless(shown)  # what `run` writes to a pipe is the model's text as it is
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)


class Boastful(neurogen.TruncationSampler):
    name = "boastful"
    api_version = 1
    __doc__ = f"Is the best {EVIL} of all."

    class Params(neurogen.SamplerParams):
        evil: int = neurogen.Param(1, description=EVIL)
        temperature: float = neurogen.Param(1.0, ge=0, description=EVIL)

    def keep(self, logits: Tensor, params: Any) -> Tensor:
        return logits > -torch.inf


def test_what_plugins_say_of_themselves_is_harmless(request: pytest.FixtureRequest) -> None:
    offer(request.getfixturevalue("registry"), Boastful)
    for arguments in (["samplers"], ["samplers", "--json"], ["plugins"], ["run", "-s", "boastful", "--help"]):
        shown = CliRunner().invoke(main, arguments).output
        assert "boastful" in shown
        assert_harmless(shown)


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explain(load_model("starter"), neurogen.load_sampler("topk", k=3), "Once", seed=1, max_new_tokens=1)


def test_an_explanation_of_evil_tokens_is_harmless(explanation: Explanation, capfd: pytest.CaptureFixture[str]) -> None:
    step = explanation.steps[0]
    candidates = [replace(one, text=EVIL, removed_by=EVIL) for one in step.candidates]
    stages = [replace(one, name=f"{EVIL}[red]") for one in step.stages]
    evil = replace(step, text=EVIL, candidates=candidates, stages=stages)
    report(replace(explanation, model=EVIL, result=replace(explanation.result, prompt=EVIL, text=EVIL), steps=[evil]))
    shown = capfd.readouterr().out
    assert_harmless(shown)
    assert shown.count(SHOWN) >= 4


def test_an_error_of_a_chat_template_is_harmless(tmp_path: Path) -> None:
    model = load_model("starter")
    folder = tmp_path / "model"
    model.model.save_pretrained(folder)
    _save_with_template(model.tokenizer, folder)
    result = neurogen_command("run", "-s", "greedy", "--model", str(folder), "--prompt", "x")
    assert result.exit_code == 1
    assert "does not accept these messages" in result.stderr
    assert_harmless(result.stderr)
    assert r"\x1b]0;evil\x07" in result.stderr


def _save_with_template(tokenizer: Any, folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = {tokenizer.token_text(i) if i < 3 else f"p{i}": i for i in range(tokenizer.vocab_size)}
    backend = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    made.chat_template = "{{ raise_exception(" + json.dumps(EVIL) + ") }}"
    made.save_pretrained(folder)


def test_every_command_prints_by_the_functions_that_escape() -> None:
    """`click.echo`, `print` and the streams themselves are left to the modules that hold these functions."""
    direct = re.compile(r"click\.s?echo\(|(?<![\w.])print\(|sys\.std(out|err)\.write|traceback\.print")
    found = {file.name for file in CLI.glob("*.py") if direct.search(file.read_text(encoding="utf-8"))}
    assert found <= OWN_COLOURS | {"output.py"}
