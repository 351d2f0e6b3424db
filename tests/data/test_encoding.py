"""Long documents, encoded piece by piece, have the ids of the whole, and little is held of them."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from batch_helpers import EOS, ByteTokenizer, contents, packed, write
from document_helpers import WRITERS

from neurogen.data import documents, encoding, rows
from neurogen.data.batches import PackedStream, TextStream
from neurogen.data.encoding import segments
from neurogen.models.tokenizer import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

WORDS = (
    "the",
    "little",
    "girl",
    "saw",
    "a",
    "red",
    "ball",
    "in",
    "park.",
    "2024",
    "x=1;",
    "\u00e9t\u00e9",
    "\u4f60\u597d",
)
PIECE = 400


def prose(seed: int = 1, words: int = 2000) -> str:
    chance = random.Random(seed)
    return "".join(chance.choice(WORDS) + chance.choice((" ", " ", " ", "\n", "  ", "\n\n")) for _ in range(words))


TEXTS = {
    "prose": prose(),
    "one line": prose().replace("\n", " "),
    "no space": prose().replace("\n", "").replace(" ", ""),
    "a run": "b" + "a" * 2003,
    "runs": "".join(random.Random(4).choice("ab") * random.Random(n).randrange(700) for n in range(9)),
    "noise": "".join(random.Random(2).choices("aehlt ", k=6000)),
    "spaces": "a  b   \n\n\n   c\t\t" * 300,
    "combining": "e\u0301" * 1500,
}


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def sentencepiece_model(**options: Any) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*prose(7).split("\n"), "aaaa " * 50, "aaaaaaaa"]), model_writer=model, minloglevel=2,
        vocab_size=400, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, **options,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def byte_level() -> Tokenizer:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast.train_from_iterator([prose(7)], trainers.BpeTrainer(vocab_size=400, special_tokens=["<e>"]))
    return HFTokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<e>"))


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "as trained here": lambda: sentencepiece_model(
        model_type="bpe", byte_fallback=True, remove_extra_whitespaces=False, normalization_rule_name="identity"
    ),
    "normalizing": lambda: sentencepiece_model(model_type="bpe", character_coverage=0.98),
    "over words": lambda: sentencepiece_model(model_type="unigram", split_by_whitespace=False),
    "byte level": byte_level,
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def ids_in_pieces(path: Path, tokenizer: Tokenizer) -> list[list[int]]:
    found = segments(TextStream([path]), tokenizer, min(tokenizer.eos_ids), prefix="", repeat=False)
    return [segment.ids.tolist() for segment in found]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_document_in_pieces_has_the_ids_of_the_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    tokenizer: Tokenizer,
    text: str,
    name: str,
) -> None:
    for module in (rows, documents):
        monkeypatch.setattr(module, "PIECE", PIECE)
    WRITERS[name](tmp_path / name, ["short", text, "another"])
    found = ids_in_pieces(tmp_path / name, tokenizer)
    whole = [tokenizer.encode(part, add_bos=False) for part in ("short", text.removesuffix("\n"), "another")]
    if name == "a.jsonl":
        whole[1] = tokenizer.encode(text, add_bos=False)
    (eos,) = tokenizer.eos_ids
    expected = [token for ids in whole for token in [*ids, eos]]
    if "over words" in request.node.name and text == TEXTS["runs"]:
        assert len(flat(found)) == len(expected)  # "aaaa", "a" is as probable as "a", "aaaa"
        return
    assert flat(found) == expected


def test_prose_comes_in_about_as_many_segments_as_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(documents, "PIECE", PIECE)
    path = write(tmp_path / "a.jsonl", [prose()])
    assert len(ids_in_pieces(path, tokenizer)) > len(prose()) / PIECE / 3


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_no_cut_of_a_large_document_adds_a_space(tmp_path: Path, stories_dir: Path, name: str) -> None:
    text = prose(words=60_000)
    assert len(text) > 3 * rows.PIECE
    WRITERS[name](tmp_path / name, [text])
    tokenizer = load_tokenizer(stories_dir)
    found = ids_in_pieces(tmp_path / name, tokenizer)
    assert len(found) > 3
    assert flat(found)[:-1] == tokenizer.encode(text.removesuffix("\n") if name == "a.txt" else text, add_bos=False)


def test_a_text_without_an_end_of_an_id_is_cut_where_it_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pairs(ByteTokenizer):
        """Ids that depend on all of the text before them."""

        def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
            return [1 + (ord(c) + len(text)) % 1009 for c in text]

    monkeypatch.setattr(documents, "PIECE", PIECE)
    monkeypatch.setattr(encoding, "LONGEST_TEXT", 3 * PIECE)
    path = write(tmp_path / "a.jsonl", ["x" * 10_000])
    found = ids_in_pieces(path, Pairs(EOS))
    assert [len(ids) for ids in found][:-1] == [3 * PIECE] * 8
    assert sum(map(len, found)) == 10_001


def test_a_run_goes_on_within_a_long_document_and_its_state_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    for module in (rows, documents):
        monkeypatch.setattr(module, "PIECE", PIECE)
    for name in ("a.jsonl", "a.txt"):
        WRITERS[name](tmp_path / name, ["short", prose(3, words=500), "another"])

    def stream() -> PackedStream:
        return PackedStream(
            [tmp_path / "a.jsonl", tmp_path / "a.txt"], tokenizer, context=8, batch_size=7, repeat=False, pad_last=True
        )

    uninterrupted = stream()
    batches, states = [], [json.dumps(uninterrupted.state_dict())]
    for batch in uninterrupted:
        batches.append(batch)
        states.append(json.dumps(uninterrupted.state_dict()))
    assert max(map(len, states)) < 1000
    for number in range(0, len(states), 3):
        resumed = stream()
        resumed.load_state_dict(json.loads(states[number]))
        assert json.loads(json.dumps(resumed.state_dict())) == json.loads(states[number])
        assert contents(list(islice(resumed, 4))) == contents(batches[number : number + 4])
    abandoned = stream()
    again: list[Any] = []
    while len(again) < len(batches):
        again += list(islice(abandoned, 5))  # each time a new iteration, which begins where the last was left
    assert contents(again) == contents(batches)


def test_broken_lines_of_a_long_document_are_counted_once_also_where_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PIECE", 64)
    (tmp_path / "a.txt").write_bytes(b"a line of text\n\xff\n" * 50)
    stream, named = packed(tmp_path / "a.txt"), []
    iterator = iter(stream)
    while next(iterator, None) is not None:
        resumed = packed(tmp_path / "a.txt", on_broken=named.append)
        resumed.load_state_dict(stream.state_dict())
        before = stream.broken
        assert resumed.broken == before
        list(resumed)
        assert resumed.broken == 50
        assert len(named) == 50 - before
        named.clear()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_memory_does_not_grow_with_a_document(tmp_path: Path, name: str) -> None:
    text = prose(words=20_000)  # about 100 kB
    WRITERS[name](tmp_path / name, [text * 20])
    stream = packed(tmp_path / name, context=1024, batch_size=8)
    next(iter(stream))
    tracemalloc.start()
    try:
        count = sum(batch.targets for batch in packed(tmp_path / name, context=1024, batch_size=8))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 20 * len(text)
    row = 5 * 20 * len(text) if name == "a.jsonl" else 0  # which is read whole: bytes, JSON and text
    assert peak < row + 6_000_000


# The end of the data


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_ranks_make_the_same_batches_to_the_end_and_lose_nothing_whatever_is_left(
    tmp_path: Path, world_size: int, batch_size: int
) -> None:
    context = 4
    full = world_size * batch_size * context
    for length in range(1, 2 * full + 2):
        path = write(tmp_path / "a.jsonl", ["".join(chr(97 + n % 26) for n in range(length))])
        line = [EOS, *path.read_bytes()[10:-3], EOS]
        options: dict[str, Any] = {"context": context, "batch_size": batch_size, "world_size": world_size}
        shares = [list(packed(path, **options, rank=rank, pad_last=True)) for rank in range(world_size)]
        for joint in zip(*shares, strict=True):  # as many batches on every rank
            shapes = {(*batch.context_ids.shape, batch.targets) for batch in joint}
            assert len(shapes) == 1  # of the same shape
            assert joint[0].targets == sum(int((batch.target_ids != -100).sum()) for batch in joint) > 0
            rows_before = [batch.context_ids[batch.target_ids != -100].tolist() for batch in joint]
            targets = [batch.target_ids[batch.target_ids != -100].tolist() for batch in joint]
            assert flat(rows_before) == line[: joint[0].targets]
            assert flat(targets) == line[1 : joint[0].targets + 1]
            line = line[joint[0].targets :]
        assert len(line) == 1


def test_data_read_once_go_on_as_if_they_were_repeated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["abcdef", "ghi"])
    once = packed(path, pad_last=True)
    first = list(once)
    twice = packed(path, repeat=True, pad_last=True)
    twice.load_state_dict(json.loads(json.dumps(once.state_dict())) | {"ended": True})
    (batch,) = islice(twice, 1)
    assert sum(int((b.target_ids != -100).sum()) for b in first) == 11
    assert batch.context_ids.flatten().tolist() == [EOS, *b"abcdef", EOS]
    assert (once.epoch, twice.epoch) == (1, 1)


def test_positions_that_were_saved_with_all_their_ids_are_still_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [f"text {number}" for number in range(20)])
    stream = packed(path)
    batches = list(islice(stream, 3))
    rest = contents(list(packed(path)))[3:]
    text = {
        "version": 1, "sources": documents.names_and_sizes(stream.text._sources), "epoch": 0, "part": 0,
        "position": {"examples_iterable": {"shard_idx": 0, "shard_example_idx": 4, "type": "ExamplesIterable"},
                     "epoch": 0},
        "row": 4, "documents": 4, "open": False, "broken": 0,
    }  # fmt: skip
    ids = [EOS, *(token for n in range(4) for token in [*f"text {n}".encode(), EOS])][24:]
    old = {"version": 1, "tokenizer": [300, EOS], "text": text, "ids": ids, "tokens": 24, "given": True, "ended": False}
    resumed = packed(path)
    resumed.load_state_dict(old)
    assert contents(list(resumed)) == rest
    assert torch.equal(batches[0].context_ids[0, :1], torch.tensor([EOS]))
