"""Stop strings in text that arrives in pieces: what passes, what is held back, and that cuts do not matter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurogen.text.stops import StopFinder

LETTERS = st.text(alphabet="ab\u00e9", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Read one character at a time and look whether a stop string ends there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def feed(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    passed = "".join(finder.push(piece) for piece in pieces)
    return passed + finder.flush(), finder.found


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    text = draw(LETTERS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(cut_texts(), STOPS)
def test_any_cutting_gives_what_the_naive_reading_gives(pieces: list[str], stops: list[str]) -> None:
    assert feed(pieces, stops) == naive("".join(pieces), stops)


@given(cut_texts(), STOPS)
def test_what_passed_is_never_part_of_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    finder, passed = StopFinder(stops), ""
    whole, _ = naive("".join(pieces), stops)
    for piece in pieces:
        passed += finder.push(piece)
        assert whole.startswith(passed)


@given(LETTERS, STOPS)
def test_no_more_is_held_back_than_could_become_a_stop_string(text: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    passed = finder.push(text)
    held = finder.flush()
    if not finder.found:
        assert passed + held == text
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize("pieces", [["one STOP two"], ["one S", "TO", "P two"], list("one STOP two")])
def test_text_ends_before_the_stop_string(pieces: list[str]) -> None:
    assert feed(pieces, ["STOP"]) == ("one ", True)


def test_the_stop_string_that_is_complete_first_ends_the_text() -> None:
    assert feed(["x abcd"], ["abcd", "bc"]) == ("x a", True)


def test_of_stop_strings_complete_at_once_the_longest_is_taken() -> None:
    assert feed(["x abc"], ["c", "abc", "bc"]) == ("x ", True)


def test_a_false_start_is_released_as_soon_as_it_is_known_to_be_one() -> None:
    finder = StopFinder(["aab"])
    assert [finder.push(piece) for piece in ("a", "a", "a", "c")] == ["", "", "a", "aac"]


def test_nothing_passes_behind_a_stop_string() -> None:
    finder = StopFinder(["."])
    assert finder.push("end. more") == "end"
    assert (finder.push("and more"), finder.flush()) == ("", "")


def test_held_text_is_released_once() -> None:
    finder = StopFinder(["STOP"])
    assert (finder.push("ST"), finder.flush(), finder.flush()) == ("", "ST", "")


def test_without_stop_strings_all_text_passes_at_once() -> None:
    finder = StopFinder([])
    assert [finder.push(piece) for piece in ("a", "", "b")] == ["a", "", "b"]
    assert not finder.found
