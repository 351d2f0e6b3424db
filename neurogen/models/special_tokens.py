"""Special tokens that are spelled out in a text: where they are, and how a rendered chat template is encoded so that
the template's own are tokens while those in the messages stay text.

Text from elsewhere must not end a document or begin a turn of a conversation, even if it spells a special token.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from neurogen.errors import ParameterError

__all__ = ["PRIVATE_USE", "Spellings", "TemplateEncoder", "TextIds", "check_characters"]

PRIVATE_USE = range(0xE000, 0xF900)
"""Characters without a meaning of their own, one of which marks spellings while a template is rendered."""

ALIAS = "\U000f0000"
"""Begins and ends the random spellings; it is outside of `PRIVATE_USE`."""


def check_characters(text: str) -> None:
    """Refuse a text that UTF-8 cannot encode.

    Raises:
        ParameterError: it holds half of a character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ParameterError(
            f"The text holds {text[error.start]!r}, half of a character, at {error.start}: it was cut or decoded "
            "wrongly. Give text whose characters are whole.",
            "text",
        ) from None


class Spellings:
    """The texts that special tokens are spelled with.

    Args:
        ids: text -> id of the special token; texts are not empty.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        longest_first = sorted(ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) if ids else "(?!)")
        # A text that ends with the beginning of a spelling, or begins with the end of one, may complete it elsewhere.
        self._heads = tuple({text[:end] for text in ids for end in range(1, len(text))})
        self._tails = tuple({text[start:] for text in ids for start in range(1, len(text))})

    def found(self, text: str) -> list[str]:
        """The special tokens spelled out in a text, each once, in order."""
        return list(dict.fromkeys(self.pattern.findall(text)))

    def split(self, text: str) -> Iterable[str | int]:
        """The text in order: the id of each special token spelled out in it, and the texts between them."""
        end = 0
        for match in self.pattern.finditer(text):
            yield text[end : match.start()]
            yield self.ids[match.group()]
            end = match.end()
        yield text[end:]

    def may_join(self, text: str) -> bool:
        """Whether a text put beside another may spell out a special token together with it."""
        stripped = text.strip()  # templates may strip what they insert
        return stripped.endswith(self._heads) or stripped.startswith(self._tails)

    def guarded(self, value: Any, guard: str) -> Any:
        """A message with a character in the middle of every spelling, and where one could be completed.

        Args:
            value: a text, or lists and mappings of such.
            guard: the character.
        """
        if isinstance(value, Mapping):
            return {name: self.guarded(entry, guard) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.guarded(entry, guard) for entry in value]
        return self._guarded_text(value, guard) if isinstance(value, str) else value

    def _guarded_text(self, text: str, guard: str) -> str:
        text = self.pattern.sub(lambda match: f"{match[0][:1]}{guard}{match[0][1:]}", text)
        stripped = text.strip()
        before, _, behind = text.partition(stripped) if stripped else ("", "", text)
        first = guard if stripped.startswith(self._tails) else ""
        last = guard if stripped.endswith(self._heads) else ""
        return f"{before}{first}{stripped}{last}{behind}"


class TemplateEncoder:
    """Encodes rendered chat templates with the special tokens of the template alone.

    It works on a copy of the tokenizer that takes every special token in a text for text, and that has another, random
    spelling for each, which nobody can write into a message. What the template itself has written is spelled so, the
    rest stays as it is, and all is encoded at once: ordinary text has the ids that the tokenizer gives it anyway, also
    where a template and a message meet.

    Args:
        backend: a `tokenizers.Tokenizer`; not modified.
        spellings: of its special tokens.
    """

    def __init__(self, backend: Any, spellings: Spellings) -> None:
        self._spellings = spellings
        nonce = secrets.token_hex(8)
        self._aliases = {text: f"{ALIAS}{nonce}:{token}{ALIAS}" for text, token in spellings.ids.items()}
        values = json.loads(backend.to_str())
        special = set(spellings.ids.values())
        for entry in values["added_tokens"]:
            entry["special"] = entry["special"] or entry["id"] in special
        self._copy = Tokenizer.from_str(json.dumps(values))
        self._copy.no_truncation()
        self._copy.no_padding()
        self._copy.encode_special_tokens = True
        traits = ("lstrip", "rstrip", "single_word", "normalized")
        own = {entry["content"]: {name: entry[name] for name in traits} for entry in values["added_tokens"]}
        self._copy.add_tokens(
            [
                AddedToken(alias, special=False, **own.get(text, {"normalized": False}))
                for text, alias in self._aliases.items()
            ]
        )
        self._ids = {self._copy.token_to_id(self._aliases[text]): token for text, token in spellings.ids.items()}

    def encode(self, rendered: str, guard: str) -> list[tuple[int, bool]]:
        """The ids of a rendered template, and of each whether it is a special token of the template's.

        Args:
            rendered: what the template made of messages as `Spellings.guarded` gives them.
            guard: the character that guards them.
        """
        text = self._spellings.pattern.sub(lambda match: self._aliases[match[0]], rendered).replace(guard, "")
        ids = self._copy.encode(text, add_special_tokens=False).ids
        return [(self._ids.get(token, token), token in self._ids) for token in ids]


class TextIds:
    """The ids of a transformers tokenizer: with special tokens parsed from their spellings, or with none.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        special_ids: ids of its special tokens.

    Attributes:
        spellings: of the special tokens.
    """

    def __init__(self, tokenizer: Any, special_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        pieces = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(special_ids)}
        self.spellings = Spellings({piece: token for token, piece in pieces.items() if piece})
        # A text with unknown characters has unknown tokens: these are not spelled out.
        self._control = frozenset(special_ids) - {tokenizer.unk_token_id}
        self._pieces = pieces
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._of_templates: TemplateEncoder | None = None
        self._lock = threading.Lock()  # the way to encode is a setting of the tokenizer's, for all threads

    def parsed(self, text: str) -> list[int]:
        """The ids as transformers gives them: a special token that is spelled out becomes that token."""
        check_characters(text)
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=False))

    def of_text(self, text: str) -> list[int]:
        """The ids of a text in which spellings of special tokens are ordinary text."""
        check_characters(text)
        if self._backend is None and not self.spellings.found(text):
            return self.parsed(text)  # Python's tokenizers know no middle way: all added tokens or none
        with self._lock:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return [one for token in ids for one in self._literal(token)]

    def concerns(self, value: Any) -> bool:
        """Whether a message, or a text in it, spells out a special token or may complete one."""
        if isinstance(value, Mapping | list | tuple):
            entries = value.values() if isinstance(value, Mapping) else value
            return any(map(self.concerns, entries))
        if not isinstance(value, str):
            return False
        spelled = self.spellings.found(value) or not self._control.isdisjoint(self.parsed(value))
        return bool(spelled) or self.spellings.may_join(value)

    def guarded(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        """The messages with a character in every spelling, and that character."""
        taken = "".join(_texts_in([messages, self._tokenizer.chat_template]))
        guard = next(chr(code) for code in PRIVATE_USE if chr(code) not in taken)
        return self.spellings.guarded(messages, guard), guard

    def of_template(self, rendered: str, guard: str) -> list[int]:
        """The ids of a template rendered with guarded messages: special tokens are the template's own alone."""
        if self._backend is None:
            parts = self._stripped(list(self.spellings.split(rendered)))
            ids = ([part] if isinstance(part, int) else self.of_text(part.replace(guard, "")) for part in parts)
            return [token for part in ids for token in part]
        with self._lock:
            if self._of_templates is None:
                self._of_templates = TemplateEncoder(self._backend, self.spellings)
            encoded = self._of_templates.encode(rendered, guard)
        return [one for token, own in encoded for one in ([token] if own else self._literal(token))]

    def _stripped(self, parts: list[str | int]) -> list[str | int]:
        """The parts without the white space that the special tokens beside them take."""
        traits = self._tokenizer.added_tokens_decoder
        for place, part in enumerate(parts):
            token = traits.get(part) if isinstance(part, int) else None
            if token is not None:  # between two texts, which may be empty
                before, behind = parts[place - 1], parts[place + 1]
                parts[place - 1] = before.rstrip() if token.lstrip and isinstance(before, str) else before
                parts[place + 1] = behind.lstrip() if token.rstrip and isinstance(behind, str) else behind
        return [part for part in parts if part != ""]

    def _literal(self, token: int) -> list[int]:
        """A token as it is; a special one, which the vocabulary has made of its spelling, character by character."""
        if token not in self._control:
            return [token]
        return [one for one in self._tokenizer.convert_tokens_to_ids(list(self._pieces[token])) if one is not None]


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(entry)
