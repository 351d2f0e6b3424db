"""Top-k sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class TopK(Sampler):
    """Draws from the k largest logits (Fan et al., 2018, "Hierarchical Neural Story Generation")."""

    name = "topk"
    api_version = 1
    backends = {"cpu": "neurogen_topk.cpu", "cuda": "neurogen_topk.cuda"}
    reference = "neurogen_topk.reference"

    class Params(SamplerParams):
        k: int = Param(50, ge=0, option="--top-k", description="Tokens to draw from; 0 keeps all.")
        temperature: float = Param(0.8, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
