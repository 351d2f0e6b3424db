"""Modules are found under the names that they had in version 0.1, with a warning that says what to write."""

from __future__ import annotations

import importlib
import sys

import pytest

from neurogen._lazy import MOVED, RENAMED

LIBRARIES = {"engines.llama_context": "llama_cpp"}
"""Modules that need a library which may not be installed."""


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_module_of_version_0_1_is_found(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    if old in LIBRARIES:
        pytest.importorskip(LIBRARIES[old])
    monkeypatch.delitem(sys.modules, f"neurogen.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"neurogen\.{old} is now neurogen\.{new}\."):
        module = importlib.import_module(f"neurogen.{old}")
    assert module is importlib.import_module(f"neurogen.{new}")


@pytest.mark.parametrize(
    ("old", "name", "today"), [(old, *pair) for old, names in RENAMED.items() for pair in names.items()]
)
def test_a_name_of_such_a_module_is_found(monkeypatch: pytest.MonkeyPatch, old: str, name: str, today: str) -> None:
    monkeypatch.delitem(sys.modules, f"neurogen.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"Its {name} is now neurogen\.{today}\."):
        module = importlib.import_module(f"neurogen.{old}")
    where, _, which = today.rpartition(".")
    assert getattr(module, name) is getattr(importlib.import_module(f"neurogen.{where}"), which)


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("neurogen.no_such_module")
