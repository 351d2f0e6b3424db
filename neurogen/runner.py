"""Text to text: prompts become token ids, the engine continues them, and the new ids become text again.

What is about text is here: chat templates, stop strings, streaming without half characters, seeds of several samples,
and results with everything that is needed to repeat them. Importing this module does not import torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from neurogen.errors import NeurogenError, ParameterError
from neurogen.parameters import INT64, is_whole
from neurogen.processor import notices_of
from neurogen.stops import StopFinder

if TYPE_CHECKING:
    from neurogen.processor import Processor
    from neurogen.request import DecodableModel, DecodingEngine, Request, Step, TokenLogprobs
    from neurogen.sampler import Sampler
    from neurogen.stream_decoder import StreamDecoder
    from neurogen.tokenizer import Tokenizer

__all__ = ["Event", "Failure", "Prompt", "Result", "RunOptions", "Runner", "TextDelta"]

FinishReason = Literal["eos", "stop", "length"]

KEPT_PROCESSORS = 32
"""Specs of prompts' own processors whose processors are kept."""

CONTEXT_IDS = 8
"""So many ids of the prompt a continuation is decoded behind: a tokenizer may drop the space that starts a text."""


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
        max_new_tokens, stop: instead of the run's.
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


@dataclass(frozen=True)
class RunOptions:
    """What holds for all prompts of a run.

    Attributes:
        n: samples a prompt.
        max_new_tokens: the most tokens a sequence may get.
        seed: sample i of prompt j draws with the seed `seed + j * n + i`.
        stop: strings that end a text; they are not part of it.
        logprobs: give log-probabilities of each token and of this many most probable ones; None for none.
        chat: apply the tokenizer's chat template; None: if it has one.
        batch_size: the most sequences that are decoded together.
        processors: change the logits before the sampler sees them, in this order.

    Raises:
        ParameterError: a value outside its domain.
    """

    n: int = 1
    max_new_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    chat: bool | None = None
    batch_size: int = 8
    processors: Sequence[Processor] = ()

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("max_new_tokens", 1), ("batch_size", 1), ("logprobs", 0)):
            value = getattr(self, name)
            optional = name == "logprobs" and value is None
            if not optional and not is_whole(value, range(least, INT64.stop)):
                raise ParameterError(f"{name} must be an integer >= {least}, got {value!r}.", name)
        if not is_whole(self.seed):
            raise ParameterError(f"seed must be an integer of 64 bits, got {self.seed!r}.", "seed")
        _check_stops(self.stop)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that has become certain. All deltas of a sequence joined are its result's text."""

    index: int
    sample: int
    text: str


@dataclass(frozen=True)
class Result:
    """A finished sequence.

    Attributes:
        index, sample: which prompt, which of its samples.
        prompt: the prompt's text.
        text: the new text, without end-of-sequence and without the stop string.
        token_ids: the tokens chosen, those of a stop string included, end-of-sequence not.
        sampler, params, seed: what draws them again.
        processors: what changed the logits before the sampler, such as "repetition-penalty(penalty=1.2)".
        notices: what processors say about the result, such as that a grammar was not satisfied.
        score: of the strategy that chose this result among several; None where there was no choice.
        finish_reason: "eos" (the model ended it), "stop" (a stop string did), "length".
        prompt_tokens, new_tokens: how many the model was given, how many are in `token_ids`.
        seconds: wall time from the sequence's first share of the batch to its end.
        tokens_per_second: new tokens over seconds.
        logprobs: one entry a token id, where asked for: token_id, text, logprob (natural logarithm of the model's own
            probability, before temperature and truncation) and top, a list of the same.
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

    def _repr_html_(self) -> str:
        from neurogen.notebook import result_html

        return result_html(self)

    def to_json(self) -> dict[str, Any]:
        """The result as plain values; `logprobs`, `processors`, `notices` and `score` only where there are any."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Failure:
    """A prompt that could not be run, or a sequence that could not be finished, among several."""

    index: int
    error: NeurogenError


Event = TextDelta | Result | Failure


class Runner:
    """Continues prompts with a model and a sampler.

    Args:
        model: as `neurogen.models.load_model` gives it.
        sampler: as `neurogen.load_sampler` gives it.
        options: what holds for all prompts; single ones may be given as keywords instead.
        engine: decodes the requests; by default `model.engine(sampler, batch_size=options.batch_size)`.

    Raises:
        ParameterError: an option outside its domain; `chat` asked for where the tokenizer has no template.

    Example:
        runner = Runner(load_model("smollm2-135m"), neurogen.load_sampler("topk", k=50), n=2, seed=7)
        for result in runner.generate("What is the capital of France?"):
            print(result.text)
    """

    def __init__(
        self,
        model: DecodableModel,
        sampler: Sampler,
        options: RunOptions | None = None,
        *,
        engine: DecodingEngine | None = None,
        **values: Any,
    ) -> None:
        if options is not None and values:
            raise ParameterError("Give either options or single values, not both.", "options")
        self.model = model
        self.sampler = sampler
        self.options = options or _options(values)
        template = model.tokenizer.has_chat_template
        if self.options.chat and not template:
            raise ParameterError(
                f"The model {model.name!r} has no chat template: it continues text. Leave out chat, or use a model "
                "made for chat.",
                "chat",
            )
        self.chat = template if self.options.chat is None else self.options.chat
        self._engine = engine or model.engine(sampler, batch_size=self.options.batch_size)
        self._prepare(self.options.processors)
        self._own_processors: dict[str, Sequence[Processor]] = {}

    def generate(self, *texts: str) -> list[Result]:
        """Continue texts and wait for all results, in the order of prompts and samples.

        Raises:
            NeurogenError: one of them cannot be run.
        """
        results: list[Result] = []
        for event in self.run([Prompt(index, text) for index, text in enumerate(texts)]):
            if isinstance(event, Failure):
                raise event.error
            if isinstance(event, Result):
                results.append(event)
        return sorted(results, key=lambda result: (result.index, result.sample))

    def run(self, prompts: Iterable[Prompt], *, skip: Callable[[int, int], bool] | None = None) -> Iterator[Event]:
        """Continue prompts, yielding text as it becomes certain and each result as its sequence ends.

        Args:
            prompts: read when there is room for them, never all at once.
            skip: leaves out the sample of a prompt when it says so for (index, sample).

        Raises:
            NeurogenError: the only prompt cannot be run. Of several, each that cannot gives a `Failure` instead.
        """
        alone = isinstance(prompts, Sequence) and len(prompts) == 1
        failures: deque[Failure] = deque()
        for step in self._engine.generate(self._requests(prompts, skip, failures)):
            yield from _drained(failures, alone)
            sequence: _Sequence = step.key
            if step.error is not None:
                failures.append(Failure(sequence.prompt.index, step.error))
                yield from _drained(failures, alone)
                continue
            yield from sequence.take(step)
            if sequence.finish_reason is not None:
                if step.finish_reason is None:
                    self._engine.cancel(sequence)
                yield sequence.result(self.sampler, step.seconds)
        yield from _drained(failures, alone)

    def encode(self, prompt: Prompt | str) -> list[int]:
        """The ids that the model is given for a prompt."""
        prompt = Prompt(0, prompt) if isinstance(prompt, str) else prompt
        tokenizer = self.model.tokenizer
        if self.chat or prompt.messages is not None:
            return tokenizer.encode_chat(prompt.messages or [{"role": "user", "content": prompt.text}])
        return tokenizer.encode(prompt.text)

    def _prepare(self, processors: Sequence[Processor]) -> Sequence[Processor]:
        for processor in processors:
            processor.prepare(self.model.tokenizer, self._engine.vocab_size)
        return processors

    def _processors_of(self, prompt: Prompt) -> Sequence[Processor]:
        """The run's, or a prompt's own, which are kept, for the next prompt often has the same."""
        from neurogen.registry import load_processors

        spec, kept = prompt.processors, self._own_processors
        if not spec:
            return self.options.processors if spec is None else ()
        if spec not in kept:
            if len(kept) == KEPT_PROCESSORS:
                kept.clear()
            kept[spec] = self._prepare(load_processors(spec))
        return kept[spec]

    def _requests(
        self,
        prompts: Iterable[Prompt],
        skip: Callable[[int, int], bool] | None,
        failures: deque[Failure],
    ) -> Iterator[Request]:
        for prompt in prompts:
            samples = [i for i in range(self.options.n) if skip is None or not skip(prompt.index, i)]
            if not samples:
                continue
            try:
                requests = self._requests_of(prompt, samples)
            except NeurogenError as error:
                failures.append(Failure(prompt.index, error))
            else:
                yield from requests

    def _requests_of(self, prompt: Prompt, samples: Sequence[int]) -> list[Request]:
        from neurogen.request import Request

        options, model = self.options, self.model
        ids = tuple(self.encode(prompt))
        stops = options.stop if prompt.stop is None else _check_stops(prompt.stop)
        first = options.seed + prompt.index * options.n if prompt.seed is None else prompt.seed
        requests = []
        for sample in samples:
            request = Request(
                prompt_ids=ids,
                max_new_tokens=options.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens,
                seed=first + sample,
                params=prompt.params,
                stop_ids=model.eos_ids,
                logprobs=options.logprobs,
                processors=self._processors_of(prompt),
                key=None,
                sample=sample,
            )
            params = self._engine.check(request)
            behind = () if self.chat else ids[-CONTEXT_IDS:]
            sequence = _Sequence(prompt, sample, request, params, model.tokenizer, stops, behind)
            requests.append(sequence.request)
        return requests


class _Sequence:
    """The text of one sequence as it grows; the key of its request."""

    def __init__(
        self,
        prompt: Prompt,
        sample: int,
        request: Request,
        params: dict[str, Any],
        tokenizer: Tokenizer,
        stops: Sequence[str],
        behind: Sequence[int],
    ) -> None:
        self.prompt = prompt
        self.sample = sample
        self.request = replace(request, key=self)
        self.finish_reason: FinishReason | None = None
        self._params = params
        self._tokenizer = tokenizer
        self._decoder, self._of_prompt = _decoder_behind(tokenizer, behind)
        self._stops = StopFinder(stops)
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[dict[str, Any]] = []
        self._score: float | None = None

    def __repr__(self) -> str:
        return f"prompt {self.prompt.index}, sample {self.sample}"

    def take(self, step: Step) -> Iterator[TextDelta]:
        """Add one token; `finish_reason` is set when it was the last."""
        ended = step.finish_reason == "eos"
        self._score = step.score
        text = ""
        if not ended:
            self._ids.append(step.token_id)
            if step.logprobs is not None:
                self._logprobs.append(self._listed(step.token_id, step.logprobs))
            text = self._new(self._decoder.push(step.token_id))
        text = self._stops.push(text)
        if step.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._new(self._decoder.flush()))
            if not self._stops.found:
                text += self._stops.flush()
        if self._stops.found:
            self.finish_reason = "stop"
        elif step.finish_reason is not None:
            self.finish_reason = "eos" if ended else "length"
        if text:
            self._texts.append(text)
            yield TextDelta(self.prompt.index, self.sample, text)

    def result(self, sampler: Sampler, seconds: float) -> Result:
        """The finished sequence."""
        assert self.finish_reason is not None
        return Result(
            index=self.prompt.index,
            sample=self.sample,
            prompt=self.prompt.text,
            text="".join(self._texts),
            token_ids=self._ids,
            sampler=sampler.name,
            params=self._params,
            seed=self.request.seed,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.request.prompt_ids),
            new_tokens=len(self._ids),
            seconds=seconds,
            tokens_per_second=len(self._ids) / seconds if seconds > 0 else 0.0,
            logprobs=self._logprobs if self.request.logprobs is not None else None,
            processors=list(map(repr, self.request.processors)) or None,
            notices=notices_of(self.request.processors, self._ids, self.finish_reason) or None,
            score=self._score,
        )

    def _new(self, text: str) -> str:
        """Decoded text without what the prompt ends with and the decoder had held back."""
        new = text[self._of_prompt :]
        self._of_prompt -= len(text) - len(new)
        return new

    def _listed(self, token: int, logprobs: TokenLogprobs) -> dict[str, Any]:
        text = self._tokenizer.token_text
        top = [{"token_id": other, "text": text(other), "logprob": value} for other, value in logprobs.top]
        return {"token_id": token, "text": text(token), "logprob": logprobs.logprob, "top": top}


def _options(values: Mapping[str, Any]) -> RunOptions:
    known = [field.name for field in fields(RunOptions)]
    for name in values:
        if name not in known:
            raise ParameterError(
                f"A run has no option {name!r}; it has: {', '.join(known)}. A sampler's own parameters are given where "
                "it is loaded: neurogen.load_sampler(name, ...).",
                name,
            )
    return RunOptions(**values)


def _decoder_behind(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[StreamDecoder, int]:
    """A decoder that has read these ids, and how many characters of theirs it holds back."""
    from neurogen.stream_decoder import StreamDecoder

    decoder = StreamDecoder(tokenizer)
    returned = sum(len(decoder.push(token)) for token in ids)
    return decoder, len(tokenizer.decode(ids)) - returned


def _drained(failures: deque[Failure], alone: bool) -> Iterator[Failure]:
    while failures:
        failure = failures.popleft()
        if alone:
            raise failure.error
        yield failure


def _check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ParameterError(f"stop must be a list of texts that are not empty, got {stops!r}.", "stop")
    return tuple(stops)
