"""The input and output of a runner: prompts and options, then pieces of text, results and failures.

A result has everything that is needed to repeat it. Knows no model and no engine; importing this module does not import
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from neurogen.contract.display import Displayed
from neurogen.contract.parameters import INT64, is_whole
from neurogen.errors import NeurogenError, ParameterError

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "Event",
    "Failure",
    "FinishReason",
    "Prompt",
    "Result",
    "RunOptions",
    "TextDelta",
    "check_least_tokens",
    "check_stop_ids",
    "check_stops",
]

DEFAULT_NEW_TOKENS = 128
"""Tokens that a sequence gets at most where nothing else is asked for."""

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Attributes:
        index: its place among the prompts of a run, from 0; determines its seed.
        text: the text, or what the user says to a chat model.
        messages: the conversation so far, mappings with `role` and `content`, the text as the last of them; None for a
            conversation that begins with the text. Needs a model with a chat template.
        params: values of the sampler's parameters for this prompt.
        seed: of the first sample, instead of the one that follows from the run's seed.
        max_new_tokens, stop, stop_ids: instead of the run's.
        processors: a spec such as "no-repeat-ngram(size=3)", instead of the run's; "" for none.
    """

    index: int
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    processors: str | None = None
    stop_ids: tuple[int, ...] | None = None


LEAST = {"n": 1, "max_new_tokens": 1, "default_new_tokens": 1, "batch_size": 1, "logprobs": 0}
OPTIONAL = ("max_new_tokens", "logprobs")


@dataclass(frozen=True)
class RunOptions:
    """What holds for all prompts of a run.

    Attributes:
        n: samples a prompt.
        max_new_tokens: the most tokens a sequence may get; None for what fits the context, up to `default_new_tokens`.
        seed: sample i of prompt j draws with the seed `seed + j * n + i`.
        stop: strings that end a text; they are not part of it. One that spells a special token, which has no text,
            ends it at that token.
        logprobs: give log-probabilities of each token and of this many most probable ones; None for none.
        chat: apply the tokenizer's chat template; None: if it has one.
        parse_special: make special tokens of their spellings in prompts and messages, such as "<|im_start|>"; as a rule
            they are ordinary text.
        batch_size: the most sequences that are decoded together.
        processors: change the logits before the sampler sees them, in this order.
        stop_ids: tokens that end a text, beside the model's own; they are not part of it.
        default_new_tokens: see `max_new_tokens`.

    Raises:
        ParameterError: a value outside its domain, or processors that want more tokens than a sequence may get.
    """

    n: int = 1
    max_new_tokens: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    chat: bool | None = None
    parse_special: bool = field(default=False, kw_only=True)
    stop_ids: tuple[int, ...] = field(default=(), kw_only=True)
    default_new_tokens: int = field(default=DEFAULT_NEW_TOKENS, kw_only=True)
    batch_size: int = 8
    processors: Sequence[Processor] = ()

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not (name in OPTIONAL and value is None) and not is_whole(value, range(least, INT64.stop)):
                raise ParameterError(f"{name} must be an integer >= {least}, got {value!r}.", name)
        if not is_whole(self.seed):
            raise ParameterError(f"seed must be an integer of 64 bits, got {self.seed!r}.", "seed")
        check_stops(self.stop)
        check_stop_ids(self.stop_ids)
        if self.max_new_tokens is not None:
            check_least_tokens(self.processors, self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that has become certain. All deltas of a sequence joined are its result's text."""

    index: int
    sample: int
    text: str


@dataclass(frozen=True)
class Result(Displayed):
    """A finished sequence.

    Attributes:
        index, sample: which prompt, which of its samples.
        prompt: the prompt's text.
        text: the new text, without end-of-sequence and without the stop string.
        token_ids: the tokens chosen, those of a stop string included, one that ends the text by itself not.
        sampler, params, seed: what draws them again.
        processors: what changed the logits before the sampler, such as "repetition-penalty(penalty=1.2)".
        notices: what processors say about the result, such as that a grammar was not satisfied.
        score: of the strategy that chose this result among several; None where there was no choice.
        finish_reason: "eos" (the model ended it), "stop" (a stop string or one of `stop_ids` did), "length".
        prompt_tokens, new_tokens: how many the model was given, how many are in `token_ids`.
        seconds: wall time since its prompt was read (prefill not counted); with beams, of the whole search, and with
            vLLM, of the whole call.
        tokens_per_second: new tokens over seconds.
        logprobs: one entry a token id, where asked for: token_id, text, logprob (natural logarithm of the model's own
            probability, before temperature and truncation) and top, a list of the same.
        end_logprob: where log-probabilities were asked for, that of the token that ended the text and is not one
            of `token_ids`; None where the text was ended by a string or its length.
        max_new_tokens: the most tokens it could get, where none were asked for and the context decided.
    """

    index: int
    sample: int
    prompt: str
    text: str
    token_ids: list[int]
    sampler: str
    params: dict[str, Any]
    seed: int
    finish_reason: FinishReason
    prompt_tokens: int
    new_tokens: int
    seconds: float
    tokens_per_second: float
    logprobs: list[dict[str, Any]] | None = None
    processors: list[str] | None = None
    notices: list[str] | None = None
    score: float | None = None
    end_logprob: float | None = None
    max_new_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as plain values; those that are None are left out."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Failure:
    """A prompt that could not be run, or a sequence that could not be finished, among several.

    Attributes:
        index: which prompt.
        error: why.
        sample: which of its samples; None if no sample can be run.
    """

    index: int
    error: NeurogenError
    sample: int | None = None


Event = TextDelta | Result | Failure


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """The stop strings as they are.

    Raises:
        ParameterError: they are no list of texts, or one is empty.
    """
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ParameterError(f"stop must be a list of texts that are not empty, got {stops!r}.", "stop")
    return tuple(stops)


def check_stop_ids(stop_ids: Sequence[int]) -> tuple[int, ...]:
    """The ids as they are.

    Raises:
        ParameterError: they are no list of integers >= 0.
    """
    if not isinstance(stop_ids, list | tuple) or not all(is_whole(one, range(INT64.stop)) for one in stop_ids):
        raise ParameterError(f"stop_ids must be a list of integers >= 0, got {stop_ids!r}.", "stop_ids")
    return tuple(stop_ids)


def check_least_tokens(processors: Sequence[Processor], max_new_tokens: int) -> None:
    """Refuse processors that want more tokens than a sequence may get.

    Raises:
        ParameterError: one does.
    """
    for processor in processors:
        if processor.least_new_tokens > max_new_tokens:
            raise ParameterError(
                f"{processor!r} wants at least {processor.least_new_tokens} new tokens, and a sequence may get at most "
                f"{max_new_tokens} (max_new_tokens). Raise the one or lower the other.",
                "max_new_tokens",
            )
