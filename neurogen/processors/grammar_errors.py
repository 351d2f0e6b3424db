"""Errors of the library llguidance about a schema, expression or grammar, worded like neurogen's other errors. The
library's own message is the cause of the error, which `--debug` shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

__all__ = ["LibraryError", "of_lark", "of_regex", "of_schema"]

Meaning = tuple[str, str]
"""A pattern of the library's message, and ours, with the pattern's groups."""

FORMATS = "date-time, time, date, duration, email, hostname, ipv4, ipv6, uuid and uri"

SCHEMA: Sequence[Meaning] = (
    (r"Unsatisfiable schema: Regex is empty", "no text keeps its pattern, format and lengths together"),
    (r"Unsatisfiable schema: ([^\n]*)", r"no value can keep it: \1"),
    (r"Unknown format: (.*)", rf"the format \1 cannot be kept; {FORMATS} can"),
    (r"Invalid type: (.*)", r"there is no type \1"),
    (r"Pointer '(.*)' does not exist", r"$ref names #\1, which is not there"),
    (
        r"Resource '(?:json-schema:///)?(.*)' is not present",
        r"\1, which it refers to, lies elsewhere; copy it into $defs",
    ),
    (
        r"oneOf constraints",
        "oneOf cannot be kept where a value may fit two of its parts; use anyOf, or parts of which only one can fit",
    ),
    (
        r"min/maxProperties only",
        "minProperties and maxProperties can be kept only where all of properties are required",
    ),
    (
        r"patternProperty regexes (\S+) and (\S+)",
        r"patternProperties can be kept only where no name can match two of "
        r"them, as \1 and \2",
    ),
    (r"regex for (?:float|integer) range", "its minimum or maximum is too large"),
    (r"unknown field `(.*?)`, expected", r"x-guidance has no option \1"),
    (r"lookarounds not supported yet; (?:Start|End)", "^ and $ can stand only where a text begins and ends"),
    (r"'multipleOf' has too many digits|invalid multiple of", "multipleOf must be above 0 and have few digits"),
    (r"Expected (.*) for '(.*)', got (.*)", r"\2 has the value \3"),
    (r"regex parse error:.*error: ([^\n]*)", r"its pattern cannot be used: \1"),
)
REGEX: Sequence[Meaning] = (
    (r"look-around", "look-ahead and look-behind cannot be kept while a text is written"),
    (r"lookarounds not supported yet; Word", "a border of a word cannot be kept while a text is written"),
    (r"lookarounds not supported yet", "^ and $ can stand only where the text begins and ends"),
    (r"backreferences", "a reference to a group cannot be kept while a text is written"),
    (r"unclosed group", "a group is not closed"),
    (r"unopened group", "a group is closed that is not open"),
    (r"unclosed character class", "a class is not closed"),
    (r"unrecognized escape sequence", "there is no such escape"),
    (r"repetition operator missing expression", "there is nothing that the repetition could repeat"),
    (r"invalid character class range", "the range of a class does not go upwards"),
    (r"invalid repetition count range", "the repetition does not go upwards"),
    (r"error: ([^\n]*)", r"\1"),
)
LARK: Sequence[Meaning] = (
    (r"unknown name: \"(.*?)\"", r"there is no rule \1"),
    (r"no start rule found", "there is no rule start, which a grammar begins with"),
    (r"Empty grammar", "it is empty"),
    (r"duplicate \w+: \"(.*?)\"", r"the rule \1 is defined twice"),
    (r"unknown grammar (\S+)", r"there is no grammar \1"),
    (r"lexer error", "this is no part of a grammar, or a text or expression is not closed"),
    (r"Unknown common regex: (\S+);", r"there is no \1 to import"),
    (r"expecting rule, token or statement \(at \"(.*?)\" ", r"a rule was expected, found \1"),
    (r"Expected token '(.*?)', found '?(.*?)'? \(", r"\1 was expected, found \2"),
    (r"no tokenizer - can't validate <(.*?)>|unknown special token: (.*)", r"this model has no special token \1"),
)
PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): (.*)", re.DOTALL)
FRAME = re.compile(r"\n *\d+ \| .*", re.DOTALL)


class LibraryError(Exception):
    """What the library says."""


def of_schema(message: str) -> str:
    """Of a JSON schema."""
    return _meaning(message, SCHEMA) or "it cannot be kept while a text is written"


def of_regex(message: str) -> str:
    """Of a regular expression."""
    return _meaning(message, REGEX) or "it cannot be read as a regular expression"


def of_lark(message: str) -> str:
    """Of a grammar, with line and column where the library tells them."""
    place = PLACE.match(message)
    told = FRAME.sub("", place[3] if place else message)
    where = f", at line {place[1]}, column {place[2]}" if place else ""
    return _of_lark_part(told) + where


def _of_lark_part(message: str) -> str:
    inner: Sequence[tuple[str, Callable[[str], str], str]] = (
        ("invalid regex", of_regex, "a regular expression cannot be used: "),
        ("failed to compile JSON schema", of_schema, "a JSON schema cannot be used: "),
    )
    for mark, told, words in inner:
        if mark in message:
            return words + told(message)
    return _meaning(message, LARK) or "it cannot be read"


def _meaning(message: str, meanings: Sequence[Meaning]) -> str:
    for pattern, words in meanings:
        found = re.search(pattern, message, re.DOTALL if "parse error" in pattern else 0)
        if found:
            return found.expand(words) if found.re.groups else words
    return ""
