"""Checks of models that callers made themselves: what is missing is reported at once, in one paragraph."""

from __future__ import annotations

import inspect
from typing import Any

from neurogen.contract.parameters import is_whole
from neurogen.errors import ModelError

__all__ = ["check_causal_lm", "check_loaded", "logits_of"]

CAUSAL_LM = (
    "a causal language model as AutoModelForCausalLM of transformers gives it: a torch.nn.Module with weights, whose "
    "forward takes input_ids and returns an object with logits, and whose config has a vocab_size"
)


def check_causal_lm(model: Any, who: str) -> int:
    """Refuse what cannot be trained as a language model.

    Args:
        model: what was given.
        who: the class or function that needs it, to begin a sentence: "Trainer".

    Returns:
        the size of its vocabulary.

    Raises:
        ModelError: it is no module, or lacks what a causal language model has; the message says what.
    """
    vocab_size = _vocab_size(model)
    lacking = _lacking(model, vocab_size)
    if lacking is None:
        return int(vocab_size)
    hint = " Give its attribute model." if _is_module(getattr(model, "model", None)) and not _is_module(model) else ""
    raise ModelError(f"{who} needs {CAUSAL_LM}. Got {_named(model)}, which {lacking}.{hint}")


def check_loaded(model: Any, who: str, *names: str, otherwise: str = "") -> None:
    """Refuse anything that is not a model as `neurogen.models.load_model` returns it.

    Args:
        model: what was given.
        who: the class or function that needs it, to begin a sentence: "Runner".
        names: the attributes that are used.
        otherwise: a sentence that says what to use with other models.

    Raises:
        ModelError: one of them is missing.
    """
    lacking = [name for name in names if not hasattr(model, name)]
    if lacking:
        raise ModelError(
            f"{who} needs a model with its tokenizer, as neurogen.models.load_model(NAME) gives it. Got "
            f"{_named(model)}, which has no {lacking[0]}.{otherwise and ' '}{otherwise}"
        )


def logits_of(output: Any, model: Any, who: str) -> Any:
    """The logits [batch, positions, vocab] in what a model's forward has returned.

    Raises:
        ModelError: there are no logits, or they are probabilities.
    """
    from neurogen.models.probabilities import are_probabilities

    logits = getattr(output, "logits", None)
    if logits is None or logits.ndim != 3:
        found = "no logits" if logits is None else f"logits {list(logits.shape)}"
        raise ModelError(
            f"{who} needs {CAUSAL_LM}. The forward of {_named(model)} returned {found}; they must be [batch, "
            "positions, vocab]."
        )
    if are_probabilities(logits.flatten(0, 1)):
        raise ModelError(
            f"{who} needs logits, and the forward of {_named(model)} returned probabilities: each row sums to 1. The "
            "loss takes the softmax itself, so that it would be taken twice and hardly anything be learnt. Return the "
            "logits from before the softmax."
        )
    return logits


def _lacking(model: Any, vocab_size: Any) -> str | None:
    """What a model lacks, as the end of a sentence; None where it lacks nothing."""
    if not _is_module(model):
        return "is no torch.nn.Module"
    if not is_whole(vocab_size, range(1, 2**63)):
        return "has no config with a vocab_size"
    if next(model.parameters(), None) is None:
        return "has no weights"
    rows = _embedded_ids(model)
    if rows is not None and rows < vocab_size:
        return f"has a vocab_size of {vocab_size:,} in its config and embeddings of {rows:,} ids"
    parameters = inspect.signature(model.forward).parameters.values()
    if not any(one.name == "input_ids" or one.kind is one.VAR_KEYWORD for one in parameters):
        return "takes no input_ids"
    return None


def _embedded_ids(model: Any) -> int | None:
    """How many ids its input embeddings have, where it says so: a larger one would be read outside memory on CUDA."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _is_module(model: Any) -> bool:
    import torch

    return isinstance(model, torch.nn.Module)


def _vocab_size(model: Any) -> Any:
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    return getattr(text_config, "vocab_size", None)


def _named(model: Any) -> str:
    return "a text" if isinstance(model, str) else f"{type(model).__module__}.{type(model).__qualname__}"
