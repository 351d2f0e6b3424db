"""Exclude top choices (XTC): the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neurogen import Param, Sampler, SamplerParams, State

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.stages import SamplerStage


class XTC(Sampler):
    """With a chance, removes all tokens of at least a probability but the least probable of them (p-e-w, 2024, "Exclude
    Top Choices", https://github.com/oobabooga/text-generation-webui/pull/6335).
    """

    name = "xtc"
    api_version = 1
    truncates = False
    backends = {"cpu": "neurogen_xtc.cpu", "cuda": "neurogen_xtc.cuda"}
    reference = "neurogen_xtc.reference"

    class Params(SamplerParams):
        threshold: float = Param(
            0.1, gt=0, le=1, option="--xtc-threshold", description="Probability from which a token is a top choice."
        )
        probability: float = Param(
            0.5, ge=0, le=1, option="--xtc-probability", description="Chance that top choices are removed; 0 is never."
        )
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")

    def stages(
        self, /, logits: Tensor, *, seed: int = 0, position: int = 0, state: State | None = None, **params: Any
    ) -> list[SamplerStage]:
        """With the top choices removed, or with all, as decided by the second random number of (seed, position)."""
        from neurogen.kernels.numerics import random_bits, uniform

        values = {**self.params.model_dump(), **params}
        removes = bool(uniform(random_bits(seed, position, 1)) < values["probability"])
        *most, last = super().stages(logits, **{**values, "probability": 1.0 if removes else 0.0})
        told = f"threshold={values['threshold']!r}, probability={values['probability']!r}"
        outcome = "the chance came true" if removes else "by chance nothing removed"
        return [*most, last._replace(name=f"{self.name}({told}), {outcome}")]
