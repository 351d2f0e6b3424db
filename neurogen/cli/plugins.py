"""`neurogen plugins`: every plugin found, whether it loads, and why not; `doctor` looks closer and names remedies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from neurogen.cli.common import debug_option, echo, echo_table, listed, tell, write_json
from neurogen.cli.plugin_tables import tell_none_installed
from neurogen.registry.registry import DISABLE_VARIABLE, PROCESSORS, SAMPLERS, Plugin, default_registry

if TYPE_CHECKING:
    from neurogen.registry.doctor import Examined

__all__ = ["command"]

HEADER = ("PLUGIN", "KIND", "DISTRIBUTION", "MODULE", "STATUS", "LOAD TIME", "ERROR")
EXIT_INTERRUPTED = 130
DOCTOR_HEADER = ("PLUGIN", "KIND", "DISTRIBUTION", "STATUS", "API", "LOAD TIME", "CONFORMANCE", "FILE")


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a plugin fails to load.")
@debug_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, strict: bool) -> int:
    """List every plugin found, loaded or failed, and why."""
    if ctx.invoked_subcommand is not None:
        for name, option in (("as_json", "--json"), ("strict", "--strict")):
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{option} belongs after the subcommand: {ctx.invoked_subcommand}.", ctx)
        return 0
    registry = default_registry()
    plugins = [*registry.load_all(SAMPLERS), *registry.load_all(PROCESSORS)]
    unused = registry.unused_exclusions()
    if unused:
        names = listed(map(repr, unused))
        tell(f"{DISABLE_VARIABLE} names {names}, and no plugin here is called so: check the spelling.")
    if as_json:
        write_json([_entry(plugin) for plugin in plugins])
    elif not plugins:
        tell_none_installed(SAMPLERS)
    else:
        echo_table(HEADER, map(_row, plugins))
    failed = any(plugin.status == "failed" for plugin in plugins)
    return 1 if strict and failed else 0


def _entry(plugin: Plugin) -> dict[str, str | float | None]:
    return {
        "name": plugin.name,
        "kind": plugin.kind.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.value,
        "status": plugin.status,
        "load_seconds": plugin.load_seconds,
        "error": plugin.error,
    }


def _row(plugin: Plugin) -> tuple[str, ...]:
    name, kind = plugin.name, plugin.kind.name
    return name, kind, plugin.origin, plugin.value, plugin.status, _took(plugin.load_seconds), plugin.error or "-"


def _took(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


@command.command("doctor")
@click.option(
    "--conformance/--no-conformance",
    default=False,
    help="Also run the quick conformance checks of every sampler: up to a minute each, one after the other.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say on stderr how far the checks are.")
@debug_option
def doctor(conformance: bool, as_json: bool, quiet: bool) -> int:
    """Say where each plugin comes from, whether it can be used, and what to do about each problem.

    With --conformance also whether samplers keep their contract; Ctrl-C ends that, and what is known so far is printed.
    Exit code 1 when there is a problem.
    """
    from neurogen.registry.doctor import examine

    found = examine(default_registry(), conformance=False)
    stopped = conformance and not _checked(found, quiet=quiet)
    if as_json:
        write_json([plugin.as_dict() for plugin in found])
    elif not found:
        tell_none_installed(SAMPLERS)
    else:
        echo_table(DOCTOR_HEADER, map(_doctor_row, found))
        _print_problems(found)
    if not (conformance or as_json or quiet):
        tell("\nWhether samplers keep their contract was not looked at: --conformance does, in some minutes.")
    return EXIT_INTERRUPTED if stopped else int(any(plugin.problems for plugin in found))


def _checked(found: Sequence[Examined], *, quiet: bool) -> bool:
    """Run the conformance checks and say how far they are; False where Ctrl-C has ended them."""
    from neurogen.registry.doctor import check_conformance, to_check

    total, done = len(to_check(found)), 0
    checks = check_conformance(found)
    try:
        with closing(checks):
            for plugin in checks:
                done += 1
                if not quiet:
                    tell(f"Conformance, {done} of {total}: {plugin.distribution}:{plugin.name}: {plugin.conformance}.")
    except KeyboardInterrupt:
        if not quiet:
            tell(f"Stopped: the checks of {done} of {total} samplers have ended. What follows is what is known so far.")
        return False
    return True


def _doctor_row(plugin: Examined) -> tuple[str, ...]:
    return (
        plugin.name,
        plugin.kind,
        f"{plugin.distribution} {plugin.version}",
        f"{plugin.status}: {plugin.disabled}" if plugin.disabled else plugin.status,
        "-" if plugin.api_version is None else str(plugin.api_version),
        _took(plugin.load_seconds),
        plugin.conformance or "-",
        plugin.file or "-",
    )


def _print_problems(found: list[Examined]) -> None:
    """Print each problem with its remedy, or that there are no problems."""
    count = sum(len(plugin.problems) for plugin in found)
    echo(f"\n{count or 'no'} problem{'' if count == 1 else 's'}")
    for plugin in found:
        for problem in plugin.problems:
            echo(f"\n{plugin.kind} {plugin.name} of {plugin.distribution} {plugin.version}: {problem.what}.")
            echo(f"    {problem.remedy}.")
