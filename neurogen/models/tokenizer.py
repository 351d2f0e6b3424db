"""Text to token ids and back. Knows nothing of models and samplers. `stream_decoder` decodes ids one at a time.

A folder with a SentencePiece model is read with the sentencepiece library itself; everything else goes through
transformers.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import pre_tokenizers

from neurogen.contract.tokenizer import Tokenizer
from neurogen.errors import ModelError
from neurogen.files import read_text, to_json
from neurogen.models.special_tokens import PRIVATE_USE, Spellings, TextIds, check_characters

__all__ = ["HFTokenizer", "SentencePieceTokenizer", "Tokenizer", "load_tokenizer"]

SENTENCEPIECE_FILE = "tokenizer.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPACE_SYMBOL = "\u2581"
REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# GPT-2 spells a byte as the character of that number where it is printable, else as the next one from 256 on.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
OTHER_BYTES = sorted(set(range(256)).difference(PRINTABLE))
BYTE_LEVEL = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(OTHER_BYTES)}

# Pre-tokenizers that llama.cpp splits digits in one by one and that transformers does not know (src/llama-vocab.cpp).
DIGIT_SPLITTING = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})

logger = logging.getLogger(__name__)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, read by the sentencepiece library itself."""

    def __init__(self, model_proto: bytes, *, add_bos: bool = True) -> None:
        """Take a serialized model.

        Args:
            model_proto: contents of a `tokenizer.model` file.
            add_bos: whether sequences start with the model's bos id, if it has one.

        Raises:
            RuntimeError: these bytes are no SentencePiece model.
        """
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model_proto)
        self._proto = model_proto
        self.vocab_size = self._processor.vocab_size()
        bos, eos = self._processor.bos_id(), self._processor.eos_id()
        self.bos_id = bos if bos >= 0 else None
        self.adds_bos = add_bos and self.bos_id is not None
        self.eos_ids = frozenset({eos} if eos >= 0 else ())
        self.special_ids = frozenset(i for i in range(self.vocab_size) if self._processor.is_control(i))
        self._spellings = Spellings({self._processor.id_to_piece(i): i for i in sorted(self.special_ids)})
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._byte_ids = byte_ids if all(map(self._processor.is_byte, byte_ids)) else None
        self.has_chat_template = False

    def _ids(self, text: str) -> list[int]:
        """The ids of a text; U+2581, which SentencePiece writes for a space, is spelled in bytes, to be kept apart."""
        check_characters(text)
        if SPACE_SYMBOL not in text or self._byte_ids is None:
            return list(self._processor.encode(text))
        stand_in = next(one for one in map(chr, PRIVATE_USE) if one not in text and self._is_unknown(one))
        ids: list[int] = self._processor.encode(text.replace(SPACE_SYMBOL, stand_in))
        spelled, wanted = ([self._byte_ids[byte] for byte in one.encode()] for one in (stand_in, SPACE_SYMBOL))
        for place in range(len(ids) - len(spelled) + 1):
            if ids[place : place + len(spelled)] == spelled:
                ids[place : place + len(spelled)] = wanted
        return ids

    def _is_unknown(self, piece: str) -> bool:
        return bool(self._processor.is_unknown(self._processor.piece_to_id(piece)))

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """See `Tokenizer.encode`."""
        parts = self._spellings.split(text) if parse_special else (text,)
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._ids(part)
        return [self.bos_id, *ids] if add_bos and self.adds_bos and self.bos_id is not None else ids

    def _decode(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids)) if ids else ""

    def token_text(self, token: int) -> str:
        """See `Tokenizer.token_text`."""
        if not 0 <= token < self.vocab_size:
            return f"<id {token}>"
        return str(self._processor.id_to_piece(token)).replace(SPACE_SYMBOL, " ")

    def token_bytes(self, token: int) -> bytes:
        """See `Tokenizer.token_bytes`; the unknown token has no bytes."""
        if not 0 <= token < self.vocab_size or self._processor.is_unknown(token):
            return b""
        if self._processor.is_byte(token):
            return bytes.fromhex(self._processor.id_to_piece(token)[3:5])
        return super().token_bytes(token)

    def special_in(self, text: str) -> list[str]:
        """See `Tokenizer.special_in`."""
        return self._spellings.found(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, parse_special: bool = False) -> list[int]:
        """Raise ModelError: a SentencePiece model carries no chat template."""
        raise ModelError(_NO_CHAT_TEMPLATE)

    def save(self, folder: Path) -> None:
        """See `Tokenizer.save`."""
        (folder / SENTENCEPIECE_FILE).write_bytes(self._proto)
        if not self.adds_bos:
            (folder / CONFIG_FILE).write_text(to_json({"add_bos_token": False}), encoding="utf-8")


class HFTokenizer(Tokenizer):
    """A tokenizer that transformers has loaded (byte-level BPE, converted SentencePiece and others)."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a transformers tokenizer (`PreTrainedTokenizerBase`)."""
        self._tokenizer = tokenizer
        vocab: dict[str, int] = tokenizer.get_vocab()
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.bos_id = tokenizer.bos_token_id
        self.special_ids = _special_ids(tokenizer)
        self._text_ids = TextIds(tokenizer, self.special_ids)
        self.has_chat_template = bool(tokenizer.chat_template)
        self._bytes = _byte_tokens(vocab) if _decodes_with(tokenizer, "ByteFallback") else {}
        self._is_byte_level = _decodes_with(tokenizer, "ByteLevel")
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._spells_space = SPACE_SYMBOL if any(piece.startswith(SPACE_SYMBOL) for piece in vocab) else None
        self.adds_bos = self.bos_id is not None and tokenizer.encode("")[:1] == [self.bos_id]
        self.eos_ids = frozenset(i for i in (tokenizer.eos_token_id, self._end_of_turn()) if i is not None)

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """See `Tokenizer.encode`; with `parse_special` the ids are those of transformers for any text."""
        ids = self._text_ids.parsed(text) if parse_special else self._text_ids.of_text(text)
        return [self.bos_id, *ids] if add_bos and self.adds_bos and self.bos_id is not None else ids

    def _decode(self, ids: list[int]) -> str:
        if not self._bytes:
            return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        # The tokenizers library spoils every character of a run of byte tokens when one byte of it is invalid, so that
        # nothing of a run would be final before its end. Such runs are decoded here, as sentencepiece does it.
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        return str(self._tokenizer.backend_tokenizer.decoder.decode(_join_bytes(ids, pieces, self._bytes)))

    def token_text(self, token: int) -> str:
        """See `Tokenizer.token_text`."""
        piece = self._tokenizer.convert_ids_to_tokens(token) if 0 <= token < self.vocab_size else None
        if piece is None:
            return f"<id {token}>"
        if token in self.special_ids or token in self._bytes:
            return str(piece)
        if self._spells_space is not None:
            return str(piece).replace(self._spells_space, " ")
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return str(piece) if REPLACEMENT in text else text

    def token_bytes(self, token: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        if token in self._bytes:
            return self._bytes[token]
        if not self._is_byte_level or not self.has_text(token) or token in self._added:
            return super().token_bytes(token)
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return bytes(BYTE_LEVEL[character] for character in piece) if piece is not None else b""

    def special_in(self, text: str) -> list[str]:
        """See `Tokenizer.special_in`."""
        return self._text_ids.spellings.found(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, parse_special: bool = False) -> list[int]:
        """See `Tokenizer.encode_chat`."""
        if not self.has_chat_template:
            raise ModelError(_NO_CHAT_TEMPLATE)
        said = [dict(message) for message in messages]
        if parse_special or not self._text_ids.concerns(said):
            return self._text_ids.parsed(self._render(said, add_generation_prompt=True))
        guarded, guard = self._text_ids.guarded(said)
        return self._text_ids.of_template(self._render(guarded, add_generation_prompt=True), guard)

    def save(self, folder: Path) -> None:
        """See `Tokenizer.save`."""
        self._tokenizer.save_pretrained(str(folder))

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except Exception as error:  # templates are programs: any error of theirs concerns the messages or the template
            raise ModelError(
                f"The model's chat template does not accept these messages: {error}. Check the roles, their order "
                "(most templates want user and assistant in turn) and that each message has `role` and `content`."
            ) from None

    def _end_of_turn(self) -> int | None:
        """Find the special token that the chat template puts after an assistant's answer."""
        if not self.has_chat_template:
            return None
        answer = "neurogen"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            _, _, rest = self._render(turns, add_generation_prompt=False).rpartition(answer)
        except ModelError:
            return None
        ids = self._text_ids.parsed(rest.strip())
        return ids[0] if ids and ids[0] in self.special_ids and ids[0] != self.bos_id else None


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer that lies at `path`; nothing is fetched from a network, no code of the model's is run.

    Args:
        path: a model's folder, a SentencePiece `.model` file, a `tokenizer.json`, or a `.gguf` file.

    Raises:
        ModelError: there is no tokenizer, or it is broken.
    """
    folder = path.parent if path.name == FAST_FILE else path
    sentencepiece_file = path if path.suffix == ".model" else folder / SENTENCEPIECE_FILE
    if path.suffix == ".gguf":
        return _load_gguf(path)
    if sentencepiece_file.is_file() and not _needs_transformers(folder, sentencepiece_file):
        return _load_sentencepiece(sentencepiece_file)
    if not folder.is_dir():
        raise ModelError(f"There is no tokenizer at {path}: no such file or folder. Check the spelling of the path.")
    if not any((folder / name).is_file() for name in (FAST_FILE, SENTENCEPIECE_FILE, CONFIG_FILE, "vocab.json")):
        raise ModelError(
            f"{folder} holds no tokenizer: expected {FAST_FILE} or {SENTENCEPIECE_FILE}. "
            "Copy the tokenizer's files beside the model's weights."
        )
    return _load_transformers(folder)


_NO_CHAT_TEMPLATE = (
    "This model's tokenizer has no chat template: it continues text and was not trained on conversations in a known "
    "form. Give it a plain prompt, or use a model made for chat."
)


def _needs_transformers(folder: Path, sentencepiece_file: Path) -> bool:
    """Tell whether the folder adds to its SentencePiece model what only transformers reads."""
    if folder == sentencepiece_file:
        return False
    if (folder / FAST_FILE).is_file():
        return True
    config = _tokenizer_config(folder)
    extras = ("chat_template.jinja", "added_tokens.json")
    return bool(config.get("chat_template")) or any((folder / name).is_file() for name in extras)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(folder / CONFIG_FILE))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _broken(folder / CONFIG_FILE, error) from None
    return config if isinstance(config, dict) else {}


def _load_sentencepiece(file: Path) -> SentencePieceTokenizer:
    add_bos = _tokenizer_config(file.parent).get("add_bos_token", True)
    try:
        return SentencePieceTokenizer(file.read_bytes(), add_bos=bool(add_bos))
    except (OSError, RuntimeError) as error:
        raise _broken(file, error) from None


def _load_transformers(folder: Path) -> HFTokenizer:
    from transformers import AutoTokenizer

    try:
        return HFTokenizer(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
    except Exception as error:  # the library raises whatever its parsers raise, bare Exception included
        raise _broken(folder, error) from None


def _load_gguf(file: Path) -> HFTokenizer:
    from transformers import AutoTokenizer

    if not file.is_file():
        raise ModelError(f"There is no file {file}. Check the spelling of the path.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=file.name, trust_remote_code=False, local_files_only=True
        )
        _restore_digit_splitting(tokenizer, file)
    except Exception as error:
        raise _broken(file, error) from None
    return HFTokenizer(tokenizer)


def _restore_digit_splitting(tokenizer: Any, file: Path) -> None:
    """Split digits where the file's pre-tokenizer does; transformers 5.24 falls back to GPT-2's rule without a word."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("tokenizer.ggml.pre") in DIGIT_SPLITTING:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _decodes_with(tokenizer: Any, part: str) -> bool:
    """Whether the tokenizer's decoder has a part of this type."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and f'"{part}"' in decoder.__getstate__().decode()


def _byte_tokens(vocab: Mapping[str, int]) -> dict[int, bytes]:
    matches = ((BYTE_TOKEN.fullmatch(piece), token) for piece, token in vocab.items())
    return {token: bytes.fromhex(match[1]) for match, token in matches if match}


def _join_bytes(ids: Sequence[int], pieces: Sequence[str], byte_tokens: Mapping[int, bytes]) -> list[str]:
    """Replace each run of byte tokens by its text, every byte that is part of no character by U+FFFD."""
    joined: list[str] = []
    run = b""
    for token, piece in zip(ids, pieces, strict=True):
        if token in byte_tokens:
            run += byte_tokens[token]
            continue
        if run:
            joined.append(_decode_bytes(run))
            run = b""
        joined.append(piece)
    return [*joined, _decode_bytes(run)] if run else joined


def _decode_bytes(run: bytes) -> str:
    # "surrogateescape" gives one code point for each undecodable byte, where "replace" may give one for several.
    return re.sub("[\udc80-\udcff]", REPLACEMENT, run.decode("utf-8", errors="surrogateescape"))


def _broken(path: Path, error: Exception) -> ModelError:
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    return ModelError(
        f"The tokenizer at {path} cannot be read: {cause}. The file is damaged, incomplete or of another kind; "
        "copy it again from where the model came from."
    )
