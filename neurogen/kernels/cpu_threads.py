"""A batch of rows over threads, on the CPU.

Not over Numba's threading layer, which cannot be called from several Python threads at once on every platform, nor
after a fork. Every thread claims the next row when it has finished one. The calling thread starts at once and does not
wait for the others to wake up: where they come late, it has done their rows.
"""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable
from torch import Tensor

from neurogen.kernels.cpu_cache import cached
from neurogen.kernels.cpu_kernel import Kernel
from neurogen.kernels.host import check_memory

__all__ = ["next_row", "run"]

WORK_PER_THREAD = 1 << 18
"""Logits times `Kernel.weight`. Below twice this a second thread costs more than it saves: 40 us to wake up."""

CLAIMED, FINISHED, ROWS = 0, 1, 2
"""What stands in the `rows` that a kernel is given, int64 [3]."""

Job = tuple[Any, tuple[Any, ...], Any]
"""A compiled kernel, what it is called with, and what the addresses among that belong to."""


@intrinsic
def _fetch_add(context: Any, counters: Any, index: Any, amount: Any) -> Any:
    """Add to counters[index] atomically, and return what was there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        return builder.atomic_rmw("add", pointer, builder.sext(arguments[2], ir.IntType(64)), "seq_cst")

    return types.int64(types.Array(types.int64, 1, "C"), types.int64, types.int64), generate


@register_jitable
def next_row(rows: Any, finished: Any) -> Any:
    """Claim a row to work on.

    Args:
        rows: what the kernel was given.
        finished: the row that is done, -1 at first.

    Returns:
        A row that no other thread works on, or -1 when all are claimed.
    """
    if finished >= 0:
        _fetch_add(rows, FINISHED, 1)
    row = _fetch_add(rows, CLAIMED, 1)
    return row if row < rows[ROWS] else np.int64(-1)


@cached
def _wait(rows):  # type: ignore[no-untyped-def]
    """Until every row is finished: at most as long as one row takes, since all are claimed."""
    while _fetch_add(rows, FINISHED, 0) < rows[ROWS]:
        pass


def run(kernel: Kernel, logits: Tensor, *tensors: Tensor) -> None:
    """Run a kernel over all rows of `logits`, on as many threads as torch uses and the work is worth.

    Args:
        kernel: made by `kernel`.
        logits: [batch, vocab], float32, float16 or bfloat16, any strides. Rows that are not contiguous are copied.
        *tensors: row parameters and outputs, [batch] or, at the places `kernel.matrices`, [batch, n]; int64, int32,
            float64, float32, bool or uint8. Parameters that are not contiguous are copied.
    """
    batch, vocab = logits.shape
    row_stride = vocab
    if not logits.is_contiguous() or logits.is_neg():
        logits = _with_whole_rows(logits.resolve_neg())
        row_stride = logits.stride(0)
    # With map, which takes half the time of a comprehension: it has no frame of its own.
    arrays = tensors if all(map(Tensor.is_contiguous, tensors)) else tuple(map(Tensor.contiguous, tensors))
    form = kernel.form(logits.dtype, arrays)
    numbers = [logits.data_ptr(), *map(Tensor.data_ptr, arrays)]
    if 0 in numbers:
        check_memory([logits, *arrays])
    if kernel.matrices:
        numbers += [arrays[place].shape[1] for place in kernel.matrices]
    work = int(batch * vocab * kernel.weight)
    helpers = min(batch, work // WORK_PER_THREAD, torch.get_num_threads()) - 1
    if helpers <= 0:
        form(0, batch, vocab, row_stride, *numbers)
        return
    rows = np.array([0, 0, batch])
    arguments = (rows.ctypes.data, batch, vocab, row_stride, *numbers)
    jobs = _helpers()
    for _ in range(helpers):
        jobs.put((form, arguments, (rows, logits, arrays)))
    form(*arguments)
    _wait(rows)


def _with_whole_rows(logits: Tensor) -> Tensor:
    """The logits, copied where those of a row do not follow each other.

    By NumPy: an operation of torch's that uses its threads hangs in the child of a fork.
    """
    if logits.stride(1) == 1 or logits.shape[1] == 1:
        return logits
    stored = logits if logits.dtype == torch.float32 else logits.view(torch.int16)
    return torch.from_numpy(np.ascontiguousarray(stored.numpy())).view(logits.dtype)


_jobs: SimpleQueue[Job | None] | None = None
_threads: list[Thread] = []
_owner = 0


def _helpers() -> SimpleQueue[Job | None]:
    """The queue that helping threads take jobs from; a process made by fork gets its own."""
    global _jobs, _threads, _owner
    if _jobs is None or _owner != os.getpid():
        _jobs, _owner = SimpleQueue(), os.getpid()
        count = max(1, (os.cpu_count() or 1) - 1)
        _threads = [Thread(target=_help, args=(_jobs,), name=f"neurogen_{i}", daemon=True) for i in range(count)]
        for thread in _threads:
            thread.start()
    return _jobs


@atexit.register
def _stop() -> None:
    """Let the helping threads end before the interpreter does: one that wakes up later would abort the process."""
    if _jobs is not None and _owner == os.getpid():
        for _ in _threads:
            _jobs.put(None)
        for thread in _threads:
            thread.join()


def _help(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        form, arguments, owners = job
        with suppress(Exception):  # of compiling, which the calling thread raises too
            form(*arguments)
        del job, form, arguments, owners  # or the last logits would be kept
