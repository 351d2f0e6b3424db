"""Options of `pytest benchmarks/`, and the grid of cells that they choose."""

from __future__ import annotations

import pytest

from neurogen import NeurogenError
from neurogen.bench.cells import BATCHES, DTYPES, KINDS, VOCABS, grid
from neurogen.cli.common import unambiguous_names

GRIDS = {
    "default": {"kinds": ("normal", "real"), "dtypes": DTYPES[:1], "vocabs": VOCABS[:2], "batches": BATCHES[:2]},
    "full": {"kinds": KINDS, "dtypes": DTYPES, "vocabs": VOCABS, "batches": BATCHES},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("neurogen")
    group.addoption(
        "--grid",
        choices=list(GRIDS),
        default="default",
        help="Cells to measure on: a few minutes, or every kind, dtype, vocab and batch (an hour, since peers that "
        "sort take seconds a call).",
    )
    group.addoption("--device", default="cpu", help="Where: cpu, cuda or cuda:N.")
    group.addoption(
        "--sampler",
        action="append",
        metavar="NAME",
        help="Measure this sampler alone, such as minp or 'topk(k=5)+topp'; repeat for several. By default every one "
        "that is installed.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what compares times: they are those of a machine that others use too."""
    if config.getoption("benchmark_compare_fail", None):
        raise pytest.UsageError(
            "--benchmark-compare-fail compares times, which say little here. --neurogen-compare-fail TIMES compares "
            "each sampler's ratio to one read of the logits and to plain torch, measured in the same turns."
        )


def samplers(config: pytest.Config) -> list[str]:
    """Those asked for, or all that are installed and can be loaded."""
    from neurogen.registry.registry import default_registry

    asked: list[str] = config.getoption("--sampler") or []
    try:
        for name in asked:
            default_registry().load_sampler(name)
    except NeurogenError as error:
        raise pytest.UsageError(str(error)) from None
    usable = [plugin for plugin in default_registry().load_all() if plugin.status == "loaded"]
    return asked or unambiguous_names(usable)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell, sampler and peer there is: `topk-torch-normal-float32-v32000-b8`."""
    if "contender" not in metafunc.fixturenames:
        return
    from neurogen.models.language_model import resolve_device

    device, _ = resolve_device(metafunc.config.getoption("--device"))
    chosen = [
        (name, peer, cell)
        for cell in grid(**GRIDS[metafunc.config.getoption("--grid")])
        for name in samplers(metafunc.config)
        for peer in metafunc.module.contenders(name, cell, device)
    ]
    ids = [
        f"{name}-{peer}-{cell.kind}-{cell.dtype}-v{cell.vocab}-b{cell.batch}".replace(".", "")
        for name, peer, cell in chosen
    ]
    metafunc.parametrize(("sampler", "contender", "cell"), chosen, ids=ids)
