"""Loaded into vLLM's worker by tests: keeps the logits that every sampler is given, and what it chooses.

Importing it wraps the processor of neurogen-vllm; the class itself does nothing, and is there for vLLM to import.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from neurogen_vllm.processor import PersistentBatch

_apply = PersistentBatch.apply


def _recording(self: PersistentBatch, logits: torch.Tensor) -> torch.Tensor:
    rows = dict(self._rows)
    before = {index: logits[index].clone() for index in rows}
    others = [index for index in range(len(logits)) if index not in rows]
    untouched = logits[others].clone()
    result = _apply(self, logits)
    assert torch.equal(result[others], untouched)
    with Path(os.environ["NEUROGEN_TEST_RECORD"]).open("ab") as file:
        for index, row in rows.items():
            finite = torch.isfinite(result[index]).nonzero().flatten().tolist()
            entry = (row.params.extra_args, row.params.seed, row.prompt_length, len(row.output), before[index], finite)
            pickle.dump(entry, file)
    return result


PersistentBatch.apply = _recording  # type: ignore[method-assign]


class Recorder(LogitsProcessor):
    """Leaves logits as they are."""

    def __init__(self, *_: Any) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        """True: it changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing to follow."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return logits
