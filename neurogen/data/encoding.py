"""Encodes documents in segments of limited size: a long document is encoded piece by piece, to the ids of the whole.

A tokenizer treats the beginning of a text differently (SentencePiece puts a space there), and a token may reach over
any place where a text is cut. So a piece is encoded together with the last characters before it, and two pieces are
only encoded apart where this gives the ids of both together. A unigram vocabulary may know several equally probable
ways to divide a text; there the choice may differ. Knows nothing of batches and models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neurogen.contract.tokenizer import Tokenizer
from neurogen.data.documents import Piece, TextStream

__all__ = ["Ids", "Segment", "SegmentStart", "segments"]

PREFIX = 64
"""Characters before a piece that are encoded with it."""

PREFIX_TRIES = 8
"""Numbers of characters that are tried: in a long run of one character, where tokens end depends on the number."""

LOOKAHEAD = 1024
"""Characters after a piece that are encoded with it to find out whether a token ends where the piece ends."""

LONGEST_TEXT = 2**20
"""The most characters without a place to cut; a longer text is cut anyway, since memory is finite."""

Ids = npt.NDArray[np.int64]
Encode = Callable[[str], list[int]]


class SegmentStart(NamedTuple):
    """Where a segment begins.

    Attributes:
        position: in the texts; see `TextStream.start_at`.
        prefix: the last characters of the document before it; empty at the beginning of a document.
    """

    position: dict[str, Any]
    prefix: str


class Segment(NamedTuple):
    """A document's ids with the EOS that ends it, or a part of them.

    Attributes:
        ids: int64 [positions].
        start: where it begins.
        following: where the next one begins.
    """

    ids: Ids
    start: SegmentStart
    following: SegmentStart


def segments(
    texts: TextStream, tokenizer: Tokenizer, eos: int, *, prefix: str, repeat: bool, parse_special: bool = False
) -> Iterator[Segment]:
    """The segments from where `texts` stands.

    Args:
        texts: the documents.
        tokenizer: encodes them.
        eos: the id that ends a document.
        prefix: see `SegmentStart`.
        repeat: read the texts over and over.
        parse_special: see `Tokenizer.encode`.

    Raises:
        DataError: see `TextStream.pieces`.
    """
    given: dict[str, Any] = {"parse_special": True} if parse_special else {}
    encode: Encode = partial(tokenizer.encode, add_bos=False, **given)
    start, text = None, ""
    for piece in _pieces(texts, repeat):
        here = texts.piece_start
        if start is None:
            start = SegmentStart(here, prefix)
        elif (cut := _ids_apart(encode, start.prefix, text, piece.text)) is not None:
            ids, prefix = cut
            following = SegmentStart(here, prefix)
            yield Segment(np.array(ids, dtype=np.int64), start, following)
            start, text = following, ""
        text += piece.text
        if piece.ends:
            ids = [*_encode_after(encode, start.prefix, text), eos]
            yield Segment(np.array(ids, dtype=np.int64), start, SegmentStart(texts.position(), ""))
            start, text, prefix = None, "", ""


def _pieces(texts: TextStream, repeat: bool) -> Iterator[Piece]:
    yield from texts.pieces()
    while repeat:
        yield from texts.pieces()


def _ids_apart(encode: Encode, prefix: str, text: str, following_text: str) -> tuple[list[int], str] | None:
    """The ids of `text` if a token ends where it ends, and the characters that the rest is to be encoded with.

    Args:
        encode: a text, without the start of a sequence.
        prefix: the characters before `text`.
        text: a part of a document.
        following_text: the text after it; may be empty.

    Returns:
        None where the text must be encoded together with what follows.
    """
    following_text = following_text[:LOOKAHEAD]
    together = encode(prefix + text + following_text)
    first = len(_ids(encode, prefix))
    for length in range(PREFIX, PREFIX - PREFIX_TRIES, -1):
        end = (prefix + text)[-length:]
        before, both = _ids(encode, end), _ids(encode, end + following_text)
        rest = both[len(before) :]
        if rest and both[: len(before)] == before and together[-len(rest) :] == rest:
            return together[first : len(together) - len(rest)], end
    if len(text) < LONGEST_TEXT:
        return None
    return _encode_after(encode, prefix, text), text[-PREFIX:]


def _encode_after(encode: Encode, prefix: str, text: str) -> list[int]:
    """The ids of `text` as they are after another text."""
    return _ids(encode, prefix + text)[len(_ids(encode, prefix)) :]


def _ids(encode: Encode, text: str) -> list[int]:
    return encode(text) if text else []
