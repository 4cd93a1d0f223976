"""The VFS of a daemon, through its control socket."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Self

from harness.control.encoding import PROTOCOL, decode, encode
from harness.errors import UsageError

EVENTS_MAX: Final = 100_000
"""Events that are kept for a listener of this process that does not take them."""
_SLICE: Final = 0.1
"""Seconds that a listener has the connection for itself."""


class Disconnected(Exception):
    """The daemon has ended, or dropped us."""


class RemoteKernel:
    """A `Kernel` whose calls are made by a daemon."""

    def __init__(self, path: str) -> None:
        """Connect to the control socket at `path`. Raises: UsageError."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._number = 0
        self._lock = threading.Lock()
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            hint = {
                errno.ECONNREFUSED: "the daemon that listened there has ended",
                errno.ENOENT: "No such socket: start a daemon with --control",
            }.get(error.errno or 0, error.strerror or str(error))
            raise UsageError(f"--connect {path}: {hint}") from None
        # Both outlive a Ctrl-C in the middle of a request, whose reply then comes late.
        self._received = bytearray()
        self._unsent = bytearray()
        self._subscriptions: dict[int, RemoteSubscription] = {}
        try:
            greeting = self._read_line()
            if "error" in greeting:
                raise UsageError(f"--connect {path}: {greeting['error']}")
            if greeting.get("dentry") != PROTOCOL:
                raise UsageError(f"--connect {path}: the daemon speaks another version")
        except BaseException as error:
            self._sock.close()
            if isinstance(error, Disconnected | ValueError):
                raise UsageError(f"--connect {path}: this is no control socket") from None
            raise
        self.version = str(greeting.get("version"))
        self.pid = int(greeting.get("pid", 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; the daemon ends our tasks."""
        self._sock.close()

    def create_task(self, like: int | None = None, **who: Any) -> int:
        return int(self.request("create_task", like=like, who=who))

    def exit_task(self, task: int) -> None:
        self.request("exit_task", task=task)

    def call(self, task: int, name: str, *arguments: Any) -> Any:
        return self.request("call", task=task, call=name, arguments=encode(arguments))

    def inspect(self, task: int, view: str, **arguments: Any) -> Any:
        return self.request("inspect", task=task, view=view, arguments=arguments)

    def request(self, operation: str, **fields: Any) -> Any:
        """Have the daemon do `operation`, and return its value. Threads take turns.

        Raises:
            OSError: the operation's.
            UsageError: the daemon does not know it, or not these fields.
            Disconnected: the daemon is gone.
        """
        with self._lock:
            self._number += 1
            request = {"id": self._number, "op": operation, **fields}
            self._unsent += json.dumps(request).encode() + b"\n"
            try:
                while self._unsent:
                    del self._unsent[: self._sock.send(self._unsent)]
            except OSError:
                raise Disconnected("the daemon has ended") from None
            while True:
                reply = self._read_line()
                if not self._is_event(reply) and reply.get("id") == self._number:
                    return self._value(reply)

    def subscribe(
        self,
        topics: Sequence[str] = (),
        names: Sequence[str] = (),
        pid: int | None = None,
        failed: bool = False,
    ) -> RemoteSubscription:
        filters = {"topics": list(topics), "names": list(names), "pid": pid, "failed": failed}
        number = self.request("subscribe", **filters)
        return self._subscriptions.setdefault(number, RemoteSubscription(self, number))

    def unsubscribe(self, number: int) -> None:
        """End a subscription; its events are all here then."""
        self.request("unsubscribe", subscription=number)
        del self._subscriptions[number]

    def measure(self) -> dict[str, Any]:
        found: dict[str, Any] = self.request("measure")
        return found

    def metrics(self) -> str:
        return str(self.request("metrics"))

    def receive_event(self, timeout: float) -> None:
        """Wait for an event, and put it where it belongs. Raises: Disconnected."""
        with self._lock, suppress(TimeoutError):
            self._is_event(self._read_line(timeout))

    def _is_event(self, line: dict[str, Any]) -> bool:
        number = line.pop("event", None)
        if number is None:
            return False
        # The first events may come before `subscribe` has returned.
        self._subscriptions.setdefault(number, RemoteSubscription(self, number)).put(line)
        return True

    def _value(self, reply: dict[str, Any]) -> Any:
        error = reply.get("error")
        if error is None:
            return decode(reply.get("value"))
        if "errno" not in error:
            raise UsageError(str(error.get("message")))
        number = int(error["errno"])
        if "path" in error:
            raise OSError(number, os.strerror(number), decode(error["path"]))
        raise OSError(number, os.strerror(number))

    def _read_line(self, timeout: float | None = None) -> dict[str, Any]:
        """The next line. Raises: TimeoutError; Disconnected; ValueError."""
        end = self._received.find(b"\n")
        if end < 0:
            if timeout is None:
                end = self._receive()
            else:
                self._sock.settimeout(timeout)
                try:
                    end = self._receive()
                finally:
                    self._sock.settimeout(None)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        found: dict[str, Any] = json.loads(line)
        return found

    def _receive(self) -> int:
        """Receive until there is a line; return its length."""
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Disconnected("the daemon has ended")
            before = len(self._received)
            self._received += data
            end = self._received.find(b"\n", before)
            if end >= 0:
                return end


class RemoteSubscription:
    """A listener whose events a daemon sends."""

    def __init__(self, kernel: RemoteKernel, number: int) -> None:
        self._kernel = kernel
        self._number = number
        self._events: deque[dict[str, Any]] = deque()
        self._lost = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def put(self, event: dict[str, Any]) -> None:
        """Keep an event, or, behind `EVENTS_MAX`, count it."""
        if len(self._events) >= EVENTS_MAX:
            self._lost += 1
            return
        if self._lost:
            self._events.append({"topic": "lost", "lost": self._lost})
            self._lost = 0
        self._events.append(event)

    def get(self, timeout: float | None = None) -> dict[str, Any] | None:
        """See `harness.control.trace.Listening.get`. Raises: Disconnected."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._events:
                event = self._events.popleft()
                return {name: decode(value) for name, value in event.items()}
            if self._lost:
                lost, self._lost = self._lost, 0
                return {"topic": "lost", "lost": lost}
            left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
            if self._closed or left <= 0:
                return None
            self._kernel.receive_event(left)
            # A lock is not fair: another thread's request would wait for as long as we listen.
            time.sleep(0.001)

    def close(self) -> None:
        """See `harness.control.trace.Listening.close`. May be repeated. Raises: Disconnected."""
        if not self._closed:
            self._closed = True
            self._kernel.unsubscribe(self._number)
