"""Refuses options of `neurogen run` that do not go together or that an engine cannot honour.

They are refused before a model is loaded. Imports neither torch nor an engine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from neurogen.cli.common import typed
from neurogen.contract.processor import Processor
from neurogen.contract.sampler import Sampler
from neurogen.decoding.beam_settings import BeamSettings
from neurogen.errors import ModelError, ParameterError
from neurogen.files import check_place

__all__ = ["BEAM_SAMPLER", "beam_settings", "check_draft", "check_engine", "check_output"]

BEAM_SAMPLER = "greedy"
"""The sampler that results of a beam search name: neither draws."""

NOT_WITH_BEAMS = ("record", "stream", "logprobs")
NOT_WITH_VLLM = {"record": None, "threads": None, "stream": None, "device": "auto", "best_of": 1}
"""Option -> what it must be, since vLLM has its own way or none."""

Problem = tuple[Any, str]
"""(whether it is there, the message)."""


def check_output(values: Mapping[str, Any], ctx: click.Context) -> None:
    """Refuse options of prompts, texts and files that do not go together.

    Args:
        values: the command's options, of this function and of all others here.
        ctx: of the command.

    Raises:
        click.UsageError: see the messages.
        DataError: the recording could not be written.
    """
    _refuse(_output_problems(values), ctx)
    if values["record"] is None:
        return
    check_place("The recording", values["record"])
    for name in ("prompts", "output"):
        if values[name] is not None and Path(values[name]).resolve() == Path(values["record"]).resolve():
            raise click.UsageError(f"--record would replace the file of --{name}: give it another name.", ctx)


def _output_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    both = values["prompt"] is not None and values["prompts"] is not None
    yield both, "Give either --prompt or --prompts, not both."
    both = values["stream"] and values["as_json"]
    yield both, "--stream writes text as it grows, --json whole objects: give one of them."
    both = values["best_of"] > 1 and (values["stream"] or values["record"] is not None)
    yield both, "--best-of chooses among whole texts: leave out --stream and --record."
    lost = values["logprobs"] is not None and not values["as_json"] and values["output"] is None
    yield lost, "--logprobs goes into objects, not into text: add --json or --output FILE.jsonl."


def beam_settings(values: dict[str, Any], sampler: str, ctx: click.Context) -> BeamSettings | None:
    """Take the options of beam search out of `values`.

    Args:
        sampler: the sampler's name.

    Raises:
        click.BadParameter: a value outside its domain.
        click.UsageError: an option does not go with beam search.
    """
    beams, penalty, early = (values.pop(name) for name in ("beams", "length_penalty", "early_stopping"))
    if beams is None:
        for name, is_given in (("length_penalty", penalty is not None), ("early_stopping", early)):
            _refuse([(is_given, f"{_spelled(name)} says how a beam search works: add --beams N.")], ctx)
        return None
    _refuse(_beam_problems(values, sampler, ctx), ctx)
    try:
        settings = BeamSettings(beams, 1.0 if penalty is None else penalty, early)
    except ParameterError as error:
        param = next(param for param in ctx.command.params if param.name == error.parameter)
        raise click.BadParameter(str(error), ctx=ctx, param=param) from None
    if values["n"] > beams:
        raise click.UsageError(f"-n must be at most --beams, which is {beams}, got {values['n']}.", ctx)
    return settings


def _beam_problems(values: Mapping[str, Any], sampler: str, ctx: click.Context) -> Iterator[Problem]:
    other = sampler.rpartition(":")[2] != BEAM_SAMPLER
    yield other, f"--beams draws nothing: give --sampler {BEAM_SAMPLER} or none, got {sampler!r}."
    for name in NOT_WITH_BEAMS:
        is_given = values[name] is not None and values[name] is not False
        yield is_given, f"{_spelled(name)} does not go with --beams."
    engine = values["engine"]
    yield engine != "torch", f"--engine {engine} does not go with --beams: only torch's can."
    yield values["best_of"] > 1, "Give either --beams or --best-of: a beam search draws no candidates."
    is_given = typed(ctx, "batch_size")
    yield is_given, "--batch-size does not go with --beams: the beams of a prompt are the batch."


def check_engine(values: Mapping[str, Any], ctx: click.Context) -> None:
    """Refuse what the engine asked for cannot honour, and an engine that is not installed.

    Raises:
        click.UsageError: an option does not go with it.
        ModelError: it is not here.
    """
    engine = values["engine"]
    _refuse(_engine_problems(values, engine, ctx), ctx)
    if engine == "llamacpp" and importlib.util.find_spec("llama_cpp") is None:
        raise ModelError(
            "The engine llamacpp needs the package llama-cpp-python, which is not installed. Install it with "
            "`pip install 'neurogen[llamacpp]'`; it is compiled on your machine, which takes some minutes and a C++ "
            "compiler."
        )
    if engine == "vllm":
        from neurogen.integrations.vllm import check_installed

        check_installed()


def _engine_problems(values: Mapping[str, Any], engine: str, ctx: click.Context) -> Iterator[Problem]:
    options = engine != "vllm" and values["engine_option"]
    yield options, f"--engine-option is for --engine vllm, and does not go with --engine {engine}."
    if engine == "llamacpp":
        dtype = values["dtype"]
        message = f"--dtype {dtype} does not go with --engine llamacpp: the number format is the GGUF file's own."
        yield dtype != "auto", message
        message = "--record does not go with --engine llamacpp: neurogen replay runs the engine torch alone."
        yield values["record"] is not None, message
    if engine == "vllm":
        for name, usual in NOT_WITH_VLLM.items():
            yield values[name] not in (usual, False), f"{_spelled(name)} does not go with --engine vllm."
        yield typed(ctx, "batch_size"), "--batch-size does not go with --engine vllm, which batches by itself."


def check_draft(
    values: Mapping[str, Any], sampler: Sampler, processors: Sequence[Processor], ctx: click.Context
) -> None:
    """Refuse what does not go with a draft, and processors that do not go with the engine.

    Args:
        sampler, processors: what was made of the options.

    Raises:
        click.UsageError: see the messages.
    """
    if values["draft"] is None:
        alone = values["draft_tokens"] is not None
        _refuse([(alone, "--draft-tokens says how far a draft runs ahead: add --draft MODEL.")], ctx)
    else:
        _refuse(_draft_problems(values, sampler, processors), ctx)
    both = processors and values["engine"] == "vllm"
    _refuse([(both, "Processors do not go with --engine vllm, which has its own.")], ctx)


def _draft_problems(values: Mapping[str, Any], sampler: Sampler, processors: Sequence[Processor]) -> Iterator[Problem]:
    engine = values["engine"]
    yield not values["draft"].strip(), "--draft must not be empty: give the name or the folder of a model."
    yield engine != "torch", f"--draft does not go with --engine {engine}: only torch's can."
    yield values["record"] is not None, "--record does not go with --draft: neurogen replay runs no draft."
    yield values["beam"] is not None, "--beams does not go with --draft: a beam search has no tokens to draft."
    message = f"--draft takes no processors, got {', '.join(map(repr, processors))}: what they remember"
    yield processors, f"{message} of a drafted token could not be taken back."
    message = f"--draft takes samplers without memory, and {sampler.name!r} has one: what it remembers"
    yield sampler.stateful, f"{message} of a drafted token could not be taken back."


def _refuse(problems: Iterator[Problem] | Sequence[Problem], ctx: click.Context) -> None:
    """Raise the first of the problems that is there."""
    for is_there, message in problems:
        if is_there:
            raise click.UsageError(message, ctx)


def _spelled(option: str) -> str:
    return f"--{option.replace('_', '-')}"
