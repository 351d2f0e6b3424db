"""The links of what is published lead somewhere: `tools/links.py` finds those that do not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = '[project]\nname = "some"\nreadme = "README.md"\n'


@pytest.fixture(scope="module")
def links() -> ModuleType:
    pytest.importorskip("markdown", reason="Markdown is not installed (pip install 'neurogen[docs]')")
    spec = importlib.util.spec_from_file_location("links", ROOT / "tools/links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small one, all of whose links are right."""
    for folder in (tmp_path, tmp_path / "plugins/one", tmp_path / "integrations/other"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "README.md").write_text(
            "# One\n[site](https://example.org/a#b), `docs/page.md`, <https://example.org>\n"
        )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text("# Page\n\n## What is `new` here\n")
    (tmp_path / "CONTRIBUTING.md").write_text("# How\n[page](docs/page.md#what-is-new-here), [here](#how)\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n```\n[no](link.md)\n```\n`[no](link.md)`\n")
    return tmp_path


def test_all_links_of_the_repository_lead_somewhere(links: ModuleType) -> None:
    assert list(links.problems(ROOT)) == []
    readmes = {path.parent.name for path in links.published(ROOT)}
    assert {"topk", "neurogen-vllm", "sampler", ROOT.name} <= readmes


def test_right_links_are_right(links: ModuleType, checkout: Path) -> None:
    assert list(links.problems(checkout)) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("README.md", "[page](docs/page.md)", "README.md: 'docs/page.md' leads nowhere on the package index"),
        ("README.md", "[here](#one)\n# One", "README.md: '#one' leads nowhere on the package index"),
        ("README.md", "![picture](docs/picture.png)", "README.md: 'docs/picture.png' leads nowhere"),
        ("README.md", "[page]\n\n[page]: docs/page.md", "README.md: 'docs/page.md' leads nowhere"),
        ("README.md", '<img src="picture.png">', "README.md: 'picture.png' leads nowhere"),
        ("README.md", "| a |\n|---|\n| [b](c.md) |", "README.md: 'c.md' leads nowhere"),
        ("README.md", "see `docs/gone.md`", "README.md: there is no file docs/gone.md"),
        ("plugins/one/README.md", "[up](../../README.md)", "plugins/one/README.md: '../../README.md' leads nowhere"),
        ("integrations/other/README.md", "[a](x.md)", "integrations/other/README.md: 'x.md' leads nowhere"),
        ("CONTRIBUTING.md", "[gone](docs/gone.md)", "CONTRIBUTING.md: 'docs/gone.md' leads to no file"),
        ("CONTRIBUTING.md", "[a](docs/page.md#gone)", "CONTRIBUTING.md: 'docs/page.md#gone' leads to no heading"),
        ("CHANGELOG.md", "[a](#gone)", "CHANGELOG.md: '#gone' leads to no heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_told(links: ModuleType, checkout: Path, file: str, text: str, said: str) -> None:
    (checkout / file).write_text(text)
    (found,) = links.problems(checkout)
    assert found.startswith(said)
