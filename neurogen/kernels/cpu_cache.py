"""Compiling CPU kernels, and keeping their machine code on disk for the next process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile, InTreeCacheLocator

__all__ = ["kernel"]

TOOLKIT = ("cpu.py", "cpu_cuts.py", "cpu_rows.py", "cpu_threads.py", "cpu_vectors.py", "numerics.py")
"""Files whose functions are compiled into every kernel."""


class _OwnFolder(InTreeCacheLocator):  # type: ignore[misc]
    """The `__pycache__` beside the code even where it cannot be written: what has been compiled there can be read."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if Path(py_file).is_file() else None


class _KernelCacheImpl(FunctionCache._impl_class):  # type: ignore[misc]
    _locator_classes = (*FunctionCache._impl_class._locator_classes, _OwnFolder)


class _KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of machine code, of functions that depend on this toolkit, on disks that may be full or read-only.

    Numba keys the cache by the file of the function itself. The toolkit's own files are added to the key: after an
    update nobody runs a kernel compiled from an older one. So is what a kernel closes over, by its code and its file
    (Numba would take its identity, which every process has anew). Where nothing can be read or written, a kernel is
    compiled.
    """

    _impl_class = _KernelCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = IndexDataCacheFile(
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


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function over a range of rows; where there is room the machine code is kept for the next process."""
    compiled: Any = njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # Numba's word for "no place to keep it": then it is compiled in every process
        compiled._cache = _KernelCache(function)
    return compiled


def _toolkit_stamp() -> tuple[tuple[float, int], ...]:
    return tuple(_stamp(Path(__file__).with_name(name)) for name in TOOLKIT)


def _stamp(file: Path) -> tuple[float, int]:
    stat = file.stat()
    return stat.st_mtime, stat.st_size


def _identity(function: FunctionType) -> Iterator[Any]:
    """What tells a function from another of the same source: its code, and what it closes over."""
    code = function.__code__
    yield function.__module__, function.__qualname__, code.co_code, code.co_names
    with suppress(OSError):
        yield _stamp(Path(code.co_filename))
    for cell in function.__closure__ or ():
        content = getattr(cell.cell_contents, "py_func", cell.cell_contents)
        if isinstance(content, FunctionType):
            yield from _identity(content)
        else:
            yield content
