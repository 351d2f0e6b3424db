"""Runs a recording again and compares every token; says where the first difference is, and why.

Whether the model gave the same logits tells what is to blame: the model's arithmetic, or sampler and processors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neurogen.decoding.engine import engine_for
from neurogen.decoding.request import Drawn, Row
from neurogen.diagnosis.recording import Key, Recording, describe, environment, key_of
from neurogen.errors import DataError
from neurogen.registry.registry import Registry, default_registry
from neurogen.text.generation import Failure, Result
from neurogen.text.runner import Runner

if TYPE_CHECKING:
    from neurogen.decoding.request import DecodableModel

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
        environment: name -> (recorded, now), of what is not as it was.
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
        """In words, whether the tokens are the same and if not, where and why they differ first."""
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
            cause = "The model gave the same logits, bit for bit, so the sampler or a processor chose otherwise"
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
    watch = _Comparison(recording)
    engine = engine_for(model, sampler, batch_size=options.batch_size, observer=watch)
    report = watch.report
    now = environment(model, sampler)
    report.environment = {key: (then.get(key), now[key]) for key in now if then.get(key) != now[key]}
    for event in Runner(model, sampler, options, engine=engine).run(iter(prompts), skip=lambda *key: key in skip):
        if isinstance(event, Failure) and watch.lacks(event):
            raise event.error  # one that failed when it was recorded fails again at the same step
        if isinstance(event, Result):
            report.results.append(event)
    watch.finish()
    return report


class _Comparison:
    """Is shown the steps of a replay and compares them with those recorded."""

    def __init__(self, recording: Recording) -> None:
        self.report = ReplayReport(sequences=len(recording.steps))
        self._steps = recording.steps
        self._complete = recording.complete
        self._done: dict[Key, int] = defaultdict(int)
        self._differing: set[Key] = set()

    def __call__(self, rows: Sequence[Row], logits: Tensor, processed: Tensor, drawn: Sequence[Drawn]) -> None:
        for row, values, one in zip(rows, logits, drawn, strict=True):
            key = key_of(row)
            if not row.finished and one.error is None and key not in self._differing:
                self._compare(key, values, one.token_id)

    def lacks(self, failure: Failure) -> bool:
        """Whether a sequence that failed had more tokens when it was recorded."""
        failed = [(i, n) for i, n in self._steps if i == failure.index and failure.sample in (None, n)]
        return any(self._done[key] < len(self._steps[key]) for key in failed)

    def finish(self) -> None:
        """Sequences that ended before those recorded differ too; the earliest difference comes first."""
        for key, steps in self._steps.items():
            if key not in self._differing and self._done[key] < len(steps):
                step = self._done[key]
                self._differ(Difference(*key, step, steps[step]["token"], None, False, float("nan")))
        self.report.differences.sort(key=lambda one: (one.step, one.index, one.sample))

    def _compare(self, key: Key, values: Tensor, token: int) -> None:
        step = self._done[key]
        self._done[key] += 1
        recorded = self._steps.get(key, [])
        if step >= len(recorded):
            if self._complete:
                self._differ(Difference(*key, step, None, token, False, float("nan")))
            return
        self.report.steps += 1
        line = recorded[step]
        same = describe(values)["logits"] == line["logits"]
        distance = 0.0 if same else _distance(line["top"], values)
        if token != line["token"]:
            self._differ(Difference(*key, step, line["token"], token, same, distance))
        elif not same:
            self.report.drifted += 1
            self.report.largest_drift = max(self.report.largest_drift, distance)

    def _differ(self, difference: Difference) -> None:
        self._differing.add((difference.index, difference.sample))
        self.report.differences.append(difference)


def _distance(top: Sequence[tuple[int, float | None]], logits: Tensor) -> float:
    """The largest distance of recorded logits; of those that were not finite, which are null, there is none."""
    values = logits.float()
    within = [(token, value) for token, value in top if value is not None and 0 <= token < len(values)]
    return max((abs(float(values[token]) - value) for token, value in within), default=float("nan"))


def _shown(token: int | None) -> str:
    return "the end" if token is None else f"token {token}"
