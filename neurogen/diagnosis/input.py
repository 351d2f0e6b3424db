"""The input of a diagnosis: texts cut into windows of tokens, or logits and targets in a file of any program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from safetensors import SafetensorError, safe_open

from neurogen.errors import DataError, ParameterError
from neurogen.registry.registry import load_sampler
from neurogen.text.prompts import STDIN, BrokenLine, parse_lines

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["SAMPLE_TEXT", "Window", "check_logits", "load_logits", "read_texts", "windows"]

SAMPLE_TEXT = resources.files("neurogen.diagnosis").joinpath("sample.txt").read_text(encoding="utf-8")
"""English text of several kinds, so that a model can be diagnosed with nothing else at hand."""

LOGITS_TENSORS = ("logits", "targets")
LOGITS_DTYPES = ("float32", "float16", "bfloat16")
NAMED = 5


@dataclass(frozen=True)
class Window:
    """A stretch of one text.

    Attributes:
        document: which text it is from, from 0.
        ids: its tokens: all but the last are fed, all but the first are targets.
    """

    document: int
    ids: tuple[int, ...]


def windows(
    texts: Iterable[str], tokenizer: Tokenizer, context: int, max_tokens: int, *, parse_special: bool = False
) -> list[Window]:
    """Cut texts so that every token but a text's first is a target once.

    Args:
        texts: read no further than needed.
        tokenizer: puts its start-of-sequence id before each text, where that is its convention.
        context: the most tokens that are fed at once, >= 1.
        max_tokens: the most targets, >= 1.
        parse_special: see `Tokenizer.encode`.

    Raises:
        DataError: no text has two tokens.
    """
    given = {"parse_special": True} if parse_special else {}
    pieces: list[Window] = []
    left = max_tokens
    for document, text in enumerate(texts):
        ids = tokenizer.encode(text, **given)
        for start in range(0, len(ids) - 1, context):
            piece = ids[start : start + min(context, left) + 1]
            pieces.append(Window(document, tuple(piece)))
            left -= len(piece) - 1
            if left == 0:
                return pieces
    if not pieces:
        raise DataError("There is no text to measure: no text has two tokens. Give longer texts.")
    return pieces


def read_texts(path: str) -> tuple[list[str], list[BrokenLine]]:
    """The texts of a file of prompts; their seeds, stops and parameters do not matter here.

    Args:
        path: a file of JSON lines as `neurogen run` reads it, or `-` for standard input.

    Returns:
        the texts, and the lines that hold none.

    Raises:
        DataError: the file cannot be read, or no line holds a text.
    """
    source = "standard input" if path == STDIN else path
    try:
        if path == STDIN:
            if sys.stdin is None:
                raise DataError("Standard input is closed. Give --prompts FILE.jsonl.")
            texts, broken = _texts(sys.stdin.buffer, source)
        else:
            with Path(path).open("rb") as lines:
                texts, broken = _texts(lines, source)
    except OSError as error:
        raise DataError(f"The prompts in {source} cannot be read: {error.strerror or error}.") from None
    if not texts:
        problem = f" ({broken[0]})" if broken else ": it is empty"
        raise DataError(
            f"There is no text in {source}{problem}. Each line holds one, as a JSON string or as an object such as "
            '{"text": "Once upon a time"}.'
        )
    return texts, broken


def _texts(lines: BinaryIO, source: str) -> tuple[list[str], list[BrokenLine]]:
    prompts, broken = parse_lines(map(_text_only, lines), load_sampler("greedy"), source)
    return [prompt.text for prompt in prompts], broken


def _text_only(line: bytes) -> bytes:
    """A line without the fields that matter to a run alone; other lines are left for `parse_lines` to refuse."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(value, dict) or not value.keys() & {"prompt", "text"}:
        return line
    return json.dumps({name: value[name] for name in ("prompt", "text") if name in value}).encode()


def load_logits(path: str | Path) -> tuple[Tensor, Tensor]:
    """Open `logits` [N, vocab] and `targets` [N] of a safetensors file; the logits stay on disk until they are read.

    Raises:
        DataError: the file is no safetensors file, lacks one of the two, or they do not fit together.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            missing = [name for name in LOGITS_TENSORS if name not in names]
            if missing:
                raise _lacking(path, missing, names)
            logits, targets = (file.get_tensor(name) for name in LOGITS_TENSORS)
        check_logits(logits, targets)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}. Check the spelling of the path.") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}. Write it with safetensors.") from None
    except ParameterError as error:
        raise DataError(f"{path} cannot be measured: {error}") from None
    return logits, targets


def _lacking(path: str | Path, missing: Sequence[str], names: Sequence[str]) -> DataError:
    return DataError(
        f"{path} has no {' and no '.join(missing)}; its tensors are: {', '.join(names[:NAMED]) or 'none'}. Save "
        "`logits` [N, vocab], float32, float16 or bfloat16, and `targets` int64 [N], the right next token of each row."
    )


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Make sure that these are logits and targets.

    Raises:
        ParameterError: they are not; the message says what is wrong and what is allowed.
    """
    dtype, of_targets = (str(tensor.dtype).removeprefix("torch.") for tensor in (logits, targets))
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ParameterError(
            f"logits must have the shape [N, vocab] with N >= 1 and vocab >= 2, got {list(logits.shape)}.", "logits"
        )
    if dtype not in LOGITS_DTYPES:
        raise ParameterError(f"logits must be {', '.join(LOGITS_DTYPES)}, got {dtype}.", "logits")
    if of_targets != "int64":
        raise ParameterError(f"targets must be int64, got {of_targets}.", "targets")
    if targets.shape != logits.shape[:1]:
        raise ParameterError(
            f"targets must have one id a row of logits, the shape [{logits.shape[0]}], got {list(targets.shape)}.",
            "targets",
        )
    outside = ((targets < 0) | (targets >= logits.shape[1])).nonzero().flatten().tolist()
    if outside:
        rows = ", ".join(f"{row} (id {int(targets[row])})" for row in outside[:NAMED])
        raise ParameterError(
            f"targets must be ids in 0 .. {logits.shape[1] - 1}, but {len(outside):,} are not: row {rows}. Leave out "
            "rows that have no target, such as those marked -100.",
            "targets",
        )
