"""Samplers with one mistake each, and the right ones they were made from; test_conformance says which check finds it.

`Right` and `Nucleus` are written in torch and NumPy alone, a step a method, so that a mistake is one method.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurogen import Param, Sampler, SamplerParams


def mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Right(Sampler):
    """Top-k sampling in float64 by torch."""

    name = "right"
    api_version = 1
    reference = "neurogen_topk.reference"

    class Params(SamplerParams):
        k: int = Param(5, ge=0, description="Tokens to draw from; 0 keeps all.")
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")

    # What subclasses get wrong.

    def values(self, logits: Tensor) -> Tensor:
        return logits.double()

    def invalid(self, x: Tensor) -> Tensor:
        return x.isnan().any(-1) | x.amax(-1).isinf()

    def order(self, x: Tensor) -> Tensor:
        return x.argsort(dim=-1, descending=True, stable=True)

    def count(self, params: Any) -> Tensor:
        return torch.where(params.k > 0, params.k, 2**40)

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        """Uniform in [0, 1), float64 [batch]."""
        bits = mixed(seed.numpy().view(np.uint64) ^ mixed(position.numpy().view(np.uint64)))
        return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    # The sampler.

    def weights(self, x: Tensor, temperature: Tensor) -> Tensor:
        cold = torch.zeros_like(x).scatter_(1, self.order(x)[:, :1], 1.0)
        warm = ((x - x.amax(-1, keepdim=True)) / torch.where(temperature > 0, temperature, 1.0)[:, None]).exp()
        return torch.where(temperature[:, None] > 0, warm, cold)

    def kept(self, x: Tensor, params: Any) -> Tensor:
        rank = self.order(x).argsort(dim=-1)
        return (rank < self.count(params)[:, None]) & (x > -torch.inf)

    def _support(self, logits: Tensor, params: Any) -> Tensor:
        return self.masses(logits, params)[1]

    def masses(self, logits: Tensor, params: Any) -> tuple[Tensor, Tensor]:
        """float64 weights [batch, vocab] and what is kept; zeros in an invalid row."""
        x = self.values(logits)
        bad = self.invalid(x)[:, None].expand_as(x)
        x = x.masked_fill(bad, 0.0)
        cold = (params.temperature == 0)[:, None]
        kept = torch.where(cold, self.weights(x, params.temperature) > 0, self.kept(x, params)) & ~bad
        return torch.where(kept, self.weights(x, params.temperature), 0.0), kept

    def _probs(self, logits: Tensor, params: Any) -> Tensor:
        mass, kept = self.masses(logits, params)
        return (mass / mass.sum(-1, keepdim=True)).masked_fill(~kept, 0).float()

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any, *state: Any) -> Tensor:
        mass, _ = self.masses(logits, params)
        return self.drawn(mass, self.number(seed, position))

    def drawn(self, mass: Tensor, number: Tensor) -> Tensor:
        upto = mass.cumsum(-1)
        ids = (upto <= number[:, None] * upto[:, -1:]).sum(-1)
        return ids.masked_fill(upto[:, -1] == 0, -1)


class Nucleus(Right):
    """Top-p sampling in float64 by torch."""

    name = "nucleus"
    reference = "neurogen_topp.reference"

    class Params(SamplerParams):
        p: float = Param(0.9, gt=0, le=1, description="Mass of the tokens to draw from; 1 keeps all.")
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")

    def before(self, sorted_mass: Tensor) -> Tensor:
        """The mass of the tokens that come before each."""
        return sorted_mass.cumsum(-1).roll(1, -1).index_fill(-1, torch.tensor([0]), 0.0)

    def kept(self, x: Tensor, params: Any) -> Tensor:
        order = self.order(x)
        mass = self.weights(x, params.temperature).gather(1, order)
        inside = self.before(mass) < params.p[:, None] * mass.sum(-1, keepdim=True)
        inside |= params.p[:, None] >= 1
        return torch.zeros_like(inside).scatter_(1, order, inside) & (x > -torch.inf)


class Remembering(Right):
    """Top-k whose k shrinks by one with each token of a sequence."""

    name = "remembering"
    reference = ""
    stateful = True
    truncates = False

    def new_state(self, batch: int) -> dict[str, Tensor]:
        return {"tokens": torch.zeros(batch, dtype=torch.int64)}

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any, *state: Any) -> Tensor:
        x = self.values(logits)
        bad = self.invalid(x)[:, None]
        x = x.masked_fill(bad, 0.0)
        rank = self.order(x).argsort(dim=-1)
        tokens = self.tokens_of(state[0])
        mass, _ = self.masses(logits, params)
        mass = torch.where((rank < (6 - tokens).clamp(min=1)[:, None]) | (tokens == 0)[:, None], mass, 0.0)
        self.remember(state[0])
        return self.drawn(mass, self.number(seed, position))

    def tokens_of(self, state: dict[str, Tensor]) -> Tensor:
        return state["tokens"]

    def remember(self, state: dict[str, Tensor]) -> None:
        state["tokens"] += 1


class Remembered(Remembering):
    """The same with a reference."""

    reference = "remembering_reference"


class Greedy(Right):
    """The largest logit."""

    name = "right-greedy"
    deterministic = True
    reference = "neurogen_greedy.reference"

    class Params(SamplerParams):
        pass

    def kept(self, x: Tensor, params: Any) -> Tensor:
        return self.order(x).argsort(dim=-1) < 1

    def masses(self, logits: Tensor, params: Any) -> tuple[Tensor, Tensor]:
        params.temperature = torch.ones(len(logits), dtype=torch.float64)
        return super().masses(logits, params)


# What they keep.


class OneTooMany(Right):
    """Keeps k + 1 tokens."""

    def count(self, params: Any) -> Tensor:
        return super().count(params) + 1


class WithoutTheCrossing(Nucleus):
    """Drops the token whose mass crosses p, but for the first."""

    def before(self, sorted_mass: Tensor) -> Tensor:
        return sorted_mass.cumsum(-1).index_fill(-1, torch.tensor([0]), 0.0)


class HighestIdFirst(Right):
    """Of equal logits the highest id comes first."""

    def order(self, x: Tensor) -> Tensor:
        return x.shape[1] - 1 - x.flip(-1).argsort(dim=-1, descending=True, stable=True)


class TemperatureAfterTruncation(Nucleus):
    """The nucleus is that of temperature 1."""

    def kept(self, x: Tensor, params: Any) -> Tensor:
        warm = type(params)(**{**vars(params), "temperature": torch.ones_like(params.temperature)})
        return super().kept(x, warm)


class HalfPrecision(Right):
    """Compares in float16."""

    def values(self, logits: Tensor) -> Tensor:
        return logits.half().double()


class HalfMasses(Right):
    """Computes the masses in the dtype of the logits."""

    def _probs(self, logits: Tensor, params: Any) -> Tensor:
        return super()._probs(logits, params).to(logits.dtype).float()


class DrawsRemoved(Right):
    """-inf is only very small."""

    def values(self, logits: Tensor) -> Tensor:
        return logits.double().clamp(min=-4.0)


class KeepsNoneAtZero(Right):
    """k = 0 keeps nothing."""

    def count(self, params: Any) -> Tensor:
        return params.k


class NotQuiteCold(Right):
    """Temperature 0 is a low temperature."""

    def weights(self, x: Tensor, temperature: Tensor) -> Tensor:
        return super().weights(x, temperature.clamp(min=0.5))


class SupportOfAll(Right):
    """Says that every token above -inf can be drawn."""

    reference = ""

    def _support(self, logits: Tensor, params: Any) -> Tensor:
        return logits > -torch.inf


class NotNormalised(Right):
    """Gives the masses for probabilities."""

    def _probs(self, logits: Tensor, params: Any) -> Tensor:
        return self.masses(logits, params)[0].float()


class OtherTemperature(Right):
    """Probs of another temperature than asked for, by a little."""

    def weights(self, x: Tensor, temperature: Tensor) -> Tensor:
        return super().weights(x, temperature * 1.0001)


# How they draw.


class DrawsFlatter(Right):
    """Draws at another temperature than probs are of."""

    def drawn(self, mass: Tensor, number: Tensor) -> Tensor:
        return super().drawn(mass.sqrt(), number)


class BeyondTheVocabulary(Right):
    """Once in two hundred times the id is the vocabulary's size."""

    def drawn(self, mass: Tensor, number: Tensor) -> Tensor:
        return super().drawn(mass, number).masked_fill((number > 0.995) & (mass.sum(-1) > 0), mass.shape[1])


class IgnoresSeed(Right):
    """The position alone counts."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        return super().number(torch.zeros_like(seed), position)


class IgnoresPosition(Right):
    """The seed alone counts."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        return super().number(seed, torch.zeros_like(position))


class SeedPlusPosition(Right):
    """Only the sum of seed and position counts."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        return super().number(seed + position, torch.zeros_like(position))


class HalfTheSeed(Right):
    """The upper 32 bits of the seed are lost."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        return super().number(seed & 0xFFFFFFFF, position)


class EvenlySpread(Right):
    """The numbers of neighbouring seeds and positions are evenly spread, not random (a Weyl sequence)."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        return (seed % 2**40 * 0.6180339887498949 + position % 2**40 * 0.7548776662466927) % 1.0


class RowIndexed(Right):
    """The place in the batch counts."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        return super().number(seed + torch.arange(len(seed)), position)


class GlobalGenerator(Right):
    """Draws from torch's global generator."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        return torch.rand(len(seed), dtype=torch.float64)


class CountsItsCalls(Right):
    """Every call draws other numbers."""

    calls = 0

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        CountsItsCalls.calls += 1
        return super().number(seed + self.calls, position)


class SaysDeterministic(Greedy):
    """Says that it is deterministic, and chooses among the two largest."""

    def kept(self, x: Tensor, params: Any) -> Tensor:
        return self.order(x).argsort(dim=-1) < 2


# What they do to others.


class DividesInPlace(Right):
    """Writes the scaled logits where they came from."""

    def masses(self, logits: Tensor, params: Any) -> tuple[Tensor, Tensor]:
        scaled = logits.div_(torch.where(params.temperature > 0, params.temperature, 1.0)[:, None])
        warm = type(params)(**{**vars(params), "temperature": (params.temperature > 0).double()})
        return super().masses(scaled, warm)


class OneBadSpoilsAll(Right):
    """One invalid row makes all rows invalid."""

    def invalid(self, x: Tensor) -> Tensor:
        return super().invalid(x).any().expand(len(x))


class TakesInfinity(Right):
    """A row with +inf is taken for a certain one."""

    def invalid(self, x: Tensor) -> Tensor:
        return super().invalid(x.clamp(max=1e30))


class FirstRowsParameters(Right):
    """The parameters of the first row are used for all."""

    def count(self, params: Any) -> Tensor:
        return super().count(params)[:1].expand(len(params.k))


class IgnoresStrides(Right):
    """Reads the memory as though rows lay one behind the other."""

    def values(self, logits: Tensor) -> Tensor:
        try:
            return logits.as_strided(logits.shape, (logits.shape[1], 1)).double()
        except RuntimeError:
            return torch.zeros_like(logits, dtype=torch.float64)


class NeedsTwoTokens(Right):
    """Fails on a vocabulary of one token."""

    def order(self, x: Tensor) -> Tensor:
        x.topk(2)
        return super().order(x)


class SharedScratch(Right):
    """Keeps its numbers in one place between two steps."""

    def number(self, seed: Tensor, position: Tensor) -> Tensor:
        self.scratch = super().number(seed, position)
        time.sleep(0.0005)
        return self.scratch if len(self.scratch) == len(seed) else super().number(seed, position)


# What they declare.


class AnyTemperature(Right):
    """Takes negative temperatures."""

    class Params(SamplerParams):
        k: int = Param(5, ge=0, description="Tokens to draw from; 0 keeps all.")
        temperature: float = Param(1.0, description="Divides the logits.")


class TakesAnything(Right):
    """Clamps what is outside its bounds, and says nothing."""

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**{name: max(value, 0) if name == "k" else value for name, value in params.items()})


class ClashingOption(Right):
    """Wants an option that `neurogen run` has itself."""

    class Params(SamplerParams):
        k: int = Param(5, ge=0, option="--seed", description="Tokens to draw from; 0 keeps all.")
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")


class LostReference(Right):
    """Names a reference that does not exist."""

    reference = "neurogen_nowhere.reference"


class Undescribed(Right):
    """A parameter without a description."""

    class Params(SamplerParams):
        k: int = Param(5, ge=0, description="")
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")


# What they remember.


class SharedState(Remembering):
    """The first row's memory is that of all."""

    def tokens_of(self, state: dict[str, Tensor]) -> Tensor:
        return state["tokens"].sum().expand(len(state["tokens"]))


class OneStateForAll(Remembering):
    """Every new state is the same memory."""

    kept_states: dict[int, Tensor] = {}

    def new_state(self, batch: int) -> dict[str, Tensor]:
        return {"tokens": self.kept_states.setdefault(batch, torch.zeros(batch, dtype=torch.int64))}


class MemoryBeside(Remembering):
    """What it remembers is in the sampler, not in the state."""

    seen = 0

    def tokens_of(self, state: dict[str, Tensor]) -> Tensor:
        MemoryBeside.seen += 1
        return torch.full_like(state["tokens"], self.seen % 5)


class NeverRemembers(Remembering):
    """Its memory never changes."""

    def remember(self, state: dict[str, Tensor]) -> None:
        pass


class RemembersACopy(Remembering):
    """What it remembers goes to a copy."""

    def remember(self, state: dict[str, Tensor]) -> None:
        state = {name: memory + 1 for name, memory in state.items()}


class WithoutEffect(Remembering):
    """Counts, and draws as though it had not."""

    def tokens_of(self, state: dict[str, Tensor]) -> Tensor:
        return torch.zeros_like(state["tokens"])


class HalfRemembers(Remembering):
    """One of two memories never changes."""

    def new_state(self, batch: int) -> dict[str, Tensor]:
        return {**super().new_state(batch), "last": torch.full((batch,), -1)}


class CountsTwice(Remembered):
    """Counts each token twice."""

    def remember(self, state: dict[str, Tensor]) -> None:
        state["tokens"] += 2


class StopsCounting(Remembered):
    """Counts to three."""

    def remember(self, state: dict[str, Tensor]) -> None:
        state["tokens"].add_(1).clamp_(max=3)


class StartsLater(Remembered):
    """Begins as after two tokens."""

    def new_state(self, batch: int) -> dict[str, Tensor]:
        return {"tokens": torch.full((batch,), 2)}


class ReadsAnother(Remembered):
    """Draws as before the last token."""

    def tokens_of(self, state: dict[str, Tensor]) -> Tensor:
        return (state["tokens"] - 1).clamp(min=0)


class FirstRowsMemory(Remembering):
    """What it remembers follows from the parameters of the first row."""

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any, *state: Any) -> Tensor:
        ids = super()._sample(logits, seed, position, params, *state)
        state[0]["tokens"] += params.k[0] % 3
        return ids


class WidensMemory(Remembering):
    """Its memory becomes a float."""

    def remember(self, state: dict[str, Tensor]) -> None:
        state["tokens"] = state["tokens"] + 1.0


# How their kernels compute.


class ExpInKernels(Right):
    """Its kernels compute with `math.exp`, in a helper of a helper."""

    backends = {"cpu": "inexact_kernels"}
