"""The contract between the engine and a logits processor, which changes logits before the sampler sees them.

A processor works on one sequence at a time, from the ids of its prompt and its own new ones: penalties, bans, grammars.
Importing this module does not import torch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from neurogen.contract.parameters import SamplerParams, build_params
from neurogen.contract.spec import Link, spelled
from neurogen.errors import NeurogenError, ParameterError, PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.decoding.request import Request
    from neurogen.models.tokenizer import Tokenizer

__all__ = ["History", "Processor", "prepared"]

CONTAINERS = (dict, list, set, bytearray, deque)
"""What a processor may collect something in while it is prepared."""

NOTHING = float("-inf")


@dataclass(slots=True)
class History:
    """One sequence as far as it is.

    Attributes:
        ids: the prompt's tokens and the new ones; grows by one a step. Not to be changed by processors.
        prompt_tokens: how many of them are the prompt's.
        stop_ids: tokens that end the sequence.
        max_new_tokens: how many tokens it may get.
    """

    ids: list[int]
    prompt_tokens: int
    stop_ids: frozenset[int]
    max_new_tokens: int

    @property
    def new_tokens(self) -> int:
        """How many tokens have been chosen."""
        return len(self.ids) - self.prompt_tokens


class Processor:
    """Changes the logits of one sequence. Subclass it, declare, and implement `process`.

    One that needs memory beside the history makes it in `start`; the memory belongs to one request and goes where its
    sequence goes, so one processor object serves many requests at once.

    Declarations (class attributes):
        name: what users call it; equal to the entry-point name in the group `neurogen.processors`.
        api_version: the `neurogen.API_VERSION` it was written for.
        Params: its parameters, a `SamplerParams`.
        gives_way_to: names of processors, or "all": where it and they together leave no token, it is left out for that
            token, and the result has a notice.

    Attributes:
        remarks: what the user must know of the processor itself, in sentences, such as that a part of a parameter is
            ignored; part of every result's notices.

    Args:
        **params: values for `Params`; what is not given takes its default.

    Raises:
        ParameterError: unknown name or value outside its domain.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    Params: ClassVar[type[SamplerParams]] = SamplerParams
    gives_way_to: ClassVar[tuple[str, ...] | Literal["all"]] = ()
    remarks: Sequence[str] = ()

    def __init__(self, /, **params: Any) -> None:
        self.params: Any = build_params(self.name, self.Params, params)
        self.origin = f"class {type(self).__module__}.{type(self).__qualname__}"

    @property
    def least_new_tokens(self) -> int:
        """How many new tokens a sequence is to have at least; a run that allows fewer is refused. By default 0."""
        return 0

    def __repr__(self) -> str:
        return spelled([Link(self.name, self.params.model_dump())])  # what load_processors reads again

    def prepare(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Called before the first request, for what depends on the vocabulary; by default nothing.

        Set attributes freely: every runner calls this on a copy of its own, see `prepared`.

        Args:
            tokenizer: of the model; ids and text.
            vocab_size: width of the logits that `process` is given.

        Raises:
            ParameterError: a parameter does not fit this vocabulary.
        """

    def start(self, history: History) -> Any:
        """Fresh memory for one request, whose history holds the prompt; by default None."""
        return None

    def process(self, logits: Tensor, history: History, memory: Any) -> None:
        """Change the logits of the next token in place.

        Args:
            logits: float32 [vocab], this sequence's; what earlier processors have left of the model's. -inf bans a
                token.
            history: the sequence.
            memory: what `start` made.

        Raises:
            ParameterError: this sequence cannot go on; it ends with the error, and the others go on.
        """
        raise PluginError(f"Processor {self.name!r} ({self.origin}) does not implement process().")

    def accept(self, token_id: int, history: History, memory: Any) -> None:
        """Called when a token was chosen, which is the last of `history` by then; by default nothing."""

    def is_over(self, history: History, memory: Any) -> bool:
        """Whether the text is complete and nothing may follow, so that its sequence must end; by default no."""
        return False

    def notice(self, token_ids: Sequence[int], finish_reason: str) -> str | None:
        """What the user must know about a finished sequence, in a sentence; by default None.

        Args:
            token_ids: the new tokens, without end-of-sequence.
            finish_reason: "eos", "stop" (a stop string) or "length".
        """
        return None


Step = tuple[Processor, Any]
"""A processor and its memory of the request."""


def prepared(processors: Sequence[Processor], tokenizer: Tokenizer, vocab_size: int) -> list[Processor]:
    """Copies of processors that are prepared for one vocabulary; those given stay as they are.

    So one list of processors can be given to runners of different models, one after the other or at the same time.

    Args:
        processors: as they were made, or prepared for whatever vocabulary.
        tokenizer, vocab_size: as for `Processor.prepare`.

    Raises:
        ParameterError: a parameter does not fit this vocabulary.
    """
    own = [_copied(processor) for processor in processors]
    for processor in own:
        processor.prepare(tokenizer, vocab_size)
    return own


def _copied(processor: Processor) -> Processor:
    """A copy with containers of its own, for `prepare` may fill one that was made before."""
    own = copy.copy(processor)
    for name, value in vars(processor).items():
        if isinstance(value, CONTAINERS):
            setattr(own, name, copy.copy(value))
    return own


class Processing:
    """The processors of one request at work.

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
        self._steps: list[Step] = []
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
        """Look for a token where `process` has left none: a processor that gives way to another is left out.

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
