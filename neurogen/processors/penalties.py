"""Penalties on tokens that have occurred: of the whole sequence (CTRL), or of the new tokens alone (OpenAI)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen.contract.parameters import Param
from neurogen.contract.processor import History, Processor
from neurogen.processors.counts import TokenCounts
from neurogen.processors.numbers import LogitParams

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FrequencyPenalty", "PresencePenalty", "RepetitionPenalty"]


class RepetitionPenalty(Processor):
    """Divides positive logits of tokens that have occurred by the penalty and multiplies negative ones by it (Keskar et
    al., 2019, "CTRL: A Conditional Transformer Language Model for Controllable Generation").

    The paper divides all logits, which rewards those below 0; this is the form that transformers and llama.cpp give it.
    The window `last_n` is llama.cpp's. What it does depends on the sign of a logit, so it comes before whatever shifts
    logits.
    """

    name = "repetition-penalty"
    api_version = 1

    class Params(LogitParams):
        """Parameters."""

        penalty: float = Param(
            1.2, gt=0, description="Above 1 discourages repetition; 1 changes nothing.", option="--repetition-penalty"
        )
        last_n: int = Param(
            -1, ge=-1, description="Look at so many last tokens; -1 at all, 0 at none.", option="--repetition-last-n"
        )
        prompt: bool = Param(True, description="The prompt's tokens count, too.", option="--repetition-prompt")

    def start(self, history: History) -> TokenCounts:
        """Counts of the prompt's tokens, where they are asked for."""
        return TokenCounts(history.ids if self.params.prompt else (), self.params.last_n)

    def process(self, logits: Tensor, history: History, memory: TokenCounts) -> None:
        """O(different tokens in the window)."""
        import torch

        ids, _ = memory.tensors(len(logits), logits.device)
        values, penalty = logits[ids], self.params.penalty
        logits[ids] = torch.where(values < 0, values * penalty, values / penalty)

    def accept(self, token_id: int, history: History, memory: TokenCounts) -> None:
        """Count it."""
        memory.add(token_id)


class _OfNewTokens(Processor):
    """Memory of the two penalties of OpenAI's API."""

    def start(self, history: History) -> TokenCounts:
        """Nothing has occurred: the prompt does not count."""
        return TokenCounts(history.ids[history.prompt_tokens :])

    def accept(self, token_id: int, history: History, memory: TokenCounts) -> None:
        """Count it."""
        memory.add(token_id)


class PresencePenalty(_OfNewTokens):
    """Subtracts the penalty from the logit of every token that is among the new ones (`presence_penalty` of OpenAI's
    API). The prompt does not count.
    """

    name = "presence-penalty"
    api_version = 1

    class Params(LogitParams):
        """Parameters."""

        penalty: float = Param(
            0.5,
            description="Subtracted once from a token that has been chosen; OpenAI's range is -2 to 2.",
            option="--presence-penalty",
        )

    def process(self, logits: Tensor, history: History, memory: TokenCounts) -> None:
        """O(different new tokens)."""
        ids, _ = memory.tensors(len(logits), logits.device)
        logits[ids] -= self.params.penalty


class FrequencyPenalty(_OfNewTokens):
    """Subtracts the penalty from the logit of a token as often as it is among the new ones (`frequency_penalty` of
    OpenAI's API). The prompt does not count.
    """

    name = "frequency-penalty"
    api_version = 1

    class Params(LogitParams):
        """Parameters."""

        penalty: float = Param(
            0.5,
            description="Subtracted as often as a token has been chosen; OpenAI's range is -2 to 2.",
            option="--frequency-penalty",
        )

    def process(self, logits: Tensor, history: History, memory: TokenCounts) -> None:
        """O(different new tokens)."""
        ids, counts = memory.tensors(len(logits), logits.device)
        logits[ids] -= self.params.penalty * counts
