"""Memory that comes, goes and moves while rings run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from vhost_user_support import ECHO, PARK, Serving, serve_device

from harness.vhost_user import message as wire
from harness.vhost_user.connection import ProtocolError
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient

LAYOUTS = pytest.mark.parametrize("packed", [False, True])
HIGH = 1 << 40


@pytest.fixture
def memory_fd() -> Iterator[int]:
    fd = os.memfd_create("more")
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)


def connect(serving: Serving, packed: bool = False, slots: bool = True) -> Frontend:
    frontend = serving.frontend()
    frontend.negotiate(
        packed=packed, protocol_features=-1 if slots else ~wire.F_CONFIGURE_MEM_SLOTS
    )
    frontend.share_memory()
    return frontend


def region(guest: int, size: int, offset: int = 0) -> bytes:
    return wire.SINGLE_REGION.pack(0, guest, size, guest + HIGH, offset)


def table(frontend: Frontend) -> tuple[bytes, list[int]]:
    regions = frontend.memory.regions()
    payload = wire.MEMORY_TABLE.pack(len(regions), 0)
    payload += b"".join(wire.MEMORY_REGION.pack(*entry) for entry in regions)
    return payload, [frontend.memory.fd] * len(regions)


def test_there_are_509_slots_and_no_more(serving: Serving, memory_fd: int) -> None:
    with connect(serving) as frontend:
        slots = frontend.ask_u64(wire.GET_MAX_MEM_SLOTS)
        assert slots == 509
        for number in range(1, slots):
            frontend.tell(wire.ADD_MEM_REG, region(number << 33, 4096), memory_fd)
        with pytest.raises(ProtocolError):
            frontend.tell(wire.ADD_MEM_REG, region(1 << 60, 4096), memory_fd)
        frontend.tell(wire.REM_MEM_REG, region(1 << 33, 4096))
        frontend.tell(wire.ADD_MEM_REG, region(1 << 60, 4096), memory_fd)
        client = FuseClient(frontend, depth=4, timeout=60)
        assert client.request(ECHO, 1, b"full", 4) == (0, b"full")
        client.close()


@pytest.mark.parametrize(
    ("guest", "size", "offset"),
    [
        (HIGH, 0, 0),
        (HIGH, 100, 0),
        (HIGH + 1, 4096, 0),
        (HIGH, 4096, 100),
        (HIGH, 2 << 20, 0),
        (HIGH, 4096, 1 << 20),
        ((1 << 64) - 4096, 8192, 0),
        (0x4000_0000, 4096, 0),
        (0x4000_0000 - 4096, 8192, 0),
    ],
)
def test_region_that_cannot_be_is_refused_and_the_others_stay(
    serving: Serving, memory_fd: int, guest: int, size: int, offset: int
) -> None:
    with connect(serving) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        user = (guest + HIGH) % (1 << 64)
        payload = wire.SINGLE_REGION.pack(0, guest, size, user, offset)
        with pytest.raises(ProtocolError):
            frontend.tell(wire.ADD_MEM_REG, payload, memory_fd)
        with pytest.raises(ProtocolError):
            frontend.tell(wire.ADD_MEM_REG, region(HIGH, 4096))
        assert client.request(ECHO, 1, b"fine", 4) == (0, b"fine")
        client.close()


@LAYOUTS
def test_ring_whose_region_goes_waits_until_it_comes_back(serving: Serving, packed: bool) -> None:
    with connect(serving, packed) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        client.request(ECHO, 1, b"x", 1)
        payload = wire.SINGLE_REGION.pack(0, *frontend.memory.regions()[0])
        frontend.tell(wire.REM_MEM_REG, payload)
        client._submit(client._slots[0], (ECHO, 1, b"waits"), 5)
        client.queue.publish()
        os.eventfd_write(client.queue.kick, 1)
        # Any answer on the socket is after the kick has been looked at.
        for _ in range(3):
            frontend.ask_u64(wire.GET_QUEUE_NUM)
        assert not client.queue.has_used()
        frontend.tell(wire.ADD_MEM_REG, payload, frontend.memory.fd)
        client._wait()
        assert client._slots[0].result(client.queue.reap()[1]) == (0, b"waits")
        assert client.request(ECHO, 1, b"more", 4) == (0, b"more")
        client.close()


@LAYOUTS
def test_answer_reaches_memory_that_was_taken_away_meanwhile(
    serving: Serving, packed: bool
) -> None:
    with connect(serving, packed) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        client._submit(client._slots[0], (PARK, 1, b""), 0)
        client.queue.publish()
        assert serving.server.arrived.wait(60)
        payload = wire.SINGLE_REGION.pack(0, *frontend.memory.regions()[0])
        frontend.tell(wire.REM_MEM_REG, payload)
        serving.server.answer_parked(0)
        client._wait()
        assert client._slots[0].result(client.queue.reap()[1]) == (0, b"")
        frontend.tell(wire.ADD_MEM_REG, payload, frontend.memory.fd)
        assert client.request(ECHO, 1, b"back", 4) == (0, b"back")
        client.close()


@LAYOUTS
def test_memory_replaced_under_requests_loses_none(packed: bool) -> None:
    with serve_device(threads=2, pooled={ECHO}) as serving:
        frontend = connect(serving, packed, slots=False)
        with frontend:
            client = FuseClient(frontend, depth=8, timeout=60)
            payload, fds = table(frontend)
            over = threading.Event()
            moved = 0

            def move() -> None:
                nonlocal moved
                while not over.is_set():
                    frontend.tell(wire.SET_MEM_TABLE, payload, *fds)
                    moved += 1

            thread = threading.Thread(target=move)
            thread.start()
            try:
                requests = [(ECHO, 1, b"%06d" % number) for number in range(4000)]
                replies = list(client.batch(requests, 6))
            finally:
                over.set()
                thread.join()
            assert replies == [(0, data) for _, _, data in requests]
            assert moved
            client.close()


def test_memory_that_nobody_uses_is_unmapped(serving: Serving, memory_fd: int) -> None:
    with connect(serving) as frontend:
        for _ in range(3):
            frontend.tell(wire.ADD_MEM_REG, region(HIGH, 1 << 20), memory_fd)
            with open("/proc/self/maps") as maps:
                assert maps.read().count("memfd:more") == 1
            frontend.tell(wire.REM_MEM_REG, region(HIGH, 1 << 20))
            with open("/proc/self/maps") as maps:
                assert "memfd:more" not in maps.read()
