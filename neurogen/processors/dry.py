"""DRY, "don't repeat yourself": a penalty that grows with the length of the repetition that a token would continue."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from neurogen.contract.parameters import Param
from neurogen.contract.processor import History
from neurogen.processors.listing import FromText, TextParams, checksum_param, parse_list
from neurogen.processors.sequences import behind, checked_id, pieces_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["Breakers", "Dry", "Repeats"]

FLOAT_MAX_LOG = 88.7228391
"""Natural logarithm of the largest float32: the penalty's exponent stays below what would overflow."""

LONGEST_TAIL = 20
"""The most tokens of a breaker after its first one."""

FIRST_CAPACITY = 256


class Dry(FromText):
    """Subtracts multiplier * base ** (n - allowed_length) from a token that would continue a repetition of n tokens,
    n >= allowed_length (p-e-w, 2024, "DRY: A modern repetition penalty that reliably prevents looping",
    text-generation-webui pull request 5677).

    A repetition is the longest end of the sequence that also stands earlier in it, followed there by that token.
    Repetitions do not reach over a sequence breaker, and a token that holds one is not penalised. Breakers of several
    tokens, the window and the largest exponent are as in llama.cpp (`llama_sampler_init_dry`).
    """

    name = "dry"
    api_version = 1

    class Params(TextParams):
        """Parameters."""

        multiplier: float = Param(0.8, ge=0, description="Scale of the penalty; 0 is off.", option="--dry-multiplier")
        base: float = Param(1.75, ge=1, description="Growth with each further token.", option="--dry-base")
        allowed_length: int = Param(2, ge=1, description="Shorter repetitions are free.", option="--dry-allowed-length")
        last_n: int = Param(
            -1, ge=-1, description="Look at so many last tokens; -1 at all, 0 at none.", option="--dry-last-n"
        )
        sequence_breakers: str = Param(
            r'"\n", ":", "\"", "*"',
            description="Texts that no repetition reaches over, in quotes, with commas; or @FILE.",
            option="--dry-sequence-breakers",
        )
        checksum: str = checksum_param()

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**params)
        self._items = parse_list(self, "sequence_breakers")
        base = self.params.base
        self._largest_exponent = 0 if base <= 1.000001 else int(FLOAT_MAX_LOG / math.log(base))

    def prepare(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Find the tokens of the sequence breakers."""
        pieces = pieces_of(tokenizer, vocab_size)
        sequences: list[tuple[int, ...]] = []
        for item in self._items:
            if isinstance(item, int):
                sequences.append((checked_id(self.name, "sequence_breakers", item, vocab_size),))
            else:
                sequences += _sequences_of(item, pieces, tokenizer)
        self._breakers = frozenset(sequences)

    def start(self, history: History) -> Repeats:
        """The repetitions of the prompt."""
        return Repeats(self.params.last_n, self._breakers, history.ids)

    def process(self, logits: Tensor, history: History, memory: Repeats) -> None:
        """O(window), in NumPy."""
        import numpy as np
        import torch

        if self.params.multiplier == 0:
            return
        tokens, lengths = memory.continued(self.params.allowed_length, len(logits))
        if not len(tokens):
            return
        exponents = lengths - self.params.allowed_length
        if self._largest_exponent > 0:
            exponents = exponents.clip(max=self._largest_exponent)
        with np.errstate(over="ignore"):  # a penalty that is infinite bans
            penalties = self.params.multiplier * float(self.params.base) ** exponents
        ids = torch.from_numpy(tokens).to(logits.device)
        logits[ids] -= torch.from_numpy(penalties).to(logits.device, logits.dtype)

    def accept(self, token_id: int, history: History, memory: Repeats) -> None:
        """Lengthen the repetitions that go on with it; the others end."""
        memory.add(token_id)


class Breakers:
    """Remembers the last sequence breaker: of several that overlap the one that begins last, and of those the longest.

    Args:
        sequences: token sequences, none empty.
    """

    def __init__(self, sequences: Iterable[tuple[int, ...]]) -> None:
        self._by_last: dict[int, list[tuple[int, ...]]] = {}
        for sequence in sequences:
            self._by_last.setdefault(sequence[-1], []).append(sequence)
        self._start = -1
        self._end = 0

    def note(self, ids: Sequence[int] | np.ndarray, length: int) -> None:
        """Look at the breakers that end with the token at `length - 1`; to be called for each token in turn."""
        for sequence in self._by_last.get(int(ids[length - 1]), ()):
            start = length - len(sequence)
            if start >= max(self._start, 0) and tuple(ids[start:length]) == sequence:
                self._start, self._end = start, length

    def end(self, first: int) -> int:
        """Where the last breaker ends, the number of tokens up to there; `first` if it begins before that place."""
        return self._end if self._start >= first else first


class Repeats:
    """For every place in a sequence, how long a match with the end of the sequence ends there.

    Args:
        last_n: how many of the last tokens to look at; -1 for all.
        breakers: token sequences that no match reaches over.
        ids: the sequence's beginning.
    """

    def __init__(self, last_n: int, breakers: Collection[tuple[int, ...]], ids: Sequence[int]) -> None:
        import numpy as np

        self._last_n = last_n
        self._singles = np.array(sorted(one[0] for one in breakers if len(one) == 1), dtype=np.int64)
        self._breakers = Breakers(breakers)
        self._size = len(ids)
        capacity = max(FIRST_CAPACITY, 2 * len(ids))
        self._ids = np.zeros(capacity, dtype=np.int64)
        self._matches = np.zeros(capacity, dtype=np.int64)
        self._ids[: len(ids)] = ids
        self._matches[: len(ids)] = _matches_with_end(ids)
        for length in range(1, len(ids) + 1):
            self._breakers.note(ids, length)

    def add(self, token: int) -> None:
        """Append a token. A match that ended just before an equal one is now one longer, all others are over."""
        import numpy as np

        n = self._size
        if n == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._matches = np.concatenate([self._matches, np.zeros_like(self._matches)])
        goes_on = self._ids[:n] == token
        self._matches[1:n] = np.where(goes_on[1:], self._matches[: max(n - 1, 0)] + 1, 0)
        self._matches[:1] = goes_on[:1]
        self._ids[n] = token
        self._size = n + 1
        self._breakers.note(self._ids, self._size)

    def continued(self, least: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that would continue a match.

        Args:
            least: tokens that a match must have.
            vocab: tokens from here on are left out.

        Returns:
            int64 [n] tokens, each once and without breakers of one token, and int64 [n], their longest match.
        """
        import numpy as np

        first = 0 if self._last_n < 0 else max(0, self._size - self._last_n)
        places = np.arange(first, max(first, self._size - 1))
        lengths = np.minimum(self._matches[places], places - first + 1)  # nothing before the window
        lengths = np.minimum(lengths, self._size - self._breakers.end(first))
        long = lengths >= least
        lengths, following = lengths[long], self._ids[places[long] + 1]
        usable = (following < vocab) & ~np.isin(following, self._singles)
        tokens, place = np.unique(following[usable], return_inverse=True)
        longest = np.zeros(len(tokens), dtype=np.int64)
        np.maximum.at(longest, place, lengths[usable])
        return tokens, longest


def _sequences_of(breaker: str, pieces: Sequence[bytes], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Every token that holds the breaker, and every one that ends with its beginning, with the tokens of its rest."""
    text = breaker.encode()
    sequences: list[tuple[int, ...]] = [(token,) for token, piece in enumerate(pieces) if text in piece]
    for cut in range(1, len(breaker)):
        head = breaker[:cut].encode()
        tail = behind(breaker[cut:], tokenizer)[:LONGEST_TAIL]
        if tail:
            sequences += [(t, *tail) for t, piece in enumerate(pieces) if piece.endswith(head) and text not in piece]
    return sequences


def _matches_with_end(ids: Sequence[int]) -> list[int]:
    """For each place but the last, how many tokens up to it are those at the end: Z-algorithm, from the end."""
    backwards = list(reversed(ids))
    n, left, right = len(ids), 0, 0
    lengths = [0] * n
    for i in range(1, n):
        length = min(right - i, lengths[i - left]) if i < right else 0
        while i + length < n and backwards[length] == backwards[i + length]:
            length += 1
        lengths[i] = length
        if i + length > right:
            left, right = i, i + length
    return lengths[::-1]
