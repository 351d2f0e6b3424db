"""What a caller can require of a sampler, checked by the sampler's declaration and then by a trial.

A package that is called greedy but is not must be refused before the first training step, whatever it declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neurogen.errors import ContractError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.sampler import Sampler

__all__ = ["Contract"]

PROBE_VOCAB = 509
PROBE_KEYS = ((0, 0), (1, 17), (2**40 + 3, 5), (-9, 123_456))  # (seed, position)


@dataclass(frozen=True)
class Contract:
    """Requirements on a sampler, checked when it is loaded.

    Attributes:
        deterministic: it declares `deterministic`, and its result does not change with seed, position or repetition.
        argmax: it chooses the largest logit, the lowest id among equals, whatever the seed and position.
    """

    deterministic: bool = False
    argmax: bool = False

    def verify(self, sampler: Sampler) -> None:
        """Raise ContractError unless `sampler` keeps this contract.

        The probe is a small adversarial batch (ties, negative, -inf, signed zeros, near-equal values, all dtypes the
        sampler accepts), tried with several seeds and positions, held against the float64 reference.
        """
        if self.deterministic and not sampler.deterministic:
            raise ContractError(
                f"Sampler {sampler.name!r} ({sampler.origin}) was required to be deterministic and declares that it is "
                "not. Use a deterministic sampler, such as greedy."
            )
        if self.deterministic or self.argmax:
            for logits in _probe_batches(sampler):
                self._probe(sampler, logits)

    def _probe(self, sampler: Sampler, logits: Tensor) -> None:
        from neurogen import reference

        before = logits.clone()
        expected = [reference.argmax(row) for row in logits.float().numpy()] if self.argmax else None
        for seed, position in PROBE_KEYS:
            state = sampler.new_state(len(logits)) if sampler.stateful else None
            chosen = sampler.sample(logits, seed=seed, position=position, state=state).tolist()
            if not before.equal(logits):
                raise ContractError(f"Sampler {sampler.name!r} ({sampler.origin}) modified the logits it was given.")
            expected = chosen if expected is None else expected
            for row, (token, wanted) in enumerate(zip(chosen, expected, strict=True)):
                if token != wanted:
                    case = f"{logits.dtype} logits with seed {seed} and position {position}"
                    raise self._broken(sampler, logits[row], token, wanted, case)

    def _broken(self, sampler: Sampler, row: Tensor, token: int, wanted: int, case: str) -> ContractError:
        what = "argmax" if self.argmax else "deterministic"
        right = f"is right, {_ties(row)}" if self.argmax else "was chosen with another seed and position"
        return ContractError(
            f"Sampler {sampler.name!r} ({sampler.origin}) was required to be {what} and is not: for {case} it chose "
            f"token {token} (logit {row[token].item():g}) where {wanted} (logit {row[wanted].item():g}) {right}. "
            "Uninstall or disable that package, or reinstall a sampler that keeps the contract."
        )


def _ties(row: Tensor) -> str:
    count = int((row == row.max()).sum())
    return "the lowest id of the largest logit" if count == 1 else f"the lowest of {count} tied ids"


def _probe_batches(sampler: Sampler) -> Iterator[Tensor]:
    import torch

    rows = _probe_rows()
    for name in ("float32", "float16", "bfloat16"):
        if name in sampler.dtypes:
            yield rows.to(getattr(torch, name))
    if "float32" in sampler.dtypes:
        yield rows.T.contiguous().T  # any strides
        yield rows[-1:]  # a row alone


def _probe_rows() -> Tensor:
    """float32 [rows, PROBE_VOCAB], all finite or -inf, the same at every call."""
    import torch

    generator = torch.Generator().manual_seed(20_24)
    vocab = PROBE_VOCAB

    def normal(count: int) -> Tensor:
        return torch.randn(count, vocab, generator=generator)

    flat = normal(8) * 1e-3
    steep = normal(8) * 20
    negative = -normal(4).abs() - 5
    tied = (normal(12) * 2).round()
    equal = torch.zeros(4, vocab) + torch.tensor([[0.0], [-7.5], [3.25], [65_504.0]])
    zeros = torch.where(normal(4) > 0, 0.0, -0.0)
    sparse = torch.where(normal(6) > 1.5, normal(6), -torch.inf)
    sparse[:, 100] = sparse.max(dim=-1).values  # a tie among what is left, and never an empty row
    last = normal(2)
    last[:, -1] = 50.0
    pair = normal(4) - 10
    pair[:, 400] = pair[:, 37] = 1.0
    saturated = torch.full((2, vocab), -12.0)
    saturated[:, 11] = 12.0
    return torch.cat([flat, steep, negative, tied, equal, zeros, sparse, last, pair, saturated])
