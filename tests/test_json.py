"""What neurogen writes as JSON is JSON for every parser: a number that is not finite is null, and readers take it."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import neurogen_command
from model_helpers import ROOT

from neurogen.bench.results import Quartiles
from neurogen.diagnosis.recording import read_recording
from neurogen.diagnosis.replay import _distance
from neurogen.files import finite, to_json
from neurogen.pages.training_charts import read_metrics

QUOTED = {
    "neurogen/files.py": "the one writer",
    "neurogen/data/documents.py": "a value of the user's in a message",
    "neurogen/cli/results.py": "a value of the user's in a message",
    "neurogen/text/prompts.py": "a value of the user's in a message",
    "neurogen/processors/listing.py": "a text in quotes",
    "neurogen/cli/explain.py": "a text in quotes",
    "neurogen/cli/config.py": "a value in a table",
    "neurogen/models/special_tokens.py": "a tokenizer for its library",
    "neurogen/contract/spec.py": "parameters, which are finite by their schema",
    "neurogen/diagnosis/input.py": "a line of a prompts file that is parsed again",
    "neurogen/processors/grammar_source.py": "a schema for the grammar's library",
    "neurogen/processors/schema.py": "a value of the model's in a message, and one that is parsed again",
    "integrations/neurogen-vllm/neurogen_vllm/request.py": "a key of a cache",
}
"""Where `json.dumps` writes no output and no file, and what it does there."""

WRITERS = {"json.dumps", "json.dump"}


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def written(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and (
            ast.unparse(node.func) in WRITERS or ast.unparse(node.func).endswith(".model_dump_json")
        ):
            yield ast.unparse(node)


def test_output_and_files_are_written_by_the_one_writer() -> None:
    files = [file for folder in ("neurogen", "integrations", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    found = {str(file.relative_to(ROOT)) for file in files if any(written(file))}
    assert found <= QUOTED.keys(), "to_json of neurogen.files writes what a parser will read"


def test_values_of_other_types_are_looked_into() -> None:
    class Pair:
        values = (1.0, math.nan)

    assert strict(to_json({"a": Pair(), "b": math.inf}, default=lambda one: list(one.values))) == {
        "a": [1.0, None],
        "b": None,
    }
    assert finite({"a": [math.inf, 2, True, None, "x"]}) == {"a": [None, 2, True, None, "x"]}


@pytest.mark.parametrize("processors", ['banned-tokens(tokens="300, 301")', 'grammar(regex="[a-c]+")'])
def test_a_banned_candidate_is_explained(tiny_model_dir: Path, processors: str) -> None:
    fixed = ("explain", "-s", "topk", "--model", str(tiny_model_dir), "--prompt", "the", "--seed", "1", "--top", "500")
    outcome = neurogen_command(*fixed, "--max-new-tokens", "2", "--processors", processors, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    candidates = strict(outcome.stdout)["steps"][0]["candidates"]
    banned = [one for one in candidates if one["removed_by"] and not one["removed_by"].startswith("topk")]
    assert banned
    assert all(one["processed"] is None and math.isfinite(one["logit"]) for one in banned)


def test_readers_take_null_for_a_number_that_was_not_finite(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(to_json({"chunk": 1, "loss": math.inf}) + "\n")
    (line,) = read_metrics(metrics)
    assert line["chunk"] == 1
    assert math.isnan(line["loss"])
    assert _distance([(0, None), (1, 2.0)], torch.tensor([-math.inf, 2.5])) == 0.5
    assert math.isnan(_distance([(0, None)], torch.tensor([1.0])))
    again = Quartiles.model_validate_json(to_json(Quartiles(median=math.nan, q1=1, q3=2).model_dump()))
    assert math.isnan(again.median)
    recording = tmp_path / "run.jsonl"
    step = {"index": 0, "sample": 0, "token": 3, "logits": "", "top": [[3, 1.0], [4, -math.inf]]}
    recording.write_text(to_json({"neurogen_recording": 1}) + "\n" + to_json(step) + "\n")
    assert read_recording(recording).steps[0, 0][0]["top"] == [[3, 1.0], [4, None]]


def test_names_that_are_no_numbers_are_texts() -> None:
    value = {math.nan: 1, math.inf: [{-math.inf: math.nan}], 2.5: 3, None: 4}
    assert json.loads(to_json(value)) == {"nan": 1, "inf": [{"-inf": None}], "2.5": 3, "null": 4}
