"""Why each token of a generation was chosen, as data: steps, stages, candidates. Made by `explain`, shown by others.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from neurogen.text.generation import Result

__all__ = ["Candidate", "ExplainedStep", "Explanation", "Stage", "StageKind"]

FOR_PAGES = ("logits", "tail", "sorted_logits", "place")
"""Attributes of a step that only a page needs."""

StageKind = Literal["processor", "temperature", "truncation"]


@dataclass(frozen=True)
class Stage:
    """What one stage did to the distribution.

    Attributes:
        kind: a processor changes logits, the temperature sharpens or flattens, a truncation removes tokens.
        name: with its parameters, such as "topk(k=50)".
        kept: tokens that can still be drawn behind it.
        mass: probability that those had before it (of a temperature and a processor that bans nothing: 1).
        entropy: in nats, of the distribution behind it.
    """

    kind: StageKind
    name: str
    kept: int
    mass: float
    entropy: float


@dataclass(frozen=True)
class Candidate:
    """A token that could have been chosen.

    Attributes:
        token_id, text: the token.
        logit: the model's.
        probability: the model's, before every stage.
        processed: its logit behind the processors; the model's own where there is none.
        drawn: probability with which the sampler draws it; 0 where it was removed, None where a sampler with memory
            cannot tell.
        removed_by: name of the stage that removed it, or None.
    """

    token_id: int
    text: str
    logit: float
    probability: float
    processed: float
    drawn: float | None
    removed_by: str | None


@dataclass(frozen=True)
class ExplainedStep:
    """One token of a generation, and why it is this one.

    Attributes:
        position: index of the token in its sequence, prompt included.
        token_id, text: the token chosen.
        probability, rank: the model's; the most probable token has rank 1, at equal values the lower id first.
        drawn: probability with which the sampler drew it; None where a sampler with memory cannot tell.
        entropy: of the model's distribution, in nats.
        random: the number in [0, 1) that chose it, or None where none did.
        interval: the part of [0, 1) that belongs to the token: probabilities are laid side by side by id.
        stages: in the order in which they work.
        candidates: the most probable tokens for the model, the most probable first; the chosen one is among them.
        logits: (token id, text, processed logit) of the largest processed logits, for pages that recompute.
        tail: (count, logit) of a histogram over the others.
        sorted_logits: all finite processed logits in their order, as float32 in little-endian bytes.
        place: of the chosen token among them, from 0.
    """

    position: int
    token_id: int
    text: str
    probability: float
    rank: int
    drawn: float | None
    entropy: float
    random: float | None
    interval: tuple[float, float] | None
    stages: list[Stage]
    candidates: list[Candidate]
    logits: list[tuple[int, str, float]] = field(repr=False, default_factory=list)
    tail: list[tuple[int, float]] = field(repr=False, default_factory=list)
    sorted_logits: bytes = field(repr=False, default=b"")
    place: int = 0


@dataclass(frozen=True)
class Explanation:
    """A generation and its steps.

    Attributes:
        model: its name.
        sampler: with its parameters.
        params: those parameters.
        result: what the runner gave.
        vocab_size: tokens that can be drawn at all.
        steps: one for each new token, that of an end of sequence included.
    """

    model: str
    sampler: str
    params: dict[str, Any]
    result: Result
    vocab_size: int
    steps: list[ExplainedStep]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what only a page needs."""
        steps = [asdict(step) for step in self.steps]
        for step in steps:
            for name in FOR_PAGES:
                del step[name]
        return {
            "model": self.model,
            "sampler": self.sampler,
            "params": self.params,
            "vocab_size": self.vocab_size,
            "result": self.result.to_json(),
            "steps": steps,
        }

    def _repr_html_(self) -> str:
        from neurogen.pages.explain import fragment

        return fragment(self)
