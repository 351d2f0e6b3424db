"""Files: byte order marks, numbers that are not finite, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from neurogen.errors import DataError, ModelError
from neurogen.files import disk_error, read_text, replacing, to_json, write_text, writing


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffä\ufeff\n".encode())
    assert read_text(file) == "ä\ufeff\n"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null(number: float) -> None:
    text = to_json({"a": [1.5, number], "b": (number, {"c": number})})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1.5, None], "b": [None, {"c": None}]}


def test_json_of_finite_values_is_what_json_writes() -> None:
    value = {"ä": [1, 2.5, None, True, "\x1b"], "b": {}}
    assert to_json(value) == json.dumps(value, ensure_ascii=False)
    assert to_json(value, indent=2, ascii_only=True) == json.dumps(value, indent=2)


def test_a_value_that_is_no_json_is_still_an_error() -> None:
    with pytest.raises(TypeError):
        to_json({"a": object()})
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises((ValueError, RecursionError)):
        to_json(circle)


def test_a_file_appears_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")
    write_text("The text", file, "new")
    assert file.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_leaves_the_old_and_no_draft(tmp_path: Path) -> None:
    for name, make in (("file", Path.touch), ("folder", Path.mkdir)):
        old = tmp_path / name
        make(old)
        with pytest.raises(ZeroDivisionError), replacing(old) as draft:
            _ = (make(draft), 1 / 0)
        assert old.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with replacing(tmp_path / "a") as draft:
        draft.mkdir()
        (draft / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "new"]


def test_write_errors_of_libraries_are_told_like_those_of_the_system(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        pass

    full = os.strerror(errno.ENOSPC)
    for error in (
        OSError(errno.ENOSPC, full),
        SafetensorError(f"Error while serializing: I/O error: {full} (os error {errno.ENOSPC})"),
        RuntimeError(f"PytorchStreamWriter failed writing file data/0: {full}"),
    ):
        assert isinstance(disk_error(error), OSError)
        with pytest.raises(ModelError, match=rf"^The weights cannot be written to .*: {full} \(.* MB are free there\)"):
            _fail_writing(tmp_path / "x", error)
    with pytest.raises(KeyError), writing("The weights", tmp_path):
        raise KeyError


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The page cannot be written to .*No such file or directory"):
        write_text("The page", tmp_path / "none" / "a.html", "")


def _fail_writing(path: Path, error: Exception) -> None:
    with writing("The weights", path, ModelError):
        raise error
