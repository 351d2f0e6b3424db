"""Lets samplers choose for the rows of a batch: one call for all rows with the same sampler.

Knows tensors, samplers and what a row is, but not how vLLM announces requests. A row that gets no token (invalid
logits, a sampler that fails) does not stop the others.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import neurogen
from neurogen_vllm.request import sampler_request

__all__ = ["Choosing", "Parked", "Row"]

NO_TOKEN = -1
INT64 = range(-(2**63), 2**63)
KEPT_MEMORIES = 4096
LOOK_EVERY = 64
"""On a GPU, rows without a token are looked for once in so many steps: looking waits for the device."""

logger = logging.getLogger("vllm.neurogen")


@dataclass(eq=False)
class Row:
    """A request that a sampler of neurogen's chooses for.

    Attributes:
        params: vLLM's `SamplingParams` of the request.
        sampler: one for all rows of its kind, with default parameters; None where it cannot be loaded.
        numbers: this row's int and float parameters.
        seed: of this row.
        fallback: a token that ends the sequence, chosen where there is none to choose; -1: there is no such token.
        output: vLLM's list of the tokens so far; grows by itself.
        prompt_length: tokens of the prompt.
    """

    params: Any
    sampler: neurogen.Sampler | None
    numbers: dict[str, int | float]
    seed: int
    fallback: int
    output: Sequence[int] = ()
    prompt_length: int = 0
    _memory: neurogen.State | None = field(default=None, repr=False)
    _before: neurogen.State | None = field(default=None, repr=False)
    _at: int = NO_TOKEN

    @classmethod
    def of(cls, sampling_params: Any) -> Row | None:
        """The row of a request, or None where no sampler of neurogen's is asked for."""
        try:
            request = sampler_request(sampling_params)
        except neurogen.NeurogenError as error:
            logger.error("A request cannot be sampled and is ended: %s", error)
            return cls(sampling_params, None, {}, 0, _end_of(sampling_params))
        if request is None:
            return None
        common, numbers = _common(request.sampler)
        return cls(sampling_params, common, numbers, request.seed, _end_of(sampling_params))

    @property
    def position(self) -> int:
        """Index of the token to be chosen within its sequence."""
        return self.prompt_length + len(self.output)

    def memory_at(self, position: int, device: torch.device) -> neurogen.State:
        """The sampler's memory before this position: vLLM may ask twice for one, and drop the first answer."""
        assert self.sampler is not None
        if self._memory is None or self._before is None:
            self._before = {name: memory.to(device) for name, memory in self.sampler.new_state(1).items()}
        elif self._at != position:
            self._before = self._memory
        return self._before

    def remember(self, position: int, memory: neurogen.State) -> None:
        """Keep what the choice at a position left in the memory."""
        self._at, self._memory = position, memory


class Parked:
    """Rows with memory that have left the batch and may come back, since vLLM preempts requests."""

    def __init__(self) -> None:
        self._rows: OrderedDict[int, Row] = OrderedDict()

    def put(self, row: Row | None) -> None:
        """Keep a row that leaves, if it has memory."""
        if row is not None and row.sampler is not None and row.sampler.stateful:
            self._rows[id(row.params)] = row  # the row holds the params, so no other object gets their id
            if len(self._rows) > KEPT_MEMORIES:
                self._rows.popitem(last=False)

    def row_of(self, sampling_params: Any) -> Row | None:
        """The row of a request: one that comes back, or a new one."""
        return self._rows.pop(id(sampling_params), None) or Row.of(sampling_params)


class Choosing:
    """Chooses for rows, and leaves of their logits the chosen tokens."""

    def __init__(self) -> None:
        self._steps = 0
        self._told: set[str] = set()

    def __call__(
        self, logits: Tensor, rows: Sequence[tuple[int, Row]], positions: Tensor | None, dropped: frozenset[int]
    ) -> Tensor:
        """Choose a token for each row.

        Args:
            logits: float32 [batch, vocab]; changed in place: 0 for a chosen token, -inf for the others of its row.
            rows: (index in the batch, row).
            positions: int64 [batch] on the device of `logits`; None: as the rows say.
            dropped: indices of rows whose choice vLLM will not use, so that no memory of it stays.

        Returns:
            `logits`.
        """
        self._steps += 1
        kinds: dict[int, list[tuple[int, Row]]] = {}
        for index, row in rows:
            kinds.setdefault(id(row.sampler), []).append((index, row))
        for members in kinds.values():
            self._choose(logits, members, positions, dropped)
        return logits

    def _choose(
        self, logits: Tensor, members: list[tuple[int, Row]], positions: Tensor | None, dropped: frozenset[int]
    ) -> None:
        device = logits.device
        whole = [index for index, _ in members] == list(range(len(logits)))
        indices = torch.tensor([index for index, _ in members], device=device)
        own = logits if whole else logits[indices]
        fallback = torch.tensor([row.fallback for _, row in members], device=device)
        if positions is None:
            places = torch.tensor([row.position for _, row in members], device=device)
        else:
            places = positions[indices]
        ids = self._sampled(own, [row for _, row in members], places, [index in dropped for index, _ in members])
        if device.type == "cpu" or self._steps % LOOK_EVERY == 0:
            self._tell_failures(int((ids < 0).sum()), members[0][1])
        ids = torch.where(ids < 0, fallback, ids)
        chosen = torch.full_like(own, -torch.inf).scatter_(1, ids.clamp(min=0)[:, None], 0.0)
        logits[indices] = torch.where((ids >= 0)[:, None], chosen, own)

    def _sampled(self, logits: Tensor, rows: list[Row], places: Tensor, dropped: list[bool]) -> Tensor:
        """int64 [rows]; -1 for all of them where the sampler fails."""
        sampler, device = rows[0].sampler, logits.device
        nothing = torch.full((len(rows),), NO_TOKEN, dtype=torch.int64, device=device)
        if sampler is None:
            return nothing
        at = places.tolist() if sampler.stateful else []
        try:
            state = _together([row.memory_at(p, device) for row, p in zip(rows, at, strict=True)]) if at else None
            ids = sampler.sample(
                logits,
                seed=torch.tensor([row.seed for row in rows], device=device),
                position=places.to(torch.int64),
                check=False,
                state=state,
                **_columns(sampler, rows, device),
            )
        except neurogen.NeurogenError as error:
            self._tell(str(error))
            return nothing
        for i, (row, position) in enumerate(zip(rows, at, strict=False)):
            if state is not None and not dropped[i]:
                row.remember(position, {name: memory[i : i + 1].clone() for name, memory in state.items()})
        return ids

    def _tell_failures(self, count: int, row: Row) -> None:
        if count and row.sampler is not None:
            self._tell(
                f"{count} row(s) have no valid distribution (NaN, +inf, or nothing above -inf) or their sampler "
                f"{row.sampler.name!r} failed: these sequences end here, or, without a token that ends them, get a "
                "token of vLLM's."
            )

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told = {*list(self._told)[:LOOK_EVERY], message}
            logger.error(message)


_COMMON: dict[tuple[type[neurogen.Sampler], tuple[tuple[str, Any], ...]], neurogen.Sampler] = {}


def _common(sampler: neurogen.Sampler) -> tuple[neurogen.Sampler, dict[str, int | float]]:
    """The sampler that stands for all rows of a kind, and a row's own numbers.

    So a kind is one call, and all memories are made by the sampler that uses them. Parameters that are no numbers
    cannot differ within a call: they make another kind.
    """
    cls, fields = type(sampler), type(sampler.params).model_fields
    values = sampler.params.model_dump()
    numbers = {name: value for name, value in values.items() if fields[name].annotation in (int, float)}
    settings = tuple((name, value) for name, value in values.items() if name not in numbers)
    if (cls, settings) not in _COMMON:
        _COMMON[cls, settings] = cls(**dict(settings))
        _COMMON[cls, settings].origin = sampler.origin
    return _COMMON[cls, settings], numbers


def _columns(sampler: neurogen.Sampler, rows: list[Row], device: torch.device) -> dict[str, Tensor]:
    """Parameters a row, of those in which a row differs from the sampler."""
    own = sampler.params.model_dump()
    columns: dict[str, Tensor] = {}
    for name in rows[0].numbers:
        values = [row.numbers[name] for row in rows]
        if any(value != own[name] for value in values):
            whole = type(sampler.params).model_fields[name].annotation is int
            values = [min(max(value, INT64[0]), INT64[-1]) for value in values] if whole else values
            columns[name] = torch.tensor(values, dtype=torch.int64 if whole else torch.float64, device=device)
    return columns


def _together(memories: list[neurogen.State]) -> neurogen.State:
    return {name: torch.cat([memory[name] for memory in memories]) for name in memories[0]}


def _end_of(sampling_params: Any) -> int:
    """A token that ends the sequence, or -1."""
    stops = list(getattr(sampling_params, "stop_token_ids", None) or ())
    end = getattr(sampling_params, "_eos_token_id", None)
    if end is not None and not getattr(sampling_params, "ignore_eos", False):
        stops.insert(0, end)
    return int(stops[0]) if stops else NO_TOKEN
