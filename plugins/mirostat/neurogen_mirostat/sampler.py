"""Mirostat 2: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen import Param, RowParams, Sampler, SamplerParams, State

if TYPE_CHECKING:
    from torch import Tensor


class Mirostat(Sampler):
    """Keeps tokens of a surprise up to mu bits, and moves mu so that those drawn have tau bits on average (Basu et al.,
    2021, "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity"; its second version).

    It has memory, mu of each sequence. Without a state, `probs` and `support` describe the first token of a sequence,
    mu = 2 * tau.
    """

    name = "mirostat"
    api_version = 1
    stateful = True
    truncates = False
    backends = {"cpu": "neurogen_mirostat.cpu", "cuda": "neurogen_mirostat.cuda"}
    reference = "neurogen_mirostat.reference"

    class Params(SamplerParams):
        tau: float = Param(5.0, ge=0, option="--mirostat-tau", description="Wanted surprise of the tokens, in bits.")
        eta: float = Param(0.1, ge=0, option="--mirostat-eta", description="How fast the truncation follows; 0 never.")
        temperature: float = Param(1.0, ge=0, description="Below 1 sharpens, above 1 flattens; 0 is greedy.")

    def new_state(self, batch: int) -> State:
        """{"mu": float64 [batch]}: the largest surprise in bits that is kept, 2 * tau at the start."""
        import torch

        return {"mu": torch.full((batch,), 2.0 * self._tau, dtype=torch.float64)}

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: State) -> Tensor:
        """As in `Sampler`; the kernels' `sample` takes the state after the parameters, and updates mu.

        A state is made before the rows' parameters are known: where a row has a tau of its own, its mu lies higher than
        the state says by twice the difference.
        """
        (memory,) = state
        moved = self._of_rows(memory, params)
        ids = super()._sample(logits, seed, position, params, moved)
        memory["mu"].copy_(moved["mu"] - self._higher(params))
        return ids

    def _probs(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._probs(logits, params, *(self._of_rows(memory, params) for memory in state))

    def _support(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return super()._support(logits, params, *(self._of_rows(memory, params) for memory in state))

    def _of_rows(self, memory: State, params: RowParams) -> State:
        """The memory with every row's own mu."""
        return {"mu": memory["mu"] + self._higher(params)}

    def _higher(self, params: RowParams) -> Tensor:
        higher: Tensor = 2.0 * (params.tau - self._tau)
        return higher

    @property
    def _tau(self) -> float:
        return float(self.params.model_dump()["tau"])
