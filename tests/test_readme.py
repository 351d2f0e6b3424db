"""The README shows what its commands print and what its files hold, and its Python runs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_shown_output_and_files_are_the_real_ones() -> None:
    done = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_python_examples_run() -> None:
    """All examples but those that need the large model, one after the other as a reader would."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    examples = [block for block in blocks if "load_model(" not in block and "@neurogen.hookimpl" not in block]
    assert len(examples) >= 2
    program = "\n".join(examples) + "\nassert ids.shape == per_row.shape == (4,) and keep.sum() == 4 * 50\n"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
