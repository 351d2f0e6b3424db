"""Texts that keep a JSON schema, a regular expression or a grammar, by the library llguidance.

The library parses what has been written and says which tokens may follow; when a sequence may end is decided here,
for a request has stop tokens of its own. Importing this module does not import the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from neurogen.contract.parameters import Param, SamplerParams
from neurogen.contract.processor import History
from neurogen.errors import ParameterError
from neurogen.processors.grammar_errors import LibraryError
from neurogen.processors.grammar_source import SOURCES, library, read_grammar, read_regex, read_schema, wrong
from neurogen.processors.listing import FromText, checksum_param
from neurogen.processors.schema import UncheckedError
from neurogen.processors.sequences import behind, pieces_of

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.tokenizer import Tokenizer
    from neurogen.processors.schema import Validator

__all__ = ["Grammar"]

_prepared: WeakKeyDictionary[Tokenizer, dict[int, Any]] = WeakKeyDictionary()
"""Tokenizer -> width of the vocabulary -> llguidance's form of it, which takes longer to make than a grammar's."""


class Grammar(FromText):
    """Bans every token with which the text could no longer become one that a JSON schema, a regular expression or a
    context-free grammar describes. The sequence can end when it is one, and must when nothing may follow.

    By llguidance (Microsoft, 2025), which parses bytes: any token may be used whose bytes fit, whatever its borders.
    Regular expressions match the whole text, mean ASCII by \\d, \\w and \\s, and have no look-around; grammars are in
    the Lark form that llguidance documents, or in GBNF. A complete text is checked against its JSON schema by the
    library jsonschema, and a notice says so where it does not keep it.
    """

    name = "grammar"
    api_version = 1

    class Params(SamplerParams):
        """Parameters, of which one is given."""

        json_schema: str = Param(
            "",
            description="The text is JSON that keeps this schema: the schema itself, FILE or @FILE.",
            option="--json-schema",
        )
        regex: str = Param("", description="The whole text matches this regular expression.", option="--regex")
        grammar: str = Param(
            "",
            description="The text is of this grammar, in Lark's form or GBNF: the grammar itself, FILE or @FILE.",
            option="--grammar",
        )
        checksum: str = checksum_param()

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**params)
        given = [source for source in SOURCES if getattr(self.params, source)]
        if len(given) != 1:
            raise ParameterError(
                f"grammar: {', '.join(given) or 'nothing'} is given. Give one of json_schema, regex and grammar: each "
                "describes the whole text.",
                given[0] if given else None,
            )
        self._source = given[0]
        self._validator: Validator | None = None
        if self._source == "json_schema":
            self._text, self._validator, self.remarks = read_schema(self)
        else:
            self._text = read_regex(self) if self._source == "regex" else read_grammar(self)

    def prepare(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Make the first state, which every request copies.

        Raises:
            ParameterError: the tokenizer has no token that ends a sequence, or the grammar is too large.
        """
        if not tokenizer.eos_ids:
            raise ParameterError(
                "grammar: this model's tokenizer has no token that ends a sequence, so no text could be complete. Use "
                "another model.",
                self._source,
            )
        self._eos = tokenizer.eos_ids
        self._pieces = pieces_of(tokenizer, vocab_size)
        self._first = library().LLMatcher(_tokens_of(tokenizer, vocab_size), self._text, log_level=0)
        probe = self._first.deep_copy()
        if not probe.is_error():
            probe.compute_bitmask()
        if probe.is_error():
            message = str(probe.get_error())
            nothing = message.startswith("NoExtension")
            raise wrong(self._source, message, "no text that this model can write keeps it" if nothing else None)

    def start(self, history: History) -> Any:
        """The state before the first new token; the prompt is not part of the text."""
        return self._first.deep_copy()

    def process(self, logits: Tensor, history: History, memory: Any) -> None:
        """O(vocab) to ban tokens; what llguidance takes for the mask is usually far less than a millisecond.

        Raises:
            ParameterError: llguidance gave up, for example because the grammar is too ambiguous.
        """
        import numpy as np
        import torch

        ends = [token for token in history.stop_ids if token < len(logits)]
        kept = logits[ends]
        others = [token for token in self._eos if token < len(logits)]
        if memory.is_stopped() and not memory.is_error():
            logits.fill_(float("-inf"))
        else:
            bits = np.frombuffer(memory.compute_bitmask(), dtype=np.uint8)
            if memory.is_error():
                raise ParameterError(
                    f"grammar: {self._source} cannot be followed any further after {history.new_tokens} new tokens: it "
                    "is too large, or too ambiguous. Simplify it, for example with smaller bounds of repetitions.",
                    self._source,
                ) from LibraryError(memory.get_error())
            banned = np.unpackbits(bits, count=len(logits), bitorder="little") == 0
            logits.masked_fill_(torch.from_numpy(banned).to(logits.device), float("-inf"))
        logits[others] = float("-inf")  # it allows them, though they may not end this request
        logits[ends] = kept if memory.is_accepting() else float("-inf")

    def accept(self, token_id: int, history: History, memory: Any) -> None:
        """Parse its bytes."""
        if token_id not in history.stop_ids:
            memory.consume_token(token_id)

    def is_over(self, history: History, memory: Any) -> bool:
        """Whether the text is one that the grammar describes, and no longer one is."""
        return bool(memory.is_accepting() and not memory.is_error() and self._ends_only(memory))

    def _ends_only(self, memory: Any) -> bool:
        import numpy as np

        if memory.is_stopped():
            return True
        bits = np.unpackbits(np.frombuffer(memory.compute_bitmask(), dtype=np.uint8), bitorder="little")
        bits[list(self._eos)] = 0
        return not bits.any()

    def notice(self, token_ids: Sequence[int], finish_reason: str) -> str | None:
        """Says that the text is incomplete where it was cut off before the grammar was satisfied."""
        state = self._first.deep_copy()
        if finish_reason == "eos" or (state.consume_tokens(list(token_ids)) and state.is_accepting()):
            return self._not_kept(token_ids)
        what = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}[self._source]
        cause = "max_new_tokens was reached" if finish_reason == "length" else "a stop string came"
        advice = "Allow more new tokens." if finish_reason == "length" else "Leave out the stop string."
        return f"The text is incomplete: {cause} before the {what} was satisfied. {advice}"

    def _not_kept(self, token_ids: Sequence[int]) -> str | None:
        """What is wrong with a complete text, by another library than the one that wrote it."""
        if self._validator is None:
            return None
        text = b"".join(self._pieces[token] for token in token_ids if token < len(self._pieces))
        try:
            problem = self._validator.problem(text.decode("utf-8", "replace"))
        except UncheckedError as error:
            return f"Whether the text keeps the JSON schema could not be checked: {error}."
        return (
            f"The text does not keep the JSON schema: {problem}. Ask for another, with another seed."
            if problem
            else None
        )


def _tokens_of(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """The vocabulary as llguidance wants it."""
    made = _prepared.setdefault(tokenizer, {})
    if vocab_size not in made:
        of = library()
        made[vocab_size] = of.LLTokenizer(of.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size)))
    return made[vocab_size]


class _Vocabulary:
    """Bytes of every token; the names of the attributes are llguidance's."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = pieces_of(tokenizer, vocab_size)
        self._ids = {piece: token for token, piece in enumerate(self.tokens) if piece}
        self._longest = max(map(len, self._ids), default=0)
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocab_size)

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens that llguidance spells a forced text with; their bytes are exactly those of the text."""
        content = text.encode() if isinstance(text, str) else bytes(text)
        ids = behind(content.decode(errors="replace"), self._tokenizer)
        exact = all(token < len(self.tokens) for token in ids) and content == b"".join(self.tokens[t] for t in ids)
        return ids if exact else self._longest_first(content)

    def _longest_first(self, content: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(content):
            lengths = range(min(self._longest, len(content) - at), 0, -1)
            token = next((self._ids[content[at : at + n]] for n in lengths if content[at : at + n] in self._ids), None)
            if token is None:
                return ids
            ids.append(token)
            at += len(self.tokens[token])
        return ids
