"""The text by which a user names a sampler, a chain of samplers or processors: `topk(k=50)+topp(p=0.9)`.

    spec   = link { "+" link }
    link   = [ distribution ":" ] name [ "(" [ pair { "," pair } ] ")" ]
    pair   = parameter "=" value
    value  = a number, true, false, a string in double quotes as in JSON, or a bare word, which is a string

Spaces may stand between the parts. Whatever else is written is a ParameterError that shows where. A value may be of any
length, since a schema may stand in it; reading takes time in proportion to the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neurogen.errors import ParameterError

__all__ = ["Link", "parse_spec", "spelled"]

LONGEST_NAME = 200
MOST_LINKS = 100
NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*:)?[A-Za-z_][\w-]*", re.ASCII)
PARAMETER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
SPACE = re.compile(r"[ \t\r\n]*")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
PLAIN = re.compile(r"\+?[^\s,()=+\"]+(?:\+\d+)?")
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
FRACTION = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
WORDS = {"true": True, "false": False}
SHAPE = "it is written NAME, NAME(parameter=value, ...) or several of them joined by +, such as topk(k=50)+topp(p=0.9)"


@dataclass(frozen=True)
class Link:
    """One name of a spec with the parameters given for it.

    Attributes:
        name: `sampler` or `distribution:sampler`.
        params: parameter -> int, float, bool or str.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


def parse_spec(text: str) -> tuple[Link, ...]:
    """Read a spec.

    Args:
        text: at most 100 links, whose names and those of their parameters have at most 200 characters.

    Returns:
        its links, at least one.

    Raises:
        ParameterError: it cannot be read.
    """
    if not isinstance(text, str):
        raise ParameterError(f"A sampler or processor is named by a text, got {text!r}.", "name")
    return _Parser(text).spec()


def spelled(links: Sequence[Link]) -> str:
    """The spec of links; parsing it gives the same links."""
    return "+".join(link.name + _spelled_params(link.params) for link in links)


def _spelled_params(params: Mapping[str, Any]) -> str:
    return f"({', '.join(f'{name}={json.dumps(value)}' for name, value in params.items())})" if params else ""


class _Parser:
    """Reads a text from left to right; `at` is where it is."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def spec(self) -> tuple[Link, ...]:
        links = [self._link()]
        while self._take("+"):
            if len(links) == MOST_LINKS:
                raise ParameterError(f"{self._shown()} joins more than {MOST_LINKS} names. Leave out some.", "name")
            links.append(self._link())
        if self._at < len(self._text):
            raise self._wrong("nothing more, or + and another name")
        return tuple(links)

    def _link(self) -> Link:
        name = self._named(NAME, "a name")
        params: dict[str, Any] = {}
        if self._take("(") and not self._take(")"):
            self._pair(name, params)
            while self._take(","):
                self._pair(name, params)
            if not self._take(")"):
                raise self._wrong("a comma or a closing parenthesis")
        return Link(name, params)

    def _pair(self, name: str, params: dict[str, Any]) -> None:
        parameter = self._named(PARAMETER, "the name of a parameter")
        if not self._take("="):
            raise self._wrong(f"= and a value for {parameter}")
        if parameter in params:
            raise ParameterError(f"{name}: {parameter} is given twice in {self._shown()}. Give it once.", parameter)
        params[parameter] = self._value()

    def _value(self) -> Any:
        self._skip_space()
        start = self._at
        try:
            if self._text.startswith('"', start):
                return json.loads(self._match(STRING, "a string with a closing quote"))
            return _plain(self._match(PLAIN, "a value"))
        except ValueError as error:  # of a string with wrong escapes, or an integer of thousands of digits
            if isinstance(error, ParameterError):
                raise
            self._at = start
            raise self._wrong("a number such as 50 or 0.9, a text in double quotes, true or false") from None

    def _named(self, pattern: re.Pattern[str], wanted: str) -> str:
        name = self._match(pattern, wanted)
        if len(name) > LONGEST_NAME:
            raise ParameterError(
                f"A name of {len(name):,} characters is too long; at most {LONGEST_NAME} are read.", "name"
            )
        return name

    def _take(self, mark: str) -> bool:
        self._skip_space()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        self._skip_space()
        return True

    def _match(self, pattern: re.Pattern[str], wanted: str) -> str:
        self._skip_space()
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._wrong(wanted)
        self._at = found.end()
        return found.group()

    def _skip_space(self) -> None:
        found = SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _wrong(self, wanted: str) -> ParameterError:
        rest = self._text[self._at :]
        place = f"at {rest[:20]!r}" if rest else "at its end"
        return ParameterError(f"{self._shown()} cannot be read: {place}, {wanted} was expected; {SHAPE}.", "name")

    def _shown(self) -> str:
        return repr(self._text if len(self._text) <= 80 else self._text[:80] + "...")


def _plain(word: str) -> Any:
    if WHOLE.fullmatch(word):
        return int(word)
    if FRACTION.fullmatch(word):
        return float(word)
    return WORDS.get(word, word)
