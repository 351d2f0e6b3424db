"""Training texts from files: what every kind of file gives, and what becomes of a broken row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from document_helpers import TEXTS, WRITERS, jsonl, problems, read, write_jsonl, write_txt, write_zst
from pyarrow import parquet

from neurogen.data import rows
from neurogen.data.documents import BrokenRow, Piece, TextStream

SHARED = Path(__file__).resolve().parents[3] / "shared"


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


def test_the_sample_of_the_web_is_read_whole() -> None:
    path = SHARED / "data" / "web_sample.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data/web_sample.jsonl is absent")
    texts, broken = read(path)
    assert broken == []
    assert texts == [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
