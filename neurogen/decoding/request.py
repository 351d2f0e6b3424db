"""Requests to an engine, and the steps it answers with. Knows no text, and nothing about how a model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from neurogen.contract.parameters import INT64, NUMBERS, build_params, is_whole
from neurogen.errors import NeurogenError, ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler
    from neurogen.contract.tokenizer import Tokenizer

__all__ = [
    "DecodableModel",
    "DecodingEngine",
    "EndReason",
    "Observed",
    "Observer",
    "Request",
    "RequestState",
    "SampledToken",
    "Step",
    "TokenLogprobs",
    "check_count",
    "check_request",
    "sampler_values",
]

EndReason = Literal["eos", "length", "error"]


@dataclass(frozen=True)
class Request:
    """One sequence to decode.

    Attributes:
        prompt_ids: the tokens to continue, at least one.
        max_new_tokens: how many tokens may be chosen, at least one.
        seed: of 64 bits; with the position it determines every draw.
        params: values of the sampler's own parameters for this sequence; those left out are as in the sampler.
        stop_ids: tokens that end the sequence.
        logprobs: give the log-probability of the chosen token and of this many most probable ones; None for none.
        processors: change the logits before the sampler sees them, in this order.
        key: by which the caller identifies the sequence.
        sample: which of the samples of its prompt it is, from 0; only engines that rank sequences look at it.
        notices: where the engine says what the user must know about the sequence.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    params: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    processors: Sequence[Processor] = ()
    key: Any = None
    sample: int = 0
    notices: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before temperature and truncation.

    Attributes:
        logprob: of the chosen token.
        top: (token id, log-probability) of the most probable tokens, the most probable first, at equal values the
            lowest id first; tokens of probability zero are left out.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class RequestState:
    """A request that is being decoded: a row of the batch.

    Attributes:
        request: what was asked for.
        numbers: the values of the sampler's int and float parameters, which may differ between rows.
        settings: the values of its other parameters, which are the same for a whole batch.
        produced: tokens chosen so far.
        finished: leaves the batch before the next forward pass.
        prefilled_at: `time.perf_counter()` when its prompt had been read.
    """

    request: Request
    numbers: dict[str, Any]
    settings: dict[str, Any]
    produced: int = 0
    finished: bool = False
    prefilled_at: float = 0.0

    @classmethod
    def of(cls, request: Request, sampler: Sampler) -> RequestState:
        """The state of a request before its first token.

        Raises:
            ParameterError: a value of one of the sampler's parameters is outside its domain.
        """
        values = sampler_values(sampler, request)
        fields = type(sampler.params).model_fields
        numbers = {name: value for name, value in values.items() if fields[name].annotation in NUMBERS}
        settings = {name: value for name, value in values.items() if name not in numbers}
        return cls(request, numbers, settings)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens to continue."""
        return self.request.prompt_ids


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The result of a step for a row: a token, or the error that explains why no token could be chosen."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: NeurogenError | None = None


Observed = tuple[Sequence[RequestState], "Tensor", Sequence[SampledToken]]
"""A step as it was seen: the rows, the model's logits [rows, vocab], and what was chosen."""

Observer = Callable[[Sequence[RequestState], "Tensor", "Tensor", Sequence[SampledToken]], None]
"""Is shown every step: the rows, the model's logits [rows, vocab], what processors made of them (the same tensor where
there are no processors), and what was chosen. It must not change anything."""


@dataclass(frozen=True, slots=True)
class Step:
    """One new token of one sequence.

    Attributes:
        request: whose it is.
        token_id: the token chosen; -1 where no token could be chosen, because of `error`.
        logprobs: log-probabilities, where the request asks for them.
        finish_reason: "eos" when the token is one of the request's `stop_ids`, "length" when it is the last of
            `max_new_tokens`, "error" when no token could be chosen, else None.
        seconds: wall time since the sequence's prompt was read (prefill not counted); with beams, of the whole search.
        error: where `finish_reason` is "error": InvalidLogitsError, or the ParameterError of a processor that cannot
            go on. It ends this sequence only.
        score: what the sequence is ranked by, from engines that rank sequences; None from others.
    """

    request: Request
    token_id: int
    logprobs: TokenLogprobs | None
    finish_reason: EndReason | None
    seconds: float
    error: NeurogenError | None = None
    score: float | None = None

    @property
    def key(self) -> Any:
        """The request's key."""
        return self.request.key


class DecodingEngine(Protocol):
    """What turns requests into steps: `neurogen.decoding.engine.Engine`, or another with the same methods."""

    vocab_size: int

    def check(self, request: Request) -> dict[str, Any]:
        """The value of every parameter of the sampler for a request; ParameterError where it cannot be decoded."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Decode requests, yielding each token as it is chosen."""

    def cancel(self, key: Any) -> bool:
        """End the sequences whose request has this key; whether there was one."""


class DecodableModel(Protocol):
    """A model as the runner sees it; see `neurogen.models.LanguageModel` for the attributes.

    One that cannot be decoded by `neurogen.decoding.engine.Engine` has a method `engine` that makes its own.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context_length: int
    eos_ids: frozenset[int]


def sampler_values(sampler: Sampler, request: Request) -> dict[str, Any]:
    """The value of every parameter of the sampler for a request.

    Raises:
        ParameterError: a value outside its domain.
    """
    own = sampler.params
    return build_params(sampler.name, type(own), own.model_dump() | dict(request.params)).model_dump()


def check_count(name: str, value: Any) -> None:
    """Refuse what is not an integer of at least 1.

    Raises:
        ParameterError: it is not one.
    """
    if not is_whole(value, range(1, INT64.stop)):
        raise ParameterError(f"{name} must be an integer >= 1, got {value!r}.", name)


def check_request(request: Request, model: DecodableModel) -> None:
    """Refuse a request that the model cannot continue.

    Raises:
        ParameterError: no token, one that the model does not have, or more than its context holds.
    """
    prompt, new, limit = request.prompt_ids, request.max_new_tokens, model.context_length
    if not prompt:
        raise ParameterError(
            "The prompt has no token, and there is nothing to continue: this model has no start-of-sequence token that "
            "could stand for an empty text. Give at least one character.",
            "prompt_ids",
        )
    if min(prompt) < 0 or max(prompt) >= model.vocab_size:
        raise ParameterError(
            f"prompt_ids must be in [0, {model.vocab_size - 1}], the model's vocabulary.", "prompt_ids"
        )
    check_count("max_new_tokens", new)
    if len(prompt) + new > limit:
        raise ParameterError(_too_long(len(prompt), new, limit, model.name), "max_new_tokens")
    if not is_whole(request.seed):
        raise ParameterError(f"seed must be an integer of 64 bits, got {request.seed!r}.", "seed")
    if request.logprobs is not None and not is_whole(request.logprobs, range(INT64.stop)):
        raise ParameterError(f"logprobs must be an integer >= 0, got {request.logprobs!r}.", "logprobs")


def _too_long(prompt: int, new: int, limit: int, name: str) -> str:
    advice = (
        f"ask for at most {limit - prompt} new tokens, or shorten the prompt"
        if prompt < limit
        else "shorten the prompt"
    )
    return (
        f"The prompt has {prompt} tokens and max_new_tokens is {new}: {prompt + new} tokens, but the context of "
        f"{name!r} holds {limit}. To fit, {advice}."
    )
