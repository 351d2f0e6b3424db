"""Exclude top choices (XTC): the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, Sampler, SamplerParams


class XTC(Sampler):
    """With a chance, removes all tokens of at least a probability but the least probable of them (p-e-w, 2024, "Exclude
    Top Choices", https://github.com/oobabooga/text-generation-webui/pull/6335).
    """

    name = "xtc"
    api_version = 1
    truncates = False
    backends = {"cpu": "neurogen_xtc.cpu", "cuda": "neurogen_xtc.cuda"}
    reference = "neurogen_xtc.reference"

    class Params(SamplerParams):
        threshold: float = Param(
            0.1, gt=0, le=1, option="--xtc-threshold", description="Probability from which a token is a top choice."
        )
        probability: float = Param(
            0.5, ge=0, le=1, option="--xtc-probability", description="Chance that top choices are removed; 0 is never."
        )
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")
