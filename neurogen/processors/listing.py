"""How tokens are written in a parameter: ids and texts with commas, with or without a number each. Parsed, never run.

    list   = "@" file | [ "[" ] item { "," item } [ "]" ]
    biases = "@" file | item ":" number { "," item ":" number } | a JSON object
    item   = an id | a text in double or single quotes, with the escapes of JSON

In a file, a line break separates as a comma does. Knows no tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import field_validator

from neurogen.contract.parameters import Param
from neurogen.contract.processor import Processor
from neurogen.contract.spec import Link, spelled
from neurogen.errors import ParameterError
from neurogen.files import decoded, is_file
from neurogen.processors.numbers import LARGEST, LogitParams, fits

__all__ = ["FromText", "Item", "TextParams", "checksum_param", "parse_biases", "parse_list", "quoted", "text_of"]

Item = int | str
"""A token's id, or a text."""

Read = TypeVar("Read")

ITEM = re.compile(
    r"""\s*(?:(?P<id>\d+)|"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)')[ \t\r]*""", re.DOTALL
)
NUMBER = re.compile(r"\s*:\s*(?P<number>-inf|[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[ \t\r]*", re.ASCII)
SEPARATOR = re.compile(r"[,\n]\s*")
LIST_SHAPE = (
    "it is written as ids and quoted texts with commas, such as 5, \" cat\", 'dog', or @FILE with the same inside"
)
CHECKSUM_DIGITS = 8
BIAS_SHAPE = (
    "it is written ID:NUMBER or 'TEXT':NUMBER with commas, such as 1234:-5, ' cat':2.5, or as a JSON object of ids, or "
    "@FILE with the same inside"
)


def checksum_param() -> Any:
    """The parameter `checksum` of a `FromText`, the last of its own."""
    return Param("", description="How the SHA-256 of the file begins; another content is refused.")


class TextParams(LogitParams):
    """Parameters of which a single id may be given as the number it is."""

    @field_validator("*", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any, info: Any) -> Any:
        is_text = cls.model_fields[info.field_name].annotation is str
        return str(value) if is_text and isinstance(value, int) and not isinstance(value, bool) else value


class FromText(Processor):
    """A processor of which a parameter may name a file; `checksum` is another. It shows itself with the checksum of
    what was in the file, so that two runs with different contents are not taken for one.
    """

    def __init__(self, /, **params: Any) -> None:
        self._digest = ""
        super().__init__(**params)
        for name, value in self.params:
            if isinstance(value, str) and not _is_text(value):
                raise ParameterError(
                    f"{self.name}: {name} holds half of a character, which no text does: {value!r}. Give it in UTF-8.",
                    name,
                )

    def __repr__(self) -> str:
        defaults = type(self.params)().model_dump()
        given = {name: value for name, value in self.params.model_dump().items() if value != defaults[name]}
        given.pop("checksum", None)
        if self._digest:
            given["checksum"] = self._digest[:CHECKSUM_DIGITS]
        return spelled([Link(self.name, given)])

    def text_or_file(self, parameter: str, value: str, is_text: bool) -> str:
        """What a parameter holds, or the contents of the file that it names: after @, or as that of an existing file.

        Args:
            parameter: its name.
            value: its value.
            is_text: whether it is the text itself where no file of that name exists.

        Raises:
            ParameterError: the file cannot be read, or has another checksum than is given.
        """
        if value.startswith("@"):
            return self.read(parameter, value[1:])
        return value if is_text and not is_file(value) else self.read(parameter, value)

    def read(self, parameter: str, path: str) -> str:
        """The contents of the file that a parameter names.

        Raises:
            ParameterError: it cannot be read, or has another checksum than is given.
        """
        try:
            content = Path(path).read_bytes()
            text = decoded(content)
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or error
            raise ParameterError(
                f"{self.name}: the file {_shown(path)} that {parameter} names cannot be read: {cause}. Check its path; "
                "it must be a text in UTF-8.",
                parameter,
            ) from None
        self._digest = hashlib.sha256(content).hexdigest()
        if not self._digest.startswith(self.params.checksum.lower()):
            raise ParameterError(
                f"{self.name}: the file {path!r} has changed: its SHA-256 begins with "
                f"{self._digest[:CHECKSUM_DIGITS]}, and {self.params.checksum} is asked for. Restore the file, or "
                "leave out the checksum.",
                parameter,
            )
        return text


def text_of(processor: FromText, parameter: str) -> str:
    """What a parameter holds, or the contents of the file that it names with @.

    Raises:
        ParameterError: it is empty, or the file cannot be read.
    """
    value = str(getattr(processor.params, parameter)).strip()
    if value.startswith("@"):
        value = processor.read(parameter, value[1:]).strip()
    if not value:
        raise ParameterError(f"{processor.name}: {parameter} is empty. Give at least one token.", parameter)
    return value


def parse_list(processor: FromText, parameter: str) -> list[Item]:
    """The ids and texts that a parameter lists, at least one.

    Raises:
        ParameterError: it cannot be read.
    """
    text = text_of(processor, parameter)
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    reader = _Reader(processor.name, parameter, text, LIST_SHAPE)
    return reader.all_of(reader.item)


def parse_biases(processor: FromText, parameter: str) -> list[tuple[Item, float]]:
    """The ids and texts that a parameter lists with a number each, at least one.

    Raises:
        ParameterError: it cannot be read.
    """
    text = text_of(processor, parameter)
    reader = _Reader(processor.name, parameter, text, BIAS_SHAPE)
    return reader.object() if text.startswith("{") else reader.all_of(reader.pair)


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:80] + "..." + path[-80:])


def _is_text(value: str) -> bool:
    """Whether it has no lone surrogate, what a byte that is not UTF-8 becomes on the command line."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def quoted(text: str) -> str:
    """A text as an item of a list."""
    return json.dumps(text, ensure_ascii=False)


class _Reader:
    """Reads what a parameter lists from left to right; `shape` says in messages how such a list is written."""

    def __init__(self, name: str, parameter: str, text: str, shape: str) -> None:
        self._name, self._parameter, self._text, self._shape = name, parameter, text, shape
        self._at = 0

    def all_of(self, read: Callable[[], Read]) -> list[Read]:
        """All items, each read by this method; separators stand between them."""
        items = [read()]
        while self._at < len(self._text):
            separator = SEPARATOR.match(self._text, self._at)
            if separator is None or separator.end() == len(self._text):
                raise self._wrong()
            self._at = separator.end()
            items.append(read())
        return items

    def item(self) -> Item:
        """An id or a text."""
        found = ITEM.match(self._text, self._at)
        if found is None:
            raise self._wrong()
        try:
            item = int(found["id"]) if found["id"] is not None else _unquoted(found)
        except ValueError:
            raise self._wrong() from None
        self._at = found.end()
        return item

    def pair(self) -> tuple[Item, float]:
        """An id or a text, and its number."""
        item = self.item()
        found = NUMBER.match(self._text, self._at)
        if found is None:
            raise self._wrong()
        self._at = found.end()
        return item, self._checked(item, float(found["number"]))

    def object(self) -> list[tuple[Item, float]]:
        """A JSON object. As in OpenAI's `logit_bias`, a key of digits is an id."""
        try:
            values = json.loads(self._text)
            pairs = [(int(key) if key.isascii() and key.isdigit() else key, float(one)) for key, one in values.items()]
        except (ValueError, TypeError, RecursionError, AttributeError):
            raise self._wrong() from None
        if not all(key or key == 0 for key, _ in pairs):
            raise self._wrong()
        return [(key, self._checked(key, bias)) for key, bias in pairs]

    def _checked(self, item: Item, bias: float) -> float:
        """The number of an item, if a logit can take it."""
        if bias != float("-inf") and not fits(bias):
            raise ParameterError(
                f"{self._name}: {self._parameter} of {item!r} is {bias:g}; give -inf, which bans, or a number of at "
                f"most {LARGEST:g} either way: larger ones, and some very small ones, float32 cannot add to a logit.",
                self._parameter,
            )
        return bias

    def _wrong(self) -> ParameterError:
        rest = self._text[self._at : self._at + 30]
        place = f"at {rest!r}" if rest else "at its end"
        shown = self._text if len(self._text) <= 60 else self._text[:60] + "..."
        return ParameterError(
            f"{self._name}: {self._parameter} cannot be read {place} of {shown!r}; {self._shape}.", self._parameter
        )


def _unquoted(found: re.Match[str]) -> str:
    if found["double"] is not None:
        inner = found["double"]
    else:
        inner = re.sub(r'\\.|"', lambda part: {"\\'": "'", '"': '\\"'}.get(part[0], part[0]), found["single"])
    value = json.loads(f'"{inner}"', strict=False)
    if not value:
        raise ValueError("an empty text is no token")
    value.encode()  # a lone surrogate, which JSON's escapes can spell, is a ValueError
    return str(value)
