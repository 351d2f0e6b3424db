"""Documents, a configuration and options for short training runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

WORDS = ("the", "little", "girl", "saw", "a", "red", "ball", "in", "park", "and", "she", "was", "happy", "to", "play")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "stories.jsonl"
    chance = random.Random(3)
    texts = [" ".join(chance.choices(WORDS, k=chance.randrange(5, 60))) for _ in range(120)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand parameters."""
    file = tmp_path_factory.mktemp("config") / "config.json"
    values = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 32,
    }  # fmt: skip
    file.write_text(json.dumps(values))
    return file


@pytest.fixture
def options(data: Path, config: Path, tiny_model_dir: Path) -> dict[str, Any]:
    return {
        "data": (str(data),),
        "tokenizer": str(tiny_model_dir / "tokenizer.model"),
        "config": str(config),
        "tokens_per_chunk": 128,
        "context": 16,
        "max_chunks": 12,
        "save_every": 4,
        "learning_rate": 1e-2,
        "device": "cpu",
        "hold_out": 0,
    }
