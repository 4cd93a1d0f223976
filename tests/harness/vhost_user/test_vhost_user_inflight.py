"""A daemon that is killed in the middle of requests, and the one that comes after it."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vhost_user_support import ECHO, PARK, UNPARK, Serving, serve_device

from harness.vhost_user import message as wire
from harness.vhost_user.connection import ProtocolError
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ATTR_SIZE, GETATTR, ROOT, FuseClient, _Slot

HERE = Path(__file__).parent
SETLK = 32
SETLKW = 33
SETLK_FLAGS = 1 << 1


class Daemons:
    """One daemon after another at the same path."""

    def __init__(self, path: Path, *command: str) -> None:
        self.path = str(path)
        self.command = command or (str(HERE / "echo_daemon.py"), self.path)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> socket.socket:
        """Start one, and return a connection to it."""
        python_path = os.pathsep.join([str(HERE), str(HERE.parents[2])])
        self.process = subprocess.Popen(
            [sys.executable, *self.command],
            env={**os.environ, "PYTHONPATH": python_path},
        )
        deadline = time.monotonic() + 60
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(self.path)
                return sock
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    daemons = Daemons(tmp_path / "sock")
    yield daemons
    daemons.kill()


LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def tracked(sock: socket.socket, packed: bool = False) -> tuple[Frontend, FuseClient]:
    frontend = Frontend(sock, timeout=60)
    frontend.negotiate(packed=packed, extra=wire.F_INFLIGHT_SHMFD)
    frontend.share_memory()
    frontend.track_inflight(3, 256)
    return frontend, FuseClient(frontend, depth=12, timeout=60, spin_ns=0)


@LAYOUTS
def test_requests_in_flight_are_answered_once_and_in_order_by_the_next_daemon(
    daemons: Daemons, packed: bool
) -> None:
    frontend, client = tracked(daemons.start(), packed)
    with frontend:
        slots = client._slots
        queue = client.queue
        # Three wait in the server; one between them and one after them are answered.
        for slot, opcode in zip(slots, [PARK, ECHO, PARK, PARK, ECHO], strict=False):
            client._submit(slot, (opcode, 1, b"%08d" % slot.head), 8)
        queue.publish()
        answered = 0
        while answered < 2:
            client._wait()
            answered += client._reap_all()
        daemons.kill()
        assert not queue.has_used()
        # One more while nobody listens.
        client._submit(slots[5], (ECHO, 1, b"unheard."), 8)
        queue.publish()

        frontend.reconnect(daemons.start())
        # The next daemon parks what was parked; UNPARK has it answer.
        client._wait()
        assert queue.reap()[0] == slots[5].head
        client._submit(slots[6], (UNPARK, 1, b""), 0)
        queue.publish()
        found = []
        while len(found) < 4:
            client._wait()
            while queue.has_used():
                found.append(queue.reap()[0])
        assert found == [slots[number].head for number in (6, 0, 2, 3)]

        # Nothing is left of them for a third.
        daemons.kill()
        frontend.reconnect(daemons.start())
        assert client.request(ECHO, 1, b"third", 5) == (0, b"third")
        assert not queue.has_used()
        client.close()


@LAYOUTS
@pytest.mark.parametrize("seed", [1, 2])
def test_daemon_killed_at_any_time_loses_nothing_and_answers_nothing_twice(
    daemons: Daemons, seed: int, packed: bool
) -> None:
    chance = random.Random(seed)
    frontend, client = tracked(daemons.start(), packed)
    with frontend:
        queue = client.queue
        free = list(client._slots)
        in_flight: dict[int, tuple[_Slot, bytes]] = {}
        sent = done = 0
        kills = sorted(chance.sample(range(50, 5000), 5))
        while done < 5200:
            while free and sent < 5200:
                slot = free.pop()
                payload = b"%08d" % sent
                client._submit(slot, (ECHO, 1, payload), 8)
                in_flight[slot.head] = slot, payload
                sent += 1
            queue.publish()
            if kills and done >= kills[0]:
                kills.pop(0)
                # It is at work on what was just published, for most of the time.
                for _ in range(chance.randrange(2000)):
                    pass
                daemons.kill()
                frontend.reconnect(daemons.start())
            client._wait()
            while queue.has_used():
                head, length = queue.reap()
                slot, payload = in_flight.pop(head)
                assert slot.result(length) == (0, payload)
                free.append(slot)
                done += 1
        assert not in_flight and not queue.has_used()
        client.close()


def test_lock_that_waited_in_a_killed_daemon_fails_in_the_next_once(tmp_path: Path) -> None:
    """The session, and with it the file handle, died with the daemon; the request did not."""
    path = tmp_path / "sock"
    serve = ("-m", "harness.cli.main", "serve", "--socket-path", str(path), "--num-queues", "2")
    daemons = Daemons(path, *serve, "--mount", "type=tmpfs,dst=/", "--log-level", "error")
    try:
        frontend, client = tracked(daemons.start())
        with frontend:
            client.init(flags=SETLK_FLAGS)
            entry, handle = client.create(ROOT, b"file")
            assert client.request(SETLK, entry.nodeid, write_lock(handle, 1)) == (0, b"")
            client._submit(client._slots[3], (SETLKW, entry.nodeid, write_lock(handle, 2)), 0)
            client.queue.publish()
            # It is answered after the SETLKW has been looked at, and found waiting.
            assert client.request(GETATTR, ROOT, bytes(16), ATTR_SIZE)[0] == 0
            daemons.kill()
            assert not client.queue.has_used()
            frontend.reconnect(daemons.start())
            client._wait()
            head, length = client.queue.reap()
            assert head == client._slots[3].head
            error, _ = client._slots[3].result(length)
            assert error
            client.init()
            assert not client.queue.has_used()
            created, handle = client.create(ROOT, b"file")
            client.release(created.nodeid, handle)
            client.close()
    finally:
        daemons.kill()


def write_lock(handle: int, owner: int) -> bytes:
    """struct fuse_lk_in for the whole file."""
    whole = (1 << 63) - 1
    return struct.pack("<QQQQIIII", handle, owner, 0, whole, fcntl.F_WRLCK, owner, 0, 0)


@LAYOUTS
def test_stopped_and_resumed_ring_resubmits_nothing(packed: bool) -> None:
    with serve_device() as serving:
        frontend, client = tracked_in_process(serving, packed)
        with frontend:
            for number in range(5):
                client.request(ECHO, 1, b"%d" % number, 1)
            base = frontend.stop(1)
            frontend.resume(1, base)
            before = len(serving.server.sizes)
            assert client.request(ECHO, 1, b"x", 1) == (0, b"x")
            assert len(serving.server.sizes) == before + 1
            client.close()


def tracked_in_process(serving: Serving, packed: bool) -> tuple[Frontend, FuseClient]:
    frontend = serving.frontend()
    frontend.negotiate(packed=packed, extra=wire.F_INFLIGHT_SHMFD)
    frontend.share_memory()
    frontend.track_inflight(2, 256)
    return frontend, FuseClient(frontend, depth=8, timeout=60)


@LAYOUTS
def test_ring_larger_than_its_inflight_memory_is_broken_and_reported(packed: bool) -> None:
    with serve_device() as serving, serving.frontend() as frontend:
        frontend.negotiate(packed=packed, extra=wire.F_INFLIGHT_SHMFD)
        frontend.share_memory()
        frontend.track_inflight(2, 64)
        err = os.eventfd(0)
        frontend.tell(wire.SET_VRING_ERR, wire.U64.pack(1), err)
        frontend.start(1, 128)
        assert os.eventfd_read(err)
        os.close(err)


@pytest.mark.parametrize(
    "payload",
    [
        wire.INFLIGHT.pack(4096, 0, 0, 64),
        wire.INFLIGHT.pack(4096, 0, 3, 64),
        wire.INFLIGHT.pack(4096, 0, 2, 0),
        wire.INFLIGHT.pack(4096, 0, 2, 32769),
        wire.INFLIGHT.pack(4096, 0, 2, 256),
        wire.INFLIGHT.pack(8192, 0, 2, 64),
        wire.INFLIGHT.pack(1024, 8, 2, 8),
    ],
)
def test_inflight_memory_that_does_not_fit_is_refused(payload: bytes) -> None:
    with serve_device() as serving, serving.frontend() as frontend:
        frontend.negotiate(extra=wire.F_INFLIGHT_SHMFD)
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, 4096)
        try:
            with pytest.raises(ProtocolError):
                frontend.tell(wire.SET_INFLIGHT_FD, payload, fd)
        finally:
            os.close(fd)


def test_inflight_memory_of_the_other_layout_is_forgotten() -> None:
    with serve_device() as serving, serving.frontend() as frontend:
        frontend.negotiate(extra=wire.F_INFLIGHT_SHMFD)
        frontend.share_memory()
        frontend.track_inflight(2, 64)
        frontend.tell(wire.SET_FEATURES, wire.U64.pack(frontend.features))
        packed = frontend.features | wire.VIRTIO_F_RING_PACKED
        frontend.tell(wire.SET_FEATURES, wire.U64.pack(packed))
        frontend.features = packed
        client = FuseClient(frontend, depth=8, timeout=20)
        assert client.request(ECHO, 1, b"x", 1) == (0, b"x")
        client.close()
