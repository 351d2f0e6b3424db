"""Runs CUDA kernels made by neurogen's toolkit on the CPU, thread by thread; in a process of its own.

Usage: python -m neurogen.testing.simulator MODULE CASES.npz RESULTS.npz
       python -m neurogen.testing.simulator       answers launches, see `serve`

One thread of a block runs at a time, and hands over at every barrier and every shuffle, always in the same order. So a
launch is repeatable, shuffles work, and threads that do not meet at the same barrier are found. Numba's own simulator
is used for its switch alone, which makes the device functions plain Python: importing this module turns it on, so it
must come before the first import of numba. It knows kernels, and neither samplers nor torch's CUDA.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np

from neurogen.kernels.host import at_path

__all__ = ["FIELDS", "SIZES", "launch", "read_cases", "serve", "set_sizes", "simulate"]

KERNEL_MODULES: list[Any] = [
    importlib.import_module(f"neurogen.kernels.{name}")
    for name in (
        "cuda",
        "cuda_bands",
        "cuda_bins",
        "cuda_block",
        "cuda_cuts",
        "cuda_draw",
        "cuda_list",
        "cuda_parts",
        "cuda_rows",
        "cuda_split",
        "cuda_statistics",
    )
]
"""The modules in which the simulator replaces `cuda`, and the sizes of warps and lists."""

SIZES = ("warp", "parts", "listed", "ranked")
"""The fields of a case for the sizes of warps and lists, see `set_sizes`."""

FIELDS = ("grid", "block", "offset", "gap", *SIZES)
"""A case's fields for a launch, beside logits [batch, vocab] as they are stored, row parameters, seed and position."""


class Thread:
    """One thread of a block: it runs while it holds the baton, and says what it waits for when it gives it back."""

    def __init__(self, index: int, body: Callable[[], None], block: Block) -> None:
        self.index = index
        self.turn = threading.Semaphore(0)
        self.waits_for: Any = None
        self.value: Any = None
        self.error: BaseException | None = None
        self._body, self._block = body, block
        self.runner = threading.Thread(target=self._run, daemon=True)
        self.runner.start()

    def _run(self) -> None:
        self.turn.acquire()
        try:
            self._body()
        except BaseException as error:
            self.error = error
        self.waits_for = "the end"
        self._block.idle.release()

    def meet(self, place: Any, value: Any = None) -> list[Any]:
        """Wait until all threads of the block are at `place`; returns the value that each brought there."""
        self.waits_for, self.value = place, value
        self._block.idle.release()
        self.turn.acquire()
        return self._block.values


class Block:
    """The threads of a block, and what numba.cuda offers to them. Warps are `warp` threads wide."""

    def __init__(self, grid: int, block: int, warp: int) -> None:
        self.gridDim, self.blockDim, self.warp = SimpleNamespace(x=grid), SimpleNamespace(x=block), warp
        self.idle = threading.Semaphore(0)
        self.values: list[Any] = []
        self.running: Thread
        self.atomic = SimpleNamespace(add=self._add)
        self.shared = SimpleNamespace(array=self._array)

    def run(self, number: int, body: Callable[[], None]) -> None:
        """Run `body` in every thread of block `number`."""
        self.blockIdx = SimpleNamespace(x=number)
        self._arrays: list[Any] = []
        threads = [Thread(index, body, self) for index in range(self.blockDim.x)]
        self._asked = [0] * len(threads)
        while True:
            for thread in threads:
                self.running = thread
                thread.turn.release()
                self.idle.acquire()
                if thread.error is not None:
                    raise thread.error
            places = {str(thread.waits_for) for thread in threads}
            if len(places) > 1:
                raise RuntimeError(f"threads of one block wait at different places: {places}")
            if places == {"the end"}:
                return
            self.values = [thread.value for thread in threads]

    @property
    def threadIdx(self) -> Any:  # noqa: N802
        return SimpleNamespace(x=self.running.index)

    def threadfence(self) -> None:
        """Nothing: what a thread writes, all others see at once."""

    def syncthreads(self) -> None:
        self.running.meet("syncthreads")

    def syncthreads_count(self, value: Any) -> int:
        return sum(bool(own) for own in self.running.meet("syncthreads_count", value))

    def syncthreads_and(self, value: Any) -> int:
        return int(all(self.running.meet("syncthreads_and", value)))

    def shfl_xor_sync(self, mask: int, value: Any, lanes: int) -> Any:
        thread = self.running
        return thread.meet(("shfl_xor", lanes), value)[thread.index ^ lanes]

    def shfl_up_sync(self, mask: int, value: Any, lanes: int) -> Any:
        thread = self.running
        values = thread.meet(("shfl_up", lanes), value)
        return values[thread.index - lanes] if thread.index % self.warp >= lanes else value

    def _add(self, array: Any, place: Any, value: Any) -> Any:
        before = array[place]
        array[place] = before + value
        return before

    def _array(self, count: int, dtype: Any) -> Any:
        """The next shared array of the kernel: all threads ask for the same ones in the same order."""
        thread = self.running.index
        if self._asked[thread] == len(self._arrays):
            fill = 0x55 if np.dtype(dtype).itemsize > 1 else 1  # what stands in shared memory is not 0
            self._arrays.append(np.frombuffer(bytearray([fill]) * (count * np.dtype(dtype).itemsize), dtype))
        self._asked[thread] += 1
        return self._arrays[self._asked[thread] - 1]


def set_sizes(sizes: dict[str, int]) -> None:
    """Small warps, parts and lists, so that rows of a few hundred logits reach every branch."""
    warp, parts, listed = sizes["warp"], sizes["parts"], sizes["listed"]
    digit_bits = listed.bit_length() - 1
    values = {
        "WARP": warp,
        "PARTS": parts,
        "PART_BITS": parts.bit_length() - 1,
        "GROUPS": parts * warp,
        "AIM": parts * warp * 3 // 4,
        "LISTED": listed,
        "DIGIT_BITS": digit_bits,
        "DIGITS": -(-32 // digit_bits),
        "RANKED": sizes["ranked"],
    }
    for module in KERNEL_MODULES:
        for name, value in values.items():
            if hasattr(module, name):
                setattr(module, name, value)


def launch(kernel: Any, case: dict[str, Any], arrays: tuple[Any, ...], pieces: int = 1) -> None:
    """Run a kernel as `neurogen.kernels.cuda.launch` does, with the logits at an offset in memory.

    Where rows are split, the blocks run one after the other from the last to the first: a card may run them in any
    order.
    """
    batch = case["logits"].shape[0]
    if pieces == 1:
        _start(kernel, case, arrays, range(int(case["grid"])))
        return
    blocks = range(batch * pieces)[::-1]
    workspace = np.full(batch * kernel.split.words, -0x123456789, np.int64)
    _start(kernel.split.survey, case, (workspace,), blocks)
    _start(kernel.split.finish, case, (*arrays, workspace), blocks)


def _start(kernel: Any, case: dict[str, Any], arrays: tuple[Any, ...], blocks: Sequence[int]) -> None:
    """One launch of these blocks, in this order."""
    logits, offset = case["logits"], int(case["offset"])
    batch, vocab = logits.shape
    stride = vocab + int(case["gap"])
    flat = np.full(batch * stride + 4, np.array(1).astype(logits.dtype))
    for r in range(batch):
        flat[r * stride : r * stride + vocab] = logits[r]
    flat.flags.writeable = False
    for number in blocks:
        card = Block(len(blocks), int(case["block"]), int(case["warp"]))
        for module in KERNEL_MODULES:
            if hasattr(module, "cuda"):
                module.cuda = card
        card.run(number, lambda: kernel.function(flat, offset, stride, vocab, batch, arrays))


def simulate(case: dict[str, Any], sampler: Any) -> dict[str, Any]:
    """ids, probs and support of a backend module on one batch of logits.

    Args:
        case: `FIELDS`, and arrays: logits [batch, vocab] as they are stored, and [batch] of every row parameter, seed
            and position.
        sampler: a backend module of CUDA, or what `truncation` or `argmax` return.

    Returns:
        ids int64 [batch]; probs float32 and support uint8 [batch, vocab]. Where a case says `pieces` too, and the
        kernel has such a form, also `split`: the ids where `pieces` blocks share a row.
    """
    set_sizes({name: int(case[name]) for name in SIZES})
    batch, vocab = case["logits"].shape
    rows = tuple(case[parameter] for parameter in sampler.sample.names)
    ids = np.full(batch, -7, np.int64)
    probs = np.full(batch * vocab, np.nan, np.float32)
    support = np.full(batch * vocab, 7, np.uint8)
    launch(sampler.sample.kernel, case, (*rows, case["seed"], case["position"], ids))
    launch(sampler.probs.kernel, case, (*rows, probs))
    launch(sampler.support.kernel, case, (*rows, support))
    found = {"ids": ids, "probs": probs.reshape(batch, vocab), "support": support.reshape(batch, vocab)}
    if "pieces" in case and sampler.sample.kernel.split:
        found["split"] = np.full(batch, -7, np.int64)
        arrays = (*rows, case["seed"], case["position"], found["split"])
        launch(sampler.sample.kernel, case, arrays, int(case["pieces"]))
    return found


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Run one launch after another, until there are no more.

    Args:
        asked: pickled, one after the other: (module, kernel, case, arrays, blocks): the name of a module, the path of a
            kernel in it (`kernels_in`), `FIELDS` and logits, flat arrays, and the numbers of the blocks in
            the order in which they run.
        answers: to each pickled (arrays, problem): what the arrays hold afterwards, or why the kernel cannot be run.
    """
    while True:
        try:
            module, path, case, arrays, blocks = pickle.load(asked)
        except EOFError:
            return
        problem = ""
        try:
            set_sizes({name: int(case[name]) for name in SIZES})
            _start(at_path(importlib.import_module(module), path), case, arrays, blocks)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        pickle.dump((arrays, problem), answers)
        answers.flush()


def read_cases(path: str) -> dict[str, dict[str, Any]]:
    """The cases of an .npz file, whose arrays are called CASE/FIELD."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(path) as file:
        for key in file:
            case, _, field = key.partition("/")
            cases.setdefault(case, {})[field] = file[key]
    return cases


def main() -> None:
    """Simulate the kernels of one module on the cases of a file, or what is asked on stdin."""
    np.seterr(all="ignore")  # overflow and invalid operations are part of the semantics, and silent on a card
    if len(sys.argv) == 1:
        answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what an imported module prints is no answer
        serve(sys.stdin.buffer, answers)
        return
    module, source, target = sys.argv[1:]
    sampler = importlib.import_module(module)
    sampler = getattr(sampler, "kernels", sampler)  # of a sampler with memory, below what moves that
    found = {name: simulate(case, sampler) for name, case in read_cases(source).items()}
    np.savez(target, **{f"{name}/{key}": value for name, result in found.items() for key, value in result.items()})


if __name__ == "__main__":
    main()
