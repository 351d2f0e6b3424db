"""Without the extra `cuda`: a GPU is refused, or left unused, with the line that installs what is missing.

Each test runs in a process in which the modules of the extra cannot be imported, as where they are not installed. There
is no GPU to be had here: torch is told that it has one, and its logits are fake tensors on it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = """
import importlib.abc
import sys

sys.meta_path = [finder for finder in sys.meta_path if type(finder).__name__ != "NumbaCudaFinder"]


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("numba_cuda", "cuda"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Absent())

import torch

torch.cuda.is_available = lambda: HAS_GPU
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_name = lambda index=0: "Some GPU"

import neurogen
from neurogen.contract.cuda_extra import MissingExtraError


def refused(call):
    try:
        call()
    except MissingExtraError as error:
        return str(error)
    raise AssertionError("accepted")
"""
INSTALL = "`pip install 'neurogen[cuda]'`"


def without_the_extra(program: str, *, gpu: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program where the extra is not installed, with or without a GPU of torch's."""
    whole = ABSENT.replace("HAS_GPU", str(gpu)) + program
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


WITHOUT_COMPILERS = """
import cuda.pathfinder

found = cuda.pathfinder.load_nvidia_dynamic_lib


def load(name):
    if name in ("nvvm", MISSING):
        raise cuda.pathfinder.DynamicLibNotFoundError(f"Failure finding lib{name}.so")
    return found(name)


cuda.pathfinder.load_nvidia_dynamic_lib = load
"""


def without_compilers(program: str, missing: str) -> subprocess.CompletedProcess[str]:
    """Run a program where numba-cuda is installed alone, beside a GPU of torch's."""
    start = (
        ABSENT.partition("import importlib.abc")[0]
        + "import sys\n"
        + WITHOUT_COMPILERS.replace("MISSING", repr(missing))
    )
    rest = ABSENT[ABSENT.index("import torch") :].replace("HAS_GPU", "True")
    done = subprocess.run([sys.executable, "-c", start + rest + program], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def command(*arguments: str) -> str:
    return f"from neurogen.cli.program import main\nsys.exit(main({list(arguments)!r}))\n"


def test_a_call_with_logits_on_a_gpu_says_what_to_install() -> None:
    done = without_the_extra(
        """
from torch._subclasses.fake_tensor import FakeTensorMode


class Own(neurogen.Sampler):
    name, api_version = "own", 1
    backends = {"cuda": "own_kernels"}  # imports Numba's part for CUDA itself


sys.modules["own_kernels"] = None
topk = neurogen.load_sampler("topk")
with FakeTensorMode():
    logits = torch.empty(2, 50, device="cuda")
    for call in (topk.sample, topk.probs, topk.support, neurogen.load_sampler("temperature").sample, Own().sample):
        print(refused(lambda: call(logits)))
print(refused(lambda: __import__("neurogen.kernels.cuda")))
"""
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stdout + done.stderr
    assert set(lines) == {
        f"The kernels for CUDA need numba-cuda and cuda-bindings, which are not installed: {INSTALL}. Or use the CPU."
    }


def test_the_device_cuda_is_refused_before_a_model_is_loaded() -> None:
    program = """
from neurogen.models.language_model import load_model, resolve_device

print(refused(lambda: resolve_device("cuda:0")))
print(refused(lambda: load_model("a model that is nowhere", device="cuda")))
"""
    lines = without_the_extra(program).stdout.splitlines()
    said = (
        f"was asked for, but the kernels for CUDA need numba-cuda and cuda-bindings, which are not installed: {INSTALL}"
    )
    assert lines[0].startswith(f"Device 'cuda:0' {said}")
    assert lines[1].startswith(f"Device 'cuda' {said}")


@pytest.mark.parametrize("name", ["run", "explain", "bench"])
def test_the_command_with_the_device_cuda_says_what_to_install(name: str) -> None:
    rest = ["--vocab", "50"] if name == "bench" else ["--prompt", "Once"]
    sampler = ["greedy"] if name == "bench" else ["-s", "greedy"]
    done = without_the_extra(command(name, *sampler, *rest, "--device", "cuda"))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Device 'cuda' was asked for")
    assert INSTALL in done.stderr


@pytest.mark.parametrize("name", ["run", "explain"])
def test_auto_leaves_the_gpu_and_says_why(name: str) -> None:
    done = without_the_extra(command(name, "-s", "greedy", "--prompt", "Once", "--max-new-tokens", "1"))
    assert done.returncode == 0, done.stderr
    assert "Running on the CPU (auto: Some GPU is there, but the kernels for CUDA need" in done.stderr
    assert INSTALL in done.stderr


def test_auto_without_a_gpu_says_nothing_of_the_extra() -> None:
    done = without_the_extra(command("run", "-s", "greedy", "--prompt", "Once", "--max-new-tokens", "1"), gpu=False)
    assert done.returncode == 0, done.stderr
    assert "neurogen[cuda]" not in done.stderr


@pytest.mark.parametrize("gpu", [True, False])
def test_conformance_skips_the_kernels_for_cuda_with_what_to_install(gpu: bool) -> None:
    done = without_the_extra(command("conformance", "topk", "--quick", "--only", "cuda"), gpu=gpu)
    assert "skipped" in done.stdout, done.stdout + done.stderr
    assert INSTALL in done.stdout
    on_card = without_the_extra(command("conformance", "topk", "--quick", "--device", "cuda"), gpu=gpu)
    assert on_card.returncode == 1
    assert (INSTALL in on_card.stderr) == gpu


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("nvvm", "need nvidia-nvvm, which is not installed"),
        ("nvrtc", "need nvidia-cuda-nvrtc and nvidia-nvvm, which are not installed"),
    ],
)
def test_numba_cuda_without_the_compilers_is_a_missing_extra(missing: str, said: str) -> None:
    pytest.importorskip("cuda.pathfinder", reason=f"the extra cuda is not installed ({INSTALL})")
    program = """
from neurogen.models.language_model import resolve_device

topk = neurogen.load_sampler("topk")
import neurogen_topk.cuda

kernel = neurogen_topk.cuda.sample.kernel
torch.cuda.is_current_stream_capturing = lambda: False
print(refused(lambda: kernel.form(0, torch.float32, torch.int64)))
print(refused(lambda: resolve_device("cuda")))
print(resolve_device("auto"))
"""
    lines = without_compilers(program, missing).stdout.splitlines()
    assert len(lines) == 3
    assert all(f"{said}: {INSTALL}" in line for line in lines), lines
    # Kernels can still be simulated, and their functions be looked at.
    done = without_compilers(
        "torch.cuda.is_available = lambda: False\n"
        + command("conformance", "topk", "--quick", "--only", "cuda", "--only", "arithmetic"),
        missing,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the code for CUDA was not looked at: the kernels for CUDA {said}: {INSTALL}" in done.stdout
    assert "the kernels were run thread by thread on the CPU" in done.stdout


def test_where_the_extra_is_installed_nothing_is_missing() -> None:
    pytest.importorskip("numba_cuda", reason=f"the extra cuda is not installed ({INSTALL})")
    from neurogen.contract.cuda_extra import lacking, require_cuda_extra

    assert lacking() is None
    require_cuda_extra()


def test_every_readme_and_page_that_installs_for_cuda_names_the_extra() -> None:
    root = Path(__file__).resolve().parents[2]
    pages = [root / "docs/index.md", root / "docs/integrations.md", root / "docs/cuda.md", root / "README.md"]
    for page in [*pages, *root.glob("plugins/*/README.md"), root / "integrations/neurogen-vllm/README.md"]:
        assert "[cuda]'" in page.read_text(encoding="utf-8"), page
