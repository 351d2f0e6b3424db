"""Finds stop strings in text that arrives piece by piece. Knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFinder"]


class StopFinder:
    """Lets text pass until a stop string is complete; what could still become one is held back.

    The result depends on the text alone, never on where its pieces were cut: the stop string that is complete first
    ends the text, and the longest if several are complete at once.

    Args:
        stops: the stop strings; none may be empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take the next piece and return what is certain to stand before any stop string."""
        if not self._stops:
            return text
        if self.found:
            return ""
        self._held += text
        matches = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if matches:
            self.found = True
            _, start = min(matches)
            passed, self._held = self._held[:start], ""
            return passed
        kept = self._possible_start()
        passed, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return passed

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
