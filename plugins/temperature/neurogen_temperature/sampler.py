"""Plain temperature sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class Temperature(Sampler):
    """Draws from all tokens by probability, softmax(logits / temperature) (Ackley et al., 1985, "A Learning Algorithm
    for Boltzmann Machines").
    """

    name = "temperature"
    api_version = 1
    backends = {"cpu": "neurogen_temperature.cpu", "cuda": "neurogen_temperature.cuda"}
    reference = "neurogen_temperature.reference"

    class Params(SamplerParams):
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
