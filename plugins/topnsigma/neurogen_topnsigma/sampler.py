"""Top-n-sigma sampling: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class TopNSigma(Sampler):
    """Draws from tokens whose logit is at most n standard deviations below the largest (Tang et al., 2024, "Top-nsigma:
    Not All Logits Are You Need").
    """

    name = "topnsigma"
    api_version = 1
    backends = {"cpu": "neurogen_topnsigma.cpu", "cuda": "neurogen_topnsigma.cuda"}
    reference = "neurogen_topnsigma.reference"

    class Params(SamplerParams):
        n: float = Param(1.0, ge=0, option="--n-sigma", description="Deviations below the largest logit; 0 keeps all.")
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
