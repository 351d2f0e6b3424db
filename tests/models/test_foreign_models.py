"""Models of other kinds that are handed to the library: an error says what is needed, and what was given."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import neurogen
from neurogen import ModelError
from neurogen.diagnosis.compare import compare
from neurogen.diagnosis.diagnose import diagnose_model
from neurogen.diagnosis.explain import explain
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.text.conversation import Conversation
from neurogen.text.generation import Prompt
from neurogen.text.runner import Runner
from neurogen.training.trainer import Trainer

CONFIG = SimpleNamespace(vocab_size=10)


class NoIds(nn.Module):
    config = CONFIG

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return x


class NoWeights(nn.Module):
    config = CONFIG

    def forward(self, input_ids: Any) -> Any:
        return input_ids


class Hidden(NoIds):
    """As the base models of transformers, which return hidden states."""

    def forward(self, input_ids: Any, use_cache: bool = True) -> Any:
        return SimpleNamespace(last_hidden_state=self.layer(torch.zeros(*input_ids.shape, 2)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), r"Got torch\.nn\.modules\.linear\.Linear, which has no config with a vocab_size"),
        (NoIds(), "NoIds, which takes no input_ids"),
        (NoWeights(), "NoWeights, which has no weights"),
        ("starter", "Got a text, which is no torch.nn.Module"),
        (None, "NoneType, which is no torch.nn.Module"),
    ],
)
def test_a_trainer_says_what_it_needs(model: Any, message: str) -> None:
    with pytest.raises(ModelError, match=rf"^Trainer needs a causal language model .*{message}"):
        Trainer(model)


def test_a_trainer_is_given_the_module_and_not_what_load_model_gives(tiny: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"is no torch\.nn\.Module\. Give its attribute model\.$"):
        Trainer(tiny)


def test_a_model_that_returns_no_logits_is_refused() -> None:
    with pytest.raises(ModelError, match=r"The forward of .*Hidden returned no logits; they must be \[batch"):
        Trainer(Hidden()).train_step([1, 2], [2, 3])


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "starter", None])
def test_what_decodes_or_diagnoses_says_what_it_needs(model: Any) -> None:
    greedy = neurogen.load_sampler("greedy")
    for who, call in {
        "Runner": lambda: Runner(model, greedy),
        "diagnose_model": lambda: diagnose_model(model),
        "compare": lambda: compare(model, [greedy], [Prompt(0, "a")]),
        "Conversation": lambda: Conversation(model, greedy),
    }.items():
        with pytest.raises(
            ModelError, match=rf"^{who} needs a model with its tokenizer, as neurogen\.models\.load_model"
        ):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match="which has no"):
        explain(model, greedy, "a")


class Wrapped(nn.Module):
    """A model whose logits are changed on their way out."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach) -> None:
        super().__init__()
        self.model: Any = load_model("starter", device="cpu", dtype="float32").model
        self.config = self.model.config
        self.change = change

    def forward(self, input_ids: Any, **arguments: Any) -> Any:
        return SimpleNamespace(logits=self.change(self.model(input_ids=input_ids, **arguments).logits))


def test_logits_that_no_gradient_can_come_from_are_refused() -> None:
    trainer = Trainer(Wrapped())
    with pytest.raises(ModelError, match=r"The logits depend on no weight .*detach\(\)"):
        trainer.train_step([5, 17, 3], [17, 3, 9])
    trainer = Trainer(Wrapped(lambda logits: logits))
    with torch.no_grad(), pytest.raises(ModelError, match=r"outside torch\.no_grad\(\)"):
        trainer.train_step([5, 17, 3], [17, 3, 9])
    assert trainer.train_step([5, 17, 3], [17, 3, 9]).gradient_norm > 0


def test_a_config_of_more_ids_than_there_are_embeddings_is_refused() -> None:
    """Ids in between would be read outside the embeddings, which on CUDA ends the process's use of the card."""
    model = load_model("starter", device="cpu", dtype="float32").model
    model.config.vocab_size = 5000
    with pytest.raises(ModelError, match=r"a vocab_size of 5,000 in its config and embeddings of 2,048 ids"):
        Trainer(model)
