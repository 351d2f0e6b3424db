"""The Python functions that a kernel is made of: which they are, and what names they use in which line.

Reads code objects and compiles nothing; knows neither Numba nor any sampler.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["OWN", "codes_of", "functions_of", "line_naming", "line_of", "named_values"]

OWN = ("neurogen.kernels", "numba.")
"""Modules whose functions are not looked at."""


def functions_of(kernel: Callable[..., Any]) -> Iterator[FunctionType]:
    """The functions that a kernel refers to, directly or through others, itself included, without those of neurogen."""
    return _reachable(kernel, set())


def _reachable(function: Any, seen: set[Any]) -> Iterator[FunctionType]:
    plain = getattr(function, "py_func", function)
    if isinstance(plain, tuple):
        for item in plain:
            yield from _reachable(item, seen)
    if not isinstance(plain, FunctionType) or plain in seen:
        return
    seen.add(plain)
    is_own = plain.__module__.startswith(OWN)
    if not is_own:
        yield plain
    held = [cell.cell_contents for cell in plain.__closure__ or () if _is_filled(cell)]
    for value in held if is_own else (*held, *(value for _, value in named_values(plain))):
        yield from _reachable(value, seen)


def line_naming(name: str, function: Callable[..., Any]) -> tuple[str, int] | None:
    """The file and line where the functions that a kernel is made of use a global name; None where none does."""
    for one in functions_of(function):
        for code in codes_of(one.__code__):
            for step in dis.get_instructions(code):
                if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval == name:
                    return code.co_filename, line_of(step, code)
    return None


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A code object and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


def named_values(function: FunctionType) -> Iterator[tuple[int, Any]]:
    """(line, value) of all that a function names, attributes of modules and classes too."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    known = {**vars(builtins), **function.__globals__, **{k: c.cell_contents for k, c in cells if _is_filled(c)}}
    for code in codes_of(function.__code__):
        value: Any = None
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_FREE", "LOAD_CLASSDEREF"):
                value = known.get(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType | type):
                value = getattr(value, step.argval, None)
            else:
                continue
            yield line_of(step, code), value


def line_of(step: dis.Instruction, code: CodeType) -> int:
    """The line of an instruction."""
    return (step.positions.lineno if step.positions else None) or code.co_firstlineno


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
