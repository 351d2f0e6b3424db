"""The contract between the engine and a logits processor, which changes logits before the sampler sees them.

A processor works on one sequence at a time, from the ids of its prompt and its own new ones: penalties, bans, grammars.
Importing this module does not import torch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from neurogen.contract.parameters import SamplerParams, build_params
from neurogen.contract.spec import Link, spelled
from neurogen.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["History", "Processor", "prepared"]

CONTAINERS = (dict, list, set, bytearray, deque)
"""Containers that a processor may fill while it is prepared."""


@dataclass(slots=True)
class History:
    """The tokens of one sequence so far.

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
        """The least number of new tokens of a sequence; a run that allows fewer is refused. By default 0."""
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
        """Called after a token was chosen and appended to `history`; by default nothing."""

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
    """A copy with its own containers, so that `prepare` can fill them without changing the original."""
    own = copy.copy(processor)
    for name, value in vars(processor).items():
        if isinstance(value, CONTAINERS):
            setattr(own, name, copy.copy(value))
    return own
