"""Turns a user's grammar, given as a text or a file's name, into the form that the library llguidance reads, and
reports its errors before a model is loaded.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from typing import TYPE_CHECKING, Any

from neurogen.errors import ParameterError, PluginError
from neurogen.processors.grammar_errors import LibraryError, of_lark, of_regex, of_schema
from neurogen.processors.patterns import PatternError, for_rust
from neurogen.processors.schema import (
    KEPT,
    NOT_KEPT,
    WITHOUT_EFFECT,
    SchemaError,
    Validator,
    check_keywords,
    for_checking,
    for_writing,
    pointer,
    subschemas,
    unknown_keywords,
)

if TYPE_CHECKING:
    from neurogen.processors.listing import FromText

__all__ = ["SOURCES", "library", "read_grammar", "read_regex", "read_schema", "wrong"]

SOURCES = ("json_schema", "regex", "grammar")

JSON_LAYOUT = {"whitespace_pattern": r"( |\n {0,16})?"}
"""Between the parts of JSON stands nothing, a space, or a line break with up to 16 spaces: a small model that may write
any white space writes nothing else. A schema can change this in its `x-guidance`."""

ASCII = "dws"
"""In a regular expression, \\d, \\w and \\s mean ASCII, as everywhere else where data is checked."""

RULE = re.compile(r"^\s*[?!]?[\w-]+[^:\n\"'/]*:", re.MULTILINE)
"""How a rule of Lark or GBNF begins."""

GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
GBNF_CODE = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))")
INLINE_SCHEMA = re.compile(r"%json\s*(?=\{)")
MOST_TRIED = 300
"""Parts of a schema that are tried one by one to say which is wrong."""

ADVICE = {
    "json_schema": "Change this part of the schema, or leave it out.",
    "regex": "Correct the expression.",
    "grammar": "Correct the grammar; its form is in llguidance's documentation of its syntax.",
}


def library() -> Any:
    """The library, or a PluginError that says how to get it."""
    try:
        import llguidance
    except ImportError:
        raise PluginError(
            "The processor 'grammar' (JSON schema, regular expression or grammar) needs the library llguidance, which "
            "is not installed. Install it: pip install 'neurogen[grammar]'."
        ) from None
    return llguidance


def read_schema(processor: FromText) -> tuple[str, Validator | None, tuple[str, ...]]:
    """The grammar of a JSON schema, what checks a complete text, and what the user must know of the schema.

    Raises:
        ParameterError: it cannot be read or kept.
    """
    value = processor.params.json_schema
    text = processor.text_or_file("json_schema", value, _is_json(value))
    try:
        schema = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        json.dumps(schema, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise wrong("json_schema", str(error), f"it holds {character!r}, half of a character") from error
    except (ValueError, RecursionError) as error:
        where = "it" if text == value else f"the file {value!r}"
        raise ParameterError(f"grammar: json_schema is no JSON: {where} fails with {error}.", "json_schema") from None
    if schema is False:
        raise wrong("json_schema", "false", "no value keeps the schema false")
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise ParameterError(
            f'grammar: json_schema must be a JSON object such as {{"type": "object"}}, got {text[:60]!r}.',
            "json_schema",
        )
    try:
        check_keywords(schema)
        validator = _validator(for_checking(schema))
        grammar = _of_schema(for_writing(schema))
    except SchemaError as error:
        raise wrong("json_schema", str(error), str(error)) from error
    except RecursionError:
        raise wrong("json_schema", "RecursionError", "it is nested too deeply") from None
    return grammar, validator, _remarks(schema)


def read_regex(processor: FromText) -> str:
    """The grammar of a regular expression, which is never a file's name.

    Raises:
        ParameterError: it cannot be used.
    """
    value = processor.params.regex
    grammar = f"start: /{library().regex_to_lark(value, ASCII)}/"
    message = _problem(library().LLMatcher.grammar_from_lark(grammar))
    if message is not None:
        try:
            for_rust(value)  # knows the place
            told = of_regex(message)
        except PatternError as error:
            told = str(error)
        raise wrong("regex", message, told)
    return str(library().LLMatcher.grammar_from_lark(grammar))


def read_grammar(processor: FromText) -> str:
    """The grammar of a text or file in Lark's form or in GBNF.

    Raises:
        ParameterError: it cannot be read.
    """
    value = processor.params.grammar
    is_text = RULE.search(value) is not None or any(mark in value for mark in '\n"')
    text = processor.text_or_file("grammar", value, is_text)
    if GBNF_RULE.search(text):
        text = _of_gbnf(text)
    grammar = str(library().LLMatcher.grammar_from_lark(_with_patterns(text)))
    message = _problem(grammar)
    if message is not None:
        raise wrong("grammar", message, of_lark(message))
    return grammar


def wrong(source: str, message: str, told: str | None = None) -> ParameterError:
    """The error of a schema, expression or grammar that cannot be used.

    Args:
        source: one of `SOURCES`.
        message: the library's, which `--debug` shows.
        told: the same in our words.
    """
    told = told or {"json_schema": of_schema, "regex": of_regex, "grammar": of_lark}[source](message)
    error = ParameterError(f"grammar: {source} cannot be used: {told}. {ADVICE[source]}", source)
    error.__cause__ = LibraryError(message)
    return error


def _no_number(word: str) -> float:
    raise ValueError(f"{word}, which is no number of JSON")


def _finite(digits: str) -> float:
    if math.isinf(float(digits)):
        raise ValueError(f"{digits[:40]}, a number beyond all that can be computed with")
    return float(digits)


def _is_json(value: str) -> bool:
    """Whether a value is meant as JSON: it begins like an object or a list, or is a complete JSON value."""
    if value.lstrip()[:1] in ("{", "["):
        return True
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


def _validator(schema: Any) -> Validator | None:
    """None where the library that checks is not installed."""
    try:
        return Validator(schema)
    except ImportError:
        return None


def _of_schema(schema: dict[str, Any]) -> str:
    grammar = _grammar_of(schema)
    message = _problem(grammar)
    if message is None:
        return grammar
    place = _place_of(message, schema)
    raise wrong("json_schema", message, f"{of_schema(message)}, at {pointer(place)}")


def _grammar_of(schema: dict[str, Any]) -> str:
    return str(library().LLMatcher.grammar_from_json_schema(json.dumps(schema), JSON_LAYOUT))


def _place_of(message: str, schema: dict[str, Any]) -> tuple[str, ...]:
    """The innermost part for which the library reports the same error as for the whole."""
    shared: dict[str, Any] = {
        name: schema[name] for name in ("$defs", "definitions", "$schema", "x-guidance") if name in schema
    }
    parts = sorted(list(subschemas(schema))[:MOST_TRIED], key=lambda part: -len(part[0]))
    alike = (path for path, part in parts if _problem(_grammar_of({**shared, **part})) == message)
    return next(alike, ())


def _problem(grammar: str) -> str | None:
    is_wrong, messages = library().LLMatcher.validate_grammar_with_warnings(grammar)
    return str(messages[0]) if is_wrong else None


def _remarks(schema: dict[str, Any]) -> tuple[str, ...]:
    unknown = unknown_keywords(schema)
    if not unknown:
        return ()
    told = "; ".join(f"{keyword!r} at {pointer(path)}{_meant(keyword)}" for path, keyword in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return (
        "The JSON schema has keywords that no draft of JSON Schema knows, so they change nothing: "
        f"{told}{more}. Correct them, or begin their names with x-.",
    )


def _meant(keyword: str) -> str:
    known = {name.lower(): name for name in KEPT | NOT_KEPT | WITHOUT_EFFECT}
    near = difflib.get_close_matches(keyword.lower(), known, n=1, cutoff=0.75)
    return f" (did you mean {known[near[0]]!r}?)" if near else ""


def _of_gbnf(text: str) -> str:
    """GBNF, the form of llama.cpp, in Lark's form, by the library's own converter."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(GBNF_CODE.sub(_character, text)))
    except Exception as error:  # whose types the converter does not document
        told = re.sub(r" at (line \d+), .*", r", at \1", " ".join(str(error).split()))
        told = re.sub(r"Rule '(.*)' not found", r"there is no rule \1", told)
        told = told.replace("No 'root' rule found", "there is no rule root, which a grammar begins with")
        raise wrong("grammar", str(error), f"as GBNF, {told[:1].lower()}{told[1:]}") from error


def _character(found: re.Match[str]) -> str:
    """An escape of GBNF as the character itself: the converter drops the zeros of its number."""
    char = chr(int(found[2] or found[3], 16))
    return found[1] + (f"\\x{ord(char):02x}" if ord(char) < 0x80 else char)


def _with_patterns(grammar: str) -> str:
    """A grammar in Lark's form whose inline JSON schemas have patterns as the library keeps them."""
    made, at = [], 0
    for found in INLINE_SCHEMA.finditer(grammar):
        try:
            schema, end = json.JSONDecoder().raw_decode(grammar, found.end())
            check_keywords(schema)
            schema = for_writing(schema)
        except SchemaError as error:
            line = grammar.count("\n", 0, found.start()) + 1
            raise wrong("grammar", str(error), f"in the JSON schema of line {line}, {error}") from error
        except (ValueError, RecursionError):  # in a text or comment, or for the library to refuse
            continue
        if found.end() >= at:
            made += [grammar[at : found.end()], json.dumps(schema)]
            at = end
    return "".join([*made, grammar[at:]])
