"""Wait queues: where what would block leaves word of whom to wake. Linux: wait_queue_head_t."""

from __future__ import annotations

import threading
from collections.abc import Callable


class WaitQueue:
    """Linux: ``wait_queue_head_t``. One-shot callbacks, called when the condition may have changed.

    Waiters are called without any promise that the condition holds: they try again.
    """

    __slots__ = ("_lock", "_waiters")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: list[Callable[[], None]] = []

    def add(self, wake: Callable[[], None]) -> None:
        """Register ``wake``; it is called at most once, from the waker's thread."""
        with self._lock:
            self._waiters.append(wake)

    def remove(self, wake: Callable[[], None]) -> None:
        """Forget ``wake``; nothing happens if it was already called."""
        with self._lock:
            if wake in self._waiters:
                self._waiters.remove(wake)

    def wake_all(self) -> None:
        """Call and forget every waiter. May be called with or without the VFS lock."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def __len__(self) -> int:
        return len(self._waiters)
