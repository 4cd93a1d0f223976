"""Threads for requests that wait for the host."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from traceback import format_exc
from typing import Final

from harness.wire import FuseHandler

LOG = logging.getLogger(__name__)

BLOCKING: Final = frozenset({15, 16, 20, 47, 53})
"""READ, WRITE, FSYNC, COPY_FILE_RANGE: where the server lets go of the lock of the VFS. Nothing
else would gain."""

_OPCODE: Final = slice(4, 8)

Task = tuple[
    FuseHandler,
    Sequence[memoryview],
    Sequence[memoryview],
    Callable[[int], None],
    Callable[[Sequence[memoryview], Sequence[memoryview]], int],
]


class WorkerPool:
    """A thread pool as virtiofsd's --thread-pool-size, for some opcodes only.

    All else stays on the serving thread, which is faster: handing a request over costs more than
    most requests do. Workers touch a request's buffers and never a ring; they hand the length of
    the reply to the request's completion, which the serving thread takes up in any order.
    """

    def __init__(self, threads: int, opcodes: Collection[int] = BLOCKING) -> None:
        """Starts `threads` threads, which serve requests of these `opcodes`.

        Raises:
            RuntimeError: no more threads can be had.
        """
        self._opcodes = frozenset(opcodes)
        self._tasks: deque[Task] = deque()
        self._condition = threading.Condition()
        self._running = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"fuse-worker-{number}", daemon=True)
            for number in range(threads)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self.close()
            raise

    def wants(self, request: Sequence[memoryview]) -> bool:
        """Whether this request is for the pool. One whose header is in pieces is not."""
        if not request or len(request[0]) < 8:
            return False
        return int.from_bytes(request[0][_OPCODE], "little") in self._opcodes

    def submit(
        self,
        handler: FuseHandler,
        request: Sequence[memoryview],
        reply: Sequence[memoryview],
        completion: Callable[[int], None],
        on_error: Callable[[Sequence[memoryview], Sequence[memoryview]], int],
    ) -> None:
        """Have a worker serve the request. `on_error` writes the reply where the handler raises."""
        with self._condition:
            self._tasks.append((handler, request, reply, completion, on_error))
            self._condition.notify()

    def quiesce(self) -> None:
        """Drop what has not begun, and wait for what has: the session it belongs to ends."""
        with self._condition:
            self._tasks.clear()
            while self._running:
                self._condition.wait()

    def close(self) -> None:
        """`quiesce`, and end the threads. May be repeated."""
        with self._condition:
            self._closed = True
            self._tasks.clear()
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        condition = self._condition
        while True:
            with condition:
                while not self._tasks:
                    if self._closed:
                        return
                    condition.wait()
                task = self._tasks.popleft()
                self._running += 1
            try:
                _serve(*task)
            finally:
                # Nothing of the guest's memory is kept for the time of the next wait.
                del task
                with condition:
                    self._running -= 1
                    if not self._running:
                        condition.notify_all()


def _serve(
    handler: FuseHandler,
    request: Sequence[memoryview],
    reply: Sequence[memoryview],
    completion: Callable[[int], None],
    on_error: Callable[[Sequence[memoryview], Sequence[memoryview]], int],
) -> None:
    try:
        length = handler.handle(request, reply, completion)
    except Exception:
        LOG.error("a request raised\n%s", format_exc())
        length = on_error(request, reply)
    if length >= 0:
        completion(length)
