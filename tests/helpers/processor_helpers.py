"""Processors made from specs or values, and a tokenizer small enough to see through."""

from __future__ import annotations

from typing import Any

import neurogen
from neurogen import Processor
from neurogen.contract.tokenizer import Tokenizer

VOCAB = 40
EOS = 7


def one(spec: str) -> Processor:
    (processor,) = neurogen.load_processors(spec)
    return processor


class Letters(Tokenizer):
    """Tokens are the bytes 0 to vocab_size - 1; enough of a tokenizer for what a processor asks."""

    def __init__(self, vocab_size: int = VOCAB) -> None:
        self.vocab_size = vocab_size
        self.bos_id = None
        self.eos_ids = frozenset({EOS})
        self.special_ids = frozenset({EOS})
        self.has_chat_template = False

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        return list(text.encode())

    def token_text(self, token: int) -> str:
        return chr(token)

    def encode_chat(self, messages: Any) -> list[int]:
        raise NotImplementedError

    def save(self, folder: Any) -> None:
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


def made(name: str, **params: Any) -> Processor:
    """A processor from values, as the command line makes it; texts are meant as they are, not also behind a space."""
    processor = neurogen.Registry(disabled=()).load_processor(name, **params)

    class Exact(Letters):
        def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
            return super().encode(text.removeprefix("x").removeprefix(" "))

    prepare = processor.prepare
    processor.prepare = lambda tokenizer, vocab: prepare(Exact(), vocab)  # type: ignore[method-assign]
    return processor
