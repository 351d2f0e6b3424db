"""Greedy decoding on the CPU. Each kernel reads a row once, and again the 128 logits around its largest."""

from __future__ import annotations

from neurogen.kernels.cpu import argmax

__all__ = ["probs", "sample", "support"]

sample, probs, support = argmax()
