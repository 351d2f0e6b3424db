"""llama.cpp's sampler chain as a peer, through llama-cpp-python (extra `bench`). Imported only where that is installed.

The chain works on an array of (id, logit, p), which llama.cpp fills anew for every token; so does this. The temperature
stands first, as everywhere in neurogen; llama.cpp's own default order puts it last, which keeps another nucleus. With
top-k alone the order makes no difference, so the temperature then stands where it costs least.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from neurogen.bench.rule import Rule

__all__ = ["LlamaSamplers"]

TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
SEED = 1


class LlamaSamplers:
    """Draws one token for logits [1, vocab] on the CPU.

    Args:
        rule: what to do.
    """

    def __init__(self, rule: Rule) -> None:
        self._chain: Any = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        weakref.finalize(self, llama_cpp.llama_sampler_free, self._chain)
        for sampler in _samplers(rule):
            llama_cpp.llama_sampler_chain_add(self._chain, sampler)
        self._blank = np.empty(0, TOKEN_DATA)
        self._tokens = np.empty(0, TOKEN_DATA)

    def __call__(self, logits: Tensor) -> Tensor:
        """int64 [1], the id."""
        vocab = logits.shape[1]
        if len(self._blank) != vocab:
            self._blank, self._tokens = np.zeros(vocab, TOKEN_DATA), np.empty(vocab, TOKEN_DATA)
            self._blank["id"] = np.arange(vocab)
        tokens = self._tokens
        tokens.view(np.uint8)[:] = self._blank.view(np.uint8)  # as bytes: NumPy copies records field by field
        tokens["logit"] = logits[0].float().numpy()
        data = ctypes.cast(tokens.ctypes.data, llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data=data, size=vocab, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return torch.tensor([array.data[array.selected].id])


def _samplers(rule: Rule) -> list[Any]:
    """The links of the chain, in order."""
    if rule.temperature == 0:
        return [llama_cpp.llama_sampler_init_greedy()]
    temperature, draw = llama_cpp.llama_sampler_init_temp(rule.temperature), llama_cpp.llama_sampler_init_dist(SEED)
    if rule.k > 0:
        return [llama_cpp.llama_sampler_init_top_k(min(rule.k, 2**31 - 1)), temperature, draw]
    if rule.p < 1:
        return [temperature, llama_cpp.llama_sampler_init_top_p(rule.p, 1), draw]
    if rule.min_p > 0:
        return [temperature, llama_cpp.llama_sampler_init_min_p(rule.min_p, 1), draw]
    return [temperature, draw]
