"""Fills what the README and docs show of output and files from the commands and files themselves.

    python tools/readme.py            rewrite README.md and docs/*.md
    python tools/readme.py --check    say which blocks are not what they show; exit code 1 if any

A block stands between `<!-- output: COMMAND -->` or `<!-- file: PATH -->` and `<!-- end -->`. Commands with a model are
only run to rewrite: their text depends on the processor's arithmetic, their speed on the machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"<!-- (output|file): (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)
UNSTABLE = ("make run",)


def shown(kind: str, what: str) -> str:
    """What a block must hold, as Markdown."""
    if kind == "file":
        return f"```python\n{(ROOT / what).read_text().strip()}\n```\n"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        what.split(), capture_output=True, text=True, cwd=ROOT, env=environment | {"COLUMNS": "110"}, check=True
    )
    text = (done.stdout.strip() + "\n" + done.stderr.strip()).strip()
    text = text.replace(".venv/bin/neurogen", "$ neurogen", 1)  # how make echoes what it runs
    lines = "\n".join(line.rstrip() for line in text.splitlines() if not line.startswith("make"))
    return f"```text\n{lines}\n```\n"


def wrong_blocks(text: str) -> list[str]:
    """The blocks that do not hold what they show."""
    return [what for kind, what, held in BLOCK.findall(text) if what not in UNSTABLE and held != shown(kind, what)]


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        if "--check" in sys.argv:
            wrong = wrong_blocks(text)
            if wrong:
                blocks = ", ".join(wrong)
                sys.exit(f"{page.name} does not show what these give: {blocks}. Run `python tools/readme.py`.")
        else:
            page.write_text(BLOCK.sub(lambda m: f"<!-- {m[1]}: {m[2]} -->\n{shown(m[1], m[2])}<!-- end -->", text))


if __name__ == "__main__":
    main()
