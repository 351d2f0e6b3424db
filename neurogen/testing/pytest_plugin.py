"""A pytest fixture for authors of samplers: `neurogen_benchmark` measures a sampler beside its peers.

    def test_speed(neurogen_benchmark):
        result = neurogen_benchmark("minp", min_p=0.1, vocab=32000, batch=8)
        assert result.ratio_to("torch") < 3

Pytest loads this module in every environment where neurogen is installed, so it imports nothing heavy until the fixture
is used. Where pytest-benchmark is installed, the sampler's times go there too, with the ratios beside; and

    pytest --benchmark-compare --neurogen-compare-fail 1.5

fails a test whose ratio to its peers, measured in the same turns, has grown to more than 1.5 times that of the run that
is compared with. Times would say little: they depend on the hour and on other programs of the machine.
"""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that compares ratios."""
    parser.getgroup("neurogen").addoption(
        "--neurogen-compare-fail",
        type=_growth,
        metavar="TIMES",
        help="With --benchmark-compare: fail where a sampler's ratio to its peers has grown to more than TIMES that of "
        "the run compared with.",
    )


def _growth(text: str) -> float:
    value = float(text)
    if not value >= 1:
        raise ValueError(text)
    return value


class _WithPytestBenchmark:
    @pytest.fixture
    def neurogen_benchmark(self, benchmark: Any, pytestconfig: pytest.Config) -> Any:
        """Measure a sampler beside its peers, once a test, and record its times with pytest-benchmark."""
        return _benchmark_module().NeurogenBenchmark(benchmark, pytestconfig)


class _Alone:
    @pytest.fixture
    def neurogen_benchmark(self) -> Any:
        """Measure a sampler beside its peers."""
        return _benchmark_module().NeurogenBenchmark()


def pytest_configure(config: pytest.Config) -> None:
    """Offer the fixture; its dependence on `benchmark` is declared, so that --benchmark-only and -skip see it."""
    has_benchmark = config.pluginmanager.hasplugin("benchmark")
    if config.getoption("neurogen_compare_fail") and not (has_benchmark and config.getoption("benchmark_compare")):
        raise pytest.UsageError("--neurogen-compare-fail compares with a saved run: give --benchmark-compare too.")
    config.pluginmanager.register(_WithPytestBenchmark() if has_benchmark else _Alone(), "neurogen-benchmark")


def _benchmark_module() -> Any:
    from neurogen.testing import benchmark

    return benchmark
