"""The neurogen sampler `cooling`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import neurogen

if TYPE_CHECKING:  # torch is not loaded to list samplers
    from torch import Tensor


class Cooling(neurogen.Sampler):
    """Draws at a temperature that falls with every token of a sequence."""

    name = "cooling"
    api_version = 1
    stateful = True
    truncates = False
    backends = {"cpu": "neurogen.kernels.temperature.cpu", "cuda": "neurogen.kernels.temperature.cuda"}
    reference = "neurogen_cooling.reference"

    class Params(neurogen.SamplerParams):
        cooling: float = neurogen.Param(0.98, gt=0, le=1, description="Factor of the temperature with every token.")
        temperature: float = neurogen.Param(1.0, ge=0, description="Of the first token; 0 is greedy.")

    def new_state(self, batch: int) -> neurogen.State:
        """{"heat": float64 [batch]}: the share of the temperature that is left, 1 at the start."""
        import torch

        return {"heat": torch.ones(batch, dtype=torch.float64)}

    def _sample(
        self, logits: Tensor, seed: Tensor, position: Tensor, params: neurogen.RowParams, *state: neurogen.State
    ) -> Tensor:
        (memory,) = state
        ids = super()._sample(logits, seed, position, self._cooled(params, memory))
        memory["heat"] *= params.cooling
        return ids

    def _probs(self, logits: Tensor, params: neurogen.RowParams, *state: neurogen.State) -> Tensor:
        return super()._probs(logits, self._cooled(params, *state))

    def _support(self, logits: Tensor, params: neurogen.RowParams, *state: neurogen.State) -> Tensor:
        return super()._support(logits, self._cooled(params, *state))

    def _cooled(self, params: neurogen.RowParams, *state: neurogen.State) -> neurogen.RowParams:
        """The parameters with the temperature of the next token; without a memory, of the first."""
        heat = state[0]["heat"] if state else 1.0
        return neurogen.RowParams(temperature=params.temperature * heat)


@neurogen.hookimpl
def neurogen_samplers() -> list[type[neurogen.Sampler]]:
    return [Cooling]
