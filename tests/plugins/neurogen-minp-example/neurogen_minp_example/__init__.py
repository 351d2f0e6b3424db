"""The neurogen sampler `minp-example`."""

import neurogen


class MinP(neurogen.TruncationSampler):
    """Draws from tokens at least `min_p` times as probable as the best one (Nguyen et al., 2024, "Turning Up the Heat:
    Min-p Sampling for Creative and Coherent LLM Outputs").
    """

    name = "minp-example"
    api_version = 1

    class Params(neurogen.SamplerParams):
        min_p: float = neurogen.Param(0.1, ge=0, le=1, description="Least probability, as a share of the largest.")
        temperature: float = neurogen.Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")

    def keep(self, logits, params):
        below_best = logits.double() - logits.double().amax(dim=-1, keepdim=True)
        share_of_best = (below_best / params.temperature[:, None]).exp()
        return share_of_best >= params.min_p[:, None]


@neurogen.hookimpl
def neurogen_samplers():
    return [MinP]
