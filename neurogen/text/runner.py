"""Text to text: prompts become token ids, the engine continues them, and the new ids become text again.

It handles chat templates, stop strings, streaming without half characters, and the seeds of several samples.
What a runner is asked and what it yields is defined in `generation`, and can be imported from here too. Importing this
module does not import torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from neurogen.contract.processor import prepared
from neurogen.decoding.processing import notices_of
from neurogen.decoding.request import Request
from neurogen.errors import NeurogenError, ParameterError
from neurogen.models.foreign import check_loaded
from neurogen.registry.registry import load_processors
from neurogen.text.generation import (
    Event,
    Failure,
    FinishReason,
    Prompt,
    Result,
    RunOptions,
    TextDelta,
    check_least_tokens,
    check_stop_ids,
    check_stops,
)
from neurogen.text.hints import sample_hints, stop_hints, tokenizer_stop_hints
from neurogen.text.stops import StopFinder
from neurogen.text.stream_decoder import StreamDecoder

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler
    from neurogen.contract.tokenizer import Tokenizer
    from neurogen.decoding.request import DecodableModel, DecodingEngine, Step, TokenLogprobs

__all__ = ["Event", "Failure", "Prompt", "Result", "RunOptions", "Runner", "TextDelta", "prompt_ids"]

KEPT_PROCESSORS = 32
"""Specs of prompts' own processors whose processors are kept."""

CONTEXT_IDS = 8
"""How many of the prompt's last ids are decoded before a continuation: a tokenizer may drop a text's first space."""


class Runner:
    """Continues prompts with a model and a sampler.

    Args:
        model: as `neurogen.models.load_model` gives it.
        sampler: as `neurogen.load_sampler` gives it.
        options: what holds for all prompts; single ones may be given as keywords instead.
        engine: decodes the requests; by default `engine_for(model, sampler, batch_size=options.batch_size)`.

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
        check_loaded(model, "Runner", "tokenizer", "vocab_size", "context_length")
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
        self._engine = engine or _engine_for(model, sampler, self.options.batch_size)
        self._draws = engine is None  # another's sequences may differ without drawing
        self._processors = self._prepared(self.options.processors)
        self._own_processors: dict[str, Sequence[Processor]] = {}

    @property
    def hints(self) -> list[str]:
        """Sentences on options that have no effect, or probably not the effect that was meant."""
        options = self.options
        repeated = sample_hints(self.sampler, options.n) if self._draws else ()
        return [*repeated, *stop_hints(options.stop), *tokenizer_stop_hints(options.stop, self.model.tokenizer)]

    def generate(self, *texts: str) -> list[Result]:
        """Continue texts and wait for all results, in the order of prompts and samples.

        Raises:
            NeurogenError: one of them cannot be run; once all others have been, which are its `results`.
        """
        results: list[Result] = []
        failed: Failure | None = None
        for event in self.run([Prompt(index, text) for index, text in enumerate(texts)]):
            if isinstance(event, Failure):
                failed = failed or event
            elif isinstance(event, Result):
                results.append(event)
        results.sort(key=lambda result: (result.index, result.sample))
        if failed is not None:
            failed.error.results = results
            raise failed.error
        return results

    def run(self, prompts: Iterable[Prompt], *, skip: Callable[[int, int], bool] | None = None) -> Iterator[Event]:
        """Continue prompts, yielding text as it becomes certain and each result as its sequence ends.

        Args:
            prompts: read when there is room for them, never all at once.
            skip: leaves out the sample of a prompt when it says so for (index, sample).

        Raises:
            NeurogenError: the only prompt of a list cannot be run, or its only sample. Of several prompts or samples,
                each that cannot gives a `Failure` instead.
        """
        alone = isinstance(prompts, Sequence) and len(prompts) == 1
        failures: deque[Failure] = deque()
        for step in self._engine.generate(self._requests(prompts, skip, failures)):
            yield from self._failures(failures, alone)
            sequence: _Sequence = step.key
            if step.error is not None:
                failures.append(Failure(sequence.prompt.index, step.error, sequence.sample))
                continue
            yield from sequence.take(step)
            if sequence.finish_reason is not None:
                if step.finish_reason is None:
                    self._engine.cancel(sequence)
                yield sequence.result(self.sampler, step.seconds)
        yield from self._failures(failures, alone)

    def _failures(self, failures: deque[Failure], alone: bool) -> Iterator[Failure]:
        while failures:
            failure = failures.popleft()
            if alone and (failure.sample is None or self.options.n == 1):
                raise failure.error
            yield failure

    def encode(self, prompt: Prompt | str) -> list[int]:
        """The ids that the model is given for a prompt."""
        prompt = Prompt(0, prompt) if isinstance(prompt, str) else prompt
        return prompt_ids(self.model.tokenizer, prompt, chat=self.chat, parse_special=self.options.parse_special)

    def _prepared(self, processors: Sequence[Processor]) -> Sequence[Processor]:
        return prepared(processors, self.model.tokenizer, self._engine.vocab_size)

    def _processors_of(self, prompt: Prompt) -> Sequence[Processor]:
        """The processors of the run, or a prompt's own; these are kept, since the next prompt often has the same."""
        spec, kept = prompt.processors, self._own_processors
        if not spec:
            return self._processors if spec is None else ()
        if spec not in kept:
            if len(kept) == KEPT_PROCESSORS:
                kept.clear()
            kept[spec] = self._prepared(load_processors(spec))
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
        options, model = self.options, self.model
        ids = tuple(self.encode(prompt))
        stops, stop_ids = self._stops_of(prompt)
        processors = self._processors_of(prompt)
        asked = options.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens
        allowed = self._room(len(ids), processors) if asked is None else asked
        check_least_tokens(processors, allowed)
        first = options.seed + prompt.index * options.n if prompt.seed is None else prompt.seed
        requests = []
        for sample in samples:
            request = Request(
                prompt_ids=ids,
                max_new_tokens=allowed,
                seed=first + sample,
                params=prompt.params,
                stop_ids=model.eos_ids | stop_ids,
                logprobs=options.logprobs,
                processors=processors,
                key=None,
                sample=sample,
            )
            params = self._engine.check(request)
            behind = () if self.chat else ids[-CONTEXT_IDS:]
            sequence = _Sequence(prompt, sample, request, params, model, stops, behind, decided=asked is None)
            requests.append(sequence.request)
        return requests

    def _stops_of(self, prompt: Prompt) -> tuple[Sequence[str], frozenset[int]]:
        """The strings and, beside the model's own, the tokens that end a prompt's texts."""
        tokenizer, options = self.model.tokenizer, self.options
        stops = options.stop if prompt.stop is None else check_stops(prompt.stop)
        ids = options.stop_ids if prompt.stop_ids is None else check_stop_ids(prompt.stop_ids)
        if beyond := [token for token in ids if token >= self._engine.vocab_size]:
            raise ParameterError(
                f"stop_ids must be in [0, {self._engine.vocab_size - 1}], the model's vocabulary, got {beyond[0]}.",
                "stop_ids",
            )
        return stops, frozenset(ids) | tokenizer.special_spelled(stops)

    def _room(self, prompt_tokens: int, processors: Sequence[Processor]) -> int:
        """The most new tokens where none are asked for: what fits, up to the default or what a processor wants."""
        limit = min(self.model.context_length, getattr(self._engine, "context_length", self.model.context_length))
        room = limit - prompt_tokens
        if room < 1:
            raise ParameterError(
                f"The prompt has {prompt_tokens} tokens, and the context of {self.model.name!r} holds {limit}, the new "
                "tokens among them: there is no room for any. Shorten the prompt.",
                "max_new_tokens",
            )
        wanted = [self.options.default_new_tokens, *(one.least_new_tokens for one in processors)]
        return min(room, max(wanted))


def _engine_for(model: DecodableModel, sampler: Sampler, batch_size: int) -> DecodingEngine:
    from neurogen.decoding.engine import engine_for  # imports torch, which listing options must not

    return engine_for(model, sampler, batch_size=batch_size)


class _Sequence:
    """The text of one sequence as it grows; the key of its request."""

    def __init__(
        self,
        prompt: Prompt,
        sample: int,
        request: Request,
        params: dict[str, Any],
        model: DecodableModel,
        stops: Sequence[str],
        behind: Sequence[int],
        *,
        decided: bool,
    ) -> None:
        self.prompt = prompt
        self.sample = sample
        self.request = replace(request, key=self)
        self.finish_reason: FinishReason | None = None
        self._params = params
        self._tokenizer = model.tokenizer
        self._eos_ids = model.eos_ids
        self._decided = decided  # the context, not the user, decided how long the sequence can get
        self._decoder, self._of_prompt = _decoder_behind(model.tokenizer, behind)
        self._stops = StopFinder(stops)
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[dict[str, Any]] = []
        self._end_logprob: float | None = None
        self._score: float | None = None

    def __repr__(self) -> str:
        return f"prompt {self.prompt.index}, sample {self.sample}"

    def take(self, step: Step) -> Iterator[TextDelta]:
        """Add one token; `finish_reason` is set when it was the last."""
        ended = step.finish_reason == "eos"
        self._score = step.score
        text = ""
        if ended:
            self._end_logprob = step.logprobs.logprob if step.logprobs is not None else None
        else:
            self._ids.append(step.token_id)
            if step.logprobs is not None:
                self._logprobs.append(self._with_text(step.token_id, step.logprobs))
            text = self._new(self._decoder.push(step.token_id))
        text = self._stops.push(text)
        if step.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._new(self._decoder.flush()))
            if not self._stops.found:
                text += self._stops.flush()
        if self._stops.found:
            self.finish_reason = "stop"
        elif ended:
            self.finish_reason = "eos" if step.token_id in self._eos_ids else "stop"
        elif step.finish_reason is not None:
            self.finish_reason = "length"
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
            notices=[*self.request.notices, *self._processor_notices()] or None,
            score=self._score,
            end_logprob=self._end_logprob,
            max_new_tokens=self.request.max_new_tokens if self._decided else None,
        )

    def _processor_notices(self) -> list[str]:
        assert self.finish_reason is not None
        return notices_of(self.request.processors, self._ids, self.finish_reason)

    def _new(self, text: str) -> str:
        """Decoded text without the end of the prompt that the decoder had held back."""
        new = text[self._of_prompt :]
        self._of_prompt -= len(text) - len(new)
        return new

    def _with_text(self, token: int, logprobs: TokenLogprobs) -> dict[str, Any]:
        text = self._tokenizer.token_text
        top = [{"token_id": other, "text": text(other), "logprob": value} for other, value in logprobs.top]
        return {"token_id": token, "text": text(token), "logprob": logprobs.logprob, "top": top}


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, *, chat: bool, parse_special: bool) -> list[int]:
    """The ids that a model is given for a prompt.

    Args:
        tokenizer: the model's.
        prompt: its messages are a conversation in any case.
        chat: the text is a conversation's first turn.
        parse_special: see `Tokenizer.encode`.
    """
    given = {"parse_special": True} if parse_special else {}
    if chat or prompt.messages is not None:
        turns = [{"role": "user", "content": prompt.text}] if prompt.messages is None else prompt.messages
        return tokenizer.encode_chat(turns, **given)
    return tokenizer.encode(prompt.text, **given)


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
    decoder = StreamDecoder(tokenizer)
    returned = sum(len(decoder.push(token)) for token in ids)
    return decoder, len(tokenizer.decode(ids)) - returned
