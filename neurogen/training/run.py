"""A training run from data to checkpoints: chunks of steps, each measured, judged, written down, and resumable.

`TrainingRun.chunks` yields a report a chunk and prints nothing. What a run writes is in `run_folder` and `checkpoint`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import fsum
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from neurogen.data.batches import IGNORE_INDEX, BrokenRow, PackedBatch
from neurogen.data.sources import resolve
from neurogen.data.tokenizer_training import learn_tokenizer
from neurogen.diagnosis.health import judge
from neurogen.errors import DataError, ParameterError
from neurogen.files import replacing, writing
from neurogen.models.checkpoints import latest_checkpoint
from neurogen.models.language_model import resolve_device
from neurogen.models.tokenizer import SentencePieceTokenizer, load_tokenizer
from neurogen.registry.registry import load_sampler
from neurogen.training import presets
from neurogen.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from neurogen.training.data import next_batches, open_data
from neurogen.training.options import PRESETS, TrainingOptions
from neurogen.training.processes import all_or_none, peers_lost
from neurogen.training.report import ChunkReport, means_of, sums_of
from neurogen.training.resume import (
    IDENTITY,
    StoredRun,
    changes_in_words,
    check_identity,
    options_in_force,
    read_stored_run,
)
from neurogen.training.run_folder import METRICS_FILE, SAMPLES_FILE, RunFolder, resume_advice
from neurogen.training.trainer import MEASURED_BY, StepResult, Trainer

__all__ = ["METRICS_FILE", "SAMPLES_FILE", "ChunkReport", "TrainingOptions", "TrainingRun"]

MAX_SKIPPED_CHUNKS = 10
SAMPLE_CONTEXT, SAMPLE_TARGETS = 48, 16


class TrainingRun:
    """One run in one folder.

    Args:
        folder: where everything goes.
        options: what to do; not given with `resume`, which does as the run began.
        resume: go on with the run in `folder`, after its last checkpoint.
        changes: options to change from here on; only a few can be.
        on_broken: called for every row of the data that has no text.

    Attributes:
        options: as they are in force.
        trainer, tokenizer: of the run.
        chunk: how many chunks have been trained.
        saved: how many of them the newest checkpoint holds.
        stop_requested: set it to True to end after the current chunk, with a checkpoint.
        stopped: whether the run ended since that was asked for, in this process or in another.
        notices: surprises for the user, as sentences.

    Raises:
        DataError: the folder holds another run, or none to resume, or another process trains in it.
        ParameterError, ModelError, PluginError, ContractError: see `Trainer`, `presets`, `data`.
    """

    def __init__(
        self,
        folder: str | Path,
        options: TrainingOptions | None = None,
        *,
        resume: bool = False,
        changes: Mapping[str, Any] | None = None,
        on_broken: Callable[[BrokenRow], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._files = RunFolder(self.folder)
        begun = read_stored_run(self.folder)
        self.options = options_in_force(self.folder, begun, options, resume, changes or {})
        self.chunk = self.saved = 0
        self.stop_requested = self.stopped = False
        self._files.check(resume=resume)
        _check_inputs(self.folder, self.options, resume=resume)
        self._accelerator = _accelerator(self.options)
        try:
            with peers_lost():
                self._prepare(begun, on_broken)
        except BaseException:
            self.close()
            raise

    def _prepare(self, begun: StoredRun | None, on_broken: Callable[[BrokenRow], None] | None) -> None:
        """Make tokenizer, model, data and trainer, and put them where the run stands."""
        with all_or_none():
            if self.is_main:
                self._files.lock()
                if begun is None:
                    _make_tokenizer(self.options, self._files.tokenizer)
        with all_or_none():
            self.tokenizer = load_tokenizer(self._files.tokenizer)
            checkpoint = latest_checkpoint(self.folder)
            model = self._new_model() if checkpoint is None else presets.checkpoint_model(checkpoint)
        self._data = open_data(self.options, self.tokenizer, self._accelerator, on_broken)
        self.notices = self._data.notices
        self.trainer = Trainer(
            model,
            self.options.for_trainer(self.processes, separator=min(self.tokenizer.eos_ids)),
            accelerator=self._accelerator,
            contrast=load_sampler("topk", k=50, temperature=1.0) if self.options.contrast else None,
        )
        with all_or_none():
            if begun is not None:
                self.notices += check_identity(begun, self._data.identity)
                if checkpoint is not None:
                    self._load_checkpoint(checkpoint, begun.options)
            if self.is_main:
                self._files.begin({**asdict(self.options), IDENTITY: self._data.identity}, self.chunk)

    def _new_model(self) -> PreTrainedModel:
        options = self.options
        config = presets.model_config(
            self.tokenizer, context=options.context, preset=options.preset, file=options.config
        )
        return presets.new_model(config, options.seed)

    def _load_checkpoint(self, checkpoint: Path, begun: TrainingOptions) -> None:
        """Go on where a checkpoint was written."""
        state = read_state(checkpoint)
        load_checkpoint(checkpoint, self.trainer)
        try:
            self._data.train.load_state_dict(state["data"])
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"The position in the data of {checkpoint} cannot be used: {type(error).__name__}: {error}. "
                "Remove that checkpoint to go on from the one before."
            ) from None
        self.chunk = self.saved = int(state["chunk"])
        processes = state.get("processes", self.processes)
        self.notices += changes_in_words(begun, self.options, self.chunk, self.trainer.step, processes, self.processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and shows."""
        return bool(self._accelerator.is_main_process)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return int(self._accelerator.num_processes)

    @property
    def steps_per_chunk(self) -> int:
        """Optimizer steps in a chunk."""
        return self.options.steps_per_chunk(self.processes)

    def close(self) -> None:
        """Let others train in the folder."""
        self._files.close()

    def chunks(self) -> Iterator[ChunkReport]:
        """Train, yielding the report of every chunk when its line is written.

        Raises:
            DataError: nothing finite came out of many chunks in a row, or a file cannot be written; the checkpoints
                so far are intact.
        """
        with peers_lost():
            yield from self._chunks()

    def _chunks(self) -> Iterator[ChunkReport]:
        batches = iter(self._data.train)
        skipped_chunks = 0
        while self.options.max_chunks is None or self.chunk < self.options.max_chunks:
            started = time.perf_counter()
            # 1. Train on the next batches; the data may have ended.
            chunk_batches = next_batches(batches, self.steps_per_chunk)
            if not chunk_batches:
                break
            results = [
                self.trainer.train_step(batch.context_ids, batch.target_ids, joint_targets=batch.targets)
                for batch in chunk_batches
            ]
            # 2. Measure over all processes, and judge.
            report, self.stopped = self._measured(results, started)
            # 3. Write the lines of the chunk.
            with all_or_none():
                if self.is_main:
                    sample = self._sample(report.chunk, chunk_batches[-1], results[-1].predicted_ids)
                    self._files.write_chunk(report.to_json(), sample)
            self.chunk = report.chunk
            skipped_chunks = skipped_chunks + 1 if report.skipped_steps == self.steps_per_chunk else 0
            if skipped_chunks >= MAX_SKIPPED_CHUNKS:
                raise DataError(
                    f"Training stopped at chunk {report.chunk}: for {MAX_SKIPPED_CHUNKS} chunks no gradient was finite "
                    f"({report.reason}). Try a lower --lr in a new folder. {resume_advice(self.folder)}"
                )
            # 4. Write a checkpoint.
            if (self.stopped or self.chunk % self.options.save_every == 0) and self._is_finite():
                report = replace(report, checkpoint=self.save())
            yield report
            if self.stopped:
                return
        if self.saved != self.chunk and self._is_finite():
            self.save()

    def save(self) -> Path:
        """Write a checkpoint of where the run is."""
        state = {"data": self._data.train.state_dict(), "processes": self.processes}
        made = save_checkpoint(self.folder, self.chunk, self.trainer, self.tokenizer, state, keep=self.options.keep)
        self.saved = self.chunk
        return made

    def _measured(self, results: Sequence[StepResult], started: float) -> tuple[ChunkReport, bool]:
        """The report of a chunk over all processes, and whether one of them is to stop.

        Args:
            results: of the chunk's steps in this process.
            started: when the chunk began.
        """
        sums = torch.stack([sums_of(result) for result in results]).sum(0)
        sums = torch.cat([sums, torch.tensor([float(self.stop_requested)], dtype=sums.dtype)])
        total: list[float] = self._accelerator.reduce(sums.to(self._accelerator.device), "sum").tolist()
        seconds = time.perf_counter() - started
        health, contrast = means_of(total, self.trainer.vocab_size)
        norm = fsum(result.gradient_norm for result in results) / len(results)
        verdict, reason = judge(health, norm)
        chunk, data = self.chunk + 1, self._data
        validation = None
        if chunk % self.options.val_every == 0 and data.validation:
            validation = self.trainer.evaluate((batch.context_ids, batch.target_ids) for batch in data.validation)
        report = ChunkReport(
            chunk=chunk,
            step=self.trainer.step,
            tokens=data.train.tokens,
            epoch=data.train.epoch,
            health=health,
            gradient_norm=norm,
            learning_rate=results[-1].learning_rate,
            tokens_per_second=health.positions / seconds,
            verdict=verdict,
            reason=reason,
            broken_rows=data.train.broken,
            skipped_steps=sum(result.skipped for result in results),
            contrast_accuracy=contrast if self.options.contrast else None,
            validation=validation,
        )
        return report, total[-1] > 0

    def _sample(self, chunk: int, batch: PackedBatch, predicted: Tensor) -> dict[str, Any]:
        """What the model predicted in a piece of the last batch, each token after the right ones before it."""
        lengths = (batch.target_ids != IGNORE_INDEX).sum(1)  # the last batch of the data may end within a sequence
        row = chunk % int((lengths > 0).sum())
        middle = int(lengths[row]) // 2
        end = min(middle + SAMPLE_TARGETS, int(lengths[row]))
        context = batch.context_ids[row, max(0, middle - SAMPLE_CONTEXT + 1) : middle + 1].tolist()
        expected = batch.target_ids[row, middle:end].tolist()
        chosen = predicted[row, middle:end].tolist()
        decode = self.tokenizer.decode
        return {
            "chunk": chunk,
            "context": decode(context),
            "expected": decode(expected),
            "predicted": decode(chosen),
            "expected_ids": expected,
            "predicted_ids": chosen,
            "right": sum(a == b for a, b in zip(expected, chosen, strict=True)),
        }

    def _is_finite(self) -> bool:
        """Whether every weight is a finite number; a model with one that is not never becomes a checkpoint."""
        return all(bool(weight.isfinite().all()) for weight in self.trainer.model.parameters())


def _check_inputs(folder: Path, options: TrainingOptions, *, resume: bool) -> None:
    """Refuse what can be refused, before a tokenizer is trained and a model made. Nothing is written.

    Raises:
        NeurogenError: data, tokenizer, configuration or samplers cannot be used.
    """
    for name, sources in {"DATA": options.data, "--val DATA": options.val or options.data}.items():
        try:
            resolve(sources)
        except DataError as error:
            moved = f" If the data have been moved, give their new place: neurogen train {name} --resume --out {folder}"
            raise DataError(f"{error}{moved}" if resume else str(error)) from None
    load_sampler("greedy", require=MEASURED_BY)
    if options.contrast:
        load_sampler("topk")
    vocab_size = PRESETS[options.preset].vocab_size
    if options.tokenizer is not None and not resume:
        vocab_size = load_tokenizer(Path(options.tokenizer).expanduser()).vocab_size
    if options.config is not None and latest_checkpoint(folder) is None:
        presets.check_config(options.config, context=options.context, vocab_size=vocab_size)


def _make_tokenizer(options: TrainingOptions, folder: Path) -> None:
    """Write the tokenizer's files, in place of what a run that failed early has left."""
    with writing("The tokenizer", folder), replacing(folder) as draft:
        draft.mkdir()
        if options.tokenizer is None:
            source = draft / "tokenizer.model"
            source.write_bytes(_learnt_tokenizer(options))
        else:
            source = Path(options.tokenizer).expanduser()
        tokenizer = load_tokenizer(source)
        if isinstance(tokenizer, SentencePieceTokenizer):
            tokenizer.adds_bos = False  # documents are trained without a start token
        tokenizer.save(draft)


def _learnt_tokenizer(options: TrainingOptions) -> bytes:
    """A tokenizer for the data, with as many pieces as the preset says."""
    try:
        return learn_tokenizer(options.data, PRESETS[options.preset].vocab_size)
    except ParameterError as error:
        raise ParameterError(
            f"{error} `neurogen tokenizer train` makes one with another --vocab-size, for --tokenizer here.",
            error.parameter,
        ) from None


def _accelerator(options: TrainingOptions) -> Accelerator:
    device, _ = resolve_device(options.device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if options.precision == "bf16" else "no",
        dynamo_backend="inductor" if options.compile else None,
    )
