"""`neurogen train`: its options, signals and messages. The training is in `neurogen.training.run`."""

from __future__ import annotations

import shlex
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import WholeNumber, debug_option, device_option, echo, tell, typed, write_json
from neurogen.cli.model_options import tell_unused_gpu
from neurogen.cli.training_display import Display, make_display
from neurogen.cli.training_tensorboard import check_tensorboard, tensorboard_writer
from neurogen.errors import DataError, ParameterError
from neurogen.files import check_place
from neurogen.models.checkpoints import latest_checkpoint
from neurogen.training.run_folder import METRICS_FILE, resume_advice

if TYPE_CHECKING:
    from neurogen.training.run import ChunkReport, TrainingRun

__all__ = ["command"]

CHARTS = "charts.png"
BROKEN_ROWS_SHOWN = 20
EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143}
NOT_OPTIONS = frozenset({"out", "resume", "quiet", "as_json"})


@click.command(context_settings={"max_content_width": 100})
@click.argument("data", nargs=-1)
@click.option("--out", required=True, metavar="DIR", help="Folder of the run: metrics, samples, charts, checkpoints.")
@click.option("--resume", is_flag=True, help="Go on with the run in DIR after its last checkpoint.")
@click.option(
    "--tokenizer",
    metavar="FILE.model",
    help="SentencePiece model, or a folder with a tokenizer.  [default: one is trained on DATA]",
)
@click.option(
    "--preset", default="tiny", show_default=True, metavar="tiny|small|base", help="3M, 25M, 124M parameters."
)
@click.option("--config", metavar="FILE", help="Architecture as a config.json of transformers, instead of a preset.")
@click.option(
    "--tokens-per-chunk", type=WholeNumber(1), default=4096, show_default=True, help="Tokens that a report covers."
)
@click.option(
    "--max-chunks", type=WholeNumber(1), help="End after so many chunks.  [default: after one pass over DATA]"
)
@click.option("--context", type=WholeNumber(1), default=256, show_default=True, help="Tokens in a sequence.")
@click.option("--batch-size", type=WholeNumber(1), help="Sequences a step and process.  [default: a chunk is a step]")
@click.option(
    "--accumulation", type=WholeNumber(1), default=1, show_default=True, help="Work on a batch in so many parts."
)
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate.  [default: the preset's]")
@click.option("--optimizer", default="adamw", show_default=True, metavar="adamw|muon", help="Muon is for the matrices.")
@click.option("--weight-decay", type=float, default=0.1, show_default=True, help="Of matrices.")
@click.option("--warmup-steps", type=WholeNumber(0), help="Steps to the peak.  [default: 100, or a tenth of the run]")
@click.option("--max-gradient-norm", type=float, default=1.0, show_default=True, help="Clip the gradient to this.")
@click.option("--val", multiple=True, metavar="DATA", help="Held-out data to measure on; repeat for several.")
@click.option(
    "--hold-out",
    type=WholeNumber(0),
    default=100,
    show_default=True,
    help="Without --val, measure on every N-th document and do not train on it; 0: do not measure.",
)
@click.option("--val-every", type=WholeNumber(1), default=50, show_default=True, help="Chunks between measurements.")
@click.option("--val-tokens", type=WholeNumber(1), default=32_768, show_default=True, help="Held-out tokens.")
@click.option("--save-every", type=WholeNumber(1), default=100, show_default=True, help="Chunks between checkpoints.")
@click.option("--keep", type=WholeNumber(1), default=2, show_default=True, help="Checkpoints that are kept.")
@click.option("--chart-every", type=WholeNumber(1), default=100, show_default=True, help="Chunks between charts.")
@click.option("--precision", default="float32", show_default=True, metavar="float32|bf16", help="Of matrix products.")
@click.option("--compile", is_flag=True, help="Compile the model with torch.compile.")
@click.option("--contrast", is_flag=True, help="Report beside the accuracy what drawing by top-k 50 would have shown.")
@click.option(
    "--parse-special",
    is_flag=True,
    help="Make special tokens of their spellings in DATA, such as <|endoftext|>; without it they are text.",
)
@click.option(
    "--document-mask",
    is_flag=True,
    help="Keep attention within documents; without it a token attends to earlier documents of its sequence, too.",
)
@click.option("--tensorboard/--no-tensorboard", default=False, help="Write events for TensorBoard to DIR/tensorboard.")
@device_option
@click.option(
    "--seed", type=WholeNumber(), default=0, show_default=True, help="Of the fresh weights, and of all that is drawn."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of the closing line.")
@click.option("--quiet", "-q", is_flag=True, help="No display and no closing line.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, data: tuple[str, ...], out: str, resume: bool, **values: Any) -> int:
    """Train a small language model on DATA: files, folders, or names of data sets on the Hugging Face hub.

    What each step predicts is measured greedily, by contract: accuracy is the share of positions where the most
    probable token is the right one. There is no option to measure by sampling, which hides whether a model learns.

    DATA has a row with a field "text" for every document: .jsonl, .jsonl.zst, .parquet, or plain .txt.
    """
    if not data and not resume:
        raise click.UsageError("There is no data. Give files, folders or names of data sets, or --resume.", ctx)
    if not out:
        raise click.BadParameter("it must not be empty.", ctx=ctx, param_hint="--out")
    _check_reports(Path(out), tensorboard=values["tensorboard"])
    as_json, quiet = values.pop("as_json"), values.pop("quiet")
    run, display = _prepared(ctx, data, Path(out), resume, values, quiet)
    if run.is_main and not quiet:
        tell_unused_gpu(run.options.device)
    begun = run.chunk
    try:
        code = _train(run, display, _observers(run, display))
    finally:
        display.close()
        run.close()
    if run.is_main:
        if as_json:
            write_json(_summary(run, code, begun))
        elif not quiet:
            echo(_closing_line(run, code, begun), err=True)
        _charts(run)  # last, since it may fail
    return code


def _prepared(
    ctx: click.Context, data: tuple[str, ...], out: Path, resume: bool, values: dict[str, Any], quiet: bool
) -> tuple[TrainingRun, Display]:
    from neurogen.training.options import TrainingOptions

    given = {name: ctx.params[name] for name in ctx.params if typed(ctx, name)}
    changes = {name: value for name, value in given.items() if name not in NOT_OPTIONS}
    broken = _BrokenRows()
    try:
        options = None if resume else TrainingOptions(data=data, **values)
        from neurogen.training.run import TrainingRun  # takes seconds, which a wrong option does not have to wait for

        run = TrainingRun(out, options, resume=resume, changes=changes if resume else None, on_broken=broken)
    except ParameterError as error:
        if error.parameter == "learning_rate":  # the one that has another name here
            raise ParameterError(f"--lr: {error}", error.parameter) from None
        raise
    for notice in run.notices if run.is_main else ():
        tell(notice)
    display = make_display(quiet=quiet or not run.is_main, max_chunks=run.options.max_chunks)
    broken.say = display.say
    return run, display


class _BrokenRows:
    """Says which rows of the data have no text, the first of them at least."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = lambda message: echo(message, err=True)
        self._count = 0

    def __call__(self, row: object) -> None:
        self._count += 1
        if self._count <= BROKEN_ROWS_SHOWN:
            self.say(f"{row}; skipped.")
        if self._count == BROKEN_ROWS_SHOWN:
            self.say("More such rows are counted and not named; see broken_rows in metrics.jsonl.")


def _train(run: TrainingRun, display: Display, observers: list[Callable[[ChunkReport], None]]) -> int:
    """Run until the end or a signal; the exit code."""
    with _stopping(run, display) as caught, _trainer_warnings(display):
        for report in run.chunks():
            display.show(report)
            for observer in observers:
                observer(report)
    if run.stopped:  # in another process, perhaps
        return EXITS[caught[0] if caught else signal.SIGINT]
    return 0


@contextmanager
def _trainer_warnings(display: Display) -> Iterator[None]:
    """Show the trainer's warnings as lines of the display."""
    from neurogen.training.trainer import UnmovedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnmovedWarning)
        show_others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, UnmovedWarning):
                display.say(str(message))
            else:
                show_others(message, category, *place, **more)

        warnings.showwarning = show
        yield


@contextmanager
def _stopping(run: TrainingRun, display: Display) -> Iterator[list[signal.Signals]]:
    """Let the first SIGINT or SIGTERM end the run after the current chunk; a second Ctrl-C ends it at once."""
    caught: list[signal.Signals] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))
        run.stop_requested = True
        display.say("Stopping after this chunk, to save. Once more stops at once, without saving.")

    before = {number: signal.signal(number, handler) for number in EXITS}
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _observers(run: TrainingRun, display: Display) -> list[Callable[[ChunkReport], None]]:
    if not run.is_main:
        return []

    def charts(report: ChunkReport) -> None:
        if report.chunk % run.options.chart_every == 0:
            try:
                _charts(run)
            except DataError as error:  # a picture is no reason to lose a training
                display.say(f"{error} The training goes on.")

    if not run.options.tensorboard:
        return [charts]
    return [charts, tensorboard_writer(run.folder, run.folder / METRICS_FILE)]


def _charts(run: TrainingRun) -> None:
    from neurogen.pages.training_charts import draw_charts

    metrics = run.folder / METRICS_FILE
    if run.chunk and metrics.is_file():
        draw_charts(metrics, run.folder / CHARTS)


def _check_reports(folder: Path, *, tensorboard: bool) -> None:
    """Refuse charts and events that could not be written, before anything is trained."""
    if tensorboard:
        check_tensorboard()
    if folder.is_dir():
        check_place("The picture", folder / CHARTS)


def _summary(run: TrainingRun, code: int, begun: int) -> dict[str, Any]:
    """How a run ended, for `--json`; the chunks are in metrics.jsonl."""
    checkpoint = latest_checkpoint(run.folder)
    return {
        "folder": str(run.folder),
        "chunks": run.chunk,
        "trained": run.chunk - begun,
        "finished": code == 0,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "metrics": str(run.folder / METRICS_FILE),
    }


def _closing_line(run: TrainingRun, code: int, begun: int) -> str:
    """The closing message for the user.

    Args:
        run: has ended.
        code: the exit code.
        begun: the chunk that it went on from.
    """
    checkpoint, again = latest_checkpoint(run.folder), f"neurogen train --resume --out {shlex.quote(str(run.folder))}"
    ended = f"Stopped after chunk {run.chunk:,}" if code else f"Trained {run.chunk:,} chunks"
    if run.chunk == begun and not code and checkpoint is not None:
        return (
            f"Nothing was trained: the run has reached its end, with {run.chunk:,} chunks, and the model is in "
            f"{checkpoint}. To go on: {again} --max-chunks N, with N above {run.chunk}"
        )
    if run.chunk != run.saved:
        return f"{ended}; the weights are not all finite, so that they were not saved. {resume_advice(run.folder)}"
    if checkpoint is None:
        return f"{ended}. {resume_advice(run.folder)}"
    if code:
        return f"{ended}; saved {checkpoint}. To go on: {again}"
    return f"{ended}; the model is in {checkpoint}. Try it: neurogen run --model {run.folder}"
