"""The control socket: what a `Kernel` can do, for other processes of the same user.

One thread serves all clients, and takes the VFS lock for one call at a time. It never waits for a
client: what one does not read is kept up to a bound, behind which it is dropped. Events beyond a
bound are counted instead, and the client is told how many.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

from harness.control.encoding import PROTOCOL, decode, encode
from harness.control.kernel import LocalKernel, Watch
from harness.control.trace import Subscription
from harness.socket_file import SocketFile
from vfs.task import Task

if TYPE_CHECKING:
    from harness.fuse.server import FuseServer

LOG: Final = logging.getLogger(__name__)

LINE_MAX: Final = 16 << 20
"""Bytes of the longest line, and of what is kept for a client that does not read."""
_READ: Final = 1 << 16
_UCRED: Final = struct.Struct("3i")
_EVENTS_PENDING: Final = 1 << 18
"""Bytes of events that are made ready for a client; the others wait, and may be lost."""


class ControlServer:
    """Serves clients of a listening socket until it is closed, in a thread of its own."""

    def __init__(self, listener: socket.socket, make_kernel: Callable[[], LocalKernel]) -> None:
        """`listener` is taken over. Each client gets a kernel, which ends with it."""
        self._listener = listener
        self._listener.setblocking(False)
        self._make_kernel = make_kernel
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        # Between events, which come from any thread, and the end.
        self._waking = threading.Lock()
        self._clients: set[_Client] = set()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all clients, and end what is theirs. May be repeated."""
        with self._waking:
            if self._wake < 0:
                return
            os.close(self._wake)
            self._wake = -1
        self._thread.join()

    def _tell(self) -> None:
        """There is an event for a client. From any thread."""
        with self._waking:
            if self._wake >= 0:
                # A full pipe wakes, too.
                with suppress(BlockingIOError):
                    os.write(self._wake, b"e")

    def _run(self) -> None:
        try:
            while True:
                for key, events in self._selector.select():
                    if key.data is not None:
                        key.data(events)
                    elif os.read(self._woken, _READ):
                        for client in tuple(self._clients):
                            self._serve(client, 0)
                    else:
                        return
        except BaseException:
            LOG.exception("the control socket died")
        finally:
            for client in tuple(self._clients):
                self._drop(client)
            self._selector.close()
            self._listener.close()
            os.close(self._woken)

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                LOG.warning("a control client could not be accepted: %s", error.strerror)
            return
        sock.setblocking(False)
        uid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        if uid not in (0, os.geteuid()):
            LOG.warning("uid %d may not control this daemon", uid)
            with suppress(OSError):
                sock.send(_line({"error": "this daemon is another user's"}))
            sock.close()
            return
        client = _Client(sock, self._make_kernel(), self._tell)
        self._clients.add(client)
        self._selector.register(
            sock, selectors.EVENT_READ, lambda events: self._serve(client, events)
        )
        version = importlib.metadata.version("dentry")
        client.send({"dentry": PROTOCOL, "version": version, "pid": os.getpid()})
        self._settle(client)

    def _serve(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                client.flush()
            if events & selectors.EVENT_READ:
                client.receive()
            client.send_events()
        except _Gone as gone:
            if str(gone):
                LOG.warning("a control client was dropped: %s", gone)
            self._drop(client)
            return
        except Exception:
            LOG.exception("a control client was dropped")
            self._drop(client)
            return
        self._settle(client)

    def _settle(self, client: _Client) -> None:
        """Wait for room only where there is something to send."""
        waits = client.pending or client.has_events()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
        key = self._selector.get_key(client.sock)
        if key.events != events:
            self._selector.modify(client.sock, events, key.data)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        with suppress(KeyError):
            self._selector.unregister(client.sock)
        client.close()


@contextmanager
def controlled(
    place: str | SocketFile | None,
    first: Task,
    server: FuseServer | None = None,
    depth: Callable[[], int | None] | None = None,
) -> Iterator[None]:
    """Have a control socket at `place` during a `with`, if there is to be one. Its clients' tasks
    are clones of `first`; `server` and `depth` are as `Watch` has them. All are borrowed, but for
    the listener of a socket that somebody else has made, and removes. Raises: UsageError.
    """
    if place is None:
        yield
        return
    socket_file = control_socket(place) if isinstance(place, str) else place
    watch = Watch(first, server, depth)
    try:
        with ControlServer(socket_file.listener, lambda: LocalKernel(first.vfs, first, watch)):
            yield
    finally:
        watch.close()
        if socket_file is not place:
            socket_file.remove()


def control_socket(path: str) -> SocketFile:
    """A socket at `path` for its owner only. Raises: UsageError."""
    place = SocketFile(path, option="--control")
    os.chmod(path, 0o600)
    return place


class _Gone(Exception):
    """A client has left, or has to; the message says why it has to."""


class _Client:
    """A connection, its kernel, and what is not yet sent."""

    def __init__(self, sock: socket.socket, kernel: LocalKernel, wake: Callable[[], None]) -> None:
        self.sock = sock
        self.pending = bytearray()
        self.kernel = kernel
        self.wake = wake
        self.subscriptions: dict[int, Subscription] = {}
        self._next = 1
        self._received = bytearray()

    def close(self) -> None:
        self.sock.close()
        self.kernel.close()

    def receive(self) -> None:
        """Answer the lines that are there. Raises: _Gone."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            raise _Gone from None
        if not data:
            raise _Gone
        self._received += data
        if b"\n" not in data:
            if len(self._received) > LINE_MAX:
                raise _Gone(f"a line of more than {LINE_MAX} bytes")
            return
        lines = self._received.split(b"\n")
        self._received = lines.pop()
        for line in lines:
            self.send(self._answer(line))

    def send(self, value: dict[str, Any]) -> None:
        """Send as much as there is room for, and keep the rest. Raises: _Gone."""
        self.pending += _line(value)
        self.flush()
        if len(self.pending) > 2 * LINE_MAX:
            raise _Gone("it does not read its replies")

    def flush(self) -> None:
        """Raises: _Gone."""
        while self.pending:
            try:
                sent = self.sock.send(self.pending)
            except BlockingIOError:
                return
            except OSError:
                raise _Gone from None
            del self.pending[:sent]

    def add(self, subscription: Subscription) -> int:
        """Send its events from now on, under the number that is returned."""
        number = self._next
        self._next += 1
        self.subscriptions[number] = subscription
        return number

    def has_events(self) -> bool:
        """Whether there are events that are not in `pending` yet."""
        return any(self.subscriptions.values())

    def send_events(self) -> None:
        """Send events, as many as there is room for. Raises: _Gone."""
        for number in self.subscriptions:
            self.queue_events(number, _EVENTS_PENDING)
        self.flush()

    def queue_events(self, number: int, room: int) -> None:
        """Have events follow what is to be sent, until that is `room` bytes."""
        subscription = self.subscriptions[number]
        while len(self.pending) < room and (event := subscription.get(0)) is not None:
            self.pending += _line({"event": number, **encode(event)})

    def _answer(self, line: bytes | bytearray) -> dict[str, Any]:
        number = None
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request is an object")
            number = request.get("id")
            return {"id": number, "value": encode(self._perform(request))}
        except OSError as error:
            return {"id": number, "error": _described(error)}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            return {"id": number, "error": {"message": str(error) or type(error).__name__}}
        except Exception:
            LOG.exception("a control request raised")
            return {"id": number, "error": {"errno": errno.EIO, "message": "see the daemon's log"}}

    def _perform(self, request: dict[str, Any]) -> Any:
        operation = OPERATIONS.get(request.get("op", ""))
        if operation is None:
            raise ValueError(f"no operation {request.get('op')!r}: {', '.join(OPERATIONS)}")
        return operation(self, request)


def _create_task(client: _Client, request: dict[str, Any]) -> int:
    return client.kernel.create_task(request.get("like"), **request.get("who", {}))


def _exit_task(client: _Client, request: dict[str, Any]) -> None:
    client.kernel.exit_task(request["task"])


def _call(client: _Client, request: dict[str, Any]) -> Any:
    return client.kernel.call(
        request["task"], request["call"], *decode(request.get("arguments", []))
    )


def _inspect(client: _Client, request: dict[str, Any]) -> Any:
    return client.kernel.inspect(request["task"], request["view"], **request.get("arguments", {}))


def _subscribe(client: _Client, request: dict[str, Any]) -> int:
    filters = {name: request[name] for name in _FILTERS if name in request}
    return client.add(client.kernel.subscribe(**filters, wake=client.wake))


def _unsubscribe(client: _Client, request: dict[str, Any]) -> None:
    number = request["subscription"]
    client.subscriptions[number].close()
    # What has happened before is told before our answer.
    client.queue_events(number, 2 * LINE_MAX)
    del client.subscriptions[number]


def _measure(client: _Client, request: dict[str, Any]) -> dict[str, Any]:
    return client.kernel.measure()


def _metrics(client: _Client, request: dict[str, Any]) -> str:
    return client.kernel.metrics()


_FILTERS: Final = ("topics", "names", "pid", "failed")
OPERATIONS: Final[dict[str, Callable[[_Client, dict[str, Any]], Any]]] = {
    "create_task": _create_task,
    "exit_task": _exit_task,
    "call": _call,
    "inspect": _inspect,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "measure": _measure,
    "metrics": _metrics,
}


def _described(error: OSError) -> dict[str, Any]:
    described: dict[str, Any] = {"errno": error.errno, "message": error.strerror}
    if error.filename is not None:
        described["path"] = encode(error.filename)
    return described


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
