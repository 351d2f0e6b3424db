"""The sequences that are decoded together, one row each, and the tensors that describe them. Knows no text.

What the model and the sampler are given changes only when a row joins or leaves; in between, a step adds one to the
positions in place and makes nothing anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.errors import ContractError, InvalidLogitsError, NeurogenError
from neurogen.kvcache import KVBlock, new_cache
from neurogen.parameters import clamped
from neurogen.sampler import NO_TOKEN

if TYPE_CHECKING:
    from neurogen.models import LanguageModel
    from neurogen.sampler import Sampler, State

__all__ = ["Batch", "Drawn", "Prefill", "Request", "Row", "TokenLogprobs"]

SPARE_COLUMNS = 256
"""Columns for tokens to come that an attention mask is made with, at most."""

PADDED_SHARE = 2
"""Prompts are prefilled together as long as the longest has at most this many times the shortest's tokens."""


@dataclass(frozen=True)
class Request:
    """One sequence to decode.

    Attributes:
        prompt_ids: the tokens to continue, at least one.
        max_new_tokens: how many tokens may be chosen, at least one.
        seed: of 64 bits; with the position it determines every draw.
        params: values of the sampler's own parameters for this sequence; those left out are as in the sampler.
        stop_ids: tokens that end the sequence.
        logprobs: give the log-probability of the chosen token and of this many most probable ones; None for none.
        key: what the caller knows the sequence by.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    params: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    key: Any = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before temperature and truncation.

    Attributes:
        logprob: of the chosen token.
        top: (token id, log-probability) of the most probable tokens, the most probable first, at equal values the
            lowest id first; tokens of probability zero are left out.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Row:
    """A sequence and how far it is.

    Attributes:
        request: what was asked for.
        numbers: the values of the sampler's int and float parameters, which may differ between rows.
        settings: the values of its other parameters, which are the same for a whole batch.
        produced: tokens chosen so far.
        finished: leaves the batch before the next forward pass.
        admitted: `time.perf_counter()` when it was given a row.
    """

    request: Request
    numbers: dict[str, Any]
    settings: dict[str, Any]
    produced: int = 0
    finished: bool = False
    admitted: float = 0.0

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens to continue."""
        return self.request.prompt_ids


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step gave a row: a token, or the reason why there is none."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: NeurogenError | None = None


class Prefill:
    """Runs the model over prompts; those that are asked for several times are run once.

    Args:
        model: gives the logits.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._kept: tuple[tuple[int, ...], KVBlock, Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[tuple[int, ...]], upcoming: tuple[int, ...] | None) -> tuple[KVBlock, Tensor]:
        """Keys, values and logits behind each prompt.

        Args:
            prompts: at least one, of at least one token each; may repeat each other.
            upcoming: the prompt that is likely asked for next: if it is the last one here, it is remembered.

        Returns:
            a block with one row a prompt, and logits [len(prompts), vocab] of the model's dtype.
        """
        different = sorted(set(prompts), key=len)
        parts = [self._remembered(prompt) for prompt in different if self._is_kept(prompt)]
        order = [prompt for prompt in different if self._is_kept(prompt)]
        for group in _similar_lengths([prompt for prompt in different if not self._is_kept(prompt)]):
            parts.append(self._run(group))
            order += group
        block, logits = parts[0]
        for more, more_logits in parts[1:]:
            block, logits = block.join(more), torch.cat([logits, more_logits])
        rows = [order.index(prompt) for prompt in prompts]
        self._keep(prompts[-1] if prompts[-1] == upcoming else None, rows[-1], block, logits)
        return block.select(rows), logits[rows]

    def _is_kept(self, prompt: tuple[int, ...]) -> bool:
        return self._kept is not None and self._kept[0] == prompt

    def _remembered(self, prompt: tuple[int, ...]) -> tuple[KVBlock, Tensor]:
        assert self._kept is not None
        return self._kept[1].copy_row(0), self._kept[2]

    def _keep(self, prompt: tuple[int, ...] | None, row: int, block: KVBlock, logits: Tensor) -> None:
        if prompt is None:
            self._kept = None
        elif not self._is_kept(prompt):
            self._kept = (prompt, block.copy_row(row), logits[row : row + 1])

    def _run(self, prompts: Sequence[tuple[int, ...]]) -> tuple[KVBlock, Tensor]:
        device = self._model.device
        width = max(map(len, prompts))
        block = KVBlock(new_cache(), [width - len(prompt) for prompt in prompts])
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = block.attention_mask(width, device)
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        logits, block.cache = self._model.forward(ids, mask, positions, block.cache)
        return block, logits


def _similar_lengths(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Prompts, sorted by length, in groups that waste little work on padding."""
    groups: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if groups and len(prompt) <= PADDED_SHARE * len(groups[-1][0]):
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups


class Batch:
    """The rows that are being decoded.

    Args:
        model: gives the logits.
        sampler: chooses the tokens, for all rows at once.
        vocab_size: ids from here on are never drawn.

    Attributes:
        rows: the sequences, in the order of the tensors' rows.
    """

    def __init__(self, model: LanguageModel, sampler: Sampler, vocab_size: int) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._state: State | None = None
        self._block: KVBlock
        self._logits: Tensor
        self._ids: Tensor
        self._positions: Tensor
        self._mask: Tensor | None = None
        self._arguments: dict[str, Any] | None = None

    @torch.inference_mode()
    def add(self, rows: Sequence[Row], block: KVBlock, logits: Tensor) -> None:
        """Admit rows whose prompts have been run.

        Args:
            rows: the sequences.
            block: keys and values of their prompts.
            logits: [len(rows), vocab], behind their prompts.
        """
        state = self._fresh_state(len(rows)) if self._sampler.stateful else None
        if self.rows:
            block, logits = self._block.join(block), torch.cat([self._logits, logits])
            if state is not None and self._state is not None:
                state = {name: torch.cat([self._state[name], new]) for name, new in state.items()}
        now = time.perf_counter()
        for row in rows:
            row.admitted = now
        self.rows += rows
        self._block, self._logits, self._state = block, logits, state
        self._forget_tensors()

    @torch.inference_mode()
    def sample(self) -> list[Drawn]:
        """Choose the next token of every row.

        Raises:
            ContractError, PluginError: the sampler does not do what it declared, or fails.
        """
        if self._arguments is None:
            self._arguments = self._sampling_arguments()
        logits = self._logits[:, : self._vocab_size]
        # check=False: the ids are looked at here, where they are read anyway, so that nothing waits for a GPU twice.
        self._ids = self._sampler.sample(logits, check=False, **self._arguments)
        self._arguments["position"].add_(1)
        logprobs = self._logprobs(logits)
        tokens = self._ids.tolist()
        if not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            return [self._checked(i, token, logprobs[i]) for i, token in enumerate(tokens)]
        return [Drawn(token, info) for token, info in zip(tokens, logprobs, strict=True)]

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Take out the rows that are finished, with all that belongs to them."""
        keep = [i for i, row in enumerate(self.rows) if not row.finished]
        if len(keep) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in keep]
        index = torch.tensor(keep, dtype=torch.int64, device=self._model.device)
        self._block = self._block.select(keep)
        self._ids = self._ids[index]
        if self._state is not None:
            self._state = {name: memory[index] for name, memory in self._state.items()}
        self._forget_tensors()

    @torch.inference_mode()
    def decode(self) -> None:
        """Run the model over the token that was chosen last in every row; at least one row."""
        columns = self._block.width + 1
        if self._mask is None or self._mask.shape[1] < columns:
            left = max(row.request.max_new_tokens - row.produced for row in self.rows)
            device = self._model.device
            self._mask = self._block.attention_mask(columns + min(left, SPARE_COLUMNS), device)
            self._positions = self._block.next_positions(device)
        self._logits, self._block.cache = self._model.forward(
            self._ids.unsqueeze(1), self._mask[:, :columns], self._positions, self._block.cache
        )
        self._positions.add_(1)

    def _forget_tensors(self) -> None:
        self._mask = None
        self._arguments = None

    def _fresh_state(self, rows: int) -> State:
        state = self._sampler.new_state(rows)
        return {name: memory.to(self._model.device) for name, memory in state.items()}

    def _sampling_arguments(self) -> dict[str, Any]:
        """Seed, position, state and, where a row's parameters are not the sampler's own, parameters a row."""
        device = self._model.device
        arguments: dict[str, Any] = {
            "seed": torch.tensor([row.request.seed for row in self.rows], device=device),
            "position": torch.tensor([len(row.prompt) + row.produced for row in self.rows], device=device),
        }
        if self._state is not None:
            arguments["state"] = self._state
        for name, own in self._sampler.params.model_dump().items():
            if name in self.rows[0].settings:
                if self.rows[0].settings[name] != own:
                    arguments[name] = self.rows[0].settings[name]
            elif any(row.numbers[name] != own for row in self.rows):
                arguments[name] = self._column(name)
        return arguments

    def _column(self, name: str) -> Tensor:
        values = [row.numbers[name] for row in self.rows]
        whole = all(isinstance(value, int) for value in values)
        if whole:
            values = [clamped(value) for value in values]
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float64, device=self._model.device)

    def _logprobs(self, logits: Tensor) -> list[TokenLogprobs | None]:
        result: list[TokenLogprobs | None] = [None] * len(self.rows)
        asking = [i for i, row in enumerate(self.rows) if row.request.logprobs is not None]
        if not asking:
            return result
        logs = torch.log_softmax(logits[asking].float(), dim=-1)
        chosen = logs.gather(1, self._ids[asking].clamp(min=0).unsqueeze(1)).flatten().tolist()
        counts = [self.rows[i].request.logprobs or 0 for i in asking]
        top = logs.topk(min(max(counts), self._vocab_size), dim=-1)
        alternatives = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        for i, count, logprob, (ids, values) in zip(asking, counts, chosen, alternatives, strict=True):
            result[i] = TokenLogprobs(logprob, _ranked(ids, values)[:count])
        return result

    def _checked(self, row: int, token: int, logprobs: TokenLogprobs | None) -> Drawn:
        """Blame the logits for a row without a token, the sampler for an id that cannot be."""
        if 0 <= token < self._vocab_size:
            return Drawn(token, logprobs)
        request, sampler = self.rows[row].request, self._sampler
        logits = self._logits[row, : self._vocab_size]
        if token != NO_TOKEN:
            raise ContractError(
                f"Sampler {sampler.name!r} ({sampler.origin}) returned the id {token} for request {request.key!r}; ids "
                f"of this vocabulary are 0 to {self._vocab_size - 1}."
            )
        if torch.isfinite(logits.max()):  # max is NaN if any value is
            raise ContractError(
                f"Sampler {sampler.name!r} ({sampler.origin}) kept no token for request {request.key!r}, although the "
                "logits are valid. A sampler keeps at least one token of a valid row."
            )
        error = InvalidLogitsError([row], sampler.name)
        error.args = (
            f"The model's logits for request {request.key!r} have no valid distribution after "
            f"{self.rows[row].produced} new token(s): they hold NaN or +inf, or nothing above -inf, so sampler "
            f"{sampler.name!r} cannot draw. Often the number format overflows: try dtype float32 or bfloat16.",
        )
        return Drawn(NO_TOKEN, error=error)


def _ranked(ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    possible = [(token, value) for token, value in zip(ids, values, strict=True) if value > float("-inf")]
    return tuple(sorted(possible, key=lambda pair: (-pair[1], pair[0])))
