"""Requests that cannot be answered yet, and the thread that tries them again."""

from __future__ import annotations

import errno
import logging
import threading
from collections import OrderedDict
from queue import SimpleQueue
from typing import TYPE_CHECKING

from harness.wire import WITHDRAWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfs.wait import WaitQueue

_log = logging.getLogger(__name__)
# How many INTERRUPTs of requests that do not wait (yet) are remembered.
_EARLY_LIMIT = 64


class ParkedRequest:
    """A request that waits on ``queue``. Called as the queue's waiter: may be from any thread.

    ``attempt()`` tries again and returns the reply's length, or PENDING after parking anew.
    ``fail(errno)`` writes an error reply and returns its length.
    """

    __slots__ = ("_parking", "attempt", "completion", "fail", "queue", "unique")

    def __init__(
        self,
        parking: Parking,
        unique: int,
        queue: WaitQueue,
        attempt: Callable[[], int],
        fail: Callable[[int], int],
        completion: Callable[[int], None],
    ) -> None:
        self._parking = parking
        self.unique = unique
        self.queue = queue
        self.attempt = attempt
        self.fail = fail
        self.completion = completion

    def __call__(self) -> None:
        self._parking.wake(self)


class Parking:
    """The waiting requests of a session, by their unique number.

    A queue is woken in the middle of somebody else's operation, so the request is not tried there
    but by a thread of its own, which starts with the first request that waits. ``lock`` is the VFS
    lock; it orders parking, waking, interrupting.
    """

    __slots__ = ("_early", "_lock", "_parked", "_ready", "_thread")

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._parked: dict[int, ParkedRequest] = {}
        self._early: OrderedDict[int, None] = OrderedDict()
        self._ready: SimpleQueue[ParkedRequest | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._parked)

    def park(
        self,
        unique: int,
        queue: WaitQueue,
        attempt: Callable[[], int],
        fail: Callable[[int], int],
        completion: Callable[[int], None],
    ) -> bool:
        """Let a request wait on ``queue``. Needs the lock, held since the operation would block.

        Returns False if it must fail with EINTR instead: its INTERRUPT came first, or a request
        with the same number waits already, so that neither could be told apart.
        """
        if unique in self._parked:
            return False
        if unique in self._early:
            del self._early[unique]
            return False
        if self._thread is None:
            # First, because it may fail for want of threads, and then the caller answers.
            thread = threading.Thread(target=self._run, name="fuse-parked", daemon=True)
            thread.start()
            self._thread = thread
        request = ParkedRequest(self, unique, queue, attempt, fail, completion)
        self._parked[unique] = request
        queue.add(request)
        return True

    def wake(self, request: ParkedRequest) -> None:
        """Try ``request`` again soon."""
        self._ready.put(request)

    def interrupt(self, unique: int) -> None:
        """Linux: FUSE_INTERRUPT. Fail the waiting request with EINTR, or remember that it should.

        The client sends it after the request itself, but another queue or thread may bring it
        here first. One that finds its request answered already means nothing, and is pushed out.
        """
        with self._lock:
            request = self._parked.pop(unique, None)
            if request is None:
                self._early[unique] = None
                if len(self._early) > _EARLY_LIMIT:
                    self._early.popitem(last=False)
                return
        self._fail(request)

    def interrupt_all(self) -> None:
        """Fail every waiting request with EINTR."""
        for request in self._take_all():
            self._fail(request)

    def withdraw_all(self) -> None:
        """Let go of every waiting request, whose sender will repeat it."""
        for request in self._take_all():
            request.queue.remove(request)
            request.completion(WITHDRAWN)

    def _take_all(self) -> list[ParkedRequest]:
        with self._lock:
            requests = list(self._parked.values())
            self._parked.clear()
            self._early.clear()
        return requests

    def close(self) -> None:
        """Fail what waits and let the thread end."""
        self.interrupt_all()
        if self._thread is not None:
            self._thread = None
            self._ready.put(None)

    @staticmethod
    def _fail(request: ParkedRequest) -> None:
        request.queue.remove(request)
        request.completion(request.fail(errno.EINTR))

    def _run(self) -> None:
        while (request := self._ready.get()) is not None:
            with self._lock:
                if self._parked.get(request.unique) is not request:
                    continue
                del self._parked[request.unique]
                length = request.attempt()
            if length >= 0:
                try:
                    request.completion(length)
                except Exception:
                    _log.exception("completion of request %d", request.unique)
