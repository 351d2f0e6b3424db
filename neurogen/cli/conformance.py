"""`neurogen conformance`: check an installed sampler against its contract, and show where it does not keep it.

The sampler's own options come from its schema, as in `neurogen run`. The checks are in `neurogen.testing.conformance`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import WholeNumber, debug_option, echo, write_json
from neurogen.cli.ranks import check_single
from neurogen.cli.sampler_options import CommandOfSampler, SamplerOption, make_sampler
from neurogen.contract.sampler import Sampler
from neurogen.errors import DeviceError, PluginError
from neurogen.registry.registry import default_registry
from neurogen.text.printable import printable

if TYPE_CHECKING:
    from neurogen.testing.conformance import CheckResult, Report

__all__ = ["command", "print_failures"]

COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}
MOST_CHECK = 20


class ConformanceCommand(click.Command):
    """`conformance` before its sampler is known; then the same with that sampler's options."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Find out which sampler is meant, then read the arguments with its options added."""
        lenient = {**extra, "resilient_parsing": True, "ignore_unknown_options": True}
        first = super().make_context(info_name, list(args), parent, **lenient)
        words = (first.params.get("sampler"), *first.args)  # options of the sampler are still among them
        name = next((word for word in words if word and not word.startswith("-")), None)
        if name is None:
            return super().make_context(info_name, args, parent, **extra)
        chosen = OneSampler(self, name)
        extra["default_map"] = chosen.defaults(parent, name)
        return chosen.make_context(info_name, args, parent, **extra)


class OneSampler(CommandOfSampler):
    """`conformance` with the options of one sampler."""

    def options_beside(self, base: click.Command) -> list[SamplerOption]:
        """The sampler's options; none where they cannot be given: the check of the declaration says so."""
        try:
            return super().options_beside(base)
        except PluginError:
            return []


def _list_checks(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from neurogen.testing.conformance import CHECKS

        for check in CHECKS.values():
            echo(f"{check.name:<{MOST_CHECK}} {check.title}")
        ctx.exit()


@click.command("conformance", cls=ConformanceCommand, context_settings={"max_content_width": 100})
@click.argument("sampler", metavar="NAME")
@click.option("--quick", is_flag=True, help="A few seconds in place of a minute.")
@click.option(
    "--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True, help="Where the checks run."
)
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check alone; repeat for several.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_checks, help="Name the checks.")
@click.option("--seed", type=WholeNumber(0), default=0, show_default=True, help="Of the cases that are tried.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    sampler: str,
    quick: bool,
    device: str,
    only: Sequence[str],
    seed: int,
    as_json: bool,
    **values: Any,
) -> int:
    """Hold a sampler against its contract.

    NAME is an installed sampler, with or without parameters: topk, "topk(k=3)". Its own options can be given too; they
    are the base of the parameters that are tried. What it does not keep is shown by the smallest case that was found,
    as a Python program. Exit code 1 when a check fails.
    """
    check_single(ctx)
    chosen = make_sampler(default_registry(), sampler, values, ctx)
    _check_device(device)
    from neurogen.testing.conformance import check

    told = None if as_json else _ResultLines(chosen, sys.stdout.isatty())
    report = check(chosen, quick=quick, device=device, seed=seed, only=only, told=told)
    if as_json:
        write_json(report.as_dict())
    else:
        print_failures(report)
        echo(f"\n{report.verdict}")
    return 0 if report.passed else 1


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("The checks were asked for on CUDA, and there is no card here. Leave --device out.")


class _ResultLines:
    """Prints a line for each result as soon as it is known; on a terminal with colours and times."""

    def __init__(self, sampler: Sampler, in_terminal: bool) -> None:
        self._in_terminal = in_terminal
        self._header: str | None = f"{sampler!r} of {sampler.origin}\n"

    def __call__(self, result: CheckResult) -> None:
        if self._header is not None:
            echo(self._header)
            self._header = None
        status = f"{result.status:<8}"
        if self._in_terminal:
            status = click.style(status, fg=COLOURS[result.status])
        cases = f"{result.cases:,}" if result.status != "skipped" else "-"
        said = "; ".join(result.notes)
        text = said if result.status == "skipped" else f"{result.title}{f' ({said})' if said else ''}"
        took = f"  [{result.seconds:.1f} s]" if self._in_terminal and result.seconds >= 1 else ""
        echo(f" {result.check:<{MOST_CHECK}} {cases:>6}  {text}{took}", before=status)


def print_failures(report: Report) -> None:
    """Print what each failed check found; on a terminal with the program in colours."""
    for result in report.results:
        if result.failure is not None:
            echo()
            echo(f"{result.check}: {result.title}", bold=True)
            echo(f"expected: {result.failure.expected}\ngot:      {result.failure.got}")
            _print_program(result.failure.snippet)


def _print_program(snippet: str) -> None:
    if not snippet:
        return
    echo()
    if not sys.stdout.isatty():
        echo("\n".join(f"    {line}".rstrip() for line in snippet.splitlines()))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.syntax import Syntax

    Console().print(
        Padding(Syntax(printable(snippet), "python", background_color="default", word_wrap=True), (0, 0, 0, 4))
    )
