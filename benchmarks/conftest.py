"""Options of `pytest benchmarks/`, and the grid of cells that they choose."""

from __future__ import annotations

import pytest

from neurogen.bench.cells import BATCHES, DTYPES, KINDS, VOCABS, grid

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell, sampler and peer there is: `topk-torch-normal-float32-v32000-b8`."""
    if "contender" not in metafunc.fixturenames:
        return
    import test_samplers

    from neurogen.models import resolve_device

    device, _ = resolve_device(metafunc.config.getoption("--device"))
    chosen = [
        (name, peer, cell)
        for cell in grid(**GRIDS[metafunc.config.getoption("--grid")])
        for name in test_samplers.SAMPLERS
        for peer in test_samplers.contenders(name, cell, device)
    ]
    ids = [
        f"{name}-{peer}-{cell.kind}-{cell.dtype}-v{cell.vocab}-b{cell.batch}".replace(".", "")
        for name, peer, cell in chosen
    ]
    metafunc.parametrize(("sampler", "contender", "cell"), chosen, ids=ids)
