"""Entropy-based dynamic temperature: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Param, ParameterError, Sampler, SamplerParams


class DynaTemp(Sampler):
    """Draws at a temperature between two that follows the entropy of the row (kalomaze, 2023,
    https://github.com/ggml-org/llama.cpp/pull/4972).
    """

    name = "dynatemp"
    api_version = 1
    truncates = False
    backends = {"cpu": "neurogen_dynatemp.cpu", "cuda": "neurogen_dynatemp.cuda"}
    reference = "neurogen_dynatemp.reference"

    class Params(SamplerParams):
        min_temperature: float = Param(0.5, ge=0, description="Temperature of a row with one sure token.")
        max_temperature: float = Param(1.5, ge=0, description="Temperature of a row of equal logits.")
        exponent: float = Param(
            1.0, ge=0, option="--temperature-exponent", description="Above 1 stays longer near the least temperature."
        )

        def check_together(self) -> None:
            if self.min_temperature > self.max_temperature:
                raise ParameterError(
                    f"min_temperature must be at most max_temperature, got {self.min_temperature:g} and "
                    f"{self.max_temperature:g}.",
                    "min_temperature",
                )
