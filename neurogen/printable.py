"""Texts of others on a terminal: what a model, a file or a template has written must not move the cursor, change the
window's title or forge output.
"""

from __future__ import annotations

__all__ = ["printable"]

CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
"""A terminal obeys these characters (ECMA-48: C0, DEL and C1), all but the tab and the line break."""


def printable(text: str) -> str:
    r"""The text with each control character that a terminal obeys written as an escape such as \x1b."""
    return text.translate(CONTROL)
