"""What `neurogen bench` prints: a table, and notes that explain its columns."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence

from neurogen.bench.machine import Machine
from neurogen.bench.results import FLOOR, PEERS, BenchReport, BenchResult, Quartiles
from neurogen.cli.common import echo, echo_table, listed, tell

__all__ = ["print_report", "warn_if_disturbed"]

WIDE = 150
"""Columns of a terminal that shows quartiles too."""

HEADER = ("SAMPLER", "LOGITS", "DTYPE", "VOCAB", "BATCH", "MEDIAN", "OVER FLOOR")


def warn_if_disturbed(machine: Machine) -> None:
    """Warn where other programs use the same cores, since they disturb what is measured."""
    if machine.disturbed:
        way = "fewer --threads" if machine.threads > 1 else "another machine"
        tell(
            f"Other programs use {machine.busy:.1f} of the {os.cpu_count()} cores here, and this measures with "
            f"{_threads(machine)}: times will jump. End them, or take {way}."
        )


def _threads(machine: Machine) -> str:
    return f"{machine.threads} thread{'s' if machine.threads != 1 else ''}"


def print_report(report: BenchReport) -> None:
    """Print the table, the machine it was measured on, and what its columns mean."""
    peers = [peer for peer in PEERS if peer != FLOOR and any(peer in result.peers for result in report.results)]
    header = (*HEADER, *(f"VS {peer.upper()}" for peer in peers))
    quartiles = not sys.stdout.isatty() or shutil.get_terminal_size().columns >= WIDE
    echo_table(header, [_row(result, peers, quartiles=quartiles) for result in report.results])
    echo()
    for note in _notes(report, peers, quartiles=quartiles):
        echo(note)


def _row(result: BenchResult, peers: Sequence[str], *, quartiles: bool) -> Sequence[str]:
    cell = result.cell
    floor = _ratio(result.to_peers[FLOOR], quartiles) if FLOOR in result.to_peers else "-"
    return (
        result.label,
        cell.kind,
        cell.dtype,
        str(cell.vocab),
        str(cell.batch),
        _time(result.microseconds),
        floor,
        *(_speedup(result, peer, quartiles) for peer in peers),
    )


def _time(microseconds: float) -> str:
    return f"{_short(microseconds)} us"


def _ratio(ratio: Quartiles, quartiles: bool) -> str:
    return _short(ratio.median) + (f" ({_short(ratio.q1)} to {_short(ratio.q3)})" if quartiles else "")


def _speedup(result: BenchResult, peer: str, quartiles: bool) -> str:
    """How many times faster the sampler is: the inverse of the ratio, so that the quartiles change places."""
    if peer not in result.to_peers:
        return "-"
    ratio = result.to_peers[peer]
    faster = Quartiles(median=1 / ratio.median, q1=1 / ratio.q3, q3=1 / ratio.q1)
    return _ratio(faster, quartiles) + _mark(result, peer)


def _mark(result: BenchResult, peer: str) -> str:
    return " *" if peer in result.peer_notes and peer != FLOOR else ""


def _short(value: float) -> str:
    """Rounded to about three significant digits."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _notes(report: BenchReport, peers: Sequence[str], *, quartiles: bool) -> Iterator[str]:
    more = "In brackets the quartiles." if quartiles else "--json has the quartiles, and a wider terminal."
    yield _machine(report.machine)
    yield (
        "MEDIAN: a call of sample(). OVER FLOOR: its time over that of torch.amax on the same logits. "
        f"VS {listed(peer.upper() for peer in peers) or 'A PEER'}: times faster than it, below 1 slower. "
        f"{more}"
    )
    for peer in peers:
        notes = {result.peer_notes[peer] for result in report.results if peer in result.peer_notes}
        yield from (f"* {peer}: {note}." for note in sorted(notes))
    for kind, source in dict.fromkeys((result.cell.kind, result.logits) for result in report.results):
        yield f"{kind}: {source}."


def _machine(machine: Machine) -> str:
    where = f"{machine.device}, " if machine.device else ""
    others = "".join(f", {name} {version}" for name, version in machine.packages.items())
    return (
        f"{where}{machine.cpu}, {_threads(machine)}; neurogen {machine.neurogen}, torch {machine.torch}, "
        f"numba {machine.numba}{others}, Python {machine.python}."
    )
