"""A tokenizer of bytes, and the packed batches of short documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurogen.contract.tokenizer import Tokenizer
from neurogen.data.batches import PackedBatch, PackedStream

EOS = 256


class ByteTokenizer(Tokenizer):
    """One id a byte; the ids in `eos_ids` end a text."""

    def __init__(self, *eos_ids: int) -> None:
        self.vocab_size = 300
        self.bos_id = 257
        self.eos_ids = self.special_ids = frozenset(eos_ids)
        self.has_chat_template = False
        self.encoded = 0

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        self.encoded += 1
        return [257] * add_bos + list(text.encode())

    def token_text(self, token: int) -> str:
        raise NotImplementedError

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def packed(path: Path, **options: Any) -> PackedStream:
    return PackedStream([path], ByteTokenizer(EOS), **{"context": 4, "batch_size": 2, "repeat": False, **options})


def contents(batches: Sequence[PackedBatch]) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [(batch.context_ids.tolist(), batch.target_ids.tolist()) for batch in batches]
