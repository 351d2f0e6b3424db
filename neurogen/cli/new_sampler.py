"""`neurogen new-sampler`: a complete package to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from neurogen.cli.common import debug_option, echo
from neurogen.errors import ParameterError
from neurogen.registry.registry import default_registry

__all__ = ["command"]


@click.command("new-sampler")
@click.argument("name", metavar="NAME")
@click.option("--with-kernel", is_flag=True, help="Kernels for the CPU and CUDA, in place of torch.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where the package's folder is made.  [default: here]",
)
@debug_option
@click.pass_context
def command(ctx: click.Context, name: str, with_kernel: bool, out: Path) -> None:
    """Write a package with a new sampler: declaration, reference, tests.

    It can be installed and works at once: a rule to be replaced by yours. NAME is what users will call it. Nothing that
    exists is overwritten.
    """
    from neurogen.registry.scaffold import new_sampler

    try:
        files = new_sampler(name, out, default_registry(), with_kernels=with_kernel)
    except ParameterError as error:
        raise click.BadParameter(str(error), ctx=ctx, param_hint="NAME") from None
    folder = files[0].parent
    for file in files:
        echo(file.as_posix())
    here = shlex.quote(folder.as_posix() if folder.is_absolute() else f"./{folder.as_posix()}")
    echo(
        f"\nNext:\n    pip install -e {here}\n    pytest {here}\n"
        f'    neurogen run --sampler {name} --prompt "Once upon a time"'
    )
