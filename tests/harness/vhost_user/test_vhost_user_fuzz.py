"""Random and wrong messages on the socket: the daemon lives, and no descriptor is lost."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vhost_user_support import ECHO, EchoServer, open_descriptors, serve_device

from harness.vhost_user import message as wire
from harness.vhost_user.connection import Connection, ProtocolError
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient
from harness.vhost_user.state import DeviceState
from harness.vhost_user.vring import Vring
from harness.virtio.dirty_log import DirtyLog
from harness.virtio.driver import GUEST_BASE, DriverMemory, DriverQueue
from harness.virtio.inflight import InflightQueue
from harness.virtio.memory import GuestMemory, MemoryRegion
from harness.virtio.packed import PackedQueue
from harness.virtio.packed_inflight import PackedInflightQueue
from harness.virtio.queue import SplitQueue

payloads = st.one_of(
    st.binary(max_size=64),
    st.builds(wire.VRING_STATE.pack, st.integers(0, 3), st.integers(0, 70000)),
    st.builds(wire.U64.pack, st.integers(0, 3) | st.integers(0, (1 << 64) - 1)),
    st.builds(
        wire.SINGLE_REGION.pack,
        st.just(0),
        *(st.sampled_from([0, 4096, 65536, 1 << 40, (1 << 64) - 4096]),) * 4,
    ),
    st.builds(
        wire.VRING_ADDRESS.pack,
        st.integers(0, 2),
        st.integers(0, 1),
        *(st.sampled_from([0, 4096, 8192, 1 << 40]),) * 4,
    ),
    st.builds(wire.LOG.pack, *(st.sampled_from([0, 1, 8, 4096, 65536, 1 << 40]),) * 2),
    st.builds(
        wire.INFLIGHT.pack,
        *(st.sampled_from([0, 4096, 65536, 1 << 40]),) * 2,
        st.integers(0, 4),
        st.sampled_from([0, 1, 8, 64, 40000]),
    ),
    st.builds(wire.DEVICE_STATE.pack, st.integers(0, 2), st.integers(0, 1)),
    st.builds(
        wire.U64.pack,
        st.sets(st.sampled_from([26, 28, 29, 30, 32, 34])).map(lambda s: sum(1 << b for b in s)),
    ),
    st.builds(
        lambda regions: (
            wire.MEMORY_TABLE.pack(len(regions), 0)
            + b"".join(wire.MEMORY_REGION.pack(*region) for region in regions)
        ),
        st.lists(
            st.tuples(*(st.sampled_from([0, 4096, 8192, 65536]),) * 4), min_size=1, max_size=3
        ),
    ),
)
messages = st.tuples(
    st.sampled_from(sorted(wire.REQUESTS)) | st.integers(0, 60),
    st.sampled_from([0, wire.NEED_REPLY, wire.REPLY]),
    payloads,
    st.lists(st.sampled_from(["memory", "eventfd", "file", "pipe", "socket"]), max_size=10)
    | st.sampled_from([["memory"], ["eventfd"], ["socket"]]),
)


class Stateless(DeviceState):
    """Has nothing to save."""

    def save(self, fd: int) -> None:
        os.fstat(fd)

    load = save


def descriptors(kinds: list[str]) -> list[int]:
    found = []
    for kind in kinds:
        if kind == "memory":
            fd = os.memfd_create("fuzz")
            os.ftruncate(fd, 65536)
            found.append(fd)
        elif kind == "eventfd":
            found.append(os.eventfd(0))
        elif kind == "file":
            found.append(os.open("/dev/null", os.O_RDWR))
        elif kind == "socket":
            found.extend(end.detach() for end in socket.socketpair())
        else:
            found.extend(os.pipe())
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    conversation=st.lists(messages, max_size=12), packed=st.booleans(), threads=st.integers(0, 1)
)
def test_random_conversations_leak_no_descriptor_and_end_cleanly(
    conversation: list[tuple[int, int, bytes, list[str]]], packed: bool, threads: int
) -> None:
    before = open_descriptors()
    with serve_device(
        queues=2, tag="fuzz", state=Stateless(), threads=threads, pooled={ECHO}
    ) as serving:
        frontend = serving.frontend()
        try:
            frontend.negotiate(packed=packed, extra=(1 << 64) - 1)
            frontend.share_memory()
            frontend.start(1, 8, chain_limit=2)
            for request, flags, payload, kinds in conversation:
                fds = descriptors(kinds)
                try:
                    frontend.send(request, payload, *fds, flags=flags)
                finally:
                    for fd in fds:
                        os.close(fd)
        except (OSError, EOFError, ProtocolError):
            pass
        finally:
            frontend.close()
        serving.wait_until_gone()
    for thread in threading.enumerate():
        if thread.name.startswith("state-"):
            thread.join()
    assert len(open_descriptors()) <= len(before)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(noise=st.binary(max_size=200), step=st.integers(1, 50))
def test_random_bytes_end_the_connection_and_nothing_else(noise: bytes, step: int) -> None:
    with serve_device() as serving:
        try:
            for start in range(0, len(noise), step):
                serving.sock.sendall(noise[start : start + step])
        except OSError:
            pass
        serving.sock.close()
        serving.wait_until_gone()
    # `serve_device` raises what the device raised.


def test_daemon_serves_the_next_frontend_after_each_kind_of_nonsense(tmp_path: Path) -> None:
    nonsense = [
        b"",
        b"\0" * 12,
        wire.HEADER.pack(1, wire.VERSION, 1 << 30),
        wire.HEADER.pack(wire.SET_FEATURES, wire.VERSION, 8) + b"abc",
        wire.HEADER.pack(wire.SET_FEATURES, wire.VERSION, 4) + b"abcd",
        wire.HEADER.pack(999, wire.VERSION, 0),
        os.urandom(4096),
    ]
    with serve_device(str(tmp_path / "sock")) as serving:
        for bad in nonsense:
            with socket.socket(socket.AF_UNIX) as sock:
                while sock.connect_ex(serving.path):
                    time.sleep(0.001)
                sock.sendall(bad)
            with serving.frontend() as frontend:
                frontend.negotiate()
                frontend.share_memory()
                client = FuseClient(frontend, depth=2, timeout=60)
                assert client.request(ECHO, 1, b"ok", 2) == (0, b"ok")
        assert serving.server.resets >= len(nonsense)


def stray(_: object, length: int) -> None:
    raise AssertionError(f"a completion of {length} bytes for a request that was not parked")


@pytest.mark.parametrize("layout", [SplitQueue, PackedQueue])
@pytest.mark.parametrize("careful", [False, True])
@settings(max_examples=200, deadline=None)
@given(
    tables=st.binary(max_size=16 * 8),
    avail=st.binary(max_size=6 + 2 * 8),
    requests=st.binary(max_size=256),
    descriptors=st.lists(
        st.tuples(
            st.integers(GUEST_BASE, GUEST_BASE + 1024) | st.integers(0, (1 << 64) - 1),
            st.integers(0, 128) | st.integers(0, 0xFFFFFFFF),
            st.integers(0, 7) | st.sampled_from([0x80, 0x81, 0x82, 0x84, 0x8000, 0x8001]),
            st.integers(0, 8) | st.sampled_from([0x80, 0x81, 0x82, 0x84, 0x8000, 0x8001]),
        ),
        max_size=8,
    ),
    noise=st.binary(max_size=200),
)
def test_random_rings_and_requests_never_raise_out_of_the_vring(
    layout: type[SplitQueue] | type[PackedQueue],
    careful: bool,
    tables: bytes,
    avail: bytes,
    requests: bytes,
    descriptors: list[tuple[int, int, int, int]],
    noise: bytes,
) -> None:
    memory = DriverMemory(1 << 16)
    guest = GuestMemory()
    for address, size, user, offset in memory.regions():
        guest.add(MemoryRegion(memory.fd, address, size, user, offset))
    # A packed ring takes up the room of the descriptors, its events that of the other rings.
    queue = DriverQueue(memory, 8)
    memory.at(queue.descriptors, len(tables))[:] = tables
    for index, descriptor in enumerate(descriptors):
        queue.write_descriptor(index, *descriptor)
    memory.at(queue.avail_ring, len(avail))[:] = avail
    memory.at(GUEST_BASE + 512, len(requests))[:] = requests
    vring = Vring(0, EchoServer(), stray)
    vring.size = 8
    vring.addresses = (
        memory.user_address(queue.descriptors),
        memory.user_address(queue.avail_ring),
        memory.user_address(queue.used_ring),
    )
    vring.started = vring.enabled = True
    inflight = log = None
    if careful:
        fd = os.memfd_create("log")
        os.ftruncate(fd, 1 << 16)
        log = DirtyLog(fd, 1 << 16, 0)
        os.close(fd)
        kind = InflightQueue if layout is SplitQueue else PackedInflightQueue
        room = bytearray(kind.region_size(8))
        room[: len(noise)] = noise[: len(room)]
        inflight = kind(memoryview(room), 8)
        vring.keep_log(log, prepared=True)
    vring.map(guest, layout, indirect=True, event_idx=True, inflight=inflight)
    for _ in range(3):
        vring.serve()
        if vring.runs:
            vring.enable_kicks()
            vring.map(guest, layout, indirect=True, event_idx=True)
    vring.close()
    if log is not None:
        log.close()
    queue.close()
    guest.clear()
    memory.close()


def pair() -> tuple[socket.socket, Connection]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return ours, Connection(theirs)


def send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_message_arriving_byte_by_byte_is_whole_at_the_end() -> None:
    sock, connection = pair()
    data = wire.HEADER.pack(wire.SET_FEATURES, wire.VERSION, 8) + struct.pack("=Q", 77)
    for number in range(len(data)):
        assert connection.receive() is None
        sock.sendall(data[number : number + 1])
    message = connection.receive()
    assert message is not None
    assert (message.request, message.payload) == (wire.SET_FEATURES, struct.pack("=Q", 77))
    sock.close()
    with pytest.raises(EOFError):
        connection.receive()
    connection.close()


def test_descriptors_stay_with_the_message_they_came_with() -> None:
    sock, connection = pair()
    first, second = os.eventfd(1), os.eventfd(2)
    header = wire.HEADER.pack(wire.SET_VRING_CALL, wire.VERSION, 8)
    send_fds(sock, header + struct.pack("=Q", 0), [first])
    send_fds(sock, header + struct.pack("=Q", 1), [second])
    os.close(first)
    os.close(second)
    for expected in (1, 2):
        message = connection.receive()
        assert message is not None
        with message:
            assert [os.eventfd_read(fd) for fd in message.fds] == [expected]
            assert not os.get_inheritable(message.fds[0])
    connection.close()
    sock.close()


@pytest.mark.parametrize("count", [1, 8, 33, 100])
def test_descriptors_of_a_message_that_never_ends_are_closed(count: int) -> None:
    sock, connection = pair()
    fds = [os.eventfd(0) for _ in range(count)]
    send_fds(sock, wire.HEADER.pack(wire.SET_VRING_CALL, wire.VERSION, 8), fds)
    for fd in fds:
        os.close(fd)
    try:
        assert connection.receive() is None
    except ProtocolError:
        assert count > 8
    connection.close()
    sock.close()


def test_peer_that_reads_no_replies_is_disconnected(tmp_path: Path) -> None:
    with serve_device(str(tmp_path / "sock")) as serving:
        with socket.socket(socket.AF_UNIX) as sock:
            while sock.connect_ex(serving.path):
                time.sleep(0.001)
            sock.settimeout(60)
            request = wire.HEADER.pack(wire.GET_FEATURES, wire.VERSION, 0)
            with pytest.raises(OSError):
                for _ in range(1_000_000):
                    sock.sendall(request)
        with Frontend.connect(serving.path) as frontend:
            frontend.negotiate()
