"""JSON schemas and their patterns: whatever is written under the mask keeps them, as other libraries judge it."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import neurogen_command as cli

import neurogen
from neurogen import Processor
from neurogen.contract.processor import prepared
from neurogen.decoding.processing import Processing
from neurogen.decoding.request import Request
from neurogen.models.language_model import LanguageModel
from neurogen.processors.patterns import PatternError, for_python, for_rust
from neurogen.processors.schema import Validator, for_checking
from neurogen.text.runner import Runner

pytest.importorskip("llguidance", reason="llguidance is not installed (pip install 'neurogen[grammar]')")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (pip install 'neurogen[grammar]')")


def grammar(**params: str) -> Processor:
    return neurogen.Registry(disabled=()).load_processor("grammar", **params)


def written(model: LanguageModel, processor: Processor, count: int, length: int = 60) -> list[str]:
    """Complete texts of tokens drawn evenly from all that the processor allows; the end where it can be, often."""
    tokenizer, vocab = model.tokenizer, model.vocab_size
    (end,) = tokenizer.eos_ids
    (own,) = prepared([processor], tokenizer, vocab)
    random_numbers = random.Random(7)
    texts = []
    for _ in range(count):
        processing = Processing(Request((1,), 9, seed=0, stop_ids=frozenset({end}), processors=[own]))
        pieces: list[bytes] = []
        while len(pieces) < length:
            logits = torch.zeros(vocab)
            processing.process(logits)
            allowed = logits.isfinite().nonzero().flatten().tolist()
            if end in allowed and (len(allowed) == 1 or random_numbers.random() < 0.3):
                texts.append(b"".join(pieces).decode())
                break
            closing = [token for token in allowed if tokenizer.token_bytes(token)[:1] in (b'"', b"}", b"]", b":")]
            some = closing if closing and random_numbers.random() < 0.4 else allowed
            token = random_numbers.choice([token for token in some if token != end])
            pieces.append(tokenizer.token_bytes(token))
            processing.accept(token)
    return texts


PATTERNS = [
    r'^[^"]*$',
    r"^[^\\]{2,}$",
    r'^[^<>:"/\\|?*]+$',
    "^[\\u0000-\\u001f]+$",
    "^[\x00-\x1f!]+$",
    r"^[\x00-\x1f\x22]$",
    r'^(\x00-|[^\x00"])+$',
    r"^\S+$",
    r"^.+$",
    r"^[^\n]$",
    r"^[^\s\x22]+$",
    r"^\p{Cc}+$",
    r"^[^\p{L}]{1,3}$",
    r"^\d\w\W\D\s$",
    r"^[[&&~~^\]-]$",
    r"^(?:a|bc)*d{2,3}\/\-\.?$",
    r"(?i)^abc$",
    r"^a|b$",
    r"^(?:\u{1F600}|\uD83D\uDE00)$",
    r"b",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_decoded_value_keeps_its_pattern(stories: LanguageModel, pattern: str) -> None:
    """Control characters, quotes and backslashes are written as escapes: what they mean must fit, not how they look."""
    texts = written(stories, grammar(json_schema=json.dumps({"type": "string", "pattern": pattern})), 40)
    for text in texts:
        assert re.search(for_python(pattern), json.loads(text)), text
    assert texts or pattern in ("b", "^a|b$")


def test_the_name_of_a_property_keeps_its_pattern(stories: LanguageModel) -> None:
    schema = {
        "type": "object",
        "patternProperties": {'^[^"]+$': {"type": "string", "pattern": "^[^\\\\]*$"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    }
    texts = written(stories, grammar(json_schema=json.dumps(schema)), 40)
    assert len(texts) > 10
    for text in texts:
        for name, value in json.loads(text, object_pairs_hook=list):
            assert '"' not in name
            assert "\\" not in value


def test_a_pattern_behind_a_reference_and_in_a_grammar_is_kept(stories: LanguageModel) -> None:
    shape = {"type": "string", "pattern": '^[^"]{3}$'}
    for params in (
        {"json_schema": json.dumps({"$ref": "#/parts/name", "parts": {"name": shape}})},
        {"grammar": f"start: %json {json.dumps(shape)}"},
    ):
        texts = written(stories, grammar(**params), 30)
        assert texts
        assert not any('"' in json.loads(text) for text in texts)


SCHEMAS: list[dict[str, Any]] = [
    {"type": "number", "multipleOf": 0.01},
    {"type": "integer", "multipleOf": 7, "minimum": -100, "exclusiveMaximum": 99},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": [1, 2]}], "items": False},
    {"type": "array", "items": [{"type": "boolean"}], "additionalItems": {"type": "null"}},
    {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "required": ["a", "b"],
        "additionalProperties": {"type": "null"},
    },
    {"enum": ['a"b', 1.5, None, {"a": [1, "\n"]}, "\u00e9\u0000"]},
    {"$ref": "#/$defs/n", "maximum": 5, "$defs": {"n": {"type": "integer", "minimum": 3}}},
    {"oneOf": [{"type": "string", "maxLength": 1}, {"type": "integer", "minimum": 0, "maximum": 9}]},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: " ".join(schema))
def test_what_is_written_keeps_the_schema(stories: LanguageModel, schema: dict[str, Any]) -> None:
    draft = jsonschema.Draft7Validator if isinstance(schema.get("items"), list) else jsonschema.Draft202012Validator
    texts = written(stories, grammar(json_schema=json.dumps(schema)), 25)
    assert texts
    for text in texts:
        if "multipleOf" in schema and schema["multipleOf"] == 0.01:  # which binary numbers cannot tell
            assert re.fullmatch(r"-?\d+(\.\d\d?0*)?", text)
        else:
            draft(schema).validate(json.loads(text))


def test_a_finished_text_is_checked_by_another_library(stories: LanguageModel) -> None:
    """A date that llguidance lets through, 29 February of a common year, and a part that the schema lets it ignore."""
    tokens = stories.tokenizer.encode

    def notice(schema: dict[str, Any], text: str, finish_reason: str = "eos") -> str | None:
        (own,) = prepared([grammar(json_schema=json.dumps(schema))], stories.tokenizer, stories.vocab_size)
        return own.notice(tokens(text, add_bos=False), finish_reason)

    date = {"type": "string", "format": "date"}
    assert notice(date, '"2023-02-28"') is None
    told = notice(date, '"2023-02-29"')
    assert told is not None
    assert told.startswith("The text does not keep the JSON schema: '2023-02-29' is not a 'date', at #")
    lenient = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    assert notice(lenient, "[1,2]") is None
    assert "has non-unique elements" in (notice(lenient, "[1,1]") or "")
    assert "the name 'a' twice" in (notice({"type": "object"}, '{"a":1,"a":2}') or "")
    assert notice({"type": "number", "multipleOf": 0.01}, "4.35") is None


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?=a)",
        r"(?<!a)b",
        r"\bfoo",
        r"\1",
        "(a",
        "a)",
        "[a",
        "[]a]",
        "[^]",
        "a**",
        "*a",
        "a{,3}",
        "[b-a]",
        r"\q",
        "a\\",
        "(?#x)",
    ],
)
def test_a_pattern_that_cannot_be_kept_is_refused_with_its_place(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"at character [1-9]"):
        for_rust(pattern)


def test_misspelt_keywords_are_told_wherever_a_schema_stands_and_nowhere_else(stories: LanguageModel) -> None:
    schema = {
        "type": "object",
        "properties": {
            "maxLenght": {"type": "string", "maxLenght": 3, "x-order": 1, "enum": ["maxlength"]},
            "b": {"anyOf": [{"type": "null", "titel": "t"}], "default": {"requierd": 1}, "examples": [{"requierd": 1}]},
        },
        "required": ["b"],
        "additionalproperties": False,
        "$defs": {"c": {"const": {"requierd": 1}, "minimun": 3}},
        "x-own": {"requierd": True},
    }
    processor = grammar(json_schema=json.dumps(schema))
    (remark,) = processor.remarks
    told = re.findall(r"'(\w+)' at (\S+?)(?: \(did you mean '(\w+)'\?\))?(?:[;.] |$)", remark)
    assert told == [
        ("additionalproperties", "#", "additionalProperties"),
        ("maxLenght", "#/properties/maxLenght", "maxLength"),
        ("titel", "#/properties/b/anyOf/0", "title"),
        ("minimun", "#/$defs/c", "minimum"),
    ]
    runner = Runner(stories, neurogen.load_sampler("greedy"), processors=[processor], max_new_tokens=3)
    (result,) = runner.generate("Tom")
    assert result.notices is not None
    assert result.notices[0] == remark
    assert not grammar(json_schema='{"title": "T", "$comment": "c", "x-a": 1, "deprecated": true}').remarks


# A text, or a file's name


LARK = 'start: "yes" | "no" | ' + " | ".join(f'"{number} and more"' for number in range(200))
GBNF = '# an answer\nroot ::= answer ("," ws answer)*\nanswer ::= "y\\u00e9s" | [^"\\\\] "\\x41"\nws ::= [ \\t]?'


@pytest.mark.parametrize(
    "params",
    [
        {"grammar": LARK},
        {"grammar": 'start : "a"'},
        {"grammar": 'start:"a"'},
        {"grammar": '%llguidance {}\nstart: "a"'},
        {"grammar": GBNF},
        {"json_schema": "true"},
        {"json_schema": " {} "},
        {"json_schema": json.dumps({"enum": ["x" * 5000]})},
        {"regex": "true"},
        {"regex": "@a"},
        {"regex": "a|" * 200 + "b"},
    ],
)
def test_a_text_is_not_taken_for_the_name_of_a_file(params: dict[str, str]) -> None:
    processor = grammar(**params)
    assert repr(neurogen.load_processors(repr(processor))[0]) == repr(processor)


def test_a_file_is_named_as_it_is_or_behind_an_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content, parameter in (("s.json", "{}", "json_schema"), ("g: x.lark", 'start: "a"', "grammar")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())  # with a byte order mark
        for value in (name, f"@{name}"):
            assert re.search('checksum="[0-9a-f]{8}"', repr(grammar(**{parameter: value})))


def test_gbnf_means_what_it_says(stories: LanguageModel) -> None:
    for text in written(stories, grammar(grammar=GBNF), 40):
        assert re.fullmatch(r'(?:y\u00e9s|[^"\\]A)(?:,[ \t]?(?:y\u00e9s|[^"\\]A))*', text), text


def test_a_long_schema_records_and_is_replayed(tiny_model_dir: Path, tmp_path: Path) -> None:
    schema = json.dumps({"enum": ["yes", *(f"{number} and more" for number in range(2000))]})
    assert len(schema) > 20_000
    record = str(tmp_path / "run.jsonl")
    run = ["run", "-s", "greedy", "--model", str(tiny_model_dir), "--prompt", "Tom\u2028Tim", "--max-new-tokens", "8"]
    made = cli(*run, "--json-schema", schema, "--record", record)
    assert made.exit_code == 0, made.output
    again = cli("replay", record)
    assert again.exit_code == 0, again.output


# The command line


def test_what_the_library_says_is_shown_by_debug_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "-s", "greedy", "--prompt", "a", "--grammar", 'start: "a" )']
    plain, debug = cli(*arguments).stderr, cli(*arguments, "--debug").stderr
    assert "a rule was expected, found ), at line 1, column 12" in plain
    assert "expecting rule, token or statement" not in plain
    assert 'LibraryError: 1(12): expecting rule, token or statement (at ")"' in debug


def test_a_misspelt_keyword_is_told_once_and_other_notices_for_each(tiny_model_dir: Path, tmp_path: Path) -> None:
    schema = '{"type": "string", "maxLenght": 3, "minLength": 90}'
    model = ["--model", str(tiny_model_dir), "--prompt", "once", "--max-new-tokens", "2"]
    told = cli("run", "-s", "topk", *model, "-n", "3", "--json-schema", schema, "--quiet").stderr
    assert told.count("'maxLenght' at # (did you mean 'maxLength'?)") == 1
    assert told.count("The text is incomplete") == 3
    spec = neurogen.load_processors(repr(grammar(json_schema=schema)))
    for command in (["explain", "-s", "topk"], ["compare", "--sampler", "topk", "--sampler", "greedy"]):
        other = cli(*command, *model, "--processors", repr(spec[0]))
        assert other.exit_code == 0, other.output
        assert "'maxLenght' at #" in other.stderr
        assert "The text is incomplete" in other.stderr
    chat = cli("chat", "-s", "topk", "--model", str(tiny_model_dir), stdin=f"/processors {spec[0]!r}\nonce\n")
    assert "'maxLenght' at #" in chat.stderr


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    """Python's own regular expressions take more than a minute for these; the bound tells that it is not known."""
    validator = Validator(for_checking({"anyOf": [{"pattern": "^(a+)+b$"}, {"pattern": "^(a|aa)+$"}]}))
    started = time.monotonic()
    assert validator.problem(json.dumps("a" * 40)) is None
    names = Validator(for_checking({"patternProperties": {"^(a+)+b$": False}, "additionalProperties": False}))
    assert names.problem(json.dumps({"a" * 40: 1})) == f"the property {'a' * 40!r} is not allowed, at #"
    assert time.monotonic() - started < 10


def test_what_could_not_be_checked_is_no_fault(stories: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(pattern: str, text: str, timeout: float) -> None:
        raise TimeoutError("regex timed out")

    (own,) = prepared([grammar(json_schema='{"type":"string","pattern":"a"}')], stories.tokenizer, stories.vocab_size)
    text = stories.tokenizer.encode('"ba"', add_bos=False)
    assert own.notice(text, "eos") is None
    monkeypatch.setattr("regex.search", slow)
    said = "Whether the text keeps the JSON schema could not be checked: a pattern of it takes longer than 2 seconds."
    assert own.notice(text, "eos") == said


def test_properties_are_checked_as_jsonschema_does() -> None:
    schema = {
        "type": "object",
        "properties": {"z": {}},
        "patternProperties": {"^a": {"type": "integer"}},
        "additionalProperties": {"type": "string", "pattern": "x"},
    }
    ours, theirs = Validator(for_checking(schema)), jsonschema.Draft202012Validator(schema)
    for value in ({"a": 1, "z": None}, {"a": "1"}, {"b": "x"}, {"b": "y"}, {"b": 1}, {}, [], {"ab": 2, "b": "axa"}):
        assert (ours.problem(json.dumps(value)) is None) == theirs.is_valid(value), value
    assert (ours.problem("{") or "").startswith("it is no JSON")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ('{"type": "number", "minimum": NaN}', "json_schema is no JSON: it fails with NaN, which is no number of JSON"),
        ('{"const": -Infinity}', "-Infinity, which is no number of JSON"),
        ('{"const": 1e999}', "1e999, a number beyond all that can be computed with"),
        (r'{"const": "\ud800"}', r"it holds '\ud800', half of a character"),
        ('{"pattern": "a{2,1}"}', r"{2,1} asks for at least 2 and at most 1, at character 2 of 'a{2,1}', at #/pattern"),
        ('{"pattern": "a{99999999999}"}', "repeats more often than 1,000,000 times"),
    ],
)
def test_numbers_and_characters_that_are_none_are_refused(schema: str, told: str) -> None:
    with pytest.raises(neurogen.ParameterError, match=re.escape(told)):
        grammar(json_schema=schema)
