"""`neurogen conformance` from the command line: its options, what it prints, and its exit codes."""

from __future__ import annotations

import json

import pytest
import torch
import wrong_samplers
from click.testing import CliRunner, Result

import neurogen
from neurogen import Registry, Sampler
from neurogen.cli.program import main
from neurogen.cli.run import command as run
from neurogen.contract.declarations import RUN_OPTIONS
from neurogen.testing.conformance import CHECKS


class HookOf:
    """An object with the hook of a plugin."""

    def __init__(self, cls: type[Sampler]) -> None:
        self._cls = cls

    @neurogen.hookimpl
    def neurogen_samplers(self) -> list[type[Sampler]]:
        return [self._cls]


def conformance(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["conformance", *arguments])


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry(disabled=())
    monkeypatch.setattr("neurogen.registry.registry._default", registry)
    return registry


def test_a_right_sampler_gets_a_line_a_check_and_exit_code_0(registry: Registry) -> None:
    done = conformance("greedy", "--quick", "--only", "support", "--only", "state")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("greedy() of neurogen-greedy ")
    assert "passed   support " in done.stdout
    assert "skipped  state                     -  it has no memory" in done.stdout
    assert done.stdout.endswith("greedy(): 1 passed, 0 failed, 1 skipped (7 cases)\n")


def test_a_wrong_sampler_is_shown_by_a_program_and_exit_code_1(registry: Registry) -> None:
    registry.register(HookOf(wrong_samplers.OneTooMany))
    done = conformance("right", "--quick", "--only", "support")
    assert done.exit_code == 1
    assert "failed   support " in done.stdout
    assert "expected: tokens [0] kept\ngot:      tokens [0, 1] kept\n\n    import torch\n" in done.stdout
    assert "    sampler = neurogen.load_sampler('right', k=1)\n" in done.stdout
    assert "    sampler.support(logits, check=False)  # [[True, True]]\n" in done.stdout


def test_json_holds_everything(registry: Registry) -> None:
    registry.register(HookOf(wrong_samplers.OneTooMany))
    done = conformance("right", "--quick", "--only", "support", "--only", "ids", "--json", "--seed", "3")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["passed"], report["seed"], report["quick"], report["device"]) == (False, 3, True, "cpu")
    support, ids = report["results"]
    assert (support["status"], ids["status"]) == ("failed", "passed")
    assert support["failure"]["snippet"].startswith("import torch\n")
    assert ids["failure"] is None


@pytest.mark.parametrize(
    "arguments", [("topk", "--top-k", "3"), ("--quick", "topk", "--top-k", "3"), ("topk(k=3)",)], ids=" ".join
)
def test_parameters_are_given_as_in_run(registry: Registry, arguments: tuple[str, ...]) -> None:
    done = conformance(*arguments, "--quick", "--only", "bounds", "--json")
    assert json.loads(done.stdout)["sampler"] == "topk(k=3, temperature=0.8)"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing argument 'NAME'"),
        (("topk", "--top-p", "0.5"), 2, "No such option '--top-p': topk has --top-k and --temperature"),
        (("topk", "--top-k", "-1"), 2, "k must be an integer >= 0, got -1"),
        (("topk(k=2)", "--top-k", "3"), 2, "k is given in the name, 2, and beside it, 3"),
        (("topq",), 1, "There is no sampler 'topq'"),
        (("topk", "--only", "luck"), 1, "There is no check 'luck'. There are: declaration, bounds"),
        (("topk", "--device", "tpu"), 2, "'tpu' is not one of 'cpu', 'cuda'"),
        (("topk", "--seed", "-1"), 2, "it must be an integer >= 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_told_in_words(registry: Registry, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = conformance(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_told(registry: Registry) -> None:
    done = conformance("topk", "--device", "cuda")
    assert done.exit_code == 1
    assert "there is no card here" in done.stderr


def test_the_options_that_no_sampler_may_have_are_those_of_run() -> None:
    assert {option for param in run.params for option in (*param.opts, *param.secondary_opts)} == RUN_OPTIONS


def test_options_that_clash_are_told_by_the_check_of_the_declaration(registry: Registry) -> None:
    registry.register(HookOf(wrong_samplers.ClashingOption))
    done = conformance("right", "--quick", "--only", "declaration")
    assert done.exit_code == 1
    assert "got:      --seed of the parameter 'k', which neurogen run has already" in done.stdout


def test_list_names_every_check_with_or_without_a_sampler(registry: Registry) -> None:
    for arguments in (("--list",), ("topk", "--list")):
        done = conformance(*arguments)
        assert done.exit_code == 0
        assert [line.split()[0] for line in done.stdout.splitlines()] == list(CHECKS)


def test_help_has_the_options_of_the_sampler() -> None:
    done = conformance("topk", "--help")
    assert done.exit_code == 0
    assert "--top-k" in done.stdout
