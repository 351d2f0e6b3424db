"""The conformance kit finds the mistake it was made for, shows it small, and finds none in right samplers."""

from __future__ import annotations

import functools
import importlib
import operator
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import handing_samplers
import numpy as np
import pytest
import remembering_reference
import torch
import wrong_samplers
from scipy import stats

import neurogen
from neurogen import ParameterError, Sampler
from neurogen.contract.declarations import sampler_problem
from neurogen.reference import topk_support
from neurogen.testing import SamplerConformance
from neurogen.testing.conformance import CHECKS, Report, check, kit
from neurogen.testing.conformance.case import Case, summary
from neurogen.testing.conformance.cases import KINDS, row_of
from neurogen.testing.conformance.drawing import g_test
from neurogen.testing.conformance.shrink import shrink

TESTS = Path(__file__).parents[1]

MISTAKES = {
    "OneTooMany": "support",
    "WithoutTheCrossing": "support",
    "TemperatureAfterTruncation": "support",
    "HalfPrecision": "support",
    "HighestIdFirst": "ties",
    "NotNormalised": "probs",
    "OtherTemperature": "probs",
    "SupportOfAll": "agreement",
    "NotQuiteCold": "temperature-zero",
    "DrawsRemoved": "minus-infinity",
    "OneBadSpoilsAll": "invalid-rows",
    "TakesInfinity": "invalid-rows",
    "BeyondTheVocabulary": "ids",
    "DrawsFlatter": "frequencies",
    "EvenlySpread": "independence",
    "IgnoresSeed": "seeds",
    "IgnoresPosition": "seeds",
    "SeedPlusPosition": "seeds",
    "HalfTheSeed": "seeds",
    "SaysDeterministic": "deterministic",
    "HalfMasses": "dtypes",
    "IgnoresStrides": "strides",
    "FirstRowsParameters": "per-row-parameters",
    "RowIndexed": "batch",
    "GlobalGenerator": "earlier-calls",
    "CountsItsCalls": "earlier-calls",
    "DividesInPlace": "input",
    "NeedsTwoTokens": "small-shapes",
    "SharedScratch": "threads",
    "AnyTemperature": "bounds",
    "TakesAnything": "bounds",
    "KeepsNoneAtZero": "bounds",
    "ClashingOption": "declaration",
    "LostReference": "declaration",
    "Undescribed": "declaration",
    "SharedState": "state",
    "OneStateForAll": "state",
    "MemoryBeside": "state",
    "NeverRemembers": "state",
    "RemembersACopy": "state",
    "WithoutEffect": "state",
    "HalfRemembers": "state",
    "CountsTwice": "state",
    "StopsCounting": "state",
    "StartsLater": "state",
    "ReadsAnother": "state",
    "FirstRowsMemory": "state",
    "WidensMemory": "state",
    "ExpInKernels": "arithmetic",
}
"""Wrong sampler -> the check that must find its mistake."""

ALONE = {  # samplers in which nothing but that check may fail
    "HalfMasses",
    "OneBadSpoilsAll",
    "TakesInfinity",
    "SeedPlusPosition",
    "HalfTheSeed",
    "IgnoresStrides",
    "FirstRowsParameters",
    "AnyTemperature",
    "TakesAnything",
    "KeepsNoneAtZero",
    "ClashingOption",
    "SharedState",
    "OtherTemperature",
    "SharedScratch",
}
IN_WORDS = {"declaration", "bounds", "arithmetic"}  # checks that tell most of what they find in words
UNREPEATABLE = {"GlobalGenerator", "CountsItsCalls", "MemoryBeside", "OneStateForAll", "SharedScratch"}

INSTALLED = ("greedy", "topk", "topp")
RIGHT = (
    *INSTALLED,
    wrong_samplers.Right,
    wrong_samplers.Nucleus,
    wrong_samplers.Remembering,
    wrong_samplers.Remembered,
)
SLOW_CHECKS = {"cuda", "speed"}
QUICK_CHECKS = [name for name in CHECKS if name not in SLOW_CHECKS]


NAME_OF = operator.attrgetter("name")


def named(sampler: str | type[Sampler]) -> str:
    return sampler if isinstance(sampler, str) else sampler.__name__


def wrong(name: str) -> type[Sampler]:
    found: type[Sampler] = getattr(wrong_samplers, name)
    return found


@pytest.fixture(autouse=True)
def _whatever_the_machine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and as much time to make a case small as that needs."""
    torch.set_num_threads(1)
    monkeypatch.setattr(kit, "SHRINK_SECONDS", (600.0, 600.0))


@functools.cache
def found_in(name: str) -> Report:
    """The report of a wrong sampler by the check that must find its mistake."""
    return check(wrong(name), quick=True, only=[MISTAKES[name]])


@pytest.mark.parametrize(("name", "expected"), MISTAKES.items())
def test_a_mistake_is_found_by_the_check_made_for_it(name: str, expected: str) -> None:
    report = found_in(name)
    assert report.failed == [expected]
    failure = report[expected].failure
    assert failure is not None
    assert failure.expected
    assert failure.got


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(ALONE))
def test_other_checks_do_not_blame_what_is_right(name: str) -> None:
    assert check(wrong(name), quick=True, only=QUICK_CHECKS).failed == [MISTAKES[name]]


def test_every_check_has_a_mistake_that_it_finds() -> None:
    assert set(CHECKS) - set(MISTAKES.values()) == {"cuda", "speed"}, "the kernels' is tested below; speed never fails"


@pytest.mark.parametrize("sampler", RIGHT[:4], ids=named)
def test_right_samplers_are_not_blamed(sampler: str | type[Sampler]) -> None:
    report = check(sampler, quick=True, seed=1, only=QUICK_CHECKS)
    assert report.passed, report


@pytest.mark.exhaustive
@pytest.mark.parametrize(("sampler", "seeds"), [(sampler, 100 if sampler in INSTALLED else 10) for sampler in RIGHT])
def test_right_samplers_are_not_blamed_with_other_seeds(sampler: str | type[Sampler], seeds: int) -> None:
    """Those in torch are slow: they get ten."""
    for seed in range(100, 100 + seeds):
        report = check(sampler, quick=True, seed=seed, only=QUICK_CHECKS)
        assert report.passed, f"seed {seed}: {report}"


IN_CI = {"minp", "mirostat", "typical", "xtc", "topk+topp"}
"""Of these CI runs the kit, of all others `make exhaustive`: each takes half a minute or more."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(plugin.name, marks=pytest.mark.slow if plugin.name in IN_CI else pytest.mark.exhaustive)
        for plugin in neurogen.Registry(disabled=()).plugins()
    ],
)
def test_every_installed_sampler_keeps_its_contract(name: str) -> None:
    report = check(name, quick=True)
    assert report.passed, report


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:The method:DeprecationWarning")  # one is written for version 0.1
@pytest.mark.parametrize("package", sorted(file.parent for file in TESTS.glob("plugins/*/*/__init__.py")), ids=NAME_OF)
def test_the_examples_of_the_documentation_keep_their_contract(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their modules may be called as those of installed plugins: what is loaded of those is put aside."""
    for module in [name for name in sys.modules if name.partition(".")[0] == package.name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(package.parent)
    example = importlib.import_module(package.name)
    if not hasattr(example, "neurogen_samplers"):
        pytest.skip("it is no sampler")
    try:
        for cls in example.neurogen_samplers():
            report = check(cls, quick=True, only=QUICK_CHECKS)
            assert report.passed, report
    finally:
        for module in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[module]


@pytest.mark.parametrize(
    "sampler",
    [
        wrong_samplers.Remembering,
        wrong_samplers.Remembered,
        pytest.param("mirostat", marks=pytest.mark.slow),  # its kernels are compiled
    ],
    ids=named,
)
def test_memory_is_checked_with_and_without_a_reference(
    sampler: str | type[Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = type(neurogen.load_sampler(sampler)) if isinstance(sampler, str) else sampler
    for reference in {cls.reference, ""}:
        monkeypatch.setattr(cls, "reference", reference)
        result = check(cls, quick=True, only=["state"])["state"]
        assert result.status == "passed", str(result.failure)
        assert ["no reference says what comes next" in note for note in result.notes] == [True] * (not reference)


def test_the_worked_example_with_memory_keeps_its_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TESTS / "plugins" / "neurogen-cooling")
    (cooling,) = importlib.import_module("neurogen_cooling").neurogen_samplers()
    report = check(cooling, quick=True, only=["declaration", "agreement", "batch", "state"])
    assert report.passed, report
    assert report.count("passed") == 4
    assert report["state"].notes == ()
    monkeypatch.setattr(cooling, "reference", "")
    assert check(cooling, quick=True, only=["state"]).passed


@pytest.mark.parametrize(
    ("name", "expected", "got"),
    [
        ("CountsTwice", "{'tokens': 1} after token 0 with {'tokens': 0}", "{'tokens': 2}"),
        ("ReadsAnother", "a token that can be drawn with {'tokens': ", "token "),
        ("StartsLater", "as of the first token", "{'tokens': 2}, with which tokens "),
        ("NeverRemembers", "memory that changes", "['tokens'] as new_state gives it, in "),
        ("HalfRemembers", "memory that changes", "['last'] as new_state gives it, in "),
        ("WithoutEffect", "memory that has an effect on what is drawn", "the same tokens with a new state"),
    ],
)
def test_what_is_remembered_wrongly_is_told(name: str, expected: str, got: str) -> None:
    failure = found_in(name)["state"].failure
    assert failure is not None
    assert expected in failure.expected
    assert got in failure.got


def reference_with(monkeypatch: pytest.MonkeyPatch, next_state: Any) -> None:
    """Give `Remembering` and what is like it a reference of one's own, which says what can be drawn first alone."""
    module: Any = ModuleType("own_reference")
    module.support = lambda logits, k, temperature: topk_support(logits, k, temperature)
    module.next_state = next_state
    monkeypatch.setitem(sys.modules, "own_reference", module)
    monkeypatch.setattr(wrong_samplers.Remembering, "reference", "own_reference")


def test_memory_without_effect_is_found_beside_a_reference_too(monkeypatch: pytest.MonkeyPatch) -> None:
    reference_with(monkeypatch, remembering_reference.next_state)
    failure = check(wrong_samplers.WithoutEffect, quick=True, only=["state"])["state"].failure
    assert failure is not None
    assert failure.expected == "memory that has an effect on what is drawn"


@pytest.mark.parametrize(
    ("next_state", "said"),
    [
        (lambda logits, token, state, k, temperature: None, "must give ['tokens'], as new_state does; got NoneType"),
        (lambda logits, token, state, k, temperature: {"toks": 1}, "must give ['tokens'], as new_state does; got ['t"),
        (lambda logits, state, k, temperature: state, "next_state raised TypeError: "),
        (lambda logits, token, state, k, temperature: state["toks"], "next_state raised KeyError: 'toks', in "),
    ],
)
def test_a_wrong_next_state_is_told_with_its_place(next_state: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference_with(monkeypatch, next_state)
    failure = check(wrong_samplers.Remembering, quick=True, only=["state"])["state"].failure
    assert failure is not None
    assert said in failure.got
    assert f"test_conformance.py, line {next_state.__code__.co_firstlineno}" in failure.got


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda batch: torch.zeros(batch), "got a Tensor"),
        (lambda batch: {"tokens": 1}, "got other values"),
        (lambda batch: {"tokens": torch.zeros(1)}, r"got 'tokens': \[1\]"),
    ],
)
def test_a_wrong_new_state_is_told_with_its_place(state: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_samplers.Remembering, "new_state", lambda self, batch: state(batch))
    with pytest.raises(neurogen.ContractError, match=f"dictionary of tensors whose first dimension is 2, {said}.* See"):
        wrong_samplers.Remembering().fresh_state(2, torch.device("cpu"))
    assert check(wrong_samplers.Remembering, quick=True, only=["state"]).failed == ["state"]


def test_a_sampler_that_says_it_has_memory_and_has_none_is_refused() -> None:
    class Forgetful(neurogen.Sampler):
        name = "forgetful"
        api_version = 1
        stateful = True
        backends = {"cpu": "neurogen.kernels.temperature.cpu"}

    assert sampler_problem(Forgetful) == "Forgetful is stateful and does not implement new_state()"


# What is shown.


def sizes(report: Report, name: str) -> tuple[int, int]:
    """Rows and tokens of the logits in a failure's program."""
    failure = report[name].failure
    assert failure is not None
    found = re.search(r"logits = torch.tensor\(\[(.*)\](?:, dtype=.*)?\)", failure.snippet)
    assert found is not None, failure.snippet
    rows = re.findall(r"\[([^\[\]]*)\]", found[1])
    return len(rows), len(rows[0].split(","))


@pytest.mark.parametrize(
    ("name", "rows", "tokens"),
    [
        ("OneTooMany", 1, 2),
        ("WithoutTheCrossing", 1, 2),
        ("HighestIdFirst", 1, 2),
        ("TakesInfinity", 1, 1),
        ("NotNormalised", 1, 2),
        ("OneBadSpoilsAll", 2, 1),
        ("FirstRowsParameters", 2, 3),
        ("RowIndexed", 2, 4),
        ("DividesInPlace", 1, 1),
        ("IgnoresStrides", 2, 3),
    ],
)
def test_the_case_that_is_shown_is_small(name: str, rows: int, tokens: int) -> None:
    report = found_in(name)
    shown = sizes(report, MISTAKES[name])
    assert shown[0] <= rows, report
    assert shown[1] <= tokens, report


def test_a_failure_reads_as_a_program_with_its_outcome() -> None:
    failure = found_in("OneTooMany")["support"].failure
    assert failure is not None
    assert (failure.expected, failure.got) == ("tokens [0] kept", "tokens [0, 1] kept")
    assert failure.snippet == textwrap.dedent("""\
        import torch
        from wrong_samplers import OneTooMany

        sampler = OneTooMany(k=1)
        logits = torch.tensor([[0.0, 0.0]])
        sampler.support(logits, check=False)  # [[True, True]]""")


def replay(snippet: str) -> list[tuple[str, str, str]]:
    """(call, what the comment says, what it gives) of every call of a program."""
    program, _, calls = snippet.partition("\n\n")
    names: dict[str, object] = {}
    exec(program, names)
    found = []
    for line in calls.splitlines():
        call, _, said = line.partition("  # ")
        if not said:
            exec(call, names)
            continue
        try:
            got = summary(eval(call, names))
        except neurogen.NeurogenError as error:
            got = f"raises {type(error).__name__}"
        found.append((call, said, got))
    return found


@pytest.mark.parametrize(
    "name", [name for name, found_by in MISTAKES.items() if name not in UNREPEATABLE and found_by not in IN_WORDS]
)
def test_the_program_gives_what_its_comments_say(name: str) -> None:
    failure = found_in(name)[MISTAKES[name]].failure
    assert failure is not None
    calls = replay(failure.snippet)
    assert calls
    for call, said, got in calls:
        assert got == said, call


def test_an_installed_sampler_is_named_and_not_imported() -> None:
    registry = neurogen.Registry()
    registry.register(HookOf(wrong_samplers.OneTooMany))
    failure = check(registry.load_sampler("right", k=3), quick=True, only=["support"])["support"].failure
    assert failure is not None
    assert "sampler = neurogen.load_sampler('right', k=" in failure.snippet


class HookOf:
    """An object with the hook of a plugin."""

    def __init__(self, cls: type[Sampler]) -> None:
        self._cls = cls

    @neurogen.hookimpl
    def neurogen_samplers(self) -> list[type[Sampler]]:
        return [self._cls]


# The parts.


def test_the_report_says_what_was_tried_and_what_was_not() -> None:
    report = check("greedy", quick=True, only=["declaration", "support", "frequencies", "state"])
    assert [result.status for result in report.results] == ["passed", "passed", "skipped", "skipped"]
    assert report["support"].cases >= 5
    assert report["frequencies"].notes == ("it declares itself deterministic",)
    assert report.verdict.startswith("greedy(): 2 passed, 0 failed, 2 skipped")
    assert report.as_dict()["results"][0]["check"] == "declaration"


def test_without_a_reference_the_report_says_so() -> None:
    report = check(wrong_samplers.Remembering, quick=True, only=["declaration", "support", "probs", "agreement"])
    assert report["support"].status == "skipped"
    for name in ("declaration", "support", "probs"):
        assert "no float64 reference is given" in report[name].notes[0]
    assert report["agreement"].status == "passed"


def test_a_reference_that_only_uses_probs_of_neurogen_has_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("using_reference")
    module.support, module.probs = topk_support, neurogen.reference.probs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "using_reference", module)
    monkeypatch.setattr(wrong_samplers.Right, "reference", "using_reference")
    report = check(wrong_samplers.Right, quick=True, only=["support", "probs"])
    assert report.passed, report


def test_a_reference_that_fails_is_blamed_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("failing_reference")
    module.support = lambda logits, k: logits > 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing_reference", module)
    monkeypatch.setattr(wrong_samplers.Right, "reference", "failing_reference")
    failure = check(wrong_samplers.Right, quick=True, only=["support"])["support"].failure
    assert failure is not None
    assert "The reference's support raised TypeError" in failure.got
    module.support = lambda logits, k, temperature: logits  # type: ignore[attr-defined]
    failure = check(wrong_samplers.Right, quick=True, only=["support"])["support"].failure
    assert failure is not None
    assert "must give bool [" in failure.got


def test_parameters_in_the_name_are_the_base_of_those_tried() -> None:
    report = check("topk(k=3, temperature=0.5)", quick=True, only=["support"])
    assert report.sampler == "topk(k=3, temperature=0.5)"
    assert report.passed


def test_an_unknown_check_is_refused_by_name() -> None:
    with pytest.raises(ParameterError, match=r"There is no check 'magic'. There are: declaration, bounds, support"):
        check("greedy", only=["magic"])


def test_a_class_that_cannot_be_made_fails_its_declaration_alone() -> None:
    report = check(wrong_samplers.Undescribed, quick=True)
    assert report.failed == ["declaration"]
    assert report.count("skipped") == len(CHECKS) - 1
    failure = report["declaration"].failure
    assert failure is not None
    assert failure.got == "the parameter 'k' has no description"


def test_the_g_test_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(30, 20.0))
    for wrongness in (0.0, 0.02):
        counts = rng.multinomial(20_000, (1 - wrongness) * probs + wrongness / 30)
        expected = probs * counts.sum()
        assert (expected > 5).all()
        right = stats.power_divergence(counts, expected, lambda_="log-likelihood").pvalue
        assert g_test(counts, probs) == pytest.approx(float(right), rel=1e-9)


def test_kinds_of_logits_are_valid_rows_that_their_dtype_holds() -> None:
    for kind in KINDS:
        for vocab in (1, 2, 9, 300):
            for dtype in ("float32", "float16", "bfloat16"):
                row = row_of(kind, 7, vocab, dtype)
                assert row.shape == (vocab,)
                assert not row.isnan().any()
                assert row.max().isfinite()
                assert row.to(getattr(torch, dtype)).float().equal(row)


def test_shrinking_keeps_what_breaks_the_law() -> None:
    """The law: no row has two logits above 3."""
    case = Case(torch.randn(9, 200, generator=torch.Generator().manual_seed(0)) * 3, {"k": 3}, seed=77)
    small = shrink(case, lambda one: bool(((one.logits > 3).sum(-1) >= 2).any()), seconds=5)
    assert small.logits.shape == (1, 2)
    assert (small.logits > 3).all()
    assert (small.params, small.seed, small.position) == ({}, 0, 0)


# Kernels for CUDA.

TWISTED = """
import neurogen


class Twisted(neurogen.Sampler):
    name = "twisted"
    api_version = 1
    backends = {"cpu": "neurogen_topk.cpu", "cuda": "twisted_kernels.cuda"}

    class Params(neurogen.SamplerParams):
        k: int = neurogen.Param(3, ge=0, description="Tokens to draw from.")
        temperature: float = neurogen.Param(1.0, ge=0, description="Divides the logits.")
"""
ONE_MORE = """
from neurogen.kernels.cuda import largest, truncation


def keep(row, k):
    return largest(row, k + 1)


sample, probs, support = truncation(keep, "k")
"""


@pytest.mark.slow
def test_a_cuda_kernel_that_differs_is_found_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "twisted_kernels"
    package.mkdir()
    (package / "__init__.py").write_text(TWISTED)
    (package / "cuda.py").write_text(ONE_MORE)
    monkeypatch.syspath_prepend(tmp_path)
    import twisted_kernels

    report = check(twisted_kernels.Twisted, quick=True, only=["cuda"])
    assert report.failed == ["cuda"]
    failure = report["cuda"].failure
    assert failure is not None
    assert "is simulated" in failure.got
    assert "sampler = Twisted(" in failure.snippet


@pytest.mark.slow
@pytest.mark.parametrize("cls", [*handing_samplers.RIGHT, "topk(k=3)+topp(p=0.6)", "mirostat(tau=2)"], ids=named)
def test_the_simulator_runs_what_the_kernel_was_given(cls: str | type[Sampler]) -> None:
    result = check(cls, quick=True, only=["cuda"])["cuda"]
    assert result.failure is None, str(result.failure)
    assert result.status == "passed", result.notes
    assert "thread by thread" in result.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "got"),
    [
        (handing_samplers.Astray, "when astray_cuda is simulated"),
        (handing_samplers.Misnamed, "temprature"),
    ],
)
def test_a_module_for_cuda_that_hands_on_something_else_is_found(cls: type[Sampler], got: str) -> None:
    failure = check(cls, quick=True, only=["cuda"])["cuda"].failure
    assert failure is not None
    assert got in failure.got
    assert f"sampler = {cls.__name__}(" in failure.snippet


def test_a_launch_is_refused_for_what_no_kernel_is_made_for() -> None:
    cuda_launch = pytest.importorskip("neurogen.kernels.cuda_launch")
    kernel = cuda_launch.Kernel(lambda: None)
    with pytest.raises(neurogen.ContractError, match="was given a tensor of float64"):
        kernel.signature(torch.float64, torch.float64)
    with pytest.raises(neurogen.ContractError, match="was given a tensor of int32"):
        kernel.signature(torch.float32, torch.int32)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["greedy", "topk", "topp"])
def test_full_form_passes_for_the_samplers_that_come_along(name: str) -> None:
    report = check(name)
    assert report.passed, report
    assert "thread by thread" in report["cuda"].notes[0]
    assert "times one read of the logits" in report["speed"].notes[0]


# The pytest class.


class TestTopP(SamplerConformance):
    """The class as an author uses it."""

    sampler = "topp(p=0.5)"


def test_the_class_has_a_test_for_every_check_and_tells_failures(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from wrong_samplers import OneTooMany\n"
        "from neurogen.testing import SamplerConformance\n\n\n"
        "class TestMine(SamplerConformance):\n    sampler = OneTooMany\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rfs", str(tmp_path), "-k"]
    done = subprocess.run(
        [*command, "support or ids or state or small_shapes"],
        env={"PYTHONPATH": str(TESTS / "helpers"), "OMP_NUM_THREADS": "1", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "FAILED test_mine.py::TestMine::test_support" in done.stdout
    assert "expected: tokens [0] kept" in done.stdout
    assert "sampler = OneTooMany(k=1)" in done.stdout
    assert "Traceback" not in done.stdout
    assert "1 failed, 2 passed, 1 skipped" in done.stdout
    assert "it has no memory" in done.stdout
