"""`neurogen diagnose`: its options, input and output. `neurogen.diagnosis` does the measuring."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import (
    DescribedDefault,
    WholeNumber,
    counting,
    debug_option,
    device_option,
    dtype_option,
    echo,
    echo_table,
    is_terminal,
    typed,
    write_json,
)
from neurogen.cli.completion import complete_model
from neurogen.cli.model_options import load_shown, parse_special_option
from neurogen.cli.ranks import check_single
from neurogen.files import check_place

if TYPE_CHECKING:
    from neurogen.diagnosis.accuracies import SamplerAccuracy
    from neurogen.diagnosis.diagnose import Diagnosis
    from neurogen.diagnosis.weights import TensorHealth

__all__ = ["command"]

MAX_TOKENS = 4096
COLORS = {"healthy": "green", "undertrained": "yellow"}
ONLY_FOR_MODELS = ("model", "prompts", "data", "context", "max_tokens", "batch_size", "device", "dtype")
SHOWN_MEASURES = (
    ("loss", "loss (nats)"),
    ("target_probability", "probability of the right token"),
    ("target_rank", "rank of the right token"),
    ("entropy", "entropy (nats)"),
    ("entropy_share", "entropy over log(vocab)"),
    ("top1_probability", "top-1 probability"),
    ("margin", "margin of the top logit"),
    ("logit_std", "standard deviation of logits"),
    ("mass_top50", "mass of the 50 first"),
    ("nucleus_size_0.9", "tokens that hold 90 %"),
)


@click.command("diagnose", context_settings={"max_content_width": 100})
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=complete_model,
    help="A known name, a folder, a .gguf file, or a name on the Hugging Face hub.",
)
@click.option(
    "--logits",
    metavar="FILE.safetensors",
    help="Instead of a model: its `logits` [N, vocab] and `targets` int64 [N], from any program.",
)
@click.option(
    "--prompts", metavar="FILE.jsonl", help="Texts to measure on, as `neurogen run` reads them. - is standard input."
)
@click.option(
    "--data", multiple=True, metavar="FILE", help="Training data to measure on; repeat for several files or folders."
)
@click.option(
    "--max-tokens",
    type=WholeNumber(1),
    default=MAX_TOKENS,
    show_default=True,
    help="Measure at most so many positions.",
)
@click.option(
    "--context",
    type=WholeNumber(1),
    cls=DescribedDefault,
    show_default="512, or what the model can take",
    help="Tokens that the model reads at once; longer texts are cut.",
)
@click.option("--batch-size", type=WholeNumber(1), default=8, show_default=True, help="Stretches of text at a time.")
@click.option(
    "--logits-are",
    type=click.Choice(["auto", "logits", "probabilities"]),
    default="auto",
    show_default=True,
    help="What the rows of the file, or the model's forward, are; auto looks whether they sum to 1.",
)
@parse_special_option
@device_option
@dtype_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--html", metavar="FILE.html", help="Also write a page with charts.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, and no word about the page.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, html: str | None, **values: Any) -> None:
    """Tell why accuracy does not move: is the model flat, saturated, undertrained, broken or healthy?

    Measures the raw logits of a model over a text (a short built-in one, unless --prompts or --data is given), and
    shows what greedy, top-k and top-p would each have reported as accuracy on the same positions.
    """
    check_single(ctx)
    _check(ctx, values)
    if html is not None:
        check_place("The page", html)
    diagnosis = _of_logits(values) if values["logits"] is not None else _of_model(values)
    if html is not None:
        _write_page(diagnosis, html, quiet=values["quiet"])
    if as_json:
        write_json(diagnosis.to_json())
    else:
        _report(diagnosis)


def _check(ctx: click.Context, values: Mapping[str, Any]) -> None:
    """Refuse options that do not go together."""
    if values["logits"] is None:
        if values["model"] is None:
            raise click.UsageError("What shall be diagnosed? Give --model NAME, or --logits FILE.safetensors.", ctx)
        if values["prompts"] is not None and values["data"]:
            raise click.UsageError("Give either --prompts or --data, not both.", ctx)
        return
    for name in ONLY_FOR_MODELS:
        if typed(ctx, name):
            option = "--" + name.replace("_", "-")
            raise click.UsageError(f"{option} belongs to --model; with --logits nothing is run. Leave it out.", ctx)


def _of_logits(values: Mapping[str, Any]) -> Diagnosis:
    from neurogen.diagnosis.diagnose import diagnose_logits
    from neurogen.diagnosis.input import load_logits

    path = values["logits"]
    logits, targets = load_logits(path)
    return diagnose_logits(logits, targets, source=path, logits_are=values["logits_are"])


def _of_model(values: Mapping[str, Any]) -> Diagnosis:
    texts = _texts(values)  # first, since a misspelt path should not wait for the model
    bar = is_terminal(sys.stderr) and not values["quiet"]
    model = load_shown(values, shown=bar)
    from neurogen.diagnosis.diagnose import diagnose_model

    with counting("positions", shown=bar) as progress:
        return diagnose_model(
            model,
            texts,
            max_tokens=values["max_tokens"],
            context=values["context"],
            batch_size=values["batch_size"],
            progress=progress,
            parse_special=values["parse_special"],
            logits_are=values["logits_are"],
        )


def _texts(values: Mapping[str, Any]) -> Iterable[str] | None:
    """The texts to measure on; None for the built-in one. Lines without a text are reported on stderr."""
    if values["prompts"] is not None:
        from neurogen.diagnosis.input import read_texts

        texts, broken = read_texts(values["prompts"])
        for line in broken:
            echo(f"{line}.", err=True)
        return texts
    if values["data"]:
        from neurogen.data.documents import TextStream

        return TextStream(values["data"], on_broken=lambda row: echo(f"{row}.", err=True))
    return None


def _write_page(diagnosis: Diagnosis, path: str, *, quiet: bool) -> None:
    from neurogen.pages.diagnosis import write_page

    write_page(diagnosis, path)
    if not quiet:
        echo(f"The page with charts is in {path}.", err=True)


def _report(diagnosis: Diagnosis) -> None:
    """Verdict, reasons, the table of accuracies, measures, weights, next steps."""
    _say(f"{diagnosis.source}: {diagnosis.verdict}", fg=COLORS.get(diagnosis.verdict, "red"), bold=True)
    for reason in diagnosis.reasons:
        _paragraph(reason)
    if diagnosis.accuracies:
        _heading("What each sampler would have reported as accuracy, on average over all drawings")
        header = ("SAMPLER", "TEMPERATURE", "ACCURACY", "+/- (ONE DRAWING)", "NEVER RIGHT", "USE")
        echo_table(header, map(_accuracy_row, diagnosis.accuracies))
        _heading(f"Measures of {diagnosis.health.positions:,} positions")
        summaries = diagnosis.summaries()
        rows = [(title, *_summary_cells(summaries[name])) for name, title in SHOWN_MEASURES]
        echo_table(("MEASURE", "MEAN", "5 %", "MEDIAN", "95 %"), rows)
    if diagnosis.weights is not None:
        _report_weights(diagnosis.weights)
    _heading("What to do")
    for step in diagnosis.next_steps:
        _paragraph(f"- {step}", indent="  ")


def _report_weights(weights: Sequence[TensorHealth]) -> None:
    odd = [tensor for tensor in weights if tensor.status != "ok"]
    _heading(f"Weights: {len(weights)} tensors, {len(odd) or 'none'} of them dead, exploded or not finite")
    if odd:
        echo_table(("WEIGHT", "STATUS", "RMS", "REASON"), [(t.name, t.status, f"{t.rms:.3g}", t.reason) for t in odd])


def _accuracy_row(score: SamplerAccuracy) -> Sequence[str]:
    from neurogen.diagnosis.verdict import percent

    temperature = score.setting.params.get("temperature")
    accuracy, role = percent(score.accuracy), score.setting.role
    if temperature is None:
        return score.setting.label, "-", accuracy, "-", "-", role
    spread, never = percent(score.deviation), percent(score.never)
    return score.setting.label, f"{temperature:.1f}", accuracy, spread, never, role


def _summary_cells(summary: Mapping[str, float]) -> Iterator[str]:
    return (f"{summary[name]:.4g}" for name in ("mean", "p05", "median", "p95"))


def _heading(text: str) -> None:
    echo()
    _say(text, bold=True)


def _say(text: str, **style: Any) -> None:
    plain = os.environ.get("NO_COLOR") or not is_terminal(sys.stdout)
    echo(text, **({} if plain else style))


def _paragraph(text: str, indent: str = "") -> None:
    """One paragraph: wrapped to a terminal's width, or one line if stdout is not a terminal."""
    if is_terminal(sys.stdout):
        text = click.wrap_text(text, min(shutil.get_terminal_size().columns, 120), subsequent_indent=indent)
    echo(text)
