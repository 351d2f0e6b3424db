"""How neurogen reads text files, writes JSON, and makes files that appear whole or not at all. Every module does it by
these functions, so that a byte order mark, a number that is not finite and a full disk are treated alike everywhere.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neurogen.errors import DataError, NeurogenError

__all__ = ["decoded", "disk_error", "read_text", "replacing", "to_json", "write_text", "writing"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LIBRARY_ERROR = re.compile(r"\(os error (\d+)\)")
"""How the Rust libraries (safetensors, tokenizers) put the system's error number into their own exceptions."""


def decoded(data: bytes) -> str:
    """UTF-8 without the byte order mark that some editors put before it.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    return data.removeprefix(BYTE_ORDER_MARK).decode("utf-8")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, without its byte order mark.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return decoded(Path(path).read_bytes())


def to_json(
    value: Any, *, indent: int | None = None, ascii_only: bool = False, default: Callable[[Any], Any] | None = None
) -> str:
    """A value as JSON that every parser reads (RFC 8259): a number that is not finite becomes null.

    Args:
        value: what `json.dumps` takes.
        indent: spaces a level; None for one line.
        ascii_only: write every other character as an escape.
        default: turns values of other types into such as `json.dumps` takes.
    """
    options: dict[str, Any] = {"indent": indent, "ensure_ascii": ascii_only, "default": default, "allow_nan": False}
    try:
        return json.dumps(value, **options)
    except ValueError:  # a number that is not finite, which is rare; anything else fails again
        return json.dumps(_finite(value), **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def disk_error(error: BaseException) -> OSError | None:
    """The system's error behind an exception, if there is one: libraries that write files raise their own."""
    if isinstance(error, OSError):
        return error
    if found := LIBRARY_ERROR.search(str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if "No space left on device" in str(error):
        return OSError(28, os.strerror(28))
    return None


@contextmanager
def writing(what: str, path: str | os.PathLike[str], error_type: type[NeurogenError] = DataError) -> Iterator[None]:
    """Turn the failure of writing a file or folder, by whatever library, into one clear error.

    Args:
        what: is written, as a sentence begins: "The page".
        path: the file or folder.
        error_type: what is raised.

    Raises:
        NeurogenError: of `error_type`; names what, where, the cause and how much space is free there.
    """
    try:
        yield
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        raise error_type(
            f"{what} cannot be written to {path}: {cause.strerror or cause}{_space(Path(path))}. Give another place, "
            "or mend this one."
        ) from None


def _space(path: Path) -> str:
    """How much is free where a path lies, in words; empty where nobody can tell."""
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there)"
    except OSError:
        return ""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a file or a folder that appears whole or not at all.

    Yields:
        a path beside it, where nothing is: make a file or a folder there. It takes the place of `path`, lasting, when
        the block ends; it is removed when the block fails.

    Raises:
        OSError: the file system refuses; `writing` around it tells the user.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove(draft)
    try:
        yield draft
        for made in (*_files_in(draft), draft):
            _sync(made)
        if draft.is_dir() and target.is_dir():
            shutil.rmtree(target)
        draft.replace(target)
    except BaseException:
        _remove(draft)
        raise


def write_text(what: str, path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8; it appears whole or not at all.

    Raises:
        DataError: it cannot be written; see `writing`.
    """
    with writing(what, path), replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.is_dir() else []


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
