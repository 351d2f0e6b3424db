"""`neurogen compare`: several samplers on the same prompts, as a table, as JSON or as a page."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
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
    prompt_text,
    random_seed,
    tell,
    write_json,
)
from neurogen.cli.model_options import load_shown, model_option, parse_special_option, tell_of_special
from neurogen.cli.ranks import check_single
from neurogen.cli.sampler_options import complete_sampler
from neurogen.errors import DataError
from neurogen.files import check_place, decoded
from neurogen.registry.registry import default_registry
from neurogen.text.generation import Prompt
from neurogen.text.prompts import parse_lines

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.diagnosis.compare import Comparison

__all__ = ["command"]

FEWEST = 2
EXIT_FAILURES = 1
NEW_TOKENS = 64
DEFAULT_PROMPTS = ("Once upon a time", "The little dog", "One day, a girl named Lily", "In the garden there was")


@click.command("compare", context_settings={"max_content_width": 100})
@click.option(
    "--sampler",
    "-s",
    "specs",
    multiple=True,
    metavar="SPEC",
    shell_complete=complete_sampler,
    help="A sampler with its parameters, such as greedy or topk(k=40)+topp; give several.",
)
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="SPEC.PARAMETER=START:STOP:STEP",
    help="A sampler with many values of one parameter, such as topp.p=0.5:1.0:0.1.",
)
@model_option
@click.option("--prompt", "texts", multiple=True, callback=prompt_text, help="A text to continue; repeat for several.")
@click.option(
    "--prompts",
    metavar="FILE.jsonl",
    help="Many prompts, as for neurogen run; a line may have `reference` or `references`, the right answers.",
)
@click.option("-n", type=WholeNumber(1), default=4, show_default=True, help="Samples a prompt.")
@click.option(
    "--max-new-tokens",
    type=WholeNumber(1),
    cls=DescribedDefault,
    show_default=f"what fits the context, up to {NEW_TOKENS}",
    help="Length of a text.",
)
@click.option(
    "--seed",
    type=WholeNumber(),
    cls=DescribedDefault,
    show_default="a random one, shown",
    help="The same for every sampler.",
)
@click.option("--processors", metavar="SPEC", help="Change the logits first: NAME(parameter=value)+...")
@click.option("--chat/--no-chat", default=None, help="Use the model's chat template.  [default: where there is one]")
@click.option("--batch-size", type=WholeNumber(1), default=8, show_default=True, help="Sequences at a time.")
@click.option("--show", type=WholeNumber(0), default=1, show_default=True, help="Show texts of so many prompts.")
@parse_special_option
@device_option
@dtype_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--html", metavar="FILE.html", help="Write a page with plots and all texts.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, and no word about the page.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, specs: Sequence[str], sweeps: Sequence[str], **values: Any) -> int:
    """Compare samplers: texts side by side, perplexity, diversity, repetition, accuracy, with intervals.

    Every sampler continues the same prompts with the same seeds; without prompts, four beginnings of stories.
    """
    check_single(ctx)
    samplers = _samplers(ctx, specs, sweeps)
    prompts, references = _prompts(ctx, values, samplers[0])
    if values["html"] is not None:
        check_place("The page", values["html"])
    comparison = _compare(samplers, prompts, references, values)
    _tell_notices(comparison)
    if values["html"] is not None:
        from neurogen.pages.compare import write_page

        write_page(comparison, values["html"])
        if not values["quiet"]:
            tell(f"The page is in {values['html']}: open it in a browser.")
    if values["as_json"]:
        write_json(comparison.to_json())
    else:
        _report(comparison, values["show"])
    return _tell_failures(comparison)


def _tell_failures(comparison: Comparison) -> int:
    """Report the texts that are missing, and return the exit code."""
    failed = [(one.label, *failure) for one in comparison.outcomes for failure in one.failures]
    for label, index, sample, error in failed:
        tell(f"{label}, prompt {index + 1}{'' if sample is None else f', sample {sample + 1}'}: {error}")
    return EXIT_FAILURES if failed else 0


def _samplers(ctx: click.Context, specs: Sequence[str], sweeps: Sequence[str]) -> list[Sampler]:
    from neurogen.diagnosis.compare import sweep  # imports torch

    everything = list(dict.fromkeys([*specs, *(spec for one in sweeps for spec in sweep(one))]))
    if len(everything) < FEWEST:
        raise click.UsageError(
            "Which samplers? Give --sampler SPEC at least twice, such as --sampler greedy --sampler 'topk(k=40)', or "
            "--sweep topp.p=0.5:1.0:0.1.",
            ctx,
        )
    return [default_registry().load_sampler(spec) for spec in everything]


def _prompts(
    ctx: click.Context, values: dict[str, Any], sampler: Sampler
) -> tuple[list[Prompt], list[list[str]] | None]:
    """The prompts, numbered from 0, and the references of each where any line has some."""
    if values["prompts"] is None:
        texts = values["texts"] or DEFAULT_PROMPTS
        return [Prompt(index, text) for index, text in enumerate(texts)], None
    if values["texts"]:
        raise click.UsageError("Give either --prompt or --prompts, not both.", ctx)
    lines = _lines(values["prompts"])
    prompts, broken = parse_lines(lines, sampler, values["prompts"], told=tell)
    for line in broken:
        tell(line.sentence)
    if not prompts:
        raise DataError(f"None of the lines of {values['prompts']} holds a prompt.")
    references = [_references(lines[prompt.index]) for prompt in prompts]
    if any(prompt.params for prompt in prompts):
        tell(f"'params' of {values['prompts']} are left out: every sampler has its own, as in --sampler 'topk(k=40)'.")
    numbered = [replace(prompt, index=index, params={}) for index, prompt in enumerate(prompts)]
    return numbered, references if any(references) else None


def _lines(path: str) -> list[bytes]:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    return list(BytesIO(data))  # at the line breaks at which a file's lines end


def _references(line: bytes) -> list[str]:
    fields = json.loads(decoded(line))
    given = fields.get("references", fields.get("reference", [])) if isinstance(fields, dict) else []
    texts: list[Any] = given if isinstance(given, list) else [given]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _compare(
    samplers: Sequence[Sampler],
    prompts: Sequence[Prompt],
    references: Sequence[Sequence[str]] | None,
    values: dict[str, Any],
) -> Comparison:
    processors = default_registry().load_processors(values["processors"]) if values["processors"] else []
    shown = is_terminal(sys.stderr) and not values["quiet"]
    model = load_shown(values, shown=shown)
    if not values["parse_special"] and not values["quiet"]:
        tell_of_special(model, (prompt.text for prompt in prompts))
    from neurogen.diagnosis.compare import compare

    with counting("texts", shown=shown) as progress:
        return compare(
            model,
            samplers,
            prompts,
            references=references,
            progress=progress,
            n=values["n"],
            max_new_tokens=values["max_new_tokens"],
            default_new_tokens=NEW_TOKENS,
            seed=random_seed() if values["seed"] is None else values["seed"],
            chat=values["chat"],
            batch_size=values["batch_size"],
            processors=processors,
            parse_special=values["parse_special"],
        )


def _tell_notices(comparison: Comparison) -> None:
    """Report what processors say about the texts, each sentence once for a sampler."""
    for outcome in comparison.outcomes:
        said = Counter(notice for sample in outcome.samples for notice in sample.notices or ())
        for notice, count in said.items():
            tell(f"{outcome.label}, {count} of {len(outcome.samples)} texts: {notice}")


def _report(comparison: Comparison, show: int) -> None:
    """The measures, a column a measure, then texts side by side."""
    names = list(comparison.metrics())
    header = ("SAMPLER", *(name.replace("_", " ").upper() for name in names), "TOKENS/S")
    rows = [
        (one.label, *(str(one.measures.get(name, "-")) for name in names), f"{one.tokens_per_second:.0f}")
        for one in comparison.outcomes
    ]
    echo_table(header, rows)
    options = comparison.options
    tell(
        f"{len(comparison.prompts)} prompts, {options['n']} samples each, seed {options['seed']}; in brackets 95 % "
        "bootstrap intervals over prompts."
    )
    for index in range(min(show, len(comparison.prompts))):
        _side_by_side(comparison, index)


def _side_by_side(comparison: Comparison, index: int) -> None:
    echo()
    echo(comparison.prompts[index])
    texts = [
        (one.label, next((sample.text for sample in one.samples if sample.index == index), "-"))
        for one in comparison.outcomes
    ]
    echo_table(("SAMPLER", "TEXT"), [(label, " ".join(text.split())) for label, text in texts])
