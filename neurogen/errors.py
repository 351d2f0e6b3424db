"""Every error that neurogen raises on purpose. Imports nothing else of the package.

    NeurogenError
    ├── PluginError           a plugin cannot be found or loaded
    ├── ContractError         a plugin does not keep what was required of it
    ├── ParameterError        a value outside its domain (also a ValueError)
    ├── InvalidLogitsError    rows without a valid distribution (also a ValueError)
    ├── ModelError            a model or tokenizer cannot be found, loaded or used as asked
    ├── DataError             a file of prompts, data or results cannot be read or written as asked
    └── DeviceError           a device or number format that this machine does not have

A message is one paragraph: what was given, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "ContractError",
    "DataError",
    "DeviceError",
    "InvalidLogitsError",
    "ModelError",
    "NeurogenError",
    "ParameterError",
    "PluginError",
]

MAX_ROWS_NAMED = 8


class NeurogenError(Exception):
    """Base class of all errors that neurogen raises on purpose.

    Attributes:
        results: the results that were finished in spite of it; see `neurogen.text.runner.Runner.generate`.
    """

    results: Sequence[Any] = ()
    _reason: str | None = None

    @property
    def reason(self) -> str:
        """The message without the name of the sequence, for callers that name the sequence themselves."""
        return str(self) if self._reason is None else self._reason

    @reason.setter
    def reason(self, message: str) -> None:
        self._reason = message


class PluginError(NeurogenError):
    """A plugin cannot be found or loaded; the message names distribution, version and cause."""


class ContractError(NeurogenError):
    """A plugin was loaded and does not keep what was required of it."""


class ModelError(NeurogenError):
    """A model or its tokenizer cannot be found, loaded, or used as asked."""


class DataError(NeurogenError):
    """A file of prompts, data or results cannot be read or written as asked."""


class DeviceError(NeurogenError):
    """A device or number format was asked for that this machine does not have."""


class ParameterError(NeurogenError, ValueError):
    """A value lies outside its domain.

    Attributes:
        parameter: name of the parameter the message is about, or None when it concerns several.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class InvalidLogitsError(NeurogenError, ValueError):
    """Rows of the logits have no valid distribution: NaN, +inf, or nothing left to draw.

    Attributes:
        rows: indices of those rows within the batch, ascending.
    """

    def __init__(self, rows: Sequence[int], sampler: str) -> None:
        self.rows = tuple(rows)
        named = ", ".join(str(row) for row in self.rows[:MAX_ROWS_NAMED])
        more = len(self.rows) - MAX_ROWS_NAMED
        if more > 0:
            named += f" and {more} more"
        super().__init__(
            f"Sampler {sampler!r} was given logits without a valid distribution in row(s) {named}: "
            "a row must hold no NaN and no +inf, and at least one value above -inf. "
            "Check the model's output for overflow, or pass check=False to receive the id -1 for these rows."
        )
