"""Attention within documents: the logits of a document do not depend on what is packed before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from neurogen import ModelError, ParameterError
from neurogen.training.document_mask import check_document_mask, positions_within_documents
from neurogen.training.options import TrainingOptions
from neurogen.training.run import TrainingRun
from neurogen.training.trainer import Trainer

VOCAB, EOS = 40, 2
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}
LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
ATTENTION = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 3},
    "qwen3": {**LLAMA, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB},
}
RECURRENT = {"mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB, "state_size": 8}}


def model(kind: str, values: dict[str, Any], attention: str = "eager") -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**values)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def packed(*lengths: int) -> torch.Tensor:
    """Documents of so many ids, the separator before each, as one sequence [1, ids]."""
    numbers = torch.Generator().manual_seed(1)
    documents = [torch.randint(3, VOCAB, (length,), generator=numbers) for length in lengths]
    return torch.cat([part for document in documents for part in (torch.tensor([EOS]), document)])[None]


def test_places_begin_anew_at_each_document() -> None:
    ids = torch.tensor([[7, 8, EOS, 5, 6, EOS, EOS, 9], [EOS, 1, 1, 1, 1, 1, 1, EOS]])
    found = positions_within_documents(ids, EOS)
    assert found.tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 0]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ATTENTION)
@torch.no_grad()
def test_the_logits_of_a_packed_document_are_those_of_the_document_alone(kind: str, attention: str) -> None:
    net = model(kind, ATTENTION[kind], attention)
    check_document_mask(net, EOS, VOCAB)
    ids = packed(5, 1, 9)
    places = positions_within_documents(ids, EOS)
    together = net(input_ids=ids, position_ids=places, use_cache=False).logits
    for first, last in ((0, 6), (6, 8), (8, 18)):
        alone = net(input_ids=ids[:, first:last], use_cache=False).logits
        assert torch.allclose(together[:, first:last], alone, atol=1e-5)


@pytest.mark.parametrize("kind", RECURRENT)
def test_an_architecture_that_sees_earlier_documents_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"Attention cannot be kept within documents with MambaForCausalLM"):
        check_document_mask(model(kind, RECURRENT[kind]), EOS, VOCAB)


def test_a_trainer_with_a_separator_measures_documents_alone_and_leaves_the_mode_of_the_model() -> None:
    ids = packed(6, 7)
    together = Trainer(model("llama", LLAMA), document_separator=EOS, learning_rate=1e-3, warmup_steps=0)
    assert together.model.training
    alone = Trainer(model("llama", LLAMA), learning_rate=1e-3, warmup_steps=0)
    targets = torch.cat([ids[:, 1:], torch.tensor([[EOS]])], dim=1)
    losses = [alone.evaluate([(ids[:, a:b], targets[:, a:b])]).loss * (b - a) for a, b in ((0, 7), (7, 15))]
    found = together.evaluate([(ids, targets)]).loss
    assert found == pytest.approx(sum(losses) / 15, rel=1e-6)
    assert abs(found - alone.evaluate([(ids, targets)]).loss) > 1e-6
    step = together.train_step(ids, targets)
    assert step.loss == pytest.approx(found, rel=1e-6)


def test_a_run_keeps_attention_within_documents_and_a_resumed_one_goes_on_so(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    data = tmp_path / "data.jsonl"
    texts = (f"once upon a time there was {number}" for number in range(60))
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "num_key_value_heads": 2}',
        encoding="utf-8",
    )
    values: dict[str, Any] = {
        "data": (str(data),), "tokenizer": str(tiny_model_dir), "config": str(config), "context": 32, "hold_out": 0,
        "tokens_per_chunk": 64, "batch_size": 2, "max_chunks": 2, "device": "cpu",
    }  # fmt: skip
    losses = {}
    for mask in (True, False):
        run = TrainingRun(tmp_path / str(mask), TrainingOptions(document_mask=mask, **values))
        losses[mask] = [report.health.loss for report in run.chunks()]
        run.close()
    assert losses[True] != losses[False]
    resumed = TrainingRun(tmp_path / "True", resume=True, changes={"max_chunks": 3})
    assert resumed.trainer.options.document_separator == min(resumed.tokenizer.eos_ids)
    assert len(list(resumed.chunks())) == 1
    resumed.close()


@pytest.mark.parametrize("separator", [-1, 40, 2**40])
def test_a_separator_outside_the_vocabulary_reaches_no_kernel(separator: int) -> None:
    model = torch.nn.Linear(2, 2)  # which would fail otherwise than in the way that is asked for
    with pytest.raises(ParameterError, match=r"document_separator must be in \[0, 39\], the model's vocabulary, got "):
        check_document_mask(model, separator, 40)
