"""Reads prompts: one text, or a file of JSON lines of which a broken one does not lose the others.

A line is a JSON string, or an object with `prompt` (or `text`) and optionally `seed`, `max_new_tokens`, `stop`,
`stop_ids`, `processors` (a spec) and, by name, sampler parameters in `params`; other fields are ignored, so that a data
set can be read as it is. Those that look like options are told of, see `near_misses`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from neurogen.contract.parameters import INT64, build_params, is_whole
from neurogen.errors import DataError, NeurogenError, ParameterError
from neurogen.files import BYTE_ORDER_MARK, decoded
from neurogen.registry.registry import load_processors
from neurogen.text.generation import Prompt
from neurogen.text.near_misses import field_hints, other_fields

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler

__all__ = ["BrokenLine", "check_text", "parse_lines", "read_prompts", "read_text"]

STDIN = "-"
SHOWN = 40


@dataclass(frozen=True)
class BrokenLine:
    """A line that holds no prompt.

    Attributes:
        source: the file.
        number: the line, counted from 1.
        problem: what is wrong with it.
    """

    source: str
    number: int
    problem: str

    def __str__(self) -> str:
        return f"{self.source}, line {self.number}: {self.problem}"

    @property
    def sentence(self) -> str:
        """The same with the mark that ends a sentence."""
        return str(self) if self.problem.endswith(("?", ".")) else f"{self}."


def read_prompts(
    path: str, sampler: Sampler, *, told: Callable[[str], None] | None = None
) -> tuple[list[Prompt], list[BrokenLine]]:
    """Read a file of prompts.

    Args:
        path: a file of JSON lines, or `-` for standard input.
        sampler: what the prompts' own parameters are checked against.
        told: is called once for each field that looks like an option but is not.

    Returns:
        the prompts, whose `index` is their line counted from 0, and the lines that hold none.

    Raises:
        DataError: the file cannot be read, or has no line at all.
    """
    source = "standard input" if path == STDIN else path
    try:
        if path == STDIN:
            prompts, broken = parse_lines(_stdin(), sampler, source, told=told)
        else:
            with Path(path).open("rb") as lines:
                prompts, broken = parse_lines(lines, sampler, source, told=told)
    except OSError as error:
        raise DataError(f"The prompts in {source} cannot be read: {error.strerror or error}.") from None
    if not prompts and not broken:
        raise DataError(
            f"There is no prompt in {source}: it is empty. Each line holds one, as a JSON string or as an object such "
            'as {"prompt": "Once upon a time"}.'
        )
    return prompts, broken


def parse_lines(
    lines: Iterable[bytes], sampler: Sampler, source: str, *, told: Callable[[str], None] | None = None
) -> tuple[list[Prompt], list[BrokenLine]]:
    """The prompts in `lines`, and the lines that hold none; blank lines are passed over. See `read_prompts`."""
    others: Counter[str] = Counter()
    prompts: list[Prompt] = []
    broken: list[BrokenLine] = []
    for index, line in enumerate(lines):
        if index == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            fields = _fields(line)
            others.update(other_fields(fields))
            prompts.append(_prompt(index, fields, sampler))
        except DataError as error:
            broken.append(BrokenLine(source, index + 1, str(error)))
    if told is not None:
        for hint in field_hints(others, sampler, source):
            told(hint)
    return prompts, broken


def read_text(stream: BinaryIO | None = None) -> str:
    """The whole of standard input (or of `stream`) as one prompt, without one trailing line break.

    Raises:
        DataError: it is empty, or not UTF-8.
    """
    try:
        text = decoded((stream or _stdin()).read())
    except UnicodeDecodeError as error:
        raise DataError(f"The prompt on standard input is not UTF-8: {_bad_byte(error)}.") from None
    text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    if not text:
        raise DataError(
            "The prompt is empty: there was no text on standard input. Give --prompt TEXT, --prompts FILE.jsonl, or "
            "text on standard input."
        )
    return text


def check_text(text: str) -> str:
    """Return `text`, or raise DataError where it is empty or has code points that no text has (lone surrogates)."""
    if not text:
        raise DataError("the prompt is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"the prompt holds {text[error.start]!r}, half of a character, at {error.start}") from None
    return text


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise DataError("Standard input is closed. Give --prompt TEXT or --prompts FILE.jsonl.")
    return sys.stdin.buffer


def _prompt(index: int, fields: Mapping[str, Any], sampler: Sampler) -> Prompt:
    text = _text(fields)
    seed = _whole_number(fields, "seed", INT64, "an integer of 64 bits")
    max_new_tokens = _whole_number(fields, "max_new_tokens", range(1, INT64.stop), "an integer >= 1")
    stop, params = _stop(fields.get("stop")), _params(fields.get("params"), sampler)
    processors = _processors(fields.get("processors"))
    return Prompt(
        index,
        text,
        params=params,
        seed=seed,
        max_new_tokens=max_new_tokens,
        stop=stop,
        processors=processors,
        stop_ids=_stop_ids(fields.get("stop_ids")),
    )


def _fields(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {_bad_byte(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from None
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise DataError(f"a line must be a JSON object or string, got {_shown(value)}")
    return value


def _text(fields: Mapping[str, Any]) -> str:
    name = "prompt" if "prompt" in fields else "text"
    if name not in fields:
        has = f"it has {', '.join(map(repr, fields))}" if fields else "it has no field"
        raise DataError(f"there is neither 'prompt' nor 'text'; {has}")
    if not isinstance(fields[name], str):
        raise DataError(f"{name!r} must be a text, got {_shown(fields[name])}")
    return check_text(fields[name])


def _whole_number(fields: Mapping[str, Any], name: str, domain: range, words: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value not in domain:
        raise DataError(f"{name!r} must be {words}, got {_shown(value)}")
    return value


def _stop(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    texts: Sequence[Any] = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise DataError(f"'stop' must be a text or a list of texts, none of them empty, got {_shown(value)}")
    return tuple(texts)


def _stop_ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    ids: Sequence[Any] = value if isinstance(value, list) else [value]
    if not all(is_whole(one, range(INT64.stop)) for one in ids):
        raise DataError(f"'stop_ids' must be an integer >= 0 or a list of them, got {_shown(value)}")
    return tuple(ids)


def _params(value: Any, sampler: Sampler) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"'params' must be an object such as {{\"temperature\": 0.5}}, got {_shown(value)}")
    try:
        checked = build_params(sampler.name, type(sampler.params), sampler.params.model_dump() | value)
    except ParameterError as error:
        raise DataError(str(error).removesuffix(".")) from None
    return {name: getattr(checked, name) for name in value}


def _processors(value: Any) -> str | None:
    """A spec of processors, which are loaded once to see whether they can be."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"'processors' must be a text such as \"no-repeat-ngram(size=3)\", got {_shown(value)}")
    if value.strip():
        _check_processors(value)
    return value.strip()


@lru_cache(maxsize=32)
def _check_processors(spec: str) -> None:
    try:
        load_processors(spec)
    except NeurogenError as error:
        raise DataError(f"'processors': {str(error).removesuffix('.')}") from None


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"byte {error.object[error.start]:#04x} at offset {error.start}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
