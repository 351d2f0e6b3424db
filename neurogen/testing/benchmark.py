"""The object of the pytest fixture `neurogen_benchmark`: measures a sampler beside its peers, and compares ratios.

Knows the fixture of pytest-benchmark where there is one, and how to measure from `neurogen.bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from neurogen.bench.cells import Cell, check_size
from neurogen.bench.logits import make_logits
from neurogen.bench.measure import draw_of, measure
from neurogen.bench.results import BenchResult
from neurogen.contract.sampler import Sampler
from neurogen.errors import ParameterError
from neurogen.files import finite
from neurogen.models.language_model import resolve_device
from neurogen.registry.registry import load_sampler

__all__ = ["NeurogenBenchmark", "ratios_held"]

PEERS = ("floor", "torch")
MEASUREMENTS = 4
"""How often a ratio is measured that has grown too much, since a disturbance of the machine often ends meanwhile."""


class NeurogenBenchmark:
    """The object of the fixture `neurogen_benchmark`.

    Args:
        benchmark: pytest-benchmark's fixture, or None where that is not installed.
        config: pytest's, with the options.
    """

    def __init__(self, benchmark: Any = None, config: pytest.Config | None = None) -> None:
        self._benchmark = benchmark
        self._config = config

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
    ) -> BenchResult:
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
        chosen = _sampler(sampler, params)
        cell = _cell(kind=kind, dtype=dtype, vocab=vocab, batch=batch)
        target, _ = resolve_device(device)

        def measured() -> BenchResult:
            return measure(chosen, cell, device=target, seconds=seconds, peers=peers)

        if self._benchmark is None:
            return measured()
        result = ratios_held(self._config, self._benchmark, measured)
        self._record(chosen, result, target)
        return result

    def _record(self, sampler: Sampler, result: BenchResult, device: Any) -> None:
        """Let pytest-benchmark measure the sampler too, in a group of the same cell, with the ratios beside."""
        logits, source = make_logits(result.cell, device)
        draw = draw_of(sampler, logits)
        self._benchmark.group = f"neurogen {result.cell} {result.device}"
        self._benchmark.extra_info.update(sampler=result.label, logits=source)

        def call() -> None:
            draw(logits)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        self._benchmark(call)


def ratios_held(config: pytest.Config | None, benchmark: Any, measured: Callable[[], BenchResult]) -> BenchResult:
    """Measure a sampler beside its peers, and note the ratios for pytest-benchmark to save.

    Args:
        config: pytest's; its option --neurogen-compare-fail says how much a ratio may grow.
        benchmark: pytest-benchmark's fixture.
        measured: measures once.

    Returns:
        the measurement; where the first ones have grown too much, the first that has not.

    Raises:
        pytest.fail.Exception: a ratio has grown too much in every measurement.
    """
    allowed = config.getoption("neurogen_compare_fail") if config is not None else None
    result = measured()
    saved = _saved_ratios(config, benchmark.fullname) if allowed and config is not None else {}
    for _ in range(MEASUREMENTS - 1):
        if not _grown(result, saved, allowed):
            break
        result = measured()
    benchmark.extra_info.update(
        {f"ratio_to_{peer}": finite(round(ratio.median, 4)) for peer, ratio in result.to_peers.items()}
    )
    grown = _grown(result, saved, allowed)
    if grown:
        pytest.fail(
            f"{result.label} has become slower, in {MEASUREMENTS} measurements: {'; '.join(grown)}; "
            f"--neurogen-compare-fail allows {allowed:g} times.",
            pytrace=False,
        )
    return result


def _saved_ratios(config: pytest.Config, fullname: str) -> dict[str, float]:
    """Peer -> ratio in the run that --benchmark-compare names, the smallest where it names several."""
    found: dict[str, float] = {}
    for benchmarks in config._benchmarksession.compared_mapping.values():  # type: ignore[attr-defined]
        for name, value in benchmarks.get(fullname, {}).get("extra_info", {}).items():
            if name.startswith("ratio_to_") and value is not None:
                peer = name.removeprefix("ratio_to_")
                found[peer] = min(value, found.get(peer, value))
    return found


def _grown(result: BenchResult, saved: dict[str, float], allowed: float | None) -> list[str]:
    """The ratios that have grown to more than `allowed` times what they were, in words."""
    return [
        f"{ratio.median:.3g} times {peer}, {saved[peer]:.3g} in the run compared with"
        for peer, ratio in result.to_peers.items()
        if allowed is not None and peer in saved and ratio.median > allowed * saved[peer]
    ]


def _sampler(sampler: str | Sampler, params: dict[str, Any]) -> Sampler:
    if isinstance(sampler, str):
        return load_sampler(sampler, **params)
    if params:
        raise ParameterError(f"{sampler!r} has its parameters already: give {', '.join(params)} when making it.")
    return sampler


def _cell(**values: Any) -> Any:
    """A cell, or an error in words."""
    try:
        return check_size(Cell(**values))
    except ValidationError as error:
        first = error.errors()[0]
        raise ParameterError(f"{first['loc'][0]} cannot be {first['input']!r}: {first['msg']}.") from None
