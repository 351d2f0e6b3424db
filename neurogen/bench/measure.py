"""A sampler and its peers on one cell. Knows nothing of tables and pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neurogen.bench.cells import Cell
from neurogen.bench.clock import Turns, take_turns
from neurogen.bench.logits import make_logits
from neurogen.bench.machine import Machine, this_machine
from neurogen.bench.peers import Draw, peers_for
from neurogen.bench.results import BenchResult, Quartiles, Timing
from neurogen.bench.rule import rule_of
from neurogen.contract.sampler import Sampler
from neurogen.errors import DeviceError

__all__ = ["SECONDS", "describe_machine", "draw_of", "measure", "measure_all", "set_threads"]

SECONDS = 0.3
"""Time for one cell, shared by the sampler and its peers; warming up and slow peers come on top."""

OWN = "neurogen"


def measure(
    sampler: Sampler,
    cell: Cell,
    *,
    device: torch.device | None = None,
    seconds: float = SECONDS,
    peers: Collection[str] | None = None,
) -> BenchResult:
    """Measure a sampler beside its peers, in turns.

    Args:
        sampler: with the parameters that its peers shall use too.
        cell: what to measure on.
        device: where; None is the CPU.
        seconds: time for the turns.
        peers: some of `neurogen.bench.results.PEERS`; None is all that there are here.

    Raises:
        DeviceError: the memory of the device does not suffice.
        NeurogenError: the sampler does not take these logits, or fails.
    """
    device = device or torch.device("cpu")
    try:
        logits, source = make_logits(cell, device)
        beside = peers_for(rule_of(sampler), cell.batch, device, peers)
        calls = {name: partial(draw, logits) for name, (draw, _) in beside.items()}
        turns = take_turns({OWN: partial(draw_of(sampler, logits), logits), **calls}, device, seconds)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise DeviceError(
            f"The cell {cell} does not fit into the memory of {device}, with the copies that peers make. Take a "
            "smaller batch or vocab."
        ) from error
    own = turns.pop(OWN)
    return BenchResult(
        sampler=sampler.name,
        params=sampler.params.model_dump(),
        cell=cell,
        device=str(device),
        logits=source,
        own=_timing(own),
        peers={name: _timing(peer) for name, peer in turns.items()},
        to_peers={name: _ratios(own, peer) for name, peer in turns.items()},
        peer_notes={name: note for name, (_, note) in beside.items() if note},
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has an error of its own only for CUDA."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def measure_all(
    pairs: Iterable[tuple[Sampler, Cell]],
    *,
    device: torch.device | None = None,
    seconds: float = SECONDS,
    peers: Collection[str] | None = None,
) -> Iterator[BenchResult]:
    """Measure one after the other; arguments as for `measure`."""
    for sampler, cell in pairs:
        yield measure(sampler, cell, device=device, seconds=seconds, peers=peers)


@contextmanager
def set_threads(count: int | None) -> Iterator[None]:
    """Let torch, and therefore the samplers, use `count` threads in the block; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw_of(sampler: Sampler, logits: Tensor) -> Draw:
    """The sampler as an engine calls it on such logits: seeds and positions are tensors that lie there already.

    On CUDA nothing waits for the device to check the ids; on the CPU they are checked, as for any user.
    """
    batch, device = logits.shape[0], logits.device
    arguments: dict[str, Any] = {
        "seed": torch.arange(batch, device=device),
        "position": torch.full((batch,), 12, device=device),
        "check": device.type != "cuda",
    }
    if sampler.stateful:
        arguments["state"] = sampler.fresh_state(batch, device)
    return partial(sampler.sample, **arguments)


def describe_machine(device: torch.device | None = None, busy: float | None = None) -> Machine:
    """This machine, with the threads that torch, and therefore the samplers, use now."""
    on_cuda = device is not None and device.type == "cuda"
    return this_machine(torch.get_num_threads(), torch.cuda.get_device_name(device) if on_cuda else None, busy)


def _timing(turns: Turns) -> Timing:
    times = list(turns.times.values())
    return Timing(microseconds=Quartiles.of(times), least=min(times), turns=len(times), calls=turns.calls)


def _ratios(own: Turns, peer: Turns) -> Quartiles:
    """Quartiles of the ratio in the rounds that both took part in; where there are hardly any, of all against all."""
    common = [own.times[number] / took for number, took in peer.times.items() if number in own.times]
    if len(common) >= min(len(own.times), len(peer.times)) / 2:
        return Quartiles.of(common)
    return Quartiles.of([mine / theirs for mine in own.times.values() for theirs in peer.times.values()])
