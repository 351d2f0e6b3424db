"""Runs the processors of one request on each step's logits, and resolves it when together they leave no token.

Knows no model and no other request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from neurogen.contract.processor import History, Processor
from neurogen.errors import NeurogenError, ParameterError, PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.decoding.request import Request

__all__ = ["Processing", "blamed", "names_of", "notices_of"]

NOTHING = float("-inf")

WithMemory = tuple[Processor, Any]
"""A processor and its memory of the request."""


class Processing:
    """Runs the processors of one request.

    A ParameterError of theirs, whenever it comes, is raised by `process`: it ends this sequence and no other.

    Args:
        request: whose processors they are.

    Attributes:
        notices: what the user must know of the processors' work together, in sentences.
    """

    def __init__(self, request: Request) -> None:
        ids = list(request.prompt_ids)
        self.notices: list[str] = []
        self._history = History(ids, len(ids), request.stop_ids, request.max_new_tokens)
        self._steps: list[WithMemory] = []
        self._refused: ParameterError | None = None
        try:
            self._steps = [(one, _guarded(one, "start", self._history)) for one in request.processors]
        except ParameterError as error:
            self._refused = error

    def process(self, logits: Tensor) -> None:
        """Change float32 logits [vocab] in place.

        Raises:
            ParameterError: this sequence cannot go on, or could not begin.
        """
        for _ in self.stages(logits):
            pass

    def stages(self, logits: Tensor) -> Iterator[Processor]:
        """Change float32 logits [vocab] in place, yielding each processor when it has done its part."""
        if self._refused is not None:
            raise self._refused
        for processor, memory in self._steps:
            _guarded(processor, "process", logits, self._history, memory)
            yield processor

    def accept(self, token_id: int) -> None:
        """Add a token that was chosen."""
        self._history.ids.append(token_id)
        try:
            for processor, memory in self._steps:
                _guarded(processor, "accept", token_id, self._history, memory)
        except ParameterError as error:
            self._refused = error

    def settle(self, logits: Tensor, model: Tensor) -> Sequence[Processor]:
        """Look for a token if `process` has left none: processors that may give way are left out.

        Where a text is complete and nothing may follow, the sequence ends, whatever bans its end.

        Args:
            logits: float32 [vocab], which have no finite maximum; changed in place where there is a token.
            model: float32 [vocab], the model's.

        Returns:
            the processors that leave no token, as few as explain it; none where there is a token now.
        """
        nothing = bool(logits.max() == NOTHING)
        if nothing and (self._ended(logits, model) or self._without_those_that_give_way(logits, model)):
            return ()
        return self._culprits(model)

    def _ended(self, logits: Tensor, model: Tensor) -> bool:
        """Whether the sequence is over: then only its end is left."""
        over = [one for one, memory in self._steps if _guarded(one, "is_over", self._history, memory)]
        ends = [token for token in self._history.stop_ids if token < len(model) and model[token] > NOTHING]
        if not over or not ends:
            return False
        logits[ends] = model[ends]
        others = [(one, left) for one, left in self._alone(model) if one not in over]
        against = [one for one, left in others if not (left[ends] > NOTHING).any()] or [one for one, _ in others]
        self._note(
            f"The text ends after {self._history.new_tokens} new token(s), where {names_of(over)} lets nothing follow, "
            f"although its end was banned: {names_of(against)}."
        )
        return True

    def _without_those_that_give_way(self, logits: Tensor, model: Tensor) -> bool:
        """Whether there is a token once one of those that give way is left out, or else all of them."""
        yielding = [step for step in self._steps if self._gives_way(step[0])]
        for left_out in [*([one] for one in yielding), *([yielding] if len(yielding) > 1 else [])]:
            attempt = model.clone()
            for processor, memory in self._steps:
                if processor not in [one for one, _ in left_out]:
                    _guarded(processor, "process", attempt, self._history, memory)
            if attempt.max() > NOTHING:
                logits.copy_(attempt)
                names = names_of([one for one, _ in left_out])
                self._note(f"{names} could not be kept everywhere: the other processors left no other token.")
                return True
        return False

    def _gives_way(self, processor: Processor) -> bool:
        to = processor.gives_way_to
        return any(other is not processor and (to == "all" or other.name in to) for other, _ in self._steps)

    def _culprits(self, model: Tensor) -> Sequence[Processor]:
        """One that leaves nothing by itself, else two that leave nothing together, else all."""
        alone = self._alone(model)
        for processor, left in alone:
            if not left.max().isfinite():
                return [processor]
        for (first, left), (second, other) in combinations(alone, 2):
            if not ((left > NOTHING) & (other > NOTHING)).any():
                return [first, second]
        return [processor for processor, _ in self._steps]

    def _alone(self, model: Tensor) -> list[tuple[Processor, Tensor]]:
        """What each processor leaves of the model's logits by itself."""
        made = []
        for processor, memory in self._steps:
            left = model.clone()
            _guarded(processor, "process", left, self._history, memory)
            made.append((processor, left))
        return made

    def _note(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)


def _guarded(processor: Processor, call: str, *arguments: Any) -> Any:
    try:
        return getattr(processor, call)(*arguments)
    except NeurogenError:
        raise
    except Exception as error:
        raise PluginError(
            f"Processor {processor.name!r} ({processor.origin}) failed in {call}: {type(error).__name__}: {error}. "
            "This is an error of the processor: update it or report it to its author, or leave it out."
        ) from error


def notices_of(processors: Sequence[Processor], token_ids: Sequence[int], finish_reason: str) -> list[str]:
    """What they say about themselves and about a finished sequence; see `Processor.remarks` and `Processor.notice`."""
    said = (_guarded(processor, "notice", token_ids, finish_reason) for processor in processors)
    remarks = [remark for processor in processors for remark in processor.remarks]
    return remarks + [notice for notice in said if notice]


def names_of(processors: Sequence[Processor]) -> str:
    """Their names, for messages."""
    return ", ".join(processor.name for processor in processors)


def blamed(culprits: Sequence[Processor]) -> str:
    """Which processors leave no token, and what to do, as an error says it."""
    names = names_of(culprits)
    return f"the processors {names} together leave no token, or give NaN or +inf. Loosen one of them."
