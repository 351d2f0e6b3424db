"""Checks of what a sampler declares: its name, options, bounds and defaults, its reference and backends."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic.fields import FieldInfo

from neurogen.contract.declarations import RUN_OPTIONS, sampler_problem
from neurogen.contract.parameters import domain_of, option_of
from neurogen.errors import NeurogenError, ParameterError
from neurogen.testing.conformance.case import Case, Value
from neurogen.testing.conformance.cases import batch_of, bounds_of
from neurogen.testing.conformance.kit import Kit, check
from neurogen.testing.conformance.trial import Trial, Violation

__all__: list[str] = []

OPTION = re.compile(r"--[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")
BACKEND_FUNCTIONS = ("sample", "probs", "support")
FAR = 1e6


@check("declaration", "the declaration is complete, and what it names can be imported")
def declaration(kit: Kit) -> None:
    cls = kit.subject.cls
    kit.count()
    problem = sampler_problem(cls)
    if problem:
        kit.fail("a complete declaration", problem)
    if not (vars(cls).get("__doc__") or "").strip():
        kit.fail("a docstring that says what it chooses, since listings show it", f"{cls.__name__} has none")
    options: dict[str, str] = {}
    for name, field in cls.Params.model_fields.items():
        kit.count()
        option = option_of(name, field)
        if not OPTION.fullmatch(option):
            kit.fail("options such as --top-k", f"{option!r}, of the parameter {name!r}")
        if option in {*options, *RUN_OPTIONS}:
            owner = f"the parameter {options[option]!r}" if option in options else "neurogen run"
            kit.fail("options of its own", f"{option} of the parameter {name!r}, which {owner} has already")
        options[option] = name
    _import_reference(kit)
    _import_backends(kit)


def _import_reference(kit: Kit) -> None:
    if not kit.subject.meaning.given:
        kit.notes.append("no float64 reference is given (Sampler.reference)")
        return
    kit.count()
    try:
        kit.subject.meaning.module  # noqa: B018  (reading it imports it)
    except NeurogenError as error:
        kit.fail("a reference with support(logits, **params)", str(error))


def _import_backends(kit: Kit) -> None:
    module = kit.subject.cls.backends.get("cpu")
    if module is None:
        return
    kit.count()
    try:
        backend = importlib.import_module(module)
    except Exception as error:
        kit.fail(f"the module {module!r} of the CPU can be imported", f"{type(error).__name__}: {error}")
    missing = [name for name in BACKEND_FUNCTIONS if not callable(getattr(backend, name, None))]
    if missing:
        kit.fail(f"{module!r} has sample, probs and support", f"it has no {', '.join(missing)}")


# Bounds.


@check("bounds", "parameters outside their bounds are refused, those at the bounds work")
def bounds(kit: Kit) -> None:
    subject, fields = kit.subject, kit.subject.cls.Params.model_fields
    logits = torch.tensor([[1.0, 0.5, 0.0]], device=subject.device).to(getattr(torch, kit.dtypes()[0]))
    for name, field in fields.items():
        for value in _refused(name, field):
            _expect_refusal(kit, logits, name, field, value)
    _expect_refusal_of(kit, "no_such_parameter=1", lambda: subject.cls(no_such_parameter=1), "an unknown name")
    kit.hold(_at_bounds(kit), _works)


def _refused(name: str, field: FieldInfo) -> Iterator[Any]:
    """Values outside the domain of a parameter."""
    if field.annotation not in (int, float):
        return
    limits = bounds_of(field)
    step = 1 if field.annotation is int else 1e-3
    for bound, sign in (("ge", -1), ("le", 1)):
        if bound in limits:
            yield from (_typed(field, limits[bound] + sign * step), _typed(field, limits[bound] + sign * FAR))
    for bound in ("gt", "lt"):
        if bound in limits:
            yield _typed(field, limits[bound])
    if name == "temperature":
        yield from (-0.5, -1e-9)
    yield from (math.nan, math.inf, -math.inf, True, "much")


def _typed(field: FieldInfo, value: float) -> Value:
    return int(value) if field.annotation is int else float(value)


def _expect_refusal(kit: Kit, logits: torch.Tensor, name: str, field: FieldInfo, value: Any) -> None:
    """A value is refused when the sampler is made, for a call, and on the CPU in a tensor [batch]."""
    subject = kit.subject
    written = f"{name}={value!r}" if value == value else f"{name}=float('nan')"
    domain = "a finite number >= 0" if name == "temperature" else domain_of(field)
    _expect_refusal_of(kit, f"when it is made with {written}", lambda: subject.cls(**{name: value}), domain)
    sampler = subject.make({})
    state: dict[str, Any] = {"state": sampler.fresh_state(1, logits.device)} if subject.cls.stateful else {}

    def call(given: Any) -> Callable[[], Any]:
        return lambda: sampler.sample(logits, **state, **{name: given})

    _expect_refusal_of(kit, f"when sample is called with {written}", call(value), domain)
    if subject.device.type == "cpu" and type(value) is field.annotation:
        column = torch.tensor([value], dtype=torch.int64 if field.annotation is int else torch.float64)
        _expect_refusal_of(kit, f"when sample is called with {written} per row", call(column), domain)


def _expect_refusal_of(kit: Kit, when: str, call: Callable[[], Any], domain: str) -> None:
    kit.count()
    try:
        call()
    except ParameterError:
        return
    except Exception as error:
        kit.fail(f"a ParameterError {when} (allowed: {domain})", f"{type(error).__name__}: {error}")
    kit.fail(f"a ParameterError {when} (allowed: {domain})", "no error")


def _at_bounds(kit: Kit) -> Iterator[Case]:
    for name, field in kit.subject.cls.Params.model_fields.items():
        limits = bounds_of(field)
        values = [_typed(field, limits[bound]) for bound in ("ge", "le") if bound in limits]
        for value in values:
            for vocab in (1, 3, 50):
                yield batch_of(("normal", "ties", "removed"), kit.first_row, vocab, {name: value}, kit.dtypes()[0])


def _works(trial: Trial) -> None:
    """Sampling gives an id of every row, and probs and support are not empty."""
    ids = trial.sample()
    if not bool(((ids >= 0) & (ids < trial.case.vocab)).all()):
        raise Violation(f"ids from 0 to {trial.case.vocab - 1}", ids)
    kept = trial.support()
    if not bool(kept.any(dim=-1).all()):
        raise Violation("at least one token kept in every row", kept)
    probs = trial.probs()
    if not bool((probs > 0).any(dim=-1).all()):
        raise Violation("a probability above 0 in every row", probs)
