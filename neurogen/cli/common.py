"""Code shared by several commands: their settings, `--debug`, types of options, tables. Knows no command."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from neurogen.contract.parameters import INT64
from neurogen.errors import DataError
from neurogen.files import to_json
from neurogen.registry.registry import Plugin
from neurogen.text.printable import json_printable, printable
from neurogen.text.prompts import check_text

__all__ = [
    "DescribedDefault",
    "Settings",
    "ShownContext",
    "WholeNumber",
    "commands_of",
    "counting",
    "debug_option",
    "device_option",
    "dtype_option",
    "duration",
    "echo",
    "echo_table",
    "is_terminal",
    "listed",
    "needs_escapes",
    "prompt_text",
    "random_seed",
    "tell",
    "typed",
    "unambiguous_names",
    "write_json",
    "write_sections",
]

Command = TypeVar("Command", bound=Callable[..., Any])
UNWRAPPED = 100_000
SEEDS = 2**31
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass
class Settings:
    """Settings of the whole program.

    Attributes:
        debug: show tracebacks.
    """

    debug: bool = False


def debug_option(command: Command) -> Command:
    """Accept a hidden `--debug`; every command has it, so that it can stand before or after the command's name."""
    return click.option(
        "--debug", is_flag=True, hidden=True, expose_value=False, is_eager=True, callback=_remember_debug
    )(command)


def _remember_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    settings = ctx.find_object(Settings)
    if value and settings is not None:
        settings.debug = True


class DescribedDefault(click.Option):
    """An option whose default is described in words by `show_default`, unless a configuration file gives it a value."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What click writes after the help."""
        extra = super().get_help_extra(ctx)
        configured = ctx.lookup_default(self.name or "", call=False)
        return extra if configured is None else {**extra, "default": str(configured)}


class WholeNumber(click.ParamType[int]):
    """An integer of 64 bits, with or without a smallest value."""

    name = "integer"

    def __init__(self, least: int | None = None) -> None:
        self._domain = range(INT64.start if least is None else least, INT64.stop)
        self._words = "an integer of 64 bits" if least is None else f"an integer >= {least}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        with suppress(ValueError):
            if int(value) in self._domain:
                return int(value)
        raise click.BadParameter(f"it must be {self._words}, got {value!r}.", ctx=ctx, param=param)


def device_option(command: Command) -> Command:
    """Accept `--device`."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=_device_name,
        metavar="auto|cpu|cuda",
        help="auto is CUDA where there is any.",
    )(command)


def dtype_option(command: Command) -> Command:
    """Accept `--dtype`."""
    return click.option(
        "--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Number format of the model."
    )(command)


def _device_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not DEVICE.fullmatch(value):
        raise click.BadParameter(f"it must be auto, cpu, cuda or cuda:N with N = 0, 1, ..., got {value!r}.")
    return value


def prompt_text(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of an option that takes prompts: refuse empty and malformed texts."""
    for text in value if isinstance(value, tuple) else (value,):
        try:
            if text is not None:
                check_text(text)
        except DataError as error:
            raise click.BadParameter(f"{error}.") from None
    return value


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream is there, and is a terminal."""
    return stream is not None and bool(stream.isatty())


@contextmanager
def counting(noun: str, *, shown: bool, redrawn: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr with the time left.

    Yields the function to call with the number done and the total, or None where no bar is shown.

    Args:
        noun: what is counted, such as "texts".
        shown: whether to show it.
        redrawn: let a thread redraw it several times a second; else it is redrawn only when that function is called.
    """
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    count = TextColumn("{task.completed:,}/{task.total:,} " + noun)
    columns = (BarColumn(), count, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=redrawn) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True, refresh=not redrawn)


def echo(text: str = "", *, before: str = "", err: bool = False, **style: Any) -> None:
    """Print a line that may contain text of plugins or models: control characters are shown as escapes.

    Every command prints by this function, `tell`, `echo_table` or `write_json`.

    Args:
        text: the line.
        before: printed before it unchanged, with its own colours.
        err: on stderr.
        **style: as for `click.style`.
    """
    shown = printable(text)
    click.echo(before + (click.style(shown, **style) if style else shown), err=err)


class _Formatter(click.HelpFormatter):
    """Writes help and usage with control characters as escapes, since plugins provide some of the text; see `echo`."""

    def getvalue(self) -> str:
        return printable(super().getvalue())


class ShownContext(click.Context):
    """The context of every command, whose help is safe to show on a terminal."""

    formatter_class = _Formatter


def commands_of(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and its subcommands, each with the words that call it."""
    yield path, command
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands_of(below, (*path, name))


def tell(message: str) -> None:
    """Print a message on stderr. Where stderr cannot be written, the message is lost and the command goes on."""
    with suppress(OSError):
        echo(message, err=True)


def typed(ctx: click.Context, name: str) -> bool:
    """Whether an option was given on the command line or by its environment variable, not by a configuration file."""
    return ctx.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def write_json(value: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Print one value as JSON, see `neurogen.files.to_json`; in escapes where the encoding of stdout is not UTF-8."""
    click.echo(json_printable(to_json(value, indent=2, ascii_only=needs_escapes(), default=default)))


def random_seed() -> int:
    """A seed for users who give none, short enough to be read out or typed again."""
    return secrets.randbelow(SEEDS)


def needs_escapes() -> bool:
    """Whether stdout cannot hold every character: its encoding is not UTF-8."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") != "utf8"


def duration(seconds: float) -> str:
    """A duration in words: "1 h 05 min", "2 min 10 s", "7 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def listed(words: Iterable[str], conjunction: str = "and") -> str:
    """The words as a list in a sentence: "a, b and c"."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} {conjunction} {last}" if most else last


def unambiguous_names(plugins: Sequence[Plugin]) -> list[str]:
    """What a user types for each plugin: its name, or `distribution:name` where several have the same name."""
    names = [plugin.name for plugin in plugins]
    return [plugin.qualified_name if names.count(plugin.name) > 1 else plugin.name for plugin in plugins]


def write_sections(ctx: click.Context, formatter: click.HelpFormatter, params: Iterable[click.Parameter]) -> None:
    """Write options into a help text, each into the section that its attribute `section` names, else `Options`."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            sections.setdefault(getattr(param, "section", "Options"), []).append(record)
    for title, records in sections.items():
        with formatter.section(title):
            formatter.write_dl(records)


def echo_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout: wrapped to a terminal's width, or one aligned line a row if stdout is not a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = UNWRAPPED
    style = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table(box=style, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0) if style is None else (0, 1))
    for position, title in enumerate(header):
        table.add_column(title, overflow="fold", no_wrap=not console.is_terminal, style="cyan" if position == 0 else "")
    for row in rows:
        table.add_row(*(Text(printable(cell).replace("\n", " ")) for cell in row))
    with console.capture() as captured:
        console.print(table)
    lines = (line.rstrip() for line in captured.get().splitlines())
    click.echo("\n".join(line for line in lines if line), color=console.is_terminal)
