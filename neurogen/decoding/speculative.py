"""Speculative decoding with any sampler that has no memory: a small model drafts, the large one checks many at once.

Knows no text. The rounds of drafting and checking are in `speculative_batch`. The output is distributed as if the
target alone had been sampled from (Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML
2023; Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling", 2023), since p and q there
are the sampler's own distributions of the target's and of the draft's logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen.decoding.continuous import ContinuousEngine, check_count, check_request
from neurogen.decoding.request import Request
from neurogen.decoding.speculative_batch import Counts, SpeculativeBatch
from neurogen.errors import ParameterError
from neurogen.models.kvcache import check_cache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.models.language_model import LanguageModel

__all__ = ["SpeculativeEngine"]


class SpeculativeEngine(ContinuousEngine):
    """Decodes requests with a model, a sampler, and a smaller model that runs ahead.

    A token's distribution is that of `Engine`; with a sampler that draws nothing, such as greedy, the
    tokens are equal too, up to the rounding of the model's arithmetic. Which tokens a seed gives does not depend on
    what is decoded beside it, but on the draft and on `draft_tokens`. To be used from one thread at a time.

    Args:
        model: the target, whose distribution the tokens follow.
        draft: proposes tokens; has the same vocabulary.
        sampler: chooses the tokens, from the logits of either.
        draft_tokens: how many the draft runs ahead, at most.
        batch_size: the most sequences that are decoded together.

    Attributes:
        vocab_size: ids from here on have no text and are never drawn.
        counts: of all that was decoded.

    Raises:
        ParameterError: a number below 1, a sampler with memory, models of different vocabularies or on different
            devices.
        ModelError: a model's memory is not keys and values.
    """

    def __init__(
        self,
        model: LanguageModel,
        draft: LanguageModel,
        sampler: Sampler,
        *,
        draft_tokens: int = 4,
        batch_size: int = 8,
    ) -> None:
        super().__init__(model, sampler, batch_size)
        check_count("draft_tokens", draft_tokens)
        _check_sampler(sampler)
        check_cache(model)
        check_cache(draft)
        _check_pair(model, draft)
        self.model = model
        self.draft = draft
        self.draft_tokens = draft_tokens
        self.context_length = min(model.context_length, draft.context_length)
        self.counts = Counts()

    @property
    def acceptance_rate(self) -> float:
        """Which share of the drafted tokens the target has accepted; 0 where none was drafted."""
        return self.counts.accepted / max(self.counts.drafted, 1)

    @property
    def tokens_per_pass(self) -> float:
        """How many tokens a sequence got from a forward pass of the target, on average; 1 without a draft."""
        return self.counts.tokens / self.counts.passes if self.counts.passes else 1.0

    def _new_batch(self) -> SpeculativeBatch:
        return SpeculativeBatch(
            self.model, self.draft, self.sampler, self.vocab_size, draft_tokens=self.draft_tokens, counts=self.counts
        )

    def _check(self, request: Request) -> None:
        check_request(request, self.model)
        try:
            check_request(request, self.draft)
        except ParameterError as error:
            raise ParameterError(f"The draft cannot follow this request. {error}", error.parameter) from None
        if request.processors:
            raise ParameterError(
                f"Speculative decoding takes no processors, and request {request.key!r} has "
                f"{', '.join(map(repr, request.processors))}: what they remember of a drafted token could not be taken "
                "back. Leave out the processors, or the draft.",
                "processors",
            )


def _vocab_size(model: LanguageModel) -> int:
    return min(model.vocab_size, model.tokenizer.vocab_size)


def _check_sampler(sampler: Sampler) -> None:
    if sampler.stateful:
        raise ParameterError(
            f"Speculative decoding takes samplers without memory, and {sampler.name!r} has one: what it remembers of a "
            "drafted token could not be taken back. Choose another sampler, or leave out the draft.",
            "sampler",
        )


def _check_pair(model: LanguageModel, draft: LanguageModel) -> None:
    """Refuse a draft whose ids mean something else, or that is elsewhere."""
    if draft.device != model.device:
        raise ParameterError(
            f"The draft {draft.name!r} is on {draft.device} and the model {model.name!r} on {model.device}: load both "
            "on one device.",
            "draft",
        )
    difference = _difference(model, draft)
    if difference:
        raise ParameterError(
            f"The draft {draft.name!r} has another vocabulary than the model {model.name!r}: {difference}. A draft "
            "must mean the same by every id: take a smaller model of the same family, with the same tokenizer.",
            "draft",
        )


def _difference(model: LanguageModel, draft: LanguageModel) -> str | None:
    """In words, in what the vocabularies differ; None where they do not."""
    size, other = _vocab_size(model), _vocab_size(draft)
    if size != other:
        return f"it has {other:,} tokens, not {size:,}"
    ours, theirs = model.tokenizer, draft.tokenizer
    for token in range(size if ours is not theirs else 0):
        if ours.token_text(token) != theirs.token_text(token):
            return f"id {token} is {theirs.token_text(token)!r} there, and {ours.token_text(token)!r} here"
    return None
