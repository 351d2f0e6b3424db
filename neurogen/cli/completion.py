"""`neurogen completion`: the script with which a shell completes words, and the completions of a model's name.

The scripts are click's; when Tab is pressed they run `neurogen` itself, which offers what is installed and what lies in
the folder. This loads only the declarations of a sampler whose options are completed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from neurogen.cli.common import debug_option
from neurogen.models.known import known_names

__all__ = ["command", "complete_model"]

PROGRAM = "neurogen"
VARIABLE = "_NEUROGEN_COMPLETE"
HOW_TO_INSTALL = {
    "bash": """\
# Now, in this shell:        eval "$(neurogen completion bash)"
# From now on, in every one: neurogen completion bash > ~/.local/share/bash-completion/completions/neurogen
#   (the package bash-completion reads that folder), or put the line with eval into ~/.bashrc.
""",
    "zsh": """\
# Now, in this shell:        eval "$(neurogen completion zsh)"     (after autoload -U compinit && compinit)
# From now on, in every one: neurogen completion zsh > FOLDER/_neurogen, where FOLDER is one of $fpath,
#   or put the line with eval into ~/.zshrc.
""",
    "fish": """\
# Now, in this shell:        neurogen completion fish | source
# From now on, in every one: neurogen completion fish > ~/.config/fish/completions/neurogen.fish
""",
}
DEPTH = 2
MOST = 500
"""Entries of folders that are looked at: completion must be fast."""


@click.command("completion")
@click.argument("shell", type=click.Choice(tuple(HOW_TO_INSTALL)))
@debug_option
@click.pass_context
def command(ctx: click.Context, /, shell: str) -> None:
    """Print a script that lets bash, zsh or fish complete commands, options, samplers, processors and models.

    The script says how it is installed.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source().strip()
    first, _, rest = source.partition("\n")
    if first.startswith("#compdef"):  # zsh wants it first
        click.echo(f"{first}\n{HOW_TO_INSTALL[shell]}{rest}")
    else:
        click.echo(HOW_TO_INSTALL[shell] + source)


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Known names, then folders with a model and .gguf files, at most two folders deep."""
    names = [name for name in known_names() if name.startswith(incomplete)]
    return [CompletionItem(name) for name in (*names, *sorted(_paths(incomplete)))]


def _paths(incomplete: str) -> Iterator[str]:
    """Paths of models that begin so, spelled as the user typed them, so that the shell takes them for the same word."""
    typed_folder, name = os.path.split(incomplete)
    seen = 0
    pending = [(typed_folder, name, 1)]
    while pending:
        folder, start, depth = pending.pop()
        for entry in _entries(Path(folder).expanduser()):
            seen += 1
            if seen > MOST:
                return
            path = os.path.join(folder, entry.name)  # noqa: PTH118  # a Path would drop the ./ that was typed
            if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
                continue
            if entry.suffix == ".gguf" or _is_model(entry):
                yield path
            elif depth < DEPTH and entry.is_dir():
                pending.append((path, "", depth + 1))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() or (folder / "checkpoints").is_dir()
    except OSError:
        return False
