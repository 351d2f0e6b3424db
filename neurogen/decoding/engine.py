"""Token ids to token ids: continuous decoding of many sequences with one model and one sampler. Knows no text.

The loop is `continuous.py`; `batch.py` holds the rows and their tensors, `kvcache.py` their keys and values.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from neurogen.decoding.batch import Batch
from neurogen.decoding.continuous import ContinuousEngine, check_request
from neurogen.decoding.request import FinishReason, Request, Step, TokenLogprobs
from neurogen.models.kvcache import check_cache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.decoding.request import DecodableModel, DecodingEngine, Observer
    from neurogen.models.language_model import LanguageModel

__all__ = ["Engine", "FinishReason", "Request", "Step", "TokenLogprobs", "engine_for"]


class Engine(ContinuousEngine):
    """Decodes requests with a model and a sampler.

    A sequence's tokens do not depend on what is decoded beside it, up to the rounding of the model's own arithmetic,
    which may differ between batch sizes. To be used from one thread at a time.

    Args:
        model: gives the logits.
        sampler: chooses the tokens.
        batch_size: the most sequences that are decoded together.
        observer: is shown every step; see `neurogen.decoding.selection.Observer`.

    Attributes:
        vocab_size: ids from here on have no text and are never drawn, though the model's logits may be wider.

    Raises:
        ParameterError: `batch_size` is below 1.
        ModelError: the model's memory is not keys and values.
    """

    def __init__(
        self, model: LanguageModel, sampler: Sampler, *, batch_size: int = 8, observer: Observer | None = None
    ) -> None:
        super().__init__(model, sampler, batch_size)
        check_cache(model)
        self.model = model
        self.observer = observer

    def _new_batch(self) -> Batch:
        return Batch(self.model, self.sampler, self.vocab_size, self.observer)

    def _check(self, request: Request) -> None:
        check_request(request, self.model)


def engine_for(
    model: DecodableModel, sampler: Sampler, *, batch_size: int = 8, observer: Observer | None = None
) -> DecodingEngine:
    """The engine that decodes a model with a sampler: the model's own where it has one, as those of llama.cpp have."""
    make = getattr(model, "engine", None) or partial(Engine, cast("LanguageModel", model))
    engine: DecodingEngine = make(sampler, batch_size=batch_size, observer=observer)
    return engine
