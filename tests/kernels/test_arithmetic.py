"""Arithmetic that rounds differently from one device to another is found in kernels, with its line and what to use."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import inexact_kernels
import pytest
import torch

import neurogen
from neurogen.kernels import cpu
from neurogen.kernels.arithmetic import inexact_calls, inexact_code
from neurogen.testing.conformance import check

FOUND = {
    "exp": ("math.exp(-share)", "math.exp", "numerics.two_to(x * 1.4426950408889634), for x <= 0"),
    "helper": ("return raised(x) / 2", "math.exp", "numerics.two_to"),
    "local_name": ("f = math.log", "math.log", "numerics.log2_of(x) * 0.69"),
    "numpys": ("np.tanh(share)", "np.tanh", "which docs/kernels.md explains"),
    "power": ("share**0.5", "**", "products"),
    "power_of_two": ("2 ** -entropy(row)", "**", "numerics.two_to"),
    "squares": ("share**2 / 4", "**", "products"),
    "built_in": ("pow(share, 0.5)", "pow", "products"),
    "of_operator": ("operator.pow", "pow", "products"),
}
"""Definition -> a part of its line, what is found there, and what to use."""


def line_of(code: str) -> int:
    lines = inspect.getsource(inexact_kernels).splitlines()
    return next(number for number, line in enumerate(lines, 1) if code in line)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", FOUND)
def test_what_rounds_differently_is_found_with_its_line_and_what_to_use(name: str, target: str) -> None:
    kit = cpu if target == "cpu" else pytest.importorskip("neurogen.kernels.cuda")
    code, what, instead = FOUND[name]
    for call in kit.truncation(inexact_kernels.definitions(kit)[name], "share"):
        (found,) = inexact_calls(call.kernel.function)
        assert found.what == what
        assert f"inexact_kernels.py, line {line_of(code)}: `" in found.place
        assert instead in str(found)


def test_what_rounds_alike_is_not_found() -> None:
    assert (
        inexact_calls(cpu.truncation(inexact_kernels.definitions(cpu)["exact"], "share").sample.kernel.function) == []
    )


def test_a_temperature_of_its_own_is_looked_at_too() -> None:
    calls = cpu.truncation(
        lambda row, share: cpu.everything(row),
        "share",
        temper=inexact_kernels.definitions(cpu)["exp"],
    )
    assert [found.what for found in inexact_calls(calls.sample.kernel.function)] == ["math.exp"]


@pytest.mark.slow
def test_the_code_for_cuda_shows_what_rounds_differently() -> None:
    cuda = pytest.importorskip("neurogen.kernels.cuda")
    compiling = pytest.importorskip("neurogen.kernels.cuda_compile")
    number, whole = torch.float64, torch.int64
    found = {}
    for name in ("exp", "helper", "numpys", "power", "fused", "exact", "squares"):
        kernel = cuda.truncation(inexact_kernels.definitions(cuda)[name], "share").sample.kernel
        llvm = compiling.llvm_of(kernel, torch.float32, (number, number, whole, whole, whole), (9, 0))
        found[name] = [(one.what, one.place) for one in inexact_code(kernel.function, llvm)]
    assert [[what for what, _ in several] for several in found.values()] == [
        ["exp"],
        ["exp"],
        ["tanh"],
        ["pow"],
        ["a product that is added to something"],
        [],
        ["pow"],
    ]
    assert f"fused (tests/helpers/inexact_kernels.py, line {line_of('def fused')})" in found["fused"][0][1]
    assert "inner (" in found["helper"][0][1]


@pytest.mark.parametrize("plugin", [plugin.name for plugin in neurogen.Registry(disabled=()).plugins()])
def test_samplers_that_come_along_compute_what_rounds_alike(plugin: str) -> None:
    for module in neurogen.load_sampler(plugin).backends.values():
        backend = importlib.import_module(module)
        calls: Any = getattr(backend, "kernels", backend)
        for name in ("sample", "probs", "support"):
            assert inexact_calls(getattr(calls, name).kernel.function) == []


def test_conformance_says_so_in_words() -> None:
    import wrong_samplers

    failure = check(wrong_samplers.ExpInKernels, quick=True, only=["arithmetic"])["arithmetic"].failure
    assert failure is not None
    assert "inexact_kernels.py, line " in failure.got
    assert "gives other bits on CUDA than on a CPU. Use numerics.two_to" in failure.got
