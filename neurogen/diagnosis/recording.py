"""A recording of a run: all that its repetition needs, and at every step the token and a digest of the logits.

A file of JSON lines: the head says model, sampler, options, prompts and versions; a line a token follows; the last line
tells that the run came to its end. `neurogen.diagnosis.replay` runs it again and says where and why it differs.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurogen import __version__
from neurogen.contract.sampler import Sampler
from neurogen.decoding.order import largest
from neurogen.decoding.request import DecodableModel, RequestState, SampledToken
from neurogen.errors import DataError
from neurogen.files import append, read_text, to_json, writing
from neurogen.registry.registry import Registry
from neurogen.text.generation import Prompt, RunOptions

__all__ = ["Key", "Recorder", "Recording", "describe", "environment", "key_of", "read_recording"]

FORMAT = 1
TOP = 4
"""Logits kept of every step, the largest ones, to tell how far those of a replay are away."""

SAMPLED_BYTES = 1 << 16
"""How many bytes of every weight, spread over it, make the model's fingerprint."""

Key = tuple[int, int]
"""(index of the prompt, number of the sample)."""


class Recorder:
    """Writes a recording while a run goes on: an observer of the engine.

    Args:
        path: the file; what it held is replaced.
        model, sampler, options, prompts: of the run.
        name: of the sampler, as the registry knows it.
        skip: sequences that are left out, since they were done before.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        model: DecodableModel,
        sampler: Sampler,
        options: RunOptions,
        prompts: Sequence[Prompt],
        skip: Collection[Key] = (),
    ) -> None:
        self._path = Path(path)
        self._steps = 0
        head = {
            "neurogen_recording": FORMAT,
            "environment": environment(model, sampler),
            "model": model.name,
            "sampler": sampler.name,
            "params": sampler.params.model_dump(),
            "processors": "+".join(map(repr, options.processors)),
            "options": {name: value for name, value in vars(options).items() if name != "processors"},
            "prompts": [asdict(prompt) for prompt in prompts],
            "skip": sorted(skip),
        }
        with writing("The recording", self._path):
            self._file: FileIO = self._path.open("wb", buffering=0)
        self._write(head)

    def __call__(
        self, rows: Sequence[RequestState], logits: Tensor, processed: Tensor, drawn: Sequence[SampledToken]
    ) -> None:
        for row, values, one in zip(rows, logits, drawn, strict=True):
            if row.finished or one.error is not None:
                continue
            index, sample = key_of(row)
            self._write({"index": index, "sample": sample, "token": one.token_id, **describe(values)})
            self._steps += 1

    def close(self, *, complete: bool) -> None:
        """End the recording; one that is not `complete` can be replayed as far as it goes.

        Raises:
            DataError: its end cannot be written.
        """
        try:
            if complete:
                self._write({"end": True, "steps": self._steps})
        finally:
            self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        data = to_json(line).encode() + b"\n"
        with writing("The recording", self._path, needed=len(data)):
            append(self._file.fileno(), data)


@dataclass(frozen=True)
class Recording:
    """What a recording holds.

    Attributes:
        path: the file.
        head: its first line.
        steps: for each sequence, its lines.
        complete: the run came to its end.
    """

    path: str
    head: Mapping[str, Any]
    steps: Mapping[Key, list[Mapping[str, Any]]]
    complete: bool

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of the run."""
        fields = self.head["prompts"]
        return [Prompt(**{**prompt, "stop": _tuple(prompt["stop"])}) for prompt in fields]

    def options(self, registry: Registry) -> RunOptions:
        """The options of the run, with its processors loaded."""
        spec = self.head["processors"]
        processors = registry.load_processors(spec) if spec else []
        return RunOptions(
            **{**self.head["options"], "stop": _tuple(self.head["options"]["stop"])}, processors=processors
        )


def read_recording(path: str | Path) -> Recording:
    """Read a recording; one whose end is missing, even within a line, is read as far as it goes.

    Raises:
        DataError: it cannot be read, or is not a recording.
    """
    try:
        lines = read_text(path).removesuffix("\n").split("\n")  # a prompt may hold U+2028, which splitlines splits at
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    values = list(_parsed(path, lines))
    if not values or values[0].get("neurogen_recording") != FORMAT:
        raise _foreign(path, 1)
    steps: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    complete = bool(values[-1].get("end"))
    for number, line in enumerate(values[1 : len(values) - complete], start=2):
        numbers = [line.get("index"), line.get("sample")]
        if not {"token", "logits", "top"} <= line.keys() or not all(isinstance(one, int) for one in numbers):
            raise _foreign(path, number)
        steps[line["index"], line["sample"]].append(line)
    return Recording(str(path), values[0], steps, complete)


def _parsed(path: str | Path, lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) > 1:  # cut off
                return
            raise _foreign(path, number) from None
        if not isinstance(value, dict):
            raise _foreign(path, number)
        yield value


def _foreign(path: str | Path, number: int) -> DataError:
    return DataError(
        f"{path} is no recording that this neurogen can read: line {number} does not belong to one. A recording is "
        "what neurogen run --record FILE writes."
    )


def environment(model: DecodableModel, sampler: Sampler) -> dict[str, Any]:
    """Everything beside the options that a run's tokens depend on."""
    weights = getattr(model, "model", None)
    return {
        "neurogen": __version__,
        "plugin": sampler.origin,
        "model's weights": fingerprint(weights) if isinstance(weights, torch.nn.Module) else model.name,
        "number format": str(getattr(model, "dtype", "")).removeprefix("torch."),
        "device": _device_name(getattr(model, "device", "")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def fingerprint(module: torch.nn.Module) -> str:
    """A digest of names, shapes and a part of every weight: two models that differ in training do not share it."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().reshape(-1)
        stride = max(1, flat.numel() * flat.element_size() // SAMPLED_BYTES)
        digest.update(flat[::stride].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _device_name(device: Any) -> str:
    if getattr(device, "type", "") == "cuda":
        return torch.cuda.get_device_name(device)
    return str(device)


def describe(logits: Tensor) -> dict[str, Any]:
    """A digest of logits [vocab] as they are stored, and the largest of them with their ids."""
    values = logits.detach().cpu().contiguous()
    digest = hashlib.blake2b(values.view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()
    top, ids = largest(values.float(), TOP)
    return {"logits": digest, "top": [list(pair) for pair in zip(ids.tolist(), top.tolist(), strict=True)]}


def key_of(row: RequestState) -> Key:
    """The prompt and the sample of a sequence."""
    sequence = row.request.key
    return sequence.prompt.index, sequence.sample


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
