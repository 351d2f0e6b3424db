"""A conversation with a model: its turns, the sampler of the answers, and how an answer is drawn again.

With a chat template the turns are messages; a model without one continues the text of all turns. Knows no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.contract.parameters import INT64, is_whole
from neurogen.contract.sampler import Sampler
from neurogen.errors import DataError, NeurogenError, ParameterError
from neurogen.files import read_text, to_json, write_text
from neurogen.models.foreign import check_loaded
from neurogen.registry.registry import load_sampler
from neurogen.text.generation import Event, Prompt, Result, RunOptions, TextDelta
from neurogen.text.runner import Runner

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.decoding.request import Observed, RequestState, SampledToken
    from neurogen.models.language_model import LanguageModel

__all__ = ["Conversation", "Message"]

FORMAT = 1
ROLES = ("system", "user", "assistant")
EXPLAINED = 256
"""How many tokens of the last answer can be explained: their logits are kept."""

USER, ASSISTANT = "user", "assistant"


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: "system", "user" or "assistant".
        content: its text.
    """

    role: str
    content: str


class Conversation:
    """Turns of a user and a model.

    Args:
        model: answers.
        sampler: chooses the tokens of the answers; may be replaced at any time, what was read stays.
        options: of every answer; `n` is 1. Its seed is the first answer's; each `retry` adds one.
        system: what the model is told before the first turn; needs a chat template.

    Attributes:
        messages: the turns so far.
        reused: how many tokens of the last prompt had been read before.
        left_out: how many turns did not fit the context of the last answer.

    Raises:
        ParameterError: `system` for a model without chat template.
    """

    def __init__(
        self, model: LanguageModel, sampler: Sampler, options: RunOptions | None = None, *, system: str | None = None
    ) -> None:
        from neurogen.decoding.prefix_engine import PrefixEngine

        check_loaded(model, "Conversation", "model", "tokenizer", "context_length")
        self.model = model
        self.options = options or RunOptions()
        self.messages: list[Message] = []
        self.left_out = 0
        self._engine = PrefixEngine(model, sampler, self._see)
        self._retries = 0
        self._seen: list[Observed] = []
        self._last: tuple[Sampler, Result] | None = None
        if system is not None and not model.tokenizer.has_chat_template:
            raise ParameterError(f"The model {model.name!r} has no chat template: it can be told nothing.", "system")
        if system is not None:  # an empty text, too: some templates have a default, which it replaces
            self.messages.append(Message("system", system))

    @property
    def sampler(self) -> Sampler:
        """Chooses the tokens of the answers."""
        return self._engine.sampler

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        self._engine.sampler = sampler

    @property
    def seed(self) -> int:
        """Of the next answer."""
        return self.options.seed + self._retries

    @seed.setter
    def seed(self, seed: int) -> None:
        self.options, self._retries = replace(self.options, seed=seed), 0

    @property
    def reused(self) -> int:
        """How many tokens of the last prompt had been read before."""
        return self._engine.reused

    def say(self, text: str) -> Generator[TextDelta | Result]:
        """Take a turn; the answer is yielded as it grows, and joins the turns, even where it is broken off.

        Raises:
            NeurogenError: it cannot be answered; then the turn is taken back.
        """
        with self._taken_back_on_failure():
            self.messages.append(Message(USER, text))
            self._retries = 0
            yield from self._answer()

    def retry(self) -> Generator[TextDelta | Result]:
        """Draw another answer to the last turn, with the next seed.

        Raises:
            ParameterError: there is no answer yet.
            NeurogenError: it cannot be drawn; then the answer before it stays.
        """
        if not self.messages or self.messages[-1].role != ASSISTANT:
            raise ParameterError("There is no answer to draw again. Say something first.", "retry")
        with self._taken_back_on_failure():
            self.messages.pop()
            self._retries += 1
            yield from self._answer()

    @contextmanager
    def _taken_back_on_failure(self) -> Iterator[None]:
        """Leave everything as it was when an answer fails, or is broken off before it has any text."""
        messages, explained = list(self.messages), (self._seen, self._last)
        try:
            yield
        except BaseException as error:
            if isinstance(error, NeurogenError) or (self.messages and self.messages[-1].role == USER):
                self.messages[:] = messages
                self._seen, self._last = explained
            raise

    def clear(self) -> None:
        """Forget all turns but what the model is told."""
        self.messages = [message for message in self.messages if message.role == "system"]
        self._retries, self._last = 0, None

    def last_answer(self) -> tuple[Sampler, Result, list[Observed]]:
        """The last answer: its sampler, the answer, and its steps with the logits that it was drawn from.

        Raises:
            ParameterError: there is no answer yet, or it was broken off.
        """
        if self._last is None:
            raise ParameterError("There is no whole answer to explain. Say something first.", "explain")
        return *self._last, self._seen

    def save(self, path: str | Path) -> None:
        """Write turns, sampler and seed.

        Raises:
            DataError: the file cannot be written.
        """
        values = {
            "neurogen_conversation": FORMAT,
            "model": self.model.name,
            "sampler": self.sampler.name,
            "params": self.sampler.params.model_dump(),
            "seed": self.options.seed,
            "retries": self._retries,
            "messages": [vars(message) for message in self.messages],
        }
        write_text("The conversation", path, to_json(values, indent=2) + "\n")

    def load(self, path: str | Path) -> None:
        """Go on with a conversation that `save` wrote; nothing changes where that is not possible.

        Raises:
            DataError: the file cannot be read, or holds something else.
            PluginError, ParameterError: its sampler is not there, or takes other parameters now.
        """
        values, sampler = read_conversation(path)
        self.messages = [Message(message["role"], message["content"]) for message in values["messages"]]
        self.sampler = sampler
        self.seed, self._retries, self._last = values["seed"], values["retries"], None

    def _answer(self) -> Generator[TextDelta | Result]:
        prompt = self._prompt(self.messages)
        runner = Runner(self.model, self.sampler, replace(self.options, seed=self.seed), engine=self._engine)
        texts: list[str] = []
        self._seen, self._last = [], None
        try:
            for event in runner.run([prompt]):
                yield from self._taken(event, texts)
        finally:
            if texts:
                self.messages.append(Message(ASSISTANT, "".join(texts)))

    def _taken(self, event: Event, texts: list[str]) -> Iterator[TextDelta | Result]:
        if isinstance(event, TextDelta):
            texts.append(event.text)
            yield event
        elif isinstance(event, Result):
            if not texts:
                texts.append("")
            self._last = (self.sampler, event)
            yield event

    def _see(
        self, rows: Sequence[RequestState], logits: Tensor, processed: Tensor, drawn: Sequence[SampledToken]
    ) -> None:
        """Keep what an explanation of this answer needs; of a long one, its beginning."""
        if len(self._seen) < EXPLAINED:
            self._seen.append(([replace(row) for row in rows], logits.clone(), drawn))

    def _prompt(self, messages: list[Message]) -> Prompt:
        """The turns that fit the model's context; the oldest are left out first, and the answer may be shorter."""
        self.left_out = 0
        first = 1 if messages[0].role == "system" else 0
        while True:
            shown = messages[:first] + messages[first + self.left_out :]
            prompt = self._as_prompt(shown)
            tokens = len(Runner.encode(self._runner(), prompt))
            room = self.model.context_length - tokens
            asked = self.options.max_new_tokens
            most = self.options.default_new_tokens if asked is None else asked
            wanted = min(most, self.model.context_length // 4)
            if room >= wanted or len(shown) <= first + 1:
                return replace(prompt, max_new_tokens=max(1, min(most, room)))
            self.left_out += 2 if len(shown) > first + 2 else 1

    def _as_prompt(self, messages: list[Message]) -> Prompt:
        if self._chats:
            said = tuple({"role": message.role, "content": message.content} for message in messages)
            return Prompt(0, messages[-1].content, messages=said)
        return Prompt(0, continued(messages))

    def _runner(self) -> Runner:
        return Runner(self.model, self.sampler, self.options, engine=self._engine)

    @property
    def _chats(self) -> bool:
        template = self.model.tokenizer.has_chat_template
        return template if self.options.chat is None else self.options.chat


def continued(messages: list[Message]) -> str:
    """All turns as one text; a turn of the user's that follows an answer begins a new line, unless it has its own."""
    text = ""
    for message in messages:
        gap = (
            "\n" if text and message.role == USER and not (text[-1].isspace() or message.content[:1].isspace()) else ""
        )
        text += gap + message.content
    return text


def read_conversation(path: str | Path) -> tuple[Mapping[str, Any], Sampler]:
    """What `Conversation.save` wrote, and its sampler; raises as `Conversation.load`."""
    values = _read(path)
    return values, load_sampler(values["sampler"], **values["params"])


def _read(path: str | Path) -> Mapping[str, Any]:
    try:
        values = json.loads(read_text(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        values = None
    if not _is_conversation(values):
        raise DataError(f"{path} is no conversation that this neurogen can read. One is what /save FILE writes.")
    return values  # type: ignore[no-any-return]


def _is_conversation(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and values.get("neurogen_conversation") == FORMAT
        and isinstance(values.get("sampler"), str)
        and isinstance(values.get("params"), dict)
        and is_whole(values.get("seed"))
        and is_whole(values.get("retries"), range(INT64.stop))
        and isinstance(values.get("messages"), list)
        and all(_is_message(message) for message in values["messages"])
    )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in ROLES
        and isinstance(message["content"], str)
    )
