"""Says on a terminal that a sampler's kernels are being compiled, which happens once and takes seconds."""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType

from neurogen.cli.common import is_terminal
from neurogen.cli.output import status_line
from neurogen.contract.sampler import Sampler
from neurogen.kernels.compiling import watch

__all__ = ["CompilingNotice", "watch_compiling"]

SLOW_SECONDS = 2.0  # longer than it takes to read kernels that have been compiled


class CompilingNotice:
    """Shows a line on the terminal while kernels are compiled, if that takes more than a moment."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self._is_shown = False

    def __call__(self, begins: bool) -> None:
        """Called when compiling begins and when it has ended."""
        if begins:
            self._timer = threading.Timer(SLOW_SECONDS, self._show, (_sampler_in_use(),))
            self._timer.daemon = True
            self._timer.start()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            if self._is_shown:
                status_line("")
            self._timer, self._is_shown = None, False

    def _show(self, name: str) -> None:
        self._is_shown = True
        status_line(f"Compiling the kernels of {name} (first use after a change) ...")


def _sampler_in_use() -> str:
    """The name of the sampler that is being called, found in the frames of this thread."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        user = frame.f_locals.get("self")
        if isinstance(user, Sampler):
            return str(user.name)
        frame = frame.f_back
    return "the sampler"


def watch_compiling() -> None:
    """Show on stderr when kernels are compiled, if it is a terminal that can remove a line again."""
    if is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb":
        watch(CompilingNotice())
