"""Token ids to logits. Knows nothing of text, except that a model carries the tokenizer that lies beside its weights.

`load_model` finds what a name means, has its files read (see `weights`), and says in one paragraph what is wrong with
what it was given.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from neurogen.contract.cuda_extra import MissingExtraError, lacking
from neurogen.errors import DeviceError, ModelError
from neurogen.files import is_file, is_folder
from neurogen.models.checkpoints import latest_checkpoint
from neurogen.models.known import (
    KNOWN_MODELS,
    PICKLE_REFUSED,
    PICKLE_SUFFIXES,
    STARTER,
    STARTER_FOLDER,
    fetch_from_hub,
    known_names,
    resolve_known_model,
    suggest_known_model,
)
from neurogen.models.tokenizer import Tokenizer, load_tokenizer
from neurogen.models.weights import DTYPES, load_weights, quiet_transformers

__all__ = ["LanguageModel", "load_model", "locate_model", "resolve_device"]

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
UNLIMITED_CONTEXT = sys.maxsize


@dataclass
class LanguageModel:
    """A causal language model, ready to run.

    Attributes:
        name: the name or path it was asked for by.
        model: the transformers model, in eval mode, on `device`.
        tokenizer: the tokenizer that lies beside the weights; its `vocab_size` may be below the model's, whose
            embeddings are often padded: ids from there on have no text.
        device: where the weights are.
        dtype: number format of the weights and of the logits.
        vocab_size: width of the logits.
        context_length: the most tokens of prompt and continuation together; `sys.maxsize` where there is no limit.
        eos_ids: ids that end a sequence or, in a chat model, a turn.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    context_length: int
    eos_ids: frozenset[int]
    _arguments: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._arguments = frozenset(inspect.signature(self.model.forward).parameters)

    def new_cache(self) -> Cache:
        """Return an empty key-value cache that fits this model's layers."""
        return DynamicCache(config=self.model.config)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor, Cache]:
        """Run the model over new tokens and return the logits after the last one.

        Args:
            input_ids: int64 [batch, new], on `device`; rows of different length are padded on the left.
            attention_mask: int64 [batch, past + new], 0 at padding, `past` being what `cache` holds already.
            position_ids: int64 [batch, new], index of each token in its own sequence; counted from the mask if None.
            cache: what earlier calls returned; it is updated in place. None starts a new one.

        Returns:
            logits of the last position, [batch, vocab] in `dtype`, and the cache, now `past + new` long.
        """
        logits, cache = self.forward_last(input_ids, attention_mask, position_ids, cache, count=1)
        return logits[:, -1, :], cache

    def forward_last(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        *,
        count: int,
    ) -> tuple[torch.Tensor, Cache]:
        """Run the model as `forward` does, and return the logits after each of the last `count` tokens.

        Returns:
            logits, [batch, count, vocab] in `dtype`, and the cache.
        """
        cache = self.new_cache() if cache is None else cache
        if position_ids is None:
            counted = attention_mask.cumsum(dim=-1) - 1
            position_ids = counted.clamp_(min=0)[:, -input_ids.shape[1] :]
        # transformers before 5.24 calls the cache past_key_values; a few architectures take no positions.
        offered = {"position_ids": position_ids, "logits_to_keep": count, "cache": cache}
        arguments = {name: value for name, value in offered.items() if name in self._arguments}
        if "cache" not in arguments:
            arguments["past_key_values"] = cache
        with torch.inference_mode():
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **arguments)
        return output.logits[:, -count:, :], cache


def load_model(name: str, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Load a model with its tokenizer.

    Args:
        name: a folder with config.json, *.safetensors and a tokenizer; the folder of a training run, which means its
            newest checkpoint; a `.gguf` file; a known name
            (`neurogen.models.known.KNOWN_MODELS`); or a name on the Hugging Face hub, `organisation/model`.
        device: "auto" (CUDA where there is any), "cpu", "cuda" or "cuda:N".
        dtype: "auto" (as stored; float16 becomes float32 on the CPU, which has no fast float16, and GGUF blocks become
            bfloat16), "float32", "bfloat16" or "float16".

    Raises:
        ModelError: there is no such model, or its files are unsafe, damaged, incomplete or do not fit together.
        DeviceError: this machine lacks the device, or the number format is unknown.
    """
    target, _ = resolve_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise DeviceError(f"Unknown number format {dtype!r}: dtype must be auto, {', '.join(DTYPES)}.")
    path = locate_model(name)
    with quiet_transformers():
        tokenizer = load_tokenizer(path)
        model = load_weights(path, target, dtype)
    vocab_size = _logits_width(model)
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            f"The tokenizer at {path} has {tokenizer.vocab_size} ids and the model beside it only {vocab_size} logits: "
            "they do not belong together. Put the tokenizer that the model was trained with into the folder."
        )
    return LanguageModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        device=target,
        dtype=model.dtype,
        vocab_size=vocab_size,
        context_length=_context_length(model.config),
        eos_ids=_eos_ids(model) | tokenizer.eos_ids,
    )


def resolve_device(device: str) -> tuple[torch.device, str]:
    """Turn a device's name into the device, and say why it was chosen.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        the device and the reason, a phrase such as "no CUDA device was found".

    Raises:
        DeviceError: the name is unknown, or the CUDA device asked for is not there, or what compiles kernels for it
            is not installed (`MissingExtraError`); auto is the CPU then.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu":
        return torch.device("cpu"), "asked for"
    if device == "auto":
        if count and (reason := lacking()):
            return torch.device("cpu"), f"auto: {torch.cuda.get_device_name(0)} is there, but {reason}"
        if count:
            return torch.device("cuda", 0), f"auto: {torch.cuda.get_device_name(0)} is there"
        return torch.device("cpu"), f"auto: {_why_no_cuda()}"
    kind, _, number = device.partition(":")
    if kind != "cuda" or (":" in device and not number.isdecimal()):
        raise DeviceError(f"Unknown device {device!r}: it must be auto, cpu, cuda or cuda:N with N = 0, 1, ...")
    if not count:
        raise DeviceError(f"Device {device!r} was asked for, but {_why_no_cuda()}. Use --device cpu, or auto.")
    index = int(number or 0)
    if index >= count:
        names = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        raise DeviceError(f"Device {device!r} was asked for, but this machine has {names}.")
    if reason := lacking():
        raise MissingExtraError(f"Device {device!r} was asked for, but {reason}. Or use --device cpu.")
    return torch.device("cuda", index), "asked for"


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    return "no usable CUDA device was found (is the NVIDIA driver installed?)"


def locate_model(name: str) -> Path:
    """Find the folder or GGUF file that a name stands for, fetching or converting it if need be."""
    if not name.strip():
        raise ModelError(
            f"No model was named. Known names: {', '.join(known_names())}; a folder or a .gguf file will do too."
        )
    path = Path(name).expanduser()
    if is_folder(path):
        return latest_checkpoint(path) or path
    if is_file(path) and path.suffix == ".gguf":
        return path
    if is_file(path):
        raise ModelError(
            PICKLE_REFUSED if path.suffix in PICKLE_SUFFIXES else f"{path} is neither a folder nor a .gguf file."
        )
    if name == STARTER:
        return STARTER_FOLDER
    if name in KNOWN_MODELS:
        return resolve_known_model(KNOWN_MODELS[name], fetch=fetch_from_hub, convert=convert_gguf)
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(
            f"There is no model {name!r}: no such folder or .gguf file, and no known name"
            f"{suggest_known_model(name)}. Known names: {', '.join(known_names())}; models on the Hugging Face "
            "hub are written organisation/model."
        )
    return fetch_from_hub(name)


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model as bfloat16 safetensors, with its tokenizer, into `folder`.

    Raises:
        ModelError: the file cannot be read.
    """
    with quiet_transformers():
        tokenizer = load_tokenizer(file)
        model: Any = load_weights(file, torch.device("cpu"), "bfloat16")
        # The weights are plain tensors by now; transformers refuses to save whatever still has a GGUF quantizer.
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(str(folder))
        tokenizer.save(folder)


def _logits_width(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if weight is not None else int(model.config.get_text_config().vocab_size)


def _context_length(config: Any) -> int:
    text_config = config.get_text_config()
    for name in CONTEXT_NAMES:
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return UNLIMITED_CONTEXT


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    ids: set[int] = set()
    for source in (model.config, model.config.get_text_config(), model.generation_config):
        value = getattr(source, "eos_token_id", None)
        ids.update([value] if isinstance(value, int) else value or [])
    return frozenset(ids)
