"""A small FUSE server to hang a device on, and devices that serve it on a thread."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EINTR
from typing import Any

from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FORGET, INIT
from harness.virtiofs import VirtioFsDevice
from harness.wire import PENDING, WITHDRAWN

ECHO = 1000
PARK = 1001
UNPARK = 1002
RAISE = 1003

OUT_HEADER = struct.Struct("<IiQ")


class EchoServer:
    """Answers INIT, echoes ECHO, keeps PARK until UNPARK or drain, raises at RAISE."""

    def __init__(self) -> None:
        self.resets = 0
        self.drains = 0
        self.drain_answers = True
        self.forgotten: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.parked: list[tuple[int, Sequence[memoryview], Callable[[int], None]]] = []
        self.arrived = threading.Event()

    def handle(
        self,
        request: Sequence[memoryview],
        reply: Sequence[memoryview],
        completion: Callable[[int], None],
    ) -> int:
        data = b"".join(request)
        self.sizes.append((len(data), sum(map(len, reply))))
        _, opcode, unique, nodeid = struct.unpack_from("<IIQQ", data)
        if opcode == FORGET:
            self.forgotten.append(nodeid)
            return 0
        if opcode == RAISE:
            raise ZeroDivisionError("as the test asked")
        if opcode == PARK:
            self.parked.append((unique, reply, completion))
            self.arrived.set()
            return PENDING
        if opcode == UNPARK:
            self.answer_parked(0)
        results = struct.pack("<II56x", 7, 38) if opcode == INIT else data[40:]
        return self.answer(unique, reply, 0, results)

    def answer(
        self, unique: int, reply: Sequence[memoryview], error: int, results: bytes = b""
    ) -> int:
        data = OUT_HEADER.pack(16 + len(results), -error, unique) + results
        for segment in reply:
            segment[: len(data)] = data[: len(segment)]
            data = data[len(segment) :]
        return 16 + len(results)

    def answer_parked(self, error: int) -> None:
        parked, self.parked = self.parked, []
        for unique, reply, completion in parked:
            completion(self.answer(unique, reply, error))

    def drain(self) -> None:
        self.drains += 1
        if self.drain_answers:
            self.answer_parked(EINTR)

    def withdraw(self) -> None:
        parked, self.parked = self.parked, []
        for _, _, completion in parked:
            completion(WITHDRAWN)

    def reset(self) -> None:
        self.resets += 1


class Serving:
    """A device served on a thread, at the other end of a socket pair or at a path."""

    def __init__(self, server: EchoServer, device: VirtioFsDevice) -> None:
        self.server = server
        self.device = device
        self.sock = socket.socket()
        self.path = ""
        self.failure: BaseException | None = None
        self.thread: threading.Thread | None = None

    def wait_until_gone(self) -> None:
        """Until the device has seen its only frontend's end and has stopped by itself."""
        assert self.thread is not None
        self.thread.join(60)
        assert not self.thread.is_alive()

    def frontend(self, **options: Any) -> Frontend:
        if self.path:
            return Frontend.connect(self.path, **options)
        return Frontend(self.sock, timeout=60, **options)


@contextmanager
def serve_device(
    path: str = "",
    *,
    tag: str | None = None,
    queues: int = 1,
    poll_limit_ns: int = 0,
    server: Any = None,
    **options: Any,
) -> Iterator[Serving]:
    """Serve an EchoServer, or `server`, on a thread. What is raised there is raised here."""
    if server is None:
        server = EchoServer()
    with VirtioFsDevice(server, tag, queues, poll_limit_ns=poll_limit_ns, **options) as device:
        serving = Serving(server, device)
        serving.sock.close()
        serving.path = path
        if not path:
            serving.sock, theirs = socket.socketpair()

        def run() -> None:
            try:
                if path:
                    device.serve_path(path)
                else:
                    device.serve_connection(theirs)
            except BaseException as error:
                serving.failure = error

        thread = serving.thread = threading.Thread(target=run)
        thread.start()
        try:
            yield serving
        finally:
            device.stop()
            thread.join(60)
            serving.sock.close()
            assert not thread.is_alive()
            if serving.failure is not None:
                raise serving.failure


def open_descriptors() -> dict[str, str]:
    """Number and meaning of each open descriptor of this process."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether `condition` comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
