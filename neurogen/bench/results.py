"""The results of measurements: times, ratios and the machine, as plain JSON. Measures nothing itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from neurogen.bench.cells import Cell
from neurogen.bench.machine import Machine

__all__ = ["FLOOR", "PEERS", "BenchReport", "BenchResult", "Number", "Quartiles", "Timing"]

FLOOR = "floor"
PEERS = (FLOOR, "torch", "transformers", "llama.cpp", "flashinfer")
"""All that there are; see `neurogen.bench.peers`."""


Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float; one that is not finite is null in JSON, and NaN when it is read again."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quartiles(_Record):
    """Median and quartiles of measured values.

    Attributes:
        median, q1, q3: the quartiles.
    """

    median: Number
    q1: Number
    q3: Number

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """The quartiles of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], q1=values[0], q3=values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, q1=q1, q3=q3)


class Timing(_Record):
    """How long one contender took.

    Attributes:
        microseconds: a call.
        least: the same in the quickest turn.
        turns, calls: how often it was measured, and the calls a turn.
    """

    microseconds: Quartiles
    least: Number
    turns: int
    calls: int


class BenchResult(_Record):
    """A sampler and its peers on one cell.

    Attributes:
        sampler: its name.
        params: its parameters, which its peers were given too.
        cell: what it was measured on.
        device: cpu or cuda:N.
        logits: where these logits come from.
        own: how long the sampler took.
        peers: name -> how long it took.
        to_peers: name -> the sampler's time over the peer's, turn by turn.
        peer_notes: name -> what the peer does, where it does not do what the sampler does.
    """

    sampler: str
    params: dict[str, Any]
    cell: Cell
    device: str
    logits: str
    own: Timing
    peers: dict[str, Timing]
    to_peers: dict[str, Quartiles]
    peer_notes: dict[str, str] = {}

    @property
    def label(self) -> str:
        """The sampler with its parameters: "topk(k=50, temperature=0.8)"."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.sampler}({values})" if values else self.sampler

    @property
    def microseconds(self) -> float:
        """The sampler's median time a call."""
        return self.own.microseconds.median

    @property
    def ratio_to_floor(self) -> float:
        """Its time over that of one read of the logits, `torch.amax`."""
        return self.ratio_to(FLOOR)

    def ratio_to(self, peer: str) -> float:
        """Its time over a peer's: below 1 the sampler is faster.

        Raises:
            KeyError: that peer was not measured.
        """
        return self.to_peers[peer].median

    def times_faster_than(self, peer: str) -> float:
        """A peer's time over the sampler's: above 1 the sampler is faster.

        Raises:
            KeyError: that peer was not measured.
        """
        return 1 / self.ratio_to(peer)


class BenchReport(_Record):
    """A whole run.

    Attributes:
        machine: where it ran.
        results: cell by cell.
    """

    machine: Machine
    results: list[BenchResult]
