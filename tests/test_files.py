"""Files: byte order marks, numbers that are not finite, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from neurogen.errors import DataError, ModelError
from neurogen.files import (
    append_line,
    check_place,
    disk_error,
    is_file,
    is_folder,
    read_text,
    replacing,
    to_json,
    write_text,
    writing,
)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffä\ufeff\n".encode())
    assert read_text(file) == "ä\ufeff\n"


def test_files_of_users_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Each reader by itself: they all read by `read_text` or `decoded`."""
    from neurogen.cli.compare import _references
    from neurogen.cli.configuration import parse_configuration
    from neurogen.diagnosis.recording import read_recording
    from neurogen.pages.training_charts import read_metrics
    from neurogen.text.conversation import _read
    from neurogen.text.prompts import read_text as read_prompt

    mark = "\ufeff".encode()
    kept = {"neurogen_conversation": 1, "sampler": "greedy", "params": {}, "seed": 1, "retries": 0, "messages": []}
    for name, content in (
        ("talk.json", to_json(kept)),
        ("metrics.jsonl", '{"chunk": 1}\n'),
        ("run.jsonl", '{"neurogen_recording": 1}\n'),
    ):
        (tmp_path / name).write_bytes(mark + content.encode())
    assert _read(tmp_path / "talk.json") == kept
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"chunk": 1}]
    assert read_recording(tmp_path / "run.jsonl").head == {"neurogen_recording": 1}
    assert parse_configuration(mark + b"[run]\nseed = 3\n", tmp_path / "neurogen.toml").value == {"run": {"seed": 3}}
    assert read_prompt(BytesIO(mark + b"Tom")) == "Tom"
    assert _references(mark + b'{"reference": "a"}') == ["a"]


@pytest.mark.parametrize("text", ["x" * 300, "x" * 100_000, "a\0b"])
def test_a_text_that_can_be_no_name_of_a_file_names_none(text: str) -> None:
    from neurogen.cli.configuration import ConfigurationError, read_configuration
    from neurogen.models.language_model import locate_model

    assert not is_file(text)
    assert not is_folder(text)
    with pytest.raises(ModelError):
        locate_model(text)
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_configuration(text)


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


def test_a_quota_and_what_a_library_hides_behind_its_own_error_are_told() -> None:
    assert disk_error(RuntimeError(os.strerror(errno.EDQUOT))).errno == errno.EDQUOT  # type: ignore[union-attr]
    hidden = RuntimeError("the event file is broken")
    hidden.__context__ = OSError(errno.ENOSPC, "full")
    assert disk_error(hidden).errno == errno.ENOSPC  # type: ignore[union-attr]
    hidden.__context__ = FileNotFoundError(errno.ENOENT, "what it tried first")
    assert disk_error(hidden) is None


@pytest.mark.parametrize("limited", ["full_disk", "size_limit"])
def test_where_nothing_more_fits_the_old_stays_and_nothing_new_is_left(
    limited: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(limited)
    file, lines = folder / "a.txt", folder / "b.jsonl"
    write_text("The text", file, "old")
    append_line("The line", lines, "1")
    large = "x" * 3_000_000
    told = "cannot be written to .*about 3.0 MB are needed, .* MB are free there"
    with pytest.raises(DataError, match=f"The text {told}"):
        write_text("The text", file, large)
    with pytest.raises(DataError, match=f"The line {told}"):
        append_line("The line", lines, large)
    assert file.read_text() == "old"
    assert lines.read_text() == "1\n"
    assert sorted(folder.iterdir()) == [file, lines]


def test_what_a_killed_process_has_left_is_removed_and_what_a_running_one_makes_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    file, stale, made = (tmp_path / name for name in ("a", f".a.{ended.pid}.tmp", f".a.{os.getppid()}.tmp"))
    other = tmp_path / f".ab.{ended.pid}.tmp"
    (stale / "inner").mkdir(parents=True)
    for one in (made, other):
        one.touch()
    write_text("The text", file, "new")
    assert sorted(tmp_path.iterdir()) == sorted([file, made, other])


def test_a_link_a_device_and_permissions_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "a", tmp_path / "link"
    file.touch(0o600)
    link.symlink_to(file)
    write_text("The text", link, "new")
    assert (file.read_text(), link.is_symlink(), file.stat().st_mode & 0o777) == ("new", True, 0o600)
    device = Path("/dev/full")
    check_place("The text", device)
    with pytest.raises(DataError, match="No space left"):
        write_text("The text", device, "new")
    assert device.is_char_device()


def test_a_place_is_refused_before_anything_is_written_there(tmp_path: Path) -> None:
    check_place("The page", tmp_path / "a.html")
    for path, problem in ((tmp_path, "it is a folder"), (tmp_path / "none" / "a.html", "there is no folder")):
        with pytest.raises(DataError, match=rf"The page cannot be written to .*: {problem}"):
            check_place("The page", path)
    assert not list(tmp_path.iterdir())


def _fail_writing(path: Path, error: Exception) -> None:
    with writing("The weights", path, ModelError):
        raise error
