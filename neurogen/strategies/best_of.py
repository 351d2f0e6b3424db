"""Best-of: several candidates are drawn, and the one that the model itself finds most probable is the result.

It stands around a runner, since only that knows where a text ends. Candidate c of sample i of prompt j draws with the
seed `seed + (j * n + i) * candidates + c`; of equal scores the lower seed wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from neurogen.errors import ParameterError
from neurogen.generation import Event, Failure, Prompt, Result, RunOptions, TextDelta
from neurogen.parameters import INT64, is_whole
from neurogen.runner import Runner

if TYPE_CHECKING:
    from neurogen.request import DecodableModel, DecodingEngine
    from neurogen.sampler import Sampler

__all__ = ["BestOf", "mean_logprob"]


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
        self._shows_logprobs = options.logprobs is not None
        inner = replace(options, n=options.n * candidates, logprobs=options.logprobs or 0)
        self._runner = Runner(model, sampler, inner, engine=engine)

    def run(self, prompts: Iterable[Prompt], *, skip: Callable[[int, int], bool] | None = None) -> Iterator[Event]:
        """Continue prompts, yielding the best candidate of each sample when all of them have ended.

        Args:
            prompts, skip: as for `Runner.run`.
        """
        found: dict[tuple[int, int], list[Result]] = defaultdict(list)
        many = self._candidates
        for event in self._runner.run(prompts, skip=skip and (lambda index, one: skip(index, one // many))):
            if isinstance(event, Failure):
                yield event
            elif isinstance(event, Result):
                key = event.index, event.sample // many
                found[key].append(event)
                if len(found[key]) == many:
                    yield from self._best(found.pop(key), key[1])

    def _best(self, results: list[Result], sample: int) -> Iterator[Event]:
        scored = [(mean_logprob(result), -result.sample, result) for result in results]
        score, _, best = max(scored, key=lambda one: one[:2])
        shown = replace(best, sample=sample, score=score, logprobs=best.logprobs if self._shows_logprobs else None)
        if shown.text:
            yield TextDelta(shown.index, sample, shown.text)
        yield shown


def mean_logprob(result: Result) -> float:
    """The mean log-probability of a result's tokens under the model, in nats; -inf for a text without any."""
    if not result.logprobs:
        return float("-inf")
    return float(sum(entry["logprob"] for entry in result.logprobs) / len(result.logprobs))
