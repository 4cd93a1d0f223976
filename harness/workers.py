"""Numbered pieces of work, done by several processes of which any may die or hang."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Final

_ENDING_SECONDS: Final = 10

Work = Callable[[Connection, range, str], None]
"""Done in a process: sends each number before it begins with it, and whatever else there is to say.
The string is a directory that goes with the whole run. Ends when nobody listens any more."""


class _Worker:
    """A process that does ``numbers``; ``number`` is where it is."""

    def __init__(self, work: Work, numbers: range, scratch: str) -> None:
        self.number = numbers.start
        self.heard = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, numbers, scratch), daemon=False)
        # The terminal sends SIGINT to all of us. It is inherited blocked, because a process that is
        # only starting could not ignore it. Starting the tracker would unblock it again.
        resource_tracker.ensure_running()
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        theirs.close()

    def end(self, seconds: float) -> int | None:
        """Have it clean up and end. Returns its exit status."""
        self.connection.close()
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self.process.exitcode


class Crew:
    """Processes that share ``numbers``; each takes every ``jobs``-th. Where one dies, or is silent
    for ``silent_seconds``, another takes its place.

    ``hear`` is called with each message that is no number, ``lost`` with the number that a process
    did not come back from, and why.
    """

    def __init__(
        self,
        work: Work,
        numbers: range,
        jobs: int,
        silent_seconds: float,
        hear: Callable[[Any], None],
        lost: Callable[[int, str], None],
    ) -> None:
        self._work = work
        self._end = numbers.stop
        self._stride = max(min(jobs, len(numbers)), 1)
        self._silent_seconds = silent_seconds
        self._hear = hear
        self._lost = lost
        self._first = numbers.start
        self._scratch = ""
        self._workers: dict[Connection, _Worker] = {}

    def run(self, seconds: float, go_on: Callable[[], bool]) -> bool:
        """Until all is done, ``go_on`` (asked whenever something came in, and every ``seconds``) is
        False, or SIGINT comes. Returns whether that came.
        """
        with tempfile.TemporaryDirectory(prefix="dentry-fuzz-") as self._scratch:
            try:
                for job in range(self._stride):
                    self._start(self._first + job)
                while self._workers:
                    self._listen(seconds)
                    if not go_on():
                        break
            except KeyboardInterrupt:
                return True
            finally:
                for worker in self._workers.values():
                    worker.connection.close()
                for worker in self._workers.values():
                    worker.end(_ENDING_SECONDS)
        return False

    def _start(self, number: int) -> None:
        if number < self._end:
            worker = _Worker(self._work, range(number, self._end, self._stride), self._scratch)
            self._workers[worker.connection] = worker

    def _listen(self, seconds: float) -> None:
        """Take what has come in, and replace processes that are dead or stuck."""
        for ready in wait(list(self._workers), seconds):
            assert isinstance(ready, Connection)
            worker = self._workers[ready]
            try:
                message = ready.recv()
            except (EOFError, ConnectionResetError):
                status = worker.end(_ENDING_SECONDS)
                if status:
                    self._replace(ready, f"the process ended with status {status}")
                else:
                    del self._workers[ready]
                continue
            worker.heard = time.monotonic()
            if isinstance(message, int):
                worker.number = message
            elif message is not None:
                self._hear(message)
        for connection, worker in list(self._workers.items()):
            if time.monotonic() - worker.heard > self._silent_seconds:
                worker.end(0)
                self._replace(connection, f"nothing was heard for {self._silent_seconds} s")

    def _replace(self, connection: Connection, why: str) -> None:
        worker = self._workers.pop(connection)
        self._lost(worker.number, why)
        self._start(worker.number + self._stride)
