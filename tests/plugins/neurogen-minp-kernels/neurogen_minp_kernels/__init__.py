"""The neurogen sampler `minp` (Nguyen et al., 2024, "Turning Up the Heat: Min-p Sampling"), with kernels of its own."""

import neurogen


class MinP(neurogen.Sampler):
    """Draws from tokens at least `min_p` times as probable as the best one."""

    name = "minp"
    api_version = 1
    backends = {"cpu": "neurogen_minp_kernels.cpu", "cuda": "neurogen_minp_kernels.cuda"}

    class Params(neurogen.SamplerParams):
        min_p: float = neurogen.Param(0.1, ge=0, le=1, description="Least probability, as a share of the largest.")
        temperature: float = neurogen.Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")


@neurogen.hookimpl
def neurogen_samplers():
    return [MinP]
