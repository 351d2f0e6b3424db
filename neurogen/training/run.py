"""A training run from data to checkpoints: chunks of steps, each measured, judged, written down, and resumable.

    RUN/
        training.json    the options, kept for --resume
        tokenizer/       a copy of the tokenizer
        metrics.jsonl    a line a chunk      samples.jsonl    what the model predicted for a piece of it
        checkpoints/     see `checkpoint`

`TrainingRun.chunks` yields a report a chunk and prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.errors import DataError
from neurogen.training.checkpoint import (
    kept_of,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    remove_drafts,
    save_checkpoint,
)
from neurogen.training.files import (
    METRICS_FILE,
    SAMPLES_FILE,
    TOKENIZER_FOLDER,
    append_report,
    cut_behind,
    locked,
    remove_begun,
    write_options,
)
from neurogen.training.options import OPTIONS_FILE, TrainingOptions, options_in_force
from neurogen.training.processes import all_or_none, peers_lost
from neurogen.training.report import ChunkReport, means_of, sums_of
from neurogen.training.resume import check_identity, check_more, read_begun, told_changes
from neurogen.training.setup import check_run, load_weights, make_tokenizer
from neurogen.training.texts import batches_of_chunk, open_data

if TYPE_CHECKING:
    from filelock import FileLock
    from torch import Tensor

    from neurogen.data.batches import BrokenRow, PackedBatch
    from neurogen.training.trainer import StepResult, Trainer

__all__ = ["METRICS_FILE", "SAMPLES_FILE", "ChunkReport", "TrainingOptions", "TrainingRun"]

HOPELESS_CHUNKS = 10
SAMPLE_CONTEXT, SAMPLE_TARGETS = 48, 16


class TrainingRun:
    """One run in one folder.

    Args:
        folder: where everything goes.
        options: what to do; not given with `resume`, which does as the run began.
        resume: go on with the run in `folder`, behind its last checkpoint.
        changes: options that are to be otherwise from here on; few may be.
        on_broken: called for every row of the data that has no text.

    Attributes:
        options: as they are in force.
        trainer, tokenizer: of the run.
        chunk: how many chunks have been trained.
        saved: how many of them the newest checkpoint holds.
        stop_requested: set it to True to end behind the current chunk, with a checkpoint.
        stopped: whether the run ended since that was asked for, in this process or in another.
        notices: what is otherwise than a user might think, as sentences.

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
        self.options = options_in_force(self.folder, options, resume, changes or {})
        self.chunk = self.saved = 0
        self.stop_requested = self.stopped = False
        self.notices: list[str] = []
        self._lock: FileLock | None = None
        self._made_folder = False
        self._begun = read_begun(self.folder) if resume else None
        check_run(self.folder, self.options, resume=resume)
        self._accelerator = _accelerator(self.options)
        try:
            with peers_lost():
                self._begin(on_broken)
        except BaseException:
            if self._made_folder and not (self.folder / OPTIONS_FILE).exists():
                remove_begun(self.folder)
            self.close()
            raise

    def _begin(self, on_broken: Callable[[BrokenRow], None] | None) -> None:
        """Make tokenizer, model and data ready where the run stands."""
        from neurogen.models.tokenizer import load_tokenizer

        accelerator = self._accelerator
        with all_or_none(accelerator):
            if self.is_main:
                is_new = not self.folder.exists()
                self._lock = locked(self.folder)
                self._made_folder = is_new
                remove_drafts(self.folder)
                if self._begun is None:
                    make_tokenizer(self.options, self.folder / TOKENIZER_FOLDER)
        with all_or_none(accelerator):
            self.tokenizer = load_tokenizer(self.folder / TOKENIZER_FOLDER)
            checkpoint = latest_checkpoint(self.folder)
            model = self._model(checkpoint)
        self._data = open_data(self.options, self.tokenizer, accelerator, on_broken)
        self.notices += self._data.notices
        self.trainer = self._trainer(model)
        with all_or_none(accelerator):
            if self._begun is not None:
                self.notices += check_identity(self._begun, self._data.identity)
            if checkpoint is not None:
                self._go_to(checkpoint)
            if self.is_main:
                write_options(self.folder / OPTIONS_FILE, asdict(self.options), self._data.identity)
                for name in (METRICS_FILE, SAMPLES_FILE):
                    cut_behind(self.folder / name, self.chunk)

    def _go_to(self, checkpoint: Path) -> None:
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
        assert self._begun is not None
        check_more(self._begun.options, self.options, self.chunk)
        self.notices += told_changes(
            self._begun.options, self.options, self.trainer.step, state.get("processes", self.processes), self.processes
        )

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

    @property
    def tokens_per_chunk(self) -> int:
        """Targets in a chunk, over all processes."""
        return self.steps_per_chunk * self.options.sequences * self.options.context * self.processes

    def close(self) -> None:
        """Let others train in the folder."""
        if self._lock is not None:
            self._lock.release()

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
        hopeless = 0
        while self.options.max_chunks is None or self.chunk < self.options.max_chunks:
            trained = self._train_chunk(batches)
            if trained is None:
                break
            self.chunk += 1
            report, stop = trained
            hopeless = hopeless + 1 if report.skipped_steps == self.steps_per_chunk else 0
            if hopeless >= HOPELESS_CHUNKS:
                raise DataError(_hopeless(report, self.folder))
            if (stop or self._is_due(self.options.save_every)) and self._is_finite():
                report = replace(report, checkpoint=self.save())
            self.stopped = stop
            yield report
            if stop:
                return
        if self.saved != self.chunk and self._is_finite():
            self.save()

    def save(self) -> Path:
        """Write a checkpoint of where the run is."""
        state = {"data": self._data.train.state_dict(), "processes": self.processes}
        made = save_checkpoint(self.folder, self.chunk, self.trainer, self.tokenizer, state, keep=self.options.keep)
        self.saved = self.chunk
        return made

    def _train_chunk(self, batches: Iterator[PackedBatch]) -> tuple[ChunkReport, bool] | None:
        """The steps of a chunk, its measures over all processes, its lines. None where the data have ended."""
        import torch

        started = time.perf_counter()
        found = batches_of_chunk(self._accelerator, batches, self.steps_per_chunk)
        if not found:
            return None
        results = [
            self.trainer.train_step(batch.context_ids, batch.target_ids, joint_targets=batch.targets) for batch in found
        ]
        device = self._accelerator.device
        sums = torch.stack([sums_of(result) for result in results]).sum(0)
        sums = torch.cat([sums, torch.tensor([float(self.stop_requested)], dtype=sums.dtype)])
        total: list[float] = self._accelerator.reduce(sums.to(device), "sum").tolist()
        report = self._report(results, total, time.perf_counter() - started)
        if (self.chunk + 1) % self.options.val_every == 0 and self._data.validation:
            held_out = ((batch.context_ids, batch.target_ids) for batch in self._data.validation)
            report = replace(report, validation=self.trainer.evaluate(held_out))
        with all_or_none(self._accelerator):
            if self.is_main:
                sample = self._sample(report.chunk, found[-1], results[-1].predicted_ids)
                append_report(self.folder / METRICS_FILE, report.to_json())
                append_report(self.folder / SAMPLES_FILE, sample)
        return report, total[-1] > 0

    def _report(self, results: list[StepResult], total: list[float], seconds: float) -> ChunkReport:
        from neurogen.diagnosis.health import judge

        health, contrast = means_of(total, self.trainer.vocab_size)
        norm = fsum(result.gradient_norm for result in results) / len(results)
        verdict, reason = judge(health, norm)
        return ChunkReport(
            chunk=self.chunk + 1,
            step=self.trainer.step,
            tokens=self._data.train.tokens,
            epoch=self._data.train.epoch,
            health=health,
            gradient_norm=norm,
            learning_rate=results[-1].learning_rate,
            tokens_per_second=health.positions / seconds,
            verdict=verdict,
            reason=reason,
            broken_rows=self._data.train.broken,
            skipped_steps=sum(result.skipped for result in results),
            contrast_accuracy=contrast if self.options.contrast else None,
        )

    def _sample(self, chunk: int, batch: PackedBatch, predicted: Tensor) -> dict[str, Any]:
        """What the model predicted in a stretch of the last batch, each token after the right ones before it."""
        from neurogen.diagnosis.health import IGNORE_INDEX

        lengths = (batch.target_ids != IGNORE_INDEX).sum(1)  # the last batch of the data may end within a sequence
        row = chunk % int((lengths > 0).sum())
        middle = int(lengths[row]) // 2
        end = min(middle + SAMPLE_TARGETS, int(lengths[row]))
        context = batch.context_ids[row, max(0, middle - SAMPLE_CONTEXT + 1) : middle + 1].tolist()
        expected = batch.target_ids[row, middle:end].tolist()
        found = predicted[row, middle:end].tolist()
        decode = self.tokenizer.decode
        return {
            "chunk": chunk,
            "context": decode(context),
            "expected": decode(expected),
            "predicted": decode(found),
            "expected_ids": expected,
            "predicted_ids": found,
            "right": sum(a == b for a, b in zip(expected, found, strict=True)),
        }

    def _is_finite(self) -> bool:
        """Whether every weight is a finite number; a model with one that is not never becomes a checkpoint."""
        return all(bool(weight.isfinite().all()) for weight in self.trainer.model.parameters())

    def _is_due(self, every: int) -> bool:
        return self.chunk % every == 0

    def _model(self, checkpoint: Path | None) -> Any:
        from neurogen.training.presets import model_config, new_model

        options = self.options
        if checkpoint is not None:
            return load_weights(checkpoint)
        config = model_config(self.tokenizer, context=options.context, preset=options.preset, file=options.config)
        return new_model(config, options.seed)

    def _trainer(self, model: Any) -> Trainer:
        from neurogen.training.trainer import Trainer

        chunks, separator = self.options.max_chunks, min(self.tokenizer.eos_ids)
        return Trainer(
            model,
            self.options.for_trainer(None if chunks is None else chunks * self.steps_per_chunk, separator),
            accelerator=self._accelerator,
            contrast=_contrast() if self.options.contrast else None,
        )


def _accelerator(options: TrainingOptions) -> Any:
    from accelerate import Accelerator

    from neurogen.models.language_model import resolve_device

    device, _ = resolve_device(options.device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if options.precision == "bf16" else "no",
        dynamo_backend="inductor" if options.compile else None,
    )


def _contrast() -> Any:
    from neurogen.registry.registry import load_sampler

    return load_sampler("topk", k=50, temperature=1.0)


def _hopeless(report: ChunkReport, folder: Path) -> str:
    return (
        f"Training stopped at chunk {report.chunk}: for {HOPELESS_CHUNKS} chunks no gradient was finite "
        f"({report.reason}). Try a lower --lr in a new folder. {kept_of(folder)}"
    )
