"""The conversation of `neurogen chat` in a terminal or a pipe: turns, commands that begin with /, and what is shown.

An error of a command or a turn is shown as one paragraph, and the conversation goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

from neurogen.cli.chat_input import PipeReader, TerminalReader
from neurogen.cli.common import listed, tell
from neurogen.cli.explain import PAGE_TOP, report, report_page
from neurogen.cli.output import write_stdout, write_text
from neurogen.cli.sampler_options import sampler_names
from neurogen.contract.parameters import INT64, domain_of, is_whole, unknown_parameter
from neurogen.diagnosis.explain import explain_answer
from neurogen.errors import NeurogenError, ParameterError
from neurogen.files import check_place
from neurogen.registry.registry import default_registry, load_processors
from neurogen.text.conversation import Conversation
from neurogen.text.generation import Result, TextDelta
from neurogen.text.printable import printable

__all__ = ["ChatSession"]

EXIT_OK, EXIT_FAILED = 0, 1
TOP = 5
"""Candidates a step that /explain shows."""

OWN_SETTINGS = ("max_new_tokens",)


@dataclass(frozen=True)
class Command:
    """A command of the chat.

    Attributes:
        usage: what follows its name.
        help: what it does.
        run: does it, with what follows its name.
        complete: what may follow its name.
    """

    usage: str
    help: str
    run: Callable[[str], None]
    complete: Callable[[], Iterable[str]] = tuple


class ChatSession:
    """Reads turns until there are no more.

    Args:
        conversation: what is talked in.
        interactive: stdin and stdout are a terminal.
        quiet: no greeting, no lines about speed.
    """

    def __init__(self, conversation: Conversation, *, interactive: bool, quiet: bool = False) -> None:
        self._conversation = conversation
        self._interactive = interactive
        self._quiet = quiet
        self._going = True
        self._failed = False
        self._commands = {
            "/help": Command("", "Show this.", self._help),
            "/sampler": Command(
                "NAME", "Choose another sampler, such as topk(k=40)+topp.", self._sampler, sampler_names
            ),
            "/set": Command("PARAMETER VALUE", "Change one parameter.", self._set, self._parameters),
            "/params": Command("", "Show the sampler and its parameters.", self._params),
            "/processors": Command("SPEC|none", "Change the logits before the sampler sees them.", self._processors),
            "/seed": Command("[NUMBER]", "Show or set the seed.", self._seed),
            "/retry": Command("", "Draw another answer.", self._retry),
            "/explain": Command("[FILE.html]", "Why the last answer's tokens? Here, or as a page.", self._explain),
            "/save": Command("FILE", "Write the conversation.", self._save),
            "/load": Command("FILE", "Go on with a saved conversation.", self._load),
            "/history": Command("", "Show what was said.", self._history),
            "/clear": Command("", "Begin anew.", self._clear),
            "/quit": Command("", "End; so does Ctrl-D.", self._quit),
        }

    def run(self) -> int:
        """Talk until the end of the input.

        Returns:
            the exit code: 1 where a turn or a command of a pipe failed.
        """
        reader = self._reader()
        if self._interactive and not self._quiet:
            tell(f"{self._conversation.model.name}, {self._conversation.sampler}. /help shows what can be done.")
        while self._going:
            try:
                text = reader.read()
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                continue
            if text is None:
                break
            self.take(text)
        return EXIT_FAILED if self._failed and not self._interactive else EXIT_OK

    def take(self, text: str) -> None:
        """Do a command, or have a turn answered."""
        if not text.strip():
            return
        try:
            if text.startswith("/"):
                self._command(text)
            else:
                self._show(self._conversation.say(text))
        except NeurogenError as error:
            self._failed = True
            tell(error.reason)

    def _reader(self) -> PipeReader | TerminalReader:
        if not self._interactive:
            return PipeReader()
        return TerminalReader({name: (command.help, command.complete) for name, command in self._commands.items()})

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name not in self._commands:
            raise ParameterError(f"There is no command {name}. There are: {listed(self._commands)}.", "command")
        self._commands[name].run(rest.strip())

    def _show(self, answer: Generator[TextDelta | Result]) -> None:
        """Write an answer as it grows; Ctrl-C ends it, and what is there stays."""
        result, ended = None, False
        try:
            for event in answer:
                if isinstance(event, TextDelta):
                    write_text(event.text)
                    ended = event.text.endswith("\n")
                else:
                    result = event
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            tell(" (stopped)")
            answer.close()
            return
        if not ended:
            write_stdout("\n")
        if result is not None:
            for notice in result.notices or ():
                tell(notice)
            if self._interactive and not self._quiet:
                tell(self._closing(result))

    def _closing(self, result: Result) -> str:
        left = self._conversation.left_out
        forgotten = f"; the first {left} turns no longer fit the context" if left else ""
        cut = " (cut: /set max_new_tokens N for more)" if result.finish_reason == "length" else ""
        speed = f"{result.new_tokens} tokens{cut}, {result.tokens_per_second:.1f} a second, seed {result.seed}"
        return f"[{speed}; {self._conversation.reused} tokens had been read{forgotten}]"

    # The commands.

    def _help(self, rest: str) -> None:
        width = max(len(f"{name} {command.usage}") for name, command in self._commands.items())
        for name, command in self._commands.items():
            tell(f"{f'{name} {command.usage}':{width}}  {command.help}")
        tell(
            'Alt-Enter begins another line, and so does """ until the next """. Ctrl-C stops an answer. Tab completes.'
        )

    def _sampler(self, rest: str) -> None:
        if not rest:
            raise ParameterError(f"Which sampler? There are: {listed(sampler_names())}.", "sampler")
        self._conversation.sampler = default_registry().load_sampler(rest)
        self._params("")

    def _set(self, rest: str) -> None:
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        value = value.strip()
        if not name or not value:
            raise ParameterError(f"Give a parameter and a value: {listed(self._parameters())}.", "set")
        if name in OWN_SETTINGS:
            self._set_own(name, value)
            return
        sampler = self._conversation.sampler
        cls = type(sampler)
        field = cls.Params.model_fields.get(name)
        if field is None:
            raise ParameterError(unknown_parameter(sampler.name, cls.Params, name), name)
        made = cls(**{**sampler.params.model_dump(), name: _converted(field.annotation, value)})
        made.origin = sampler.origin
        self._conversation.sampler = made
        self._params("")

    def _set_own(self, name: str, value: str) -> None:
        number = _converted(int, value)
        if not is_whole(number, range(1, INT64.stop)):
            raise ParameterError(f"{name} must be an integer >= 1, got {value!r}.", name)
        self._conversation.options = replace(self._conversation.options, **{name: number})

    def _parameters(self) -> list[str]:
        return [*type(self._conversation.sampler).Params.model_fields, *OWN_SETTINGS]

    def _params(self, rest: str) -> None:
        sampler = self._conversation.sampler
        tell(f"{sampler.name} ({sampler.origin})")
        for name, field in type(sampler).Params.model_fields.items():
            tell(f"  {name} = {getattr(sampler.params, name)}  [{domain_of(field)}] {field.description}")
        for name in OWN_SETTINGS:
            tell(f"  {name} = {getattr(self._conversation.options, name)}")

    def _processors(self, rest: str) -> None:
        if rest:
            made = [] if rest == "none" else load_processors(rest)
            self._conversation.options = replace(self._conversation.options, processors=made)
        tell(f"processors: {', '.join(map(repr, self._conversation.options.processors)) or 'none'}")

    def _seed(self, rest: str) -> None:
        if rest:
            number = _converted(int, rest)
            if not is_whole(number):
                raise ParameterError(f"The seed must be an integer of 64 bits, got {rest!r}.", "seed")
            self._conversation.seed = number
        tell(f"seed {self._conversation.seed}")

    def _retry(self, rest: str) -> None:
        self._show(self._conversation.retry())

    def _explain(self, rest: str) -> None:
        explanation = explain_answer(self._conversation, top=PAGE_TOP if rest else TOP)
        if rest:
            check_place("The page", rest)
            report_page(explanation, rest)
        else:
            report(explanation)

    def _save(self, rest: str) -> None:
        if not rest:
            raise ParameterError("To which file? Give /save FILE.", "save")
        self._conversation.save(rest)
        tell(f"{len(self._conversation.messages)} turns are in {rest}.")

    def _load(self, rest: str) -> None:
        if not rest:
            raise ParameterError("From which file? Give /load FILE.", "load")
        self._conversation.load(rest)
        tell(f"{len(self._conversation.messages)} turns from {rest}; {self._conversation.sampler}.")

    def _history(self, rest: str) -> None:
        for message in self._conversation.messages:
            mark = "> " if message.role == "user" else f"({message.role}) " if message.role == "system" else ""
            write_stdout(f"{mark}{printable(message.content)}\n")

    def _clear(self, rest: str) -> None:
        self._conversation.clear()

    def _quit(self, rest: str) -> None:
        self._going = False


def _converted(kind: Any, text: str) -> Any:
    """A text as the type of a parameter, or itself, which the schema then refuses with its own words."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text
