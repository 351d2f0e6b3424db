"""That kernels are compiled is said while it lasts, with the sampler's name, and taken away whatever came of it."""

from __future__ import annotations

from typing import Any

import pytest

import neurogen
from neurogen.cli import compiling_notice
from neurogen.cli.compiling_notice import CompilingNotice
from neurogen.kernels import compiling


@pytest.fixture
def told() -> Any:
    """What watchers are told; afterwards nobody watches."""
    heard: list[bool] = []
    compiling.watch(heard.append)
    yield heard
    compiling._told.clear()


def test_what_is_compiled_within_something_else_is_told_once(told: list[bool]) -> None:
    with compiling.compiling(), compiling.compiling():
        assert told == [True]
    assert told == [True, False]


def test_a_compilation_that_fails_has_ended_too(told: list[bool]) -> None:
    with pytest.raises(ValueError, match="no such kernel"), compiling.compiling():
        raise ValueError("no such kernel")
    assert told == [True, False]


def test_nobody_is_told_while_it_is_said_in_other_words(told: list[bool]) -> None:
    with compiling.unwatched(), compiling.compiling():
        pass
    with compiling.compiling():
        pass
    assert told == [True, False]


def test_numba_tells_when_it_compiles_and_not_when_it_need_not(told: list[bool]) -> None:
    from neurogen.kernels.cpu_cache import cached

    def one_more(x: int) -> int:
        return x + 1

    form = cached(one_more)
    form._cache = _Nothing()
    assert form(1) == 2
    assert told == [True, False]
    assert form(2) == 3
    assert told == [True, False]


class _Nothing:
    """A cache that keeps nothing."""

    def load_overload(self, *arguments: Any) -> None: ...
    def save_overload(self, *arguments: Any) -> None: ...


def test_the_line_names_the_sampler_and_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling_notice, "SLOW_SECONDS", 0.0)
    notice = CompilingNotice()

    class Slow(neurogen.TruncationSampler):
        """Compiles, as far as anybody can tell."""

        name = "slow"
        api_version = 1

        class Params(neurogen.SamplerParams):
            temperature: float = neurogen.Param(1.0, ge=0, description="Divides the logits.")

        def keep(self, logits: Any, params: Any) -> Any:
            notice(True)
            assert notice._timer is not None
            notice._timer.join()
            return logits.isfinite()

    import torch

    Slow().sample(torch.zeros(1, 3))
    line = "\r\x1b[2KCompiling the kernels of slow (first use after a change) ..."
    assert capsys.readouterr().err == line
    notice(False)
    assert capsys.readouterr().err == "\r\x1b[2K"
    notice(False)
    assert capsys.readouterr().err == ""
