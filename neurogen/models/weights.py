"""Files to weights: a folder of safetensors, or a GGUF file, becomes a transformers model. Knows no names of models.

Weights come from safetensors or GGUF files only: pickle files can run code when they are opened. Code shipped with a
model is never run. What is wrong with a file is said in one paragraph.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from neurogen.errors import DeviceError, ModelError
from neurogen.files import read_text
from neurogen.models.known import refuse_pickle

__all__ = ["DTYPES", "load_weights", "quiet_transformers", "safetensors_header"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAFETENSORS_DTYPES = {"F64": torch.float32, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
GGUF_DTYPE = torch.bfloat16
MAX_HEADER_BYTES = 100_000_000


def load_weights(path: Path, device: torch.device, dtype: str) -> PreTrainedModel:
    """Load a model without its tokenizer.

    Args:
        path: a folder with config.json and *.safetensors, or a `.gguf` file.
        device: where the weights are put.
        dtype: "auto", as `neurogen.models.load_model` understands it, or a key of `DTYPES`.

    Returns:
        the model, in eval mode.

    Raises:
        ModelError: the files are unsafe, damaged, incomplete or do not fit together.
        DeviceError: they do not fit into the memory of the device.
    """
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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal, and put its settings back afterwards."""
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


def _gguf_arguments(path: Path) -> dict[str, Any]:
    # Packed blocks would need kernels fetched from the hub, and would give other logits on other machines.
    return {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}


def _from_pretrained(path: Path, source: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
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
    file = folder / "config.json"
    try:
        raw = json.loads(read_text(file))
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
        for entry in safetensors_header(file).values():
            dtype = SAFETENSORS_DTYPES.get(str(entry.get("dtype")))
            if dtype is not None:
                counts[dtype] = counts.get(dtype, 0) + 1
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """What a file's header says of its tensors: 8 bytes of length, then JSON; see huggingface.co/docs/safetensors.

    Raises:
        ModelError: it is no such file, or is shorter than its header says.
    """
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


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".")


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
