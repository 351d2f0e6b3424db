"""Reading prompts: what a line may say, and what becomes of one that is broken."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import neurogen
from neurogen import DataError
from neurogen.text.prompts import BrokenLine, check_text, parse_lines, read_prompts, read_text

TOPK = neurogen.load_sampler("topk", k=7)


def parse(*lines: bytes) -> tuple[list[object], list[BrokenLine]]:
    return parse_lines([line + b"\n" for line in lines], TOPK, "p.jsonl")  # type: ignore[return-value]


def test_a_line_is_a_string_or_an_object_with_prompt_or_text() -> None:
    prompts, broken = parse(b'"one"', b'{"prompt": "two"}', b'{"text": "three", "meta": {"source": "web"}}')
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "one"), (1, "two"), (2, "three")]
    assert broken == []


def test_prompt_goes_before_text() -> None:
    (prompt,), _ = parse(b'{"text": "what came out", "prompt": "what went in"}')
    assert prompt.text == "what went in"


def test_a_line_has_its_own_settings() -> None:
    line = {"prompt": "x", "seed": 3, "max_new_tokens": 5, "stop": "\n", "params": {"temperature": 1}}
    (prompt,), _ = parse(json.dumps(line).encode())
    assert (prompt.seed, prompt.max_new_tokens, prompt.stop) == (3, 5, ("\n",))
    assert prompt.params == {"temperature": 1.0}


def test_a_null_setting_is_none() -> None:
    line = {"prompt": "x", "seed": None, "max_new_tokens": None, "stop": None, "params": None}
    (prompt,), broken = parse(json.dumps(line).encode())
    assert (prompt.seed, prompt.max_new_tokens, prompt.stop, prompt.params, broken) == (None, None, None, {}, [])


def test_stop_may_be_a_list_and_an_empty_one() -> None:
    prompts, _ = parse(b'{"prompt": "x", "stop": ["a", "b"]}', b'{"prompt": "x", "stop": []}')
    assert [prompt.stop for prompt in prompts] == [("a", "b"), ()]


def test_blank_lines_are_passed_over_and_keep_the_count() -> None:
    prompts, broken = parse(b"", b'"one"', b"  \t", b'"two"')
    assert [prompt.index for prompt in prompts] == [1, 3]
    assert broken == []


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    prompts, broken = parse(b'\xef\xbb\xbf"one"')
    assert prompts[0].text == "one"
    assert broken == []


def test_text_keeps_every_character() -> None:
    text = " \u00e9\u4f60\U0001f600\u2028\ttail "
    (prompt,), _ = parse(json.dumps(text, ensure_ascii=False).encode())
    assert prompt.text == text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "x"', "not JSON"),
        (b'"\xff\xfe"', "not UTF-8: byte 0xff at offset 1"),
        (b"[" * 100_000, "not JSON"),
        (b"7", "a line must be a JSON object or string, got 7"),
        (b"null", "a line must be a JSON object or string, got null"),
        (b'{"propmt": "x"}', "neither 'prompt' nor 'text'; it has 'propmt'"),
        (b"{}", "neither 'prompt' nor 'text'; it has no field"),
        (b'{"prompt": 3}', "'prompt' must be a text, got 3"),
        (b'{"prompt": ""}', "the prompt is empty"),
        (b'""', "the prompt is empty"),
        (rb'"a\ud800"', "half of a character, at 1"),
        (b'{"prompt": "x", "seed": "7"}', "'seed' must be an integer of 64 bits, got \"7\""),
        (b'{"prompt": "x", "seed": 9223372036854775808}', "'seed' must be an integer of 64 bits"),
        (b'{"prompt": "x", "seed": true}', "'seed' must be an integer of 64 bits, got true"),
        (b'{"prompt": "x", "max_new_tokens": 0}', "'max_new_tokens' must be an integer >= 1, got 0"),
        (b'{"prompt": "x", "max_new_tokens": 1.5}', "'max_new_tokens' must be an integer >= 1, got 1.5"),
        (b'{"prompt": "x", "stop": [""]}', "'stop' must be a text or a list of texts"),
        (b'{"prompt": "x", "stop": ""}', "'stop' must be a text or a list of texts"),
        (b'{"prompt": "x", "stop": {"a": 1}}', "'stop' must be a text or a list of texts"),
        (b'{"prompt": "x", "params": [1]}', "'params' must be an object"),
        (b'{"prompt": "x", "params": {"k": -1}}', "topk: k must be an integer >= 0, got -1"),
        (b'{"prompt": "x", "params": {"p": 0.5}}', "topk has no parameter 'p'; it has: k, temperature"),
        (b'{"prompt": "x", "params": {"temperature": NaN}}', "temperature must be a finite number >= 0"),
    ],
)
def test_a_broken_line_is_named_and_loses_no_other(line: bytes, problem: str) -> None:
    prompts, broken = parse(b'"before"', line, b'"after"')
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "before"), (2, "after")]
    assert [(item.source, item.number) for item in broken] == [("p.jsonl", 2)]
    assert problem in broken[0].problem
    assert str(broken[0]).startswith("p.jsonl, line 2: ")
    assert "\n" not in str(broken[0])
    assert len(str(broken[0])) < 300


def test_the_last_line_needs_no_line_break(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'"one"\r\n"two"')
    prompts, broken = read_prompts(str(path), TOPK)
    assert [prompt.text for prompt in prompts] == ["one", "two"]
    assert broken == []


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"There is no prompt in .*p.jsonl: it is empty"):
        read_prompts(str(path), TOPK)


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.jsonl cannot be read: No such file"):
        read_prompts(str(tmp_path / "absent.jsonl"), TOPK)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_prompts(str(tmp_path), TOPK)


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b" a", " a"), (b"a\r", "a\r"), (b"\xef\xbb\xbfa", "a")],
)
def test_standard_input_loses_one_trailing_line_break(data: bytes, text: str) -> None:
    assert read_text(io.BytesIO(data)) == text


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n"])
def test_empty_standard_input_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="The prompt is empty: there was no text on standard input"):
        read_text(io.BytesIO(data))


def test_standard_input_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DataError, match="not UTF-8: byte 0xe9 at offset 3"):
        read_text(io.BytesIO(b"caf\xe9"))


def test_check_text_refuses_bytes_that_the_shell_passed_on() -> None:
    with pytest.raises(DataError, match="half of a character"):
        check_text(b"caf\xe9".decode("utf-8", "surrogateescape"))
