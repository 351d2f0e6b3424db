"""The functions `sample`, `probs` and `support` of a backend module: what they do around a kernel, on every device.

They allocate what is returned, hand the kernel the parameters of the rows by name, and run it. They are objects, so
that a test or a benchmark finds the kernel: `neurogen_topk.cpu.sample.kernel`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neurogen.contract.mistakes import plain
from neurogen.contract.parameters import RowParams
from neurogen.errors import ContractError, ParameterError

__all__ = [
    "WANTED",
    "BackendFunctions",
    "RowFunction",
    "SampleFunction",
    "Temperatures",
    "at_path",
    "backend_functions",
    "check_definition",
    "check_memory",
    "check_returned",
    "kernels_in",
    "made_of",
    "place_of",
    "with_row_parameters",
]

MOST_PARAMETERS = 3
"""The most parameters of a definition."""

Path = tuple[str | int, ...]
MOST_CLOSURES = 3
"""How deep functions are searched for kernels."""

Run = Callable[..., None]
"""run(kernel, logits, *tensors): a kernel over all rows of logits [batch, vocab]."""


@dataclass(frozen=True)
class SampleFunction:
    """`sample` of a backend module: one id a row, int64 [batch]; -1 for a row without a valid distribution.

    Attributes:
        kernel: called with the logits, the row parameters `names`, seed, position and the ids to write.
        run: `cpu.run` or `cuda.launch`.
        names: row parameters, int64 or float64 [batch], in the order the kernel takes them.
        definition: what it was made of, and where that stands: "keep (neurogen_mine/cpu.py, line 9)".
    """

    kernel: Any
    run: Run
    names: tuple[str, ...]
    definition: str = ""

    def __call__(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams) -> Tensor:
        ids = logits.new_empty(logits.shape[0], dtype=torch.int64)
        self.run(self.kernel, logits, *map(params.__getattribute__, self.names), seed, position, ids)
        return ids


@dataclass(frozen=True)
class RowFunction:
    """`probs` or `support` of a backend module: [batch, vocab] of `dtype`; zeros in an invalid row.

    Attributes:
        kernel: called with the logits, the row parameters `names` and the array to write.
        run, names, definition: as in `SampleFunction`.
        dtype: float32 of probabilities, bool of a support.
    """

    kernel: Any
    run: Run
    names: tuple[str, ...]
    dtype: torch.dtype
    definition: str = ""

    def __call__(self, logits: Tensor, params: RowParams) -> Tensor:
        out = logits.new_empty(logits.shape, dtype=self.dtype)
        self.run(self.kernel, logits, *map(params.__getattribute__, self.names), out)
        return out


class BackendFunctions(NamedTuple):
    """The three functions of a backend module: `sample, probs, support = backend_functions(...)`."""

    sample: SampleFunction
    probs: RowFunction
    support: RowFunction


class Temperatures(NamedTuple):
    """Which temperature a row has, by two functions compiled for a target.

    Attributes:
        before: of (arrays, r), with which the row is read.
        after: of (row, arrays, r), that of the row read; where it is 0 the argmax is kept.
    """

    before: Any
    after: Any


def check_memory(tensors: list[Tensor]) -> None:
    """Refuse tensors without memory of their own, whose address is 0; tensors without elements are allowed.

    Raises:
        ParameterError: one has no memory of its own.
    """
    elsewhere = sorted({type(tensor).__name__ for tensor in tensors if tensor.numel() > 0 and tensor.data_ptr() == 0})
    if elsewhere:
        raise ParameterError(
            f"The logits, or what is given for each row, are of the type {', '.join(elsewhere)}, which has no memory "
            "of its own that a kernel could read. Give plain tensors: full_tensor() or to_local() make one of a "
            "distributed tensor."
        )


def backend_functions(run: Run, sample: Any, probs: Any, support: Any, names: tuple[str, ...]) -> BackendFunctions:
    """The functions of a backend module from its three kernels."""
    return BackendFunctions(
        SampleFunction(sample, run, names),
        RowFunction(probs, run, names, torch.float32),
        RowFunction(support, run, names, torch.bool),
    )


def place_of(definition: Callable[..., Any]) -> str:
    """A function's name and where it stands: "keep (neurogen_mine/cpu.py, line 9)"."""
    code = getattr(definition, "py_func", definition).__code__
    here = os.path.relpath(code.co_filename)
    file = code.co_filename if here.startswith("..") else here
    return f"{code.co_name} ({file}, line {code.co_firstlineno})"


def check_definition(definition: Any, names: tuple[Any, ...], role: str) -> None:
    """Refuse a definition that cannot be compiled to a sampler, before it is compiled.

    Args:
        definition: called as definition(row, *parameters).
        names: of the parameters.
        role: the role that it was given for, "keep" or "temper".

    Raises:
        ParameterError: no function, no names, more parameters than are written out, or another number than it takes.
    """
    function = getattr(definition, "py_func", definition)
    if not isinstance(function, FunctionType):
        raise ParameterError(
            f"truncation() was given {definition!r} as `{role}`. It must be a function {role}(row, *parameters): write "
            f"truncation({role}, ...) with the function itself, and after it the names of its parameters.",
            role,
        )
    wrong = [name for name in names if not isinstance(name, str) or not name.isidentifier()]
    if wrong:
        raise ParameterError(
            f"truncation({function.__name__}, ...) was given {wrong[0]!r} as the name of a parameter. Give the names "
            'of the sampler\'s parameters as strings, such as "k".',
            "names",
        )
    if len(names) > MOST_PARAMETERS:
        raise ParameterError(
            f"truncation() was given {len(names)} parameters; a definition takes at most {MOST_PARAMETERS}. Compute "
            "what depends on several of them before, or write a kernel of your own.",
            "names",
        )
    try:
        inspect.signature(function).bind(None, *names)
    except TypeError as error:
        takes = ", ".join(inspect.signature(function).parameters)
        given = ", ".join(["row", *names])
        raise ParameterError(
            f"truncation() calls {place_of(function)} with ({given}), and it takes ({takes}): {error}. Name each of "
            f'its parameters after `row`, in this order: truncation({function.__name__}, "k", ...).',
            "names",
        ) from None


def check_returned(where: str, is_right: bool, returned: str, wanted: str) -> None:
    """Refuse a definition that returns a value of the wrong type, while it is compiled.

    Raises:
        ContractError: it does.
    """
    if is_right:
        return
    if returned == "none":
        what = "returns nothing"
    elif returned.startswith("Optional"):
        what = "returns nothing in one of its branches"
    else:
        what = f"returns a value of the type {plain(returned)}"
    raise ContractError(f"{where} {what}. It must return {wanted}, in every branch.")


WANTED = "what `largest`, `nucleus`, `heavier` or another of these functions of neurogen.kernels returns"
"""By a definition of what is kept."""


def kernels_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, SampleFunction | RowFunction | None, Any]]:
    """The kernels that a module holds: by a name, in what `truncation` returns, or in a closure of its functions.

    Args:
        value: a module, or what is found in one.
        path: to the value.

    Yields:
        the path from the module to a kernel, for `at_path`; the function of a backend module that runs it, if that is
        known; and the kernel.
    """
    if isinstance(value, ModuleType):
        for name, found in list(vars(value).items()):
            if not isinstance(found, ModuleType):
                yield from kernels_in(found, (*path, name))
    elif isinstance(value, SampleFunction | RowFunction):
        for further, _, kernel in kernels_in(value.kernel, (*path, "kernel")):
            yield further, value, kernel
    elif isinstance(value, BackendFunctions):
        for name in BackendFunctions._fields:
            yield from kernels_in(getattr(value, name), (*path, name))
    elif isinstance(value, FunctionType):
        for place, cell in enumerate(value.__closure__ or () if len(path) <= MOST_CLOSURES else ()):
            with suppress(ValueError):  # an empty cell
                yield from kernels_in(cell.cell_contents, (*path, place))
    elif type(value).__name__ == "Kernel" and hasattr(value, "function"):
        yield path, None, value
        for part in ("survey", "finish") if getattr(value, "split", None) else ():
            yield (*path, "split", part), None, getattr(value.split, part)


def at_path(module: Any, path: Path) -> Any:
    """What a path of `kernels_in` leads to: a name is an attribute, a number a cell of a function's closure."""
    value = module
    for step in path:
        value = getattr(value, step) if isinstance(step, str) else value.__closure__[step].cell_contents
    return value


def made_of(functions: BackendFunctions, definition: Callable[..., Any]) -> BackendFunctions:
    """The functions, which remember their definition."""
    where = place_of(definition)
    sample, probs, support = functions
    return BackendFunctions(
        replace(sample, definition=where), replace(probs, definition=where), replace(support, definition=where)
    )


def with_row_parameters(keep: Callable[..., Any], count: int, returned: Callable[..., Any]) -> Callable[..., Any]:
    """returned(keep(row, *parameters of row r)) as a function of (row, arrays, r), to be compiled.

    Written out, for Numba does not spread a tuple whose elements differ in type.
    """
    spread: tuple[Callable[..., Any], ...] = (
        lambda row, arrays, r: returned(keep(row)),
        lambda row, arrays, r: returned(keep(row, arrays[0][r])),
        lambda row, arrays, r: returned(keep(row, arrays[0][r], arrays[1][r])),
        lambda row, arrays, r: returned(keep(row, arrays[0][r], arrays[1][r], arrays[2][r])),
    )
    return spread[count]
