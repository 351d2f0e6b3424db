"""Beam search: the most probable continuations that a search of limited width finds. Knows no text and draws nothing.

Every step continues the best unfinished sequences, the beams, with the tokens that make them most probable; rows of the
keys and values follow the beams. Which sequences end and when the search does is as in transformers' `generate` with
`num_beams` (version 5.24, `GenerationMixin._beam_search`), whose scores are the same, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from neurogen.contract.parameters import is_whole
from neurogen.contract.sampler import NO_TOKEN
from neurogen.decoding.beam_settings import BeamSettings
from neurogen.decoding.order import largest
from neurogen.decoding.processing import Processing, blamed, names_of
from neurogen.decoding.request import Request, Step, check_request, sampler_values
from neurogen.errors import InvalidLogitsError, NeurogenError, ParameterError
from neurogen.models.kvcache import KVCache, check_cache

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler
    from neurogen.models.language_model import LanguageModel

__all__ = ["BeamEngine", "BeamSearch", "Hypothesis"]

NAME = "beam search"


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished sequence.

    Attributes:
        token_ids: the new tokens; the one that ended the sequence is among them.
        score: their summed log-probability over their number to the power `length_penalty`.
        finish_reason: "eos" when the last token is a stop id, else "length".
        notices: what the user must know about what the processors did to it.
    """

    token_ids: tuple[int, ...]
    score: float
    finish_reason: Literal["eos", "length"]
    notices: tuple[str, ...] = ()


class BeamSearch:
    """Searches the continuations of a prompt with the highest scores.

    Log-probabilities are those of the distribution that is left by the processors, in float32: processors work on the
    logits, as everywhere in neurogen, and the result is normalised (in transformers: `renormalize_logits=True`). The
    result depends on nothing but the arguments; of equal candidates the one of the better beam comes first, then the
    lower id.

    Args:
        model: gives the logits.
        beams, length_penalty, early_stopping: see `BeamSettings`.

    Attributes:
        vocab_size: ids from here on have no text and are never chosen.

    Raises:
        ParameterError: a value outside its domain.
        ModelError: the model's memory is not keys and values.

    Example:
        search = BeamSearch(model, beams=4)
        for hypothesis in search.search(model.tokenizer.encode("Once"), 40, model.eos_ids, n=2):
            print(hypothesis.score, model.tokenizer.decode(hypothesis.token_ids))
    """

    def __init__(
        self, model: LanguageModel, beams: int = 4, length_penalty: float = 1.0, early_stopping: bool = False
    ) -> None:
        self.settings = BeamSettings(beams, length_penalty, early_stopping)
        check_cache(model)
        self.model = model
        self.vocab_size = min(model.vocab_size, model.tokenizer.vocab_size)

    def search(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        stop_ids: Iterable[int],
        n: int = 1,
        processors: Sequence[Processor] = (),
    ) -> list[Hypothesis]:
        """Continue a prompt.

        Args:
            prompt_ids: at least one token.
            max_new_tokens: the most that are chosen; sequences of this length are finished.
            stop_ids: tokens that end a sequence.
            n: how many sequences are wanted, at most `beams`.
            processors: change the logits of each beam; as `contract.processor.prepared` gives them for this model.

        Returns:
            the best sequences, the best first. Fewer than `n` where the processors leave no more.

        Raises:
            ParameterError: see `request.check_request`; `n` outside its domain; or no sequence is left, and a
                processor has said why.
            InvalidLogitsError: the model gave no valid distribution, or the processors left no token at all.
        """
        if not is_whole(n, range(1, self.settings.beams + 1)):
            raise ParameterError(
                f"n must be an integer from 1 to {self.settings.beams}, the number of beams, got {n!r}.", "n"
            )
        request = Request(
            tuple(prompt_ids), max_new_tokens, seed=0, stop_ids=frozenset(stop_ids), processors=processors
        )
        check_request(request, self.model)
        return _Search(self, request).run()[:n]


@dataclass(slots=True)
class _Beam:
    """An unfinished sequence: its new tokens and its processors at work."""

    token_ids: tuple[int, ...]
    processing: Processing | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A beam with one more token, and the summed log-probability."""

    beam: int
    token_id: int
    logprob: float


class _Search:
    """The search for one prompt."""

    def __init__(self, of: BeamSearch, request: Request) -> None:
        self._settings = of.settings
        self._model = of.model
        self._vocab_size = of.vocab_size
        self._request = request
        self._kept = max(2, 1 + len(request.stop_ids)) * of.settings.beams  # that enough of them go on
        self._beams = [_Beam((), Processing(request) if request.processors else None)]
        self._finished: list[Hypothesis] = []
        self._refused: ParameterError | None = None
        self._culprits: Sequence[Processor] = request.processors

    @torch.inference_mode()
    def run(self) -> list[Hypothesis]:
        """The finished sequences, best first.

        1. Rank: the best candidates among all continuations of all beams.
        2. Finish: those of the first `beams` that end are finished, and the best `beams` of all finished are kept.
        3. End: when nothing can go on, or what goes on is not expected to be better.
        4. Read: the best `beams` candidates that do not end become the beams.
        """
        cache = KVCache(self._model)
        logits = cache.prefill([self._request.prompt_ids])
        sums = torch.zeros(1, dtype=torch.float32, device=self._model.device)
        while True:
            candidates = self._ranked(sums[:, None] + self._logprobs(logits))
            self._finish(candidates)
            going_on = [one for one in candidates if self._reason(one) is None][: self._settings.beams]
            if self._is_over(going_on):
                return self._result()
            self._beams = self._followed(going_on)
            cache.select([one.beam for one in going_on])
            sums = torch.tensor([one.logprob for one in going_on], dtype=torch.float32, device=self._model.device)
            logits = cache.forward(torch.tensor([[one.token_id] for one in going_on], device=self._model.device))

    @property
    def _length(self) -> int:
        """New tokens of the candidates."""
        return len(self._beams[0].token_ids) + 1

    def _reason(self, candidate: _Candidate) -> Literal["eos", "length"] | None:
        if candidate.token_id in self._request.stop_ids:
            return "eos"
        return "length" if self._length == self._request.max_new_tokens else None

    def _logprobs(self, logits: Tensor) -> Tensor:
        """float32 [beams, vocab]; a beam for which the processors leave no token is -inf throughout."""
        logits = logits[:, : self._vocab_size].to(torch.float32, copy=True)
        self._check(logits, allow_nothing=False)
        if self._request.processors:
            for row, beam in zip(logits, self._beams, strict=True):
                self._process(row, beam)
            self._check(logits, allow_nothing=True)
        return logits.log_softmax(dim=-1).nan_to_num_(nan=float("-inf"), neginf=float("-inf"))

    def _process(self, row: Tensor, beam: _Beam) -> None:
        assert beam.processing is not None
        model = row.clone()
        try:
            beam.processing.process(row)
            if row.max() == float("-inf"):
                self._culprits = beam.processing.settle(row, model) or self._culprits
        except ParameterError as error:  # this beam cannot go on, the others can
            row.fill_(float("-inf"))
            self._refused = error

    def _check(self, logits: Tensor, *, allow_nothing: bool) -> None:
        highest = logits.amax(dim=-1)  # NaN where any value is
        valid = highest.isfinite() | (highest == float("-inf")) if allow_nothing else highest.isfinite()
        if not bool(valid.all()):
            raise self._invalid(by_model=not allow_nothing)

    def _ranked(self, sums: Tensor) -> list[_Candidate]:
        """The best candidates, best first; of equal ones the better beam's, then the lower id.

        Args:
            sums: float32 [beams, vocab], log-probability of each beam with each token.
        """
        values, places = largest(sums.flatten(), self._kept)
        found = zip(places.tolist(), values.tolist(), strict=True)
        vocab = sums.shape[1]
        return [_Candidate(place // vocab, place % vocab, value) for place, value in found if value > float("-inf")]

    def _finish(self, candidates: Sequence[_Candidate]) -> None:
        for one in candidates[: self._settings.beams]:
            reason = self._reason(one)
            if reason is not None:
                beam = self._beams[one.beam]
                tokens = (*beam.token_ids, one.token_id)
                score = self._settings.score(one.logprob, len(tokens))
                notices = beam.processing.notices if beam.processing is not None else ()
                self._finished.append(Hypothesis(tokens, score, reason, tuple(notices)))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self._finished[self._settings.beams :]

    def _is_over(self, going_on: Sequence[_Candidate]) -> bool:
        if not going_on:
            return True
        if len(self._finished) < self._settings.beams:
            return False
        hoped_for = self._settings.score(going_on[0].logprob, self._length)
        return self._settings.early_stopping or hoped_for <= self._finished[-1].score

    def _followed(self, going_on: Sequence[_Candidate]) -> list[_Beam]:
        """The beams that the candidates become.

        The first that follows a beam takes over its processors' memory; for others it is made again from the tokens,
        since a processor need not know how to copy its own.
        """
        taken: set[int] = set()
        followed = []
        for one in going_on:
            before = self._beams[one.beam]
            processing = before.processing
            if processing is not None and one.beam in taken:
                processing = self._replayed(before.token_ids, processing.notices)
            taken.add(one.beam)
            followed.append(_Beam((*before.token_ids, one.token_id), processing))
        for beam in followed:  # once all copies are made
            if beam.processing is not None:
                beam.processing.accept(beam.token_ids[-1])
        return followed

    def _replayed(self, token_ids: Sequence[int], notices: Iterable[str]) -> Processing:
        processing = Processing(self._request)
        processing.notices.extend(notices)
        for token in token_ids:
            processing.accept(token)
        return processing

    def _result(self) -> list[Hypothesis]:
        if not self._finished:
            raise self._refused or self._invalid(by_model=False)
        return self._finished

    def _invalid(self, *, by_model: bool) -> InvalidLogitsError:
        error = InvalidLogitsError([0], NAME)
        produced = self._length - 1
        error.args = (
            f"The model's logits have no valid distribution after {produced} new token(s) of a beam search: they hold "
            "NaN or +inf, or nothing above -inf. Often the number format overflows: try dtype float32 or bfloat16."
            if by_model
            else f"No beam can go on after {produced} new token(s): {blamed(self._culprits)}",
        )
        return error


class BeamEngine:
    """Decodes requests by beam search, with the methods of `Engine`: sample i of a prompt is the i-th
    best sequence. Requests for the same prompt that follow each other are answered by one search.

    Args:
        search: what is done for each prompt.
        sampler: what the parameters of requests are checked against; it chooses nothing.

    Attributes:
        vocab_size: ids from here on have no text and are never chosen.
        context_length: the most tokens of a prompt and what follows it.
    """

    def __init__(self, search: BeamSearch, sampler: Sampler) -> None:
        self.vocab_size = search.vocab_size
        self.context_length = search.model.context_length
        self._search = search
        self._sampler = sampler
        self._cancelled: Any = None

    def check(self, request: Request) -> dict[str, Any]:
        """Make sure that a request can be decoded, and give the value of every parameter of the sampler.

        Raises:
            ParameterError: see `request.check_request`; or the request asks for log-probabilities, or for a
                sequence beyond the number of beams.
        """
        check_request(request, self._search.model)
        if request.logprobs is not None:
            raise ParameterError("A beam search gives scores of sequences: leave out logprobs.", "logprobs")
        beams = self._search.settings.beams
        if request.sample >= beams:
            raise ParameterError(
                f"Sample {request.sample + 1} of a prompt was asked for, but there are {beams} beams. Ask for at most "
                "as many samples as beams.",
                "n",
            )
        return sampler_values(self._sampler, request)

    def generate(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Decode requests, yielding the tokens of each once its search has ended; the steps carry the score.

        If a search fails, each of its samples fails with the same error.
        """
        last: Request | None = None
        found: list[Hypothesis] = []
        failed: NeurogenError | None = None
        started = 0.0
        for request in requests:
            self.check(request)
            if last is None or not _is_same(last, request):
                last, started = request, time.perf_counter()
                found, failed = self._found(request)
            seconds = time.perf_counter() - started
            if request.sample < len(found):
                yield from self._steps(request, found[request.sample], seconds)
            else:
                error = failed or _too_few(len(found), request)
                yield Step(request, NO_TOKEN, None, "error", seconds, error)

    def cancel(self, key: Any) -> bool:
        """End the sequence whose request has this key, if its tokens are being given."""
        self._cancelled = key
        return True

    def _found(self, request: Request) -> tuple[list[Hypothesis], NeurogenError | None]:
        beams = self._search.settings.beams
        try:
            return self._search.search(
                request.prompt_ids, request.max_new_tokens, request.stop_ids, beams, request.processors
            ), None
        except (ParameterError, InvalidLogitsError) as error:
            return [], error

    def _steps(self, request: Request, hypothesis: Hypothesis, seconds: float) -> Iterator[Step]:
        self._cancelled = None
        request.notices[:] = hypothesis.notices
        last = len(hypothesis.token_ids) - 1
        for place, token in enumerate(hypothesis.token_ids):
            reason = hypothesis.finish_reason if place == last else None
            yield Step(request, token, None, reason, seconds, score=hypothesis.score)
            if self._cancelled is not None and self._cancelled == request.key:
                return


def _is_same(one: Request, other: Request) -> bool:
    """Whether a search answers both."""
    return (one.prompt_ids, one.max_new_tokens, one.stop_ids, list(one.processors)) == (
        other.prompt_ids,
        other.max_new_tokens,
        other.stop_ids,
        list(other.processors),
    )


def _too_few(found: int, request: Request) -> ParameterError:
    return ParameterError(
        f"The beam search found only {found} sequence(s) for this prompt, and sample {request.sample + 1} was asked "
        f"for: the processors {names_of(request.processors)} leave no more. Ask for fewer with n, or loosen them.",
        "n",
    )
