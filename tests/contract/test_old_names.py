"""Samplers written for version 0.1 define `select`, `distribution` and `survivors`: they work, and are warned of."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen import Sampler, SamplerParams
from neurogen.contract.declarations import sampler_problem
from neurogen.testing.conformance import check

PLUGINS = Path(__file__).parents[1] / "plugins"
LOGITS = torch.tensor([[0.0, 2.0, 1.0]])


class First(Sampler):
    """Draws the first token."""

    name = "first"
    api_version = 1
    Params = SamplerParams

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any) -> Tensor:
        return torch.zeros_like(seed)

    def _probs(self, logits: Tensor, params: Any) -> Tensor:
        return (torch.arange(logits.shape[1]).expand(logits.shape) == 0).float()

    def _support(self, logits: Tensor, params: Any) -> Tensor:
        return torch.arange(logits.shape[1]).expand(logits.shape) == 0


def later_class() -> Any:
    """A subclass of `First` with old names, which draws the token behind that of `First`."""

    class Later(First):
        """Draws the second token."""

        def select(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any) -> Tensor:
            return super().select(logits, seed, position, params) + 1  # type: ignore[misc]

        def distribution(self, logits: Tensor, params: Any) -> Tensor:
            return super().distribution(logits, params).roll(1, 1)  # type: ignore[misc]

        def survivors(self, logits: Tensor, params: Any) -> Tensor:
            return super().survivors(logits, params).roll(1, 1)  # type: ignore[misc]

    return Later


def test_old_names_are_warned_of_with_what_to_write() -> None:
    with pytest.warns(DeprecationWarning, match="The method") as told:
        later_class()
    said = [str(warning.message) for warning in told]
    assert len(said) == 3
    for old, new, message in zip(
        ("select", "distribution", "survivors"), ("_sample", "_probs", "_support"), said, strict=True
    ):
        assert f"The method `{old}` of a sampler is called `{new}` now. In {__name__}.later_class" in message
        assert f"write `def {new}(...)`, and `super().{new}(...)` where it calls that." in message
        assert message.endswith("The old name goes with version 0.3.")
    assert {warning.filename for warning in told} == {__file__}


def test_old_names_do_what_the_names_of_today_do() -> None:
    with pytest.warns(DeprecationWarning, match="The old name goes with version 0.3"):
        later = later_class()
    assert sampler_problem(later) is None
    sampler = later()
    assert sampler.sample(LOGITS).tolist() == [1]
    assert sampler.probs(LOGITS).tolist() == [[0, 1, 0]]
    assert sampler.support(LOGITS).tolist() == [[False, True, False]]


def test_a_class_of_today_can_be_made_of_one_with_old_names() -> None:
    with pytest.warns(DeprecationWarning, match="The old name goes with version 0.3"):
        later = later_class()

    class Last(later):  # type: ignore[misc]
        """Draws the third token."""

        def _sample(self, logits: Tensor, *arguments: Any) -> Tensor:
            return super()._sample(logits, *arguments) + 1  # type: ignore[no-any-return]

    assert Last().sample(LOGITS).tolist() == [2]


def test_old_names_of_a_mixin_work() -> None:
    class Mixin:
        def select(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any) -> Tensor:
            return super().select(logits, seed, position, params) + 2  # type: ignore[misc, no-any-return]

    with pytest.warns(DeprecationWarning, match="`select` of a sampler is called `_sample`"):
        mixed = type("Mixed", (Mixin, First), {"__doc__": "Draws the third token."})
    assert mixed().sample(LOGITS).tolist() == [2]


def test_a_helper_with_a_name_of_today_does_not_replace_a_method_with_an_old_name() -> None:
    with pytest.warns(DeprecationWarning, match="The old name goes with version 0.3"):

        class WithHelper(First):
            """Draws the second token."""

            def select(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any) -> Tensor:
                return torch.ones_like(seed)

            def _sample(self, weights: Tensor) -> Tensor:  # type: ignore[override]
                return weights

    assert WithHelper().sample(LOGITS).tolist() == [1]


def test_a_class_for_both_versions_is_not_warned_of() -> None:
    class Both(First):
        """Draws the second token."""

        def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any) -> Tensor:
            return torch.ones_like(seed)

        select = _sample

    assert Both().sample(LOGITS).tolist() == [1]


def test_a_call_by_an_old_name_is_warned_of() -> None:
    with pytest.warns(DeprecationWarning, match=r"`survivors` of a sampler is called `_support` now: write `._supp"):
        kept = neurogen.load_sampler("greedy").survivors(LOGITS, neurogen.RowParams())  # type: ignore[attr-defined]
    assert kept.tolist() == [[False, True, False]]


def test_engines_of_before_see_whether_a_sampler_chooses_by_itself() -> None:
    assert First.select is not Sampler.select  # type: ignore[attr-defined]
    greedy = type(neurogen.load_sampler("greedy"))
    assert greedy.select is Sampler.select  # type: ignore[attr-defined]


def test_a_plugin_of_before_keeps_its_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGINS / "neurogen-cooling-example")
    with pytest.warns(DeprecationWarning, match="In neurogen_cooling_example.Cooling write `def _"):
        (cooling,) = importlib.import_module("neurogen_cooling_example").neurogen_samplers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check(cooling, quick=True, only=["declaration", "agreement", "batch", "state"])
    assert report.passed, report
