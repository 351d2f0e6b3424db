"""The charts of a diagnosis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from neurogen.diagnosis.verdict import percent
from neurogen.diagnosis.weights import TensorHealth
from neurogen.pages.charts import DOT, Axis, Plot, round_values

__all__ = ["confidence_chart", "position_chart", "rank_chart", "share_chart", "weights_chart"]

SHARE_BINS = 20
POSITION_BINS = 32
RANK_EDGES = (1, 2, 6, 11, 51, 101, 1001, 10001)
TRUNCATED = 50
"""Ranks beyond this are out of reach for top-k as it is usually set."""

LEAST_RMS = 1e-30
NEARLY_ZERO = 1e-6

Floats = NDArray[np.float64]


def share_chart(values: Floats, title: str) -> Markup:
    """A histogram of numbers in [0, 1]."""
    counts, edges = np.histogram(values, bins=SHARE_BINS, range=(0, 1))
    shares = counts / max(len(values), 1)
    plot = Plot(_unit_axis(title), _share_axis(float(shares.max())), f"Histogram of {title}")
    for share, left, right in zip(shares, edges, edges[1:], strict=False):
        if share:
            plot.bar(left, right, share, f"{title} {left:.2f} to {right:.2f}: {percent(share)} of positions")
    return plot.svg()


def rank_chart(ranks: Floats, vocab_size: int) -> Markup:
    """How often the right token stands where in the model's order, in bins that grow."""
    edges = [edge for edge in RANK_EDGES if edge <= vocab_size]
    counts = np.histogram(ranks, bins=[*edges, np.inf])[0]
    shares = counts / max(len(ranks), 1)
    labels = [_range_label(low, high) for low, high in zip(edges, [*edges[1:], None], strict=True)]
    ticks = [(index + 0.5, label) for index, label in enumerate(labels)]
    x = Axis(0, len(edges), ticks, "rank of the right token (1 is the top)")
    plot = Plot(x, _share_axis(float(shares.max())), "Histogram of the rank of the right token")
    for index, (low, label, share) in enumerate(zip(edges, labels, shares, strict=True)):
        hint = f"rank {label}: {percent(share)} of positions"
        if share:
            plot.bar(index, index + 1, share, hint, "fill1" if low <= TRUNCATED else "fill2")
    plot.legend([("fill1", "within top 50"), ("fill2", "beyond: top-k 50 never draws it")])
    return plot.svg()


def confidence_chart(bins: Sequence[tuple[int, float, float]]) -> Markup:
    """Reliability: how often the top token is right, against the probability that it was given."""
    plot = Plot(
        _unit_axis("probability of the top token"),
        Axis(0, 1, [(value, percent(value)) for value in (0, 0.25, 0.5, 0.75, 1)], "how often it is right", grid=True),
        "Accuracy by confidence",
    )
    plot.line([(0, 0), (1, 1)], "ideal")
    most = max((count for count, _, _ in bins), default=1)
    plot.line([(top1, right) for _, top1, right in bins], "line1")
    for count, top1, right in bins:
        hint = f"{count:,} positions: given {percent(top1)} on average, right at {percent(right)}"
        plot.dot(top1, right, hint, radius=3 + 6 * math.sqrt(count / most))
    plot.text(0.98, 0.05, "below the line: too certain", "end")
    return plot.svg()


def position_chart(positions: NDArray[np.int64], entropy: Floats, loss: Floats, uniform: float) -> Markup:
    """Entropy and loss along the context: both fall where the model uses what stands before."""
    last = int(positions.max()) + 1
    bins = positions * min(POSITION_BINS, last) // last
    present = [bins == index for index in np.unique(bins)]
    places = [float(positions[members].mean()) for members in present]
    series = [[float(values[members].mean()) for members in present] for values in (entropy, loss)]
    top = max(*series[0], *series[1])
    plot = Plot(
        Axis(0, max(last - 1, 1), [(value, f"{value:,}") for value in round_values(0, last - 1)], "tokens read before"),
        Axis(0, top * 1.05 or 1, [(value, f"{value:g}") for value in round_values(0, top)], "nats", grid=True),
        "Entropy and loss by position in the context",
    )
    for css, name, values in zip(("1", "2"), ("entropy", "loss"), series, strict=True):
        plot.line(zip(places, values, strict=True), f"line{css}")
        for members, place, value in zip(present, places, values, strict=True):
            hint = f"{name} {value:.2f} nats after about {place:,.0f} tokens ({members.sum():,} positions)"
            plot.dot(place, value, hint, f"fill{css}")
    plot.legend([("fill1", "entropy"), ("fill2", f"loss (uniform: {uniform:.1f})")])
    return plot.svg()


def weights_chart(tensors: Sequence[TensorHealth]) -> Markup:
    """RMS of every parameter by layer, on a logarithmic axis; embeddings at the left end, the rest at the right."""
    shown = [tensor for tensor in tensors if tensor.status != "ok" or not tensor.name.endswith("bias")]
    layers = 1 + max((tensor.layer for tensor in shown if tensor.layer is not None), default=0)
    low, high = _decades([tensor.rms for tensor in shown])
    step = max(1, (high - low) // 6)
    ticks = [(float(value), f"{10.0**value:g}") for value in range(low, high + 1, step)]
    gap = max(1.0, 0.1 * layers)  # wide enough for the words below it
    first, last = -gap, layers - 1 + gap
    names = [(first, "embed"), *((value, f"{value:g}") for value in round_values(0, layers - 1)), (last, "head")]
    x = Axis(first - gap / 2, last + gap / 2, names, "layer")
    plot = Plot(x, Axis(low, high, ticks, "RMS", grid=True), "RMS of the weights by layer")
    for role in dict.fromkeys(tensor.role for tensor in shown if tensor.layer is not None):
        peers = [(float(t.layer), _log10(t.rms)) for t in shown if t.role == role and t.layer is not None]
        plot.line(peers, f"peers line{_kind(role)}")
    for tensor in sorted(shown, key=lambda tensor: tensor.status != "ok"):  # rings are not to be covered
        place = float(tensor.layer) if tensor.layer is not None else first if "emb" in tensor.name else last
        hint = f"{tensor.name} {list(tensor.shape)}: RMS {tensor.rms:.3g}" + f" ({tensor.status})" * bool(tensor.reason)
        css, radius = (f"fill{_kind(tensor.name)}", DOT) if tensor.status == "ok" else ("flagged", 2 * DOT)
        plot.dot(place, _log10(tensor.rms), hint, css, radius)
    plot.legend([("fill1", "attention"), ("fill2", "feed-forward"), ("fill3", "norm"), ("fill4", "other")])
    return plot.svg()


KINDS: Sequence[tuple[str, Callable[[str], bool]]] = (
    ("3", lambda name: "norm" in name or ".ln_" in name),
    ("1", lambda name: "attn" in name or "attention" in name),
    ("2", lambda name: any(word in name for word in ("mlp", "ffn", "feed_forward", "expert"))),
)


def _kind(name: str) -> str:
    """The colour of a parameter."""
    return next((css for css, belongs in KINDS if belongs(name.lower())), "4")


def _decades(sizes: Sequence[float]) -> tuple[int, int]:
    """Powers of ten around the sizes; what is zero, or nearly so among larger ones, lies at the lower end."""
    middle = statistics.median(sizes)
    usual = [_log10(size) for size in sizes if size > middle * NEARLY_ZERO] or [0.0]
    low = math.floor(min(usual))
    return low - (len(usual) < len(sizes)), math.floor(max(usual)) + 1


def _log10(size: float) -> float:
    return math.log10(max(size, LEAST_RMS))


def _range_label(low: int, high: int | None) -> str:
    if high is None:
        return f"> {_short(low - 1)}"
    return f"{low}" if high == low + 1 else f"{_short(low)}-{_short(high - 1)}"


def _short(number: int) -> str:
    return f"{number // 1000}k" if number >= 1000 else str(number)


def _unit_axis(title: str) -> Axis:
    return Axis(0, 1, [(value / 5, f"{value / 5:g}") for value in range(6)], title)


def _share_axis(most: float) -> Axis:
    ticks = [(value, percent(value)) for value in round_values(0, most)]
    return Axis(0, max(most * 1.05, 1e-9), ticks, "of positions", grid=True)
