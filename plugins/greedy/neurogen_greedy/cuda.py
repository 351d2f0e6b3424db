"""Greedy decoding on CUDA. Each kernel reads a row once."""

from __future__ import annotations

from neurogen.kernels.cuda import argmax

__all__ = ["probs", "sample", "support"]

sample, probs, support = argmax()
