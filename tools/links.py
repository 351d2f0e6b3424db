"""Checks the links of what is published beside the site: README files of packages, and Markdown at the root.

    python tools/links.py             list what is wrong; exit code 1 if anything is

The README of a package is shown by itself on the Python Package Index, where no file lies beside it and no heading can
be linked to: it may hold absolute links alone. In other files a relative link leads to a file that is there, and its
anchor to a heading. Files named in code, such as `docs/running.md`, must be there too. The pages of docs/ are checked
by MkDocs when it builds the site.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown.extensions.toc import slugify
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("CONTRIBUTING.md", "CHANGELOG.md")
HTML_LINK = re.compile(r"""(?:href|src)\s*=\s*["']([^"']*)["']""", re.IGNORECASE)
FILE_IN_CODE = re.compile(r"(?:docs|neurogen|plugins|integrations|tests|benchmarks|tools|examples)/[\w./-]*\.\w+")


def published(root: Path) -> list[Path]:
    """The README of every distribution, as its pyproject.toml names it, and of those that `new-sampler` writes."""
    projects = [root / "pyproject.toml", *sorted(root.glob("plugins/*/pyproject.toml"))]
    projects += sorted(root.glob("integrations/*/pyproject.toml"))
    files = [project.parent / tomllib.loads(project.read_text("utf-8"))["project"]["readme"] for project in projects]
    return [*files, *sorted(root.glob("neurogen/registry/templates/*/README.md.tmpl"))]


def links_in(text: str) -> Iterator[str]:
    """The targets of all links and images, those written as HTML too."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for token in [part for block in tokens for part in (block, *(block.children or []))]:
        if token.type in ("link_open", "image"):
            yield str(token.attrs.get("href", token.attrs.get("src", "")))
        elif token.type in ("html_inline", "html_block"):
            yield from HTML_LINK.findall(token.content)


def files_in_code(text: str) -> Iterator[str]:
    """The files of the repository that are named in code."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for token in [part for block in tokens for part in block.children or []]:
        if token.type == "code_inline" and FILE_IN_CODE.fullmatch(token.content):
            yield token.content


def headings_in(source: str) -> set[str]:
    """The anchors of the headings of a file."""
    tokens = MarkdownIt("commonmark").parse(source)
    return {slugify(text.content, "-") for start, text in pairwise(tokens) if start.type == "heading_open"}


def problems(root: Path) -> Iterator[str]:
    """What is wrong with the links of a checkout, a line each."""
    for file in published(root):
        text = file.read_text("utf-8")
        for link in links_in(text):
            if urlsplit(link).scheme not in ("https", "mailto"):
                yield f"{file.relative_to(root)}: {link!r} leads nowhere on the package index: name the file as code"
    for file in [*published(root), *(root / name for name in OTHERS)]:
        yield from _problems_beside(root, file, file.read_text("utf-8"))


def _problems_beside(root: Path, file: Path, text: str) -> Iterator[str]:
    for link in links_in(text):
        parts = urlsplit(link)
        target = file if not parts.path else file.parent / unquote(parts.path)
        if parts.scheme or file in published(root):
            continue
        if not target.exists():
            yield f"{file.relative_to(root)}: {link!r} leads to no file"
        elif parts.fragment and parts.fragment not in headings_in(target.read_text("utf-8")):
            yield f"{file.relative_to(root)}: {link!r} leads to no heading"
    for named in files_in_code(text):
        if not (root / named).exists() and not (file.parent / named).exists():
            yield f"{file.relative_to(root)}: there is no file {named}"


def main() -> int:
    """Print what is wrong; the exit code."""
    found = list(problems(ROOT))
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
