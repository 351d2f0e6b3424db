"""Training texts in files of every kind, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow
import zstandard
from pyarrow import parquet

from neurogen.data.documents import BrokenRow, TextStream

TEXTS = ["one", "two\nlines", " \u00e9\u4f60\U0001f600\u2028\ttail ", "four"]


def jsonl(texts: Iterable[str]) -> bytes:
    return b"".join(json.dumps({"text": text, "meta": {"n": 1}}).encode() + b"\n" for text in texts)


def write_jsonl(path: Path, texts: Sequence[str]) -> None:
    path.write_bytes(jsonl(texts))


def write_zst(path: Path, texts: Sequence[str]) -> None:
    path.write_bytes(zstandard.ZstdCompressor().compress(jsonl(texts)))


def write_parquet(path: Path, texts: Sequence[str]) -> None:
    parquet.write_table(pyarrow.table({"n": list(range(len(texts))), "text": list(texts)}), path, row_group_size=2)


def write_txt(path: Path, texts: Sequence[str]) -> None:
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8", newline="")


WRITERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "a.jsonl": write_jsonl,
    "a.jsonl.zst": write_zst,
    "a.parquet": write_parquet,
    "a.txt": write_txt,
}


def read(*sources: Path | str) -> tuple[list[str], list[BrokenRow]]:
    broken: list[BrokenRow] = []
    stream = TextStream(sources, on_broken=broken.append)
    texts = list(stream)
    assert stream.broken == len(broken)
    return texts, broken


def problems(broken: Iterable[BrokenRow]) -> list[tuple[str, int]]:
    return [(Path(row.file).name, row.line) for row in broken]
