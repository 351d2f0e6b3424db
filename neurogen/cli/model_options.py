"""The option `--model` of the commands that take what `neurogen run` takes, and loading what it names.

Imports torch only when a model is loaded. A model for an engine that the user chooses is loaded by `runners`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neurogen.cli.common import tell
from neurogen.cli.completion import complete_model
from neurogen.cli.output import loading

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

__all__ = [
    "DEFAULT_MODEL",
    "load_shown",
    "model_option",
    "parse_special_option",
    "tell_of_special",
    "tell_unused_gpu",
    "why_gpu_unused",
]

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_MODEL = "starter"
GPU_SIGNS = ("/dev/nvidia0", "/dev/nvidiactl", "/proc/driver/nvidia/version")


def model_option(command: Command) -> Command:
    """Accept `--model`."""
    return click.option(
        "--model", default=DEFAULT_MODEL, show_default=True, shell_complete=complete_model, help="As for neurogen run."
    )(command)


def parse_special_option(command: Command) -> Command:
    """Accept `--parse-special`."""
    return click.option(
        "--parse-special",
        is_flag=True,
        help="Make special tokens of their spellings in a prompt, such as <|im_start|>; without it they are text.",
    )(command)


def tell_of_special(model: Any, texts: Iterable[str]) -> None:
    """Say on stderr that a special token is spelled out in a text, and that it is taken as text.

    Args:
        model: the `tokenizer` of it, if there is one, knows the special tokens.
        texts: prompts; the first that spells one out is told of.
    """
    tokenizer = getattr(model, "tokenizer", None)
    found = next((one for text in texts for one in tokenizer.special_in(text)), None) if tokenizer is not None else None
    if found is not None:
        tell(f"The text {found!r} in the prompt is taken as text; --parse-special makes it the control token.")


def load_shown(values: Mapping[str, Any], *, shown: bool) -> LanguageModel:
    """Load the model that `--model`, `--device` and `--dtype` ask for.

    Args:
        values: the command's options.
        shown: say on stderr that it is being loaded.

    Raises:
        NeurogenError: see `neurogen.models.load_model`.
    """
    with loading(values["model"], shown=shown):
        from neurogen.models.language_model import load_model

        model = load_model(values["model"], device=values["device"], dtype=values["dtype"])
    tell_unused_gpu(values["device"])
    return model


def why_gpu_unused(device: str) -> str | None:
    """What to say where `--device auto` leaves the GPU of this machine unused and takes the CPU; else None."""
    if device != "auto":
        return None
    import torch

    from neurogen.models.language_model import resolve_device

    chosen, reason = resolve_device(device)
    has_gpu = torch.cuda.is_available() or any(Path(sign).exists() for sign in GPU_SIGNS)
    if chosen.type != "cpu" or not has_gpu:
        return None
    return f"Running on the CPU ({reason}), although this machine has an NVIDIA device."


def tell_unused_gpu(device: str) -> None:
    """Print that warning on stderr."""
    said = why_gpu_unused(device)
    if said is not None:
        tell(said)
