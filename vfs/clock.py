"""Time as the VFS sees it: the host's, or one that a test moves by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where timestamps come from."""

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch (CLOCK_REALTIME)."""


class SystemClock:
    """Linux: ``ktime_get_real_ts64``."""

    __slots__ = ()
    now_ns = staticmethod(time.time_ns)


class VirtualClock:
    """A clock that stands still until told otherwise, so that timestamps are reproducible.

    ``tick_ns`` is added at each reading: with 0, two events can carry the same time; with 1, none.
    """

    __slots__ = ("_now_ns", "tick_ns")

    def __init__(self, now_ns: int = 1_000_000_000_000_000_000, tick_ns: int = 0) -> None:
        self._now_ns = now_ns
        self.tick_ns = tick_ns

    def now_ns(self) -> int:
        now = self._now_ns
        self._now_ns = now + self.tick_ns
        return now

    def advance_ns(self, delta_ns: int) -> None:
        """Move forward (or, for a clock set back, backward) by ``delta_ns``."""
        self._now_ns += delta_ns
