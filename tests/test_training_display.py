"""What training and reading say of the time that is left."""

from __future__ import annotations

import pytest

from neurogen.cli.common import duration
from neurogen.cli.training_display import TimeLeft


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (7325, "2 h 02 min")]
)
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_time_left_comes_from_the_chunks_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr("neurogen.cli.training_display.time.monotonic", lambda: next(clock))
    left = TimeLeft(max_chunks=20)
    assert left.seconds(10) is None  # resumed behind chunk 9: one chunk tells nothing yet
    assert left.seconds(11) == 90.0  # 10 seconds a chunk, 9 to go
    assert left.words(12) == "2 min 00 s left"  # 15 seconds a chunk, 8 to go


def test_without_a_last_chunk_the_data_decide() -> None:
    left = TimeLeft(max_chunks=None)
    assert left.words(1) == left.words(2) == "until the data end"
    assert left.seconds(3) is None
