"""Decoding with llama.cpp's forward pass: GGUF models as they are, tokens chosen by neurogen's samplers.

The engine keeps the promises of `decoding.engine.Engine`, and the token ids are those of `models.tokenizer`, as with
every other engine. Only `llama_context` calls llama.cpp itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.contract.parameters import is_whole
from neurogen.decoding.engine import Engine
from neurogen.decoding.request import Observer, RequestState
from neurogen.errors import DeviceError, ModelError, ParameterError
from neurogen.files import is_file, is_folder
from neurogen.models.known import KNOWN_MODELS, find_gguf, known_names, suggest_known_model
from neurogen.models.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.integrations.llama_context import LlamaContext, LlamaWeights

__all__ = ["LlamaCppEngine", "LlamaCppModel", "find_model_file", "load_llamacpp_model"]

INSTALL = "pip install 'neurogen[llamacpp]'"
MAX_SEQUENCES = 256
"""`LLAMA_MAX_SEQ`."""

GRANULE = 256
"""Tokens by which llama.cpp rounds the length of a context."""


@dataclass
class LlamaCppModel:
    """A GGUF model that llama.cpp runs.

    Attributes:
        name: the name or path it was asked for by.
        weights: the model.
        tokenizer: made from the same file, and giving the same ids as with the engine torch.
        threads: of the forward pass.
        vocab_size: width of the logits.
        context_length: the most tokens of prompt and continuation together.
        eos_ids: ids that end a sequence or, in a chat model, a turn.
        device, dtype: of the logits, wherever the weights are: the CPU, float32.
    """

    name: str
    weights: LlamaWeights
    tokenizer: Tokenizer
    threads: int
    vocab_size: int
    context_length: int
    eos_ids: frozenset[int]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def engine(self, sampler: Sampler, *, batch_size: int = 8, observer: Observer | None = None) -> LlamaCppEngine:
        """An engine that decodes this model with a sampler."""
        return LlamaCppEngine(self, sampler, batch_size=batch_size, observer=observer)


def load_llamacpp_model(
    name: str, *, device: str = "auto", threads: int | None = None, verbose: bool = False
) -> LlamaCppModel:
    """Load a GGUF model with its tokenizer.

    Args:
        name: a `.gguf` file, a folder with exactly one, or a known name whose package brings one.
        device: where the layers run: "auto" (a GPU where llama.cpp was built for one), "cpu", "cuda" or "cuda:N".
        threads: of the forward pass; None for as many as PyTorch would use (OMP_NUM_THREADS counts).
        verbose: let llama.cpp write its log to stderr.

    Raises:
        ModelError: llama-cpp-python is not installed, or there is no such model, or llama.cpp cannot read it.
        DeviceError: llama.cpp was built without a GPU.
        ParameterError: `threads` is below 1.
    """
    if threads is not None and not is_whole(threads, range(1, 2**31)):
        raise ParameterError(f"threads must be an integer >= 1, got {threads!r}.", "threads")
    file = find_model_file(name)
    context = _bindings()
    context.set_verbose(verbose)
    weights: LlamaWeights = context.LlamaWeights(file, **_placement(device))
    if not weights.can_decode:
        raise ModelError(
            f"{file} is an encoder, or an encoder with a decoder; neurogen decodes causal language models."
        )
    tokenizer = load_tokenizer(file)
    return LlamaCppModel(
        name=name,
        weights=weights,
        tokenizer=tokenizer,
        threads=torch.get_num_threads() if threads is None else threads,
        vocab_size=weights.vocab_size,
        context_length=weights.context_length,
        eos_ids=tokenizer.eos_ids | ({weights.eos_id} if weights.eos_id is not None else set()),
    )


def find_model_file(name: str) -> Path:
    """The GGUF file that a name stands for.

    Raises:
        ModelError: there is no such file.
    """
    path = Path(name).expanduser()
    if is_file(path):
        if path.suffix == ".gguf":
            return path
        raise ModelError(f"The engine llamacpp reads GGUF files; {path} is not one. --engine torch reads safetensors.")
    if is_folder(path):
        return _only_file(path)
    if name in KNOWN_MODELS:
        found = find_gguf(KNOWN_MODELS[name])
        if found is not None:
            return found
        raise ModelError(
            f"The weights of {name!r} are not on this machine. Install them with "
            f"`{KNOWN_MODELS[name].install_command}`."
        )
    named = ", ".join(sorted(KNOWN_MODELS))
    if name in known_names():
        raise ModelError(
            f"The engine llamacpp reads GGUF files, and the model {name!r} has none. Give --model FILE.gguf or one of "
            f"{named}, or use --engine torch."
        )
    raise ModelError(
        f"There is no GGUF model {name!r}: no such file, and no known name{suggest_known_model(name)}. The engine "
        f"llamacpp takes a .gguf file or one of {named}; nothing is fetched from the Hugging Face hub for it."
    )


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ModelError(f"{folder} holds {len(files)} GGUF files: say which, for example --model {files[0]}.")
    other = "its safetensors are what --engine torch reads" if any(folder.glob("*.safetensors")) else "nor safetensors"
    raise ModelError(f"The engine llamacpp reads GGUF files, and {folder} holds none; {other}.")


def _bindings() -> Any:
    try:
        return import_module("neurogen.integrations.llama_context")
    except ImportError as error:
        raise ModelError(
            f"The engine llamacpp needs the package llama-cpp-python, which cannot be imported ({error}). Install it "
            f"with `{INSTALL}`; it is compiled on your machine, which takes some minutes and a C++ compiler."
        ) from None


def _placement(device: str) -> dict[str, Any]:
    """Where the layers go, as arguments of `LlamaWeights`."""
    import llama_cpp

    has_gpu = bool(llama_cpp.llama_supports_gpu_offload())
    if device == "cpu" or (device == "auto" and not has_gpu):
        return {"gpu_layers": 0}
    if not has_gpu:
        raise DeviceError(
            f"Device {device!r} was asked for, but the installed llama-cpp-python was built without GPU support. "
            "Install a build for your GPU, or use --device cpu."
        )
    number = device.partition(":")[2]
    return {"gpu_layers": -1, "main_gpu": int(number) if number else None}


class LlamaCppEngine(Engine):
    """Decodes requests with a GGUF model and a sampler, as `neurogen.decoding.engine.Engine` does with others.

    Every prompt is run by itself, so that the first token of a sequence does not depend on what is decoded beside it;
    later tokens do not either, up to llama.cpp's rounding, which may differ between batch sizes. To be used from one
    thread at a time.

    Args:
        model: gives the logits.
        sampler: chooses the tokens.
        batch_size: the most sequences that are decoded together, 255 at most.
        observer: is shown every step; see `decoding.request.Observer`. The logits it is shown are overwritten by
            the next step.

    Attributes:
        vocab_size: ids from here on have no text and are never drawn, though the model's logits may be wider.

    Raises:
        ParameterError: `batch_size` is out of its range.
    """

    def _check_model(self) -> None:
        if self.batch_size >= MAX_SEQUENCES:
            raise ParameterError(
                f"batch_size must be at most {MAX_SEQUENCES - 1} with the engine llamacpp, got {self.batch_size}.",
                "batch_size",
            )

    def _forward_pass(self) -> LlamaForward:
        return LlamaForward(self.model, self.batch_size)


class LlamaForward:
    """Runs the rows of a batch, each in a sequence of a llama.cpp context.

    The context is made when the batch is empty, as long as its first rows need, and with as many sequences as there are
    requests or the batch may have; a row that needs a longer one waits until the batch is empty again. One sequence
    more holds a prompt that is asked for again.

    Args:
        model: gives the logits.
        batch_size: the most rows.
    """

    def __init__(self, model: LlamaCppModel, batch_size: int) -> None:
        self._model = model
        self._size = batch_size
        self._context: LlamaContext | None = None
        self._rows: list[RequestState] = []
        self._sequences: list[int] = []  # of the rows
        self._free: list[int] = []
        self._kept: tuple[tuple[int, ...], Tensor] | None = None  # a prompt and the logits after it
        self._placed = False

    def has_room(self, row: RequestState, before: int) -> bool:
        """Whether there is a free sequence for a row beside those in the batch and `before` others."""
        return self._context is not None and len(self._free) > before and _length(row) <= self._context.length

    def prefill(self, new: Sequence[RequestState], upcoming: tuple[int, ...] | None) -> Tensor:
        """See `neurogen.decoding.forward.ForwardPass.prefill`."""
        context = self._context_for(new, more=upcoming is not None)
        known: dict[tuple[int, ...], tuple[int, Tensor]] = {}
        if self._kept is not None:
            known[self._kept[0]] = self._store, self._kept[1]
        for row in new:
            sequence = self._free.pop()
            self._sequences.append(sequence)
            if row.prompt in known:
                context.copy(known[row.prompt][0], sequence)
            else:
                known[row.prompt] = sequence, context.read(sequence, row.prompt).clone()
        self._keep_prompt(upcoming if upcoming == new[-1].prompt else None, known)
        self._rows += new
        self._placed = False
        return torch.cat([known[row.prompt][1] for row in new])

    def decode(self, ids: Tensor) -> Tensor:
        """See `neurogen.decoding.forward.ForwardPass.decode`."""
        assert self._context is not None
        if not self._placed:
            positions = [len(row.prompt) + row.produced - 1 for row in self._rows]
            self._context.place(self._sequences, positions)
            self._placed = True
        return self._context.step(ids)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `neurogen.decoding.forward.ForwardPass.keep_rows`."""
        assert self._context is not None
        for sequence in (one for i, one in enumerate(self._sequences) if i not in rows):
            self._context.drop(sequence)
            self._free.append(sequence)
        self._sequences = [self._sequences[i] for i in rows]
        self._rows = [self._rows[i] for i in rows]
        self._placed = False

    @property
    def _store(self) -> int:
        """The sequence that holds the kept prompt: the last."""
        assert self._context is not None
        return self._context.sequences - 1

    def _context_for(self, rows: Sequence[RequestState], *, more: bool) -> LlamaContext:
        """The context, made anew where the batch is empty and these rows need more than there is."""
        length, count = max(map(_length, rows)), len(rows)
        there = self._context
        if self._rows or (there is not None and there.length >= length and len(self._free) >= count):
            assert there is not None
            return there
        count = self._size if more else count
        length = max(length, there.length if there is not None else 0)
        self._kept = self._context = there = None  # frees the old one first
        made: LlamaContext = _bindings().LlamaContext(
            self._model.weights,
            sequences=count + more,
            length=-(-length // GRANULE) * GRANULE,
            threads=self._model.threads,
        )
        self._context, self._free = made, list(reversed(range(count)))
        return made

    def _keep_prompt(self, prompt: tuple[int, ...] | None, known: dict[tuple[int, ...], tuple[int, Tensor]]) -> None:
        if self._kept is not None and self._kept[0] == prompt:
            return
        assert self._context is not None
        spare = self._store not in self._sequences and self._store not in self._free
        if self._kept is not None:
            self._context.drop(self._store)
        self._kept = None
        if prompt is not None and spare:
            self._context.copy(known[prompt][0], self._store)
            self._kept = prompt, known[prompt][1]


def _length(row: RequestState) -> int:
    """Tokens that a row may come to hold."""
    return len(row.prompt) + row.request.max_new_tokens
