"""Rows join, leave, are cropped and copied, and each is read on as if it had been alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from neurogen.models.kvcache import KVCache
from neurogen.models.language_model import LanguageModel

PROMPTS = [(5, 6, 7, 8, 9), (15, 16), (25, 26, 27)]


def check(model: LanguageModel, cache: KVCache, sequences: Sequence[Sequence[int]]) -> None:
    """What is read next gives each row the logits of its own sequence, read at once."""
    new = torch.tensor([[40 + i, 60 + i] for i in range(len(sequences))])
    logits = cache.forward_all(new)
    for row, sequence in enumerate(sequences):
        alone = KVCache(model)
        whole = alone.prefill([[*sequence, 40 + row, 60 + row]])
        torch.testing.assert_close(logits[row, -1], whole[0], rtol=1e-4, atol=1e-5)


def prefilled(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> KVCache:
    cache = KVCache(model)
    cache.prefill(prompts)
    return cache


def test_prompts_of_different_lengths_are_read_together(tiny: LanguageModel) -> None:
    check(tiny, prefilled(tiny, PROMPTS), PROMPTS)


@pytest.mark.parametrize("first", [0, 1])
def test_rows_join_longer_and_shorter_ones(tiny: LanguageModel, first: int) -> None:
    cache = prefilled(tiny, PROMPTS[first : first + 1])
    others = PROMPTS[1 - first : 2 - first] + PROMPTS[2:]
    cache.join(prefilled(tiny, others))
    check(tiny, cache, [PROMPTS[first], *others])


def test_rows_join_an_empty_cache(tiny: LanguageModel) -> None:
    cache = KVCache(tiny)
    cache.join(prefilled(tiny, PROMPTS))
    check(tiny, cache, PROMPTS)
    cache.select([])
    cache.join(prefilled(tiny, PROMPTS[:1]))
    assert cache.width == 5
    check(tiny, cache, PROMPTS[:1])


@pytest.mark.parametrize("rows", [[0], [2, 1], [1, 1, 0], [2, 2]])
def test_rows_are_selected_repeated_and_reordered(tiny: LanguageModel, rows: list[int]) -> None:
    cache = prefilled(tiny, PROMPTS)
    cache.select(rows)
    assert cache.width == max(len(PROMPTS[row]) for row in rows)
    check(tiny, cache, [PROMPTS[row] for row in rows])


@pytest.mark.parametrize("counts", [[0, 0, 0], [0, 2, 3], [2, 2, 2], [1, 3, 1]])
def test_reading_on_after_a_crop_gives_the_logits_of_the_shorter_sequences(
    tiny: LanguageModel, counts: list[int]
) -> None:
    cache = prefilled(tiny, PROMPTS)
    cache.forward_all(torch.tensor([[70, 71, 72], [73, 74, 75], [76, 77, 78]]))
    cache.crop(counts)
    read = [[70, 71, 72], [73, 74, 75], [76, 77, 78]]
    left = [[*prompt, *new[: 3 - count]] for prompt, new, count in zip(PROMPTS, read, counts, strict=True)]
    check(tiny, cache, left)


def test_a_copied_row_has_memory_of_its_own(tiny: LanguageModel) -> None:
    cache = prefilled(tiny, PROMPTS)
    copied = cache.copy(1)
    cache.forward(torch.tensor([[80], [81], [82]]))
    cache.crop([3, 2, 3])
    check(tiny, copied, PROMPTS[1:2])
