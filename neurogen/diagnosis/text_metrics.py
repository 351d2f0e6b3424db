"""Measures of generated texts: diversity, repetition, likeness to references. Pure functions of tokens and texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

__all__ = ["distinct", "is_right", "ngrams", "repeated", "self_bleu"]


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(samples: Sequence[Sequence[int]], n: int) -> tuple[int, int]:
    """Different n-grams among all of several samples, and how many there are (distinct-n, Li et al., 2016, "A
    Diversity-Promoting Objective Function for Neural Conversation Models")."""
    everything = [gram for sample in samples for gram in ngrams(sample, n)]
    return len(set(everything)), len(everything)


def repeated(tokens: Sequence[int], n: int = 4) -> tuple[int, int]:
    """n-grams that occurred before in the same sample, and how many there are (seq-rep-n, Welleck et al., 2020, "Neural
    Text Generation with Unlikelihood Training")."""
    grams = ngrams(tokens, n)
    return len(grams) - len(set(grams)), len(grams)


def self_bleu(texts: Sequence[str]) -> float | None:
    """How alike several texts are, 0 to 100: the mean BLEU of each with the others as references (Zhu et al., 2018,
    "Texygen"), by sacrebleu with its effective order for short texts; None for fewer than two."""
    if len(texts) < 2:
        return None
    bleu = BLEU(effective_order=True)
    others = ([text for j, text in enumerate(texts) if j != i] for i in range(len(texts)))
    scores = [bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)]
    return sum(scores) / len(scores)


def is_right(text: str, references: Sequence[str]) -> bool:
    """Whether a text holds one of the references, as whole words; case, accents' spelling and punctuation apart."""
    words = f" {_normal(text)} "
    return any(f" {_normal(reference)} " in words for reference in references)


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
