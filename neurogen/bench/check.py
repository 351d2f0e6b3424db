"""`python -m neurogen.bench.check`: have samplers become slower than the committed ratios to plain torch?

It compares the ratios to one read of the memory and to plain torch, on one thread, since times say little about another
machine. A ratio may grow by a half, or to three times its value on another processor than that of the figures, whose
vector units and caches differ. Machines are noisy: a time is that of the quickest turn, what looks slower is
measured up to three times again after all the others, and the best counts. Committed figures are the best of three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict, ValidationError

from neurogen.bench.cells import Cell
from neurogen.bench.machine import Machine
from neurogen.bench.results import FLOOR, BenchResult, Number
from neurogen.errors import DataError, NeurogenError
from neurogen.files import to_json, write_text
from neurogen.registry.registry import default_registry

__all__ = ["CELLS", "ExpectedRatios", "Figures", "allowed_growth", "check", "command", "read_figures", "worst_growth"]

FIGURES = Path("benchmarks/figures.json")
CELLS = (
    Cell(kind="normal", vocab=32_000, batch=8),
    Cell(kind="normal", vocab=128_256, batch=1),
    Cell(kind="normal", dtype="bfloat16", vocab=32_000, batch=8),
    Cell(kind="flat", vocab=32_000, batch=8),
)
"""Made-up logits only: a real model's would depend on which model is installed."""

PEERS = (FLOOR, "torch")
GROWTH, GROWTH_ELSEWHERE = 1.5, 3.0
REPEATS = 3
SECONDS = 0.3
PAUSE_SECONDS = 2.0

Measure = Callable[["ExpectedRatios"], dict[str, float]]


class ExpectedRatios(BaseModel):
    """What is expected of one sampler on one cell.

    Attributes:
        sampler, params, cell: what is measured.
        ratios: peer -> the sampler's time over the peer's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampler: str
    params: dict[str, Any]
    cell: Cell
    ratios: dict[str, Number]

    def __str__(self) -> str:
        return f"{self.sampler} {self.cell}"


class Figures(BaseModel):
    """A file of them.

    Attributes:
        machine: where they were measured.
        figures: one a cell and sampler.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    figures: list[ExpectedRatios]


def read_figures(file: Path) -> Figures:
    """Read committed figures.

    Raises:
        DataError: they cannot be read.
    """
    try:
        return Figures.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"The figures in {file} cannot be read: {reason}. `python -m neurogen.bench.check --update` writes them."
        ) from None


def check(
    figures: Sequence[ExpectedRatios], measure: Measure, allowed: float, pause: float = PAUSE_SECONDS
) -> Iterator[tuple[ExpectedRatios, float, int]]:
    """Measure all, then repeat those that look slower than allowed, since disturbances of a machine often end soon.

    Yields:
        a figure, how much its ratios have grown at worst, in the best ratios of all its measurements, and how many
        these were; as soon as it is settled.
    """
    best: dict[int, dict[str, float]] = {}
    waiting = list(enumerate(figures))
    for repeat in range(REPEATS + 1):
        again = []
        for number, figure in waiting:
            best[number] = _better(best.get(number), measure(figure))
            growth = worst_growth(figure, best[number])
            if growth <= allowed or repeat == REPEATS:
                yield figure, growth, repeat + 1
            else:
                again.append((number, figure))
        if not again:
            return
        waiting = again
        time.sleep(pause)


def _better(one: dict[str, float] | None, other: dict[str, float]) -> dict[str, float]:
    return other if one is None else {peer: min(ratio, other[peer]) for peer, ratio in one.items()}


def worst_growth(figure: ExpectedRatios, ratios: dict[str, float]) -> float:
    """The largest of the ratios' growths; 1 is as committed."""
    return max(ratios[peer] / committed for peer, committed in figure.ratios.items())


def allowed_growth(committed: Machine, here: Machine) -> float:
    """How much a ratio may grow."""
    return GROWTH if committed.cpu == here.cpu else GROWTH_ELSEWHERE


@click.command()
@click.argument("samplers", nargs=-1)
@click.option("--figures", "file", type=click.Path(path_type=Path), default=FIGURES, show_default=True)
@click.option("--update", is_flag=True, help="Measure and write the figures, of SAMPLERS and of those in the file.")
def command(samplers: Sequence[str], file: Path, update: bool) -> None:
    """Compare the ratios of SAMPLERS, or of all in the file, with the committed figures."""
    from neurogen.bench.measure import set_threads

    try:
        with set_threads(1):
            if update:
                _update(file, samplers)
            else:
                _check_all(read_figures(file), file, samplers)
    except NeurogenError as error:
        raise click.ClickException(str(error)) from None


def _check_all(committed: Figures, file: Path, samplers: Sequence[str]) -> None:
    allowed = _told_allowance(committed)
    chosen = [figure for figure in committed.figures if not samplers or figure.sampler in samplers]
    if not chosen:
        raise DataError(f"{file} holds no figures of {', '.join(samplers)}. Add them with --update.")
    slower = []
    for figure, growth, measurements in check(chosen, _ratios, allowed):
        again = f", best of {measurements}" if measurements > 1 else ""
        click.echo(
            f"{'SLOWER' if growth > allowed else 'ok':7}{growth:5.2f} times the committed ratios  {figure}{again}"
        )
        if growth > allowed:
            slower.append(str(figure))
    if slower:
        raise click.ClickException(
            f"{len(slower)} of {len(chosen)} cells have become slower, in {REPEATS + 1} measurements each: "
            f"{'; '.join(slower)}. If that is meant, `python -m neurogen.bench.check --update` writes new figures."
        )


def _told_allowance(committed: Figures) -> float:
    from neurogen.bench.measure import describe_machine

    here = describe_machine()
    allowed = allowed_growth(committed.machine, here)
    if allowed != GROWTH:
        click.echo(
            f"The figures are of {committed.machine.cpu}, this is {here.cpu}: a ratio may grow {allowed:g} times here, "
            f"in place of {GROWTH:g}."
        )
    return allowed


def _ratios(figure: ExpectedRatios) -> dict[str, float]:
    return _least_ratios(_measured(figure.sampler, figure.params, figure.cell))


def _least_ratios(result: BenchResult) -> dict[str, float]:
    return {peer: result.own.least / timing.least for peer, timing in result.peers.items()}


def _measured(name: str, params: dict[str, Any], cell: Cell) -> BenchResult:
    from neurogen.bench.measure import measure

    return measure(default_registry().load_sampler(name, **params), cell, seconds=SECONDS, peers=PEERS)


def _update(file: Path, samplers: Sequence[str]) -> None:
    from neurogen.bench.measure import describe_machine

    names = list(dict.fromkeys([*_names_in(file), *samplers])) or _installed()
    measured = [_figure(name, cell) for name in names for cell in CELLS]
    written = Figures(machine=describe_machine(), figures=measured)
    write_text(None, file, to_json(written.model_dump(mode="json"), indent=1) + "\n")
    click.echo(f"Wrote {len(measured)} figures to {file}.")


def _names_in(file: Path) -> list[str]:
    return [figure.sampler for figure in read_figures(file).figures] if file.exists() else []


def _installed() -> list[str]:
    return [plugin.name for plugin in default_registry().load_all() if plugin.sampler_class is not None]


def _figure(name: str, cell: Cell) -> ExpectedRatios:
    """The best of several measurements, as `check` takes it: else a disturbed one would excuse what comes later."""
    results = [_measured(name, {}, cell) for _ in range(REPEATS)]
    best = {peer: min(_least_ratios(result)[peer] for result in results) for peer in PEERS}
    ratios = {peer: float(f"{ratio:.3g}") for peer, ratio in best.items()}
    return ExpectedRatios(sampler=name, params=results[0].params, cell=cell, ratios=ratios)


if __name__ == "__main__":
    command(prog_name="python -m neurogen.bench.check")
