"""A pytest fixture for authors of samplers: `neurogen_benchmark` measures a sampler beside its peers.

    def test_speed(neurogen_benchmark):
        result = neurogen_benchmark("minp", min_p=0.1, vocab=32000, batch=8)
        assert result.ratio_to("torch") < 3

Pytest loads this module in every environment where neurogen is installed, so it imports nothing heavy until the fixture
is used. Where pytest-benchmark is installed, the sampler's times go there too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from neurogen.bench.results import Result
    from neurogen.sampler import Sampler

__all__ = ["NeurogenBenchmark", "pytest_configure"]

PEERS = ("floor", "torch")


class NeurogenBenchmark:
    """What the fixture `neurogen_benchmark` gives.

    Args:
        benchmark: pytest-benchmark's fixture, or None where that is not installed.
    """

    def __init__(self, benchmark: Any = None) -> None:
        self._benchmark = benchmark

    def __call__(
        self,
        sampler: str | Sampler,
        *,
        vocab: int = 32_000,
        batch: int = 1,
        dtype: str = "float32",
        kind: str = "normal",
        device: str = "cpu",
        peers: Collection[str] = PEERS,
        seconds: float = 0.3,
        **params: Any,
    ) -> Result:
        """Measure a sampler beside its peers, which get the same parameters.

        Args:
            sampler: its name, or the sampler itself.
            vocab, batch, dtype, kind: the logits, as in `neurogen bench`.
            device: "cpu", "cuda", "cuda:N" or "auto".
            peers: some of floor, torch, transformers, llama.cpp, flashinfer.
            seconds: time for the measurement; slow peers take more.
            **params: parameters of the sampler.

        Returns:
            times and ratios: `ratio_to_floor`, `ratio_to("torch")`, `times_faster_than("torch")`, `microseconds`.

        Raises:
            NeurogenError: there is no such sampler, peer or kind of logits, or the sampler fails.
        """
        from neurogen.bench.measure import measure
        from neurogen.models import resolve_device

        chosen = _sampler(sampler, params)
        cell = _cell(kind=kind, dtype=dtype, vocab=vocab, batch=batch)
        target, _ = resolve_device(device)
        result = measure(chosen, cell, device=target, seconds=seconds, peers=peers)
        if self._benchmark is not None:
            self._record(chosen, result, target)
        return result

    def _record(self, sampler: Sampler, result: Result, device: Any) -> None:
        """Let pytest-benchmark measure the sampler too, in a group of the same cell, with the ratios beside."""
        import torch

        from neurogen.bench.logits import make_logits
        from neurogen.bench.measure import draw_of
        from neurogen.files import finite

        logits, source = make_logits(result.cell, device)
        draw = draw_of(sampler, logits)
        self._benchmark.group = f"neurogen {result.cell} {result.device}"
        self._benchmark.extra_info.update(sampler=result.label, logits=source)
        for peer, ratio in result.to_peers.items():
            self._benchmark.extra_info[f"ratio_to_{peer}"] = finite(round(ratio.median, 4))

        def call() -> None:
            draw(logits)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        self._benchmark(call)


class _WithPytestBenchmark:
    @pytest.fixture
    def neurogen_benchmark(self, benchmark: Any) -> NeurogenBenchmark:
        """Measure a sampler beside its peers, once a test, and record its times with pytest-benchmark."""
        return NeurogenBenchmark(benchmark)


class _Alone:
    @pytest.fixture
    def neurogen_benchmark(self) -> NeurogenBenchmark:
        """Measure a sampler beside its peers."""
        return NeurogenBenchmark()


def pytest_configure(config: pytest.Config) -> None:
    """Offer the fixture; its dependence on `benchmark` is declared, so that --benchmark-only and -skip see it."""
    has_benchmark = config.pluginmanager.hasplugin("benchmark")
    config.pluginmanager.register(_WithPytestBenchmark() if has_benchmark else _Alone(), "neurogen-benchmark")


def _sampler(sampler: str | Sampler, params: dict[str, Any]) -> Sampler:
    from neurogen import ParameterError, load_sampler

    if isinstance(sampler, str):
        return load_sampler(sampler, **params)
    if params:
        raise ParameterError(f"{sampler!r} has its parameters already: give {', '.join(params)} when making it.")
    return sampler


def _cell(**values: Any) -> Any:
    """A cell, or an error in words."""
    from pydantic import ValidationError

    from neurogen import ParameterError
    from neurogen.bench.cells import Cell, check_size

    try:
        return check_size(Cell(**values))
    except ValidationError as error:
        first = error.errors()[0]
        raise ParameterError(f"{first['loc'][0]} cannot be {first['input']!r}: {first['msg']}.") from None
