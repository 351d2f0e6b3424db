"""Best-of: several candidates are drawn, and the one that the model itself finds most probable is the result.

It wraps a runner, since only a runner knows where a text ends. A sample fails if all of its candidates fail; how
many of them failed is told in a notice of its result. Candidate c of sample i of prompt j draws with the
seed `seed + (j * n + i) * candidates + c`; of equal scores the lower seed wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from neurogen.contract.parameters import INT64, is_whole
from neurogen.decoding.scores import sequence_score
from neurogen.errors import ParameterError
from neurogen.text.generation import Event, Failure, Prompt, Result, RunOptions, TextDelta
from neurogen.text.runner import Runner

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.decoding.request import DecodableModel, DecodingEngine

__all__ = ["BestOf", "mean_logprob", "score_of"]

Key = tuple[int, int]
"""(index of the prompt, number of the sample)."""


class BestOf:
    """Runs prompts like a `Runner`, with the best of several candidates as each result.

    Args:
        model, sampler, options, engine: as for `Runner`.
        candidates: how many are drawn for each sample.

    Raises:
        ParameterError: fewer than one candidate; an option outside its domain.
    """

    def __init__(
        self,
        model: DecodableModel,
        sampler: Sampler,
        options: RunOptions,
        *,
        candidates: int,
        engine: DecodingEngine | None = None,
    ) -> None:
        if not is_whole(candidates, range(1, INT64.stop)):
            raise ParameterError(f"candidates must be an integer >= 1, got {candidates!r}.", "candidates")
        self._candidates = candidates
        self._samples = options.n
        self._shows_logprobs = options.logprobs is not None
        inner = replace(options, n=options.n * candidates, logprobs=options.logprobs or 0)
        self._runner = Runner(model, sampler, inner, engine=engine)

    def run(self, prompts: Iterable[Prompt], *, skip: Callable[[int, int], bool] | None = None) -> Iterator[Event]:
        """Continue prompts, yielding the best candidate of each sample when all of them have ended.

        Args:
            prompts, skip: as for `Runner.run`.
        """
        ended: dict[Key, list[Result | Failure]] = defaultdict(list)
        many = self._candidates
        alone = isinstance(prompts, Sequence) and len(prompts) == 1
        for event in self._runner.run(prompts, skip=skip and (lambda index, one: skip(index, one // many))):
            if isinstance(event, TextDelta):
                continue
            if event.sample is None:
                yield Failure(event.index, event.error)
                continue
            key = event.index, event.sample // many
            ended[key].append(event)
            if len(ended[key]) == many:
                yield from self._best(key, ended.pop(key), alone=alone)

    def _best(self, key: Key, ended: list[Result | Failure], *, alone: bool) -> Iterator[Event]:
        """The best of the candidates that could be finished; a failure where none could."""
        failed = [one for one in ended if isinstance(one, Failure)]
        scored = [(mean_logprob(one), -one.sample, one) for one in ended if isinstance(one, Result)]
        if not scored:
            if alone and self._samples == 1:
                raise failed[0].error
            yield Failure(key[0], failed[0].error, key[1])
            return
        score, _, best = max(scored, key=lambda one: one[:2])
        shown = best if self._shows_logprobs else replace(best, logprobs=None, end_logprob=None)
        notices = [*(best.notices or []), *_told(failed, len(ended))]
        if shown.text:
            yield TextDelta(*key, shown.text)
        yield replace(shown, sample=key[1], score=score, notices=notices or None)


def _told(failed: Sequence[Failure], drawn: int) -> list[str]:
    if not failed:
        return []
    return [f"{len(failed)} of {drawn} candidates could not be finished and were left out: {failed[0].error.reason}"]


def score_of(result: Result, length_penalty: float = 1.0) -> float:
    """The score of a result under the model, before processors, temperature and truncation.

    Raises:
        ParameterError: it has no log-probabilities.
    """
    if result.logprobs is None:
        raise ParameterError("A result is scored by its log-probabilities: run with logprobs=0 or more.", "logprobs")
    chosen = [entry["logprob"] for entry in result.logprobs]
    if result.end_logprob is not None:
        chosen.append(result.end_logprob)
    return sequence_score(sum(chosen), len(chosen), length_penalty)


def mean_logprob(result: Result) -> float:
    """The mean log-probability of a result's tokens under the model, in nats; see `neurogen.decoding.scores`."""
    return score_of(result)
