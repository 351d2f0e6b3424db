"""Texts of others on a terminal: what a model, a file or a template has written must not move the cursor, change the
window's title, forge output, or be read in another order than it is written in.
"""

from __future__ import annotations

__all__ = ["json_printable", "printable"]

OBEYED = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"]
"""A terminal obeys these characters (ECMA-48: C0, DEL and C1), all but the tab and the line break."""

REORDERING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Embeddings, overrides and isolates of the Unicode bidirectional algorithm: they change the order in which a line is
shown, past the end of the text that holds them. Right-to-left text does not need them."""

CONTROL = {code: f"\\x{code:02x}" for code in OBEYED} | {code: f"\\u{code:04x}" for code in REORDERING}
IN_JSON = {code: f"\\u{code:04x}" for code in CONTROL if code >= 0x7F}
"""JSON has escapes of its own, and demands them below U+0020 alone."""


def printable(text: str) -> str:
    r"""The text with each character that a terminal obeys, or that reorders a line, as an escape such as \x1b."""
    return text.translate(CONTROL)


def json_printable(text: str) -> str:
    """The same for JSON that has been written already: other text that gives the same values."""
    return text.translate(IN_JSON)
