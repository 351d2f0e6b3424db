"""Follows docs/first-sampler.md as a reader would, in an environment of its own, and fills in what the commands print.

    python tools/tutorial.py            rewrite the page
    python tools/tutorial.py --check    say which output is not what it shows; exit code 1 if any

A block ```console holds commands after "$ " and what they print; one ```python after `<!-- write: PATH -->` is written
to that file, in the folder of the tutorial. Times, and what a model writes, may differ.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "first-sampler.md"
BLOCK = re.compile(r"(?:<!-- write: (?P<file>\S+) -->\n)?```(?P<kind>console|python)\n(?P<text>.*?)```\n", re.DOTALL)
UNSTABLE = "$ neurogen run"
PROGRAMS = {"neurogen": "neurogen", "pip": "pip", "pytest": "pytest"}
LEFT_OUT = ("PYTHONPATH", "NEUROGEN_DISABLE_PLUGINS", "NEUROGEN_ONLY_PLUGINS", "NEUROGEN_CONFIG_FILE")
OFFLINE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip's own spelling of "no isolation"
    "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:hypothesispytest -p no:anyio",
    "NO_COLOR": "1",
}


def make_environment(folder: Path) -> dict[str, str]:
    """A virtual environment that also sees what is installed here; the variables of a shell in which it is active."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    programs = folder / "venv" / "bin"
    query = [programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    outer = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()})
    lines = [f"import site; site.addsitedir({path!r})\n" for path in outer if Path(path).is_dir()]
    (packages / "outer.pth").write_text("".join(lines))
    for name, module in PROGRAMS.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{programs / "python"}" -m {module} "$@"\n')
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    return kept | OFFLINE | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def follow(page: str, folder: Path, environment: dict[str, str]) -> str:
    """The page with every output as the commands give it."""

    def done(block: re.Match[str]) -> str:
        if block["kind"] == "python":
            if block["file"]:
                (folder / block["file"]).write_text(block["text"])
            return block[0]
        commands = [line for line in block["text"].splitlines() if line.startswith("$ ")]
        return f"```console\n{''.join(run(command, folder, environment) for command in commands)}```\n"

    return BLOCK.sub(done, page)


def run(line: str, folder: Path, environment: dict[str, str]) -> str:
    """A command and what it prints."""
    done = subprocess.run(
        line.removeprefix("$ "),
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = "\n".join(text.rstrip() for text in done.stdout.strip().splitlines())
    return f"{line}\n{output}\n" if output else f"{line}\n"


def stable(page: str) -> list[str]:
    """The lines of a page without what differs from run to run."""
    kept, skipping = [], False
    for line in page.splitlines():
        if line.startswith(("$ ", "```")):
            skipping = line.startswith(UNSTABLE)
        if not skipping or line.startswith("$ "):
            line = re.sub(r"in \d+\.\d+s( \(.*\))?", "in ... s", line)
            kept.append(re.sub(r"\(\d+ us for .*\)", "(...)", line))
    return kept


def main() -> None:
    page = PAGE.read_text()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        followed = follow(page, folder, make_environment(folder))
    if "--check" not in sys.argv:
        PAGE.write_text(followed)
        return
    wrong = [
        f"  shown {shown!r}\n  is    {real!r}"
        for shown, real in zip(stable(page), stable(followed), strict=False)
        if shown != real
    ]
    if wrong or len(stable(page)) != len(stable(followed)):
        first = "\n".join(wrong[:3])
        sys.exit(f"{PAGE.name} does not show what its commands give. Run `python tools/tutorial.py`.\n{first}")


if __name__ == "__main__":
    main()
