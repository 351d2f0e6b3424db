"""Token ids to text, one at a time, at a cost that does not grow with the sequence. Knows no kind of tokenizer."""

from __future__ import annotations

from neurogen.contract.tokenizer import Tokenizer

__all__ = ["StreamDecoder"]

REPLACEMENT = "\ufffd"
"""What a tokenizer decodes bytes to that are not yet, or never, a character."""

UNDECIDED = 3
"""A UTF-8 character has at most 4 bytes, so what up to 3 trailing bytes mean can still change."""

WINDOW_KEPT = 8
"""Ids kept when the window is cut: each is at least one byte, and a character begins within 3 bytes."""

WINDOW_LIMIT = 24
"""The window is cut when it has more ids."""


class StreamDecoder:
    """Decodes a sequence id by id; the pieces joined are exactly what `decode` makes of the whole sequence.

    Text is handed out once no later id can change it, so never half of a character. Only a short window of ids is
    decoded at each step. Measured from the end of its text, a cut window agrees with the whole sequence, because UTF-8
    finds its boundaries again after 3 bytes; the anchor, the first id with visible text, stays in front so that the
    window is not taken for the start of a sequence, where SentencePiece drops a space.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start an empty sequence of `tokenizer`'s ids."""
        self._tokenizer = tokenizer
        self.reset()

    def reset(self) -> None:
        """Forget the sequence and start another."""
        self._window: list[int] = []
        self._anchor: int | None = None
        self._emitted = 0

    def push(self, token: int) -> str:
        """Take the next id and return the text that has become final, often none.

        Args:
            token: any id; one without text (special, or outside the vocabulary) changes nothing.
        """
        if not self._tokenizer.has_text(token):
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if self._anchor is None and text.strip():
            self._anchor = token
        final = len(text) - min(UNDECIDED, len(text) - len(text.rstrip(REPLACEMENT)))
        piece = text[self._emitted : final]
        self._emitted = max(self._emitted, final)
        if len(self._window) > WINDOW_LIMIT:
            self._cut(len(text) - self._emitted)
        return piece

    def flush(self) -> str:
        """Return what was held back, now that nothing follows, and start a new sequence."""
        text = self._tokenizer.decode(self._window)[self._emitted :]
        self.reset()
        return text

    def _cut(self, held: int) -> None:
        """Shorten the window to its anchor and its newest ids, keeping `held` characters at its end back."""
        first = self._window[0] if self._anchor is None else self._anchor
        self._window = [first, *self._window[-WINDOW_KEPT:]]
        self._emitted = len(self._tokenizer.decode(self._window)) - held
