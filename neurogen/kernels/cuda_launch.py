"""CUDA kernels as objects: their compiled forms, and their launch on torch's current stream.

Knows how a kernel is compiled and started, and not what it does: `cuda` makes kernels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from numba import cuda, types
from torch import Tensor

from neurogen.contract.cuda_extra import require_cuda_compilers
from neurogen.errors import ContractError, DeviceError, ParameterError
from neurogen.kernels.compiling import compiling
from neurogen.kernels.host import check_memory

__all__ = ["BLOCK", "MAX_GRID", "POSSIBLE_PIECES", "SPLIT_BLOCK", "STORED", "Kernel", "Split", "launch"]

BLOCK = 1024
SPLIT_BLOCK = BLOCK // 2
"""Where rows are split: the second launch does more, and may use twice as many registers so."""
MAX_GRID = 65_535
POSSIBLE_PIECES = (1, 2, 4, 8, 16)
PIECES: int | None = None
"""Into how many pieces all rows are split; None leaves it to the environment variable NEUROGEN_CUDA_PIECES."""

STORED = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}
"""How a kernel reads logits of each dtype, see `numerics.to_float32`."""
ELEMENTS = {
    torch.int64: types.int64,
    torch.float64: types.float64,
    torch.float32: types.float32,
    torch.bool: types.uint8,
}


class Split(NamedTuple):
    """The form of a kernel in which several blocks share a row, see `cuda_split`.

    Attributes:
        survey: the first launch; its only array is the workspace.
        finish: the second; its arrays are those of the kernel, and the workspace.
        words: of 64 bits in the workspace for each row.
    """

    survey: Kernel
    finish: Kernel
    words: int


class Kernel:
    """A kernel and its compiled forms: one for each card and combination of dtypes, made at the first launch with it.

    Attributes:
        function: called as function(logits, offset, row_stride, vocab, batch, arrays). Row r of the logits begins at
            logits[r * row_stride]; `offset` is where the first stands in memory, modulo four logits. `arrays` has the
            row parameters and the outputs, each from its first element on.
        split: the form for small batches, if there is one.
        block: the most threads of a block.
    """

    def __init__(self, function: Callable[..., Any], split: Split | None = None, block: int = BLOCK) -> None:
        self.function = function
        self.split = split
        self.block = block
        self._forms: dict[Any, Any] = {}

    @property
    def launch_bounds(self) -> tuple[int, int]:
        """One such block a multiprocessor: told less, the compiler makes room for two by spilling registers."""
        return self.block, 1

    def signature(self, logits: torch.dtype, *tensors: torch.dtype) -> Any:
        """The Numba signature of the form for these dtypes.

        Raises:
            ContractError: kernels are not made for such logits or arrays.
        """
        wrong = [dtype for dtype in (logits,) if dtype not in STORED] + [d for d in tensors if d not in ELEMENTS]
        if wrong:
            raise ContractError(
                f"A CUDA kernel was given a tensor of {_name_of(wrong[0])}. It takes logits of "
                f"{', '.join(map(_name_of, STORED))}, and beside them tensors of {', '.join(map(_name_of, ELEMENTS))}: "
                "convert before."
            )
        arrays = types.Tuple([types.CPointer(ELEMENTS[dtype]) for dtype in tensors])
        size = types.int64
        return types.void(types.CPointer(STORED[logits]), size, size, size, size, arrays)

    def form(self, device: int, *dtypes: torch.dtype) -> Any:
        """The compiled form for these dtypes on the current card, whose number is `device`."""
        key = (device, dtypes)
        if key not in self._forms:
            if torch.cuda.is_current_stream_capturing():
                raise DeviceError(
                    f"A kernel for {', '.join(map(str, dtypes))} cannot be compiled while a CUDA graph is captured. "
                    "Call the sampler once with such logits before."
                )
            require_cuda_compilers()
            # Not through link-time optimisation, Numba's default: then what runs is the PTX that the tests look at.
            compiled = cuda.jit(self.signature(*dtypes), launch_bounds=self.launch_bounds, lto=False)
            with compiling(), cuda.gpus[device]:
                self._forms[key] = compiled(self.function)
        return self._forms[key]


def launch(kernel: Kernel, logits: Tensor, *tensors: Tensor, pieces: int | None = None) -> None:
    """Launch a kernel over all rows of `logits`, on torch's current stream; does not wait.

    One launch with a block for each row; or two, where rows are split: these pass on what they find in a workspace from
    torch's allocator, `Split.words` * 8 bytes a row.

    Args:
        kernel: see `Kernel.function` for what it is called with.
        logits: [batch, vocab] on CUDA, float32, float16 or bfloat16, any strides. Rows that are not contiguous are
            copied first.
        *tensors: row parameters and outputs on the same device.
        pieces: into how many pieces to split each row, one of POSSIBLE_PIECES; by default `PIECES`, or what the
            environment variable NEUROGEN_CUDA_PIECES says, or else 1. A kernel without such a form takes no notice.

    Raises:
        ParameterError: another number of pieces, or a tensor that has no memory of its own.
    """
    batch, vocab = logits.shape
    if batch == 0:
        return
    if logits.stride(1) != 1 and vocab > 1:
        logits = logits.contiguous()
    logits = logits.resolve_neg()
    tensors = tuple([tensor.contiguous() for tensor in tensors])
    device = logits.device.index or 0
    split = kernel.split
    pieces = _possible(pieces or PIECES or _pieces_of_environment(), "pieces")
    if split is None or pieces == 1:
        _start(kernel, logits, tensors, min(batch, MAX_GRID), _block(batch, device))
        return
    workspace = torch.empty(batch * split.words, dtype=torch.int64, device=logits.device)
    _start(split.survey, logits, (workspace,), batch * pieces, split.survey.block)
    _start(split.finish, logits, (*tensors, workspace), batch * pieces, split.finish.block)


def _start(kernel: Kernel, logits: Tensor, tensors: tuple[Tensor, ...], grid: int, block: int) -> None:
    """One launch. All tensors are contiguous, the logits at least within their rows."""
    pointer, pointers = logits.data_ptr(), tuple([tensor.data_ptr() for tensor in tensors])
    if pointer == 0 or 0 in pointers:
        check_memory([logits, *tensors])
    device = logits.device.index or 0
    stream = torch.cuda.current_stream(logits.device).cuda_stream
    form = kernel.form(device, logits.dtype, *[tensor.dtype for tensor in tensors])
    run = _configured(form, device, grid, block, stream)
    offset, sizes = pointer // logits.element_size() % 4, logits.shape
    run(pointer, offset, logits.stride(0), sizes[1], sizes[0], pointers)


@lru_cache(maxsize=1024)
def _configured(form: Any, device: int, grid: int, block: int, stream: int) -> Any:
    """A kernel ready to be called on a stream of torch's, given by its handle."""
    numba_stream = cuda.external_stream(stream)
    start = _by_core(form, device, grid, block, numba_stream)
    if start is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a small batch does not fill the card is no news
            start = form[grid, block, numba_stream]

    def run(*arguments: Any) -> None:
        with cuda.gpus[device]:  # torch may have another one current, and a new thread none
            start(*arguments)

    return run


def _by_core(form: Any, device: int, grid: int, block: int, stream: Any) -> Callable[..., None] | None:
    """A launch by cuda.core, a third of the cost of one by Numba; None where numba-cuda does not keep its kernels so.

    All arguments are words of 64 bits, so nothing has to be converted; of a tuple Numba's kernels take each for itself.
    """
    try:
        from cuda.core import LaunchConfig, launch

        (compiled,) = form.overloads.values()
        with cuda.gpus[device]:
            function = compiled._codelibrary.get_cufunc().kernel
    except (ImportError, AttributeError):
        return None
    config = LaunchConfig(grid=grid, block=block)

    def start(*arguments: Any) -> None:
        *words, pointers = arguments
        launch(stream, config, function, *words, *pointers)

    return start


def _possible(pieces: int, given_as: str) -> int:
    if pieces not in POSSIBLE_PIECES:
        raise ParameterError(
            f"{given_as} is {pieces!r}: on CUDA a row can be split into 1, 2, 4, 8 or 16 pieces. Give one of these, or "
            "nothing for whole rows.",
            "pieces",
        )
    return pieces


@cache
def _pieces_of_environment() -> int:
    given = os.environ.get("NEUROGEN_CUDA_PIECES", "1")
    return _possible(int(given) if given.isdecimal() else given, "NEUROGEN_CUDA_PIECES")  # type: ignore[arg-type]


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _block(batch: int, device: int) -> int:
    return BLOCK if batch <= _multiprocessors(device) else BLOCK // 2


@cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
