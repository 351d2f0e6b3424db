"""Diagnosing files of logits, texts and models, from Python and by the command: what is read and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diagnosis_helpers import _assert_same, confident, random_logits, scores, text_like
from safetensors.torch import save_file
from torch import Tensor

from neurogen import DataError, ModelError, ParameterError
from neurogen.cli.diagnose import command
from neurogen.diagnosis.diagnose import diagnose_logits, diagnose_model
from neurogen.diagnosis.input import SAMPLE_TEXT, load_logits, read_texts, windows
from neurogen.models.language_model import LanguageModel, load_model

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high. Lily asked her mom to help her. Her mom took the "
    "ball and gave it to Lily. Lily was very happy and said thank you. They played with the ball all day."
)


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> LanguageModel:
    return load_model(str(tiny_model_dir), device="cpu")


# What is refused


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (
            torch.zeros(3),
            torch.zeros(3, dtype=torch.int64),
            r"shape \[N, vocab\] with N >= 1 and vocab >= 2, got \[3\]",
        ),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), r"got \[0, 5\]"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), r"got \[3, 1\]"),
        (torch.zeros(3, 5).double(), torch.zeros(3, dtype=torch.int64), "float32, float16, bfloat16, got float64"),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int32), "targets must be int64, got int32"),
        (torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64), r"the shape \[3\], got \[4\]"),
        (torch.zeros(3, 5), torch.tensor([0, -100, 5]), r"ids in 0 .. 4, but 2 are not: row 1 \(id -100\), 2 \(id 5\)"),
    ],
)
def test_logits_and_targets_that_do_not_fit_are_refused(
    logits: Tensor, targets: Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=message):
        diagnose_logits(logits, targets)
    path = tmp_path / "l.safetensors"
    save_file({"logits": logits, "targets": targets}, path)
    with pytest.raises(DataError, match=message):
        load_logits(path)


def test_inputs_must_fit_the_targets() -> None:
    logits, targets = random_logits()
    with pytest.raises(ParameterError, match="inputs must be int64"):
        diagnose_logits(logits, targets, inputs=targets[:3])


def test_a_file_without_the_two_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    save_file({"weights": torch.zeros(2), "targets": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=r"has no logits; its tensors are: targets, weights\. Save `logits`"):
        load_logits(path)
    path.write_bytes(b"nonsense, and long enough to hold a header")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        load_logits(path)
    with pytest.raises(DataError, match="There is no file"):
        load_logits(tmp_path / "absent")


def test_logits_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    logits, targets = random_logits(torch.bfloat16)
    save_file({"logits": logits, "targets": targets}, tmp_path / "l.safetensors")
    read, of_file = load_logits(tmp_path / "l.safetensors")
    assert torch.equal(read, logits)
    assert torch.equal(of_file, targets)


# Text


class Letters:
    """A tokenizer of one id a letter, with a start-of-sequence id."""

    def encode(self, text: str) -> list[int]:
        return [0, *map(ord, text)]


def test_windows_make_every_token_a_target_once() -> None:
    pieces = windows(["abcdefg", "", "xy"], Letters(), context=3, max_tokens=100)  # type: ignore[arg-type]
    assert [(piece.document, "".join(map(chr, piece.ids[1:]))) for piece in pieces] == [
        (0, "abc"),
        (0, "def"),
        (0, "g"),
        (2, "xy"),
    ]
    assert [chr(piece.ids[0]) for piece in pieces] == ["\0", "c", "f", "\0"]


def test_windows_stop_at_the_limit_and_read_no_further() -> None:
    def texts() -> Iterator[str]:
        yield "abcdefg"
        pytest.fail("read too far")

    pieces = windows(texts(), Letters(), context=3, max_tokens=5)  # type: ignore[arg-type]
    assert ["".join(map(chr, piece.ids[1:])) for piece in pieces] == ["abc", "de"]


def test_text_without_two_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="no text has two tokens"):
        windows([""], Letters(), context=3, max_tokens=5)  # type: ignore[arg-type]


def test_prompts_are_read_as_texts_whatever_their_settings(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('"one"\n{"prompt": "two", "params": {"k": 3, "nonsense": 1}, "seed": "x"}\n{"text": "three"}\n7\n')
    texts, broken = read_texts(str(path))
    assert texts == ["one", "two", "three"]
    assert [str(line) for line in broken] == [f"{path}, line 4: a line must be a JSON object or string, got 7"]
    path.write_text("[]\n")
    with pytest.raises(DataError, match=r"There is no text in .*line 1: a line must be"):
        read_texts(str(path))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_texts(str(tmp_path / "absent"))


# Models


def test_a_models_logits_are_measured_at_every_position(tiny: LanguageModel) -> None:
    text = "once upon a time there was a little girl named lily"
    diagnosis = diagnose_model(tiny, [text])
    ids = torch.tensor(tiny.tokenizer.encode(text))
    with torch.inference_mode():
        logits = tiny.model(input_ids=ids[None, :-1]).logits[0]
    direct = diagnose_logits(logits, ids[1:], inputs=ids[:-1], positions=torch.arange(len(ids) - 1))
    _assert_same(diagnosis.measures, direct.measures, rel=1e-6)


def test_batches_and_padding_change_nothing(tiny: LanguageModel) -> None:
    texts = [SAMPLE_TEXT[:90], "she loved", SAMPLE_TEXT[200:500]]
    alone = diagnose_model(tiny, texts, context=20, batch_size=1)
    together = diagnose_model(tiny, texts, context=20, batch_size=5)
    assert len(alone.measures) == sum(len(tiny.tokenizer.encode(text)) - 1 for text in texts)
    assert alone.measures.positions.max() == 19
    names = ("loss", "entropy", "top1", "high", "sampled")
    for name in names:
        np.testing.assert_allclose(getattr(together.measures, name), getattr(alone.measures, name), atol=1e-5)
    np.testing.assert_array_equal(together.measures.targets, alone.measures.targets)


def test_a_new_model_is_flat_on_the_built_in_text(tiny: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    diagnosis = diagnose_model(tiny, max_tokens=300, batch_size=2, progress=lambda *numbers: told.append(numbers))
    assert diagnosis.verdict == "flat"
    assert len(diagnosis.measures) == 300
    assert [done for done, _ in told] == [128, 256, 300]
    assert {total for _, total in told} == {300}
    assert [token.text for token in diagnosis.document[:3]] == ["<s>", " ", "T"]
    assert [token.position for token in diagnosis.document] == [None, *range(300)]
    assert {tensor.status for tensor in diagnosis.weights or ()} == {"ok"}


def test_a_model_with_large_last_weights_is_saturated(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(2000)  # type: ignore[no-untyped-call]
    diagnosis = diagnose_model(model, max_tokens=200)
    assert diagnosis.verdict == "saturated"
    assert "1 of 21 weight tensors looks exploded: lm_head.weight" in " ".join(diagnosis.reasons)


def test_a_nan_weight_is_broken_and_named(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    with torch.no_grad():
        model.model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = torch.nan
    diagnosis = diagnose_model(model, ["once upon a time"])
    assert diagnosis.verdict == "broken"
    assert "positions 0, 1, 2" in diagnosis.reasons[0]
    assert diagnosis.reasons[1] == "1 weight is NaN or infinite, in model.layers.1.mlp.up_proj.weight."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 65}, r"context must be an integer in \[1, 64\], what .* can take, got 65"),
        ({"context": 0}, "context must be"),
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_numbers_outside_their_domain_are_refused(tiny: LanguageModel, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        diagnose_model(tiny, **arguments)  # type: ignore[arg-type]


def test_a_real_model_is_healthy_on_a_story(stories_dir: Path) -> None:
    diagnosis = diagnose_model(load_model(str(stories_dir), device="cpu"), [STORY])
    assert diagnosis.verdict == "healthy"
    found = scores(diagnosis)
    assert found["greedy", None] > 0.7
    assert found["greedy", None] - found["topk", 1.0] > 0.05
    assert found["topk", 1.0] < found["topk", 0.8] < found["greedy", None]


# The command


@pytest.fixture
def diagnose(tiny_model_dir: Path) -> Callable[..., Result]:
    """The command; `tiny` among its arguments is the tiny model's folder."""

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        given = [str(tiny_model_dir) if argument == "tiny" else argument for argument in arguments]
        result = CliRunner().invoke(command, given, input=stdin, standalone_mode=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def logits_file(tmp_path: Path) -> Path:
    targets = text_like(400, 50)
    path = tmp_path / "l.safetensors"
    save_file({"logits": confident(targets, (targets + 1) % 50, 0.99), "targets": targets}, path)
    return path


def test_the_command_prints_verdict_table_and_steps(diagnose: Callable[..., Result]) -> None:
    result = diagnose("--model", "tiny", "--max-tokens", "300")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].endswith(": flat")
    rows = [line.split() for line in lines]
    at = rows.index(["SAMPLER", "TEMPERATURE", "ACCURACY", "+/-", "(ONE", "DRAWING)", "NEVER", "RIGHT", "USE"])
    assert [row[:2] for row in rows[at + 1 : at + 6]] == [
        ["greedy", "-"],
        ["topk(k=50)", "1.0"],
        ["topp(p=0.9)", "1.0"],
        ["topk(k=50)", "0.8"],
        ["topp(p=0.9)", "0.8"],
    ]
    assert "Weights: 21 tensors, none of them dead, exploded or not finite" in lines
    assert "What to do" in lines
    assert "\x1b" not in result.stdout


def test_json_is_one_object_with_everything(diagnose: Callable[..., Result], logits_file: Path) -> None:
    result = diagnose("--logits", str(logits_file), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["verdict"], found["positions"], found["vocab_size"]) == ("saturated", 400, 50)
    assert [item["sampler"] for item in found["samplers"]] == ["greedy", "topk", "topp", "topk", "topp"]
    assert found["samplers"][1]["params"] == {"k": 50, "temperature": 1.0}
    assert found["measures"]["top1_probability"]["mean"] == pytest.approx(0.99)
    assert found["measures"]["nucleus_size_0.9"]["max"] == 1
    assert found["loss"]["uniform"] == pytest.approx(math.log(50))
    assert found["weights"] is None


def test_a_page_is_written_beside_the_output(
    diagnose: Callable[..., Result], logits_file: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    result = diagnose("--logits", str(logits_file), "--json", "--html", str(page))
    assert json.loads(result.stdout)["verdict"] == "saturated"
    assert result.stderr == f"The page with charts is in {page}.\n"
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["l.safetensors", "page.html"]
    assert diagnose("--logits", str(logits_file), "--html", str(page), "--quiet").stderr == ""


def test_texts_come_from_prompts_or_data(diagnose: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "once upon a time"}\n{"nothing": 1}\n{"text": "the red ball"}\n')
    by_prompts = diagnose("--model", "tiny", "--prompts", str(path), "--json")
    by_stdin = diagnose("--model", "tiny", "--prompts", "-", "--json", stdin=path.read_text())
    by_data = diagnose("--model", "tiny", "--data", str(path), "--json")
    assert json.loads(by_prompts.stdout) == json.loads(by_stdin.stdout) == json.loads(by_data.stdout)
    assert f"{path}, line 2: there is neither 'prompt' nor 'text'" in by_prompts.stderr
    assert f"{path}, line 2: " in by_data.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --model NAME, or --logits FILE.safetensors"),
        (["--model", "tiny", "--logits", "x"], "--model belongs to --model; with --logits nothing is run"),
        (["--logits", "x", "--max-tokens", "5"], "--max-tokens belongs to --model"),
        (["--logits", "x", "--data", "y"], "--data belongs to --model"),
        (["--model", "tiny", "--prompts", "x", "--data", "y"], "either --prompts or --data, not both"),
        (["--model", "tiny", "--max-tokens", "0"], "it must be an integer >= 1, got '0'"),
        (["--model", "tiny", "--device", "gpu"], "it must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_usage_ends_with_2(diagnose: Callable[..., Result], arguments: list[str], message: str) -> None:
    result = diagnose(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--model", "./absent"], ModelError, "There is no model './absent'"),
        (["--model", "./absent", "--prompts", "absent.jsonl"], DataError, "prompts in absent.jsonl cannot be read"),
        (["--logits", "absent"], DataError, "There is no file absent"),
        (["--logits", "absent", "--html", "no/folder/x.html"], DataError, "there is no folder .*no/folder"),
        (["--logits", "absent", "--html", "."], DataError, "it is a folder"),
        (["--model", "tiny", "--context", "65"], ParameterError, r"in \[1, 64\]"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_ours(
    diagnose: Callable[..., Result], arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        diagnose(*arguments)


def test_the_verdict_is_no_exit_code(diagnose: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    save_file({"logits": torch.full((3, 9), torch.nan), "targets": torch.zeros(3, dtype=torch.int64)}, path)
    result = diagnose("--logits", str(path))
    assert result.exit_code == 0
    assert f"{path}: broken" in result.stdout
