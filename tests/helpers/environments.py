"""Virtual environments of their own, into which tests install packages with pip."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path


class Environment:
    """A virtual environment that also sees what is installed for the running interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        query = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.packages = Path(self.run("-c", query).stdout.strip())
        # addsitedir, and not a plain path, so that editable installs there count too
        outer = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()})
        lines = [f"import site; site.addsitedir({path!r})\n" for path in outer if Path(path).is_dir()]
        (self.packages / "outer.pth").write_text("".join(lines))

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python away from the repository; fails the test when it fails."""
        left_out = ("PYTHONPATH", "NEUROGEN_DISABLE_PLUGINS")
        # Nor what tells pytest in there that it were a worker of the pytest out here.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        environment = {name: value for name, value in inherited.items() if name not in left_out}
        done = subprocess.run(
            [self.python, *arguments],
            env=environment | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done
