"""Eta sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class Eta(Sampler):
    """Draws from tokens with a probability of at least min(epsilon, sqrt(epsilon) * exp(-entropy)), and the most
    probable one in any case (Hewitt et al., 2022, "Truncation Sampling as Language Model Desmoothing").
    """

    name = "eta"
    api_version = 1
    backends = {"cpu": "neurogen_eta.cpu", "cuda": "neurogen_eta.cuda"}
    reference = "neurogen_eta.reference"

    class Params(SamplerParams):
        epsilon: float = Param(
            2e-3, ge=0, lt=1, option="--eta-cutoff", description="Bounds the least probability; 0 keeps all."
        )
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
