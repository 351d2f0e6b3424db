"""The pages that say where things are name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    ROOT,
    ROOT / "neurogen",
    ROOT / "neurogen" / "kernels",
    ROOT / "neurogen" / "diagnosis",
    ROOT / "neurogen" / "cli",
    ROOT / "neurogen" / "processors",
    ROOT / "tests",
)
NAMED = re.compile(r"(?<![\w/])((?:\w+/)*\w+\.py)\b")


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    named = set(NAMED.findall((ROOT / page).read_text(encoding="utf-8"))) - {"cuda.py"}  # beside cpu.py
    assert named
    assert [name for name in sorted(named) if not any((place / name).is_file() for place in PLACES)] == []


def test_the_page_of_the_architecture_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "neurogen").iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) > 10
    assert [room for room in rooms if f"`{room}/`" not in page] == []
