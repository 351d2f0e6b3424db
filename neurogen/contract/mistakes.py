"""Explains an error in a plugin's code in one sentence: the author's file and line, and the part of a compiler's report
that is about that line.

Reads exceptions, those of Numba's compilers among them, which report every function on the way to the author's line.
Nothing here is called unless a sampler has failed; torch and numba are not imported.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

from neurogen.contract.functions import line_naming

__all__ = ["explained", "plain", "where_written"]

LIBRARIES = {"numba", "numba_cuda", "cuda", "torch", "numpy", "llvmlite", "pluggy", "pydantic"}
"""Packages whose lines are not the author's, as those of neurogen and of Python are not."""

OWN_FOLDERS = (str(Path(__file__).parents[1]), str(Path(os.__file__).parent))

CONTROL = re.compile(r"\x1b\[\d*m")
PLACE = re.compile(
    r"During: (?:typing of|lowering) [^\n]* at (?P<path>[^\n]+) \((?P<row>\d+)\)|"
    r'File "(?P<file>[^"\n]+)", line (?P<line>\d+)'
)
CALLEE = re.compile(r"resolving callee type: \w+\(<(?:\w+[ -])*(?:function |class ')([\w.<>]+)")
STAGE = re.compile(r"Failed in \w+ mode pipeline[^\n]*")
REASON = re.compile(r'due to "\w+: (.+?)"|^\s*\w*Error: (?!Failed in|Cannot bind|No implementation)(.+)', re.MULTILINE)
UNKNOWN_NAME = re.compile(r"NameError: name '(\w+)' is not defined")

WORDS = (
    (r"Literal\[int\]\((-?\d+)\)", r"\1"),
    (r"Literal\[\w+\]\(([^()]*)\)", r"'\1'"),
    (r"\bunicode_type\b", "str"),
    (r"\bnone\b", "None"),
    (r"<iv=[^>]*>", ""),
    (r" at 0x[0-9a-f]+", ""),
    (r"NRT required but not enabled", "a CUDA kernel can make no list, text or array, nor raise an exception with one"),
    (r"\b(float|int)(64|32)\b", r"\1"),
    (r"\bboolean\b", "bool"),
    (r"Unknown attribute '(\w+)' of type Module\(<module '([\w.]+)'.*", r"compiled code has no \2.\1"),
    (r"Unknown attribute '(\w+)' of type (.+)", r"\2 has no attribute '\1'"),
    (
        r"Untyped global name '(\w+)': .*<class 'function'>",
        r"'\1' is a plain Python function: mark it with numba.extending.register_jitable, so that it is compiled too",
    ),
    (
        r"Untyped global name '(\w+)': .*<class '([\w.]+)'>",
        r"'\1' is a \2, which compiled code cannot use; it can use numbers, tuples of numbers and NumPy arrays",
    ),
)
"""What Numba says -> how people say it."""


METHODS = {"sample": ("keep", "_sample"), "probs": ("keep", "_probs"), "support": ("keep", "_support")}
"""What users call -> what of it authors write."""


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int

    def __str__(self) -> str:
        here = os.path.relpath(self.file)
        return f"{self.file if here.startswith('..') else here}, line {self.line}"

    @property
    def is_foreign(self) -> bool:
        """Whether the line is not the plugin author's, but that of a library or of neurogen."""
        head, installed, rest = self.file.partition(f"{os.sep}site-packages{os.sep}")
        if installed:
            return rest.partition(os.sep)[0] in LIBRARIES
        return head.startswith(("<", *OWN_FOLDERS))


def explained(error: Exception) -> str:
    """An explanation without a full stop: "ValueError: no such k, in neurogen_mine/cpu.py, line 7: `...`"."""
    frames = [frame for frame, _ in _walked(error)]
    of_arguments = _wrong_parameter(error, frames)
    if of_arguments:
        return of_arguments
    unknown = UNKNOWN_NAME.search(str(error))
    if unknown and (place := _naming(unknown[1], frames)):
        return f"it cannot be compiled, {_shown(place)}: {unknown[0]}"
    if any(cls.__name__ == "NumbaError" for cls in type(error).__mro__):
        return _of_compiler(plain(str(error)), _compiled_place(frames), _definition(frames))
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{type(error).__name__}: {error.msg}, {_shown(Place(error.filename, error.lineno))}"
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")
    place = _last_place(error) or _compiled_place(frames)
    if place is not None:
        return f"{text}, {_shown(place)}"
    compiling = any("numba" in Path(frame.f_code.co_filename).parts for frame in frames)
    return f"{text}, while {_definition(frames)} was compiled" if compiling and _definition(frames) else text


def where_written(sampler: Any, call: str) -> str:
    """Where the author wrote the method that a call leads to: " See keep in neurogen_mine/sampler.py, line 17."; or "".

    Args:
        sampler: one.
        call: "sample", "probs", "support", or a method that authors write.
    """
    for name in METHODS.get(call, (call,)):
        code = getattr(getattr(type(sampler), name, None), "__code__", None)
        if code is not None and not (place := Place(code.co_filename, code.co_firstlineno)).is_foreign:
            return f" See {code.co_name} in {place}."
    modules = [sys.modules.get(module) for module in sampler.backends.values()]
    made = [getattr(getattr(module, call, None), "definition", "") for module in modules]
    return next((f" See {definition}." for definition in made if definition), "")


def _walked(error: Exception) -> Iterator[tuple[FrameType, int]]:
    """The frames that an exception has passed, from the caller's to the one that raised it."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _last_place(error: Exception) -> Place | None:
    """The last line of the author's that an exception has passed."""
    places = [Place(frame.f_code.co_filename, line) for frame, line in _walked(error)]
    return next((place for place in reversed(places) if not place.is_foreign), None)


def _shown(place: Place) -> str:
    code = linecache.getline(place.file, place.line).strip()
    return f"in {place}: `{code}`" if code else f"in {place}"


# What a kernel was to be given.


def _kernel_calls(frames: list[FrameType]) -> Iterator[tuple[Any, Any]]:
    """Functions of a backend module that were being called, with the parameters of the rows."""
    for frame in frames:
        called = frame.f_locals.get("self")
        if hasattr(called, "kernel") and hasattr(called, "names"):
            yield called, frame.f_locals.get("params")


def _definition(frames: list[FrameType]) -> str:
    return next((called.definition for called, _ in _kernel_calls(frames) if called.definition), "")


def _naming(name: str, frames: list[FrameType]) -> Place | None:
    """The author's line that uses an undefined name, found in the kernel, since compilers do not report the line."""
    kernels = [called.kernel for called, _ in _kernel_calls(frames)]
    kernels += [frame.f_locals["kernel"] for frame in frames if hasattr(frame.f_locals.get("kernel"), "function")]
    if not kernels:
        return None
    places = [Place(*found) for kernel in kernels if (found := line_naming(name, kernel.function))]
    return places[0] if places else None


def _wrong_parameter(error: Exception, frames: list[FrameType]) -> str:
    """The explanation where a parameter is missing or is not a number; else the empty text."""
    for called, params in _kernel_calls(frames):
        of = f" of {called.definition}" if called.definition else ""
        for name in called.names:
            if not hasattr(params, name):
                return f"the kernels{of} take the parameter '{name}', and {_having(params)}: correct the names"
            value = getattr(params, name)
            if not hasattr(value, "data_ptr"):
                return (
                    f"the kernels{of} take the parameter '{name}', which is {type(value).__name__} {value!r}: a kernel "
                    "takes int and float parameters alone. Make a number of it, or decide by it before, in `_sample`"
                )
    if isinstance(error, AttributeError) and isinstance(getattr(error, "obj", None), SimpleNamespace):
        place = _last_place(error)
        where = f", {_shown(place)}" if place else ""
        return f"there is no parameter '{error.name}', and {_having(error.obj)}{where}"
    return ""


def _having(params: Any) -> str:
    names = ", ".join(vars(params)) if params is not None else ""
    return f"the sampler has {names}" if names else "the sampler has none"


# What a compiler reports.


def _compiled_place(frames: list[FrameType]) -> Place | None:
    """The last line of the author's that a compiler was working on, by its own frames."""
    found = None
    for frame in frames:
        for name in ("constraint", "inst"):
            place = getattr(frame.f_locals.get(name), "loc", None)
            if place is not None and not (other := _place(place.filename, place.line)).is_foreign:
                found = other
    return found


def _place(file: str, line: int | str) -> Place:
    return Place(os.path.normpath(Path(file).absolute()), int(line))


def _of_compiler(report: str, compiled: Place | None, definition: str) -> str:
    """The explanation of a report of Numba's compiler: its essential sentence, and the line it is about.

    Args:
        report: of the compiler for the CPU, which names the lines on the way, or of that for CUDA, which may not.
        compiled: the line that the compiler was working on, where that is known.
        definition: from which it came there.
    """
    places = [
        (found.start(), _place(found["path"] or found["file"], found["row"] or found["line"]))
        for found in PLACE.finditer(report)
    ]
    at, place = next(((at, place) for at, place in places if not place.is_foreign), (len(report), None))
    is_innermost = place is None or not places or places[0][1] == place
    sentence = _innermost(report[:at]) if is_innermost else _outer(report[:at])
    place = place or compiled
    where = _shown(place) if place is not None else f"in {definition}" if definition else ""
    return f"it cannot be compiled, {where}: {sentence}" if where else f"it cannot be compiled: {sentence}"


def _innermost(report: str) -> str:
    """The essential sentence of a report about the line itself."""
    said = STAGE.split(report)[-1].strip()
    head = said.partition("\n")[0]
    reasons = [first or second for first, second in REASON.findall(said)]
    if head.startswith("Cannot bind") and reasons:
        return f"the arguments do not fit the function: {_in_words(reasons[0])}"
    if not head.startswith("No implementation of function"):
        return _in_words(head)
    because = f": {_in_words(reasons[0])}" if reasons else ""
    return f"there is no {_call(said)}{because}"


def _outer(report: str) -> str:
    """The essential sentence where a function that the line calls cannot be compiled."""
    callees = CALLEE.findall(report)
    if not callees:
        return _innermost(report)
    name = callees[-1].rpartition(".")[2]
    start = report.rfind(f">>> {name}(")
    return f"there is no {_call(report[start:])}: an argument is of the wrong type" if start >= 0 else name


def _call(report: str) -> str:
    """The call, with the types of its arguments."""
    found = re.search(r">>> ([^\n]+)", report)
    return f"`{_in_words(found[1])}`" if found else "such function"


def _in_words(text: str) -> str:
    for said, meant in WORDS:
        text = re.sub(said, meant, text)
    return text.strip().rstrip(".")


def plain(report: str) -> str:
    """A report without colours, and with the types of rows abbreviated."""
    text = CONTROL.sub("", report)
    for name in ("Row", "Space", "Band"):
        text = _without_arguments(text, f"{name}(")
    return text


def _without_arguments(text: str, opening: str) -> str:
    parts = []
    start = text.find(opening)
    while start >= 0:
        depth, end = 1, start + len(opening)
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        parts.append(text[: start + len(opening) - 1])
        text = text[end:]
        start = text.find(opening)
    return "".join([*parts, text])
