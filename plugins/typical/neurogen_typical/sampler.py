"""Locally typical sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class Typical(Sampler):
    """Draws from the tokens whose surprise is nearest to the entropy, until their mass reaches typical_p (Meister et
    al., 2022, "Locally Typical Sampling").
    """

    name = "typical"
    api_version = 1
    backends = {"cpu": "neurogen_typical.cpu", "cuda": "neurogen_typical.cuda"}
    reference = "neurogen_typical.reference"

    class Params(SamplerParams):
        typical_p: float = Param(0.95, gt=0, le=1, description="Mass of the typical tokens to draw from; 1 keeps all.")
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
