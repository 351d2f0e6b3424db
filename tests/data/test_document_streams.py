"""A stream of training texts: taking it up again, what it holds in memory, the hub, and data that are refused."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from document_helpers import TEXTS, WRITERS, jsonl, problems, read, write_jsonl, write_parquet
from pyarrow import parquet

from neurogen import DataError
from neurogen.data import rows
from neurogen.data.documents import BrokenRow, Piece, TextStream


def many_texts() -> list[str]:
    return [f"document {number} " * (1 + number % 5) for number in range(13)]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with every kind of file, and with broken rows in between."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, writer in WRITERS.items():
        writer(folder / name, [f"{name} {text}" for text in many_texts()])
    (folder / "b.jsonl").write_bytes(b"broken\n" + jsonl(["first"]) + b"broken\nbroken\n" + jsonl(["last"]) + b"broken")
    return folder


def test_a_stream_goes_on_behind_any_document(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PIECE", 24)  # so that positions lie within documents, too
    broken: list[BrokenRow] = []
    stream = TextStream([mixed], on_broken=broken.append)
    seen: list[tuple[Piece, str, int]] = []
    for _ in range(2):
        seen += [(piece, json.dumps(stream.state_dict()), stream.broken) for piece in stream.pieces()]
    epoch_length = len(seen) // 2
    assert [piece for piece, _, _ in seen[:epoch_length]] == [piece for piece, _, _ in seen[epoch_length:]]
    for index in range(0, len(seen), 3):
        reported: list[BrokenRow] = []
        again = TextStream([mixed], on_broken=reported.append)
        again.load_state_dict(json.loads(seen[index][1]))
        rest = list(again.pieces())
        while index + 1 + len(rest) < len(seen):
            rest += again.pieces()
        assert rest == [piece for piece, _, _ in seen[index + 1 :]]
        assert (again.epoch, again.broken) == (2, 4)
        assert reported == broken[seen[index][2] :]


def test_a_state_may_be_loaded_into_a_stream_that_has_moved(mixed: Path) -> None:
    stream = TextStream([mixed])
    iterator = iter(stream)
    first = [next(iterator) for _ in range(5)]
    state = stream.state_dict()
    following = [next(iterator) for _ in range(30)]
    stream.load_state_dict(state)
    iterator = iter(stream)
    assert [next(iterator) for _ in range(30)] == following
    assert first[0] not in following


def test_leaving_an_iteration_and_beginning_another_loses_nothing(mixed: Path) -> None:
    whole = list(TextStream([mixed]))
    stream = TextStream([mixed])
    texts: list[str] = []
    while stream.epoch == 0:
        for count, text in enumerate(stream, start=1):
            texts.append(text)
            if count == 4:
                break
    assert texts == whole


def test_broken_rows_are_reported_once_however_often_the_data_are_read(mixed: Path) -> None:
    broken: list[BrokenRow] = []
    stream = TextStream([mixed], on_broken=broken.append)
    assert list(stream) == list(stream) == list(stream)
    assert (stream.epoch, stream.broken) == (3, 4)
    assert problems(broken) == [("b.jsonl", line) for line in (1, 3, 4, 6)]


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    for folder in ("x", "moved", "more", "longer"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "a.jsonl", TEXTS)
    write_jsonl(tmp_path / "more" / "b.jsonl", TEXTS)
    write_jsonl(tmp_path / "longer" / "a.jsonl", [*TEXTS, "five"])
    stream = TextStream([tmp_path / "x"])
    next(iter(stream))
    state = stream.state_dict()
    TextStream([tmp_path / "moved"]).load_state_dict(state)
    for folder in ("more", "longer"):
        with pytest.raises(DataError, match=r"is one in other data than .*: a file was added, removed, renamed"):
            TextStream([tmp_path / folder]).load_state_dict(state)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    stream = TextStream([tmp_path / "a.jsonl"])
    for state in ({}, {**stream.state_dict(), "version": 99}, {"version": 1}):
        with pytest.raises(DataError, match="cannot be read: it is damaged, or was saved by another version"):
            stream.load_state_dict(state)


def peak_of(stream: Iterable[str]) -> tuple[int, int]:
    """Characters read, and the most bytes that Python held at a time."""
    tracemalloc.start()
    try:
        characters = sum(map(len, stream))
        return characters, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.txt"])
def test_a_large_file_is_never_held_whole(tmp_path: Path, name: str) -> None:
    words = random.Random(0)
    texts = [words.randbytes(50).hex() + "\n" for _ in range(200)]
    texts = ["".join(words.choices(texts, k=100)) for _ in range(1000)]
    if name == "a.txt":
        texts = ["".join(texts)]
    WRITERS[name](tmp_path / name, texts)
    list(zip(TextStream([tmp_path / name]), range(3), strict=False))  # imports and caches are not what is measured
    characters, peak = peak_of(TextStream([tmp_path / name]))
    assert characters >= 10_099_999
    assert peak < 2_000_000


def one_paragraph(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_data_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("x")
    (tmp_path / "a.csv").write_text("x")
    cases: dict[str, list[Any]] = {
        r"There is no file or folder '.*absent.jsonl'": [tmp_path / "absent.jsonl"],
        r"There is no file or folder 'data/absent.jsonl'": ["data/absent.jsonl"],
        r"empty holds nothing\. Give files ending in \.jsonl": [tmp_path / "empty"],
        r"other holds no file of a supported kind": [tmp_path / "other"],
        r"a\.csv cannot be read as training data: its name has an unknown ending": [tmp_path / "a.csv"],
        r"No training data was given": [],
    }
    for message, sources in cases.items():
        with pytest.raises(DataError, match=message) as error:
            TextStream(sources)
        one_paragraph(error)


def test_data_without_any_text_are_an_error_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"content": "x"}\n{"content": "y"}\n')
    stream = TextStream([tmp_path / "a.jsonl"])
    with pytest.raises(DataError, match=r"no text to train on in .*a.jsonl: 2 broken rows and no other") as error:
        list(stream)
    one_paragraph(error)
    (tmp_path / "b.txt").write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"no text to train on in .*b.txt: it is empty"):
        list(TextStream([tmp_path / "b.txt"]))


def test_a_name_on_the_hub_that_cannot_be_reached_is_one_paragraph() -> None:
    with pytest.raises(
        DataError, match="no file or folder 'nobody/nothing', and as a data set on the Hugging"
    ) as error:
        TextStream(["nobody/nothing"])
    assert "Couldn't reach" in one_paragraph(error)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub with one data set, `them/theirs`, of two files; returns the calls."""
    import datasets

    load, calls = datasets.load_dataset, []
    for number in range(2):
        texts = [f"hub {number} {index}" for index in range(7)]
        texts[3] = " "
        write_parquet(tmp_path / f"{number}.parquet", texts)

    def load_dataset(path: str, config: str | None, **options: Any) -> Any:
        calls.append((path, config, options))
        return load("parquet", data_files=[str(tmp_path / f"{number}.parquet") for number in range(2)], **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_data_set_on_the_hub_is_streamed(hub: list[tuple[Any, ...]], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["a"])
    texts, broken = read(tmp_path / "a.jsonl", "them/theirs:small", tmp_path / "a.jsonl")
    expected = [f"hub {number} {index}" for number in range(2) for index in range(7) if index != 3]
    assert texts == ["a", *expected, "a"]
    assert hub == [("them/theirs", "small", {"split": "train", "streaming": True})]
    assert [str(row) for row in broken] == [f"them/theirs:small, line {line}: the text is empty" for line in (4, 11)]


@pytest.mark.usefixtures("hub")
def test_a_data_set_on_the_hub_goes_on_behind_any_document() -> None:
    stream = TextStream(["them/theirs"])
    seen = [(text, json.dumps(stream.state_dict())) for _ in range(2) for text in stream]
    assert len(seen) == 24
    for index, (_, state) in enumerate(seen):
        reported: list[BrokenRow] = []
        again = TextStream(["them/theirs"], on_broken=reported.append)
        again.load_state_dict(json.loads(state))
        rest = [*again, *again][: len(seen) - index - 1]
        assert rest == [text for text, _ in seen[index + 1 :]]
        assert [row.line for row in reported] == [4, 11][(index > 2) + (index > 8) :]


def test_a_data_set_on_the_hub_without_the_column_is_refused(hub: list[tuple[Any, ...]], tmp_path: Path) -> None:
    for number in range(2):
        parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match="them/theirs has no column 'text'; it has 'content'") as error:
        TextStream(["them/theirs"])
    one_paragraph(error)
    assert hub


@pytest.mark.usefixtures("hub")
def test_a_connection_that_is_lost_is_one_paragraph(tmp_path: Path) -> None:
    stream = iter(TextStream(["them/theirs"]))
    assert next(stream) == "hub 0 0"
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(DataError, match="them/theirs cannot be read beyond row 7: No such file") as error:
        list(stream)
    one_paragraph(error)
