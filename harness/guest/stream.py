"""A command's output, cut out of a port that carries the output of one command after another."""

from __future__ import annotations

from collections.abc import Callable


class MarkedStream:
    """Passes bytes to `sink` up to, and without, `marker`.

    Bytes are withheld only while they may be the beginning of the marker, so a prompt without a
    newline comes through at once.
    """

    __slots__ = ("_held", "_marker", "_sink", "ended")

    def __init__(self, marker: bytes, sink: Callable[[bytes], object]) -> None:
        self._marker = marker
        self._sink = sink
        self._held = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the port, and return those that lie behind the marker."""
        data = self._held + data
        before, marker, after = data.partition(self._marker)
        if marker:
            self.ended = True
            self._held = b""
            if before:
                self._sink(before)
            return after
        held = _overlap(data, self._marker)
        self._held = data[len(data) - held :]
        if held < len(data):
            self._sink(data[: len(data) - held])
        return b""

    def flush(self) -> None:
        """Pass on what was withheld: the marker will not come any more."""
        if self._held:
            self._sink(self._held)
            self._held = b""


def _overlap(data: bytes, marker: bytes) -> int:
    """Return the length of the longest end of `data` that begins `marker`."""
    longest = min(len(data), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if data.endswith(marker[:n])), 0)
