"""Finds training data by name: files, folders of them, and data sets on the Hugging Face hub.

Each becomes a source that the datasets library streams. Nothing here knows what a row holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.data.rows import FIELD, SUFFIXES, SourceRow, is_supported, read_rows
from neurogen.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset  # type: ignore[import-untyped]

__all__ = ["FileSource", "HubSource", "Source", "fingerprint", "names_and_sizes", "resolve"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
SPLIT = "train"
CAUSE_SHOWN = 300

SAMPLED = 256 * 1024 * 1024
"""Bytes of all files together that are compared to recognise data, which takes less than a second from a cache."""

LEAST_SAMPLE = 64 * 1024
"""Bytes of each file that are compared, however many there are."""

SAMPLES = 16


class FileSource:
    """Files that are read one after the other.

    Attributes:
        files: their names, as messages show them.
        identity: their names within the folder that was given, and their sizes.
    """

    def __init__(self, files: Sequence[tuple[Path, str]]) -> None:
        """Take pairs of a file and its name within the folder that was given."""
        self.files = [str(file) for file, _ in files]
        self.identity = [f"{name} {_size(file)}" for file, name in files]

    def contents(self) -> Iterator[str]:
        """For each file its name, size and digest; of large files samples from the first byte to the last are read."""
        share = max(LEAST_SAMPLE, SAMPLED // len(self.files))
        for file, identity in zip(self.files, self.identity, strict=True):
            yield f"{identity} {_digest(file, share)}"

    def dataset(self) -> IterableDataset:
        """All rows, as a data set with one shard a file: a position is a file and a number of rows in it.

        Raises:
            DataError: the datasets library has no folder for its locks.
        """
        from datasets import IterableDataset

        try:
            return IterableDataset.from_generator(read_rows, gen_kwargs={"files": self.files})
        except OSError as error:
            raise DataError(
                f"The datasets library cannot use its cache folder: {_cause(error)}. It needs a folder it may write "
                "to, even if only for lock files; set HF_HOME to one."
            ) from None

    def rows(self, dataset: IterableDataset, done: int) -> Iterator[SourceRow]:
        """The rows from where `dataset` stands, which is after the first `done` rows."""
        for example in dataset:
            yield example["row"]


class HubSource:
    """The training split of a data set on the hub.

    Attributes:
        name: `organisation/name` or `organisation/name:config`.
        identity: the same.
    """

    def __init__(self, name: str) -> None:
        """Look the data set up, which takes the network or a cache.

        Raises:
            DataError: it cannot be found or reached, or has no column `text`.
        """
        self.name = name
        self.identity = [name]
        self._dataset = _load(name)
        self._start: dict[str, Any] = self._dataset.state_dict()

    def contents(self) -> Iterator[str]:
        """Its name: what is on the hub cannot be compared without fetching it."""
        return iter(self.identity)

    def dataset(self) -> IterableDataset:
        """All rows; a position is what the datasets library makes of it."""
        self._dataset.load_state_dict(self._start)
        return self._dataset

    def rows(self, dataset: IterableDataset, done: int) -> Iterator[SourceRow]:
        """The rows from where `dataset` stands, which is after the first `done` rows.

        Raises:
            DataError: the connection is lost, or the data set is broken in a way that the library cannot pass over.
        """
        numbers = count(done + 1)
        try:
            for example in dataset:
                yield SourceRow(self.name, next(numbers), "value", example.get(FIELD))
        except Exception as error:  # the library raises whatever its file systems and parsers raise
            raise DataError(
                f"The data set {self.name} cannot be read beyond row {next(numbers) - 1}: {_cause(error)}. If the "
                "connection was lost, start again from the last checkpoint; if the data are broken, download them and "
                "give the files, of which broken rows are passed over."
            ) from error


Source = FileSource | HubSource


def resolve(sources: Sequence[str | Path]) -> list[Source]:
    """Find what `sources` name; the order is kept, and the files of a folder are sorted by name.

    Args:
        sources: files, folders, or names on the hub.

    Raises:
        DataError: one does not exist, is of an unknown kind, or holds nothing to read.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise DataError(f"No training data was given. Give {_ALLOWED}.")
    parts: list[Source] = []
    files: list[tuple[Path, str]] = []
    for source in sources:
        found = _resolve_one(source)
        if isinstance(found, HubSource):
            parts += [FileSource(files), found] if files else [found]
            files = []
        else:
            files += found
    return [*parts, FileSource(files)] if files else parts


def fingerprint(sources: Sequence[Source]) -> str:
    """A short name for exactly these data: two lists of sources that differ in a file or in its content differ in it.

    Folders do not count, so that data may be moved. Of files that are large or very many only samples are compared.
    """
    return _short_name(line for source in sources for line in source.contents())


def names_and_sizes(sources: Sequence[Source]) -> str:
    """The name that earlier versions of neurogen gave to data, in which contents do not count."""
    return _short_name(line for source in sources for line in source.identity)


def _short_name(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _digest(file: str, share: int) -> str:
    """A digest of a file of up to `share` bytes, or of as many from `SAMPLES` places of a larger one."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        size, length = Path(file).stat().st_size, share // SAMPLES
        with Path(file).open("rb") as stream:
            if size <= share:
                while block := stream.read(2**20):
                    digest.update(block)
            else:
                for number in range(SAMPLES):
                    stream.seek((size - length) * number // (SAMPLES - 1))
                    digest.update(stream.read(length))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {_cause(error)}.") from None
    return digest.hexdigest()


_ALLOWED = (
    f"files ending in {', '.join(SUFFIXES)}, folders of them, or a data set on the Hugging Face hub as "
    "organisation/name or organisation/name:config"
)


def _resolve_one(source: str | Path) -> list[tuple[Path, str]] | HubSource:
    if not str(source) or "\0" in str(source):
        raise DataError(f"{str(source)!r} names no training data. Give {_ALLOWED}.")
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        if not is_supported(path):
            raise DataError(f"{path} cannot be read as training data: its name has an unknown ending. Give {_ALLOWED}.")
        return [(path, path.name)]
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and not is_supported(path):
        return HubSource(source)
    raise DataError(f"There is no file or folder {str(source)!r}. Check the spelling, or give {_ALLOWED}.")


def _folder(folder: Path) -> list[tuple[Path, str]]:
    """The supported files in a folder and in the folders within; hidden ones are passed over."""
    inside = (file.relative_to(folder) for file in folder.rglob("*") if is_supported(file) and file.is_file())
    names = sorted(name.as_posix() for name in inside if not any(part.startswith(".") for part in name.parts))
    if not names:
        holds = "no file of a supported kind" if any(folder.iterdir()) else "nothing"
        raise DataError(f"The folder {folder} holds {holds}. Give {_ALLOWED}.")
    return [(folder / name, name) for name in names]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} cannot be read: {_cause(error)}.") from None


def _load(name: str) -> IterableDataset:
    path, _, config = name.partition(":")
    try:
        from datasets import load_dataset

        with _no_progress_bars():
            dataset = load_dataset(path, config or None, split=SPLIT, streaming=True)
    except Exception as error:  # the library raises whatever its file systems and parsers raise
        raise DataError(
            f"There is no file or folder {name!r}, and as a data set on the Hugging Face hub it cannot be loaded: "
            f"{_cause(error)}. Check the spelling and the connection; a data set with several configurations is given "
            f"as {path}:CONFIG, and it must have a split {SPLIT!r}."
        ) from None
    columns = dataset.column_names
    if columns is not None and FIELD not in columns:
        raise DataError(
            f"The data set {name} has no column {FIELD!r}; it has {', '.join(map(repr, columns[:8]))}. Give one with "
            f"such a column, or download it and rename the column that holds the text."
        )
    return dataset if columns is None else dataset.select_columns([FIELD])


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the library from drawing on the terminal, which belongs to the command line."""
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _cause(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return str(text)[:CAUSE_SHOWN].removesuffix(".")
