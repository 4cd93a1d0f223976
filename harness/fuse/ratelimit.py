"""How often something that a client can bring about may be logged."""

from __future__ import annotations

import time
from typing import Final

_INTERVAL_NS: Final = 5 * 10**9
_BURST: Final = 10


class RateLimit:
    """Linux: ``struct ratelimit_state``: ten messages in five seconds; the others are counted."""

    __slots__ = ("_begin_ns", "_missed", "_printed")

    def __init__(self) -> None:
        self._begin_ns = time.monotonic_ns() - _INTERVAL_NS
        self._printed = 0
        self._missed = 0

    def allows(self) -> bool:
        """Whether one more may be logged now; it is counted either way."""
        now = time.monotonic_ns()
        if now - self._begin_ns >= _INTERVAL_NS:
            self._begin_ns = now
            self._printed = 0
        if self._printed < _BURST:
            self._printed += 1
            return True
        self._missed += 1
        return False

    def missed(self) -> int:
        """How many were not logged since this was last asked."""
        missed, self._missed = self._missed, 0
        return missed
