"""Texts that must not occur, however they are spelled: every token is banned that would complete one.

Works on the bytes of tokens with one automaton a text (Knuth, Morris and Pratt, 1977), whose state is how much of the
text stands at the end of the sequence. Knows no tokenizer beside its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neurogen.contract.parameters import Param
from neurogen.contract.processor import History
from neurogen.errors import ParameterError
from neurogen.processors.constants import Constant
from neurogen.processors.listing import FromText, TextParams, checksum_param, parse_list
from neurogen.processors.sequences import pieces_of

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["Automaton", "BannedTexts", "Pieces"]


class BannedTexts(FromText):
    """Bans every token with which one of the texts would stand in what is written, whatever tokens spell it.

    Unlike `banned-tokens`, which knows the spellings of the tokenizer alone, it looks at bytes: a text does not come
    about from smaller tokens, nor within a larger one. A text that begins in the prompt counts.
    """

    name = "banned-texts"
    api_version = 1

    class Params(TextParams):
        """Parameters."""

        texts: str = Param(
            "",
            description="Texts that must not occur, in quotes, with commas, such as 'cat', \"dog\"; or @FILE.",
            option="--ban-texts",
        )
        checksum: str = checksum_param()

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**params)
        items = parse_list(self, "texts")
        ids = [item for item in items if isinstance(item, int)]
        if ids:
            raise ParameterError(
                f"banned-texts: texts must be in quotes, got {ids[0]}. Tokens are banned by banned-tokens.", "texts"
            )
        self._automata = [Automaton(text.encode()) for text in dict.fromkeys(map(str, items))]

    def prepare(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Find the tokens that hold a whole text."""
        import numpy as np
        import torch

        self._pieces = Pieces(pieces_of(tokenizer, vocab_size))
        self._completing: dict[tuple[int, int], Constant] = {}
        always = [self._pieces.completing(automaton, 0) for automaton in self._automata]
        self._always = Constant(torch.from_numpy(np.unique(np.concatenate(always))))

    def start(self, history: History) -> list[int]:
        """The state of each text's automaton after the prompt."""
        states = [0] * len(self._automata)
        for token in history.ids:
            self._read(token, states)
        return states

    def process(self, logits: Tensor, history: History, memory: list[int]) -> None:
        """O(banned tokens); those that complete a text that has begun are found when it first does."""
        logits[self._always.on(logits.device)] = float("-inf")
        for number, state in enumerate(memory):
            if state > 0:
                logits[self._completed_from(number, state).on(logits.device)] = float("-inf")

    def accept(self, token_id: int, history: History, memory: list[int]) -> None:
        """O(bytes of the token) for each text."""
        self._read(token_id, memory)

    def _read(self, token: int, states: list[int]) -> None:
        piece = self._pieces[token]
        for number, automaton in enumerate(self._automata):
            states[number] = automaton.read(states[number], piece)

    def _completed_from(self, number: int, state: int) -> Constant:
        import torch

        key = (number, state)
        if key not in self._completing:
            self._completing[key] = Constant(torch.from_numpy(self._pieces.completing(self._automata[number], state)))
        return self._completing[key]


class Automaton:
    """Reads bytes and knows how many of a word's first ones stand at the end of what it has read.

    Args:
        word: at least one byte.

    Attributes:
        steps: state -> byte -> next state; the state `len(word)` is that the word is complete.
        border: the state that a complete word leaves, for the next one may overlap it.
    """

    def __init__(self, word: bytes) -> None:
        self.word = word
        self.steps = [[0] * 256 for _ in word]
        self.steps[0][word[0]] = 1
        self.border = 0
        for state in range(1, len(word)):
            self.steps[state] = list(self.steps[self.border])
            self.steps[state][word[state]] = state + 1
            self.border = self.steps[self.border][word[state]]

    def read(self, state: int, data: bytes) -> int:
        """The state after some more bytes; never that of a complete word."""
        for byte in data:
            state = self.steps[state][byte]
            if state == len(self.word):
                state = self.border
        return state


class Pieces:
    """The bytes of all tokens, so laid out that an automaton reads them all at once: the longest first.

    Args:
        pieces: of every token.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        import numpy as np

        self._pieces = pieces
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        self._order = np.argsort(-lengths, kind="stable")
        self._columns = []
        for column in range(int(lengths.max(initial=0))):
            longer = int((lengths > column).sum())
            self._columns.append(np.array([pieces[token][column] for token in self._order[:longer]], dtype=np.int64))

    def __getitem__(self, token: int) -> bytes:
        """The bytes of one token; empty if it has no logit."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def completing(self, automaton: Automaton, state: int) -> Any:
        """int64, ascending: the tokens that complete the automaton's word, when it is in this state."""
        import numpy as np

        complete = len(automaton.word)
        steps = np.array([*automaton.steps, [complete] * 256], dtype=np.int64)
        states = np.full(len(self._order), state, dtype=np.int64)
        for column in self._columns:
            states[: len(column)] = steps[states[: len(column)], column]
        return np.sort(self._order[states == complete])
