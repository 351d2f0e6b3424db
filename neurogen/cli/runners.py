"""Makes the model, the engine, the draft and the runner of `neurogen run`.

Imports torch: `session` imports this module when there is something to decode. Knows no results file and no output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import click
import torch

from neurogen.cli.arguments import DRAFT_TOKENS, Arguments
from neurogen.cli.common import Settings
from neurogen.cli.output import loading
from neurogen.cli.ranks import local_device
from neurogen.cli.results import Key
from neurogen.contract.sampler import Sampler
from neurogen.decoding.beam import BeamEngine, BeamSearch
from neurogen.decoding.engine import engine_for
from neurogen.decoding.request import DecodingEngine
from neurogen.decoding.speculative import SpeculativeEngine
from neurogen.diagnosis.recording import Recorder
from neurogen.errors import NeurogenError
from neurogen.models.language_model import load_model, locate_model
from neurogen.text.best_of import BestOf
from neurogen.text.generation import Prompt, RunOptions
from neurogen.text.runner import Runner

__all__ = ["describe_draft", "load_model_for_run", "make_engine", "make_runner", "recording"]


def load_model_for_run(arguments: Arguments, sampler: Sampler) -> Any:
    """Load the model, and sample once, so that the sampler's kernels are compiled before decoding is timed.

    Returns:
        a `neurogen.decoding.request.DecodableModel`, or for vLLM its `vllm.LLM`.

    Raises:
        NeurogenError: see `neurogen.models.load_model` and the `load_...` functions of `neurogen.integrations`.
    """
    if arguments.draft is not None:
        locate_model(arguments.draft)  # a misspelt name should not wait for the model
    with loading(arguments.model, shown=arguments.shows_progress):
        model = _load(arguments)
        if arguments.engine != "vllm":
            with suppress(NeurogenError):  # an error of the sampler is raised where it is used
                _warm_up(sampler, model)
    return model


def _load(arguments: Arguments) -> Any:
    device = local_device(arguments.device)
    if arguments.engine == "vllm":
        from neurogen.integrations.vllm import load_engine

        return load_engine(arguments.model, dtype=arguments.dtype, as_texts=arguments.engine_option)
    if arguments.engine == "llamacpp":
        from neurogen.integrations.llamacpp import load_llamacpp_model

        ctx = click.get_current_context(silent=True)
        settings = ctx.find_object(Settings) if ctx is not None else None
        verbose = settings is not None and settings.debug
        return load_llamacpp_model(arguments.model, device=device, threads=arguments.threads, verbose=verbose)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    return load_model(arguments.model, device=device, dtype=arguments.dtype)


def _warm_up(sampler: Sampler, model: Any) -> None:
    """Sample once as the engine does, so that the kernels for this model are there."""
    vocab = min(model.vocab_size, model.tokenizer.vocab_size)
    logits = torch.zeros((1, model.vocab_size), dtype=model.dtype, device=model.device)[:, :vocab]
    state = sampler.fresh_state(1, logits.device) if sampler.stateful else None
    sampler.sample(logits, state=state)


def make_engine(model: Any, arguments: Arguments, sampler: Sampler, observer: Recorder | None) -> DecodingEngine | None:
    """What decodes the requests: with beams, with a draft, or token by token; None for vLLM, which is one itself.

    Args:
        model: what `load_model_for_run` has given.
        observer: sees every step, where the run is recorded.

    Raises:
        NeurogenError: the draft cannot be loaded, or does not go with the model.
    """
    if arguments.engine == "vllm":
        return None
    if arguments.beam is not None:
        return BeamEngine(BeamSearch(model, **asdict(arguments.beam)), sampler)
    if arguments.draft is None:
        return engine_for(model, sampler, batch_size=arguments.batch_size, observer=observer)
    with loading(arguments.draft, shown=arguments.shows_progress):
        draft = load_model(arguments.draft, device=str(model.device), dtype=arguments.dtype)
    tokens = arguments.draft_tokens or DRAFT_TOKENS
    return SpeculativeEngine(model, draft, sampler, draft_tokens=tokens, batch_size=arguments.batch_size)


def make_runner(
    model: Any, engine: DecodingEngine | None, arguments: Arguments, sampler: Sampler, options: RunOptions
) -> Any:
    """What runs the prompts.

    Returns:
        what has `run`, as `neurogen.text.runner.Runner` has it.

    Raises:
        NeurogenError: sampler, options and model do not go together.
    """
    if engine is None:
        from neurogen.integrations.vllm import VllmRunner

        return VllmRunner(model, sampler, options)
    if arguments.best_of > 1:
        return BestOf(model, sampler, options, candidates=arguments.best_of, engine=engine)
    return Runner(model, sampler, options, engine=engine)


def describe_draft(engine: Any) -> str:
    """How drafting has gone, for the closing line."""
    if not engine.counts.drafted:
        return "; no token was drafted"
    rate, tokens = engine.acceptance_rate, engine.tokens_per_pass
    return f"; {rate:.0%} of the drafted tokens accepted, {tokens:.2f} tokens a pass of the model"


@contextmanager
def recording(
    arguments: Arguments, model: Any, sampler: Sampler, options: RunOptions, prompts: Sequence[Prompt], done: set[Key]
) -> Iterator[Recorder | None]:
    """The recording of a run, if one is asked for; marked as complete where nothing has stopped it.

    Args:
        prompts: what is run.
        done: keys that are left out.
    """
    if arguments.record is None:
        yield None
        return
    recorder = Recorder(arguments.record, model, sampler, options, prompts, done)
    complete = False
    try:
        yield recorder
        complete = True
    finally:
        recorder.close(complete=complete)
