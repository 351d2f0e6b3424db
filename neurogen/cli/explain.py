"""`neurogen explain`: why was this token chosen? Step by step in the terminal, as JSON, or as a page."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import (
    DescribedDefault,
    WholeNumber,
    debug_option,
    device_option,
    dtype_option,
    is_terminal,
    prompt_text,
    random_seed,
    tell,
    write_json,
)
from neurogen.cli.model_options import load_shown, model_option, parse_special_option, tell_of_special
from neurogen.cli.ranks import check_single
from neurogen.cli.sampler_options import (
    CommandWithSampler,
    complete_sampler,
    make_sampler,
    profile_option,
    require_sampler,
)
from neurogen.files import check_place
from neurogen.registry.registry import default_registry
from neurogen.text.printable import json_printable, printable

if TYPE_CHECKING:
    from rich.table import Table

    from neurogen.contract.sampler import Sampler
    from neurogen.diagnosis.explain import Candidate, ExplainedStep, Explanation

__all__ = ["PAGE_TOP", "command", "report", "report_page"]

NEW_TOKENS = 16
TOP = 5
PAGE_TOP = 40
"""Number of candidates of a step on a page."""


@click.command("explain", cls=CommandWithSampler, context_settings={"allow_extra_args": True, "max_content_width": 100})
@click.option("--sampler", "-s", metavar="NAME", shell_complete=complete_sampler, help="Chooses the tokens; required.")
@profile_option
@model_option
@click.option(
    "--prompt", required=True, callback=prompt_text, help="The text to continue, or in a chat model to answer."
)
@click.option(
    "--processors", metavar="SPEC", help="Change the logits before the sampler, such as NAME(parameter=value)."
)
@click.option(
    "--max-new-tokens",
    type=WholeNumber(1),
    cls=DescribedDefault,
    show_default=f"what fits the context, up to {NEW_TOKENS}",
    help="Explain at most so many.",
)
@click.option(
    "--seed",
    type=WholeNumber(),
    cls=DescribedDefault,
    show_default="a random one, shown",
    help="Determines every draw.",
)
@click.option(
    "--top",
    type=WholeNumber(1),
    cls=DescribedDefault,
    show_default=f"{TOP}, for a page {PAGE_TOP}",
    help="Candidates a step.",
)
@click.option("--chat/--no-chat", default=None, help="Use the model's chat template.  [default: where there is one]")
@parse_special_option
@device_option
@dtype_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--html", metavar="FILE.html", help="Write a page: click a token to open its candidates.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, and no word about the page.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, sampler: str | None, **values: Any) -> None:
    """Tell why each token was chosen: candidates, what each stage removed, and the random number that decided."""
    check_single(ctx)
    made = make_sampler(default_registry(), require_sampler(ctx, sampler), values, ctx)
    if values["html"] is not None:
        check_place("The page", values["html"])
    explanation = _explain(made, values)
    for notice in explanation.result.notices or ():
        tell(notice)
    if values["html"] is not None:
        report_page(explanation, values["html"], quiet=values["quiet"])
    if values["as_json"]:
        write_json(explanation.to_json())
    elif values["html"] is None:
        report(explanation)


def _explain(sampler: Sampler, values: dict[str, Any]) -> Explanation:
    processors = default_registry().load_processors(values["processors"]) if values["processors"] else []
    shown = is_terminal(sys.stderr) and not values["quiet"]
    model = load_shown(values, shown=shown)
    if not values["parse_special"] and not values["quiet"]:
        tell_of_special(model, [values["prompt"]])
    from neurogen.diagnosis.explain import explain

    return explain(
        model,
        sampler,
        values["prompt"],
        top=values["top"] or (TOP if values["html"] is None else PAGE_TOP),
        max_new_tokens=values["max_new_tokens"],
        default_new_tokens=NEW_TOKENS,
        seed=random_seed() if values["seed"] is None else values["seed"],
        chat=values["chat"],
        processors=processors,
        parse_special=values["parse_special"],
    )


def report_page(explanation: Explanation, path: str, *, quiet: bool = False) -> None:
    """Write the page, and say where it is unless `quiet`."""
    from neurogen.pages.explain import write_page

    write_page(explanation, path)
    if not quiet:
        tell(f"The page is in {path}: open it in a browser.")


def report(explanation: Explanation) -> None:
    """The head, then each step with its stages and candidates."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    result = explanation.result
    with console.capture() as captured:
        console.print(
            Text(printable(f"{explanation.model}, {explanation.sampler}, seed {result.seed}"), style="bold"),
            soft_wrap=True,
        )
        console.print(Text.assemble((printable(result.prompt), "dim"), printable(result.text)), soft_wrap=True)
        for step in explanation.steps:
            _report_step(console, step)
    click.echo(captured.get().rstrip(), color=console.is_terminal)


def _report_step(console: Any, step: ExplainedStep) -> None:
    from rich.text import Text

    console.print()
    head = Text.assemble((f"{_quoted(step.text)}", "bold cyan"), f"  at position {step.position}: ")
    head.append(f"{_percent(step.probability)} for the model, rank {step.rank:,}; entropy {step.entropy:.2f} nats")
    console.print(head, soft_wrap=True)
    for stage in step.stages:
        held = f"{stage.kept:,} tokens left, {_percent(stage.mass)} of the mass"
        left = f"{held}, entropy {stage.entropy:.2f} nats"
        console.print(Text(printable(f"  {stage.name}: {left}")), soft_wrap=True)
    console.print(Text(f"  {_decision(step)}"), soft_wrap=True)
    console.print(_table(step))


def _decision(step: ExplainedStep) -> str:
    if step.drawn is None:
        return "a sampler with memory drew it, and does not tell what it kept"
    if step.random is None or step.interval is None:
        return f"drawn with {_percent(step.drawn)}: no random number decided"
    low, high = step.interval
    return f"drawn with {_percent(step.drawn)}: the random number {step.random:.6f} lies in {low:.6f} to {high:.6f}"


def _table(step: ExplainedStep) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title, justify in (("", "left"), ("token", "left"), ("model", "right"), ("drawn", "right"), ("", "left")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for one in step.candidates:
        chosen = one.token_id == step.token_id
        cells = (" >" if chosen else "", _quoted(one.text), _percent(one.probability), _drawn(one))
        gone = f"removed by {one.removed_by}" if one.removed_by else ""
        style = "bold" if chosen else "dim" if gone else ""
        table.add_row(*(Text(printable(cell), style=style) for cell in (*cells, gone)))
    return table


def _drawn(one: Candidate) -> str:
    return "-" if one.removed_by else "?" if one.drawn is None else _percent(one.drawn)


def _percent(share: float) -> str:
    if 0 < share < 1e-5:
        return "< 0.001 %"
    return f"{100 * share:.3g} %"


def _quoted(text: str) -> str:
    """A token's text in one line."""
    return json_printable(json.dumps(text, ensure_ascii=False))
