"""Token ids to logits. Knows nothing of text, except that a model carries the tokenizer that lies beside its weights.

Weights come from safetensors or GGUF files only: pickle files can run code when they are opened. Code shipped with a
model is never run. `load_model` says in one paragraph what is wrong with what it was given.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurogen.checkpoint import latest_checkpoint
from neurogen.errors import DeviceError, ModelError
from neurogen.known_models import (
    KNOWN_MODELS,
    PICKLE_REFUSED,
    PICKLE_SUFFIXES,
    STARTER,
    STARTER_FOLDER,
    fetch_from_hub,
    known_names,
    refuse_pickle,
    resolve_known_model,
    suggest_known_model,
)
from neurogen.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from neurogen.engine import Engine
    from neurogen.sampler import Sampler
    from neurogen.selection import Observer

__all__ = ["DTYPES", "LanguageModel", "load_model", "locate_model", "quiet_transformers", "resolve_device"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAFETENSORS_DTYPES = {"F64": torch.float32, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
GGUF_DTYPE = torch.bfloat16
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
UNLIMITED_CONTEXT = sys.maxsize
MAX_HEADER_BYTES = 100_000_000


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

    def engine(self, sampler: Sampler, *, batch_size: int = 8, observer: Observer | None = None) -> Engine:
        """An engine that decodes this model with a sampler; see `neurogen.engine.Engine`."""
        from neurogen.engine import Engine

        return Engine(self, sampler, batch_size=batch_size, observer=observer)

    def new_cache(self) -> Cache:
        """Return an empty key-value cache that fits this model's layers."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor, Cache]:
        """Run the model over new tokens and return the logits behind the last one.

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
        """Run the model as `forward` does, and return the logits behind each of the last `count` tokens.

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
            (`neurogen.known_models.KNOWN_MODELS`); or a name on the Hugging Face hub, `organisation/model`.
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
        model = _load_weights(path, target, dtype)
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
        DeviceError: the name is unknown, or the CUDA device asked for is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu":
        return torch.device("cpu"), "asked for"
    if device == "auto":
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
    if path.is_dir():
        return latest_checkpoint(path) or path
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file():
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


def _load_weights(path: Path, device: torch.device, dtype: str) -> PreTrainedModel:
    if path.suffix == ".gguf":
        stored = GGUF_DTYPE
        source = {"pretrained_model_name_or_path": str(path.parent), **_gguf_arguments(path)}
    else:
        refuse_pickle(path, [file for file in path.iterdir() if file.is_file()])
        config = _checked_config(path)
        stored = _stored_dtype(path)
        source = {"pretrained_model_name_or_path": str(path), "config": config}
    if dtype != "auto":
        stored = DTYPES[dtype]
    elif device.type == "cpu" and stored == torch.float16:
        stored = torch.float32
    # Only for GGUF: importing its reader takes half a second.
    with _quiet_gguf_reader() if path.suffix == ".gguf" else nullcontext():
        model = _from_pretrained(path, source, stored)
    try:
        return model.to(device).eval()  # type: ignore[no-any-return, arg-type]
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"{path} does not fit into the free memory of {device}: use a smaller model or cpu."
        ) from None


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model as bfloat16 safetensors, with its tokenizer, into `folder`.

    Raises:
        ModelError: the file cannot be read.
    """
    with quiet_transformers():
        tokenizer = load_tokenizer(file)
        model: Any = _load_weights(file, torch.device("cpu"), "bfloat16")
        # The weights are plain tensors by now; transformers refuses to save whatever still has a GGUF quantizer.
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(str(folder))
        tokenizer.save(folder)


def _gguf_arguments(path: Path) -> dict[str, Any]:
    from transformers import GgufConfig

    # Packed blocks would need kernels fetched from the hub, and would give other logits on other machines.
    return {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}


def _from_pretrained(path: Path, source: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            **source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below, where transformers only points to a report it does not show
        )
    except Exception as error:  # transformers, safetensors and gguf raise anything up to bare Exception here
        raise ModelError(
            f"The model at {path} cannot be loaded: {_one_line(error)}. If a file is damaged or incomplete, copy it "
            "again; if the architecture is unknown, a newer transformers may know it."
        ) from None
    _check_fit(path, report)
    return model  # type: ignore[no-any-return]


def _check_fit(path: Path, report: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly the model's: transformers fills gaps with noise and drops what is left over.

    Args:
        path: of the model, for the message.
        report: what transformers found, without what an architecture allows to be missing or left over.
    """
    problems = {
        "are missing": sorted(report["missing_keys"]),
        "are of another shape": sorted(map(_named_shapes, report["mismatched_keys"])),
        "have no place in the model it describes": sorted(report["unexpected_keys"]),
    }
    for problem, tensors in problems.items():
        if tensors:
            raise ModelError(
                f"The weights at {path} do not fit their config.json: {len(tensors)} tensor(s) {problem}, the first of "
                f"them {tensors[0]}. Copy weights and configuration again, from the same place."
            )


def _named_shapes(mismatch: tuple[str, Sequence[int], Sequence[int]]) -> str:
    name, stored, wanted = mismatch
    return f"{name}, which is {list(stored)} and should be {list(wanted)}"


def _checked_config(folder: Path) -> Any:
    """Read config.json, refusing what cannot be a causal language model that transformers knows."""
    from transformers import CONFIG_MAPPING, AutoConfig

    file = folder / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except FileNotFoundError:
        raise ModelError(f"{folder} has weights but no config.json. Copy the model's configuration there.") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {_one_line(error)}. Copy the model's configuration again.") from None
    if kind not in CONFIG_MAPPING:
        code = " and brings code of its own, which neurogen never runs" if "auto_map" in raw else ""
        raise ModelError(
            f"The installed transformers does not know the architecture {kind!r} of {folder}{code}. Update "
            "transformers, or use a model of an architecture that it knows."
        )
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{file} is no valid {kind!r} configuration: {_one_line(error)}.") from None
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{folder} is an encoder-decoder model ({kind}); neurogen decodes causal language models.")
    return config


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of most stored tensors, after checking that every file is as long as its header says."""
    counts: dict[torch.dtype, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for entry in _safetensors_header(file).values():
            dtype = SAFETENSORS_DTYPES.get(str(entry.get("dtype")))
            if dtype is not None:
                counts[dtype] = counts.get(dtype, 0) + 1
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def _safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """What a file's header says of its tensors: 8 bytes of length, then JSON; see huggingface.co/docs/safetensors."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        if not isinstance(header.pop("__metadata__", {}), dict):
            raise ValueError("its __metadata__ is no object")
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{file} is no safetensors file, or is damaged: {_one_line(error)}. Copy it again.") from None
    size = file.stat().st_size
    if size < end:
        raise ModelError(f"{file} is cut short: it has {size} bytes where its header promises {end}. Copy it again.")
    return header  # type: ignore[no-any-return]


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


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal, and put its settings back afterwards."""
    from transformers.utils import logging as transformers_logging

    settings: Any = transformers_logging
    verbosity, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity(settings.CRITICAL)
    settings.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.set_verbosity(verbosity)
        if bars:
            settings.enable_progress_bar()


@contextmanager
def _quiet_gguf_reader() -> Iterator[None]:
    """Disable the one progress bar that does not heed transformers' setting."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils
    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar
