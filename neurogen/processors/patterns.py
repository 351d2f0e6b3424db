"""Patterns of JSON schema (ECMA-262 with the flag u) in the syntax that Rust's and Python's regular expressions share.

Every class of characters becomes an explicit set, so that one pattern means the same to the library that writes a text
and to the one that checks it. Where these libraries differ, the set is the narrower one, so that the text keeps the
pattern for all of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["PatternError", "for_python", "for_rust"]

Ranges = tuple[tuple[int, int], ...]
"""Code points as (first, last), ascending, not adjacent."""

LAST = sys.maxunicode
SURROGATES = (0xD800, 0xDFFF)
QUOTE, BACKSLASH = 0x22, 0x5C

SPACES = (0x20, 0xA0, 0x1680, 0x202F, 0x205F, 0x3000)
SPACE_OF_ALL: Ranges = ((9, 13), (0x2000, 0x200A), (0x2028, 0x2029), *((code, code) for code in SPACES))
"""White space of ECMA-262, of Rust's and of Python's regular expressions."""

SPACE_OF_ANY: Ranges = (*SPACE_OF_ALL, (0x1C, 0x1F), (0x85, 0x85), (0xFEFF, 0xFEFF))
DIGITS: Ranges = ((0x30, 0x39),)
WORD: Ranges = (*DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}

NOT_REPEATED = ("^", "|", "(?:", "(?i:", "(?i)")
"""Parts of a translation that no repetition follows."""

QUANTIFIER = re.compile(r"(?:[*+?]|\{(?P<least>\d+)(?P<more>,(?P<most>\d*))?\})\??")
MOST_REPEATED = 1_000_000
HEX = re.compile(r"x([0-9A-Fa-f]{2})|u\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})")
LOW_SURROGATE = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})")
PROPERTY = re.compile(r"([pP])\{(\w+(?:=\w+)?)\}|([pP])([CLMNPSZ])")
GROUP = re.compile(r"\((?:\?(?:(?P<plain>:|i:|P?<[A-Za-z_]\w*>)|(?P<flag>i\))|(?P<look><?[=!])|(?P<other>.?)))?")


class PatternError(ValueError):
    """A pattern cannot be used; says why, and where, counted from 1."""

    def __init__(self, pattern: str, at: int, problem: str) -> None:
        super().__init__(f"{problem}, at character {at + 1} of {_shown(pattern)}")


def for_rust(pattern: str) -> str:
    """The pattern for llguidance.

    A class with U+0000 that lacks the quote or the backslash loses U+0000: llguidance 1.9.1 takes a class with all
    control characters for one that has those two as well, and lets them through. A text with U+0000 is not written.

    Raises:
        PatternError: it cannot be used.
    """
    return _Translator(pattern, end="$", safe=True).translated()


def for_python(pattern: str) -> str:
    """The pattern for Python's `re.search`.

    Raises:
        PatternError: it cannot be used.
    """
    return _Translator(pattern, end=r"\Z", safe=False).translated()


class _Translator:
    def __init__(self, pattern: str, *, end: str, safe: bool) -> None:
        self._pattern = pattern
        self._at = 0
        self._end = end
        self._safe = safe
        self._depth = 0

    def translated(self) -> str:
        parts: list[str] = []
        while self._at < len(self._pattern):
            parts.append(self._next(parts[-1] if parts else "^"))
        if self._depth:
            raise self._wrong("a group is not closed")
        return "".join(parts)

    def _next(self, before: str) -> str:
        """The next part of the translation, after another."""
        char = self._pattern[self._at]
        if found := QUANTIFIER.match(self._pattern, self._at):
            if before in NOT_REPEATED:
                raise self._wrong(f"there is nothing that {found[0]} could repeat")
            self._check_bounds(found)
            self._at = found.end()
            if QUANTIFIER.match(self._pattern, self._at):
                raise self._wrong("a repetition is repeated")
            return found[0].removesuffix("?") if len(found[0]) > 1 else found[0]  # lazy or not: the same texts
        if char == "(":
            return self._group()
        if char == "[":
            return self._spelled(self._class())
        self._at += 1
        if char == "\\":
            return self._escape()
        if char == ".":
            return self._spelled(_complement(LINE_ENDS))
        if char == "$":
            return self._end
        if char == ")":
            self._depth -= 1
            if self._depth < 0:
                raise self._wrong("a group is closed that is not open", back=1)
        if char == "{" and re.match(r",\d+\}", self._pattern[self._at :]):
            raise self._wrong("{,n} means different things to different readers: write {0,n}", back=1)
        return char if char in "^|)" else _spelled_char(self._code(ord(char)))

    def _check_bounds(self, found: re.Match[str]) -> None:
        least, most = (int(found[name][:9] or 0) if found[name] else 0 for name in ("least", "most"))
        if max(least, most) > MOST_REPEATED:
            raise self._wrong(f"{found[0][:20]} repeats more often than {MOST_REPEATED:,} times")
        if found["most"] and least > most:
            raise self._wrong(f"{found[0]} asks for at least {least} and at most {most}")

    def _group(self) -> str:
        found = GROUP.match(self._pattern, self._at)
        assert found is not None
        if found["look"]:
            raise self._wrong("look-ahead and look-behind cannot be kept while a text is written")
        if found["other"] is not None:
            raise self._wrong("there is no such kind of group")
        self._at = found.end()
        if found["flag"]:
            if found.start():
                raise self._wrong("(?i) may stand at the beginning alone", back=4)
            return "(?i)"
        self._depth += 1
        return "(?i:" if found["plain"] == "i:" else "(?:"

    def _escape(self) -> str:
        """What follows a backslash outside a class."""
        char = self._pattern[self._at : self._at + 1]
        if char in ("A", "Z", "z"):  # of other syntaxes, and clear
            self._at += 1
            return "^" if char == "A" else self._end
        if char in ("b", "B"):
            raise self._wrong("a border of a word cannot be kept while a text is written", back=1)
        if (char.isdigit() and char != "0") or char == "k":
            raise self._wrong("a reference to a group cannot be kept while a text is written", back=1)
        found = self._escaped(negated=False)
        return self._spelled(found) if isinstance(found, tuple) else _spelled_char(found)

    def _escaped(self, *, negated: bool) -> Ranges | int:
        """What an escape means, read after its backslash: a set, or one character."""
        start = self._at
        if start == len(self._pattern):
            raise self._wrong("there is nothing after the backslash", back=1)
        if found := HEX.match(self._pattern, start):
            self._at = found.end()
            return self._code(int(found[1] or found[2] or found[3], 16))
        if found := PROPERTY.match(self._pattern, start):
            self._at = found.end()
            named = _property(found[2] or found[4])
            if named is None:
                raise self._wrong(f"there is no property {found[2]}", back=len(found[0]) + 1)
            return named if (found[1] or found[3]) == "p" else _complement(named)
        self._at += 1
        char = self._pattern[start]
        if char in "dDwWsS":
            kind = {"d": DIGITS, "w": WORD, "s": SPACE_OF_ANY if (char == "S") != negated else SPACE_OF_ALL}
            return _sorted(kind[char.lower()]) if char.islower() else _complement(kind[char.lower()])
        if char in CONTROLS:
            return CONTROLS[char]
        if char == "c" and re.match("[A-Za-z]", self._pattern[self._at :]):
            self._at += 1
            return ord(self._pattern[self._at - 1]) % 32
        if char.isalnum():
            raise self._wrong(f"there is no escape \\{char}", back=2)
        return ord(char)

    def _code(self, code: int) -> int:
        """A code point, where need be of two escaped halves."""
        if 0xD800 <= code <= 0xDBFF and (low := LOW_SURROGATE.match(self._pattern, self._at)):
            self._at = low.end()
            return 0x10000 + (code - 0xD800) * 0x400 + int(low[1], 16) - 0xDC00
        if SURROGATES[0] <= code <= SURROGATES[1] or code > LAST:
            raise self._wrong("half of a character, or none")
        return code

    def _class(self) -> Ranges:
        """From [ to ]."""
        start = self._at
        self._at += 1
        negated = self._pattern.startswith("^", self._at)
        self._at += negated
        if self._pattern.startswith("]", self._at):
            raise self._wrong("a class is empty; a ] in it is written \\]")
        found: list[tuple[int, int]] = []
        while not self._pattern.startswith("]", self._at):
            if self._at >= len(self._pattern):
                self._at = start
                raise self._wrong("a class is not closed")
            found += self._item(negated)
        self._at += 1
        return _complement(found) if negated else _sorted(found)

    def _item(self, negated: bool) -> Ranges:
        first = self._member(negated)
        if isinstance(first, int) and re.match(r"-[^\]]", self._pattern[self._at : self._at + 2]):
            self._at += 1
            last = self._member(negated)
            if isinstance(last, tuple) or last < first:
                raise self._wrong("the range of a class does not go upwards", back=1)
            return ((first, last),)
        return ((first, first),) if isinstance(first, int) else first

    def _member(self, negated: bool) -> Ranges | int:
        char = self._pattern[self._at]
        self._at += 1
        if char != "\\":
            return self._code(ord(char))
        if self._pattern.startswith("b", self._at):
            self._at += 1
            return 8
        return self._escaped(negated=negated)

    def _spelled(self, ranges: Ranges) -> str:
        if self._safe and ranges != ((0, 0),):
            has = [any(first <= code <= last for first, last in ranges) for code in (0, QUOTE, BACKSLASH)]
            if has[0] and not all(has):
                ranges = ((1, ranges[0][1]), *ranges[1:]) if ranges[0][1] else ranges[1:]
        if not ranges:
            return f"[^{_spelled_range((0, LAST))}]"
        return f"[{''.join(map(_spelled_range, ranges))}]"

    def _wrong(self, problem: str, back: int = 0) -> PatternError:
        return PatternError(self._pattern, min(self._at - back, len(self._pattern) - 1), problem)


def _sorted(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ascending, and joined where they touch; without surrogates."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(part for one in joined for part in _without_surrogates(one))


def _without_surrogates(one: tuple[int, int]) -> list[tuple[int, int]]:
    parts = [(one[0], min(one[1], SURROGATES[0] - 1)), (max(one[0], SURROGATES[1] + 1), one[1])]
    return [part for part in parts if part[0] <= part[1]]


def _complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    left: list[tuple[int, int]] = []
    start = 0
    for first, last in _sorted(ranges):
        if start < first:
            left.append((start, first - 1))
        start = max(start, last + 1)
    if start <= LAST:
        left.append((start, LAST))
    return _sorted(left)


@lru_cache(maxsize=32)
def _property(name: str) -> Ranges | None:
    """The characters of a Unicode property, from the library regex; None if it has no property of this name."""
    import regex

    try:
        pattern = regex.compile(rf"\p{{{name}}}+")
    except regex.error:
        return None
    return tuple((ord(run[0][0]), ord(run[0][-1])) for run in _runs(pattern))


def _runs(pattern: object) -> Iterable[re.Match[str]]:
    every = "".join(map(chr, (*range(SURROGATES[0]), *range(SURROGATES[1] + 1, LAST + 1))))
    return pattern.finditer(every)  # type: ignore[attr-defined,no-any-return]


def _spelled_range(one: tuple[int, int]) -> str:
    first, last = map(_spelled_char, one)
    return first if one[0] == one[1] else f"{first}-{last}"


def _spelled_char(code: int) -> str:
    char = chr(code)
    if char.isascii() and (char.isalnum() or char == " "):
        return char
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:60] + "...")
