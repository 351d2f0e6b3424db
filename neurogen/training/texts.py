"""The texts of a training run: what is trained on, and what is held out and measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from neurogen.errors import DataError
from neurogen.training.processes import all_or_none, one_each

if TYPE_CHECKING:
    from neurogen.data.batches import BrokenRow, PackedBatch, PackedStream
    from neurogen.models.tokenizer import Tokenizer
    from neurogen.training.options import TrainingOptions

__all__ = ["TrainingData", "batches_of_chunk", "open_data"]


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
    options: TrainingOptions, tokenizer: Tokenizer, accelerator: Any, on_broken: Callable[[BrokenRow], None] | None
) -> TrainingData:
    """Find the data of a run and read what is held out.

    Raises:
        DataError: they cannot be read, or are not the same for all processes.
    """
    from neurogen.data.batches import PackedStream

    shares: dict[str, Any] = {
        "context": options.context,
        "batch_size": options.sequences,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "pad_last": True,
        "parse_special": options.parse_special,
    }
    with all_or_none(accelerator):
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
            data.validation = _measured(held_out, options.val_tokens)
        elif options.hold_out:
            _hold_out(data, options, tokenizer, shares)
        if data.validation and options.max_chunks is not None and options.max_chunks < options.val_every:
            data.notices.append(_never_measured(options, options.max_chunks))
    _check_same(accelerator, data)
    return data


def batches_of_chunk(accelerator: Any, batches: Iterator[PackedBatch], steps: int) -> list[PackedBatch]:
    """The next batches, as many on every process; fewer than `steps` where the data end.

    Raises:
        DataError: a process cannot read its data, or gets other batches than the rest.
    """
    with all_or_none(accelerator):
        found = list(islice(batches, steps))
    every = one_each(accelerator, [len(found), sum(batch.targets for batch in found)])
    if any(numbers != every[0] for numbers in every):
        raise _other_data()
    return found


def _hold_out(data: TrainingData, options: TrainingOptions, tokenizer: Tokenizer, shares: dict[str, Any]) -> None:
    """Read the documents that are not trained on, or note that there are none."""
    from neurogen.data.batches import PackedStream

    seen = 0

    def select(document: int) -> bool:
        nonlocal seen
        seen = max(seen, document)
        return not options.is_trained_on(document)

    held_out = PackedStream(options.data, tokenizer, **shares, repeat=False, select=select)
    try:
        data.validation = _measured(held_out, options.val_tokens)
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


def _measured(held_out: PackedStream, tokens: int) -> list[PackedBatch]:
    """As many batches as hold so many tokens over all processes, or all there are."""
    batches = []
    for batch in held_out:
        batches.append(batch)
        if held_out.tokens >= tokens:
            break
    return batches


def _check_same(accelerator: Any, data: TrainingData) -> None:
    own = [int(name, 16) >> 1 for name in data.identity.values()]  # 64 bits without a sign, but for one
    every = one_each(accelerator, [*own, len(data.validation)])
    if any(numbers != every[0] for numbers in every):
        raise _other_data()


def _other_data() -> DataError:
    return DataError(
        "The processes of this run do not read the same data. Each reads all files and takes its share of the batches: "
        "give every machine the same files, with the same names and contents."
    )
