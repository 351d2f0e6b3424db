"""What is made ready before a training run: checks of all that was named, the tokenizer, weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurogen.errors import DataError, ParameterError
from neurogen.files import check_place, replacing, writing
from neurogen.training.checkpoint import checkpoints_of, latest_checkpoint
from neurogen.training.files import METRICS_FILE, SAMPLES_FILE, check_folder
from neurogen.training.options import OPTIONS_FILE, TrainingOptions

__all__ = ["check_run", "load_weights", "make_tokenizer"]


def check_run(folder: Path, options: TrainingOptions, *, resume: bool) -> None:
    """Refuse what can be refused, before a tokenizer is trained and a model made. Nothing is written.

    Args:
        folder: of the run.
        options: of the run.
        resume: whether it has begun already.

    Raises:
        NeurogenError: folder, data, tokenizer or configuration cannot be used.
    """
    from neurogen.data.sources import resolve
    from neurogen.models.tokenizer import load_tokenizer
    from neurogen.training.presets import PRESETS, check_config, read_config

    begins = latest_checkpoint(folder) is None
    check_folder(folder)
    for name in (METRICS_FILE, SAMPLES_FILE, OPTIONS_FILE) if folder.is_dir() else ():
        check_place(f"The training's {name}", folder / name)
    if not resume:
        _refuse_remains(folder)
    for name, sources in {"DATA": options.data, "--val DATA": options.val or options.data}.items():
        try:
            resolve(sources)
        except DataError as error:
            moved = f" If the data have been moved, give their new place: neurogen train {name} --resume --out {folder}"
            raise DataError(f"{error}{moved}" if resume else str(error)) from None
    if options.config is not None and begins:
        read_config(options.config)  # what takes no torch comes first
    _check_samplers(options)
    vocab_size = PRESETS[options.preset].vocab_size
    if options.tokenizer is not None and not resume:
        vocab_size = load_tokenizer(Path(options.tokenizer).expanduser()).vocab_size
    if options.config is not None and begins:
        check_config(options.config, context=options.context, vocab_size=vocab_size)


def _check_samplers(options: TrainingOptions) -> None:
    from neurogen.registry.registry import default_registry
    from neurogen.training.trainer import MEASURED_BY

    default_registry().load_sampler("greedy", require=MEASURED_BY)
    if options.contrast:
        default_registry().load_sampler("topk")


def _refuse_remains(folder: Path) -> None:
    """Refuse a folder with files of a run whose options are not there: they are not this run's, and not to be lost."""
    names = [name for name in (METRICS_FILE, SAMPLES_FILE) if (folder / name).is_file()]
    names += [checkpoint.name for checkpoint in checkpoints_of(folder)[-1:]]
    if names:
        raise DataError(
            f"{folder} holds {', '.join(names)} of another run, but not its {OPTIONS_FILE}. Choose another folder, or "
            "remove what is in this one."
        )


def make_tokenizer(options: TrainingOptions, folder: Path) -> None:
    """Write the tokenizer's files, in place of what a run that failed early has left."""
    from neurogen.models.tokenizer import SentencePieceTokenizer, load_tokenizer

    with writing("The tokenizer", folder), replacing(folder) as draft:
        draft.mkdir()
        if options.tokenizer is None:
            source = draft / "tokenizer.model"
            source.write_bytes(_learnt_model(options))
        else:
            source = Path(options.tokenizer).expanduser()
        tokenizer = load_tokenizer(source)
        if isinstance(tokenizer, SentencePieceTokenizer):
            tokenizer.adds_bos = False  # documents are trained without a start token
        tokenizer.save(draft)


def _learnt_model(options: TrainingOptions) -> bytes:
    """A tokenizer for the data, with as many pieces as the preset says."""
    from neurogen.data.tokenizer_training import learn_tokenizer
    from neurogen.training.presets import PRESETS

    try:
        return learn_tokenizer(options.data, PRESETS[options.preset].vocab_size)
    except ParameterError as error:
        raise ParameterError(
            f"{error} `neurogen tokenizer train` makes one with another --vocab-size, for --tokenizer here.",
            error.parameter,
        ) from None


def load_weights(checkpoint: Path) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from neurogen.models.weights import quiet_transformers

    loader: Any = AutoModelForCausalLM
    try:
        with quiet_transformers():
            return loader.from_pretrained(
                str(checkpoint),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, SafetensorError, LookupError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(
            f"The model in {checkpoint} cannot be loaded: {' '.join(str(error).split())[:300]}. Remove that checkpoint "
            "to go on from the one before."
        ) from None
