"""What training and reading say of the time that is left."""

from __future__ import annotations

import math

import pytest

from neurogen.cli.common import duration
from neurogen.cli.training_display import LineDisplay, LiveDisplay, TimeLeft
from neurogen.diagnosis.health import Health
from neurogen.training.report import ChunkReport


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


def test_numbers_that_are_none_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    health = Health(10, 32, math.nan, 0.0, 0.0, math.nan, math.nan)
    report = ChunkReport(1, 1, 10, 0, health, math.inf, 0.1, 5.0, "diverged", "why", 0, 1, validation=health)
    LineDisplay(3).show(report)
    assert capsys.readouterr().err.startswith(
        "chunk 1, loss not finite, accuracy 0.0%, held out not finite / 0.0%, diverged, 5 tokens/s"
    )
    display = LiveDisplay(3)
    display.show(report)
    display.close()
    console = Console(width=100)
    with console.capture() as captured:
        console.print(display._panel(report))
    assert "nan" not in captured.get()
    assert captured.get().count("not finite") == 3  # loss, held out, gradient norm


def test_without_a_last_chunk_the_data_decide() -> None:
    left = TimeLeft(max_chunks=None)
    assert left.words(1) == left.words(2) == "until the data end"
    assert left.seconds(3) is None
