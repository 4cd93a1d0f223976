"""The VFS of a daemon, through its control socket."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from typing import Any, Self

from harness.control.encoding import PROTOCOL, decode, encode
from harness.errors import UsageError


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
            while (reply := self._read_line()).get("id") != self._number:
                pass
            return self._value(reply)

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

    def _read_line(self) -> dict[str, Any]:
        while (end := self._received.find(b"\n")) < 0:
            try:
                data = self._sock.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Disconnected("the daemon has ended")
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        value: dict[str, Any] = json.loads(line)
        return value
