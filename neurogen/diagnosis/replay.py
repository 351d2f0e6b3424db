"""Runs a recording again and compares every token; says where the first difference is, and why.

If the model gave the same logits, the sampler or a processor is the cause; else the model's arithmetic is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

from torch import Tensor

from neurogen.decoding.engine import engine_for
from neurogen.decoding.request import DecodableModel, RequestState, SampledToken
from neurogen.diagnosis.recording import Key, Recording, describe, environment, key_of
from neurogen.errors import DataError
from neurogen.registry.registry import Registry, default_registry
from neurogen.text.generation import Failure, Result
from neurogen.text.runner import Runner

__all__ = ["Difference", "ReplayReport", "replay"]


@dataclass(frozen=True)
class Difference:
    """The first step at which a sequence differs from what was recorded.

    Attributes:
        index, sample: which sequence.
        step: of its new tokens, from 0.
        recorded, found: token ids; None where a sequence has ended.
        same_logits: the model gave the same logits, bit for bit.
        distance: the largest distance of the recorded largest logits from those found, where they differ.
    """

    index: int
    sample: int
    step: int
    recorded: int | None
    found: int | None
    same_logits: bool
    distance: float


@dataclass
class ReplayReport:
    """How a replay went.

    Attributes:
        sequences, steps: how many were compared.
        results: of the replay.
        differences: the first of each sequence that differs in a token, the earliest step first.
        drifted: steps before any difference whose logits were not the same bit for bit, though the token was.
        largest_drift: the largest distance found in those.
        environment: name -> (recorded, now), of everything that has changed.
    """

    sequences: int = 0
    steps: int = 0
    results: list[Result] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    drifted: int = 0
    largest_drift: float = 0.0
    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every token is the recorded one."""
        return not self.differences

    def reason(self) -> str:
        """Says whether the tokens are the same and, if not, where they first differ and why."""
        if self.same:
            return self._sameness()
        first = self.differences[0]
        place = f"prompt {first.index + 1}, sample {first.sample + 1}, new token {first.step + 1}"
        what = f"{_shown(first.recorded)} was recorded and {_shown(first.found)} came"
        return f"The tokens differ first at {place}: {what}. {self._cause(first)}"

    def _sameness(self) -> str:
        text = f"All {self.steps:,} tokens of {self.sequences:,} sequence(s) are those recorded"
        if not self.drifted:
            return f"{text}, and so are the model's logits, bit for bit."
        drift = f"in {self.drifted:,} steps the model's logits were other ones, by at most {self.largest_drift:.3g}"
        return f"{text}; {drift}."

    def _cause(self, first: Difference) -> str:
        changed = ", ".join(f"{name} ({was} then, {now} now)" for name, (was, now) in self.environment.items())
        if first.same_logits:
            cause = "The model gave the same logits, bit for bit, so the sampler or a processor chose differently"
        else:
            cause = f"The model gave other logits there, by about {first.distance:.3g}, before the sampler saw them"
        return (
            f"{cause}. What is not as it was: {changed}." if changed else f"{cause}; nothing known has changed since."
        )


def replay(
    recording: Recording,
    load: Callable[[str], DecodableModel],
    *,
    registry: Registry | None = None,
) -> ReplayReport:
    """Run what was recorded again, and compare every token.

    Args:
        recording: as `read_recording` gives it.
        load: gives the model of a name.
        registry: where sampler and processors are.

    Raises:
        NeurogenError: model, sampler or a processor cannot be loaded, or takes other parameters now.
        DataError: the head lacks something.
    """
    registry = registry or default_registry()
    try:
        head = recording.head
        options, prompts = recording.options(registry), recording.prompts
        sampler = registry.load_sampler(head["sampler"], **head["params"])
        skip = {(index, sample) for index, sample in head["skip"]}
        then, name = head["environment"], head["model"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{recording.path} lacks what a replay needs: {error}. It is damaged.") from None
    model = load(name)
    observer = _Observer(recording.steps)
    engine = engine_for(model, sampler, batch_size=options.batch_size, observer=observer)
    results = []
    for event in Runner(model, sampler, options, engine=engine).run(iter(prompts), skip=lambda *key: key in skip):
        if isinstance(event, Failure) and observer.lacks(event):
            raise event.error  # one that failed when it was recorded fails again at the same step
        if isinstance(event, Result):
            results.append(event)
    now = environment(model, sampler)
    changed = {key: (then.get(key), now[key]) for key in now if then.get(key) != now[key]}
    report = ReplayReport(sequences=len(recording.steps), results=results, environment=changed)
    _compare(recording, observer.steps, report)
    return report


class _Step(NamedTuple):
    """A step of a replay: its token, and whether and how far its logits differ from those recorded."""

    token: int | None = None
    same_logits: bool = False
    distance: float = math.nan


class _Observer:
    """Observes the steps of a replay, by sequence."""

    def __init__(self, recorded: Mapping[Key, list[Mapping[str, Any]]]) -> None:
        self.steps: dict[Key, list[_Step]] = defaultdict(list)
        self._recorded = recorded

    def __call__(
        self, rows: Sequence[RequestState], logits: Tensor, processed: Tensor, drawn: Sequence[SampledToken]
    ) -> None:
        for row, values, one in zip(rows, logits, drawn, strict=True):
            if row.finished or one.error is not None:
                continue
            steps, recorded = self.steps[key_of(row)], self._recorded.get(key_of(row), [])
            if len(steps) >= len(recorded):
                steps.append(_Step(one.token_id))
                continue
            line = recorded[len(steps)]
            same = describe(values)["logits"] == line["logits"]
            steps.append(_Step(one.token_id, same, 0.0 if same else _distance(line["top"], values)))

    def lacks(self, failure: Failure) -> bool:
        """Whether a sequence that failed had more tokens when it was recorded."""
        failed = [(i, n) for i, n in self._recorded if i == failure.index and failure.sample in (None, n)]
        return any(len(self.steps[key]) < len(self._recorded[key]) for key in failed)


def _compare(recording: Recording, replayed: Mapping[Key, list[_Step]], report: ReplayReport) -> None:
    """Compare every sequence up to its first difference; a recording that was cut off tells nothing of later steps."""
    for key in dict.fromkeys((*recording.steps, *replayed)):
        recorded = [line["token"] for line in recording.steps.get(key, [])]
        steps = replayed.get(key, [])
        if not recording.complete:
            steps = steps[: len(recorded)]
        for number, (token, step) in enumerate(zip_longest(recorded, steps)):
            found = step or _Step()
            report.steps += token is not None and step is not None
            if found.token != token:
                report.differences.append(Difference(*key, number, token, *found))
                break
            if not found.same_logits:
                report.drifted += 1
                report.largest_drift = max(report.largest_drift, found.distance)
    report.differences.sort(key=lambda one: (one.step, one.index, one.sample))


def _distance(top: Sequence[tuple[int, float | None]], logits: Tensor) -> float:
    """The largest distance of recorded logits; logits that were not finite, recorded as null, are left out."""
    values = logits.float()
    within = [(token, value) for token, value in top if value is not None and 0 <= token < len(values)]
    return max((abs(float(values[token]) - value) for token, value in within), default=math.nan)


def _shown(token: int | None) -> str:
    return "the end" if token is None else f"token {token}"
