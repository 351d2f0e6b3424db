"""The results file: nothing lost, nothing doubled, nothing of others destroyed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from neurogen import DataError
from neurogen.cli.results import Key, ResultsFile

RUN = {"model": "m", "n": 2, "seed": 5, "stop": []}


def line(index: int, sample: int, **changes: Any) -> dict[str, Any]:
    fields = {"index": index, "sample": sample, "prompt": f"p{index}", "text": "caf\u00e9\n", "params": {"k": 50}}
    return fields | {"seed": 5 + 2 * index + sample, "run": dict(RUN)} | changes


def identity(key: Key) -> Mapping[str, Any] | None:
    index, sample = key
    if index > 9 or sample > 1:
        return None
    wanted = line(index, sample)
    return {name: wanted[name] for name in ("prompt", "params", "seed", "run")}


def write(path: Path, *lines: Mapping[str, Any]) -> bytes:
    with ResultsFile(path) as file:
        assert file.resume(identity) == set()
        for item in lines:
            file.append(item)
    return path.read_bytes()


def test_a_new_file_gets_one_line_a_result_and_no_other_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    data = write(path, line(0, 1), line(0, 0))
    assert [json.loads(item) for item in data.splitlines()] == [line(0, 1), line(0, 0)]
    assert "caf\u00e9".encode() in data
    assert list(tmp_path.iterdir()) == [path]


def test_a_repeated_run_finds_what_is_done_and_appends(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    before = write(path, line(0, 1), line(3, 0))
    with ResultsFile(path) as file:
        assert file.seed == 5
        assert file.resume(identity) == {(0, 1), (3, 0)}
        file.append(line(0, 0))
    assert path.read_bytes() == before + json.dumps(line(0, 0), ensure_ascii=False).encode() + b"\n"


def test_a_new_file_has_no_seed(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "r.jsonl") as file:
        assert file.seed is None


def test_an_incomplete_last_line_is_dropped_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    whole = write(path, line(0, 0), line(0, 1))
    first = whole.splitlines(keepends=True)[0]
    for end in range(len(first), len(whole) - 1):
        path.write_bytes(whole[:end])
        with ResultsFile(path) as file:
            assert file.resume(identity) == {(0, 0)}
            file.append(line(0, 1))
        assert path.read_bytes() == whole


def test_a_line_that_lacks_its_end_alone_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    whole = write(path, line(0, 0), line(0, 1))
    path.write_bytes(whole[:-1])
    with ResultsFile(path) as file:
        assert file.resume(identity) == {(0, 0), (0, 1)}
    assert path.read_bytes() == whole


def test_a_file_that_holds_an_incomplete_line_alone_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"index": 0, "sample": 1, "pro')
    with ResultsFile(path) as file:
        assert (file.seed, file.resume(identity)) == (None, set())
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [b"my diary", b"my diary\n", b'{"prompt": "Once"}\n', b'{"prompt": "Once"}', b"\xff\xfe\n", b"[1]\n",
     b'{"index": 0, "sample": 0, "text": "from --json"}\n', b'{"index": 0, "sample": 0, "run": 7}\n', b"\n", b"{",
     b'{"index": 7', b'{"index": 7, "sam', b'{"index": 7, "sample": 0, "label": "mine',
     b'{"index": 7, "prompt": "precious, and no line break', b'{"index": 7, "prompt": "precious"}'],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be continued: line 1 .*choose another file"):
        ResultsFile(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_line_within_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    whole = write(path, line(0, 0), line(0, 1)).splitlines(keepends=True)
    path.write_bytes(whole[0] + whole[0][:20] + b"\n" + whole[1])
    with pytest.raises(DataError, match=r"line 2 .*is damaged"):
        ResultsFile(path)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"prompt": "other"}, 'its prompt is "other" and this run\'s is "p1"'),
        ({"params": {"k": 40}}, "its k is 40 and this run's is 50"),
        ({"seed": 8}, "its seed is 8 and this run's is 7"),
        ({"run": RUN | {"model": "big"}}, 'its model is "big" and this run\'s is "m"'),
        ({"run": RUN | {"stop": ["x"]}}, r'its stop is \["x"\] and this run\'s is \[\]'),
        ({"index": 10}, "the result of prompt 11, sample 1, and this run has no such sequence"),
        ({"sample": 2}, "the result of prompt 2, sample 3, and this run has no such sequence"),
    ],
)
def test_a_line_of_another_run_is_refused_with_the_difference(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    path = tmp_path / "r.jsonl"
    before = write(path, line(0, 0), line(1, 0) | changes)
    for content in (before, before[:-1], before + before[:50]):  # nor is anything mended in it
        path.write_bytes(content)
        with ResultsFile(path) as file, pytest.raises(DataError, match=f"line 2 .*{difference}"):
            file.resume(identity)
        assert path.read_bytes() == content


def test_a_doubled_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(write(path, line(0, 0)) * 2)
    with (
        ResultsFile(path) as file,
        pytest.raises(DataError, match=r"line 2 .*repeats the result of prompt 1, sample 1"),
    ):
        file.resume(identity)


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ResultsFile(path), pytest.raises(DataError, match="is being written by another process"):
        ResultsFile(path)
    ResultsFile(path).close()


def test_a_link_to_a_file_in_use_is_refused(tmp_path: Path) -> None:
    path, link = tmp_path / "r.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    with ResultsFile(path), pytest.raises(DataError, match="is being written by another process"):
        ResultsFile(link)


def test_another_process_is_kept_out_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    code = (
        f"from neurogen.cli.results import ResultsFile as F; f = F({str(path)!r}); print('open', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(DataError, match="is being written by another process"):
            ResultsFile(path)
        process.kill()
        process.wait()
    with ResultsFile(path) as file:
        assert file.resume(identity) == set()
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo, Path(os.devnull)):
        with pytest.raises(DataError, match="is not a regular file"):
            ResultsFile(path)


def test_a_folder_in_which_no_file_can_be_made_is_named() -> None:
    if not Path("/proc/version").exists():
        pytest.skip("this system has no /proc")
    with pytest.raises(DataError, match=r"/proc/r.jsonl cannot be written: no file can be made in /proc\."):
        ResultsFile("/proc/r.jsonl")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*absent"):
        ResultsFile(tmp_path / "absent" / "r.jsonl")


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("neurogen.cli.results.os.open", refused)
        with pytest.raises(DataError, match=r"r.jsonl cannot be written: Permission denied"):
            ResultsFile(tmp_path / "r.jsonl")
    ResultsFile(tmp_path / "r.jsonl").close()


def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "r.jsonl"
    with ResultsFile(path) as file:
        file.resume(identity)
        monkeypatch.setattr("os.write", full)
        with pytest.raises(DataError, match=r"r.jsonl cannot be written: No space left on device"):
            file.append(line(0, 0))


def test_a_write_in_pieces_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: whole(descriptor, data[:7]))
    path = tmp_path / "r.jsonl"
    data = write(path, line(0, 0))
    assert json.loads(data) == line(0, 0)
