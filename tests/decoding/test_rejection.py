"""Rejection of drafted tokens keeps the target's distribution; tokens can be taken back row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scipy.stats import chisquare

from neurogen.decoding.feed import Feed
from neurogen.decoding.rejection import accepted_counts, draw_residual
from neurogen.models.kvcache import KVBlock, new_cache

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

ALPHA = 1e-4


def test_a_token_that_passed_rejection_is_distributed_as_the_target_says() -> None:
    rows = 60_000
    generator = torch.Generator().manual_seed(5)
    p, q = torch.softmax(torch.randn(2, 10, generator=generator), dim=-1)
    drafted = torch.multinomial(q.expand(rows, -1), 1, generator=generator)
    seed, position = torch.arange(rows), torch.full((rows,), 7)
    accepted = accepted_counts(p[drafted], q[drafted], drafted, torch.ones(rows).long(), seed, position)
    instead = draw_residual(p.expand(rows, -1), q.expand(rows, -1), seed, position)
    chosen = torch.where(accepted > 0, drafted[:, 0], instead)
    counts = torch.bincount(chosen, minlength=10).double()
    assert abs(accepted.double().mean() - torch.minimum(p, q).sum()) < 0.01  # Leviathan et al.
    assert chisquare(counts, p.double() / p.double().sum() * rows).pvalue > ALPHA
    assert chisquare(counts, q.double() / q.double().sum() * rows).pvalue < ALPHA


def test_no_token_replaces_one_where_the_target_has_no_distribution() -> None:
    empty = torch.zeros(1, 4)
    assert draw_residual(empty, empty, torch.tensor([1]), torch.tensor([2])).tolist() == [-1]


def test_reading_on_after_taking_back_gives_the_logits_of_the_shorter_sequences(tiny: LanguageModel) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9], [15, 16, 17, 18, 19], [25, 26, 27, 28, 29]])
    for counts in ([0, 2, 3], [2, 2, 2], [1, 3, 1]):
        feed = Feed(tiny, KVBlock(new_cache(), [0, 0, 0]))
        feed.read(ids)
        feed.take_back(counts)
        logits = feed.read(torch.tensor([[40, 41], [42, 43], [44, 45]]))
        for row, count in enumerate(counts):
            whole = torch.cat([ids[row, : 5 - count], torch.tensor([40 + 2 * row, 41 + 2 * row])])[None]
            alone = Feed(tiny, KVBlock(new_cache(), [0])).read(whole)
            torch.testing.assert_close(logits[row], alone[0, -2:], rtol=1e-4, atol=1e-5)
