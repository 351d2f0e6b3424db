"""The rows of the engine llamacpp and the sequences of its context, with a context made of a transformers model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen.decoding.engine import Engine
from neurogen.decoding.request import Request, Step
from neurogen.integrations.llamacpp import LlamaCppModel
from neurogen.models.language_model import LanguageModel


class Context:
    """Does what `LlamaContext` does, and refuses what llama.cpp would do wrong without a word."""

    reads: int
    sizes: list[tuple[int, int]]
    model: LanguageModel

    def __init__(self, weights: Any, *, sequences: int, length: int, threads: int) -> None:
        self.sequences, self.length = sequences, length
        self._ids: list[list[int]] = [[] for _ in range(sequences)]
        self._logits = torch.zeros(sequences, self.model.vocab_size)
        self.sizes.append((sequences, length))

    def _behind(self, sequence: int) -> Tensor:
        assert len(self._ids[sequence]) <= self.length
        with torch.inference_mode():
            logits: Tensor = self.model.model(input_ids=torch.tensor([self._ids[sequence]])).logits
        return logits[0, -1]

    def read(self, sequence: int, ids: Sequence[int]) -> Tensor:
        assert not self._ids[sequence]
        self._ids[sequence] = list(ids)
        type(self).reads += 1
        self._logits[0] = self._behind(sequence)
        return self._logits[:1]

    def place(self, sequences: Sequence[int], positions: Sequence[int]) -> None:
        self._placed = list(sequences)
        assert [len(self._ids[sequence]) for sequence in sequences] == list(positions)

    def step(self, ids: Tensor) -> Tensor:
        for row, (sequence, token) in enumerate(zip(self._placed, ids.tolist(), strict=True)):
            self._ids[sequence].append(token)
            self._logits[row] = self._behind(sequence)
        return self._logits[: len(ids)]

    def copy(self, source: int, target: int) -> None:
        assert not self._ids[target]
        self._ids[target] = list(self._ids[source])

    def drop(self, sequence: int) -> None:
        self._ids[sequence] = []


@pytest.fixture
def model(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LlamaCppModel:
    """The tiny model, run by such a context."""
    module: Any = ModuleType("neurogen.integrations.llama_context")
    module.LlamaContext = type("LlamaContext", (Context,), {"reads": 0, "sizes": [], "model": tiny})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    weights: Any = None
    return LlamaCppModel("tiny", weights, tiny.tokenizer, 1, tiny.vocab_size, tiny.context_length, tiny.eos_ids)


def context_class() -> type[Context]:
    return sys.modules["neurogen.integrations.llama_context"].LlamaContext  # type: ignore[no-any-return]


def tokens(steps: Iterator[Step]) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for step in steps:
        found.setdefault(step.key, []).append(step.token_id)
    return found


REQUESTS = [Request((1, *[50] * (i % 3), 60 + i // 2), 3 + i % 4, seed=i, key=i) for i in range(9)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("spec", ["greedy", "topk(k=40)", "mirostat"])
def test_tokens_are_those_of_the_usual_engine(
    tiny: LanguageModel, model: LlamaCppModel, spec: str, batch_size: int
) -> None:
    sampler = neurogen.load_sampler(spec)
    expected = tokens(Engine(tiny, sampler).generate(REQUESTS))
    assert tokens(model.engine(sampler, batch_size=batch_size).generate(REQUESTS)) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_equal_prompts_are_run_once(model: LlamaCppModel, batch_size: int) -> None:
    same = [replace(REQUESTS[0], seed=i, key=i) for i in range(5)]
    found = tokens(model.engine(neurogen.load_sampler("topk"), batch_size=batch_size).generate(same))
    assert len(found) == 5
    assert context_class().reads == 1


def test_a_row_that_needs_a_longer_context_waits_until_the_batch_is_empty(
    model: LlamaCppModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurogen.integrations.llamacpp.GRANULE", 8)
    requests = [replace(REQUESTS[0], max_new_tokens=new, key=new) for new in (2, 4, 30, 3)]
    found = tokens(model.engine(neurogen.load_sampler("greedy"), batch_size=2).generate(requests))
    assert {key: len(ids) for key, ids in found.items()} == {2: 2, 4: 4, 30: 30, 3: 3}
    assert [length for _, length in context_class().sizes] == [8, 32]
