"""Profiles: samplers that read parameters as another program does, and draw with neurogen's kernels and seeds.

    profile("llamacpp", top_k=40, top_p=0.95).sample(logits, seed=1, position=12)

The programs differ in the order of temperature and truncations, in how they treat ties, in edge values and defaults;
docs/profiles.md lists the differences. This module has the truncations in torch, in float64, and the
rules of each program; it knows neither the programs' code nor how tokens are drawn.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, ClassVar

from neurogen.contract.hookspecs import hookimpl
from neurogen.contract.parameters import Param, RowParams, SamplerParams
from neurogen.contract.sampler import API_VERSION, Sampler, State, TruncationSampler
from neurogen.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.stages import SamplerStage

__all__ = ["PROFILES", "LlamaCpp", "Profile", "Transformers", "Vllm", "profile", "profile_class"]

TEMPERATURE = "Below 1 sharpens, above 1 flattens; 0 is greedy."
TOP_K = "Tokens to draw from; 0 keeps all."
TOP_P = "Mass of the most probable tokens to draw from; 1 keeps all."
MIN_P = "Least probability, as a share of the largest; 0 keeps all."
TYPICAL_P = "Mass of the typical tokens to draw from; 1 keeps all."


class Profile(TruncationSampler):
    """A program's chain of temperature and truncations; made by `profile`.

    Attributes:
        title: the program's name as it writes it.
        tempered: whether truncations look at the distribution after the temperature or before it.
    """

    api_version = API_VERSION
    title: ClassVar[str]
    tempered: ClassVar[bool] = True

    def keep(self, logits: Tensor, params: RowParams) -> Tensor:
        return self.truncate(Survivors(logits, params.temperature if self.tempered else None), params).kept

    def truncate(self, left: Survivors, params: RowParams) -> Survivors:
        """The program's truncations, in its order."""
        raise NotImplementedError

    def effective(self, params: RowParams) -> RowParams:
        """The parameters as the program takes them."""
        return params

    def stages(
        self, /, logits: Tensor, *, seed: int = 0, position: int = 0, state: State | None = None, **params: Any
    ) -> list[SamplerStage]:
        """The temperature where the program has it, and each truncation that is on, in the program's order."""
        from neurogen.contract.stages import tempered, truncated

        rows = self.effective(self._rows(params, 1, logits.device))
        temperature = float(rows.temperature)
        found = tempered(logits, temperature)
        if temperature > 0:
            before = temperature if self.tempered else 1.0
            left = self.truncate(Survivors(logits, rows.temperature if self.tempered else None), rows)
            cuts = [truncated(name, logits.masked_fill(~kept, -float("inf")), before) for name, kept in left.history]
            found = [*found, *cuts] if self.tempered else [*cuts, *found]
        *most, last = found or [truncated(self.name, logits, 1.0)]
        whole = super().stages(logits, **params)[-1]
        return [*most, last._replace(kept=whole.kept, probs=whole.probs)]


class Transformers(Profile):
    """As `generate(do_sample=True)` of transformers: temperature, top-k, top-p, min-p, typical."""

    name = "transformers"
    title = "transformers"

    class Params(SamplerParams):
        top_k: int = Param(50, ge=0, description=TOP_K)
        top_p: float = Param(1.0, ge=0, le=1, description=TOP_P)
        min_p: float = Param(0.0, ge=0, le=1, description=MIN_P)
        typical_p: float = Param(1.0, gt=0, le=1, description=TYPICAL_P)
        temperature: float = Param(1.0, ge=0, description=TEMPERATURE)

    def truncate(self, left: Survivors, params: RowParams) -> Survivors:
        left = left.largest_and_ties(params.top_k)
        left = left.nucleus(params.top_p, lowest_ids_last=True)
        left = left.share_of_best(params.min_p)
        return left.typical_and_ties(params.typical_p)


class Vllm(Profile):
    """As vLLM: temperature, min-p, then top-k and top-p."""

    name = "vllm"
    title = "vLLM"
    COLDEST: ClassVar[float] = 0.01
    """A temperature above 0 and below this value is replaced by it."""

    class Params(SamplerParams):
        top_k: int = Param(0, ge=-1, description="Tokens to draw from; 0 and -1 keep all.")
        top_p: float = Param(1.0, gt=0, le=1, description=TOP_P)
        min_p: float = Param(0.0, ge=0, le=1, description=MIN_P)
        temperature: float = Param(1.0, ge=0, le=2, description=TEMPERATURE)

    def truncate(self, left: Survivors, params: RowParams) -> Survivors:
        left = left.share_of_best(params.min_p)
        left = left.largest_and_ties(params.top_k)
        return left.nucleus(params.top_p, lowest_ids_last=True)

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._sample(logits, seed, position, self.effective(params), *state)

    def _probs(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._probs(logits, self.effective(params), *state)

    def _support(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._support(logits, self.effective(params), *state)

    def effective(self, params: RowParams) -> RowParams:
        warmer = RowParams(**vars(params))
        given = params.temperature
        warmer.temperature = given.where(given <= 0, given.clamp(min=self.COLDEST))
        return warmer


class LlamaCpp(Profile):
    """As llama.cpp's default chain: top-k, typical, top-p, min-p, all at temperature 1, then the temperature."""

    name = "llamacpp"
    title = "llama.cpp"
    tempered = False

    class Params(SamplerParams):
        top_k: int = Param(40, description="Tokens to draw from; 0 and below keep all.")
        top_p: float = Param(0.95, ge=0, le=1, description=TOP_P)
        min_p: float = Param(0.05, ge=0, le=1, description=MIN_P)
        typical_p: float = Param(1.0, gt=0, le=1, description=TYPICAL_P)
        temperature: float = Param(0.8, ge=0, description=TEMPERATURE)

    def truncate(self, left: Survivors, params: RowParams) -> Survivors:
        left = left.largest(params.top_k)
        left = left.typical(params.typical_p)
        left = left.nucleus(params.top_p, lowest_ids_last=False)
        return left.share_of_best(params.min_p)


PROFILES: dict[str, type[Profile]] = {cls.name: cls for cls in (LlamaCpp, Transformers, Vllm)}
"""Name -> class of every profile."""


def profile_class(name: str) -> type[Profile]:
    """The sampler class of a program.

    Args:
        name: "llamacpp", "transformers" or "vllm".

    Raises:
        ParameterError: there is no such profile.
    """
    if name in PROFILES:
        return PROFILES[name]
    near = difflib.get_close_matches(str(name).lower(), PROFILES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ParameterError(f"There is no profile {name!r}. Choose one of {', '.join(PROFILES)}.{hint}", "profile")


def profile(name: str, /, **params: Any) -> Sampler:
    """A sampler that keeps what a program would keep, with its defaults.

    Args:
        name: as for `profile_class`.
        **params: top_k, top_p, min_p, temperature and, except for vLLM, typical_p.

    Raises:
        ParameterError: no such profile; unknown parameter or value outside the domain that the program gives it.
    """
    return profile_class(name)(**params)


class Survivors:
    """The tokens of each row that are left, and truncations that leave fewer.

    Args:
        logits: [batch, vocab]. Rows without a valid distribution may occur; what is kept of them does not matter.
        temperature: float64 [batch], > 0; None is 1.

    Attributes:
        kept: bool [batch, vocab].
        history: (name with its value in the first row, what was kept after it) of each truncation that was on there.
    """

    def __init__(self, logits: Tensor, temperature: Tensor | None) -> None:
        values = logits.double()
        depth = values - values.amax(dim=-1, keepdim=True)
        self._values = values
        self._depth = depth if temperature is None else depth / temperature[:, None]
        self.kept = values > -float("inf")
        self.history: tuple[tuple[str, Tensor], ...] = ()

    def largest(self, k: Tensor) -> Survivors:
        """Exactly k tokens, of equal logits the lowest ids; k <= 0 keeps all."""
        rank = _inverse(self._order(lowest_ids_last=False))
        return self._only(rank < k[:, None], "top_k", k, k <= 0)

    def largest_and_ties(self, k: Tensor) -> Survivors:
        """The k largest logits and all that equal the k-th; k <= 0 keeps all."""
        values = self._left().sort(dim=-1, descending=True).values
        kth = values.gather(1, (k[:, None] - 1).clamp(0, values.shape[1] - 1))
        return self._only(self._values >= kth, "top_k", k, k <= 0)

    def nucleus(self, p: Tensor, *, lowest_ids_last: bool) -> Survivors:
        """The most probable tokens until their mass reaches p, at least one; p >= 1 keeps all.

        Args:
            p: float64 [batch].
            lowest_ids_last: of equal logits, the lowest ids come last in the order.
        """
        order = self._order(lowest_ids_last)
        mass = self._shares().gather(1, order)
        before = mass.cumsum(-1) - mass
        within = before < p[:, None]
        within[:, 0] = True
        return self._only(within.gather(1, _inverse(order)), "top_p", p, p >= 1)

    def share_of_best(self, share: Tensor) -> Survivors:
        """Tokens with at least this share of the largest probability that is left; 0 keeps all."""
        depth = self._depth.masked_fill(~self.kept, -float("inf"))
        best = depth.amax(dim=-1, keepdim=True)
        return self._only((depth - best).exp() >= share[:, None], "min_p", share, share <= 0)

    def typical(self, p: Tensor) -> Survivors:
        """The tokens whose surprise is nearest to the entropy until their mass is above p; p >= 1 keeps all."""
        order, _, mass = self._nearest()
        before = mass.cumsum(-1) - mass
        return self._only((before <= p[:, None]).gather(1, _inverse(order)), "typical_p", p, p >= 1)

    def typical_and_ties(self, p: Tensor) -> Survivors:
        """As `typical` until their mass reaches p, with all that are as near as the last; p >= 1 keeps all."""
        order, distance, mass = self._nearest()
        last = (mass.cumsum(-1) < p[:, None]).sum(-1, keepdim=True).clamp(max=mass.shape[1] - 1)
        farthest = distance.gather(1, order.gather(1, last))
        return self._only(distance <= farthest, "typical_p", p, p >= 1)

    def _only(self, keep: Tensor, name: str, value: Tensor, off: Tensor) -> Survivors:
        """What is left of what `keep` says, and of rows where the truncation is `off` all."""
        fewer: Survivors = object.__new__(Survivors)
        fewer._values, fewer._depth, fewer.kept = self._values, self._depth, self.kept & (keep | off[:, None])
        on = len(off) > 0 and not bool(off[0])
        fewer.history = (*self.history, (f"{name}={value[0].item():g}", fewer.kept)) if on else self.history
        return fewer

    def _left(self) -> Tensor:
        return self._values.masked_fill(~self.kept, -float("inf"))

    def _order(self, lowest_ids_last: bool) -> Tensor:
        """All ids, the largest logit that is left first."""
        if lowest_ids_last:
            return self._left().sort(dim=-1, stable=True).indices.flip(-1)
        return self._left().sort(dim=-1, descending=True, stable=True).indices

    def _shares(self) -> Tensor:
        return self._depth.masked_fill(~self.kept, -float("inf")).softmax(-1)

    def _nearest(self) -> tuple[Tensor, Tensor, Tensor]:
        """The ids by distance from the entropy, the distance of every id, and the masses in that order."""
        logs = self._depth.masked_fill(~self.kept, -float("inf")).log_softmax(-1)
        shares = logs.exp()
        entropy = -(shares * logs).nansum(-1, keepdim=True)
        distance = (-logs - entropy).abs().masked_fill(~self.kept, float("inf"))
        order = distance.sort(dim=-1, stable=True).indices
        return order, distance, shares.gather(1, order)


def _inverse(order: Tensor) -> Tensor:
    """The place of every id in an order, int64 [batch, vocab]."""
    return order.argsort(dim=-1)


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The profiles are samplers like all others: `neurogen run --sampler transformers`, or --profile transformers."""
    return list(PROFILES.values())
