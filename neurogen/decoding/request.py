"""What is asked of an engine, and what it says about a token. Knows no text and no tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from neurogen.errors import NeurogenError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.processor import Processor
    from neurogen.contract.tokenizer import Tokenizer

__all__ = [
    "DecodableModel",
    "DecodingEngine",
    "Drawn",
    "FinishReason",
    "Observed",
    "Observer",
    "Request",
    "Row",
    "Step",
    "TokenLogprobs",
]

FinishReason = Literal["eos", "length", "error"]


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
        key: what the caller knows the sequence by.
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
class Row:
    """A sequence and how far it is.

    Attributes:
        request: what was asked for.
        numbers: the values of the sampler's int and float parameters, which may differ between rows.
        settings: the values of its other parameters, which are the same for a whole batch.
        produced: tokens chosen so far.
        finished: leaves the batch before the next forward pass.
        admitted: `time.perf_counter()` when it was given a row.
    """

    request: Request
    numbers: dict[str, Any]
    settings: dict[str, Any]
    produced: int = 0
    finished: bool = False
    admitted: float = 0.0

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens to continue."""
        return self.request.prompt_ids


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step gave a row: a token, or the reason why there is none."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: NeurogenError | None = None


Observed = tuple[Sequence[Row], "Tensor", Sequence[Drawn]]
"""A step as it was seen: the rows, the model's logits [rows, vocab], and what was chosen."""

Observer = Callable[[Sequence[Row], "Tensor", "Tensor", Sequence[Drawn]], None]
"""Is shown every step: the rows, the model's logits [rows, vocab], what processors made of them (the same tensor where
there is none), and what was chosen. It must not change anything."""


@dataclass(frozen=True, slots=True)
class Step:
    """One new token of one sequence.

    Attributes:
        request: whose it is.
        token_id: the token chosen; -1 where there is none, because of `error`.
        logprobs: log-probabilities, where the request asks for them.
        finish_reason: "eos" when the token is one of the request's `stop_ids`, "length" when it is the last of
            `max_new_tokens`, "error" when the model gave no valid distribution, else None.
        seconds: wall time since the sequence was given a row.
        error: an InvalidLogitsError with the request's key, where `finish_reason` is "error". It ends this sequence
            only.
        score: what the sequence is ranked by, from engines that rank sequences; None from others.
    """

    request: Request
    token_id: int
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None
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
