"""HTML pages that need nothing from elsewhere, light and dark: what the diagnosis and the explanation share."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from neurogen.files import check_place, replacing, writing

__all__ = ["BASE_CSS", "PROBABILITY_STEPS", "STEP_LABELS", "check_page", "document", "probability_class", "write_page"]

PROBABILITY_STEPS = ((0.5, "p0"), (0.1, "p1"), (0.01, "p2"), (0.001, "p3"), (0.0, "p4"))
"""Least probability of a token, and the class its text has; the less probable, the stronger the colour."""

STEP_LABELS = ("50 % or more", "10 to 50 %", "1 to 10 %", "0.1 to 1 %", "below 0.1 %")

BASE_CSS = """
.ng{--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--muted:#5d6675;--line:#e2e5ea;--c1:#2f6fde;--c2:#d9731a;--c3:#1f9d76;
--c4:#8a919c;--good:#18794e;--warn:#9a6700;--bad:#c02f38;--heat:217,95,2;
background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif;padding:2rem 1rem;margin:0}
@media (prefers-color-scheme:dark){.ng{--bg:#121519;--card:#1b1f25;--ink:#e6e8eb;--muted:#9aa4b2;--line:#2c323a;
--c1:#6aa5ff;--c2:#f2994a;--c3:#4cc9a0;--c4:#8d96a3;--good:#5bd08f;--warn:#e3b341;--bad:#ff8078;--heat:255,140,50}}
.ng *{box-sizing:border-box}
.ng>div{max-width:1080px;margin:0 auto}
.ng h1{font-size:1.5rem;margin:0;display:flex;gap:.8rem;align-items:center;flex-wrap:wrap;overflow-wrap:anywhere}
.ng h2{font-size:1.05rem;margin:2.2rem 0 .3rem}
.ng p{margin:.35rem 0}.ng .note,.ng figcaption,.ng small{color:var(--muted);font-size:.85rem}
.ng .pill{font-size:1.05rem;font-weight:650;padding:.1rem .8rem;border-radius:99px;border:2px solid;line-height:1.6}
.ng .good{color:var(--good)}.ng .warn{color:var(--warn)}.ng .bad{color:var(--bad)}
.ng .card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.2rem;margin:.8rem 0}
.ng .tiles,.ng .charts{display:grid;gap:.8rem}
.ng .tiles{grid-template-columns:repeat(auto-fit,minmax(155px,1fr))}.ng .tiles .card{margin:0;padding:.7rem 1rem}
.ng .tiles b{display:block;font-size:1.35rem;line-height:1.3}
.ng .scroll{overflow-x:auto}
.ng table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.ng th{text-align:left;color:var(--muted);font-weight:500;font-size:.85rem}
.ng td,.ng th{padding:.38rem .7rem .38rem 0;border-bottom:1px solid var(--line);white-space:nowrap}
.ng tr:last-child td{border-bottom:0}.ng tr.right td{font-weight:650}
.ng .key span{display:inline-block;padding:.1rem .5rem;margin-right:.4rem;border-radius:3px;border:1px solid;
border-color:var(--line);color:var(--ink)}
.ng summary{cursor:pointer;margin-top:2rem;font-weight:650}
.ng .p1{background:rgba(var(--heat),.13)}.ng .p2{background:rgba(var(--heat),.3)}
.ng .p3{background:rgba(var(--heat),.5)}.ng .p4{background:rgba(var(--heat),.75)}
"""


def probability_class(probability: float) -> str:
    """The class of a text with this probability."""
    return next(css for least, css in PROBABILITY_STEPS if probability >= least)


def document(title: str, css: str, body: str) -> str:
    """A whole HTML document; `css` comes after the base."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f'<style>body{{margin:0}}{BASE_CSS}{css}</style></head><body class="ng">{body}</body></html>\n'
    )


def check_page(path: str | Path) -> None:
    """Refuse a page that could not be written, before the work is done.

    Raises:
        DataError: it is a folder, or its folder is not there, or nothing may be written there.
    """
    check_place("The page", path)


def write_page(path: str | Path, make: Callable[[], str]) -> None:
    """Write a page; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    with writing("The page", path), replacing(path) as draft:
        draft.write_text(make(), encoding="utf-8")
