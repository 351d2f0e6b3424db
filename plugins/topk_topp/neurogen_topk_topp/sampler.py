"""Top-p sampling within the k largest logits: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class TopKTopP(Sampler):
    """Draws from the nucleus of the k largest logits (Fan et al., 2018; Holtzman et al., 2020), in one kernel."""

    name = "topk+topp"
    api_version = 1
    backends = {"cpu": "neurogen_topk_topp.cpu", "cuda": "neurogen_topk_topp.cuda"}
    reference = "neurogen_topk_topp.reference"

    class Params(SamplerParams):
        k: int = Param(50, ge=0, option="--top-k", description="Tokens to draw from; 0 keeps all.")
        p: float = Param(0.9, gt=0, le=1, option="--top-p", description="Mass of the tokens to draw from; 1 keeps all.")
        temperature: float = Param(0.8, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
