"""Samplers that fail, for tests: at once, and once the vocabulary is a real one."""

from typing import Any

import torch

import neurogen


class Failing(neurogen.Sampler):
    """Fails at every call."""

    name = "failing"
    api_version = 1

    def _sample(self, logits: torch.Tensor, seed: Any, position: Any, params: Any, *state: Any) -> torch.Tensor:
        """Fail."""
        raise RuntimeError("this sampler is broken")

    def _probs(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        """Fail."""
        raise RuntimeError("this sampler is broken")

    _support = _probs


class Later(Failing):
    """Fails where the vocabulary is large."""

    name = "later"

    def _sample(self, logits: torch.Tensor, seed: Any, position: Any, params: Any, *state: Any) -> torch.Tensor:
        """Choose from a small vocabulary."""
        if logits.shape[1] > 100:
            raise RuntimeError("this vocabulary is too large")
        return logits.argmax(dim=1)


@neurogen.hookimpl
def neurogen_samplers() -> list[type[neurogen.Sampler]]:
    """Both."""
    return [Failing, Later]
