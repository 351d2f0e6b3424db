"""The sampler that is held against its contract: how it is made with other parameters, and what it means."""

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
"""Parameters and logits are known to a kernel's masses to about this share: a token whose place depends on less is
left open."""
JUMP = 1e-4
"""Probabilities that change by more (in total variation) when their arguments change by NUDGE are left open."""
MOST_KEPT = 256
OWN_CLASS = "class "


Memory = dict[str, Any]
"""What is remembered of one row: name -> array, without the batch dimension."""


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
        """The support by the reference; of the first token, or of one before which so much is remembered.

        Raises:
            PluginError: the reference fails, or gives none.
        """
        remembered = {} if state is None else {"state": state}
        try:
            kept = np.asarray(self.module.support(row, **params, **remembered))
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"The reference's support raised {self._told('support', error)}.") from error
        if kept.dtype != np.bool_ or kept.shape != row.shape or not kept.any():
            raise PluginError(
                f"The reference's support must give bool [{len(row)}] with at least one True, "
                f"got {kept.dtype} {list(kept.shape)} with {int(kept.sum())} kept."
            )
        return kept

    def bounds(self, row: Row, params: Mapping[str, Value]) -> tuple[Mask, Mask]:
        """Tokens that must be kept, and tokens that may be.

        The two differ where the reference itself changes when a parameter, or the scale of the logits, changes by
        NUDGE: there masses of finite precision decide. A parameter at one of its bounds is exact.
        """
        kept = self.support(row, params)
        must, may = kept.copy(), kept.copy()
        for logits, values in self._nudged(row, params):
            other = self.support(logits, values)
            must &= other
            may |= other
        return must, may

    def must(self, row: Row, params: Mapping[str, Value], state: Memory) -> Mask:
        """Tokens that can be drawn with what is remembered, also where it, or an argument, changes by NUDGE."""
        return np.asarray(np.stack([self.support(*one) for one in self._with_state(row, params, state)]).all(axis=0))

    def may(self, row: Row, params: Mapping[str, Value], state: Memory) -> Mask:
        """Tokens that can be drawn with what is remembered, or where it, or an argument, changes by NUDGE."""
        return np.asarray(np.stack([self.support(*one) for one in self._with_state(row, params, state)]).any(axis=0))

    def next_states(self, row: Row, token: int, state: Memory, params: Mapping[str, Value]) -> list[Memory]:
        """What is remembered after a token, by the reference; then the same where an argument changes by NUDGE.

        Raises:
            PluginError: the reference fails, or gives other memory than the sampler has.
        """
        found = []
        for logits, values, before in self._with_state(row, params, state):
            try:
                after = self.module.next_state(logits, token, before, **values)
            except Exception as error:
                raise PluginError(f"The reference's next_state raised {self._told('next_state', error)}.") from error
            if not isinstance(after, Mapping) or after.keys() != state.keys():
                got = sorted(after) if isinstance(after, Mapping) else type(after).__name__
                raise PluginError(
                    f"The reference's next_state must give {sorted(state)}, as new_state does; got {got}. "
                    f"See {place_of(self.module.next_state)}."
                )
            found.append(dict(after))
        return found

    def _told(self, name: str, error: Exception) -> str:
        """What a function of the reference raised, and the author's line, or where the function stands."""
        said = explained(error)
        return said if ", line " in said else f"{said}, in {place_of(getattr(self.module, name))}"

    def _with_state(
        self, row: Row, params: Mapping[str, Value], state: Memory
    ) -> list[tuple[Row, dict[str, Value], Memory]]:
        """The arguments as they are, then with each changed by NUDGE."""
        found: list[tuple[Row, dict[str, Value], Memory]] = [(row, dict(params), state)]
        found += [(logits, values, state) for logits, values in self._nudged(row, params)]
        for name, memory in state.items():
            if memory.dtype.kind == "f":
                found += [(row, dict(params), {**state, name: memory * (1 + sign)}) for sign in (-NUDGE, NUDGE)]
        return found

    def probs(self, row: Row, params: Mapping[str, Value], kept: Mask) -> NDArray[np.float64] | None:
        """The distribution [vocab] by the reference over the tokens `kept`; None where it is left open."""
        own = getattr(self.module, "probs", None)
        if own is None or own is reference.probs:  # imported for the reference's own use
            return reference.probs(row, kept, float(params.get("temperature", 1.0)))
        try:
            exact = np.asarray(own(row, **params), dtype=np.float64)
            nudged = [
                np.asarray(own(logits, **values), dtype=np.float64) for logits, values in self._nudged(row, params)
            ]
        except Exception as error:
            raise PluginError(f"The reference's probs raised {self._told('probs', error)}.") from error
        return None if any(np.abs(other - exact).sum() > 2 * JUMP for other in nudged) else exact

    def _nudged(self, row: Row, params: Mapping[str, Value]) -> list[tuple[Row, dict[str, Value]]]:
        exact = row.astype(np.float64)
        with np.errstate(invalid="ignore"):
            found: list[tuple[Row, dict[str, Value]]] = [(exact * (1 + sign), dict(params)) for sign in (-NUDGE, NUDGE)]
        for name, value in params.items():
            field = self._subject.cls.Params.model_fields[name]
            limits = [getattr(item, bound, None) for item in field.metadata for bound, _ in BOUNDS]
            if field.annotation is float and isinstance(value, int | float) and value not in limits:
                found += [(row, {**params, name: value * (1 + sign)}) for sign in (-NUDGE, NUDGE)]
        return found
