"""CPU kernels as processes and threads see them: kept on disk where there is room, safe from threads and after fork."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import neurogen

ROOT = Path(neurogen.__file__).parent
CALLERS = 8
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


class Compiled(NamedTuple):
    """What one process found in the cache, and what it chose."""

    hits: int
    misses: int
    ids: list[int]


def run_script(script: str, *, timeout: float = 120, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sample_in_new_process(packages: Path, before: str = "", **environment: str) -> Compiled:
    """Sample greedily with the packages in a folder, and look at the kernel's cache."""
    script = f"""
        {before}
        import json, torch, neurogen, neurogen_greedy.cpu
        logits = torch.arange(12.0).reshape(2, 6).sin()
        ids = neurogen.load_sampler("greedy").sample(logits).tolist()
        (form,) = neurogen_greedy.cpu.sample.kernel.forms.values()
        stats = form.stats
        files = [neurogen.__file__, neurogen_greedy.__file__]
        print(json.dumps([sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), ids, files]))
    """
    output = run_script(script, cwd=packages, PYTHONPATH=str(packages), **environment)
    hits, misses, ids, files = json.loads(output)
    assert all(Path(file).is_relative_to(packages) for file in files)
    return Compiled(hits, misses, ids)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with a copy of neurogen and neurogen_greedy, whose kernel is compiled soonest."""
    import neurogen_greedy

    for source in (ROOT, Path(neurogen_greedy.__file__).parent):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / "packages" / source.name, ignore=ignored)
    return tmp_path / "packages"


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["numerics.py", "cpu.py"])
def test_machine_code_is_kept_on_disk_until_the_toolkit_changes(packages: Path, tmp_path: Path, changed: str) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert sample_in_new_process(packages, **cache) == Compiled(0, 1, [2, 2])
    assert sample_in_new_process(packages, **cache) == Compiled(1, 0, [2, 2])
    toolkit = packages / "neurogen" / "kernels" / changed
    toolkit.write_text(toolkit.read_text() + "\n# changed\n")
    assert sample_in_new_process(packages, **cache) == Compiled(0, 1, [2, 2])
    assert sample_in_new_process(packages, **cache) == Compiled(1, 0, [2, 2])


@pytest.mark.slow
def test_definitions_that_differ_in_a_constant_alone_have_machine_code_of_their_own(tmp_path: Path) -> None:
    """Constants in the code, of the module, and closed over; made in one process, and read by the next."""
    (tmp_path / "alike.py").write_text(
        textwrap.dedent("""
            from numba.extending import register_jitable
            from neurogen.kernels.cpu import largest, truncation

            SEVEN = 7

            def make(k):
                return truncation(lambda row: largest(row, k))

            @register_jitable
            def helped(row):
                return largest(row, SEVEN)

            ALL = [truncation(lambda row: largest(row, 2)), truncation(lambda row: largest(row, 3)), make(4)]
            ALL.append(truncation(lambda row: helped(row)))
        """)
    )
    script = """
        import torch, alike
        from neurogen import RowParams
        logits, ids = torch.arange(20.0)[None], torch.zeros(1, dtype=torch.int64)
        warm = RowParams(temperature=torch.ones(1, dtype=torch.float64))
        print([int(calls.support(logits, warm).sum()) for calls in alike.ALL])
    """
    here = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for _ in range(2):
        assert run_script(script, **here) == "[2, 3, 4, 7]\n"
    module = tmp_path / "alike.py"
    module.write_text(module.read_text().replace("SEVEN = 7", "SEVEN = 6"))
    assert run_script(script, **here) == "[2, 3, 4, 6]\n"


NO_FOLDER_CAN_BE_WRITTEN = "import tempfile; tempfile.TemporaryFile = lambda **_: open('/dev/null/read-only')"


def test_machine_code_is_read_where_it_cannot_be_written_and_else_made_anew(packages: Path) -> None:
    """An image built with warm kernels and run read-only; then one whose kernels were never run, as another user."""
    assert sample_in_new_process(packages).misses == 1
    assert sample_in_new_process(packages, NO_FOLDER_CAN_BE_WRITTEN) == Compiled(1, 0, [2, 2])
    for file in packages.glob("neurogen/kernels/__pycache__/*.nbc"):
        file.unlink()
    assert sample_in_new_process(packages, NO_FOLDER_CAN_BE_WRITTEN) == Compiled(0, 1, [2, 2])
    assert not list(packages.glob("neurogen/kernels/__pycache__/*.nbc"))


def test_kernels_run_where_numba_finds_no_place_for_a_cache(packages: Path) -> None:
    assert sample_in_new_process(packages, NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator").ids == [2, 2]


@pytest.fixture
def many_threads(monkeypatch: pytest.MonkeyPatch) -> object:
    """torch as on a machine with more cores, and threads that cost little, so that every call splits its batch."""
    monkeypatch.setattr("neurogen.kernels.cpu_threads.WORK_PER_THREAD", 1 << 15)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def flush_subnormals() -> Iterator[Callable[[], None]]:
    """Lets a test set its own thread, and no other, to take subnormal numbers for 0."""

    def flush() -> None:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush subnormal numbers")

    yield flush
    torch.set_flush_denormal(False)


def subnormal_rows(dtype: str) -> torch.Tensor:
    """Eight equal rows that a call splits over threads: zeros, subnormals, the least normal numbers, many of each."""
    smallest = 2.0**-24 if dtype == "float16" else 2.0**-129
    steps = torch.randint(-20, 21, (40_000,), generator=torch.Generator().manual_seed(4))
    return (steps * smallest).to(getattr(torch, dtype)).expand(8, -1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("greedy", {}),
        ("topk", {"k": 100, "temperature": 1.0}),
        ("topk", {"k": 100, "temperature": 5e-324}),
        ("topp", {"p": 0.01, "temperature": 1.0}),
        ("topp", {"p": 0.5, "temperature": 1e-38}),
    ],
    ids=str,
)
def test_equal_rows_give_equal_ids_where_one_thread_takes_subnormal_numbers_for_zero(
    many_threads: object, flush_subnormals: Callable[[], None], name: str, params: dict[str, float], dtype: str
) -> None:
    sampler, logits = neurogen.load_sampler(name, **params), subnormal_rows(dtype)
    ids, support = sampler.sample(logits, seed=3).tolist(), sampler.support(logits)
    assert logits[0, ids[0]] > 0
    flush_subnormals()
    assert sampler.sample(logits, seed=3).tolist() == ids == [ids[0]] * 8
    assert sampler.support(logits).equal(support)


@pytest.mark.parametrize(("name", "dtype"), [("greedy", "float32"), ("topk", "float32"), ("topp", "bfloat16")])
def test_calls_from_many_threads_give_the_ids_of_serial_calls(many_threads: object, name: str, dtype: str) -> None:
    sampler = neurogen.load_sampler(name)
    batches = [
        (torch.randn(4 + caller % 3, 40_000, generator=torch.Generator().manual_seed(caller)) * 3).to(
            getattr(torch, dtype)
        )
        for caller in range(CALLERS)
    ]

    def ids_of(call: int) -> list[int]:
        return sampler.sample(batches[call % CALLERS], seed=call, position=3).tolist()

    calls = range(CALLERS * 5)
    serial = [ids_of(call) for call in calls]
    with ThreadPoolExecutor(CALLERS) as pool:
        assert list(pool.map(ids_of, calls)) == serial
    assert len({tuple(ids) for ids in serial}) > 1


SETUP = """
import os
import torch
import neurogen

from neurogen.kernels import cpu_threads
cpu_threads.WORK_PER_THREAD = 1 << 15
torch.set_num_threads(4)
logits = torch.randn(6, 40_000, generator=torch.Generator().manual_seed(1)) * 3
sampler = neurogen.load_sampler("topk", k=50, temperature=1.0)
expected = sampler.sample(logits, seed=torch.arange(6), position=3).tolist()
assert cpu_threads._jobs is not None, "the batch was not split: this shows nothing"
"""


def test_a_process_that_ends_right_behind_a_call_ends_well() -> None:
    """A helping thread that wakes up when the interpreter is being torn down would abort it."""
    for _ in range(5):
        assert run_script(SETUP + "for _ in range(20): sampler.sample(logits)\nprint('done')") == "done\n"


@needs_fork
def test_child_of_a_fork_samples_like_its_parent() -> None:
    script = SETUP + textwrap.dedent("""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if sampler.sample(logits, seed=torch.arange(6), position=3).tolist() == expected else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert sampler.sample(logits, seed=torch.arange(6), position=3).tolist() == expected
        print("child", os.waitstatus_to_exitcode(status))
    """)
    assert run_script(script, timeout=60) == "child 0\n"


@needs_fork
def test_forked_worker_of_a_data_loader_samples_like_its_parent() -> None:
    script = SETUP + textwrap.dedent("""
        from torch.utils.data import DataLoader, Dataset

        class Samples(Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                assert torch.utils.data.get_worker_info() is not None
                return sampler.sample(logits, seed=torch.arange(6), position=3)

        loader = DataLoader(Samples(), batch_size=3, num_workers=1, multiprocessing_context="fork")
        (batch,) = loader
        assert batch.tolist() == [expected] * 3, batch
        print("equal")
    """)
    assert run_script(script, timeout=60) == "equal\n"
