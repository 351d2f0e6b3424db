"""llama.cpp as four operations: read a prompt, step, copy a sequence, drop one. Knows ids and logits, no request.

The only module that touches llama.cpp's C interface (`llama.h`, through llama-cpp-python's ctypes declarations). Import
it where the extra `llamacpp` is installed.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from neurogen.errors import ModelError
from neurogen.text.printable import printable

__all__ = ["LlamaContext", "LlamaWeights", "set_verbose"]

ERROR = 3
"""`GGML_LOG_LEVEL_ERROR`."""

_errors: deque[str] = deque(maxlen=8)
_verbose = False


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, user_data: Any) -> None:
    """Keep what went wrong, for the message of an error; the rest is shown where it is asked for."""
    message = text.decode("utf-8", "replace")
    if level == ERROR and message.strip():
        _errors.append(message.strip().rstrip("."))
    if _verbose and sys.stderr is not None:
        sys.stderr.write(printable(message))


llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))  # importing llama_cpp has made it write everything to stderr


def set_verbose(verbose: bool) -> None:
    """Let llama.cpp write its log to stderr, or keep it still."""
    global _verbose
    _verbose = verbose


def _reason() -> str:
    """What llama.cpp said of the failure, as the end of a sentence."""
    said = f": {_errors[0]}" if _errors else ""
    _errors.clear()
    return said


class LlamaWeights:
    """A GGUF file's model in memory.

    Args:
        file: the file.
        gpu_layers: how many layers are given to a GPU, -1 for all.
        main_gpu: which GPU, where it is to be one; None for all there are.

    Attributes:
        pointer: `llama_model *`.
        vocab_size: width of the logits.
        context_length: tokens of the context that the model was trained with.
        eos_id: ends a sequence; None if the model has no such token.
        can_decode: whether it continues text; encoders do not.

    Raises:
        ModelError: llama.cpp cannot read the file.
    """

    def __init__(self, file: Path, *, gpu_layers: int = 0, main_gpu: int | None = None) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        if main_gpu is not None:
            params.split_mode, params.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, main_gpu
        _errors.clear()
        self.pointer: Any = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.pointer:
            raise ModelError(
                f"llama.cpp cannot read {file}{_reason()}. If the file is damaged or incomplete, copy it again; if its "
                "architecture is unknown, a newer llama-cpp-python may know it, or --engine torch does."
            )
        weakref.finalize(self, llama_cpp.llama_model_free, self.pointer)
        vocab = llama_cpp.llama_model_get_vocab(self.pointer)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self.context_length = int(llama_cpp.llama_model_n_ctx_train(self.pointer))
        eos = int(llama_cpp.llama_vocab_eos(vocab))
        self.eos_id = eos if eos >= 0 else None
        encodes = bool(llama_cpp.llama_model_has_encoder(self.pointer))
        self.can_decode = bool(llama_cpp.llama_model_has_decoder(self.pointer)) and not encodes


class LlamaContext:
    """Keys and values of some sequences, and the forward pass over them.

    Each sequence has keys and values of its own ("streams"): how long one is costs the others nothing.

    Args:
        weights: the model.
        sequences: how many; they are numbered from 0.
        length: the most tokens of one sequence.
        threads: of the forward pass.

    Attributes:
        sequences, length: as given; a sequence may hold a few tokens more.

    Raises:
        ModelError: there is not enough memory.
    """

    def __init__(self, weights: LlamaWeights, *, sequences: int, length: int, threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = sequences * length, sequences, False
        params.n_outputs_max = sequences  # as many logits at a time, instead of as many as there are tokens in a batch
        params.n_batch = max(params.n_batch, sequences)
        params.n_threads = params.n_threads_batch = threads
        _errors.clear()
        self._weights = weights  # is freed no sooner than this
        self._pointer: Any = llama_cpp.llama_init_from_model(weights.pointer, params)
        if not self._pointer:
            raise ModelError(
                f"llama.cpp cannot make a context of {sequences} sequence(s) of {length} tokens{_reason()}. Where it "
                "is memory that is short, lower --batch-size or --max-new-tokens."
            )
        weakref.finalize(self, llama_cpp.llama_free, self._pointer)
        self.sequences, self.length = sequences, length
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._limit = int(llama_cpp.llama_n_batch(self._pointer))
        self._batch = _LlamaBatch(self._limit)
        self._view: tuple[int, int, Tensor] | None = None

    def read(self, sequence: int, ids: Sequence[int]) -> Tensor:
        """Run the tokens of an empty sequence.

        Args:
            sequence: its number.
            ids: its tokens, at least one.

        Returns:
            float32 [1, vocab], the logits after the last token; overwritten by the next call.
        """
        for start in range(0, len(ids), self._limit):
            part = ids[start : start + self._limit]
            self._batch.fill([sequence] * len(part), part, range(start, start + len(part)), last_only=True)
            self._decode()
        return self._logits(1)

    def place(self, sequences: Sequence[int], positions: Sequence[int]) -> None:
        """Set the sequences of the following steps, and the positions of their next tokens."""
        self._batch.fill(sequences, [0] * len(sequences), positions, last_only=False)

    def step(self, ids: Tensor) -> Tensor:
        """Run one token more of each sequence that `place` named.

        Args:
            ids: int64 [sequences].

        Returns:
            float32 [sequences, vocab], the logits after them: llama.cpp's own memory, overwritten by the next call.
        """
        self._batch.take(ids)
        self._decode()
        self._batch.advance()
        return self._logits(len(ids))

    def copy(self, source: int, target: int) -> None:
        """Give an empty sequence the tokens of another."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        """Empty a sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def _decode(self) -> None:
        code = llama_cpp.llama_decode(self._pointer, self._batch.struct)
        if code != 0:
            raise ModelError(f"llama.cpp's forward pass failed with code {code}{_reason()}.")

    def _logits(self, rows: int) -> Tensor:
        """The logits where llama.cpp has put them; a view is made anew only when that place changes."""
        pointer = llama_cpp.llama_get_logits_ith(self._pointer, -rows)
        # llama.cpp gives the rows in the order of the batch, one after the other: -rows is the first of them.
        address = ctypes.addressof(pointer.contents)
        if self._view is None or self._view[:2] != (address, rows):
            array = np.ctypeslib.as_array(pointer, (rows, self._weights.vocab_size))
            self._view = address, rows, torch.from_numpy(array)
        return self._view[2]


class _LlamaBatch:
    """A `llama_batch` whose arrays are NumPy's, so that a step changes tokens and positions in place."""

    def __init__(self, size: int) -> None:
        self._tokens, self._positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self._counts, self._sequences = np.ones(size, np.int32), np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        addresses = self._sequences.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self._pointers = np.ascontiguousarray(addresses)
        integers = ctypes.POINTER(ctypes.c_int32)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(integers),
            embd=None,
            pos=self._positions.ctypes.data_as(integers),
            n_seq_id=self._counts.ctypes.data_as(integers),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(integers)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, sequences: Sequence[int], ids: Sequence[int], positions: Sequence[int], *, last_only: bool) -> None:
        """Set tokens with their sequences and positions; logits are wanted after each of them or after the last."""
        count = len(ids)
        self.struct.n_tokens = count
        self._tokens[:count], self._positions[:count], self._sequences[:count] = ids, positions, sequences
        self._wanted[:count] = not last_only
        self._wanted[count - 1] = 1

    def take(self, ids: Tensor) -> None:
        """Set the tokens alone."""
        self._tokens[: len(ids)] = ids.numpy()

    def advance(self) -> None:
        """Add one to the position of every token."""
        self._positions[: self.struct.n_tokens] += 1
