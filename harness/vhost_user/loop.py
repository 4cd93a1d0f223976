"""The thread that serves a device: rings first, then sockets, then sleep."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from harness.vhost_user.vring import Completion, Vring

SOCKET_EVERY: Final = 16
"""Rounds over busy rings after which the descriptors are looked at."""


class PollWindow:
    """halt_poll_ns of KVM, for a ring: how long to watch it before sleeping, learned.

    A sleep shorter than `limit_ns` would have been better spent watching, so the window opens. A
    watch in vain closes it, for one sleep, then for 2, 4, ... 1024 until one succeeds: on separate
    CPUs watching cuts a request's latency from 30 to 5 us, but where the scheduler has put us on
    the CPU of the very client that we watch, it only keeps that client from running.
    """

    __slots__ = ("_limit_ns", "_pause", "_skip", "window_ns")

    MAX_PAUSE: Final = 1024

    def __init__(self, limit_ns: int) -> None:
        """`limit_ns` bounds the window, in nanoseconds; 0 turns watching off."""
        self._limit_ns = limit_ns
        self._pause = 1
        self._skip = 0
        self.window_ns = 0

    def succeeded(self) -> None:
        """Learn that watching found work."""
        self._pause = 1

    def slept(self, duration_ns: int) -> None:
        """Learn from a sleep of `duration_ns`, the vain watch before it included."""
        if self.window_ns:
            self.window_ns = 0
            self._skip = self._pause
            self._pause = min(2 * self._pause, self.MAX_PAUSE)
        elif self._skip:
            self._skip -= 1
        elif duration_ns < self._limit_ns:
            self.window_ns = self._limit_ns


class ServiceLoop:
    """A vhost worker thread with an epoll set.

    Rings that had work are `hot`: they are served round after round with kicks disabled, until
    they stay empty for the poll window. Kick descriptors are edge-triggered and never read, which
    saves a system call a wake-up. `stop`, `post` and `complete` may be called from any thread;
    everything else belongs to the thread that calls `run`.
    """

    def __init__(self, poll_limit_ns: int) -> None:
        """`poll_limit_ns` bounds how long an empty ring is watched before the thread sleeps.

        It should be 0 when the frontend is a thread of this process: the two share one
        interpreter, and who watches keeps the other from working.
        """
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN | select.EPOLLET)
        self._callbacks: dict[int, Callable[[], None]] = {self._wake: self._run_posted}
        self._window = PollWindow(poll_limit_ns)
        self._hot: list[Vring] = []
        self._completed: deque[tuple[Completion, int]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread = 0
        self._closed = False
        self._stopping = False
        self._timer: tuple[int, Callable[[], None]] | None = None

    def register(self, fd: int, callback: Callable[[], None], *, edge: bool = False) -> None:
        """Call `callback` when `fd` (borrowed) is readable; with `edge`, once for each event.

        Raises:
            OSError: from epoll_ctl(2), EPERM when `fd` can't be polled.
        """
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLET if edge else 0))
        self._callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        """Forget `fd`, if it is registered. To be called before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def set_timer(self, delay_ns: int, callback: Callable[[], None]) -> None:
        """Call `callback` once, `delay_ns` from now. There is one timer; it replaces another."""
        self._timer = (time.monotonic_ns() + delay_ns, callback)

    def cancel_timer(self) -> None:
        """Forget the timer."""
        self._timer = None

    def heat(self, vring: Vring) -> None:
        """Serve `vring` from the next round on, until it is empty."""
        if vring not in self._hot and vring.runs:
            vring.disable_kicks()
            self._hot.append(vring)

    def complete(self, completion: Completion, length: int) -> None:
        """Queue a completion for the serving thread. From any thread."""
        self._completed.append((completion, length))
        if threading.get_ident() != self._thread:
            self._interrupt()

    def post(self, callback: Callable[[], None]) -> None:
        """Have `callback` called by the serving thread soon. From any thread."""
        self._posted.append(callback)
        self._interrupt()

    def stop(self) -> None:
        """Have `run` return soon. From any thread, or from a signal handler."""
        self._stopping = True
        # No lock: a signal handler may have interrupted its holder on this very thread.
        if not self._closed:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Release the descriptors; completions that come later are dropped."""
        with self._lock:
            self._closed = True
            self._epoll.close()
            os.close(self._wake)
        self._completed.clear()
        self._posted.clear()

    def run(self) -> None:
        """Serve until `stop`."""
        self._thread = threading.get_ident()
        try:
            busy_rounds = 0
            while not self._stopping:
                if self._serve_hot():
                    busy_rounds += 1
                    if busy_rounds < SOCKET_EVERY:
                        continue
                    busy_rounds = 0
                    self._dispatch(0)
                    continue
                busy_rounds = 0
                idle_since = time.monotonic_ns()
                was_hot = bool(self._hot)
                if was_hot and (self._watch(idle_since) or not self._cool()):
                    continue
                if self._completed or self._stopping:
                    continue
                self._dispatch(self._timeout())
                if was_hot:
                    self._window.slept(time.monotonic_ns() - idle_since)
        finally:
            self._thread = 0

    def settle(self, vrings: Sequence[Vring], limit_ns: int) -> None:
        """After `run`: wait until nothing is pending on `vrings`, which take nothing new."""
        deadline = time.monotonic_ns() + limit_ns
        self._thread = threading.get_ident()
        try:
            while True:
                self._finish_completed()
                left_ns = deadline - time.monotonic_ns()
                if left_ns <= 0 or not any(vring.parked for vring in vrings):
                    return
                self._dispatch(left_ns / 1e9)
        finally:
            self._thread = 0

    def _finish_completed(self) -> bool:
        worked = False
        while self._completed:
            completion, length = self._completed.popleft()
            completion.vring.finish(completion, length)
            worked = True
        return worked

    def _serve_hot(self) -> bool:
        worked = bool(self._completed) and self._finish_completed()
        for vring in self._hot:
            if vring.serve():
                worked = True
        return worked

    def _watch(self, start_ns: int) -> bool:
        # With requests pending other threads may be at work for them, and need the interpreter.
        if not self._window.window_ns or any(vring.parked for vring in self._hot):
            return False
        deadline = start_ns + self._window.window_ns
        poll = self._epoll.poll
        while time.monotonic_ns() < deadline:
            for vring in self._hot:
                if vring.has_work():
                    self._window.succeeded()
                    return True
            # Gives way to other Python threads, and sees what is not a ring.
            events = poll(0)
            if events:
                self._call(events)
                return True
        return False

    def _cool(self) -> bool:
        """Enable kicks on all hot rings; False if one of them got work meanwhile."""
        for vring in list(self._hot):
            if vring.runs and vring.enable_kicks():
                vring.disable_kicks()
            else:
                self._hot.remove(vring)
        return not self._hot

    def _timeout(self) -> float:
        if self._timer is None:
            return -1
        return max(0, self._timer[0] - time.monotonic_ns()) / 1e9

    def _dispatch(self, timeout: float) -> None:
        self._call(self._epoll.poll(timeout))
        if self._timer is not None and time.monotonic_ns() >= self._timer[0]:
            callback = self._timer[1]
            self._timer = None
            callback()

    def _call(self, events: list[tuple[int, int]]) -> None:
        for fd, _ in events:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def _interrupt(self) -> None:
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake, 1)
