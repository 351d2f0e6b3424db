"""A mistake in a definition is told in a paragraph: the author's file and line, and the sentence that counts."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mistaken_definitions
import pytest
import torch

import neurogen
from neurogen import NeurogenError, ParameterError, PluginError
from neurogen.contract.mistakes import explained
from neurogen.kernels import cpu
from neurogen.testing.conformance import check

SAID = {
    "attribute": ("return heavier(row, row.largest_logit)", "Row has no attribute 'largest_logit'"),
    "too_few": ("return heavier(row)", "missing a required argument: 'share'"),
    "too_many": ("return heavier(row, share, 3)", "too many positional arguments"),
    "unknown_keyword": ("return heavier(row, least=share)", "missing a required argument: 'share'"),
    "returns_nothing": ("def returns_nothing", "returns nothing. It must return what `largest`"),
    "missing_branch": ("def missing_branch", "returns nothing in one of its branches"),
    "returns_number": ("def returns_number", "returns a value of the type float64"),
    "returns_list": ("[1, 2]", "list"),
    "returns_whole_number": ("def returns_whole_number", "returns a value of the type int64"),
    "returns_yes": ("def returns_yes", "returns a value of the type bool"),
    "returns_more": ("def returns_more", "returns a value of the type"),
    "unknown_function": ("np.no_such_function(share)", "has no attribute 'no_such_function'"),
    "wrong_type": ('return heavier(row, "much")', "'much'"),
    "unknown_in_helper": ("return below(x)", "NameError: name 'below' is not defined"),
    "unknown_name": ("return heavier(row, shar)", "NameError: name 'shar' is not defined"),
    "plain_helper": (
        "helper(share)",
        "'helper' is a plain Python function: mark it with numba.extending.register_jitab",
    ),
    "dictionary": ('SETTINGS["share"]', "'SETTINGS' is a dict, which compiled code cannot use"),
    "uses_torch": ("torch.exp(share)", "compiled code has no torch.exp"),
    "indexed": ("share[0]", "there is no `getitem(float, 0)`"),
    "adds_text": ('share + "a"', "there is no `add(float, 'a')`"),
}
"""Mistake -> a part of the line that is named, or that of `def` where what it returns is meant; and what is said."""

LOGITS = torch.tensor([[0.0, 1.0, 2.0]])


class Mistaken(neurogen.Sampler):
    """A sampler with the kernels of a test."""

    name = "mistaken"
    api_version = 1
    backends = {"cpu": "mistaken_backend"}

    class Params(neurogen.SamplerParams):
        share: float = neurogen.Param(0.1, ge=0, le=1, description="Least share.")
        mode: str = neurogen.Param("a", description="A text.")
        temperature: float = neurogen.Param(1.0, ge=0, description="Divides the logits.")


def line_of(code: str) -> int:
    lines = inspect.getsource(mistaken_definitions).splitlines()
    return next(number for number, line in enumerate(lines, 1) if code in line)


def failure_of(monkeypatch: pytest.MonkeyPatch, keep: Callable[..., Any], *names: str, call: str = "sample") -> str:
    backend: Any = ModuleType("mistaken_backend")
    monkeypatch.setitem(sys.modules, "mistaken_backend", backend)
    backend.sample, backend.probs, backend.support = cpu.truncation(keep, *names)
    with pytest.raises(NeurogenError) as caught:
        getattr(Mistaken(), call)(LOGITS)
    return str(caught.value)


@pytest.mark.parametrize("mistake", SAID)
def test_a_mistake_is_told_by_the_line_and_the_sentence_that_counts(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failure_of(monkeypatch, mistaken_definitions.definitions(cpu)[mistake], "share")
    code, sentence = SAID[mistake]
    code = "def returns_list" if mistake == "returns_list" else code
    assert sentence in said
    assert f"mistaken_definitions.py, line {line_of(code)}" in said
    assert "\n" not in said
    assert len(said) < 500


@pytest.mark.parametrize("mistake", SAID)
def test_the_compiler_for_cuda_is_explained_in_the_same_way(mistake: str) -> None:
    cuda = pytest.importorskip("neurogen.kernels.cuda")
    cuda_compile = pytest.importorskip("neurogen.kernels.cuda_compile")
    kernel = cuda.truncation(mistaken_definitions.definitions(cuda)[mistake], "share").sample.kernel
    number, whole = torch.float64, torch.int64
    with pytest.raises(Exception) as caught:  # of Numba, of Python, of neurogen
        cuda_compile.ptx_of(kernel, torch.float32, (number, number, whole, whole, whole), (9, 0))
    error = caught.value
    said = str(error) if isinstance(error, NeurogenError) else explained(error.with_traceback(without_first(error)))
    code, sentence = SAID[mistake]
    if mistake in ("returns_list", "wrong_type"):
        sentence = {"returns_list": "can make no list", "wrong_type": "there is no `"}[mistake]
    assert sentence.replace("there is no `heavier(Row)`: ", "").removesuffix("64") in said
    assert f"mistaken_definitions.py, line {line_of(code)}" in said
    assert "\n" not in said
    assert len(said) < 500


def without_first(error: BaseException) -> Any:
    """The traceback without the test's own line."""
    assert error.__traceback__ is not None
    return error.__traceback__.tb_next


@pytest.mark.parametrize("call", ["sample", "probs", "support"])
def test_a_misspelled_name_of_a_parameter_is_told_with_those_there_are(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failure_of(monkeypatch, lambda row, share: cpu.heavier(row, share), "shar", call=call)
    assert "take the parameter 'shar', and the sampler has share, mode, temperature: correct the names" in said
    assert "test_mistakes.py, line " in said


def test_a_parameter_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = failure_of(monkeypatch, lambda row, share: cpu.heavier(row, share), "mode")
    assert "take the parameter 'mode', which is str 'a': a kernel takes int and float parameters alone" in said


def test_a_misspelled_parameter_in_torch_is_told_with_its_line() -> None:
    class InTorch(neurogen.TruncationSampler):
        name = "in-torch"
        api_version = 1
        Params = Mistaken.Params

        def keep(self, logits: Any, params: Any) -> Any:
            return logits > params.shar[:, None]

    with pytest.raises(PluginError) as caught:
        InTorch().sample(LOGITS)
    said = str(caught.value)
    assert "there is no parameter 'shar', and the sampler has share, mode, temperature, in " in said
    assert "`return logits > params.shar[:, None]`" in said


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (lambda logits: None, "keep of sampler 'kept-wrongly' .* got NoneType"),
        (lambda logits: 5, "keep of sampler 'kept-wrongly' .* got int"),
        (lambda logits: logits, r"keep of sampler 'kept-wrongly' .* got torch.float32 \[1, 3\] on cpu"),
        (lambda logits: logits > 100, r"kept no token in row\(s\) \[0\].* A sampler keeps at least one token"),
    ],
)
@pytest.mark.parametrize("call", ["sample", "probs", "support"])
def test_what_a_function_returns_wrongly_is_told_with_its_place(call: str, kept: Any, said: str) -> None:
    class KeptWrongly(neurogen.TruncationSampler):
        name = "kept-wrongly"
        api_version = 1
        Params = Mistaken.Params

        def keep(self, logits: Any, params: Any) -> Any:
            return kept(logits)

    place = f" See keep in .*test_mistakes.py, line {KeptWrongly.keep.__code__.co_firstlineno}\\.$"
    with pytest.raises(neurogen.ContractError, match=f"{said}.*{place}"):
        getattr(KeptWrongly(), call)(LOGITS)


def test_a_function_that_takes_other_arguments_is_told_with_its_place() -> None:
    class TakesLess(neurogen.TruncationSampler):
        name = "takes-less"
        api_version = 1
        Params = Mistaken.Params

        def keep(self, logits: Any) -> Any:  # type: ignore[override]
            return logits > 0

    place = f"See keep in .*test_mistakes.py, line {TakesLess.keep.__code__.co_firstlineno}\\. This is an error"
    with pytest.raises(PluginError, match=f"takes 2 positional arguments but 3 were given. {place}"):
        TakesLess().sample(LOGITS)


def test_a_module_that_is_no_python_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mistaken_backend.py").write_text("def keep(row):\n    return (row\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as caught:
        Mistaken().sample(LOGITS)
    assert f"SyntaxError: '(' was never closed, in {tmp_path}/mistaken_backend.py, line 2: `return (row`." in str(
        caught.value
    )


def keep_two(row: Any, k: Any, p: Any) -> Any:
    return cpu.nucleus(row, p, cpu.largest(row, k))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keep", "k"), "was given 'keep' as `keep`. It must be a function keep(row, *parameters)"),
        ((len, "k"), "was given <built-in function len> as `keep`"),
        ((keep_two, "k"), r"with (row, k), and it takes (row, k, p): missing a required argument: 'p'"),
        ((keep_two, "k", "p", "q"), "with (row, k, p, q), and it takes (row, k, p): too many positional arguments"),
        ((keep_two, "k", 3), "was given 3 as the name of a parameter"),
        ((keep_two, "k", "top p"), "was given 'top p' as the name of a parameter"),
        ((keep_two, "a", "b", "c", "d"), "was given 4 parameters; a definition takes at most 3"),
    ],
)
def test_what_no_kernel_can_be_made_of_is_refused_at_once(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ParameterError) as caught:
        cpu.truncation(*arguments)
    assert said in str(caught.value)


def test_a_temperature_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match=r"takes \(row\): too many positional arguments"):
        cpu.truncation(lambda row, share: cpu.everything(row), "share", temper=lambda row: 1.0)
    backend: Any = ModuleType("mistaken_backend")
    monkeypatch.setitem(sys.modules, "mistaken_backend", backend)
    kept = lambda row, share: cpu.everything(row)  # noqa: E731
    backend.sample, _, _ = cpu.truncation(kept, "share", temper=lambda row, share: None)
    with pytest.raises(neurogen.ContractError, match="It must return a temperature, a number"):
        Mistaken().sample(LOGITS)


@pytest.mark.parametrize("mistake", ["attribute", "missing_branch"])
def test_conformance_says_once_that_a_definition_cannot_be_compiled(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = ModuleType("mistaken_backend")
    monkeypatch.setitem(sys.modules, "mistaken_backend", backend)
    keep = mistaken_definitions.definitions(cpu)[mistake]
    backend.sample, backend.probs, backend.support = cpu.truncation(keep, "share")
    report = check(Mistaken, quick=True, only=["declaration", "agreement", "ids", "state", "batch"])
    assert report.failed == ["agreement"]
    assert [report[name].notes for name in ("ids", "batch")] == [("its kernels cannot be compiled",)] * 2
    failure = report["agreement"].failure
    assert failure is not None
    assert SAID[mistake][1] in failure.got
    assert "\n" not in failure.got
