"""The data of a training run: the texts to train on, and those that are held out and measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from accelerate import Accelerator

from neurogen.contract.tokenizer import Tokenizer
from neurogen.data.batches import BrokenRow, PackedBatch, PackedStream
from neurogen.errors import DataError
from neurogen.training.options import TrainingOptions
from neurogen.training.processes import all_or_none, same_in_all

__all__ = ["TrainingData", "next_batches", "open_data"]

OTHER_DATA = (
    "The processes of this run do not read the same data. Each reads all files and takes its share of the batches: "
    "give every machine the same files, with the same names and contents."
)


@dataclass
class TrainingData:
    """The data of a run.

    Attributes:
        train: this process's share of the texts to train on.
        validation: this process's share of the held-out tokens; as many batches on every process.
        identity: short names for the contents of `data` and `val`.
        notices: what a user should know of them.
    """

    train: PackedStream
    validation: list[PackedBatch]
    identity: dict[str, str]
    notices: list[str] = field(default_factory=list)


def open_data(
    options: TrainingOptions,
    tokenizer: Tokenizer,
    accelerator: Accelerator,
    on_broken: Callable[[BrokenRow], None] | None,
) -> TrainingData:
    """Find the data of a run and read what is held out.

    Raises:
        DataError: they cannot be read, or are not the same for all processes.
    """
    shares: dict[str, Any] = {
        "context": options.context,
        "batch_size": options.sequences,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "pad_last": True,
        "parse_special": options.parse_special,
    }
    with all_or_none():
        train = PackedStream(
            options.data,
            tokenizer,
            **shares,
            repeat=options.max_chunks is not None,
            select=options.is_trained_on,
            on_broken=on_broken if accelerator.is_main_process else None,
        )
        data = TrainingData(train, [], {"data": train.text.fingerprint})
        if options.val:
            held_out = PackedStream(options.val, tokenizer, **shares, repeat=False)
            data.identity["val"] = held_out.text.fingerprint
            data.validation = _read(held_out, options.val_tokens)
        elif options.hold_out:
            _hold_out(data, options, tokenizer, shares)
        if data.validation and options.max_chunks is not None and options.max_chunks < options.val_every:
            data.notices.append(_never_measured(options, options.max_chunks))
    if not same_in_all((data.identity, len(data.validation))):
        raise DataError(OTHER_DATA)
    return data


def next_batches(batches: Iterator[PackedBatch], steps: int) -> list[PackedBatch]:
    """The next batches, as many on every process; fewer than `steps` where the data end.

    Raises:
        DataError: a process cannot read its data, or gets other batches than the rest.
    """
    with all_or_none():
        found = list(islice(batches, steps))
    if not same_in_all([batch.targets for batch in found]):
        raise DataError(OTHER_DATA)
    return found


def _hold_out(data: TrainingData, options: TrainingOptions, tokenizer: Tokenizer, shares: dict[str, Any]) -> None:
    """Read the documents that are held out, or note that no document is."""
    seen = 0

    def select(document: int) -> bool:
        nonlocal seen
        seen = max(seen, document)
        return not options.is_trained_on(document)

    held_out = PackedStream(options.data, tokenizer, **shares, repeat=False, select=select)
    try:
        data.validation = _read(held_out, options.val_tokens)
    except DataError:
        if not 0 < seen < options.hold_out:
            raise
        data.notices.append(
            f"Nothing is held out, so that nothing is measured on unseen text: every {options.hold_out:,}-th document "
            f"would be, and there are {seen:,}. Give --val DATA, or --hold-out with a smaller number."
        )


def _never_measured(options: TrainingOptions, chunks: int) -> str:
    what = (
        "data of --val" if options.val else f"held-out documents, every {options.hold_out:,}-th, are not trained on and"
    )
    other = "" if options.val else ", or --hold-out 0"
    return (
        f"The {what} are never measured on: this is done every {options.val_every:,} chunks, and the run ends after "
        f"{chunks:,}. Give --val-every with a smaller number{other}."
    )


def _read(held_out: PackedStream, tokens: int) -> list[PackedBatch]:
    """The fewest batches that hold this many tokens over all processes; all batches if there are fewer tokens."""
    batches = []
    for batch in held_out:
        batches.append(batch)
        if held_out.tokens >= tokens:
            break
    return batches
