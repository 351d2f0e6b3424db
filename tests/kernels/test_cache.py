"""Machine code on disk is never another kernel's, whatever processes do at once and wherever they are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from neurogen.kernels.cpu_cache import _KernelCache, _KernelFiles


def files(folder: Path, stamp: object = "one") -> _KernelFiles:
    return _KernelFiles(cache_path=str(folder), filename_base="kernel", source_stamp=stamp)


def test_two_processes_that_compile_at_once_do_not_mistake_each_others_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked for a free place before either writes: what Numba's own files get wrong."""
    both_looked = threading.Barrier(2)
    write = _KernelFiles._save_data

    def slowly(self: Any, name: str, data: Any) -> None:
        both_looked.wait(10)
        write(self, name, data)

    monkeypatch.setattr(_KernelFiles, "_save_data", slowly)
    threads = [threading.Thread(target=files(tmp_path).save, args=(key, f"code of {key}")) for key in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [files(tmp_path).load(key) for key in "ab"] == ["code of a", "code of b"]


def test_code_of_an_older_toolkit_is_not_found(tmp_path: Path) -> None:
    files(tmp_path, "older").save("a", "older code")
    assert files(tmp_path).load("a") is None
    files(tmp_path).save("a", "code")
    assert (files(tmp_path).load("a"), files(tmp_path, "older").load("a")) == ("code", "older code")


def test_a_file_that_is_cut_short_or_empty_is_none(tmp_path: Path) -> None:
    files(tmp_path).save("a", "code" * 1000)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for length in (0, 10, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert files(tmp_path).load("a") is None


def test_every_kernel_uses_these_files() -> None:
    from neurogen_topk.cpu import sample

    dtypes = (torch.int64, torch.float64, torch.int64, torch.int64, torch.int64)  # k, temperature, seed, position, ids
    cache = sample.kernel.form(torch.float32, [torch.zeros(1, dtype=dtype) for dtype in dtypes])._cache
    assert isinstance(cache, _KernelCache)
    assert isinstance(cache._cache_file, _KernelFiles)


ONE_OF_TWO = """
import sys
import torch
from neurogen import RowParams
from neurogen.kernels.cpu import heavier, largest, truncation

def few(row, amount):
    return largest(row, 2)

def likely(row, amount):
    return heavier(row, amount)

calls = {"few": truncation(few, "amount"), "likely": truncation(likely, "amount")}
logits = torch.arange(300.0).mul(0.01).repeat(40, 1)
rows = RowParams(amount=torch.full((40,), 0.01, dtype=torch.float64), temperature=torch.ones(40, dtype=torch.float64))
for name in sys.argv[1:]:
    print(calls[name].sample(logits, torch.arange(40), torch.zeros(40, dtype=torch.int64), rows).tolist())
"""


def test_kernels_that_two_processes_have_kept_do_not_take_each_others_functions(tmp_path: Path) -> None:
    """Both number their functions alike, unless they are told not to; a third process loads what both have kept."""
    script = tmp_path / "one_of_two.py"
    script.write_text(ONE_OF_TWO)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def tokens(*names: str) -> list[str]:
        command = [sys.executable, str(script), *names]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    few, likely = tokens("few"), tokens("likely")
    assert few != likely
    assert tokens("few", "likely") == few + likely
    assert tokens("likely", "few") == likely + few
