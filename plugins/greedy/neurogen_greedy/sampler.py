"""Greedy decoding: the declaration. The kernels are in `cpu` and `cuda`."""

from __future__ import annotations

from neurogen import Sampler


class Greedy(Sampler):
    """Chooses the largest logit, the lowest id among equals: what a training step measures with."""

    name = "greedy"
    api_version = 1
    deterministic = True
    backends = {"cpu": "neurogen_greedy.cpu", "cuda": "neurogen_greedy.cuda"}
    reference = "neurogen_greedy.reference"
