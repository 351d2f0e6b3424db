"""Training texts: what every kind of file gives, what becomes of a broken row, and taking a stream up again."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from neurogen import DataError, rows
from neurogen.documents import BrokenRow, Piece, TextStream

SHARED = Path(__file__).resolve().parents[2] / "shared"
TEXTS = ["one", "two\nlines", " \u00e9\u4f60\U0001f600\u2028\ttail ", "four"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets library leaves lock files in its cache folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


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


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_its_texts_unaltered(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, TEXTS)
    assert read(tmp_path / name) == (TEXTS, [])


def test_an_ending_in_capitals_is_the_same_ending(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "A.JSONL", TEXTS)
    assert read(tmp_path / "A.JSONL")[0] == TEXTS


def test_a_folder_is_read_with_its_folders_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/10.jsonl", "a.jsonl", "c/d/e.jsonl", ".hidden/f.jsonl"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / "data" / name, [name])
    (tmp_path / "data" / "LICENSE").write_text("not data")
    assert read(tmp_path / "data")[0] == ["a.jsonl", "b/10.jsonl", "b/2.jsonl", "c/d/e.jsonl"]


def test_several_sources_keep_their_order(tmp_path: Path) -> None:
    for name in ("2.jsonl", "1.jsonl"):
        write_jsonl(tmp_path / name, [name])
    assert read(tmp_path / "2.jsonl", str(tmp_path / "1.jsonl"))[0] == ["2.jsonl", "1.jsonl"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_selected_documents_alone_are_given_out_also_after_a_pause(tmp_path: Path, name: str) -> None:
    texts = [f"text {number}" for number in range(1, 10)]
    path = tmp_path / name
    (write_txt if name.endswith("txt") else write_jsonl)(path, texts)
    stream = TextStream([path], select=lambda number: number % 3 == 0)
    assert [*stream, *stream] == ["text 3", "text 6", "text 9"] * 2
    first = iter(stream)
    assert next(first) == "text 3"
    resumed = TextStream([path], select=lambda number: number % 3 == 0)
    resumed.load_state_dict(stream.state_dict())
    assert list(resumed) == ["text 6", "text 9"]


def test_one_source_need_not_be_a_list(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    assert list(TextStream(str(tmp_path / "a.jsonl"))) == TEXTS


def test_byte_order_mark_blank_lines_and_missing_last_line_break_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n  \t\n{"text": "two"}')
    assert read(tmp_path / "a.jsonl") == (["one", "two"], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at offset 10"),
        (b'"x"', "a row must be a JSON object with a field 'text', got \"x\""),
        (b"null", "a row must be a JSON object with a field 'text', got null"),
        (b'{"txet": "x", "b": 1}', "there is no field 'text'; it has 'txet', 'b'"),
        (b"{}", "there is no field 'text'; it has no field"),
        (b'{"text": null}', "'text' must be a text, got null"),
        (b'{"text": 7}', "'text' must be a text, got 7"),
        (b'{"text": ["x"]}', "'text' must be a text, got [\"x\"]"),
        (b'{"text": ""}', "the text is empty"),
        (b'{"text": " \\n\\t"}', "the text is empty"),
        (rb'{"text": "a\ud800"}', "half of a character, at 1"),
    ],
)
def test_a_broken_row_is_named_and_loses_no_other(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["before"]) + b"\n" + line + b"\n" + jsonl(["after"]))
    texts, (broken,) = read(path)
    assert texts == ["before", "after"]
    assert (broken.file, broken.line) == (str(path), 3)
    assert reason in broken.reason
    assert str(broken).startswith(f"{path}, line 3: ")
    assert "\n" not in str(broken)
    assert len(broken.reason) < 200


def test_a_line_that_is_too_long_is_skipped_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW", 1000)
    monkeypatch.setattr(rows, "PIECE", 64)
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x" * 5000, "kept", "y" * 2000]))
    texts, broken = read(tmp_path / "a.jsonl")
    assert texts == ["kept"]
    assert problems(broken) == [("a.jsonl", 1), ("a.jsonl", 3)]
    assert "more than 1,000 bytes" in broken[0].reason


def test_a_cut_off_zst_keeps_the_rows_before_and_says_where_it_ends(tmp_path: Path) -> None:
    texts = [f"document {number} " + "".join(map(chr, range(64, 64 + number % 60))) for number in range(50_000)]
    write_zst(tmp_path / "a.jsonl.zst", texts)
    whole = (tmp_path / "a.jsonl.zst").read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    write_jsonl(tmp_path / "b.jsonl", ["next file"])
    kept, (broken,) = read(tmp_path / "a.jsonl.zst", tmp_path / "b.jsonl")
    assert 0 < len(kept) - 1 < len(texts)
    assert kept == [*texts[: len(kept) - 1], "next file"]
    assert (Path(broken.file).name, broken.line) == ("a.jsonl.zst", len(kept))
    assert "the file cannot be read from here on: the zstd data is cut off" in broken.reason


def test_a_zst_cut_by_one_byte_is_noticed(tmp_path: Path) -> None:
    write_zst(tmp_path / "a.jsonl.zst", TEXTS)
    (tmp_path / "a.jsonl.zst").write_bytes((tmp_path / "a.jsonl.zst").read_bytes()[:-1])
    write_jsonl(tmp_path / "b.jsonl", ["b"])
    assert [row.reason[:24] for row in read(tmp_path)[1]] == ["the file cannot be read "]


def test_a_zst_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    halves = compress(jsonl(TEXTS)[:30]) + skippable + compress(jsonl(TEXTS)[30:])
    (tmp_path / "a.jsonl.zst").write_bytes(halves)
    assert read(tmp_path / "a.jsonl.zst") == (TEXTS, [])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl.zst", b"this is no zstd at all", "it is not zstd, or damaged"),
        ("a.parquet", b"this is no parquet", "the file cannot be read from here on"),
        ("a.parquet", b"", "the file cannot be read from here on"),
    ],
)
def test_a_damaged_file_loses_no_other(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    write_jsonl(tmp_path / "b.jsonl", ["kept"])
    texts, (broken,) = read(tmp_path / name, tmp_path / "b.jsonl")
    assert texts == ["kept"]
    assert problems([broken]) == [(name, 1)]
    assert reason in broken.reason
    assert "\n" not in broken.reason


def test_a_file_that_disappears_is_reported(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["a"])
    write_jsonl(tmp_path / "b.jsonl", ["b"])
    broken: list[BrokenRow] = []
    stream = TextStream([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], on_broken=broken.append)
    (tmp_path / "a.jsonl").unlink()
    assert list(stream) == ["b"]
    assert problems(broken) == [("a.jsonl", 1)]
    assert "No such file" in broken[0].reason


def test_cells_of_a_table_that_hold_no_text_are_named_by_row(tmp_path: Path) -> None:
    column = pyarrow.array([b"one", None, b"\xff", b" ", b"five"]).cast(pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), len(column), column.buffers())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet", row_group_size=2)
    texts, broken = read(tmp_path / "a.parquet")
    assert texts == ["one", "five"]
    assert problems(broken) == [("a.parquet", 2), ("a.parquet", 3), ("a.parquet", 4)]
    assert [row.reason for row in broken] == [
        "'text' must be a text, got null",
        "not UTF-8: byte 0xff at offset 0",
        "the text is empty",
    ]


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_text_may_be_stored_in_other_ways(tmp_path: Path, kind: pyarrow.DataType) -> None:
    column = pyarrow.array(["one", None, "one"]).cast(kind)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    texts, broken = read(tmp_path / "a.parquet")
    assert texts == ["one", "one"]
    assert problems(broken) == [("a.parquet", 2)]


def test_a_table_without_the_column_says_what_it_has(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"content": ["x"], "n": [1]}), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "b.jsonl", ["b"])
    texts, (broken,) = read(tmp_path)
    assert texts == ["b"]
    assert "there is no column 'text'; it has 'content', 'n'" in broken.reason


def test_a_text_file_is_one_document_unless_separators_divide_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\nstill one\r\n<|endoftext|>\r\n\n \n<|endoftext|>\n <|endoftext|>\ntwo\n")
    pieces = list(TextStream([path]).pieces())
    assert pieces == [Piece("one\n\nstill one", True), Piece(" <|endoftext|>\ntwo", True)]


@pytest.mark.parametrize("line_length", [7, 63, 64, 65, 1000])
def test_a_long_document_comes_in_pieces_at_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_length: int
) -> None:
    monkeypatch.setattr(rows, "PIECE", 64)
    text = "\n".join("\u00e9\u4f60\U0001f600"[number % 3] * line_length for number in range(9))
    (tmp_path / "a.txt").write_text(f"{text}\n<|endoftext|>\nshort", encoding="utf-8")
    pieces = list(TextStream([tmp_path / "a.txt"]).pieces())
    assert "".join(piece.text for piece in pieces) == text + "short"
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 2) + [True, True]
    assert len(pieces) > 5
    assert max(len(piece.text.encode()) for piece in pieces) <= 64 + 3
    if line_length < 16:
        assert all(piece.text.endswith("\n") for piece in pieces[:-2])


def test_lines_of_a_text_file_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xff\nthree\n<|endoftext|>\n\xfe\n<|endoftext|>\nfour\n\xfd")
    texts, broken = read(tmp_path / "a.txt")
    assert texts == ["one\nthree", "four"]
    assert problems(broken) == [("a.txt", 2), ("a.txt", 5), ("a.txt", 8)]
    assert broken[0].reason == "not UTF-8: byte 0xff at offset 2"


def test_a_long_document_ends_even_if_its_last_piece_has_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PIECE", 24)
    (tmp_path / "a.txt").write_bytes(b"twenty characters...\n" + b"\xff" * 8 + b"\n<|endoftext|>\nnext\n")
    stream = TextStream([tmp_path / "a.txt"])
    assert list(stream.pieces()) == [Piece("twenty characters...\n", False), Piece("", True), Piece("next", True)]
    assert list(stream) == ["twenty characters...\n", "next"]
    assert next(stream.pieces()).ends is False
    resumed = TextStream([tmp_path / "a.txt"])
    resumed.load_state_dict(stream.state_dict())
    assert next(resumed.pieces()) == Piece("", True)


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


def test_the_sample_of_the_web_is_read_whole() -> None:
    path = SHARED / "data" / "web_sample.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data/web_sample.jsonl is absent")
    texts, broken = read(path)
    assert broken == []
    assert texts == [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
