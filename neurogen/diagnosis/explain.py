"""Why was this token chosen? A generation step by step: candidates, what each stage removed, the number that decided.

The tokens are those of the engine itself, whose steps are observed; nothing is drawn again. Knows no terminal and no
page that show an explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from neurogen.contract.chain import Chain, chain_class
from neurogen.contract.display import Displayed
from neurogen.contract.sampler import Sampler, State
from neurogen.contract.stages import SamplerStage, softmax
from neurogen.decoding.engine import engine_for
from neurogen.decoding.processing import Processing
from neurogen.decoding.request import DecodableModel, Observed, Request, RequestState, SampledToken
from neurogen.errors import NeurogenError, ParameterError, PluginError
from neurogen.kernels.numerics import random_bits, uniform
from neurogen.registry.registry import default_registry
from neurogen.text.conversation import Conversation
from neurogen.text.generation import Prompt, Result, RunOptions
from neurogen.text.runner import Runner

__all__ = [
    "Candidate",
    "ExplainedStep",
    "Explanation",
    "Observed",
    "Stage",
    "StageKind",
    "explain",
    "explain_answer",
    "explain_steps",
]

GAVE_WAY = "a processor gave way, see the notice"

SLACK = 1e-6
"""How far the random number may lie outside the chosen token's interval: `probs` is float32."""


StageKind = Literal["processor", "temperature", "truncation"]


@dataclass(frozen=True)
class Stage:
    """What one stage did to the distribution.

    Attributes:
        kind: a processor changes logits, the temperature sharpens or flattens, a truncation removes tokens.
        name: with its parameters, such as "topk(k=50)".
        kept: how many tokens can still be drawn after it.
        mass: probability that these tokens had before it (1 for a temperature and a processor that bans nothing).
        entropy: in nats, of the distribution after it.
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
        processed: its logit after the processors; the model's own if there are no processors.
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
        processed: float32 [vocab], on the CPU: the logits after the processors.
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
    processed: Tensor = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the logits."""
        values = {name: value for name, value in vars(self).items() if name != "processed"}
        return {**values, "stages": list(map(asdict, self.stages)), "candidates": list(map(asdict, self.candidates))}


@dataclass(frozen=True)
class Explanation(Displayed):
    """A generation and its steps.

    Attributes:
        model: its name.
        sampler: with its parameters.
        params: those parameters.
        result: what the runner gave.
        vocab_size: tokens that can be drawn at all.
        steps: one for each new token, that of an end of sequence included.
        token_text: gives the text of a token id.
    """

    model: str
    sampler: str
    params: dict[str, Any]
    result: Result
    vocab_size: int
    steps: list[ExplainedStep]
    token_text: Callable[[int], str] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "sampler": self.sampler,
            "params": self.params,
            "vocab_size": self.vocab_size,
            "result": self.result.to_json(),
            "steps": [step.to_json() for step in self.steps],
        }


def explain(
    model: DecodableModel,
    sampler: Sampler,
    text: str | Prompt,
    *,
    top: int = 10,
    options: RunOptions | None = None,
    **values: Any,
) -> Explanation:
    """Continue a text and explain for every token why it was chosen.

    Args:
        model, sampler: as for `Runner`.
        text: the prompt, as a text or with all that a `Prompt` can have.
        top: candidates a step, at least 1.
        options, **values: as for `Runner`; `n` must be 1.

    Raises:
        ParameterError: `top` or an option outside its domain.
        NeurogenError: the prompt cannot be run.

    Example:
        explanation = explain(load_model("starter"), neurogen.load_sampler("topp"), "Once upon a time", seed=1)
        print(explanation.steps[0].candidates)
    """
    runner = Runner(model, sampler, options, **values)
    if runner.options.n != 1:
        raise ParameterError(f"One sample is explained at a time: n must be 1, got {runner.options.n}.", "n")
    watch = _StepExplainer(model, sampler, _checked(top))
    engine = engine_for(
        model, sampler, batch_size=1, observer=lambda rows, logits, _, drawn: watch(rows, logits, drawn)
    )
    prompt = Prompt(0, text) if isinstance(text, str) else text
    events = Runner(model, sampler, runner.options, engine=engine).run([prompt])
    return watch.explanation(next(event for event in events if isinstance(event, Result)))


def explain_steps(
    model: DecodableModel, sampler: Sampler, result: Result, observed: Sequence[Observed], *, top: int = 10
) -> Explanation:
    """Explain steps that were observed earlier, for one sequence.

    Args:
        model, sampler: of those steps.
        result: what came of them.
        observed: for each step the rows as they were, the model's logits, and what was chosen.
        top: candidates a step, at least 1.
    """
    watch = _StepExplainer(model, sampler, _checked(top))
    for rows, logits, drawn in observed:
        watch(rows, logits, drawn)
    return watch.explanation(result)


def _checked(top: int) -> int:
    if not isinstance(top, int) or top < 1:
        raise ParameterError(f"top must be an integer >= 1, got {top!r}.", "top")
    return top


def explain_answer(conversation: Conversation, *, top: int = 10) -> Explanation:
    """Explain the last answer of a conversation, from the logits that it was drawn from.

    Raises:
        ParameterError: there is no answer yet, or it was broken off; `top` outside its domain.
    """
    sampler, result, observed = conversation.last_answer()
    return explain_steps(conversation.model, sampler, result, observed, top=top)


def _stages(sampler: Sampler, logits: Tensor, seed: int, position: int, params: dict[str, Any]) -> list[SamplerStage]:
    """The stages of a sampler; those of a chain where it offers one as a whole, as "topk+topp" does."""
    stages = sampler.stages(logits, seed=seed, position=position, **params)
    if "+" not in sampler.name or isinstance(sampler, Chain):
        return stages
    try:
        links = [default_registry().load_class(name) for name in sampler.name.split("+")]
        chain = chain_class(links)(**{**sampler.params.model_dump(), **params})
    except NeurogenError:  # its parts are not installed, or have other parameters: it is shown as one
        return stages
    *most, last = chain.stages(logits)
    return [*most, last._replace(kept=stages[-1].kept, probs=stages[-1].probs)]


class _StepExplainer:
    """Observes the steps of an engine and explains each."""

    def __init__(self, model: DecodableModel, sampler: Sampler, top: int) -> None:
        self._steps: list[ExplainedStep] = []
        self._vocab_size = 0
        self._model = model.name
        self._text = model.tokenizer.token_text
        self._sampler = sampler
        self._state: State | None = None
        self._top = top
        self._processing: Processing | None = None

    def explanation(self, result: Result) -> Explanation:
        """The explanation of the steps observed so far, for a sequence with this result."""
        sampler = self._sampler
        return Explanation(
            self._model, repr(sampler), sampler.params.model_dump(), result, self._vocab_size, self._steps, self._text
        )

    def __call__(self, rows: Sequence[RequestState], logits: Tensor, drawn: Sequence[SampledToken]) -> None:
        if drawn[0].error is not None:
            return
        row, token = rows[0], drawn[0].token_id
        self._vocab_size = logits.shape[1]
        stages, current, removed_by = self._processors(row.request, logits[:1].float())
        kept, before = current > -torch.inf, softmax(current)
        done = self._sampler_stages(row, current)
        for one in done:
            stages.append(_stage(one.kind, one.name, before, one.probs, one.kept))
            removed_by.append((one.name, (kept & ~one.kept)[0]))
            kept, before = one.kept, one.probs
        final = done[-1].probs[0] if done else None
        self._steps.append(self._step(row, token, logits[0].float(), current[0], stages, removed_by, final))
        if self._processing is not None:
            self._processing.accept(token)

    def _processors(self, request: Request, logits: Tensor) -> tuple[list[Stage], Tensor, list[tuple[str, Tensor]]]:
        """Apply each processor in order, and do as the engine does where together they leave no token."""
        if self._processing is None:
            self._processing = Processing(request)
        stages: list[Stage] = []
        removed: list[tuple[str, Tensor]] = []
        current, before = logits.clone(), logits.clone()
        for processor in self._processing.stages(current[0]):
            banned = (current[0] == -torch.inf) & (before[0] > -torch.inf)
            stages.append(_stage("processor", repr(processor), softmax(before), softmax(current)))
            removed.append((repr(processor), banned))
            before = current.clone()
        if request.processors and not current.max() > -torch.inf:
            self._processing.settle(current[0], logits[0])
            stages.append(_stage("processor", GAVE_WAY, softmax(current), softmax(current)))
            removed = [(name, banned & (current[0] == -torch.inf)) for name, banned in removed]
        return stages, current, removed

    def _sampler_stages(self, row: RequestState, logits: Tensor) -> list[SamplerStage]:
        """The stages of the sampler on the processed logits; its memory is updated as in the engine."""
        request, position = row.request, len(row.prompt) + row.produced
        params: dict[str, Any] = dict(request.params)
        if not self._sampler.stateful:
            return _stages(self._sampler, logits, request.seed, position, params)
        if self._state is None:
            self._state = self._sampler.fresh_state(1, logits.device)
        before = {name: memory.clone() for name, memory in self._state.items()}
        self._sampler.sample(logits, seed=request.seed, position=position, state=self._state, check=False, **params)
        try:
            return self._sampler.stages(logits, seed=request.seed, position=position, state=before, **params)
        except PluginError:  # its `probs` knows the first token of a sequence alone
            return []

    def _step(
        self,
        row: RequestState,
        token: int,
        logits: Tensor,
        processed: Tensor,
        stages: list[Stage],
        removed: Sequence[tuple[str, Tensor]],
        final: Tensor | None,
    ) -> ExplainedStep:
        model = softmax(logits[None])[0]
        position = len(row.prompt) + row.produced
        random, interval = (None, None) if final is None else _random(row.request.seed, position, final, token)
        ranked = torch.argsort(logits, descending=True, stable=True)
        ids = ranked[: self._top].tolist()
        shown = ids if token in ids else [*ids, token]
        candidates = [
            Candidate(
                token_id=one,
                text=self._text(one),
                logit=float(logits[one]),
                probability=float(model[one]),
                processed=float(processed[one]),
                drawn=None if final is None else float(final[one]),
                removed_by=next((name for name, mask in removed if mask[one]), None),
            )
            for one in shown
        ]
        return ExplainedStep(
            position=position,
            token_id=token,
            text=self._text(token),
            probability=float(model[token]),
            rank=int((ranked == token).nonzero()[0, 0]) + 1,
            drawn=None if final is None else float(final[token]),
            entropy=_entropy(model[None]),
            random=random,
            interval=interval,
            stages=stages,
            candidates=candidates,
            processed=processed.cpu(),
        )


def _stage(kind: StageKind, name: str, before: Tensor, after: Tensor, support: Tensor | None = None) -> Stage:
    before, after = before.cpu(), after.cpu()
    kept = after > 0 if support is None else support.cpu()
    return Stage(kind, name, int(kept.sum()), min(1.0, float(before[kept].sum())), _entropy(after))


def _entropy(probs: Tensor) -> float:
    positive = probs[probs > 0]
    return max(0.0, float(-(positive * positive.log()).sum()))


def _random(seed: int, position: int, final: Tensor, token: int) -> tuple[float | None, tuple[float, float] | None]:
    """The number that chose the token and the token's interval; None where the token follows from the logits."""
    final = final.cpu()
    total = float(final.sum())
    below = float(final[:token].sum()) / total
    above = below + float(final[token]) / total
    number = float(uniform(random_bits(seed, position, 0)))
    if above - below > 1 - SLACK or not below - SLACK <= number <= above + SLACK:
        return None, None
    return number, (below, above)
