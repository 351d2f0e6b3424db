"""Text to ids and back, whole and as a stream."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurogen.errors import ModelError, ParameterError
from neurogen.models.tokenizer import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from neurogen.text.stream_decoder import StreamDecoder

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAMPLE = "  Ça va? 漢字 and emoji 🙂👩‍👩‍👧 end.\n\tx "
FIXTURES_ARE_CONSTANT = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Ids of one kind in a row, and ids of all kinds mixed: reduced modulo the vocabulary of the tokenizer under test.
MIXED_IDS = st.lists(st.integers(0, 1 << 20), max_size=60)
BYTE_IDS = st.lists(st.integers(3, 258), max_size=60)
REPEATED_IDS = st.builds(lambda token, count: [token] * count, st.integers(0, 1 << 20), st.integers(0, 60))
ANY_IDS = st.one_of(MIXED_IDS, BYTE_IDS, REPEATED_IDS)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = StreamDecoder(tokenizer)
    return "".join(decoder.push(token) for token in ids) + decoder.flush()


def assert_streams_exactly(tokenizer: Tokenizer, numbers: list[int]) -> None:
    ids = [number % tokenizer.vocab_size for number in numbers]
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@pytest.fixture(scope="session")
def byte_fallback_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json in the manner of Llama 2: pieces with a visible space, and bytes for all other characters."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdehlo", "\u2581a"]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocab, merges=[("\u2581", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    folder = tmp_path_factory.mktemp("byte-fallback")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer.json with a chat template whose turns end in <|im_end|>, not in the eos token."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ðŁ", "Ĥð"]
    backend = Backend(models.BPE(vocab={piece: token for token, piece in enumerate(pieces)}, merges=[("ð", "Ł")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model_dir: Path) -> Tokenizer:
    return load_tokenizer(tiny_model_dir)


@pytest.fixture(scope="session")
def stories(stories_dir: Path) -> Tokenizer:
    return load_tokenizer(stories_dir)


@pytest.fixture(scope="session")
def byte_fallback(byte_fallback_dir: Path) -> Tokenizer:
    return load_tokenizer(byte_fallback_dir)


@pytest.fixture(scope="session")
def chat(chat_dir: Path) -> Tokenizer:
    return load_tokenizer(chat_dir)


def test_sentencepiece_is_used_where_there_is_no_tokenizer_json(tiny: Tokenizer, byte_fallback: Tokenizer) -> None:
    assert isinstance(tiny, SentencePieceTokenizer)
    assert isinstance(byte_fallback, HFTokenizer)


def test_sentencepiece_agrees_with_the_library(tiny: Tokenizer, tiny_model_dir: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(tiny_model_dir / "tokenizer.model"))
    ids = library.encode(SAMPLE)
    assert tiny.encode(SAMPLE) == [library.bos_id(), *ids]
    assert tiny.encode(SAMPLE, add_bos=False) == ids
    assert tiny.decode(ids) == library.decode(ids) == SAMPLE


@pytest.mark.parametrize("name", ["tiny", "stories", "byte_fallback", "chat"])
def test_bytes_of_tokens_join_to_the_text(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(SAMPLE, add_bos=False)
    joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert joined == (SAMPLE if name == "chat" else f" {SAMPLE}")  # SentencePiece begins a text with a space
    assert all(tokenizer.token_bytes(token) == b"" for token in [*tokenizer.special_ids, -1, tokenizer.vocab_size])


@pytest.mark.parametrize("name", ["tiny", "stories", "byte_fallback", "chat"])
def test_text_survives_a_round_trip(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE


KEPT = [
    "a\u2581b", "\u2581", " \u2581\u2581 a\u2581 ", "\ue000\u2581", "  a   b  ", " a", "a\r\nb\rc\n\n", "x\x00y",
    "\ufb01 \u2460 e\u0301 \u00c5 \uff21", "\ufeffa", "\u00a0\u3000a", "\t\t", " ", "",
]  # fmt: skip
"""White space, what normalisations change, and the character that SentencePiece writes for a space."""


@pytest.mark.parametrize("name", ["tiny", "stories", "chat"])
def test_no_character_of_a_text_is_lost_or_becomes_another(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    for text in KEPT:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert streamed(tokenizer, ids) == text
        if "\u2581" not in text and isinstance(tokenizer, SentencePieceTokenizer):
            assert tokenizer.encode(text, add_bos=False) == tokenizer._processor.encode(text)


@pytest.mark.parametrize("name", ["tiny", "byte_fallback", "chat"])
def test_half_of_a_character_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    for parse_special in (False, True):
        with pytest.raises(ParameterError, match=r"The text holds '\\ud83d', half of a character, at 2"):
            tokenizer.encode("a \ud83d b", parse_special=parse_special)


def test_bos_follows_the_tokenizers_convention(stories: Tokenizer, chat: Tokenizer) -> None:
    assert stories.bos_id == 1
    assert stories.encode("", add_bos=True) == [1]
    assert chat.bos_id is None
    assert chat.encode("") == []


def test_a_saved_tokenizer_is_the_same(tiny_model_dir: Path, chat: Tokenizer, tmp_path: Path) -> None:
    without_bos = SentencePieceTokenizer((tiny_model_dir / "tokenizer.model").read_bytes(), add_bos=False)
    for number, tokenizer in enumerate((without_bos, chat)):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer.save(folder)
        again = load_tokenizer(folder)
        assert again.encode(SAMPLE) == tokenizer.encode(SAMPLE)
        assert again.eos_ids == tokenizer.eos_ids


def test_special_and_unknown_ids_have_no_text(stories: Tokenizer) -> None:
    ids = stories.encode("Once upon", add_bos=False)
    assert stories.decode([1, *ids, 2, 99999, -1]) == "Once upon"
    assert streamed(stories, [1, ids[0], 2, 99999, ids[1], -1]) == "Once upon"


def test_token_text_shows_spaces_bytes_and_control_tokens(stories: Tokenizer, chat: Tokenizer) -> None:
    assert [stories.token_text(i) for i in stories.encode("Once upon")] == ["<s>", " Once", " upon"]
    assert stories.token_text(3 + 0xF0) == "<0xF0>"
    assert stories.token_text(512) == "<id 512>"
    assert [chat.token_text(i) for i in chat.encode(" a<|im_end|>", parse_special=True)] == [" ", "a", "<|im_end|>"]


def test_token_text_keeps_the_leading_space_of_a_converted_tokenizer(byte_fallback: Tokenizer) -> None:
    assert [byte_fallback.token_text(i) for i in byte_fallback.encode("a", add_bos=False)] == [" a"]


def test_chat_template_ends_where_the_assistant_begins(chat: Tokenizer) -> None:
    start, end = (chat.encode(token, parse_special=True)[0] for token in ("<|im_start|>", "<|im_end|>"))
    ids = chat.encode_chat([{"role": "user", "content": "hi"}])
    assert ids == [start, *chat.encode("user\nhi"), end, *chat.encode("\n"), start, *chat.encode("assistant\n")]


def test_end_of_turn_is_an_end_even_when_it_is_not_the_eos_token(chat: Tokenizer) -> None:
    assert {chat.token_text(token) for token in chat.eos_ids} == {"<|endoftext|>", "<|im_end|>"}


def test_chat_without_template_says_what_to_do(tiny: Tokenizer) -> None:
    assert not tiny.has_chat_template
    with pytest.raises(ModelError, match="no chat template"):
        tiny.encode_chat([{"role": "user", "content": "hi"}])


def test_a_message_that_the_template_cannot_read_is_a_model_error(chat: Tokenizer) -> None:
    with pytest.raises(ModelError, match="does not accept these messages"):
        chat.encode_chat([{"role": "user"}])


@FIXTURES_ARE_CONSTANT
@given(ids=ANY_IDS)
def test_stream_of_random_ids_equals_decode_sentencepiece(tiny: Tokenizer, ids: list[int]) -> None:
    assert_streams_exactly(tiny, ids)


@FIXTURES_ARE_CONSTANT
@given(ids=ANY_IDS)
def test_stream_of_random_ids_equals_decode_stories(stories: Tokenizer, ids: list[int]) -> None:
    assert_streams_exactly(stories, ids)


@FIXTURES_ARE_CONSTANT
@given(ids=ANY_IDS)
def test_stream_of_random_ids_equals_decode_byte_fallback(byte_fallback: Tokenizer, ids: list[int]) -> None:
    assert_streams_exactly(byte_fallback, ids)


@FIXTURES_ARE_CONSTANT
@given(ids=ANY_IDS)
def test_stream_of_random_ids_equals_decode_byte_level(chat: Tokenizer, ids: list[int]) -> None:
    assert_streams_exactly(chat, ids)


@FIXTURES_ARE_CONSTANT
@given(text=st.text(max_size=40) | st.text(alphabet="🙂👩\u200d漢字é \u2581a", max_size=40))
def test_stream_of_text_is_the_text_and_never_half_a_character(stories: Tokenizer, chat: Tokenizer, text: str) -> None:
    for tokenizer in (stories, chat):
        ids = tokenizer.encode(text)
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(token) for token in ids]
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


def test_stream_hands_out_a_character_with_its_last_byte(stories: Tokenizer) -> None:
    decoder = StreamDecoder(stories)
    ids = stories.encode("🙂!", add_bos=False)
    assert [decoder.push(token) for token in ids] == ["", "", "", "", "🙂", "!"]
    assert decoder.flush() == ""


def test_stream_drops_only_the_first_space(stories: Tokenizer) -> None:
    decoder = StreamDecoder(stories)
    assert [decoder.push(token) for token in stories.encode("Once upon")] == ["", "Once", " upon"]


def test_byte_fallback_keeps_valid_characters_beside_an_invalid_byte(byte_fallback: Tokenizer) -> None:
    ids = [3 + byte for byte in "🙂".encode() + b"\xff"]
    assert byte_fallback.decode(ids) == "🙂\ufffd"


def test_stream_decodes_a_short_window_however_long_the_sequence(stories: Tokenizer) -> None:
    """A model that has collapsed to one byte never completes a character: the window must not grow then either."""

    class Counting(SentencePieceTokenizer):
        longest = 0

        def _decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return super()._decode(ids)

    assert isinstance(stories, SentencePieceTokenizer)
    tokenizer = Counting(stories._proto)
    decoder = StreamDecoder(tokenizer)
    started = time.perf_counter()
    for token in [3 + 0xF0] * 20_000:
        decoder.push(token)
    assert tokenizer.longest <= 32
    assert time.perf_counter() - started < 10


@pytest.mark.slow
def test_smollm2_streams_exactly(smollm2: LanguageModel) -> None:
    tokenizer = smollm2.tokenizer

    @settings(deadline=None, max_examples=200)
    @given(ids=ANY_IDS, text=st.text(alphabet="🙂👩\u200d漢字é a1", max_size=40))
    def check(ids: list[int], text: str) -> None:
        assert_streams_exactly(tokenizer, ids)
        assert streamed(tokenizer, tokenizer.encode(text)) == text

    check()


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_damaged_tokenizer_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not a tokenizer")
    with pytest.raises(ModelError, match=r"cannot be read: .* copy it again"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_config_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((tiny_model_dir / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no such file or folder"):
        load_tokenizer(tmp_path / "absent")


def test_add_bos_token_in_the_config_is_heeded(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((tiny_model_dir / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    assert load_tokenizer(tmp_path).encode("") == []
