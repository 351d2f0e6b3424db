"""`neurogen bench`: its options and what is measured. `bench_output` prints, `neurogen.bench` measures.

The options of the samplers come from their schemas, as in `neurogen run`; one that several samplers have is given to
all of them that are measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurogen.bench.cells import BATCHES, DTYPES, VOCABS, Cell, Kind, grid
from neurogen.cli.bench_options import BenchCommand, load_samplers
from neurogen.cli.common import (
    WholeNumber,
    counting,
    debug_option,
    device_option,
    is_terminal,
    listed,
    tell,
    write_json,
)
from neurogen.cli.model_options import tell_unused_gpu
from neurogen.cli.ranks import check_single
from neurogen.contract.sampler import Sampler
from neurogen.errors import ParameterError
from neurogen.files import check_place
from neurogen.registry.registry import default_registry

if TYPE_CHECKING:
    from neurogen.bench.results import BenchReport, BenchResult

__all__ = ["command"]

Pairs = list[tuple[Sampler, Cell]]

DEFAULT_VOCABS = VOCABS[:2]
DEFAULT_BATCHES = BATCHES[:2]
DEFAULT_KINDS: Sequence[Kind] = ("normal", "real")
WORST_KINDS: Sequence[Kind] = ("normal", "flat", "equal")
WORST_PEERS = ("floor", "torch")
WORST_P = 0.999


class Seconds(click.ParamType[float]):
    """A time above 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the time."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"it must be a number > 0, got {value!r}.", param, ctx)
        return seconds


@click.command("bench", cls=BenchCommand, context_settings={"max_content_width": 100})
@click.argument("samplers", metavar="[SAMPLER]...", nargs=-1)
@click.option(
    "--vocab",
    type=WholeNumber(1),
    multiple=True,
    metavar="N",
    help=f"Tokens of the vocabulary; repeat for several.  [default: {listed(map(str, DEFAULT_VOCABS))}]",
)
@click.option(
    "--batch",
    type=WholeNumber(1),
    multiple=True,
    metavar="N",
    help=f"Rows of logits; repeat for several.  [default: {listed(map(str, DEFAULT_BATCHES))}]",
)
@click.option("--dtype", type=click.Choice(DTYPES), multiple=True, help="Of the logits.  [default: float32]")
@click.option(
    "--kind",
    type=click.Choice(("normal", "real", "flat", "equal")),
    multiple=True,
    help=f"Logits: 3 * N(0, 1), a model's, nearly equal, all equal.  [default: {listed(DEFAULT_KINDS)}]",
)
@device_option
@click.option(
    "--worst-cases",
    is_flag=True,
    help="Logits and parameters that make samplers slow: nearly equal, all equal, k = vocab/2, p = 0.999.",
)
@click.option(
    "--seconds", type=Seconds(), default=0.3, show_default=True, help="Time for a cell; slow peers take more."
)
@click.option(
    "--threads", type=WholeNumber(1), metavar="N", help="For samplers and peers.  [default: as many as torch takes]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--plot", metavar="FILE.png", help="Also draw time against the number of logits.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, and no word about the picture.")
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    samplers: Sequence[str],
    device: str,
    as_json: bool,
    plot: str | None,
    quiet: bool,
    **wanted: Any,
) -> None:
    """Measure samplers beside plain torch, transformers, llama.cpp and one read of the logits.

    Without a name, all installed samplers. They and their peers take turns, each peer with the parameters of its
    sampler: read ratios, since times differ from machine to machine.
    """
    check_single(ctx)
    loaded = load_samplers(ctx, default_registry(), samplers, wanted)
    if wanted["worst_cases"] and wanted["kind"]:
        raise click.UsageError("--worst-cases chooses the logits itself: leave --kind out.", ctx)
    pairs = _pairs(loaded, wanted)
    if plot is not None:
        _check_plot(Path(plot), [cell for _, cell in pairs])
    if not quiet:
        tell_unused_gpu(device)
    report = _measured(pairs, wanted, device, shown=not quiet)
    if plot is not None:  # before the table, of which a pipe may want the first lines alone
        _draw(report, plot, quiet=quiet)
    if as_json:
        write_json(report.model_dump(mode="json"))
    else:
        from neurogen.cli.bench_output import print_report

        print_report(report)


def _pairs(samplers: Sequence[Sampler], wanted: Mapping[str, Any]) -> Pairs:
    """What to measure, sampler by sampler; dtypes that a sampler does not take are left out with a message."""
    kinds = WORST_KINDS if wanted["worst_cases"] else wanted["kind"] or DEFAULT_KINDS
    vocabs, batches = wanted["vocab"] or DEFAULT_VOCABS, wanted["batch"] or DEFAULT_BATCHES
    cells = grid(kinds, wanted["dtype"] or DTYPES[:1], vocabs, batches)
    pairs: Pairs = []
    for sampler in samplers:
        every = list(_worst(sampler, cells) if wanted["worst_cases"] else ((sampler, cell) for cell in cells))
        fitting = [(variant, cell) for variant, cell in every if cell.dtype in sampler.dtypes]
        if len(fitting) < len(every):
            tell(f"{sampler.name} takes {listed(sorted(sampler.dtypes))} only: the other dtypes are left out for it.")
        pairs += fitting
    if not pairs:
        raise ParameterError("Nothing is left to measure: none of the samplers takes logits of these dtypes.")
    return pairs


def _worst(sampler: Sampler, cells: Sequence[Cell]) -> Iterator[tuple[Sampler, Cell]]:
    """The sampler as it is, for comparison, then with parameters that make it slow."""
    for cell in cells:
        yield sampler, cell
        hard = {"k": max(1, cell.vocab // 2), "p": WORST_P} if cell.kind != "equal" else {}
        variants = (_variant(sampler, name, value) for name, value in hard.items())
        yield from ((variant, cell) for variant in variants if variant is not None)


def _variant(sampler: Sampler, parameter: str, value: float) -> Sampler | None:
    """The sampler with one parameter changed; None if it has no parameter of that name, or gives it another meaning."""
    values = sampler.params.model_dump()
    if parameter not in values:
        return None
    try:
        variant = type(sampler)(**{**values, parameter: value})
    except ParameterError:
        return None
    variant.origin = sampler.origin
    return variant


def _check_plot(path: Path, cells: Sequence[Cell]) -> None:
    """Refuse a picture that could not be drawn or written, before the work is done."""
    if path.suffix.lower() != ".png":
        raise ParameterError(f"--plot draws a PNG, got {str(path)!r}: give a name that ends with .png.")
    check_place("The picture", path)
    if len({cell.size for cell in cells}) < 2:
        raise ParameterError(
            "--plot draws time against batch * vocab and needs two different sizes at least: repeat --vocab or --batch."
        )


def _measured(pairs: Pairs, wanted: Mapping[str, Any], device: str, *, shown: bool) -> BenchReport:
    from neurogen.bench.machine import busy_cores
    from neurogen.bench.measure import describe_machine, measure_all, set_threads
    from neurogen.bench.results import BenchReport
    from neurogen.cli.bench_output import warn_if_disturbed
    from neurogen.models.language_model import resolve_device

    target, _ = resolve_device(device)
    with set_threads(wanted["threads"]):
        machine = describe_machine(target, busy_cores())
        warn_if_disturbed(machine)
        peers = WORST_PEERS if wanted["worst_cases"] else None
        results: list[BenchResult] = []
        # The bar is drawn between cells alone: a thread that redraws it would disturb what is measured.
        with counting("cells", shown=shown and is_terminal(sys.stderr), redrawn=False) as progress:
            for result in measure_all(pairs, device=target, seconds=wanted["seconds"], peers=peers):
                results.append(result)
                if progress is not None:
                    progress(len(results), len(pairs))
    return BenchReport(results=results, machine=machine)


def _draw(report: BenchReport, path: str, *, quiet: bool) -> None:
    from neurogen.bench.plot import draw_plot

    draw_plot(report, Path(path))
    if not quiet:
        tell(f"The picture is in {path}.")
