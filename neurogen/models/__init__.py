"""Token ids to logits: models, their weights, their tokenizers, and the names under which they are known.

A model knows nothing of the loop that runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen._lazy import names_of

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel, load_model, locate_model, resolve_device

__all__ = ["LanguageModel", "load_model", "locate_model", "resolve_device"]

__getattr__ = names_of(__name__, "language_model")
