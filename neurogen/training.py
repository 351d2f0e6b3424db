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

from neurogen.checkpoint import kept_of, latest_checkpoint, load_checkpoint, read_state, save_checkpoint
from neurogen.errors import DataError
from neurogen.training_files import (
    METRICS_FILE,
    SAMPLES_FILE,
    TOKENIZER_FOLDER,
    append_report,
    cut_behind,
    locked,
    write_options,
)
from neurogen.training_options import OPTIONS_FILE, TrainingOptions, options_in_force
from neurogen.training_report import ChunkReport, means_of, sums_of
from neurogen.training_setup import check_run, load_weights, make_tokenizer

if TYPE_CHECKING:
    from filelock import FileLock
    from torch import Tensor

    from neurogen.data import BrokenRow, PackedBatch
    from neurogen.tokenizer import Tokenizer
    from neurogen.trainer import StepResult, Trainer

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
        self.stop_requested = False
        self._lock: FileLock | None = None
        check_run(self.folder, self.options)
        self._accelerator = _accelerator(self.options)
        try:
            self._begin(on_broken)
        except BaseException:
            self.close()
            raise

    def _begin(self, on_broken: Callable[[BrokenRow], None] | None) -> None:
        """Make tokenizer, model and data ready where the run stands."""
        if self._accelerator.is_main_process:
            self._lock = locked(self.folder)
        checkpoint = latest_checkpoint(self.folder)
        self.tokenizer = self._prepared_tokenizer()
        self.trainer = self._new_trainer(checkpoint)
        self._train, self._validation = self._streams(on_broken)
        if checkpoint is not None:
            self._go_to(checkpoint)
        if self._accelerator.is_main_process:
            write_options(self.folder / OPTIONS_FILE, asdict(self.options))
            for name in (METRICS_FILE, SAMPLES_FILE):
                cut_behind(self.folder / name, self.chunk)

    def _go_to(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        load_checkpoint(checkpoint, self.trainer)
        try:
            self._train.load_state_dict(state["data"])
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"The position in the data of {checkpoint} cannot be used: {type(error).__name__}: {error}. "
                "Remove that checkpoint to go on from the one before."
            ) from None
        self.chunk = self.saved = int(state["chunk"])

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
        batches = iter(self._train)
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
            yield report
            if stop:
                return
        if self.saved != self.chunk and self._is_finite():
            self.save()

    def save(self) -> Path:
        """Write a checkpoint of where the run is."""
        state = {"data": self._train.state_dict()}
        made = save_checkpoint(self.folder, self.chunk, self.trainer, self.tokenizer, state, keep=self.options.keep)
        self.saved = self.chunk
        return made

    def _train_chunk(self, batches: Iterator[PackedBatch]) -> tuple[ChunkReport, bool] | None:
        """The steps of a chunk, its measures over all processes, its lines. None where the data have ended."""
        import torch

        started = time.perf_counter()
        results: list[StepResult] = []
        last: PackedBatch | None = None
        for _ in range(self.steps_per_chunk):
            batch = next(batches, None)
            if batch is None or len(batch.context_ids) < self.options.sequences:
                break  # a last smaller batch would be a step of another kind, and some ranks have none
            results.append(self.trainer.train_step(batch.context_ids, batch.target_ids))
            last = batch
        if last is None:
            return None
        device = self._accelerator.device
        sums = torch.stack([sums_of(result) for result in results]).sum(0)
        sums = torch.cat([sums, torch.tensor([float(self.stop_requested)], dtype=sums.dtype)])
        total: list[float] = self._accelerator.reduce(sums.to(device), "sum").tolist()
        report = self._report(results, total, time.perf_counter() - started)
        if (self.chunk + 1) % self.options.val_every == 0 and self._validation:
            report = replace(report, validation=self.trainer.evaluate(self._validation))
        if self.is_main:
            append_report(self.folder / METRICS_FILE, report.to_json())
            append_report(self.folder / SAMPLES_FILE, self._sample(report.chunk, last, results[-1].predicted_ids))
        return report, total[-1] > 0

    def _report(self, results: list[StepResult], total: list[float], seconds: float) -> ChunkReport:
        from neurogen.health import judge

        health, contrast = means_of(total, self.trainer.vocab_size)
        norm = fsum(result.gradient_norm for result in results) / len(results)
        verdict, reason = judge(health, norm)
        return ChunkReport(
            chunk=self.chunk + 1,
            step=self.trainer.step,
            tokens=self._train.tokens,
            epoch=self._train.epoch,
            health=health,
            gradient_norm=norm,
            learning_rate=results[-1].learning_rate,
            tokens_per_second=health.positions / seconds,
            verdict=verdict,
            reason=reason,
            broken_rows=self._train.broken,
            skipped_steps=sum(result.skipped for result in results),
            contrast_accuracy=contrast if self.options.contrast else None,
        )

    def _sample(self, chunk: int, batch: PackedBatch, predicted: Tensor) -> dict[str, Any]:
        """What the model predicted in a stretch of the last batch, each token after the right ones before it."""
        row = chunk % len(batch.context_ids)
        middle = self.options.context // 2
        context = batch.context_ids[row, max(0, middle - SAMPLE_CONTEXT + 1) : middle + 1].tolist()
        expected = batch.target_ids[row, middle : middle + SAMPLE_TARGETS].tolist()
        found = predicted[row, middle : middle + SAMPLE_TARGETS].tolist()
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

    def _prepared_tokenizer(self) -> Tokenizer:
        """The run's own copy of the tokenizer, made now if the run is new."""
        from neurogen.tokenizer import load_tokenizer

        folder = self.folder / TOKENIZER_FOLDER
        if self._accelerator.is_main_process and not (folder / "complete").is_file():
            make_tokenizer(self.options, folder)
        self._accelerator.wait_for_everyone()
        return load_tokenizer(folder)

    def _new_trainer(self, checkpoint: Path | None) -> Trainer:
        from neurogen.presets import model_config, new_model
        from neurogen.trainer import Trainer

        options = self.options
        if checkpoint is None:
            config = model_config(self.tokenizer, context=options.context, preset=options.preset, file=options.config)
            model: Any = new_model(config, options.seed)
        else:
            model = load_weights(checkpoint)
        steps = None if options.max_chunks is None else options.max_chunks * self.steps_per_chunk
        return Trainer(
            model,
            options.for_trainer(steps),
            accelerator=self._accelerator,
            contrast=_contrast() if options.contrast else None,
        )

    def _streams(self, on_broken: Callable[[BrokenRow], None] | None) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
        """The training data, and this process's share of the held-out tokens as batches."""
        from neurogen.data import PackedStream

        options, accelerator = self.options, self._accelerator
        shares: dict[str, Any] = {
            "context": options.context,
            "batch_size": options.sequences,
            "rank": accelerator.process_index,
            "world_size": accelerator.num_processes,
            "parse_special": options.parse_special,
        }
        train = PackedStream(
            options.data,
            self.tokenizer,
            **shares,
            repeat=options.max_chunks is not None,
            select=options.is_trained_on,
            on_broken=on_broken if self.is_main else None,
        )
        if options.val:
            return train, self._held_out(PackedStream(options.val, self.tokenizer, **shares, repeat=False))
        if not options.hold_out:
            return train, []
        held_out = PackedStream(
            options.data, self.tokenizer, **shares, repeat=False, select=lambda n: not options.is_trained_on(n)
        )
        try:
            return train, self._held_out(held_out)
        except DataError:  # too few documents for a sequence of held-out text: then there is nothing to measure on
            return train, []

    def _held_out(self, held_out: Any) -> list[tuple[Tensor, Tensor]]:
        """This process's share of as many held-out tokens as are to be measured, as batches."""
        options = self.options
        batches: list[tuple[Tensor, Tensor]] = []
        joint = options.sequences * options.context * self.processes
        for batch in held_out:
            if self.processes > 1 and held_out.tokens % joint:
                break  # some processes have no share of the last, smaller batch, and all must make the same calls
            batches.append((batch.context_ids, batch.target_ids))
            if held_out.tokens >= options.val_tokens:
                break
        return batches


def _accelerator(options: TrainingOptions) -> Any:
    from accelerate import Accelerator

    from neurogen.models import resolve_device

    device, _ = resolve_device(options.device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if options.precision == "bf16" else "no",
        dynamo_backend="inductor" if options.compile else None,
    )


def _contrast() -> Any:
    from neurogen.registry import load_sampler

    return load_sampler("topk", k=50, temperature=1.0)


def _hopeless(report: ChunkReport, folder: Path) -> str:
    return (
        f"Training stopped at chunk {report.chunk}: for {HOPELESS_CHUNKS} chunks no gradient was finite "
        f"({report.reason}). Try a lower --lr in a new folder. {kept_of(folder)}"
    )
