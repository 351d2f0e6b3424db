"""The options of `neurogen run` as click has read them, and how a line of a results file records them."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from neurogen.cli.common import is_terminal
from neurogen.text.generation import DEFAULT_NEW_TOKENS

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.decoding.beam_settings import BeamSettings
    from neurogen.text.generation import Prompt

__all__ = ["DRAFT_TOKENS", "OPTIONAL_SETTINGS", "Arguments"]

DRAFT_TOKENS = 4

OPTIONAL_SETTINGS = ("stop_ids", "best_of", "beam", "draft", "parse_special")
"""Settings that a line of a results file has only where they were given."""


@dataclass(frozen=True)
class Arguments:
    """The options of `neurogen run`, except the sampler and its own options."""

    model: str
    prompt: str | None
    prompts: str | None
    n: int
    max_new_tokens: int | None
    seed: int | None
    stop: tuple[str, ...]
    stop_id: tuple[int, ...]
    logprobs: int | None
    device: str
    dtype: str
    chat: bool | None
    stream: bool | None
    as_json: bool
    output: str | None
    record: str | None
    batch_size: int
    quiet: bool
    engine: str
    engine_option: dict[str, str]
    threads: int | None
    best_of: int
    beam: BeamSettings | None
    draft: str | None
    draft_tokens: int | None
    parse_special: bool

    @property
    def shows_progress(self) -> bool:
        """Whether somebody sees on stderr how far it is."""
        return is_terminal(sys.stderr) and not self.quiet

    def settings(self, prompt: Prompt, sampler: Sampler, seed: int) -> dict[str, Any]:
        """What decides a prompt's results beside text, sampler and processors: the field `run` of a results file."""
        lengths = [one for one in (prompt.max_new_tokens, self.max_new_tokens) if one is not None]
        stop_ids = list(self.stop_id if prompt.stop_ids is None else prompt.stop_ids)
        draft = {"model": self.draft, "tokens": self.draft_tokens or DRAFT_TOKENS}
        return {
            "model": self.model,
            "plugin": sampler.origin,
            "seed": seed,
            "n": self.n,
            "max_new_tokens": lengths[0] if lengths else DEFAULT_NEW_TOKENS,
            "stop": list(self.stop if prompt.stop is None else prompt.stop),
            "logprobs": self.logprobs,
            "chat": self.chat,
            "dtype": self.dtype,
            "engine": self.engine,
            **({"parse_special": True} if self.parse_special else {}),
            **({"stop_ids": stop_ids} if stop_ids else {}),
            **({"best_of": self.best_of} if self.best_of > 1 else {}),
            **({"beam": asdict(self.beam)} if self.beam is not None else {}),
            **({"draft": draft} if self.draft is not None else {}),
        }
