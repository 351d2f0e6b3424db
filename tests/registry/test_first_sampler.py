"""The tutorial works as it stands: its commands give what it shows, its files are what it says."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "tutorial.py"


@pytest.fixture(scope="module")
def tutorial() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_commands_of_the_tutorial_give_what_it_shows() -> None:
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tool_writes_files_runs_commands_and_notices_what_changed(tutorial: ModuleType, tmp_path: Path) -> None:
    page = (
        "<!-- write: one.py -->\n```python\nprint(42)\n```\n"
        "```console\n$ python one.py\n41\n$ echo 2 passed in 1.50s\n2 passed in 9.99s\n```\n"
        "```python\nnever_run()\n```\n"
    )
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    followed = tutorial.follow(page, tmp_path, environment)
    assert followed == page.replace("\n41\n", "\n42\n").replace("9.99s", "1.50s")
    assert tutorial.stable(followed) != tutorial.stable(page)
    assert tutorial.stable(followed.replace("42", "41", 2)) != tutorial.stable(followed)
    assert tutorial.stable(followed.replace("1.50s", "7.00s")) == tutorial.stable(followed)


def test_what_a_model_writes_is_not_compared(tutorial: ModuleType) -> None:
    one = "```console\n$ neurogen run --sampler a\nonce\n$ neurogen samplers\na\n```\n"
    assert tutorial.stable(one) == tutorial.stable(one.replace("once", "twice"))
    assert tutorial.stable(one) != tutorial.stable(one.replace("\na\n", "\nb\n"))
