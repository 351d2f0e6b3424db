"""Training a tokenizer: what it gives back, that it is the same each time, and what is refused before or after."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurogen import DataError, ParameterError
from neurogen.cli.tokenizer import command
from neurogen.data.documents import BrokenRow
from neurogen.data.tokenizer_training import LINE, train_tokenizer
from neurogen.models.tokenizer import Tokenizer, load_tokenizer

SIZE = 400
TRAIN = (
    "import sys; from neurogen.data.tokenizer_training import train_tokenizer as t; t([sys.argv[1]], 400, sys.argv[2])"
)


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of some hundred sentences."""
    choose = random.Random(0)
    syllables = [first + vowel for first in "bdfgklmnprst" for vowel in ("a", "e", "i", "o", "u", "\u00fc")]
    words = ["".join(choose.choices(syllables, k=2)) for _ in range(150)] + ["once upon a time", "1984"] * 10
    texts = [" ".join(choose.choices(words, k=12)) + ".\n\n    indented\tline" for _ in range(300)]
    return write(tmp_path_factory.mktemp("data") / "a.jsonl", texts)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of each type."""
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([data], SIZE, out, model_type=request.param)
    return load_tokenizer(out)


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Callable[..., Result]:
    """Runs `tokenizer train` on the data, into `tmp_path/t.model`."""

    def run(*options: str, source: Path = data) -> Result:
        arguments = ["train", str(source), "--out", str(tmp_path / "t.model"), *options]
        return CliRunner().invoke(command, arguments, catch_exceptions=True)

    return run


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581")))
def test_what_is_encoded_is_decoded_to_the_same_text(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        " leading", "  two leading", "trailing  ", "a   b", "\n", "\n\n    indented\n", "\ttab", "1984", "<s></s><unk>",
        "\u00c5ngstr\u00f6m \u212b \ufb01 \u00bd", "\U0001f600\u200d", "\x00", "\r\n", " ",
    ],
)  # fmt: skip
def test_spaces_line_breaks_and_forms_of_characters_survive(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_its_settings_are_llamas(trained: Tokenizer) -> None:
    assert (trained.bos_id, trained.eos_ids) == (1, frozenset({2}))
    assert [trained.token_text(token) for token in range(5)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]
    assert [trained.token_text(token) for token in trained.encode("1984", add_bos=False)][-4:] == list("1984")
    assert [trained.token_text(token) for token in trained.encode("\u4f60", add_bos=False)][-3:] == [
        "<0xE4>", "<0xBD>", "<0xA0>",
    ]  # fmt: skip
    assert len(trained.encode("once upon a time", add_bos=False)) < len("once upon a time")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_data_give_the_same_bytes(data: Path, tmp_path: Path, model_type: str) -> None:
    for name in ("a.model", "b.model"):
        train_tokenizer([data], SIZE, tmp_path / name, model_type=model_type)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_another_process_gives_the_same_bytes_and_is_silent(data: Path, tmp_path: Path) -> None:
    train_tokenizer([data], SIZE, tmp_path / "a.model")
    arguments = [sys.executable, "-c", TRAIN, str(data), str(tmp_path / "b.model")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_long_lines_are_learnt_from_too(tmp_path: Path) -> None:
    texts = [" ".join(["serendipity"] * LINE), "x" * (3 * LINE + 1), "\u4f60" * LINE]
    trained = train_tokenizer([write(tmp_path / "a.jsonl", texts)], 290, tmp_path / "t.model")
    assert trained.lines == 13 + 4 + 1
    tokenizer = load_tokenizer(trained.path)
    assert len(tokenizer.encode(" serendipity" * 10, add_bos=False)) < 25
    assert tokenizer.token_text(tokenizer.encode("\u4f60", add_bos=False)[-1]) == "\u4f60"


def test_only_the_first_sentences_are_learnt_from(data: Path, tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []
    trained = train_tokenizer(
        [data], 300, tmp_path / "t.model", max_sentences=100, on_progress=lambda *state: told.append(state)
    )
    assert (trained.lines, trained.whole) == (100, False)
    assert told == [(100, True)]
    assert train_tokenizer([data], 300, tmp_path / "u.model", max_sentences=600).whole


def test_broken_rows_are_told_and_passed_over(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b"broken\n" + data.read_bytes())
    broken: list[BrokenRow] = []
    trained = train_tokenizer([path], SIZE, tmp_path / "t.model", on_broken=broken.append)
    assert (trained.broken, [row.line for row in broken]) == (1, [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 100_000}, "A vocabulary of 100,000 pieces is more than this text gives: at most [1-9]"),
        (
            {"vocab_size": 200},
            r"A vocabulary of 200 pieces is too small: .* of this text make 2\d\d\. Ask for at least",
        ),
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
        ({"max_sentences": 0}, "max_sentences must be an integer >= 1, got 0"),
        ({"model_type": "wordpiece"}, "model_type must be bpe or unigram, got 'wordpiece'"),
        ({"character_coverage": 0.5}, "character_coverage must be a number from 0.98 to 1, got 0.5"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_paragraph(
    data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message) as error:
        train_tokenizer([data], out=tmp_path / "t.model", **{"vocab_size": SIZE, **options})
    assert "\n" not in str(error.value)
    assert error.value.parameter in options
    assert list(tmp_path.iterdir()) == []


def test_a_refused_size_names_one_that_works(data: Path, tmp_path: Path) -> None:
    for wrong in (100_000, 200):
        with pytest.raises(ParameterError) as error:
            train_tokenizer([data], wrong, tmp_path / "t.model", force=True)
        right = [int(word.rstrip(".").replace(",", "")) for word in str(error.value).split() if word[0].isdigit()][-1]
        assert train_tokenizer([data], right, tmp_path / "t.model", force=True).vocab_size == right


def test_an_existing_file_is_left_as_it_is(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.model"
    out.write_text("precious")
    with pytest.raises(DataError, match=r"t\.model exists already and is left as it is"):
        train_tokenizer([data], SIZE, out)
    assert out.read_text() == "precious"
    train_tokenizer([data], SIZE, out, force=True)
    assert load_tokenizer(out).vocab_size == SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["t.model"]


def test_a_file_that_appears_meanwhile_is_left_as_it_is(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.model"
    with pytest.raises(DataError, match="exists already"):
        train_tokenizer([data], SIZE, out, on_progress=lambda lines, whole: out.write_text("precious"))
    assert out.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "d.model").mkdir()
    for out, message in {
        "t.spm": r"t\.spm: SentencePiece models are known by names that end in \.model\. Give a name such as t\.model",
        "absent/t.model": "there is no folder .*absent. Make it first",
        "d.model": r"d\.model is a folder",
    }.items():
        with pytest.raises(DataError, match=message):
            train_tokenizer([tmp_path / "absent.jsonl"], SIZE, tmp_path / out)


def test_a_failed_write_leaves_nothing_behind(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"t\.model cannot be written: No space left on device"):
        train_tokenizer([data], SIZE, tmp_path / "t.model")
    assert list(tmp_path.iterdir()) == []


def test_data_without_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "x"}\n')
    with pytest.raises(DataError, match=r"There is no text to train on in .*a\.jsonl: 1 broken rows"):
        train_tokenizer([path], SIZE, tmp_path / "t.model")
    write(path, ["\u2585"])  # SentencePiece keeps this character for itself and passes over lines with it
    with pytest.raises(DataError, match="no line in these data that a tokenizer could learn from"):
        train_tokenizer([path], SIZE, tmp_path / "t.model")


def test_an_interruption_while_reading_stays_one(data: Path, tmp_path: Path) -> None:
    def interrupt(row: BrokenRow) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "b.jsonl"
    path.write_bytes(data.read_bytes() + b"broken\n")
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer([path], SIZE, tmp_path / "t.model", on_broken=interrupt)


def test_the_command_prints_one_line(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("--vocab-size", "400")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 't.model'}: 400 pieces, learnt from 600 lines.\n"
    assert result.stderr == ""


def test_the_command_says_when_it_did_not_read_everything(run: Callable[..., Result]) -> None:
    assert run("--vocab-size", "300", "--max-sentences", "50").stdout.endswith("from the first 50 lines.\n")


def test_the_quiet_command_prints_nothing(run: Callable[..., Result]) -> None:
    result = run("--vocab-size", "400", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_the_command_names_some_broken_rows_and_counts_the_others(
    run: Callable[..., Result], data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b"broken\n" * 13 + data.read_bytes())
    lines = run("--vocab-size", "400", source=path).stderr.splitlines()
    assert len(lines) == 11
    assert lines[0] == f"{path}, line 1: not JSON: Expecting value: line 1 column 1 (char 0)."
    assert lines[-1] == "3 more rows hold no text."


def test_the_command_replaces_a_file_only_by_force(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "t.model").write_text("precious")
    assert isinstance(run("--vocab-size", "400").exception, DataError)
    assert (tmp_path / "t.model").read_text() == "precious"
    assert run("--vocab-size", "400", "--force").exit_code == 0


def test_the_command_restores_the_handling_of_ctrl_c(run: Callable[..., Result]) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    assert run("--vocab-size", "400").exit_code == 0
    assert run("--vocab-size", "100000", "--force").exit_code == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "option",
    [["--vocab-size", "0"], ["--character-coverage", "0.5"], ["--model-type", "word"], ["--max-sentences", "x"]],
)
def test_the_command_refuses_values_out_of_their_domain(run: Callable[..., Result], option: list[str]) -> None:
    result = run(*option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
