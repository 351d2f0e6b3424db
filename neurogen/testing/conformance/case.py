"""One case of a check: logits and the other arguments, and the Python that writes it. Knows no sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Case", "Value", "is_valid", "number", "on", "per_row_numbers", "summary", "written"]

Value = int | float | bool | str
MOST_WRITTEN = 240
"""Logits that are written out; more are written as their recipe."""
MOST_SUMMARISED = 12


@dataclass(frozen=True)
class Case:
    """What a law is tried on.

    Attributes:
        logits: [batch, vocab] on the CPU, in the dtype that the sampler gets.
        params: parameter -> value for all rows, or a tuple with one a row; the sampler's own for what is missing.
        seed, position: one number for all rows, or one a row.
        recipe: an expression for each row, while the logits are as they were made.
    """

    logits: Tensor
    params: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict)
    seed: int | tuple[int, ...] = 0
    position: int | tuple[int, ...] = 0
    recipe: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """The number of rows."""
        return int(self.logits.shape[0])

    @property
    def vocab(self) -> int:
        """The number of tokens."""
        return int(self.logits.shape[1])

    def numpy_rows(self) -> Iterator[NDArray[Any]]:
        """Each row as the reference takes it."""
        yield from self.logits.float().numpy()

    def params_of(self, row: int) -> dict[str, Value]:
        """The parameters of one row."""
        return {name: at(value, row) for name, value in self.params.items()}

    def with_rows(self, rows: Sequence[int]) -> Case:
        """The case with these rows alone, in this order."""
        return replace(
            self,
            logits=self.logits[list(rows)],
            params={name: pick(value, rows) for name, value in self.params.items()},
            seed=pick(self.seed, rows),
            position=pick(self.position, rows),
            recipe=pick(self.recipe, rows) if self.recipe else (),
        )

    def with_columns(self, columns: Sequence[int]) -> Case:
        """The case with these tokens alone, in this order."""
        return replace(self, logits=self.logits[:, list(columns)], recipe=())

    def logits_code(self, device: torch.device) -> str:
        """The logits as Python."""
        where = on(device)
        dtype = "" if self.logits.dtype == torch.float32 else f", dtype={self.logits.dtype}"
        if self.recipe and self.logits.numel() > MOST_WRITTEN:
            tail = "" if not dtype and not where else f".to({(dtype + where).removeprefix(', ')})"
            return f"torch.stack([{', '.join(self.recipe)}]){tail}"
        rows = [f"[{', '.join(number(x, self.logits.dtype) for x in row.tolist())}]" for row in self.logits]
        return f"torch.tensor([{', '.join(rows)}]{dtype}{where})"


def at(value: Any, row: int) -> Any:
    """The value of one row."""
    return value[row] if isinstance(value, tuple) else value


def pick(value: Any, rows: Sequence[int]) -> Any:
    """The values of some rows; one for all stays as it is."""
    return tuple(value[row] for row in rows) if isinstance(value, tuple) else value


def per_row_numbers(case: Case) -> Case:
    """The case with a seed and a position of its own for each row."""
    seeds = tuple(1000 + 17 * row for row in range(case.batch))
    return replace(case, seed=seeds, position=tuple(3 + row * row for row in range(case.batch)))


def is_valid(logits: Tensor) -> bool:
    """Whether every row has a distribution: no NaN, no +inf, and something above -inf."""
    return not bool(logits.isnan().any()) and bool(logits.float().amax(dim=-1).isfinite().all())


def number(value: float, dtype: torch.dtype = torch.float32) -> str:
    """The shortest text that gives this number again in this dtype; infinities and NaN as `math` calls them."""
    narrow = np.float16 if dtype == torch.float16 else np.float32
    return str(narrow(value))


def written(value: Any, device: torch.device) -> str:
    """A number, or a tuple with one number a row, as the expression that a sampler is given."""
    if isinstance(value, tuple):
        dtype = ", dtype=torch.float64" if any(isinstance(item, float) for item in value) else ""
        return f"torch.tensor({list(value)}{dtype}{on(device)})"
    return repr(value)


def on(device: torch.device) -> str:
    """The argument that puts a tensor on a device; nothing for the CPU."""
    return "" if device.type == "cpu" else f', device="{device}"'


def summary(result: Any) -> str:
    """A result in a comment: short lists in full, long ones by their beginning."""
    if not isinstance(result, Tensor):
        return repr(result)
    return _listed(result.tolist())


def _listed(values: Any) -> str:
    if isinstance(values, list):
        shown = ", ".join(map(_listed, values[:MOST_SUMMARISED]))
        more = len(values) - MOST_SUMMARISED
        return f"[{shown}, ... {more} more]" if more > 0 else f"[{shown}]"
    return f"{values:.7g}" if isinstance(values, float) else repr(values)
