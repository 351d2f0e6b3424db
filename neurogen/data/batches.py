"""Training data as packed batches: documents are encoded, joined, and cut into sequences of one length.

The ids form one line, EOS, document, EOS, document, EOS, ..., and sequence `i` is the `i`-th piece of it. So each id is
a target once, and only the end of the data is padded. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurogen.contract.parameters import INT64, is_whole
from neurogen.contract.tokenizer import Tokenizer
from neurogen.data.documents import BrokenRow, TextStream
from neurogen.data.encoding import Ids, Segment, SegmentStart, segments
from neurogen.errors import DataError, ModelError, ParameterError

__all__ = ["IGNORE_INDEX", "BrokenRow", "PackedBatch", "PackedStream", "TextStream"]

IGNORE_INDEX = -100
"""A target at which nothing is learnt or measured, because no id follows. torch and transformers use this number."""

STATE_VERSION = 2
STATE_OF_IDS = 1
"""The version of states that hold all ids that were encoded and not given out."""


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of one length.

    Attributes:
        context_ids: int64 [batch, context], on the CPU.
        target_ids: int64 [batch, context]; `target_ids[b, t]` is the id that follows `context_ids[b, t]`, or
            `IGNORE_INDEX` where nothing does, which is at the end of the data.
        targets: how many there are over all ranks, without those to ignore.
    """

    context_ids: Tensor
    target_ids: Tensor
    targets: int


class PackedStream:
    """Iterates training data as batches of packed sequences.

    Every id of every document, and the EOS that ends it, is a target exactly once an epoch. Every rank reads
    all of the data and keeps its share, so that together they see what one process with their joint batch size sees;
    sequence boundaries depend on every document before them, so none can be left out.

    The state is the same on all ranks, and says nothing of batch size, context and number of ranks: a run may go on
    with others. Use it from one thread at a time; `state_dict` between two batches, after which the next iteration,
    here or in another process, gives the batches that would have followed.

    Attributes:
        text: the texts that it encodes.
        tokens: targets given out so far, over all ranks.
    """

    _ids: Ids  # encoded and not given out yet
    _segment: Segment | None  # the last of them are from this one
    _from_segment: int  # how many
    _following: SegmentStart  # where the next segment begins
    _skipped: int  # ids at its beginning that have been given out
    _given: bool  # a batch, since the beginning of the data
    _ended: bool  # the last batch of data that are not repeated has been given out
    _exhausted: bool  # and the iteration has ended: the next one starts over

    def __init__(
        self,
        sources: Sequence[str | Path],
        tokenizer: Tokenizer,
        *,
        context: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        repeat: bool = True,
        pad_last: bool = False,
        select: Callable[[int], bool] | None = None,
        on_broken: Callable[[BrokenRow], None] | None = None,
        parse_special: bool = False,
    ) -> None:
        """Find the data; nothing is read yet.

        Args:
            sources: see `TextStream`.
            tokenizer: one that has an EOS id.
            context: ids in a sequence.
            batch_size: sequences in a batch of this rank.
            rank: which of the `world_size` shares of every joint batch to give out.
            world_size: number of ranks.
            repeat: start the data over without end. If not, the iteration ends with the data, the last batch may be
                smaller (on some ranks there may be no batch), and an incomplete last sequence is left out.
            pad_last: leave nothing out at the end of the data: the last batch holds the rest, divided evenly among the
                ranks, and is filled up with targets to ignore. All ranks get the same number of batches, and the last
                has the same shape on all of them, for a rank without a share too.
            select: see `TextStream`.
            on_broken: called for each row without a text.
            parse_special: make special tokens of their spellings in the data; see `Tokenizer.encode`. Without it, the
                EOS that ends a document is the only one in the stream.

        Raises:
            DataError: a source does not exist, is of an unknown kind, or holds nothing to read.
            ModelError: the tokenizer has no EOS id.
            ParameterError: a number is out of its domain.
        """
        for name, value in {"context": context, "batch_size": batch_size, "world_size": world_size}.items():
            if not is_whole(value, range(1, INT64.stop)):
                raise ParameterError(f"{name} must be an integer >= 1, got {value!r}.", name)
        if not 0 <= rank < world_size:
            raise ParameterError(
                f"rank must be an integer from 0 to world_size - 1 = {world_size - 1}, got {rank}.", "rank"
            )
        self._eos = _end_of_text(tokenizer)
        self._tokenizer = tokenizer
        self._context, self._batch_size = context, batch_size
        self._rank, self._world_size = rank, world_size
        self._repeat, self._pad_last = repeat, pad_last
        self._parse_special = parse_special
        self.text = TextStream(sources, select=select, on_broken=on_broken)
        self.tokens = 0
        self._begin()

    @property
    def epoch(self) -> int:
        """How many times the data have been read whole; the ids that were read last may not be given out yet."""
        return self.text.epoch

    @property
    def broken(self) -> int:
        """Rows without a text so far."""
        return self.text.broken

    def __iter__(self) -> Iterator[PackedBatch]:
        """The batches from here on.

        Raises:
            DataError: there is no text at all in the data; they are too short for one sequence and not repeated; a
                data set on the hub cannot be read any further.
        """
        if self._exhausted:
            self._begin()
        if self._ended and self._repeat:  # the data were read without repetition until now
            self._ended = False
        if not self._ended:
            yield from self._batches()
        self._exhausted = True

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was given out, as JSON values: small, however long the texts are.

        It holds at most one of the ids that have been encoded and not been given out; the others are encoded again.
        """
        ids, start, skipped = self._ids, self._following, self._skipped
        if self._segment is not None and self._from_segment and len(ids) > 1:
            start, skipped = self._segment.start, len(self._segment.ids) - self._from_segment
            ids = ids[: len(ids) - self._from_segment]
        return {
            "version": STATE_VERSION,
            "tokenizer": self._tokenizer_identity(),
            "text": {**self.text.state_dict(), **start.position},
            "behind": start.prefix,
            "skipped": skipped,
            "ids": ids.tolist(),
            "tokens": self.tokens,
            "given": self._given,
            "ended": self._ended,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called; nothing is encoded for that.

        Raises:
            DataError: it is no such state, or one of other data or another tokenizer.
        """
        version = state.get("version")
        needed = self.state_dict().keys() - ({"behind", "skipped"} if version == STATE_OF_IDS else set())
        if version not in (STATE_OF_IDS, STATE_VERSION) or not state.keys() >= needed:
            raise DataError(
                "The saved position in the training data cannot be read: it is damaged, or was saved by another "
                "version of neurogen. Start from another checkpoint, or without one."
            )
        if list(state["tokenizer"]) != self._tokenizer_identity():
            vocab, eos = state["tokenizer"]
            raise DataError(
                f"The saved position in the training data is one with another tokenizer: it had {vocab:,} ids and "
                f"{eos} ended a text, this one has {self._tokenizer.vocab_size:,} and {self._eos}. Give the tokenizer "
                "that training began with, or start without the checkpoint."
            )
        self.text.load_state_dict(state["text"])
        self._following = SegmentStart(self.text.position(), state.get("behind", ""))
        self._skipped = state.get("skipped", 0)
        self._ids = np.array(state["ids"], dtype=np.int64)
        self._segment, self._from_segment, self._exhausted = None, 0, False
        self.tokens, self._given, self._ended = state["tokens"], state["given"], state["ended"]

    def _begin(self) -> None:
        """Go to the beginning of the data: the EOS before the first document."""
        self._ids = np.array([self._eos], dtype=np.int64)
        self._given = self._ended = self._exhausted = False
        self._begin_texts()

    def _begin_texts(self) -> None:
        self._segment, self._from_segment, self._skipped = None, 0, 0
        self._following = SegmentStart(self.text.position(), "")

    def _batches(self) -> Iterator[PackedBatch]:
        full = self._batch_size * self._world_size * self._context
        self.text.start_at(self._following.position)
        found = segments(
            self.text,
            self._tokenizer,
            self._eos,
            prefix=self._following.prefix,
            repeat=self._repeat,
            parse_special=self._parse_special,
        )
        while self._encode(found, full + 1):
            yield self._next_batch(full, self._batch_size)
        self._begin_texts()
        self._ended = True
        rest = len(self._ids) - 1
        if not self._pad_last:
            rest -= rest % self._context
        if not rest and not self._given:
            raise DataError(
                f"The data hold {len(self._ids) - 1:,} tokens, which is no whole sequence of {self._context:,}. Give "
                "more data or a shorter context."
            )
        sequences = -(-rest // self._context)
        batch = self._next_batch(rest, -(-sequences // self._world_size) if self._pad_last else self._batch_size)
        if len(batch.context_ids):
            yield batch

    def _encode(self, found: Iterator[Segment], needed: int) -> bool:
        """Encode documents until there are `needed` ids; False where the data end before."""
        parts, count = [self._ids], len(self._ids)
        try:
            while count < needed and (segment := next(found, None)) is not None:
                ids = segment.ids[self._skipped :]
                self._segment, self._from_segment = segment, len(ids)
                self._following, self._skipped = segment.following, 0
                parts.append(ids)
                count += len(ids)
        finally:
            self._ids = np.concatenate(parts)
        return count >= needed

    def _next_batch(self, length: int, rows: int) -> PackedBatch:
        """Take `length` targets from the front, return this rank's share, and keep the last id for the next call.

        Args:
            length: over all ranks.
            rows: sequences that each rank gets as far as they reach, or with `pad_last` in any case.
        """
        ids = self._ids
        # A copy: a view of the few ids that are left would keep the memory of all.
        self._ids = ids[length:].copy()
        self._from_segment = min(self._from_segment, len(self._ids))
        self.tokens += length
        self._given = True
        share = rows * self._context
        first, last = min(self._rank * share, length), min((self._rank + 1) * share, length)
        missing = share - (last - first) if self._pad_last else 0
        contexts = np.pad(ids[first:last], (0, missing), constant_values=self._eos)
        targets = np.pad(ids[first + 1 : last + 1], (0, missing), constant_values=IGNORE_INDEX)
        shape = (-1, self._context)
        return PackedBatch(torch.tensor(contexts).view(shape), torch.tensor(targets).view(shape), length)

    def _tokenizer_identity(self) -> list[int]:
        return [self._tokenizer.vocab_size, self._eos]


def _end_of_text(tokenizer: Tokenizer) -> int:
    """The id that ends a document: of several, the lowest, since an end of turn is added after the end of text."""
    if not tokenizer.eos_ids:
        raise ModelError(
            "This tokenizer has no end-of-text id (EOS), which separates documents in training. Use a tokenizer that "
            "has one; `neurogen tokenizer train` makes such a tokenizer from your data."
        )
    return min(tokenizer.eos_ids)
