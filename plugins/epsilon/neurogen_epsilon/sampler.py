"""Epsilon sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class Epsilon(Sampler):
    """Draws from tokens with a probability of at least epsilon, and the most probable one in any case (Hewitt et al.,
    2022, "Truncation Sampling as Language Model Desmoothing").
    """

    name = "epsilon"
    api_version = 1
    backends = {"cpu": "neurogen_epsilon.cpu", "cuda": "neurogen_epsilon.cuda"}
    reference = "neurogen_epsilon.reference"

    class Params(SamplerParams):
        epsilon: float = Param(
            3e-4, ge=0, lt=1, option="--epsilon-cutoff", description="Least probability of a token; 0 keeps all."
        )
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
