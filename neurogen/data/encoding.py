"""Documents to ids in segments of limited size: a long document is encoded piece by piece, to the ids of the whole.

A tokenizer treats the beginning of a text differently (SentencePiece puts a space there), and pieces of a vocabulary
may reach over any place where a text is cut. So a piece is encoded behind the last characters of the piece before, and
two pieces are only encoded apart where their ids are those of both together. Of ways to divide a text that are equally
probable, as a unigram vocabulary knows them, another may be chosen. Knows nothing of batches and models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neurogen.contract.tokenizer import Tokenizer
from neurogen.data.documents import Piece, TextStream

__all__ = ["Ids", "Segment", "Start", "segments"]

BEHIND = 64
"""Characters of what precedes a piece that it is encoded behind."""

TRIES = 8
"""In a long run of one character it depends on the number of characters before a cut where ids end."""

AHEAD = 1024
"""Characters of what follows a piece that decide, with the piece, whether ids end where it ends."""

LONGEST = 2**20
"""Characters after which a text is cut in any case, since memory is finite: no id has ended with a piece until then."""

Ids = npt.NDArray[np.int64]
Encode = Callable[[str], list[int]]


class Start(NamedTuple):
    """Where a segment begins.

    Attributes:
        position: in the texts; see `TextStream.start_at`.
        behind: the last characters of the same document before it; empty at the beginning of a document.
    """

    position: dict[str, Any]
    behind: str


class Segment(NamedTuple):
    """A document's ids with the EOS that ends it, or a part of them.

    Attributes:
        ids: int64 [positions].
        start: where it begins.
        following: where the next one begins.
    """

    ids: Ids
    start: Start
    following: Start


def segments(
    texts: TextStream, tokenizer: Tokenizer, eos: int, *, behind: str, repeat: bool, parse_special: bool = False
) -> Iterator[Segment]:
    """The segments from where `texts` stands.

    Args:
        texts: the documents.
        tokenizer: encodes them.
        eos: the id that ends a document.
        behind: see `Start`.
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
            start = Start(here, behind)
        elif (cut := _apart(encode, start.behind, text, piece.text)) is not None:
            ids, behind = cut
            following = Start(here, behind)
            yield Segment(np.array(ids, dtype=np.int64), start, following)
            start, text = following, ""
        text += piece.text
        if piece.ends:
            ids = [*_encode_behind(encode, start.behind, text), eos]
            yield Segment(np.array(ids, dtype=np.int64), start, Start(texts.position(), ""))
            start, text, behind = None, "", ""


def _pieces(texts: TextStream, repeat: bool) -> Iterator[Piece]:
    yield from texts.pieces()
    while repeat:
        yield from texts.pieces()


def _apart(encode: Encode, behind: str, text: str, ahead: str) -> tuple[list[int], str] | None:
    """The ids of `text` where they end with it, whatever follows, and what the rest is to be encoded behind.

    Args:
        encode: a text, without the start of a sequence.
        behind: what `text` follows on.
        text: a part of a document.
        ahead: what follows on it; may be empty.

    Returns:
        None where the text must be encoded together with what follows.
    """
    ahead = ahead[:AHEAD]
    together = encode(behind + text + ahead)
    first = len(_ids(encode, behind))
    for length in range(BEHIND, BEHIND - TRIES, -1):
        end = (behind + text)[-length:]
        before, both = _ids(encode, end), _ids(encode, end + ahead)
        rest = both[len(before) :]
        if rest and both[: len(before)] == before and together[-len(rest) :] == rest:
            return together[first : len(together) - len(rest)], end
    if len(text) < LONGEST:
        return None
    return _encode_behind(encode, behind, text), text[-BEHIND:]


def _encode_behind(encode: Encode, behind: str, text: str) -> list[int]:
    """The ids of `text` as they are behind another."""
    return _ids(encode, behind + text)[len(_ids(encode, behind)) :]


def _ids(encode: Encode, text: str) -> list[int]:
    return encode(text) if text else []
