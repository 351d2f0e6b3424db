"""Min-p sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class MinP(Sampler):
    """Draws from tokens at least `min_p` times as probable as the best one (Nguyen et al., 2024, "Turning Up the Heat:
    Min-p Sampling for Creative and Coherent LLM Outputs").
    """

    name = "minp"
    api_version = 1
    backends = {"cpu": "neurogen_minp.cpu", "cuda": "neurogen_minp.cuda"}
    reference = "neurogen_minp.reference"

    class Params(SamplerParams):
        min_p: float = Param(0.1, ge=0, le=1, description="Least probability, as a share of the largest; 0 keeps all.")
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
