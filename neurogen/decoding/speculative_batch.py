"""The rounds of speculative decoding, for the sequences that are decoded together. Knows no text.

What is accepted is the affair of `rejection`, what the models have read that of `feed`, who is admitted that of
`speculative`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.contract.mistakes import where_written
from neurogen.contract.sampler import NO_TOKEN
from neurogen.decoding.batch import Prefill
from neurogen.decoding.continuous import Column
from neurogen.decoding.feed import Feed, take_back
from neurogen.decoding.rejection import accepted_counts, draw_residual
from neurogen.decoding.request import Row
from neurogen.decoding.selection import Selection
from neurogen.errors import ContractError
from neurogen.models.kvcache import KVBlock, new_cache

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.models.language_model import LanguageModel

__all__ = ["Counts", "SpeculativeBatch"]


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


class SpeculativeBatch:
    """The rows that are being decoded, and how far both models have read.

    Between rounds a row of L tokens, its prompt included, has L - 1 in the target's block and L - 2 in the draft's.

    Args:
        model, draft: the target, and what runs ahead of it.
        sampler: chooses the tokens, from the logits of either.
        vocab_size: ids from here on are never drawn.
        draft_tokens: how many tokens the draft runs ahead, at most.
        counts: is kept up to date.

    Attributes:
        rows: the sequences, in the order of the blocks' rows.
    """

    def __init__(
        self,
        model: LanguageModel,
        draft: LanguageModel,
        sampler: Sampler,
        vocab_size: int,
        *,
        draft_tokens: int,
        counts: Counts,
    ) -> None:
        self.rows: list[Row] = []
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._draft_tokens = draft_tokens
        self._counts = counts
        self._device = model.device
        self._prefill, self._draft_prefill = Prefill(model), Prefill(draft)
        self._target, self._draft = Feed(model, KVBlock(new_cache(), [])), Feed(draft, KVBlock(new_cache(), []))
        self._tail = torch.empty((0, 2), dtype=torch.int64, device=model.device)  # the last two ids of each row
        self._new_logits: Tensor | None = None  # behind the prompts of the last rows, which have no token yet

    @torch.inference_mode()
    def add(self, rows: Sequence[Row], upcoming: tuple[int, ...] | None) -> None:
        """Admit rows: both models read their prompts.

        Args:
            rows: the sequences.
            upcoming: the prompt that is likely asked for next.
        """
        prompts = [row.prompt for row in rows]
        block, self._new_logits = self._prefill(prompts, upcoming)
        draft_block, _ = self._draft_prefill(prompts, upcoming)
        for feed, new in ((self._target, block), (self._draft, take_back(draft_block, [1] * len(rows)))):
            if self.rows:
                feed.join(new)
            else:
                feed.block = new
        now = time.perf_counter()
        for row in rows:
            row.admitted = now
        self.rows += rows

    def has_room(self, row: Row, before: int) -> bool:
        """Always: keys and values grow as they must."""
        return True

    def read_on(self) -> None:
        """Nothing: a round begins with what both models have not read."""

    def columns(self) -> Iterator[Column]:
        """The first token of each row that was just admitted; where none was, what a round gives, column by column."""
        if self._new_logits is not None:
            logits, self._new_logits = self._new_logits, None
            yield self._begin(logits)
        else:
            yield from self._round()

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Take out the rows that are finished, with all that belongs to them."""
        keep = [i for i, row in enumerate(self.rows) if not row.finished]
        if len(keep) < len(self.rows):
            self.rows = [self.rows[i] for i in keep]
            self._tail = self._tail[self._column(keep)]
            self._target.select(keep)
            self._draft.select(keep)

    @torch.inference_mode()
    def _begin(self, logits: Tensor) -> Column:
        """The first tokens of the last rows, drawn from the target alone."""
        rows = self.rows[-len(logits) :]
        selection = self._selection(rows)
        drawn = selection.choose(logits)
        tail = torch.stack([self._column([row.prompt[-1] for row in rows]), selection.ids.clamp(min=0)], dim=1)
        self._tail = torch.cat([self._tail, tail])
        return rows, drawn

    def _round(self) -> Iterator[Column]:
        """The next tokens of every row, one to `draft_tokens` + 1 of them.

        1. Draft: the draft reads the last two tokens, then its own, one at a time.
        2. Check: the target reads the last token and all drafted ones in one pass.
        3. Reject: a row gets its drafts up to the first that is not accepted, and one token more.
        4. Take back: both models forget what was not accepted.
        """
        ids, accepted, logits = self._next()
        before = sum(row.produced for row in self.rows)
        for column in range(max(accepted) + 1):
            having = [i for i, count in enumerate(accepted) if count >= column]
            rows, index = [self.rows[i] for i in having], self._column(having)
            yield rows, self._selection(rows).report(ids[index, column], logits[index, column])
        self._counts.passes += len(self.rows)
        self._counts.tokens += sum(row.produced for row in self.rows) - before

    @torch.inference_mode()
    def _next(self) -> tuple[Tensor, list[int], Tensor]:
        """Steps 1 to 4.

        Returns:
            ids, int64 [rows, columns + 1]; how many drafts of each row were accepted: so many ids and one more count;
            the target's logits that they were chosen from, [rows, columns + 1, vocab].
        """
        arguments = self._selection(self.rows).arguments()
        wanted = [self._wanted(row) for row in self.rows]
        columns = max(wanted)
        drafted, draft_logits = self._drafted(columns, arguments)
        # Where the draft has no valid distribution, a row's drafts end.
        counted = torch.minimum(self._column(wanted), (drafted >= 0).long().cumprod(dim=1).sum(dim=1))
        told = torch.cat([self._tail, drafted.clamp(min=0)], dim=1)
        logits = self._target.read(told[:, 1:])[:, :, : self._vocab_size]
        accepted, last = self._rejected(drafted, counted, draft_logits, logits, arguments)
        ids = torch.cat([drafted, last[:, None]], dim=1).scatter(1, accepted[:, None], last[:, None])
        self._tail = torch.cat([told.gather(1, accepted[:, None] + 1), last[:, None].clamp(min=0)], dim=1)
        taken = accepted.tolist()
        if columns:
            unread = [columns - count for count in taken]
            self._target.take_back(unread)
            self._draft.take_back(unread)
        self._counts.drafted += int(counted.sum())
        self._counts.accepted += sum(taken)
        return ids, taken, logits

    def _wanted(self, row: Row) -> int:
        """How many drafts a row can use, whatever is beside it; one token more comes from the target."""
        return min(self._draft_tokens, row.request.max_new_tokens - row.produced - 1)

    def _drafted(self, columns: int, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Step 1.

        Returns:
            ids, int64 [rows, columns], -1 where the draft's logits have no valid distribution; these logits,
            [rows, columns, vocab].
        """
        rows, position = len(self.rows), arguments["position"]
        if not columns:
            return self._tail[:, :0], torch.empty((rows, 0, self._vocab_size), device=self._device)
        ids, drafted, logits = self._tail, [], []
        for column in range(columns):
            behind = self._draft.read(ids)[:, -1, : self._vocab_size]
            new = self._sampler.sample(behind, check=False, **(arguments | {"position": position + column}))
            ids = new.clamp(0, self._vocab_size - 1)[:, None]
            drafted.append(new)
            logits.append(behind)
        found = torch.stack(drafted, dim=1)
        self._check_ids(found)
        return found, torch.stack(logits, dim=1)

    def _rejected(
        self, drafted: Tensor, counted: Tensor, draft_logits: Tensor, logits: Tensor, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Step 3.

        Returns:
            int64 [rows], how many drafts were accepted; int64 [rows], the token behind them: drawn from the target
            where no draft was left, else from what the draft did not cover; -1 where the target has no distribution.
        """
        seed, position = arguments["seed"], arguments["position"]
        columns, row = drafted.shape[1], torch.arange(len(self.rows), device=self._device)
        p, q = self._probs(logits, arguments), self._probs(draft_logits, arguments)
        index = drafted.clamp(min=0)[:, :, None]
        p_drafted, q_drafted = p[:, :columns].gather(2, index)[:, :, 0], q.gather(2, index)[:, :, 0]
        accepted = accepted_counts(p_drafted, q_drafted, drafted, counted, seed, position)
        behind, place = logits[row, accepted], position + accepted
        plain = self._sampler.sample(behind, check=False, **(arguments | {"position": place}))
        if not columns:
            return accepted, plain
        residual = draw_residual(p[row, accepted], q[row, accepted.clamp(max=columns - 1)], seed, place)
        return accepted, torch.where(accepted == counted, plain, residual)

    def _probs(self, logits: Tensor, arguments: dict[str, Any]) -> Tensor:
        """What the sampler makes of [rows, columns, vocab] with the rows' own parameters, float32; 0 where invalid."""
        rows, columns, vocab = logits.shape
        params: dict[str, Any] = {
            name: value.repeat_interleave(columns) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
            if name not in ("seed", "position")
        }
        return self._sampler.probs(logits.reshape(-1, vocab), check=False, **params).view(rows, columns, vocab)

    def _check_ids(self, drafted: Tensor) -> None:
        least, most = int(drafted.min()), int(drafted.max())
        if least < NO_TOKEN or most >= self._vocab_size:
            wrong = least if least < NO_TOKEN else most
            raise ContractError(
                f"Sampler {self._sampler.name!r} ({self._sampler.origin}) returned the id {wrong}; ids of this "
                f"vocabulary are 0 to {self._vocab_size - 1}.{where_written(self._sampler, 'sample')}"
            )

    def _selection(self, rows: list[Row]) -> Selection:
        selection = Selection(self._sampler, self._vocab_size, self._device)
        selection.add(rows)
        return selection

    def _column(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
