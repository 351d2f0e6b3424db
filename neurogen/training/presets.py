"""Models to train: a new one of a named size or a configuration file of transformers, or that of a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from neurogen.contract.tokenizer import Tokenizer
from neurogen.errors import DataError, ModelError
from neurogen.files import read_text
from neurogen.models.weights import load_weights, quiet_transformers
from neurogen.training.options import PRESETS, check_preset
from neurogen.training.randomness import seeded

__all__ = ["PRESETS", "check_config", "check_preset", "checkpoint_model", "model_config", "new_model"]

RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")


def check_config(file: str | Path, *, context: int, vocab_size: int) -> None:
    """Refuse a configuration that no model can be made from, before there is a tokenizer: tries one without memory.

    Args:
        file: see `model_config`.
        context: the most tokens the model will take.
        vocab_size: about as many as the tokenizer will have.

    Raises:
        ModelError: it is no configuration, or it cannot be used.
    """
    config = _from_file(Path(file), {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}, context)
    try:
        with torch.device("meta"):
            _model_of(config)
    except Exception as error:  # an architecture raises whatever its numbers lead to
        raise _unusable(Path(file), error) from None


def model_config(
    tokenizer: Tokenizer, *, context: int, preset: str = "tiny", file: str | Path | None = None
) -> PretrainedConfig:
    """The configuration of a new model.

    Args:
        tokenizer: gives vocabulary size and end-of-sequence.
        context: the most tokens the model will take.
        preset: a name in `PRESETS`.
        file: a configuration of transformers instead (config.json): any architecture it knows. Vocabulary and special
            ids are still the tokenizer's.

    Raises:
        ModelError: no such preset, or a file that is no configuration.
    """
    eos = min(tokenizer.eos_ids, default=None)
    shared: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.bos_id, "eos_token_id": eos}
    if file is not None:
        return _from_file(Path(file), shared, context)
    check_preset(preset)
    size = PRESETS[preset]
    return LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        **shared,
    )


def _from_file(file: Path, shared: dict[str, Any], context: int) -> PretrainedConfig:
    try:
        values = json.loads(read_text(file))
        kind = values.pop("model_type")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{file} is no model configuration ({type(error).__name__}: {error}). Give a transformers config.json, a "
            'JSON object with "model_type".'
        ) from None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(f"{file}: the installed transformers does not know the architecture {kind!r}.")
    try:
        config: PretrainedConfig = AutoConfig.for_model(kind, **{**values, **shared})
    except Exception as error:  # what an architecture makes of values that it does not take
        raise _unusable(file, error) from None
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions < context:
        raise ModelError(
            f"{file} allows {positions} positions and --context asks for {context}. Lower the context, or raise "
            "max_position_embeddings."
        )
    return config


def _unusable(file: Path, error: Exception) -> ModelError:
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    return ModelError(
        f"No causal language model can be made of {file}: {cause}. Give the config.json of a model that continues "
        "text, with numbers that fit together."
    )


def new_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model with fresh weights, float32, that depend on the configuration and the seed alone.

    Weights are normal with the configuration's `initializer_range`; those that write into the residual stream are
    divided by sqrt(2 * layers), as in GPT-2 (Radford et al., 2019), so that its variance does not grow with depth.
    """
    with seeded(seed, torch.device("cpu")):
        model = _model_of(config)
    layers = getattr(config, "num_hidden_layers", 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(RESIDUAL_OUTPUTS):
                weight.mul_(1 / math.sqrt(2 * layers))
    return model


def _model_of(config: PretrainedConfig) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM
    model: PreTrainedModel = loader.from_config(config, trust_remote_code=False, dtype=torch.float32)
    return model


def checkpoint_model(checkpoint: Path) -> PreTrainedModel:
    """The model of a checkpoint, in float32 on the CPU.

    Raises:
        DataError: it cannot be loaded.
    """
    try:
        with quiet_transformers():
            return load_weights(checkpoint, torch.device("cpu"), "float32")
    except ModelError as error:
        raise DataError(f"{error} Or remove that checkpoint, to go on from the one before.") from None
