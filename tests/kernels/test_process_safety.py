"""Samplers called from many threads and forked in the middle of that, beside each of Numba's threading layers.

Each test is a process of its own, whose threads hold the recorded tokens against every sampler. That process runs a
parallel Numba function first, so that the layer is in use: `workqueue` aborts when two threads call one at once, and
GNU OpenMP when a forked child does. Whoever writes a kernel that uses the layer sees it here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

LAYERS = ("workqueue", "omp", "tbb")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

START = """
import os, sys, threading, time
import numba, numpy as np, torch

@numba.njit(parallel=True)
def parallel_sum(x):
    total = 0
    for i in numba.prange(len(x)):
        total += x[i]
    return total
"""

WORK = """
from neurogen.testing import recorded

numba.set_num_threads(2 if numba.config.NUMBA_NUM_THREADS > 1 else 1)
assert parallel_sum(np.arange(1000)) == 499500
torch.set_num_threads(4)  # every call of more than one row may be split
cases = recorded.load_cases()
rng = np.random.default_rng(0)
vocabs = np.array([row.vocab for row in cases.rows])[cases.row]
orders = [rng.choice(np.flatnonzero((vocabs > 1000) & (vocabs < 40_000)), 300, replace=False) for _ in range(6)]
wrong = []

def check(order):
    differences = recorded.check_recorded("cpu", order=order, logits_a_call=1 << 18)
    wrong.extend(map(str, differences))

check(orders[0])  # compiles
threads = [threading.Thread(target=check, args=(order,)) for order in orders]
"""

CALL_FROM_THREADS = """
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong[:3]
print(numba.threading_layer(), "equal")
"""

FORK_WHILE_SAMPLING = """
for thread in threads:
    thread.start()
children = []
for order in orders[:3]:
    time.sleep(0.1)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            wrong.clear()
            check(order)
            code = 2 if wrong else 0
        finally:
            os._exit(code)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
for thread in threads:
    thread.join()
assert not wrong, wrong[:3]
print(numba.threading_layer(), codes)
"""

FORK_IN_A_FORK = """
def check_in_child(depth):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        check(orders[depth])
        code = 2 if wrong else (check_in_child(depth - 1) if depth else 0)
    finally:
        os._exit(code)

code = check_in_child(2)
check(orders[3])
assert not wrong, wrong[:3]
print(numba.threading_layer(), code)
"""

FORK_AFTER_TORCH_USED_ITS_THREADS = """
import signal
import neurogen

torch.set_num_threads(4)
wide = torch.randn(6, 200_007, generator=torch.Generator().manual_seed(1))
arrangements = (wide, wide[:, 3:-4], wide[:, 1::3], wide.bfloat16()[:, ::2], wide.t().contiguous().t())
samplers = [neurogen.load_sampler(name) for name in ("greedy", "topk", "topp")]

def all_calls():
    for sampler in samplers:
        for rows in arrangements:
            yield sampler.sample(rows, seed=3).sum().item()
            yield sampler.probs(rows).numpy().argmax(axis=-1).tolist()
            yield sampler.support(rows).numpy().sum(axis=-1).tolist()

expected = list(all_calls())
torch.randn(4_000_000).exp()
child = os.fork()
if child == 0:
    signal.alarm(100)
    os._exit(0 if list(all_calls()) == expected else 2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_script(script: str, layer: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"NUMBA_THREADING_LAYER": layer},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module", params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    """A threading layer that Numba can load here."""
    done = run_script(START + "parallel_sum(np.arange(9)); print(numba.threading_layer())", request.param)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        pytest.skip(f"Numba cannot load the threading layer {request.param}: {textwrap.shorten(reason, 150)}")
    assert done.stdout.strip() == request.param
    return str(request.param)


def assert_prints(expected: str, script: str, layer: str) -> None:
    done = run_script(START + WORK + script, layer)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{layer} {expected}\n"


@pytest.mark.slow
def test_many_threads_choose_the_recorded_tokens(layer: str) -> None:
    assert_prints("equal", CALL_FROM_THREADS, layer)


@needs_fork
@pytest.mark.slow
def test_children_forked_while_threads_sample_choose_the_recorded_tokens(layer: str) -> None:
    assert_prints("[0, 0, 0]", FORK_WHILE_SAMPLING, layer)


@needs_fork
@pytest.mark.slow
def test_the_child_of_a_child_chooses_the_recorded_tokens(layer: str) -> None:
    assert_prints("0", FORK_IN_A_FORK, layer)


@needs_fork
def test_a_child_samples_where_torchs_own_threads_would_hang() -> None:
    """torch's parallel operations wait for ever in a child whose parent has used them: no sampler of ours needs any."""
    done = run_script(START + FORK_AFTER_TORCH_USED_ITS_THREADS, "workqueue")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "0\n"
