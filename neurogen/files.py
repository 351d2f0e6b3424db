"""How neurogen reads text files, writes JSON, and makes files that appear whole or not at all.

Every module uses these functions, so that a byte order mark, a number that is not finite and a full disk are treated
alike everywhere.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from neurogen.errors import DataError, NeurogenError

__all__ = [
    "BYTE_ORDER_MARK",
    "NO_ROOM",
    "append",
    "append_line",
    "check_place",
    "decoded",
    "disk_error",
    "finite",
    "is_file",
    "is_folder",
    "is_there",
    "read_text",
    "replacing",
    "to_json",
    "write_bytes",
    "write_problem",
    "write_text",
    "writing",
]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota that is used up, a file that would become larger than allowed."""

SMALL = 100_000
"""Sizes below this are given in bytes."""

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


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; False for a text that can be no file's name, too long or with a NUL."""
    return os.path.isfile(path)  # noqa: PTH113  (Path.is_file raises for such names)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a folder; see `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is anything of this name; see `is_file`."""
    return os.path.exists(path)  # noqa: PTH110


def to_json(
    value: Any, *, indent: int | None = None, ascii_only: bool = False, default: Callable[[Any], Any] | None = None
) -> str:
    """A value as JSON that every parser reads (RFC 8259): a number that is not finite becomes null.

    As the name of an entry of an object it becomes the text nan, inf or -inf.

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
        return json.dumps(finite(value, default), **options)


def finite(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """A value with None in the place of every number that is not finite, for files that a library writes.

    Args:
        value, default: as for `to_json`.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_name(key): finite(entry, default) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry, default) for entry in value]
    if default is None or value is None or isinstance(value, str | int):
        return value
    return finite(default(value), default)


def _name(key: Any) -> Any:
    """The name of an object's entry: a number that is not finite as text."""
    return str(float(key)) if isinstance(key, float) and not math.isfinite(key) else key


def disk_error(error: BaseException) -> OSError | None:
    """The system's error that caused an exception, if there is one: libraries that write files raise their own."""
    if isinstance(error, OSError):
        return error
    if found := LIBRARY_ERROR.search(str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    for number in (*NO_ROOM, errno.EROFS, errno.EIO):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    cause = error.__cause__ or error.__context__
    behind = None if cause is None else disk_error(cause)
    return behind if behind is not None and behind.errno in NO_ROOM else None


@contextmanager
def writing(
    what: str | None,
    path: str | os.PathLike[str],
    error_type: type[NeurogenError] = DataError,
    *,
    needed: int | None = None,
    advice: str = "Give another place, or mend this one.",
) -> Iterator[None]:
    """Turn the failure of writing a file or folder, by whatever library, into one clear error.

    Args:
        what: is written, as a sentence begins: "The page". None where the path says enough.
        path: the file or folder.
        error_type: what is raised.
        needed: about how many bytes it takes, where that is known.
        advice: what to do.

    Raises:
        NeurogenError: of `error_type`; names what, where, the cause, how much is needed and how much is free there.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads what goes to a pipe: no fault of a disk
        raise
    except Exception as error:
        cause = write_problem(error, path, needed)
        if cause is None:
            raise
        raise error_type(f"{_unwritten(what, path)}: {cause}. {advice}") from None


def _unwritten(what: str | None, path: str | os.PathLike[str]) -> str:
    return f"{path} cannot be written" if what is None else f"{what} cannot be written to {path}"


def write_problem(error: BaseException, path: str | os.PathLike[str], needed: int | None = None) -> str | None:
    """Why something could not be written to a path, in words, and how much is free there; None for other errors."""
    cause = None if isinstance(error, NeurogenError) else disk_error(error)
    if cause is None:
        return None
    return f"{cause.strerror or cause}{_room(Path(path), needed) if cause.errno in NO_ROOM else ''}"


def check_place(what: str | None, path: str | os.PathLike[str]) -> None:
    """Refuse a file that could not be written, before the work is done. A file is tried in its folder and removed.

    Args:
        what: is to be written, as a sentence begins: "The page". None where the path says enough.
        path: the file.

    Raises:
        DataError: it is a folder, or its folder is not there, or nothing may be written there.
    """
    problem = _problem_of(path)
    if problem is not None:
        raise DataError(f"{_unwritten(what, path)}: {problem}. Give a file in a folder that exists and can be written.")


def _problem_of(path: str | os.PathLike[str]) -> str | None:
    if not os.fspath(path) or "\0" in os.fspath(path):
        return "it is no name of a file"
    place = Path(os.path.realpath(path))
    if place.is_dir():
        return "it is a folder"
    if not place.parent.is_dir():
        return f"there is no folder {place.parent}"
    if _is_special(place):
        return None if os.access(place, os.W_OK) else "it cannot be written"
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            return None
    except OSError as error:
        return f"nothing can be written in {place.parent}: {error.strerror}"


def _room(path: Path, needed: int | None) -> str:
    """How much is needed and how much is free where a path lies, in words; empty where nobody can tell."""
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there"
    except OSError:
        return ""
    if needed is None:
        return f" ({free})"
    size = f"{needed:,} bytes" if needed < SMALL else f"{needed / 1e6:,.1f} MB"
    return f" (about {size} are needed, {free})"


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout, which is written and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a file or a folder that appears whole or not at all.

    What processes that were killed have left of earlier tries is removed. A file that is replaced keeps its
    permissions; a link stays, and what it names is replaced; a device or pipe is written as it is.

    Yields:
        an unused path in the same folder: make a file or a folder there. It takes the place of `path`, flushed to the
        disk, when the block ends; it is removed when the block fails.

    Raises:
        OSError: the file system refuses; `writing` around it tells the user.
    """
    target = Path(os.path.realpath(path))  # a link stays, and what it names is replaced
    if _is_special(target):
        yield target
        return
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove(draft)
    _remove_stale(target)
    try:
        yield draft
        if target.is_file():
            shutil.copymode(target, draft)
        for made in (*draft.rglob("*"), draft):
            _sync(made)
        if draft.is_dir() and target.is_dir():
            shutil.rmtree(target)
        draft.replace(target)
    except BaseException:
        _remove(draft)
        raise


def _remove_stale(target: Path) -> None:
    """Remove the drafts of `target` that processes which were killed have left: nobody else knows of them."""
    for draft in target.parent.glob(f".{escape(target.name)}.*.tmp"):
        number = draft.name.removeprefix(f".{target.name}.").removesuffix(".tmp")
        if number.isdecimal() and not _is_running(int(number)):
            with suppress(OSError):  # another user's, or removed meanwhile
                _remove(draft)


def _is_running(process: int) -> bool:
    if sys.platform == "win32":
        return True  # there a signal of 0 ends a process, so that it cannot be asked
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        pass
    return True


def write_text(what: str | None, path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8; it appears whole or not at all.

    Raises:
        DataError: it cannot be written; see `writing`.
    """
    write_bytes(what, path, text.encode("utf-8"))


def write_bytes(what: str | None, path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        DataError: it cannot be written; see `writing`.
    """
    with writing(what, path, needed=len(data)), replacing(path) as draft:
        draft.write_bytes(data)


def append_line(what: str | None, path: str | os.PathLike[str], line: str) -> None:
    """Add a line, in UTF-8, to the end of a file; whole or not at all.

    Args:
        what: is written, as a sentence begins: "The metrics".
        path: the file; made where it does not exist.
        line: without its line break.

    Raises:
        DataError: it cannot be written; the file is as it was.
    """
    data = line.encode("utf-8") + b"\n"
    with writing(what, path, needed=len(data)), Path(path).open("ab", buffering=0) as file:
        append(file.fileno(), data)


def append(descriptor: int, data: bytes) -> None:
    """Add bytes to the end of an open file; all or none.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    before = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        with suppress(OSError):  # a device or a pipe
            os.ftruncate(descriptor, before)
        raise


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
