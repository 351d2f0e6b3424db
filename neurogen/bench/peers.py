"""What a sampler is measured beside, each peer with the sampler's own parameters.

    floor          torch.amax: one read of the logits, which no sampler can go without
    torch          argmax | topk, softmax, multinomial | sort, cumsum, multinomial | softmax, mask, multinomial
    transformers   the warpers that `generate` uses, then softmax and multinomial
    llama.cpp      its sampler chain, where llama-cpp-python is installed; batch 1 on the CPU
    flashinfer     its kernels without sorting, where installed; CUDA

A peer is a function [batch, vocab] -> ids [batch]; it may use any random numbers. For a sampler that is not known, the
matching peers are not known either: torch then draws only with its temperature.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor

from neurogen.bench.results import FLOOR, PEERS
from neurogen.bench.rule import Rule
from neurogen.errors import ParameterError

__all__ = ["TEMPERATURE_ONLY", "Draw", "peers_for", "torch_peer", "transformers_peer"]

Draw = Callable[[Tensor], Tensor]

TEMPERATURE_ONLY = "temperature only: softmax and multinomial"


def peers_for(
    rule: Rule, batch: int, device: torch.device, names: Collection[str] | None = None
) -> dict[str, tuple[Draw, str]]:
    """The peers that there are for a rule, a batch and a device.

    Args:
        rule: what the sampler does.
        batch: rows of the logits.
        device: where they are.
        names: some of PEERS; None is all of them.

    Returns:
        name -> the peer and, where it does not do what the sampler does, what it does.

    Raises:
        ParameterError: an unknown name.
    """
    for name in names or ():
        if name not in PEERS:
            raise ParameterError(f"There is no peer {name!r}; there are: {', '.join(PEERS)}.")
    makers: dict[str, Callable[[], tuple[Draw | None, str]]] = {
        FLOOR: lambda: (_floor, "one read of the logits"),
        "torch": lambda: (torch_peer(rule), "" if rule.exact else TEMPERATURE_ONLY),
        "transformers": lambda: (transformers_peer(rule), ""),
        "llama.cpp": lambda: (_llama_cpp(rule, batch, device), ""),
        "flashinfer": lambda: (_flashinfer(rule, device), ""),
    }
    made = {name: makers[name]() for name in PEERS if names is None or name in names}
    return {name: (draw, note) for name, (draw, note) in made.items() if draw is not None}


def _floor(logits: Tensor) -> Tensor:
    return torch.amax(logits, -1)


def torch_peer(rule: Rule) -> Draw:
    """How one writes the rule with plain torch."""
    if rule.temperature == 0:
        return lambda logits: logits.argmax(-1)
    if rule.k > 0:
        return lambda logits: _torch_topk(logits, rule)
    if rule.p < 1:
        return lambda logits: _torch_topp(logits, rule)
    if rule.min_p > 0:
        return lambda logits: _torch_minp(logits, rule)
    return lambda logits: _drawn(torch.softmax(logits.float() / rule.temperature, -1))


def _drawn(probs: Tensor) -> Tensor:
    return torch.multinomial(probs, 1).squeeze(-1)


def _torch_topk(logits: Tensor, rule: Rule) -> Tensor:
    values, ids = torch.topk(logits, min(rule.k, logits.shape[-1]))
    chosen = torch.multinomial(torch.softmax(values.float() / rule.temperature, -1), 1)
    return ids.gather(-1, chosen).squeeze(-1)


def _torch_topp(logits: Tensor, rule: Rule) -> Tensor:
    values, ids = logits.sort(descending=True)
    probs = torch.softmax(values.float() / rule.temperature, -1)
    probs[probs.cumsum(-1) - probs >= rule.p] = 0
    return ids.gather(-1, torch.multinomial(probs, 1)).squeeze(-1)


def _torch_minp(logits: Tensor, rule: Rule) -> Tensor:
    probs = torch.softmax(logits.float() / rule.temperature, -1)
    probs[probs < rule.min_p * probs.amax(-1, keepdim=True)] = 0
    return _drawn(probs)


def transformers_peer(rule: Rule) -> Draw | None:
    """What `generate(do_sample=True)` does with the logits; None where that is plain torch or does not exist."""
    if rule.temperature == 0 or not rule.exact:
        return None
    from transformers.generation import logits_process as processors

    warpers: list[Any] = []
    if rule.temperature != 1:
        warpers.append(processors.TemperatureLogitsWarper(rule.temperature))
    if rule.k > 0:
        warpers.append(processors.TopKLogitsWarper(rule.k))
    if rule.p < 1:
        warpers.append(processors.TopPLogitsWarper(rule.p))
    if rule.min_p > 0:
        warpers.append(processors.MinPLogitsWarper(rule.min_p))
    warp: Any = processors.LogitsProcessorList(warpers)
    no_ids = torch.empty(0, dtype=torch.int64)  # these warpers do not look at the text

    def draw(logits: Tensor) -> Tensor:
        return _drawn(torch.softmax(warp(no_ids, logits.float()), -1))

    return draw


def _llama_cpp(rule: Rule, batch: int, device: torch.device) -> Draw | None:
    """One row at a time is all that a chain can do, so larger batches would not compare."""
    if not rule.exact or batch != 1 or device.type != "cpu" or not _importable("llama_cpp"):
        return None
    from neurogen.bench.llama_cpp import LlamaSamplers

    return LlamaSamplers(rule)


def _flashinfer(rule: Rule, device: torch.device) -> Draw | None:
    """FlashInfer's kernel, which takes probabilities, so that the softmax is part of it; None for the argmax, which
    FlashInfer leaves to torch.
    """
    usable = rule.exact and rule.temperature != 0 and device.type == "cuda" and _importable("flashinfer")
    if not usable:
        return None
    kernels = importlib.import_module("flashinfer.sampling")

    def draw(logits: Tensor) -> Tensor:
        ids: Tensor = _flashinfer_ids(kernels, torch.softmax(logits.float() / rule.temperature, -1), rule)
        return ids.long()

    return draw


def _flashinfer_ids(kernels: Any, probs: Tensor, rule: Rule) -> Any:
    if rule.k > 0:
        return kernels.top_k_sampling_from_probs(probs, min(rule.k, probs.shape[-1]))
    if rule.p < 1:
        return kernels.top_p_sampling_from_probs(probs, rule.p)
    if rule.min_p > 0:
        return kernels.min_p_sampling_from_probs(probs, rule.min_p)
    return kernels.sampling_from_probs(probs)


@cache
def _importable(package: str) -> bool:
    """Whether it is installed, and whole: both load libraries when they are imported."""
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError):
        return False
    return True
