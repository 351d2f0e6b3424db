"""Trains a SentencePiece tokenizer on streamed documents.

What it encodes, it decodes to the same text, and the same data give the same file, byte for byte. The settings are
Llama's: byte fallback, so that no text is unknown; single digits; no normalisation, since a language model is to write
what people write; the ids 0, 1 and 2 for unknown, start and end.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurogen.contract.parameters import is_whole
from neurogen.data.documents import BrokenRow, TextStream
from neurogen.errors import DataError, NeurogenError, ParameterError
from neurogen.files import check_place, write_bytes

__all__ = [
    "DEFAULT_SENTENCES",
    "LEAST_COVERAGE",
    "MODEL_TYPES",
    "TrainedTokenizer",
    "learn_tokenizer",
    "train_tokenizer",
]

MODEL_TYPES = ("bpe", "unigram")
SUFFIX = ".model"
DEFAULT_SENTENCES = 2_000_000
"""SentencePiece holds all of them in memory: about half a gigabyte for as many lines from the web."""

LINE = 4096
"""A longer line is cut, since SentencePiece passes over long ones. In characters."""

BYTES_PER_CHARACTER = 4
COUNTS = range(1, 2**31)  # what SentencePiece counts with
PROGRESS_LINES = 10_000
DEFAULT_COVERAGE = 0.9999
LEAST_COVERAGE = 0.98  # SentencePiece's own bound

SETTINGS = {
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "max_sentence_length": LINE * BYTES_PER_CHARACTER,
    "shuffle_input_sentence": False,
    "num_threads": 16,  # written into the file, so that it must not depend on the machine
    "minloglevel": 2,
}

TOO_MANY = re.compile(r"Vocabulary size too high .*<= (\d+)")
TOO_FEW = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
NO_SENTENCE = "!sentences_.empty()"


@dataclass(frozen=True)
class TrainedTokenizer:
    """What was trained, and on what.

    Attributes:
        path: the file.
        vocab_size: number of pieces.
        lines: lines that were learnt from.
        whole: whether these were all lines of the data.
        broken: rows without a text.
    """

    path: Path
    vocab_size: int
    lines: int
    whole: bool
    broken: int


def train_tokenizer(
    sources: Sequence[str | Path],
    vocab_size: int,
    out: str | Path,
    *,
    model_type: str = "bpe",
    character_coverage: float = DEFAULT_COVERAGE,
    max_sentences: int = DEFAULT_SENTENCES,
    force: bool = False,
    on_broken: Callable[[BrokenRow], None] | None = None,
    on_progress: Callable[[int, bool], None] | None = None,
) -> TrainedTokenizer:
    """Train a tokenizer and write it, in one piece or not at all.

    Args:
        sources: see `TextStream`.
        vocab_size: number of pieces: the 256 bytes and three control tokens are among them.
        out: the file to write, `NAME.model`.
        model_type: `bpe` or `unigram`.
        character_coverage: share of the text's characters that get a piece of their own, 0.98 to 1; others are spelled
            in bytes.
        max_sentences: learn from at most this many lines, the first ones.
        force: replace `out` if it exists.
        on_broken: called for each row without a text.
        on_progress: called now and then with the number of lines read and whether they are all. After that
            SentencePiece learns, which may take long, and which Python's handling of Ctrl-C has to wait for.

    Raises:
        DataError: there is nothing to learn from, or `out` exists or cannot be written.
        ParameterError: a value is out of its domain, or the vocabulary too large or too small for the text.
    """
    path = _check(out, vocab_size, model_type, character_coverage, max_sentences, force)
    stream = TextStream(sources, on_broken=on_broken)
    lines = _Lines(stream, max_sentences, on_progress or (lambda lines, whole: None))
    model = _learn(lines, vocab_size, model_type, character_coverage)
    _write(path, model, force=force)
    return TrainedTokenizer(path, vocab_size, lines.count, lines.whole, stream.broken)


def learn_tokenizer(sources: Sequence[str | Path], vocab_size: int) -> bytes:
    """The model that `train_tokenizer` would write with its defaults, not written.

    Raises:
        DataError: there is nothing to learn from.
        ParameterError: the vocabulary is too large or too small for the text.
    """
    lines = _Lines(TextStream(sources), DEFAULT_SENTENCES, lambda lines, whole: None)
    return _learn(lines, vocab_size, MODEL_TYPES[0], DEFAULT_COVERAGE)


def _check(
    out: str | Path, vocab_size: int, model_type: str, character_coverage: float, max_sentences: int, force: bool
) -> Path:
    """Refuse what can be refused before hours of training."""
    for name, number in (("vocab_size", vocab_size), ("max_sentences", max_sentences)):
        if not is_whole(number, COUNTS):
            raise ParameterError(
                f"{name} must be an integer >= 1, got {number!r}. SentencePiece counts to {COUNTS[-1]:,}.", name
            )
    if model_type not in MODEL_TYPES:
        raise ParameterError(f"model_type must be {' or '.join(MODEL_TYPES)}, got {model_type!r}.", "model_type")
    if not LEAST_COVERAGE <= character_coverage <= 1:
        raise ParameterError(
            f"character_coverage must be a number from {LEAST_COVERAGE} to 1, got {character_coverage}.",
            "character_coverage",
        )
    path = Path(out)
    if path.suffix != SUFFIX:
        name = path.with_suffix(SUFFIX).name if path.name else "tokenizer.model"
        raise DataError(
            f"A tokenizer cannot be written to {path}: SentencePiece models are known by names that end in {SUFFIX}. "
            f"Give a name such as {name}."
        )
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.")
    _refuse_existing(path, force=force)
    check_place(None, path)
    return path


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder. Give the name of a file.")
    if path.exists() and not force:
        raise DataError(f"{path} exists already and is left as it is. Give another name, or --force to replace it.")


class _Lines:
    """Iterates the lines to learn from.

    Attributes:
        count: how many there were.
        whole: whether the data have been read to their end.
        error: what has gone wrong while reading; SentencePiece replaces it by an error of its own.
    """

    def __init__(self, stream: TextStream, most: int, on_progress: Callable[[int, bool], None]) -> None:
        self._stream, self._most, self._on_progress = stream, most, on_progress
        self.count = 0
        self.whole = True
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for line in (line for text in self._stream for line in _cut(text)):
                if self.count == self._most:
                    self.whole = False
                    break
                self.count += 1
                if self.count % PROGRESS_LINES == 0:
                    self._on_progress(self.count, False)
                yield line
            self._on_progress(self.count, True)
        except BaseException as error:
            self.error = error
            raise


def _cut(text: str) -> Iterator[str]:
    """The lines of `text`, long ones cut before a space, where pieces begin."""
    for line in text.split("\n"):
        while len(line) > LINE:
            cut = line.rfind(" ", 1, LINE)
            cut = LINE if cut < 0 else cut
            yield line[:cut]
            line = line[cut:]
        if line:
            yield line


def _learn(lines: _Lines, vocab_size: int, model_type: str, character_coverage: float) -> bytes:
    """Train a model and return it as the bytes of its file.

    Raises:
        NeurogenError: the lines cannot be read, or SentencePiece refuses them or the options.
    """
    import sentencepiece

    own = {"vocab_size": vocab_size, "model_type": model_type, "character_coverage": character_coverage}
    options: dict[str, Any] = {**SETTINGS, **own}
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=writer, **options)
    except RuntimeError as error:
        if lines.error is not None:
            raise lines.error from None
        raise _explained(error, vocab_size) from None
    return writer.getvalue()


def _explained(error: RuntimeError, vocab_size: int) -> NeurogenError:
    message = " ".join(str(error).split())
    if found := TOO_MANY.search(message):
        return ParameterError(
            f"A vocabulary of {vocab_size:,} pieces is more than this text gives: at most {int(found[1]):,}. Ask for "
            "no more than that, or give more text.",
            "vocab_size",
        )
    if found := TOO_FEW.search(message):
        return ParameterError(
            f"A vocabulary of {vocab_size:,} pieces is too small: the 256 bytes, three control tokens and the "
            f"characters of this text make {int(found[1]):,}. Ask for at least that many, or for a smaller character "
            "coverage.",
            "vocab_size",
        )
    if NO_SENTENCE in message:
        return DataError("There is no line in these data that a tokenizer could learn from. Give more text.")
    return DataError(f"SentencePiece cannot learn from these data: {message}.")


def _write(path: Path, model: bytes, *, force: bool) -> None:
    _refuse_existing(path, force=force)
    write_bytes(None, path, model)
