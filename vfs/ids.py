"""Small numbers that are given out lowest first and used again. Linux: struct ida."""

from __future__ import annotations

import heapq


class IdAllocator:
    """Linux: ``ida``. Numbers from ``first`` on."""

    __slots__ = ("_freed", "_next")

    def __init__(self, first: int = 1) -> None:
        self._next = first
        self._freed: list[int] = []

    def allocate(self) -> int:
        """The lowest number that is free."""
        if self._freed:
            return heapq.heappop(self._freed)
        number = self._next
        self._next = number + 1
        return number

    def free(self, number: int) -> None:
        """``number``, which is in use, may be given out again."""
        heapq.heappush(self._freed, number)
