"""What a user types in `neurogen chat`: read from a terminal with history and completion, or from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from neurogen.errors import DataError

__all__ = ["PipeReader", "TerminalReader"]

Commands = Mapping[str, tuple[str, Callable[[], Iterable[str]]]]

QUOTES = '"""'
"""A turn of several lines stands between two of these."""


class PipeReader:
    """Lines of standard input; a turn of several lines stands between two lines with three quotes."""

    def read(self) -> str | None:
        """The next turn; None at the end."""
        line = self._line()
        if line is None or line.strip() != QUOTES:
            return line
        lines: list[str] = []
        while (line := self._line()) is not None and line.strip() != QUOTES:
            lines.append(line)
        return "\n".join(lines)

    def _line(self) -> str | None:
        try:
            line = sys.stdin.readline() if sys.stdin is not None else ""
        except UnicodeDecodeError as error:
            raise DataError(f"Standard input is not UTF-8: byte {error.object[error.start]:#04x}.") from None
        return line.rstrip("\n") if line else None


class TerminalReader:
    """A line editor: history, completion, Enter sends, Alt-Enter (or Esc, Enter) begins another line.

    Args:
        commands: command -> (what it does, what may follow it, asked for when Tab is pressed).
    """

    def __init__(self, commands: Commands) -> None:
        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        path = _history_file()
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if path is None else KeptHistory(str(path)),
            completer=CommandCompleter(commands),
            complete_while_typing=False,
            key_bindings=keys,
            prompt_continuation="  ",
        )

    def read(self) -> str | None:
        """The next turn; None for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        try:
            text = self._session.prompt("> ")
            while text.startswith(QUOTES) and not _is_closed(text):
                text += "\n" + self._session.prompt("  ")
        except EOFError:
            return None
        return text[3:-3].strip("\n") if text.startswith(QUOTES) else text


def _is_closed(text: str) -> bool:
    return len(text) >= 2 * len(QUOTES) and text.endswith(QUOTES)


class KeptHistory(FileHistory):
    """What was typed, kept in a file; where that cannot be read or written, the conversation goes on without it."""

    def store_string(self, string: str) -> None:
        """Append to the file."""
        with suppress(OSError):
            super().store_string(string)

    def load_history_strings(self) -> Iterable[str]:
        """Read the file, the newest first."""
        with suppress(OSError):
            return list(super().load_history_strings())
        return []


def _history_file() -> Path | None:
    """Where what was typed is kept, for the arrow keys; None where it cannot be."""
    home = os.environ.get("XDG_STATE_HOME")
    with suppress(OSError, RuntimeError):
        folder = (Path(home) if home else Path.home() / ".local" / "state") / "neurogen"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / "chat_history"
    return None


class CommandCompleter(Completer):
    """Completes commands, then what may follow them."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """See `Completer.get_completions`."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, rest = text.partition(" ")
        if not space:
            for name, (description, _) in self._commands.items():
                if name.startswith(command):
                    yield Completion(name, start_position=-len(command), display_meta=description)
        elif command in ("/save", "/load"):
            yield from PathCompleter().get_completions(Document(rest), complete_event)
        elif command in self._commands:
            word = rest.rpartition("+")[2]
            for name in self._commands[command][1]():
                if name.startswith(word):
                    yield Completion(name, start_position=-len(word))
