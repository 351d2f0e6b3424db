"""What `neurogen run` decodes with: its model, its draft, and the runner that they make.

Everything slow to import is imported here, and no earlier than it is needed. Knows no file and no output.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from neurogen.cli.draft_options import draft_engine
from neurogen.cli.engine_options import load_for_engine
from neurogen.cli.model_options import why_gpu_unused
from neurogen.cli.output import if_slow, loading
from neurogen.cli.ranks import local_device
from neurogen.errors import NeurogenError
from neurogen.kernels.compiling import unwatched
from neurogen.text.generation import RunOptions
from neurogen.text.runner import Runner

if TYPE_CHECKING:
    from neurogen.cli.session import Arguments, Session
    from neurogen.contract.sampler import Sampler
    from neurogen.decoding.speculative import SpeculativeEngine
    from neurogen.diagnosis.recording import Recorder

__all__ = ["Loaded", "load", "make_runner"]


@dataclass(frozen=True)
class Loaded:
    """What has been loaded for a run.

    Attributes:
        model: a `neurogen.decoding.request.DecodableModel`, or for vLLM what has a `runner`.
        speculative: decodes, where there is a draft.
    """

    model: Any
    speculative: SpeculativeEngine | None


def load(session: Session) -> Loaded:
    """Load the model and the draft, if there is one, and make the sampler's kernels ready for the model.

    Raises:
        NeurogenError: see `load_for_engine` and `draft_engine`.
    """
    if session.arguments.draft is not None:
        from neurogen.models.language_model import locate_model

        locate_model(session.arguments.draft)  # a misspelt name should not wait for the model
    model = _load_model(session)
    return Loaded(model, _load_draft(session.arguments, session.sampler, model))


def make_runner(loaded: Loaded, session: Session, options: RunOptions, observer: Recorder | None) -> Any:
    """What runs the prompts: one sequence for each sample, the best of several, or another program altogether.

    Args:
        loaded: what `load` has given.
        session: what was asked for.
        options: as the runner takes them.
        observer: sees every step, where the run is recorded.

    Returns:
        what has `run`, as `neurogen.text.runner.Runner` has it.

    Raises:
        NeurogenError: sampler, options and model do not go together.
    """
    model, arguments, sampler = loaded.model, session.arguments, session.sampler
    if arguments.engine == "vllm":
        return model.runner(sampler, options)
    if arguments.beam is not None:
        from neurogen.decoding.beam import BeamEngine, BeamSearch

        return Runner(model, sampler, options, engine=BeamEngine(BeamSearch(model, **asdict(arguments.beam)), sampler))
    from neurogen.decoding.engine import engine_for

    engine = loaded.speculative or engine_for(model, sampler, batch_size=options.batch_size, observer=observer)
    if arguments.best_of == 1:
        return Runner(model, sampler, options, engine=engine)
    from neurogen.text.best_of import BestOf

    return BestOf(model, sampler, options, candidates=arguments.best_of, engine=engine)


def _load_model(session: Session) -> Any:
    """The model, and the sampler's kernels for it, which may have to be compiled: no time of decoding."""
    arguments, sampler = session.arguments, session.sampler
    with loading(arguments.model, shown=arguments.shows_progress) as instead:
        model = load_for_engine(
            arguments.engine,
            arguments.model,
            device=local_device(arguments.device),
            dtype=arguments.dtype,
            threads=arguments.threads,
            options=arguments.engine_option or {},
        )
        slow = f"Making {sampler.name} ready: its kernels are compiled once, which takes about 10 seconds ..."
        # What is wrong with the sampler shows where it is used.
        if arguments.engine != "vllm":
            with unwatched(), if_slow(lambda: instead(slow)), suppress(NeurogenError):
                _warm(sampler, model)
    unused = why_gpu_unused(arguments.device) if arguments.engine == "torch" else None
    if unused is not None:
        session.say(unused)
    return model


def _warm(sampler: Sampler, model: Any) -> None:
    """Sample once as the engine does, so that the kernels for this model are there."""
    import torch

    vocab = min(model.vocab_size, model.tokenizer.vocab_size)
    logits = torch.zeros((1, model.vocab_size), dtype=model.dtype, device=model.device)[:, :vocab]
    state = sampler.fresh_state(1, logits.device) if sampler.stateful else None
    sampler.sample(logits, state=state)


def _load_draft(arguments: Arguments, sampler: Sampler, model: Any) -> SpeculativeEngine | None:
    """What decodes with a draft; None where there is none."""
    if arguments.draft is None:
        return None
    with loading(arguments.draft, shown=arguments.shows_progress):
        return draft_engine(
            model,
            arguments.draft,
            sampler,
            draft_tokens=arguments.draft_tokens,
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
        )
