"""Top-p (nucleus) sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class TopP(Sampler):
    """Draws from the nucleus (Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration")."""

    name = "topp"
    api_version = 1
    backends = {"cpu": "neurogen_topp.cpu", "cuda": "neurogen_topp.cuda"}
    reference = "neurogen_topp.reference"

    class Params(SamplerParams):
        p: float = Param(0.9, gt=0, le=1, option="--top-p", description="Mass of the tokens to draw from; 1 keeps all.")
        temperature: float = Param(0.8, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
