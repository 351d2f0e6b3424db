"""Rejection of drafted tokens keeps the target's distribution."""

from __future__ import annotations

import torch
from scipy.stats import chisquare

from neurogen.decoding.rejection import accepted_counts, draw_residual

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
