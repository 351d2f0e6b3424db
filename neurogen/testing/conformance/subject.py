"""The sampler that is checked: how it is made with other parameters, and its meaning by its reference."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neurogen import reference
from neurogen.contract.mistakes import explained
from neurogen.contract.parameters import BOUNDS
from neurogen.contract.sampler import Sampler
from neurogen.errors import PluginError
from neurogen.kernels.host import place_of
from neurogen.reference import Mask, Row
from neurogen.testing.conformance.case import Value

__all__ = ["Meaning", "Subject"]

NUDGE = 2e-6
"""A kernel's masses know parameters and logits to about this share; tokens whose place depends on less may be kept or
not."""
JUMP = 1e-4
"""Probabilities that change by more (in total variation) when their arguments change by NUDGE are not checked."""
MOST_KEPT = 256
OWN_CLASS = "class "


Memory = dict[str, Any]
"""What is remembered of one row: name -> array, without the batch dimension."""
Arguments = tuple[Row, dict[str, Value], Memory | None]
"""Logits, parameters and memory of one row."""


class Subject:
    """A sampler under test.

    Args:
        sampler: an instance, whose parameters are the base of those tried, or a class with its defaults.
        device: where it runs.

    Attributes:
        cls: its class.
        base: parameter -> value, every parameter.
        origin: where it comes from.
        meaning: its reference.
    """

    def __init__(self, sampler: Sampler | type[Sampler], device: torch.device) -> None:
        made = sampler() if isinstance(sampler, type) else sampler
        self.cls: type[Sampler] = type(made)
        self.base: dict[str, Value] = made.params.model_dump()
        self.origin = made.origin
        self.label = repr(made)
        self.device = device
        self.meaning = Meaning(self)
        self._given = {name for name in made.params.model_fields_set if name in self.base}
        self._made: dict[tuple[Any, ...], Sampler] = {}

    @property
    def installed(self) -> bool:
        """Whether it came from the registry, and can be named in `load_sampler`."""
        return not self.origin.startswith(OWN_CLASS)

    def make(self, params: Mapping[str, Value]) -> Sampler:
        """The sampler with these parameters in place of its own; kept for the next time."""
        key = tuple(sorted((name, repr(value)) for name, value in params.items()))
        if key not in self._made:
            if len(self._made) >= MOST_KEPT:
                self._made.clear()
            made = self.cls(**{**self.base, **params})
            made.origin = self.origin
            self._made[key] = made
        return self._made[key]

    def imports(self) -> list[str]:
        """The lines that a program needs to make it."""
        if self.installed:
            return ["import neurogen"]
        return [f"from {self.cls.__module__} import {self.cls.__qualname__.split('.')[0]}"]

    def code(self, params: Mapping[str, Value]) -> str:
        """The expression that makes it with these parameters."""
        given = {name: value for name, value in self.base.items() if name in self._given} | dict(params)
        arguments = [f"{name}={value!r}" for name, value in given.items()]
        if self.installed:
            return f"neurogen.load_sampler({', '.join([repr(self.cls.name), *arguments])})"
        return f"{self.cls.__qualname__}({', '.join(arguments)})"


class Meaning:
    """What a sampler means by its author's reference, where there is one."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._module: Any = None

    @property
    def given(self) -> bool:
        """Whether the author names a reference."""
        return bool(self._subject.cls.reference)

    @property
    def module(self) -> Any:
        """The module of the reference.

        Raises:
            PluginError: it cannot be imported or has no `support`.
        """
        if self._module is None:
            name = self._subject.cls.reference
            try:
                self._module = sys.modules.get(name) or importlib.import_module(name)
            except Exception as error:
                raise PluginError(
                    f"The reference {name!r} of sampler {self._subject.cls.name!r} cannot be imported: "
                    f"{type(error).__name__}: {error}."
                ) from error
            if not callable(getattr(self._module, "support", None)):
                raise PluginError(
                    f"The reference {name!r} of sampler {self._subject.cls.name!r} has no function "
                    "support(logits, **params)."
                )
        return self._module

    @property
    def tells_next_state(self) -> bool:
        """Whether the reference says what a sampler with memory remembers after a token."""
        return self.given and callable(getattr(self.module, "next_state", None))

    @property
    def takes_state(self) -> bool:
        """Whether the reference says what can be drawn with what is remembered: `support` has a parameter `state`."""
        return self.given and "state" in inspect.signature(self.module.support).parameters

    def support(self, row: Row, params: Mapping[str, Value], state: Memory | None = None) -> Mask:
        """The support by the reference, of the first token or of one before which `state` is remembered.

        Raises:
            PluginError: the reference fails, or gives none.
        """
        kept = np.asarray(self._ask("support", row, **params, **({} if state is None else {"state": state})))
        if kept.dtype != np.bool_ or kept.shape != row.shape or not kept.any():
            raise PluginError(
                f"The reference's support must give bool [{len(row)}] with at least one True, "
                f"got {kept.dtype} {list(kept.shape)} with {int(kept.sum())} kept."
            )
        return kept

    def bounds(self, row: Row, params: Mapping[str, Value], state: Memory | None = None) -> tuple[Mask, Mask]:
        """Tokens that must be kept, and tokens that may be.

        The two differ where the reference itself changes when a parameter, the scale of the logits, or what is
        remembered changes by NUDGE: there masses of finite precision decide. A parameter at one of its bounds is exact.
        """
        kept = np.stack([self.support(*arguments) for arguments in self._nudged(row, params, state)])
        return np.asarray(kept.all(axis=0)), np.asarray(kept.any(axis=0))

    def next_states(self, row: Row, token: int, state: Memory, params: Mapping[str, Value]) -> list[Memory]:
        """What is remembered after a token, by the reference; then the same where an argument changes by NUDGE.

        Raises:
            PluginError: the reference fails, or gives other memory than the sampler has.
        """
        found = []
        for logits, values, before in self._nudged(row, params, state):
            after = self._ask("next_state", logits, token, before, **values)
            if not isinstance(after, Mapping) or after.keys() != state.keys():
                got = sorted(after) if isinstance(after, Mapping) else type(after).__name__
                raise PluginError(
                    f"The reference's next_state must give {sorted(state)}, as new_state does; got {got}. "
                    f"See {place_of(self.module.next_state)}."
                )
            found.append(dict(after))
        return found

    def probs(self, row: Row, params: Mapping[str, Value], kept: Mask) -> NDArray[np.float64] | None:
        """The distribution [vocab] by the reference over the tokens `kept`; None where it changes too much by NUDGE."""
        own = getattr(self.module, "probs", None)
        if own is None or own is reference.probs:  # imported for the reference's own use
            return reference.probs(row, kept, float(params.get("temperature", 1.0)))
        exact, *nudged = (
            np.asarray(self._ask("probs", logits, **values), dtype=np.float64)
            for logits, values, _ in self._nudged(row, params)
        )
        return None if any(np.abs(other - exact).sum() > 2 * JUMP for other in nudged) else exact

    def _ask(self, name: str, *arguments: Any, **params: Any) -> Any:
        """What a function of the reference returns.

        Raises:
            PluginError: it fails; with the author's line, or where the function stands.
        """
        function = getattr(self.module, name)
        try:
            return function(*arguments, **params)
        except PluginError:
            raise
        except Exception as error:
            said = explained(error)
            where = "" if ", line " in said else f", in {place_of(function)}"
            raise PluginError(f"The reference's {name} raised {said}{where}.") from error

    def _nudged(self, row: Row, params: Mapping[str, Value], state: Memory | None = None) -> list[Arguments]:
        """The arguments as they are, then with each of them changed by NUDGE in both directions."""
        exact, values, both = row.astype(np.float64), dict(params), (1 - NUDGE, 1 + NUDGE)
        with np.errstate(invalid="ignore"):
            found: list[Arguments] = [(row, values, state), *((exact * factor, values, state) for factor in both)]
        for name, value in params.items():
            field = self._subject.cls.Params.model_fields[name]
            limits = [getattr(item, bound, None) for item in field.metadata for bound, _ in BOUNDS]
            if field.annotation is float and isinstance(value, int | float) and value not in limits:
                found += [(row, {**values, name: value * factor}, state) for factor in both]
        for name, memory in (state or {}).items():
            if memory.dtype.kind == "f":
                found += [(row, values, {**(state or {}), name: memory * factor}) for factor in both]
        return found
