"""Speculative decoding with any sampler that has no memory: a small model drafts, the large one checks many at once.

Knows no text. The output is distributed as if the target alone had been sampled from (Leviathan et al., "Fast Inference
from Transformers via Speculative Decoding", ICML 2023; Chen et al., "Accelerating Large Language Model Decoding with
Speculative Sampling", 2023), since p and q there are the sampler's own distributions of the target's and of the draft's
logits. Which drafts are accepted is computed in `rejection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.contract.mistakes import where_written
from neurogen.contract.sampler import NO_TOKEN
from neurogen.decoding.batch import Batch, sampler_arguments
from neurogen.decoding.engine import Engine, RequestQueue, emit
from neurogen.decoding.forward import ModelForward
from neurogen.decoding.rejection import accepted_counts, draw_residual
from neurogen.decoding.request import Request, RequestState, SampledToken, Step, check_count, check_request
from neurogen.decoding.sampled import sampled_tokens
from neurogen.errors import ContractError, ParameterError
from neurogen.models.kvcache import check_cache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.models.language_model import LanguageModel

__all__ = ["Counts", "SpeculativeEngine"]

Tokens = tuple[Sequence[RequestState], Sequence[SampledToken]]
"""Rows, and the next token of each."""


@dataclass
class Counts:
    """How drafting has gone so far.

    Attributes:
        drafted, accepted: tokens that the draft proposed, and those of them that the target took.
        passes: forward passes of the target, those over prompts excepted, counted once for each sequence in them.
        tokens: what these passes gave.
    """

    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    tokens: int = 0


class DraftedForward:
    """The forward passes of a model and its draft over the same rows.

    A row's newest token has been read by neither, the one before it not by the draft. A round of drafting begins with
    them, so that after it both models can forget what was not accepted.
    """

    def __init__(self, model: LanguageModel, draft: LanguageModel) -> None:
        self.target, self.draft = ModelForward(model), ModelForward(draft)

    def has_room(self, row: RequestState, before: int) -> bool:
        """Always True: the KV caches grow as needed."""
        return True

    def prefill(self, new: Sequence[RequestState], upcoming: tuple[int, ...] | None) -> Tensor:
        """Run the prompts with both models; the target's logits. See `ForwardPass.prefill`."""
        logits = self.target.prefill(new, upcoming)
        self.draft.prefill(new, upcoming)
        before = len(self.draft.cache.padding) - len(new)
        self.draft.cache.crop([0] * before + [1] * len(new))
        return logits

    def decode(self, ids: Tensor) -> Tensor:
        """Run tokens [rows, new] with the target; the logits after each of them."""
        return self.target.cache.forward_all(ids)

    def decode_draft(self, ids: Tensor) -> Tensor:
        """Run tokens [rows, new] with the draft; the logits after the last of them."""
        return self.draft.cache.forward_all(ids)[:, -1]

    def crop(self, counts: Sequence[int]) -> None:
        """Forget the newest `counts[i]` tokens of row i."""
        self.target.cache.crop(counts)
        self.draft.cache.crop(counts)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `ForwardPass.keep_rows`."""
        self.target.keep_rows(rows)
        self.draft.keep_rows(rows)


class SpeculativeEngine(Engine):
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
        self.draft = draft
        super().__init__(model, sampler, batch_size=batch_size)
        check_count("draft_tokens", draft_tokens)
        _check_sampler(sampler)
        _check_pair(model, draft)
        self.draft_tokens = draft_tokens
        self.context_length = min(model.context_length, draft.context_length)
        self.counts = Counts()

    @property
    def acceptance_rate(self) -> float:
        """The share of the drafted tokens that the target has accepted; 0 if none was drafted."""
        return self.counts.accepted / max(self.counts.drafted, 1)

    @property
    def tokens_per_pass(self) -> float:
        """How many tokens a sequence got from a forward pass of the target, on average; 1 without a draft."""
        return self.counts.tokens / self.counts.passes if self.counts.passes else 1.0

    def step(self, batch: Batch, queue: RequestQueue) -> Iterator[Step]:
        """The next tokens of the rows: the first of new rows, or one to `draft_tokens` + 1 of every row.

        1. Admit: as in `Engine.step`; both models run the prompts.
        2. Forward: the draft runs over its own tokens, one at a time; the target over all of them in one pass.
        3. Process: nothing, since processors are refused.
        4. Sample: a row gets its drafts up to the first that is not accepted, and one token more.
        5. Emit: the tokens leave as steps, one of each row, then the next of each row that has more.
        6. Retire: rows that are finished or cancelled leave the batch.
        """
        new, upcoming = self._admit(batch, queue)
        for rows, tokens in [self._first(batch, new, upcoming)] if new else self._round(batch):
            yield from emit(rows, tokens)
        batch.retire()

    @torch.inference_mode()
    def _first(self, batch: Batch, new: Sequence[RequestState], upcoming: tuple[int, ...] | None) -> Tokens:
        """The first tokens of new rows, drawn from the target alone."""
        device = self.model.device
        before = [batch.ids] if batch.rows else []
        logits = batch.prefill(new, upcoming)
        ids = self.sampler.sample(logits, check=False, **sampler_arguments(self.sampler, new, device))
        last = torch.tensor([row.prompt[-1] for row in new], device=device)
        batch.ids = torch.cat([*before, torch.stack([last, ids.clamp(min=0)], dim=1)])
        return new, sampled_tokens(self.sampler, new, ids, logits, logits)

    def _round(self, batch: Batch) -> Iterator[Tokens]:
        """Steps 2 to 4, for rows that have a token each."""
        ids, accepted, logits = self._next(batch)
        rows, before = list(batch.rows), sum(row.produced for row in batch.rows)
        for column in range(max(accepted) + 1):
            having = [i for i, count in enumerate(accepted) if count >= column]
            left, index = [rows[i] for i in having], torch.tensor(having, device=ids.device)
            following = logits[index, column]
            yield left, sampled_tokens(self.sampler, left, ids[index, column], following, following)
        self.counts.passes += len(rows)
        self.counts.tokens += sum(row.produced for row in rows) - before

    @torch.inference_mode()
    def _next(self, batch: Batch) -> tuple[Tensor, list[int], Tensor]:
        """Draft and check.

        Returns:
            ids, int64 [rows, drafts + 1]; how many drafts of each row were accepted: as many ids, and one more, count;
            the target's logits that they were chosen from, [rows, drafts + 1, vocab].
        """
        models = batch.forward_pass
        assert isinstance(models, DraftedForward)
        arguments = sampler_arguments(self.sampler, batch.rows, self.model.device)
        wanted = [self._wanted(row) for row in batch.rows]
        drafted, draft_logits = self._drafted(models, batch.ids, max(wanted), arguments)
        # Where the draft has no valid distribution, a row's drafts end.
        valid = (drafted >= 0).long().cumprod(dim=1).sum(dim=1)
        counted = torch.minimum(torch.tensor(wanted, device=self.model.device), valid)
        known = torch.cat([batch.ids, drafted.clamp(min=0)], dim=1)
        logits = models.decode(known[:, 1:])[:, :, : self.vocab_size]
        accepted, last = self._rejected(drafted, counted, draft_logits, logits, arguments)
        ids = torch.cat([drafted, last[:, None]], dim=1).scatter(1, accepted[:, None], last[:, None])
        batch.ids = torch.cat([known.gather(1, accepted[:, None] + 1), last[:, None].clamp(min=0)], dim=1)
        taken = accepted.tolist()
        if max(wanted):
            models.crop([max(wanted) - count for count in taken])
        self.counts.drafted += int(counted.sum())
        self.counts.accepted += sum(taken)
        return ids, taken, logits

    def _wanted(self, row: RequestState) -> int:
        """How many drafts a row can use, regardless of the other rows; one more token comes from the target."""
        return min(self.draft_tokens, row.request.max_new_tokens - row.produced - 1)

    def _drafted(
        self, models: DraftedForward, ids: Tensor, drafts: int, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Let the draft run ahead.

        Returns:
            ids, int64 [rows, drafts], -1 where the draft's logits have no valid distribution; these logits,
            [rows, drafts, vocab].
        """
        position = arguments["position"]
        if not drafts:
            return ids[:, :0], torch.empty((len(ids), 0, self.vocab_size), device=ids.device)
        drafted, logits = [], []
        for draft in range(drafts):
            behind = models.decode_draft(ids)[:, : self.vocab_size]
            sampled = self.sampler.sample(behind, check=False, **(arguments | {"position": position + draft}))
            ids = sampled.clamp(0, self.vocab_size - 1)[:, None]
            drafted.append(sampled)
            logits.append(behind)
        found = torch.stack(drafted, dim=1)
        self._check_ids(found)
        return found, torch.stack(logits, dim=1)

    def _rejected(
        self, drafted: Tensor, counted: Tensor, draft_logits: Tensor, logits: Tensor, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Which drafts the target takes (Leviathan et al.), and what follows them.

        Returns:
            int64 [rows], how many drafts were accepted; int64 [rows], the token after them: drawn from the target
            where no draft was left, else from what the draft did not cover; -1 where the target has no distribution.
        """
        seed, position = arguments["seed"], arguments["position"]
        drafts, row = drafted.shape[1], torch.arange(len(drafted), device=drafted.device)
        p, q = self._probs(logits, arguments), self._probs(draft_logits, arguments)
        index = drafted.clamp(min=0)[:, :, None]
        p_drafted, q_drafted = p[:, :drafts].gather(2, index)[:, :, 0], q.gather(2, index)[:, :, 0]
        accepted = accepted_counts(p_drafted, q_drafted, drafted, counted, seed, position)
        behind, place = logits[row, accepted], position + accepted
        plain = self.sampler.sample(behind, check=False, **(arguments | {"position": place}))
        if not drafts:
            return accepted, plain
        residual = draw_residual(p[row, accepted], q[row, accepted.clamp(max=drafts - 1)], seed, place)
        return accepted, torch.where(accepted == counted, plain, residual)

    def _probs(self, logits: Tensor, arguments: dict[str, Any]) -> Tensor:
        """What the sampler makes of [rows, drafts, vocab] with the rows' own parameters, float32; 0 where invalid."""
        rows, drafts, vocab = logits.shape
        params: dict[str, Any] = {
            name: value.repeat_interleave(drafts) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
            if name not in ("seed", "position")
        }
        return self.sampler.probs(logits.reshape(-1, vocab), check=False, **params).view(rows, drafts, vocab)

    def _check_ids(self, drafted: Tensor) -> None:
        least, most = int(drafted.min()), int(drafted.max())
        if least < NO_TOKEN or most >= self.vocab_size:
            wrong = least if least < NO_TOKEN else most
            raise ContractError(
                f"Sampler {self.sampler.name!r} ({self.sampler.origin}) returned the id {wrong}; ids of this "
                f"vocabulary are 0 to {self.vocab_size - 1}.{where_written(self.sampler, 'sample')}"
            )

    def _forward_pass(self) -> DraftedForward:
        return DraftedForward(self.model, self.draft)

    def _check_model(self) -> None:
        check_cache(self.model)
        check_cache(self.draft)

    def _check_request(self, request: Request) -> None:
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
    """How the vocabularies differ, in words; None if they do not."""
    size, other = _vocab_size(model), _vocab_size(draft)
    if size != other:
        return f"it has {other:,} tokens, not {size:,}"
    ours, theirs = model.tokenizer, draft.tokenizer
    for token in range(size if ours is not theirs else 0):
        if ours.token_text(token) != theirs.token_text(token):
            return f"id {token} is {theirs.token_text(token)!r} there, and {ours.token_text(token)!r} here"
    return None
