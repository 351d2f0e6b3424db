"""Packed batches: every id a target once, ranks that share the data, and going on after any batch."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from batch_helpers import EOS, ByteTokenizer, contents, packed, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurogen import DataError, ModelError, ParameterError
from neurogen.data.batches import BrokenRow, PackedBatch, PackedStream, TextStream
from neurogen.models.tokenizer import load_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"


def line_of_ids(texts: Sequence[str]) -> list[int]:
    return [EOS, *(token for text in texts for token in [*text.encode(), EOS])]


def test_documents_are_joined_by_eos_and_cut_into_sequences(tmp_path: Path) -> None:
    (batch,) = packed(write(tmp_path / "a.jsonl", ["ab", "cdefg"]))
    a, b, c, d, e, f, g = b"abcdefg"
    assert batch.context_ids.tolist() == [[EOS, a, b, EOS], [c, d, e, f]]
    assert batch.target_ids.tolist() == [[a, b, EOS, c], [d, e, f, g]]
    assert batch.context_ids.dtype == batch.target_ids.dtype == torch.int64


def test_context_and_target_share_no_memory(tmp_path: Path) -> None:
    (batch,) = packed(write(tmp_path / "a.jsonl", ["ab", "cdefg"]))
    batch.target_ids.fill_(-100)
    assert batch.context_ids.min() >= 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=8),
    context=st.integers(1, 9),
    batch_size=st.integers(1, 4),
)
def test_every_id_and_the_eos_after_it_is_a_target_exactly_once(
    tmp_path: Path, texts: list[str], context: int, batch_size: int
) -> None:
    line = line_of_ids(texts)
    whole = (len(line) - 1) // context
    stream = packed(write(tmp_path / "a.jsonl", texts), context=context, batch_size=batch_size)
    if not whole:
        with pytest.raises(DataError, match="no whole sequence"):
            list(stream)
        return
    batches = list(stream)
    assert [len(batch.context_ids) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.cat([batch.target_ids for batch in batches]).flatten().tolist() == line[1 : whole * context + 1]
    assert torch.cat([batch.context_ids for batch in batches]).flatten().tolist() == line[: whole * context]
    assert stream.tokens == whole * context


def test_repeated_data_are_one_endless_line(tmp_path: Path) -> None:
    texts = ["ab", "cdefg", "h"]
    stream = packed(write(tmp_path / "a.jsonl", texts), repeat=True, batch_size=1)
    targets = torch.cat([batch.target_ids for batch in islice(stream, 50)]).flatten().tolist()
    assert targets == (line_of_ids(texts)[1:] * 50)[:200]
    assert (stream.tokens, stream.epoch) == (200, 200 // 11)


def test_data_shorter_than_a_batch_are_repeated_within_it(tmp_path: Path) -> None:
    stream = packed(write(tmp_path / "a.jsonl", ["a"]), repeat=True, batch_size=3)
    batch = next(iter(stream))
    assert batch.target_ids.flatten().tolist() == [97, EOS] * 6


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("repeat", [False, True])
def test_ranks_see_together_what_one_process_sees(tmp_path: Path, world_size: int, repeat: bool) -> None:
    path = write(tmp_path / "a.jsonl", [chr(97 + number) * (1 + number % 7) for number in range(26)])
    alone = list(islice(packed(path, batch_size=2 * world_size, repeat=repeat), 12))
    streams = [packed(path, world_size=world_size, rank=rank, repeat=repeat) for rank in range(world_size)]
    shares = [list(islice(stream, 12)) for stream in streams]
    for index, batch in enumerate(alone):
        parts = [share[index] for share in shares if index < len(share)]
        assert torch.equal(torch.cat([part.context_ids for part in parts]), batch.context_ids)
        assert torch.equal(torch.cat([part.target_ids for part in parts]), batch.target_ids)
        assert all(len(part.context_ids) == 2 for part in parts[:-1])
    assert sum(map(len, shares)) == sum(min(world_size, -(-len(batch.context_ids) // 2)) for batch in alone)
    assert len({json.dumps(stream.state_dict()) for stream in streams}) == 1


@pytest.fixture(params=["a.jsonl", "a.jsonl.zst", "a.txt", "a.parquet"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each kind with some documents, a long one among them."""
    texts = [f"document {number} " * (1 + number % 4) for number in range(15)]
    texts[6] = "a long document \n" * 40
    path = write(tmp_path / "plain.jsonl", texts)
    name = request.param
    if name == "a.jsonl.zst":
        (tmp_path / name).write_bytes(zstandard.ZstdCompressor().compress(b"broken\n" + path.read_bytes()))
    elif name == "a.txt":
        (tmp_path / name).write_text("\n<|endoftext|>\n".join(texts))
    elif name == "a.parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / name, row_group_size=4)
    else:
        return path
    return tmp_path / name


@pytest.mark.parametrize("repeat", [True, False])
def test_a_run_goes_on_after_any_batch(data: Path, tiny_model_dir: Path, repeat: bool) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)

    def stream() -> PackedStream:
        return PackedStream([data], tokenizer, context=16, batch_size=3, world_size=2, rank=1, repeat=repeat)

    def end(stream: PackedStream) -> tuple[int, int, int]:
        return stream.tokens, stream.epoch, stream.broken

    uninterrupted = stream()
    batches, states = [], [json.dumps(uninterrupted.state_dict())]
    for batch in islice(uninterrupted, 40):
        batches.append(batch)
        states.append(json.dumps(uninterrupted.state_dict()))
    assert len(batches) >= 10
    assert uninterrupted.epoch >= 1 + repeat
    for number, state in enumerate(states):
        resumed = stream()
        resumed.load_state_dict(json.loads(state))
        assert contents(list(islice(resumed, 40 - number))) == contents(batches[number:])
        assert end(resumed) == end(uninterrupted)


@pytest.mark.parametrize("texts", [["ab", "cdefg"], ["ab", "cdefg", "hijkl"]], ids=["even", "with a smaller batch"])
def test_after_the_last_batch_nothing_follows_and_then_the_data_again(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", texts)
    stream = packed(path)
    iterator = iter(stream)
    batches = [next(iterator) for _ in texts[1:]]
    resumed = packed(path)
    resumed.load_state_dict(stream.state_dict())
    assert list(iterator) == list(resumed) == []
    assert contents(list(resumed)) == contents(batches)


def test_going_on_costs_no_tokenization(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["ten bytes."] * 100)
    stream = packed(path, context=11, batch_size=1)
    list(islice(stream, 50))
    tokenizer = ByteTokenizer(EOS)
    resumed = PackedStream([path], tokenizer, context=11, batch_size=1, repeat=False)
    resumed.load_state_dict(stream.state_dict())
    assert tokenizer.encoded == 0
    next(iter(resumed))
    assert tokenizer.encoded == 1


def test_a_run_may_go_on_with_another_batch_size_context_and_number_of_ranks(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(40)]
    path = write(tmp_path / "a.jsonl", texts)
    first = packed(path)
    seen = [batch.target_ids for batch in islice(first, 7)]
    second = packed(path, context=6, batch_size=5, world_size=1)
    second.load_state_dict(first.state_dict())
    targets = torch.cat([part.flatten() for part in [*seen, *(batch.target_ids for batch in second)]]).tolist()
    line = line_of_ids(texts)
    assert targets == line[1 : len(targets) + 1]
    assert len(line) - len(targets) <= 6


def test_data_that_are_not_repeated_can_be_read_again(tmp_path: Path) -> None:
    stream = packed(write(tmp_path / "a.jsonl", ["ab", "cdefgh", "i" * 30]))
    first = contents(list(stream))
    assert first == contents(list(stream))
    assert len(first) == 5
    assert stream.epoch == 2


def test_batches_can_be_made_in_another_thread(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [f"text {number}" for number in range(40)])
    made: list[PackedBatch] = []
    thread = threading.Thread(target=lambda: made.extend(packed(path)))
    thread.start()
    thread.join()
    assert contents(made) == contents(list(packed(path)))


def test_broken_rows_are_reported_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "abcdefgh"}\n{"text": 1}\n')
    broken: list[BrokenRow] = []
    stream = packed(tmp_path / "a.jsonl", repeat=True, on_broken=broken.append)
    list(islice(stream, 3))
    assert [(row.line, row.reason) for row in broken] == [(2, "'text' must be a text, got 1")]
    assert stream.broken == 1


def test_data_without_text_end_a_repeated_stream(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(DataError, match="There is no text to train on"):
        next(iter(packed(tmp_path / "a.jsonl", repeat=True)))


def test_data_shorter_than_a_sequence_are_refused_where_they_are_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The data hold 3 tokens, which is no whole sequence of 4") as error:
        list(packed(write(tmp_path / "a.jsonl", ["ab"])))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be an integer >= 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer >= 1, got 1.5"),
        ({"world_size": 0}, "world_size must be an integer >= 1, got 0"),
        ({"world_size": 2, "rank": 2}, "rank must be an integer from 0 to world_size - 1 = 1, got 2"),
    ],
)
def test_numbers_out_of_their_domain_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        packed(write(tmp_path / "a.jsonl", ["ab"]), **options)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no end-of-text id \(EOS\)") as error:
        PackedStream([write(tmp_path / "a.jsonl", ["ab"])], ByteTokenizer(), context=4, batch_size=2)
    assert "\n" not in str(error.value)


def test_of_several_eos_ids_the_end_of_text_is_taken(tmp_path: Path) -> None:
    stream = PackedStream(
        [write(tmp_path / "a.jsonl", ["a"])], ByteTokenizer(299, EOS), context=2, batch_size=1, repeat=False
    )
    (batch,) = stream
    assert batch.target_ids.tolist() == [[97, EOS]]


def test_a_state_of_other_data_or_another_tokenizer_is_refused(tmp_path: Path) -> None:
    stream = packed(write(tmp_path / "a.jsonl", ["abcdefgh"]))
    next(iter(stream))
    state = stream.state_dict()
    with pytest.raises(DataError, match="another tokenizer: it had 300 ids and 256 ended a text, this one has 300 and"):
        PackedStream([tmp_path / "a.jsonl"], ByteTokenizer(299), context=4, batch_size=2).load_state_dict(state)
    with pytest.raises(DataError, match="is one in other data"):
        packed(write(tmp_path / "b.jsonl", ["abcdefgh"])).load_state_dict(state)
    for broken in ({}, {**state, "version": 99}):
        with pytest.raises(DataError, match="it is damaged, or was saved by another version"):
            stream.load_state_dict(broken)


def test_the_sample_of_the_web_survives_packing(stories_dir: Path) -> None:
    path = SHARED / "data" / "web_sample.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data/web_sample.jsonl is absent")
    tokenizer = load_tokenizer(stories_dir)
    (eos,) = tokenizer.eos_ids
    expected = [token for text in TextStream([path]) for token in [*tokenizer.encode(text, add_bos=False), eos]]
    stream = PackedStream([path], tokenizer, context=128, batch_size=8, repeat=False)
    targets = torch.cat([batch.target_ids for batch in stream]).flatten().tolist()
    assert targets == expected[: len(targets)]
    assert len(expected) - len(targets) < 128
