"""Attention within documents: no token attends to an earlier document of its sequence.

A causal language model of transformers does this if `position_ids` start over at each document and no attention mask
is given (packed sequences). Whether a model does is tried once, before the first step: recurrent architectures and
those with masks of their own do not. Llama 3 was trained so (Grattafiori et al., 2024, "The Llama
3 Herd of Models", section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neurogen.errors import ModelError, ParameterError
from neurogen.models.foreign import logits_of

__all__ = ["check_document_mask", "positions_within_documents"]

TRIED_TOKENS = 6
"""How many tokens each of the two documents has that an architecture is tried with."""

TOLERANCE = 1e-4
"""Of logits, as a share of the largest: arithmetic in another order stays far below, another context far above."""


def positions_within_documents(ids: Tensor, separator: int) -> Tensor:
    """The place of each token in its document, from 0.

    Args:
        ids: int64 [batch, positions]; a document begins with `separator`, and one at the beginning of each sequence.
        separator: the id, as a rule that of the end of text.

    Returns:
        int64 [batch, positions], what a model takes as `position_ids`.
    """
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = torch.where(ids == separator, places, torch.zeros_like(places)).cummax(dim=1).values
    return places - begins


@torch.no_grad()
def check_document_mask(model: Any, separator: int, vocab_size: int) -> None:
    """Make sure that a model keeps attention within documents; it is tried with two of them.

    Args:
        model: of transformers; it may be on any device.
        separator: the id that begins a document.
        vocab_size: of the model.

    Raises:
        ModelError: what stands before a document changes the logits within it, or the model takes no positions.
        ParameterError: the separator is no id of the vocabulary.
    """
    if not 0 <= separator < vocab_size:
        raise ParameterError(
            f"document_separator must be in [0, {vocab_size - 1}], the model's vocabulary, got {separator}.",
            "document_separator",
        )
    trains = model.training
    model.eval()
    try:
        _try(model, separator, vocab_size)
    finally:
        model.train(trains)


def _try(model: Any, separator: int, vocab_size: int) -> None:
    numbers = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    words = torch.randint(vocab_size, (2, 2 * TRIED_TOKENS), generator=numbers)
    words[words == separator] = (separator + 1) % vocab_size
    words[:, TRIED_TOKENS] = separator
    words[1, TRIED_TOKENS:] = words[0, TRIED_TOKENS:]  # two beginnings, one second document
    ids = words.to(device)
    together = _logits(model, ids, separator)[:, TRIED_TOKENS:]
    alone = _logits(model, ids[:1, TRIED_TOKENS:], separator)
    allowed = TOLERANCE * float(alone.abs().max())
    if float((together - alone).abs().max()) > allowed:
        raise ModelError(
            f"Attention cannot be kept within documents with {type(model).__name__}: what stands before a document "
            "changes the logits within it. Leave out the document mask (--document-mask), or choose another "
            "architecture, such as Llama's."
        )


def _logits(model: Any, ids: Tensor, separator: int) -> Tensor:
    try:
        output = model(input_ids=ids, position_ids=positions_within_documents(ids, separator), use_cache=False)
    except TypeError as error:
        raise ModelError(
            f"Attention cannot be kept within documents with {type(model).__name__}, which takes no position_ids "
            f"({error}). Leave out the document mask (--document-mask)."
        ) from None
    logits: Tensor = logits_of(output, model, "Trainer")
    return logits.double()
