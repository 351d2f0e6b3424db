"""The options `--draft` and `--draft-tokens`: a small model that runs ahead of the large one.

Whatever does not go with a draft is refused before anything is loaded. Imports torch only where a draft is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neurogen.cli.common import WholeNumber
from neurogen.cli.completion import complete_model

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler
    from neurogen.decoding.speculative import SpeculativeEngine
    from neurogen.models.language_model import LanguageModel

__all__ = ["check_draft", "draft_engine", "draft_identity", "draft_options", "told_of_draft"]

Command = TypeVar("Command", bound=Callable[..., Any])

DRAFT_TOKENS = 4


def draft_options(command: Command) -> Command:
    """Accept `--draft` and `--draft-tokens`."""
    draft = click.option(
        "--draft",
        metavar="MODEL",
        shell_complete=complete_model,
        help="A smaller model with the same tokenizer, which proposes tokens that --model checks several at a time: "
        "the distribution stays --model's.",
    )
    tokens = click.option(
        "--draft-tokens",
        type=WholeNumber(1),
        metavar="N",
        help=f"How many tokens the draft proposes at a time.  [default: {DRAFT_TOKENS}]",
    )
    return draft(tokens(command))


def check_draft(
    values: Mapping[str, Any], sampler: Sampler, processors: Sequence[Processor], ctx: click.Context
) -> None:
    """Refuse what does not go with a draft.

    Args:
        values: the command's options; `beam` is what `check_beams` has left.
        sampler, processors: what was made of them.
        ctx: of the command.

    Raises:
        click.UsageError: see the messages.
    """
    if values["draft"] is None:
        if values["draft_tokens"] is not None:
            raise click.UsageError("--draft-tokens says how far a draft runs ahead: add --draft MODEL.", ctx)
        return
    if not values["draft"].strip():
        raise click.UsageError("--draft must not be empty: give the name or the folder of a model.", ctx)
    if values["engine"] != "torch":
        raise click.UsageError(f"--draft does not go with --engine {values['engine']}: only torch's can.", ctx)
    if values["record"] is not None:
        raise click.UsageError("--record does not go with --draft: neurogen replay runs no draft.", ctx)
    if values["beam"] is not None:
        raise click.UsageError("--beams does not go with --draft: a beam search has no tokens to draft.", ctx)
    if processors:
        raise click.UsageError(
            f"--draft takes no processors, got {', '.join(map(repr, processors))}: what they remember of a drafted "
            "token could not be taken back.",
            ctx,
        )
    if sampler.stateful:
        raise click.UsageError(
            f"--draft takes samplers without memory, and {sampler.name!r} has one: what it remembers of a drafted "
            "token could not be taken back.",
            ctx,
        )


def draft_engine(
    model: LanguageModel, draft: str, sampler: Sampler, *, draft_tokens: int | None, batch_size: int, dtype: str
) -> SpeculativeEngine:
    """Load a draft where the model is, and make the engine that decodes with both.

    Raises:
        NeurogenError: see `neurogen.models.load_model` and `neurogen.decoding.speculative.SpeculativeEngine`.
    """
    from neurogen.decoding.speculative import SpeculativeEngine
    from neurogen.models.language_model import load_model

    loaded = load_model(draft, device=str(model.device), dtype=dtype)
    return SpeculativeEngine(model, loaded, sampler, draft_tokens=_count(draft_tokens), batch_size=batch_size)


def draft_identity(draft: str, draft_tokens: int | None) -> dict[str, Any]:
    """What of a draft decides which tokens a seed gives, for the lines of a results file."""
    return {"model": draft, "tokens": _count(draft_tokens)}


def told_of_draft(engine: SpeculativeEngine) -> str:
    """How drafting has gone, for the closing line."""
    if not engine.counts.drafted:
        return "; no token was drafted"
    rate, tokens = engine.acceptance_rate, engine.tokens_per_pass
    return f"; {rate:.0%} of the drafted tokens accepted, {tokens:.2f} tokens a pass of the model"


def _count(draft_tokens: int | None) -> int:
    return DRAFT_TOKENS if draft_tokens is None else draft_tokens
