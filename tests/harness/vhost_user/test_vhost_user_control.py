"""Status, reset, the backend's own channel, and what is offered to whom."""

from __future__ import annotations

import os
import socket

import pytest
from vhost_user_support import ECHO, PARK, Serving, serve_device, wait_for

from harness.vhost_user import message as wire
from harness.vhost_user.connection import Connection, ProtocolError
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient
from harness.vhost_user.state import DeviceState

EVERYTHING = wire.F_LOG_SHMFD | wire.F_BACKEND_REQ | wire.F_INFLIGHT_SHMFD | wire.F_STATUS
DRIVER_OK = 0xF


def connect(serving: Serving, **options: int) -> Frontend:
    frontend = serving.frontend()
    frontend.negotiate(extra=EVERYTHING, **options)
    frontend.share_memory()
    return frontend


def set_status(frontend: Frontend, status: int) -> None:
    frontend.tell(wire.SET_STATUS, wire.U64.pack(status))


def next_request(channel: Connection) -> int:
    message = channel.receive()
    assert message is not None
    with message:
        assert not message.flags & wire.REPLY
        if message.need_reply:
            channel.send(message.request, wire.U64.pack(0))
        return message.request


ALWAYS = {0, 1, 3, 5, 10, 12, 13, 15, 16}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, ALWAYS),
        ({"tag": "t"}, ALWAYS | {9}),
        ({"state": DeviceState()}, ALWAYS | {19}),
    ],
)
def test_what_is_offered_is_what_a_frontend_can_take(
    options: dict[str, object], bits: set[int]
) -> None:
    """QEMU 7.2 acknowledges all of 0 to 16 but CONFIG, so not INBAND (14), nor PAGEFAULT (8)."""
    with serve_device(**options) as serving, serving.frontend() as frontend:  # type: ignore[arg-type]
        offered = frontend.ask_u64(wire.GET_PROTOCOL_FEATURES)
        assert {bit for bit in range(64) if offered >> bit & 1} == bits
        features = frontend.ask_u64(wire.GET_FEATURES)
        # No RING_RESET (40), which QEMU 7.2 would take.
        assert {bit for bit in range(64) if features >> bit & 1} == {26, 28, 29, 30, 32, 34}


@pytest.mark.parametrize(
    "request_id",
    [
        wire.SET_LOG_BASE,
        wire.SET_BACKEND_REQ_FD,
        wire.GET_INFLIGHT_FD,
        wire.SET_STATUS,
        wire.GET_STATUS,
        wire.SET_DEVICE_STATE_FD,
        wire.CHECK_DEVICE_STATE,
        wire.GET_CONFIG,
    ],
)
def test_request_of_a_feature_that_was_not_negotiated_is_refused(request_id: int) -> None:
    with serve_device(tag="t", state=DeviceState()) as serving, serving.frontend() as frontend:
        frontend.negotiate(protocol_features=wire.F_REPLY_ACK)
        size = wire.REQUESTS[request_id].size
        with pytest.raises(ProtocolError, match="refused"):
            frontend.tell(request_id, bytes(size))


def test_every_request_without_a_reply_of_its_own_is_acknowledged_on_demand(
    serving: Serving,
) -> None:
    with connect(serving) as frontend:
        frontend.start(1, 16)
        event = os.eventfd(0)
        channel, theirs = socket.socketpair()
        with channel, theirs:
            for request, payload, fds in [
                (wire.SET_OWNER, b"", []),
                (wire.SET_VRING_ERR, wire.U64.pack(1), [event]),
                (wire.SET_VRING_CALL, wire.U64.pack(1), [event]),
                (wire.SET_VRING_CALL, wire.U64.pack(1 | wire.NO_FD), []),
                (wire.SET_VRING_ENABLE, wire.VRING_STATE.pack(1, 0), []),
                (wire.SET_LOG_FD, b"", [event]),
                (wire.SET_BACKEND_REQ_FD, b"", [theirs.fileno()]),
                (wire.SET_STATUS, wire.U64.pack(3), []),
                (wire.RESET_OWNER, b"", []),
                (wire.RESET_DEVICE, b"", []),
            ]:
                frontend.send(request, payload, *fds, flags=wire.NEED_REPLY)
                with frontend.receive() as reply:
                    assert (reply.request, reply.payload) == (request, wire.U64.pack(0))
                    assert reply.flags & wire.REPLY
        # One that has a reply of its own gets no other.
        for request, payload in [
            (wire.GET_VRING_BASE, wire.VRING_STATE.pack(1, 0)),
            (wire.GET_STATUS, b""),
            (wire.GET_QUEUE_NUM, b""),
        ]:
            frontend.send(request, payload, flags=wire.NEED_REPLY)
            with frontend.receive() as reply:
                assert reply.request == request
        assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 2
        os.close(event)


def test_status_is_what_was_set(serving: Serving) -> None:
    with connect(serving) as frontend:
        for status in (0, 1, 3, 0xB, DRIVER_OK):
            set_status(frontend, status)
            assert frontend.ask_u64(wire.GET_STATUS) == status
        with pytest.raises(ProtocolError):
            set_status(frontend, 0x100)


def test_status_0_stops_the_rings_and_keeps_the_session(serving: Serving) -> None:
    """QEMU 8.0 sends it when a virtual machine is paused; the guest's mount goes on afterwards."""
    with connect(serving) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        set_status(frontend, DRIVER_OK)
        client.request(ECHO, 1, b"x", 1)
        base = frontend.stop(1)
        set_status(frontend, 0)
        assert serving.server.resets == 0
        frontend.resume(1, base)
        set_status(frontend, DRIVER_OK)
        assert client.request(ECHO, 1, b"again", 5) == (0, b"again")
        client.close()


def test_nothing_is_written_to_guest_memory_after_status_0(serving: Serving) -> None:
    with connect(serving) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        set_status(frontend, DRIVER_OK)
        client._submit(client._slots[0], (PARK, 1, b""), 0)
        client.queue.publish()
        assert serving.server.arrived.wait(60)
        set_status(frontend, 0)
        assert not serving.server.parked
        assert not client.queue.has_used()
        assert frontend.ask_u64(wire.GET_STATUS) == 0
        client.close()


@pytest.mark.parametrize("packed", [False, True])
def test_broken_ring_needs_a_reset_says_so_and_works_after_it(
    serving: Serving, packed: bool
) -> None:
    with connect(serving, packed=packed) as frontend:
        channel = frontend.open_channel()
        client = FuseClient(frontend, depth=4, timeout=60)
        set_status(frontend, DRIVER_OK)
        queue = client.queue
        head = queue.lay_out(9, [(1 << 50, 40)], [])
        queue.offer(head)
        queue.publish()
        assert next_request(channel) == wire.BACKEND_CONFIG_CHANGE
        assert frontend.ask_u64(wire.GET_STATUS) == DRIVER_OK | wire.STATUS_NEEDS_RESET
        frontend.tell(wire.RESET_DEVICE)
        assert frontend.ask_u64(wire.GET_STATUS) == 0
        assert serving.server.resets == 1
        client.close()
        client = FuseClient(frontend, depth=4, timeout=60)
        set_status(frontend, DRIVER_OK)
        assert client.request(ECHO, 1, b"new", 3) == (0, b"new")
        assert frontend.ask_u64(wire.GET_STATUS) == DRIVER_OK
        channel.close()
        client.close()


def test_layout_of_rings_cannot_change_under_a_started_one(serving: Serving) -> None:
    with connect(serving) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        for bit in (wire.VIRTIO_F_RING_PACKED, wire.VIRTIO_RING_F_EVENT_IDX):
            with pytest.raises(ProtocolError):
                frontend.tell(wire.SET_FEATURES, wire.U64.pack(frontend.features ^ bit))
        assert client.request(ECHO, 1, b"same", 4) == (0, b"same")
        client.close()


def test_renamed_device_tells_the_driver_and_has_the_new_tag() -> None:
    with serve_device(tag="before") as serving, connect(serving) as frontend:
        channel = frontend.open_channel()
        serving.device.rename("after")
        assert next_request(channel) == wire.BACKEND_CONFIG_CHANGE
        assert frontend.config(6) == b"after\0"
        with pytest.raises(OSError):
            serving.device.rename("")
        channel.close()


def test_device_that_the_frontend_names_cannot_be_renamed(serving: Serving) -> None:
    with pytest.raises(OSError):
        serving.device.rename("name")


def test_channel_that_hangs_up_or_talks_nonsense_costs_only_itself() -> None:
    with serve_device(tag="t") as serving, connect(serving) as frontend:
        for nonsense in (b"", b"\0" * 12, wire.HEADER.pack(2, wire.VERSION, 1 << 30)):
            ours, theirs = socket.socketpair()
            with theirs:
                frontend.tell(wire.SET_BACKEND_REQ_FD, b"", theirs.fileno())
            if nonsense:
                ours.sendall(nonsense)
                assert wait_for(lambda ours=ours: ours.recv(1) == b"")
            ours.close()
            serving.device.rename("x")
            assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 2
        channel = frontend.open_channel()
        serving.device.rename("y")
        assert next_request(channel) == wire.BACKEND_CONFIG_CHANGE
        channel.close()


def test_channel_that_is_no_socket_is_refused(serving: Serving) -> None:
    with connect(serving) as frontend, open("/dev/null") as null:
        with pytest.raises(ProtocolError):
            frontend.tell(wire.SET_BACKEND_REQ_FD, b"", null.fileno())
        with pytest.raises(ProtocolError):
            frontend.tell(wire.SET_BACKEND_REQ_FD)
        assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 2


def test_frontend_that_reads_nothing_of_the_channel_loses_it_and_no_more() -> None:
    with serve_device(tag="t") as serving, connect(serving) as frontend:
        channel = frontend.open_channel()
        for number in range(2000):
            serving.device.rename(f"n{number}")
        assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 2
        assert wait_for(lambda: frontend.config(6).rstrip(b"\0") == b"n1999")
        channel.close()
