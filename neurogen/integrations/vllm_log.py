"""The output of vLLM and its processes while they start: passed on to stderr, and searched for the reason of a failure.

vLLM runs a model in processes of its own. When one of them fails, the exception in this process says only that; the
reason is in what that process wrote. Knows only the form of vLLM's log.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["GENERAL", "StartLog", "reason_in", "watched_start"]

MOST_BYTES = 2**20
TROUBLE = re.compile(rb"^.*(?: ERROR |Traceback \(most recent call last\)|^Process )", re.MULTILINE)
"""How the report of a failure begins."""

EXCEPTION = re.compile(
    r"^(?:\((?P<process>[^)]*pid=\d+)\) ?)?(?:ERROR [\d-]+ [\d:]+ \[[^\]]*\] ?)?"
    r"(?P<said>(?:[A-Za-z_][\w.]*)?(?:Error|Exception|Failure)\w*: .+)$"
)
GENERAL = ("initialization failed", "in a background process", "Failed core proc", "encountered an issue")
"""Parts of what those processes say that only wait for the one that failed."""


class StartLog:
    """Passes on what is written to a descriptor until a failure shows, and keeps all of it.

    Args:
        target: where it goes.
        source: the end of a pipe to read from; closed when all who write are gone.
        hold_back: keep the report of a failure from `target`: it is told in a sentence, or passed on where all goes
            well.
    """

    def __init__(self, source: int, target: int, *, hold_back: bool) -> None:
        self._source, self._target = source, target
        self._hold_back = self._holds = hold_back
        self._held: bytearray | None = None
        self._drops = False
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._pump, daemon=True, name="vLLM's log")
        self._thread.start()

    @property
    def text(self) -> str:
        """What was written while it was watched; only the last part if that is much."""
        self._thread.join(timeout=1.0)  # the last words of a process come with its end
        with self._lock:
            return self._kept.decode("utf-8", "replace")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hold a report of failure back here: it is passed on where all goes well, and dropped at an exception."""
        with self._lock:
            self._holds, self._kept = self._hold_back, bytearray()
        try:
            yield
        except BaseException:
            with self._lock:
                self._drops = self._holds  # what the processes still write is about that failure
            raise
        with self._lock:
            self._holds = False
            if self._held:
                self._write(bytes(self._held))
            self._held = None

    def _pump(self) -> None:
        while chunk := os.read(self._source, 65_536):
            with self._lock:
                self._kept = (self._kept + chunk)[-MOST_BYTES:]
                if not self._drops:
                    self._pass_on(chunk)
        os.close(self._source)
        os.close(self._target)

    def _pass_on(self, chunk: bytes) -> None:
        if self._held is not None:
            self._held += chunk
            return
        trouble = TROUBLE.search(chunk) if self._holds else None
        if trouble is not None:
            self._held = bytearray(chunk[trouble.start() :])
            chunk = chunk[: trouble.start()]
        self._write(chunk)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except OSError:
            pass  # nobody reads it any more; the start goes on


@contextmanager
def watched_start(*, hold_back: bool) -> Iterator[StartLog | None]:
    """Watch stderr of this process and of those that it starts here, which go on to be passed on afterwards.

    Args:
        hold_back: whether the report of a failure is kept from stderr.

    Yields:
        the log; None where this process has no stderr.
    """
    try:
        target, (source, sink) = os.dup(2), os.pipe()
    except OSError:
        yield None
        return
    log = StartLog(source, os.dup(target), hold_back=hold_back)
    _flush()
    os.dup2(sink, 2)
    os.close(sink)
    try:
        with log.watching():
            yield log
    finally:
        _flush()
        os.dup2(target, 2)
        os.close(target)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()


def reason_in(log: str) -> str | None:
    """The exception that made a process of vLLM fail, with its message; None where the log holds none.

    It is the last one of the first process that reports any: the others fail because of it.
    """
    found = [match for line in log.splitlines() if (match := EXCEPTION.match(line.rstrip()))]
    telling = [match for match in found if not any(part in match["said"] for part in GENERAL)]
    if not telling:
        return None
    return [match["said"] for match in telling if match["process"] == telling[0]["process"]][-1]
