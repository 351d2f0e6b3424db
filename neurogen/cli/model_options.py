"""The option `--model` of the commands that take what `neurogen run` takes, and loading what it names.

Imports torch only where a model is loaded. What runs on an engine of choice is loaded by `engine_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neurogen.cli.completion import complete_model
from neurogen.cli.output import loading

if TYPE_CHECKING:
    from neurogen.models import LanguageModel

__all__ = ["DEFAULT_MODEL", "load_shown", "model_option"]

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_MODEL = "starter"


def model_option(command: Command) -> Command:
    """Accept `--model`."""
    return click.option(
        "--model", default=DEFAULT_MODEL, show_default=True, shell_complete=complete_model, help="As for neurogen run."
    )(command)


def load_shown(values: Mapping[str, Any], *, shown: bool) -> LanguageModel:
    """Load the model that `--model`, `--device` and `--dtype` ask for.

    Args:
        values: the command's options.
        shown: say on stderr that it is being loaded.

    Raises:
        NeurogenError: see `neurogen.models.load_model`.
    """
    with loading(values["model"], shown=shown):
        from neurogen.models import load_model

        return load_model(values["model"], device=values["device"], dtype=values["dtype"])
