"""Probabilities where logits are expected: told apart, measured as what they are, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diagnosis_helpers import confident, random_logits, text_like
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from neurogen import ModelError, ParameterError
from neurogen.cli.diagnose import command
from neurogen.diagnosis.diagnose import diagnose_logits, diagnose_model
from neurogen.diagnosis.health import cross_entropy, measure
from neurogen.models.language_model import load_model
from neurogen.models.probabilities import are_probabilities, kind_of
from neurogen.training.trainer import Trainer

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Softmaxed(LlamaForCausalLM):
    """A model whose forward ends with a softmax, as many a first model does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.softmax(-1)
        return output


def right_at_43_percent(vocab: int = 50) -> tuple[Tensor, Tensor]:
    targets = text_like(400, vocab)
    chosen = torch.where(torch.arange(400) % 100 < 43, targets, (targets + 1) % vocab)
    return confident(targets, chosen, 0.6, vocab), targets


def saturated(vocab: int = 50) -> tuple[Tensor, Tensor]:
    targets = text_like(400, vocab)
    return confident(targets, (targets + 1) % vocab, 0.998, vocab), targets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("make", "verdict"), [(right_at_43_percent, "healthy"), (saturated, "saturated")])
def test_probabilities_have_the_verdict_of_their_logits(make: Any, verdict: str, dtype: torch.dtype) -> None:
    logits, targets = make()
    of_logits = diagnose_logits(logits, targets)
    found = diagnose_logits(logits.softmax(-1).to(dtype), targets)
    assert (of_logits.verdict, found.verdict) == (verdict, verdict)
    assert found.health.loss == pytest.approx(of_logits.health.loss, rel=0.01)
    assert found.health.accuracy == of_logits.health.accuracy
    assert found.health.top1_probability == pytest.approx(of_logits.health.top1_probability, rel=0.01)
    assert "The rows hold probabilities" in " ".join(found.reasons)
    assert "probabilities (" not in " ".join(of_logits.reasons)
    assert (of_logits.to_json()["logits_are"], found.to_json()["logits_are"]) == ("logits", "probabilities")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [2, 50, 5000])
@pytest.mark.parametrize("scale", [0.01, 3.0, 300.0])
def test_every_softmax_is_recognised(scale: float, vocab: int, dtype: torch.dtype) -> None:
    logits = torch.randn(20, vocab, generator=torch.Generator().manual_seed(1)) * scale
    probabilities = logits.softmax(-1).to(dtype)
    assert kind_of(probabilities) == kind_of(probabilities.float()) == "probabilities"
    assert are_probabilities(probabilities)
    for other in (logits, probabilities.log(), logits.abs(), probabilities * 1.1, probabilities + 1):
        assert kind_of(other) == "logits"
        assert not are_probabilities(other)


def test_probabilities_that_sum_to_1_within_a_hundredth_are_recognised() -> None:
    probabilities = random_logits()[0].softmax(-1)
    for factor in (0.99, 1.01):
        assert kind_of((probabilities * factor).half()) == "probabilities"


def test_rows_that_are_not_finite_do_not_hide_what_the_others_are() -> None:
    logits, targets = right_at_43_percent()
    probabilities = logits.softmax(-1)
    probabilities[:60] = torch.nan
    found = diagnose_logits(probabilities, targets)
    assert found.verdict == "broken"
    assert found.health.accuracy == diagnose_logits(logits[60:], targets[60:]).health.accuracy
    assert "60 of 400 rows have no distribution" in found.reasons[0]


def test_rows_of_both_kinds_are_refused_unless_it_is_said_what_they_are() -> None:
    logits, targets = right_at_43_percent()
    mixed = torch.cat([logits[:200].softmax(-1), logits[200:]])
    with pytest.raises(ParameterError, match=r"of one kind: 200 of 400 rows are probabilities .*--logits-are logits"):
        diagnose_logits(mixed, targets)
    assert diagnose_logits(mixed, targets, logits_are="logits").measures.kind == "logits"
    with pytest.raises(ParameterError, match=r"no probabilities: 200 of 400 rows"):
        diagnose_logits(mixed, targets, logits_are="probabilities")
    with pytest.raises(ParameterError, match="logits_are must be auto, logits, probabilities, got 'log'"):
        diagnose_logits(mixed, targets, logits_are="log")  # type: ignore[arg-type]


def test_one_hot_rows_are_certain_and_their_zeros_count_as_the_smallest_number() -> None:
    _, targets = right_at_43_percent()
    wrong = torch.arange(400) % 4 > 0
    one_hot = torch.nn.functional.one_hot(torch.where(wrong, (targets + 1) % 50, targets), 50)
    found = diagnose_logits(one_hot.float(), targets)
    assert (found.verdict, found.health.accuracy, found.health.top1_probability) == ("saturated", 0.25, 1)
    assert found.health.loss == pytest.approx(0.75 * 103.28, abs=0.01)  # -log(2**-149), the least of float32
    assert "At 300 of 400 rows the right token has the probability 0" in " ".join(found.reasons)
    assert diagnose_logits(one_hot.float(), targets, logits_are="logits").measures.kind == "logits"
    right = diagnose_logits(torch.nn.functional.one_hot(targets, 50).half(), targets)
    assert (right.verdict, right.health.loss) == ("healthy", 0)


def test_the_command_says_it_and_can_be_told(tmp_path: Path) -> None:
    logits, targets = right_at_43_percent()
    path = str(tmp_path / "p.safetensors")
    save_file({"logits": logits.softmax(-1), "targets": targets}, path)
    printed = CliRunner().invoke(command, ["--logits", path])
    assert printed.stdout.splitlines()[0] == f"{path}: healthy"
    assert "The rows hold probabilities" in printed.stdout
    kinds = {}
    for said in ("auto", "probabilities", "logits"):
        found = json.loads(CliRunner().invoke(command, ["--logits", path, "--json", "--logits-are", said]).stdout)
        kinds[said] = (found["verdict"], found["logits_are"])
    assert kinds == {
        "auto": ("healthy", "probabilities"),
        "probabilities": ("healthy", "probabilities"),
        "logits": ("flat", "logits"),
    }


def test_a_model_that_returns_probabilities_is_diagnosed_as_if_it_returned_logits(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(2000)  # type: ignore[no-untyped-call]
    wanted = diagnose_model(model, max_tokens=100)
    model.model.__class__ = Softmaxed
    found = diagnose_model(model, max_tokens=100)
    assert (found.verdict, wanted.verdict) == ("saturated", "saturated")
    assert found.health.accuracy == wanted.health.accuracy
    assert "The positions hold probabilities" in " ".join(found.reasons)
    assert found.next_steps[0].startswith("Let the model's forward return logits")
    assert diagnose_model(model, max_tokens=100, logits_are="logits").measures.kind == "logits"


def test_training_on_probabilities_is_refused_at_the_first_step() -> None:
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = Softmaxed(config)
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer = Trainer(model, learning_rate=1e-3)
    with pytest.raises(ModelError, match=r"Softmaxed returned probabilities.* softmax itself, so that it would"):
        trainer.train_step([5, 17, 3], [17, 3, 9])
    assert trainer.step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ModelError, match="returned probabilities"):
        trainer.evaluate([(torch.tensor([[5, 17]]), torch.tensor([[17, 3]]))])


@pytest.mark.parametrize("dtype", DTYPES)
def test_measures_of_training_refuse_probabilities(dtype: torch.dtype) -> None:
    logits, targets = right_at_43_percent()
    for function in (measure, cross_entropy):
        with pytest.raises(ParameterError, match="before the softmax, got probabilities"):
            function(logits.softmax(-1).to(dtype), targets)
        function(logits.softmax(-1).log().to(dtype), targets)
    assert measure(torch.tensor([[0.0, 1.0]]), torch.tensor([1])).vocab_size == 2  # too little to tell
