"""The options `--engine`, `--engine-option`, `--threads`: what runs the forward pass, what an engine cannot honour.

Whatever an engine cannot honour is refused before anything is loaded. Imports no engine before it is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from neurogen.cli.common import Settings, WholeNumber, typed
from neurogen.errors import ModelError

__all__ = ["ENGINES", "check_engine", "engine_options", "load_for_engine"]

Command = TypeVar("Command", bound=Callable[..., Any])

ENGINES = ("torch", "llamacpp", "vllm")


def engine_options(command: Command) -> Command:
    """Accept `--engine`, `--engine-option` and `--threads`."""
    engine = click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="torch",
        show_default=True,
        help="Runs the model: PyTorch; llama.cpp, for .gguf files; vLLM.",
    )
    threads = click.option(
        "--threads",
        type=WholeNumber(1),
        metavar="N",
        help="Threads of the model on the CPU.  [default: PyTorch's own number]",
    )
    options = click.option(
        "--engine-option",
        multiple=True,
        callback=_named_values,
        metavar="NAME=VALUE",
        help="An option of vLLM's own, such as max_model_len=4096; repeat for several.",
    )
    return engine(options(threads(command)))


def _named_values(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Name -> value, as texts."""
    named: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"it must be NAME=VALUE, got {text!r}.", ctx=ctx, param=param)
        if name in named:
            raise click.BadParameter(f"{name} is given twice.", ctx=ctx, param=param)
        named[name] = value
    return named


def check_engine(values: Mapping[str, Any], ctx: click.Context) -> None:
    """Refuse what the engine asked for cannot honour, and an engine that is not installed.

    Raises:
        click.UsageError: an option does not go with it.
        ModelError: it is not here.
    """
    engine = values["engine"]
    if engine != "vllm" and values["engine_option"]:
        raise click.UsageError(f"--engine-option is for --engine vllm, and does not go with --engine {engine}.", ctx)
    if engine == "llamacpp" and values["dtype"] != "auto":
        raise click.UsageError(
            f"--dtype {values['dtype']} does not go with --engine llamacpp: the number format is the GGUF file's own.",
            ctx,
        )
    if engine == "llamacpp" and values["record"] is not None:
        raise click.UsageError(
            "--record does not go with --engine llamacpp: neurogen replay runs the engine torch alone.", ctx
        )
    if engine == "llamacpp" and importlib.util.find_spec("llama_cpp") is None:
        raise ModelError(
            "The engine llamacpp needs the package llama-cpp-python, which is not installed. Install it with "
            "`pip install 'neurogen[llamacpp]'`; it is compiled on your machine, which takes some minutes and a C++ "
            "compiler."
        )
    if engine == "vllm":
        _check_vllm(values, ctx)


UNKNOWN_TO_VLLM = {"record": None, "threads": None, "stream": None, "device": "auto", "best_of": 1}
"""Option -> what it must be, since vLLM has its own way or none."""


def _check_vllm(values: Mapping[str, Any], ctx: click.Context) -> None:
    from neurogen.integrations.vllm import check_installed

    for name, usual in UNKNOWN_TO_VLLM.items():
        if values[name] not in (usual, False):
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --engine vllm.", ctx)
    if typed(ctx, "batch_size"):
        raise click.UsageError("--batch-size does not go with --engine vllm, which batches by itself.", ctx)
    check_installed()


def load_for_engine(
    engine: str, model: str, *, device: str, dtype: str, threads: int | None, options: Mapping[str, str]
) -> Any:
    """Load a model for an engine.

    Args:
        engine: one of `ENGINES` that `check_engine` has let pass.
        model, device, dtype: as `neurogen.models.load_model` takes them.
        threads: of the forward pass on the CPU; None for the default.
        options: the engine's own, as texts.

    Returns:
        a `neurogen.decoding.request.DecodableModel`, or for vLLM what has a `runner`.

    Raises:
        NeurogenError: see `neurogen.models.load_model` and `neurogen.integrations.llamacpp.load_llamacpp_model`.
    """
    if engine == "vllm":
        from neurogen.integrations.vllm_engine import load_vllm_model

        return load_vllm_model(model, dtype=dtype, options=options)
    if engine == "llamacpp":
        from neurogen.integrations.llamacpp import load_llamacpp_model

        ctx = click.get_current_context(silent=True)
        settings = ctx.find_object(Settings) if ctx is not None else None
        verbose = settings is not None and settings.debug
        return load_llamacpp_model(model, device=device, threads=threads, verbose=verbose)
    from neurogen.models.language_model import load_model

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return load_model(model, device=device, dtype=dtype)
