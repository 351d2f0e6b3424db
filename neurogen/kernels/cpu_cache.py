"""Compiling CPU kernels, and keeping their machine code on disk for the next process."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from numba import njit
from numba.core import event
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import FunctionCache, IndexDataCacheFile, InTreeCacheLocator

from neurogen.kernels.compiling import finished, started

__all__ = ["cached"]

TOOLKIT = ("cpu*.py", "depths.py", "numerics.py")
"""Files beside this one whose functions are compiled into every kernel."""

NUMBERS = (int, float, str, tuple, np.generic)


def _number_apart() -> None:
    """Let Numba number functions from a random number on.

    The number is part of a function's name in machine code. From 1 on, kernels kept by two processes would have
    functions of the same name, and a third process that loads both would run one in place of the other, without a word.
    """
    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(62))


_number_apart()
os.register_at_fork(after_in_child=_number_apart)


class _Compilations(event.Listener):  # type: ignore[misc]
    """Passes on when Numba compiles; what it reads from disk it does not compile."""

    def on_start(self, event: Any) -> None:
        started()

    def on_end(self, event: Any) -> None:
        finished()


event.register("numba:compile", _Compilations())


class _OwnFolder(InTreeCacheLocator):  # type: ignore[misc]
    """The `__pycache__` beside the code even where it cannot be written: what has been compiled there can be read."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if Path(py_file).is_file() else None


class _KernelCacheImpl(FunctionCache._impl_class):  # type: ignore[misc]
    _locator_classes = (*FunctionCache._impl_class._locator_classes, _OwnFolder)


class _KernelFiles(IndexDataCacheFile):  # type: ignore[misc]
    """Machine code in a file of its own for each kernel, whose name follows from all that the kernel depends on.

    Numba keeps an index of numbered files beside them, which processes that compile at once overwrite for each other,
    or leave behind when they are killed: a number could then stand for another kernel's code, which would be run
    without a word. Without an index nothing can be mistaken.
    """

    def save(self, key: Any, data: Any) -> None:
        """Keep the machine code of a kernel; the file appears whole or not at all."""
        self._save_data(self._name(key), data)

    def load(self, key: Any) -> Any:
        """The machine code of a kernel; None where there is none that can be read."""
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            return self._load_data(self._name(key))
        return None

    def flush(self) -> None:
        """Nothing is remembered that could be forgotten."""

    def _name(self, key: Any) -> str:
        depends_on = repr((self._version, self._source_stamp, key))
        digest = hashlib.sha256(depends_on.encode()).hexdigest()[:32]
        return f"{self._index_name.removesuffix('.nbi')}.{digest}.nbc"


class _KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of machine code, of functions that depend on this toolkit, on disks that may be full or read-only.

    Numba keys the cache by the file of the function itself. The toolkit's own files are added to the key: after an
    update nobody runs a kernel compiled from an older one. So is all that a kernel refers to, by code, constants and
    file (Numba would take the identity of what it closes over, which every process has anew). Where nothing can be read
    or written, a kernel is compiled.
    """

    _impl_class = _KernelCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = _KernelFiles(
            cache_path=locator.get_cache_path(),
            filename_base=self._impl.filename_base,
            source_stamp=(locator.get_source_stamp(), _toolkit_stamp()),
        )

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        parts = [repr(part) for part in _identity(self._py_func)]
        return sig, codegen.magic_tuple(), hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(OSError):
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


def cached(function: Callable[..., Any]) -> Any:
    """Compile a function; its machine code is kept for other processes if it can be."""
    compiled: Any = njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # Numba's word for "no place to keep it": then it is compiled in every process
        compiled._cache = _KernelCache(function)
    return compiled


def _toolkit_stamp() -> tuple[tuple[float, int], ...]:
    files = (file for pattern in TOOLKIT for file in sorted(Path(__file__).parent.glob(pattern)))
    return tuple(_stamp(file) for file in files)


def _stamp(file: Path) -> tuple[float, int]:
    stat = file.stat()
    return stat.st_mtime, stat.st_size


def _identity(function: FunctionType, seen: set[CodeType] | None = None) -> Iterator[Any]:
    """What tells a function from another: its code, and all that this refers to, in closures and by global names."""
    seen = set() if seen is None else seen
    code = function.__code__
    if code in seen:
        return
    seen.add(code)
    yield function.__module__, function.__qualname__, code.co_code, code.co_names
    yield [constant for constant in code.co_consts if not isinstance(constant, CodeType)]
    with suppress(OSError):
        yield _stamp(Path(code.co_filename))
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    named = [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    for content in (getattr(value, "py_func", value) for value in held + named):
        if isinstance(content, FunctionType):
            yield from _identity(content, seen)
        elif isinstance(content, NUMBERS):
            yield content
