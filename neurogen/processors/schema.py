"""Prepares a user's JSON schema for the library that writes texts and for the one that checks them: rewrites patterns
so that both read them alike, and ignores no keyword without saying so.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from neurogen.processors.patterns import PatternError, for_python, for_rust

__all__ = [
    "SchemaError",
    "UncheckedError",
    "Validator",
    "check_keywords",
    "for_checking",
    "for_writing",
    "pointer",
    "subschemas",
    "unknown_keywords",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ONE = _words("""
    additionalItems additionalProperties contains contentSchema else if items not propertyNames then unevaluatedItems
    unevaluatedProperties
""")
SEVERAL = _words("allOf anyOf items oneOf prefixItems")
NAMED = _words("$defs definitions dependencies dependentSchemas patternProperties properties")
"""Keywords whose value is a schema, a list of schemas, or an object of schemas (JSON Schema, drafts 3 to 2020-12)."""

KEPT = _words("""
    $ref additionalItems additionalProperties allOf anyOf const enum exclusiveMaximum exclusiveMinimum format items
    maxItems maxLength maxProperties maximum minItems minLength minProperties minimum multipleOf oneOf pattern
    patternProperties prefixItems properties required type
""")
"""Keywords that llguidance 1.9.1 keeps."""

NOT_KEPT = _words("""
    $dynamicRef $recursiveAnchor $recursiveRef contains dependencies dependentRequired dependentSchemas disallow
    divisibleBy else extends if maxContains minContains not propertyNames then unevaluatedItems unevaluatedProperties
    uniqueItems
""")
"""Keywords of some draft that it does not keep."""

WITHOUT_EFFECT = _words("""
    $anchor $comment $defs $dynamicAnchor $id $schema $vocabulary contentEncoding contentMediaType contentSchema default
    defaultSnippets definitions deprecated deprecationMessage description discriminator enumDescriptions errorMessage
    example examples externalDocs id links markdownDescription markdownEnumDescriptions media readOnly title writeOnly
    xml
""")
"""Identifiers and annotations: of the drafts, of OpenAPI, and of common editors."""

SEARCH_SECONDS = 2
"""How long a pattern is looked for in a finished text."""

Path = tuple[str, ...]


class SchemaError(ValueError):
    """A schema cannot be used; says why, and where as a JSON pointer."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{problem}, at {pointer(path)}")


def pointer(path: Path) -> str:
    """A place in a schema, such as `#/properties/name` (RFC 6901)."""
    return "#" + "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def subschemas(schema: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every object that stands where a schema is expected, with its place; those that `$ref` names, too.

    Args:
        schema: the whole.
    """
    seen: set[int] = set()
    todo: list[tuple[Path, Any]] = [((), schema)]
    while todo:
        at, found = todo.pop()
        if isinstance(found, dict) and id(found) not in seen:
            seen.add(id(found))
            yield at, found
            target = _target(schema, found.get("$ref"))
            inner = [((*at, *place), child) for place, child in _children(found)]
            todo += reversed([*inner, *([target] if target else [])])


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    for keyword, value in schema.items():
        if keyword in ONE and isinstance(value, dict):
            yield (keyword,), value
        if keyword in SEVERAL and isinstance(value, list):
            yield from (((keyword, str(number)), one) for number, one in enumerate(value))
        if keyword in NAMED and isinstance(value, dict):
            yield from (((keyword, name), one) for name, one in value.items())


def _target(schema: Any, reference: Any) -> tuple[Path, Any] | None:
    """What a reference within the schema means."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    path = tuple(part.replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/"))
    found = schema
    for part in path:
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            return None
    return path, found


def check_keywords(schema: Any) -> None:
    """Refuse keywords that cannot be kept, where the schema does not ask for leniency itself (`x-guidance`).

    Raises:
        SchemaError: there is one.
    """
    guidance = schema.get("x-guidance") if isinstance(schema, dict) else None
    if isinstance(guidance, dict) and guidance.get("lenient"):
        return
    for path, found in subschemas(schema):
        for keyword, value in found.items():
            of_draft_4 = keyword in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool)
            if of_draft_4:
                raise SchemaError(path, f"{keyword} is no number, as drafts since 6 have it")
            if keyword in NOT_KEPT:
                raise SchemaError(path, f"the keyword {keyword} cannot be kept while a text is written")


def unknown_keywords(schema: Any) -> list[tuple[Path, str]]:
    """The keywords of no draft, each with the place of its schema; what begins with x- is somebody's own."""
    known = KEPT | NOT_KEPT | WITHOUT_EFFECT
    return [
        (path, keyword)
        for path, found in subschemas(schema)
        for keyword in found
        if keyword not in known and not keyword.startswith("x-")
    ]


def for_writing(schema: Any) -> Any:
    """The schema with patterns as llguidance keeps them.

    Raises:
        SchemaError: one cannot be used.
    """
    return _with_patterns(schema, for_rust)


def for_checking(schema: Any) -> Any:
    """The schema with patterns for Python's `re`.

    Raises:
        SchemaError: one cannot be used.
    """
    return _with_patterns(schema, for_python)


def _with_patterns(schema: Any, translate: Callable[[str], str]) -> Any:
    schema = copy.deepcopy(schema)
    for path, found in list(subschemas(schema)):
        if isinstance(found.get("pattern"), str):
            found["pattern"] = _translated(found["pattern"], (*path, "pattern"), translate)
        if isinstance(found.get("patternProperties"), dict):
            place = (*path, "patternProperties")
            old = found["patternProperties"]
            found["patternProperties"] = {_translated(one, (*place, one), translate): old[one] for one in old}
            if len(found["patternProperties"]) < len(old):
                raise SchemaError(place, "two patterns mean the same; join them")
    return schema


def _translated(pattern: str, path: Path, translate: Callable[[str], str]) -> str:
    try:
        return translate(pattern)
    except PatternError as error:
        raise SchemaError(path, f"the pattern cannot be used: {error}") from None


class UncheckedError(Exception):
    """Whether a text keeps a schema is not known; says why."""


class Validator:
    """Says what is wrong with a text that should keep a schema, by the library jsonschema.

    Args:
        schema: as `for_checking` gives it.

    Raises:
        SchemaError: it is no schema of its draft.
    """

    def __init__(self, schema: Any) -> None:
        from jsonschema import validators

        cls = _draft_of(schema)
        exact = cls.TYPE_CHECKER.redefine("integer", _is_integer)
        checker = validators.extend(cls, KEYWORDS_WITH_PATTERNS, type_checker=exact)
        self._validator = checker(_decimal(schema), format_checker=cls.FORMAT_CHECKER)

    def problem(self, text: str) -> str | None:
        """What is wrong with a text, and where; None where it keeps the schema.

        Raises:
            UncheckedError: the library cannot tell.
        """
        doubled: list[str] = []
        try:
            value = json.loads(text, parse_float=Decimal, object_pairs_hook=lambda pairs: _object(pairs, doubled))
            found = next(iter(self._validator.iter_errors(value)), None)
        except json.JSONDecodeError as error:
            return f"it is no JSON: {_first(str(error))}"
        except TimeoutError:
            raise UncheckedError(f"a pattern of it takes longer than {SEARCH_SECONDS} seconds") from None
        except Exception as error:  # numbers beyond what the library computes with, too deep
            raise UncheckedError(_first(str(error))) from None
        if found is not None:
            return f"{_first(found.message)}, at {pointer(tuple(map(str, found.absolute_path)))}"
        return f"an object has the name {doubled[0]!r} twice" if doubled else None


def _search(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text, by a library that gives up in time: some patterns take very long.

    Raises:
        TimeoutError: it took too long.
    """
    import regex

    return regex.search(pattern, text, timeout=SEARCH_SECONDS) is not None


def _check_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """As jsonschema checks `pattern`, in bounded time."""
    from jsonschema import ValidationError

    if validator.is_type(value, "string") and not _search(pattern, value):
        yield ValidationError(f"{value!r} does not match the pattern")


def _check_named(validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any) -> Iterator[Any]:
    """As jsonschema checks `patternProperties`, in bounded time."""
    if validator.is_type(value, "object"):
        for pattern, of_these in patterns.items():
            for name in value:
                if _search(pattern, name):
                    yield from validator.descend(value[name], of_these, path=name, schema_path=pattern)


def _check_others(validator: Any, allowed: Any, value: Any, schema: Any) -> Iterator[Any]:
    """As jsonschema checks `additionalProperties`, in bounded time."""
    from jsonschema import ValidationError

    if not validator.is_type(value, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    others = [name for name in value if name not in named and not any(_search(one, name) for one in patterns)]
    if allowed is False and others:
        yield ValidationError(f"the property {others[0]!r} is not allowed")
    elif isinstance(allowed, dict):
        for name in others:
            yield from validator.descend(value[name], allowed, path=name)


KEYWORDS_WITH_PATTERNS = {
    "pattern": _check_pattern,
    "patternProperties": _check_named,
    "additionalProperties": _check_others,
}


def _draft_of(schema: Any) -> Any:
    """The library's class for the draft that a schema names, else for the newest of two that it is a schema of."""
    from jsonschema import Draft7Validator, Draft202012Validator, validators
    from jsonschema import SchemaError as Wrong

    named = isinstance(schema, dict) and "$schema" in schema
    newest = validators.validator_for(schema, default=Draft202012Validator)
    problems = []
    for cls in [newest] if named else [newest, Draft7Validator]:
        try:
            cls.check_schema(schema)
        except Wrong as error:
            problems.append(error)
        else:
            return cls
    raise SchemaError(tuple(map(str, problems[0].absolute_path)), _problem(problems[0]))


def _object(pairs: list[tuple[str, Any]], doubled: list[str]) -> dict[str, Any]:
    if len(pairs) > len(dict(pairs)):
        doubled += [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    return dict(pairs)


def _is_integer(checker: Any, value: Any) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _decimal(value: Any) -> Any:
    """The schema with exact numbers: multiples of 0.01 are not exact in binary."""
    return json.loads(json.dumps(value), parse_float=Decimal)


def _problem(error: Any) -> str:
    """What is wrong with a schema, by the schema of schemas."""
    path, value = error.absolute_path, _first(json.dumps(error.instance))
    if path and path[-1] == "type":
        return f"there is no type {value}; there are array, boolean, integer, null, number, object and string"
    if error.validator == "type":
        allowed = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return f"the type of the value must be {' or '.join(allowed)}, got {value}"
    return _first(error.message)


def _first(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 200 else text[:200] + "..."
