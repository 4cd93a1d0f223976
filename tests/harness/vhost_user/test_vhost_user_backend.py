"""The backend against our own frontend: negotiation, requests, stopping, and going away."""

from __future__ import annotations

import os
import socket
import threading
import time
from errno import EINTR, EIO
from pathlib import Path

import pytest
from vhost_user_support import ECHO, PARK, RAISE, UNPARK, Serving, serve_device

from harness.vhost_user import message as wire
from harness.vhost_user.connection import ProtocolError
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient
from harness.virtio.chain import NEXT
from harness.virtio.driver import GUEST_BASE


def connect(serving: Serving, **options: int) -> Frontend:
    frontend = serving.frontend(**options)
    frontend.negotiate()
    frontend.share_memory()
    return frontend


def wait_readable(fd: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return os.eventfd_read(fd) > 0
        except BlockingIOError:
            time.sleep(0.001)
    return False


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_requests_are_answered_whatever_was_negotiated(
    serving: Serving, indirect: bool, event_idx: bool, slots: bool, packed: bool
) -> None:
    with serving.frontend(regions=4, memory_size=8 << 20) as frontend:
        features = -1 if slots else ~wire.F_CONFIGURE_MEM_SLOTS
        frontend.negotiate(
            indirect=indirect, event_idx=event_idx, packed=packed, protocol_features=features
        )
        frontend.share_memory()
        client = FuseClient(frontend, depth=8, timeout=60)
        assert client.init().minor == 38
        requests = [(ECHO, 1, b"%06d" % number) for number in range(2000)]
        replies = list(client.batch(requests, 6))
        assert replies == [(0, payload) for _, _, payload in requests]


def test_forget_is_taken_from_the_high_priority_queue_without_reply(
    serving: Serving, client: FuseClient
) -> None:
    client.forget(42, 3)
    assert serving.server.forgotten == [42]
    assert serving.server.sizes[-1] == (48, 0)


def test_legacy_frontend_without_protocol_features_has_its_rings_enabled(
    serving: Serving,
) -> None:
    with serving.frontend() as frontend:
        frontend.features = wire.VIRTIO_F_VERSION_1
        frontend.send(wire.SET_FEATURES, wire.U64.pack(frontend.features))
        frontend.share_memory()
        assert FuseClient(frontend, depth=2, timeout=60).init().major == 7


def test_inband_notifications_and_config_are_not_offered_without_a_tag(serving: Serving) -> None:
    with serving.frontend() as frontend:
        offered = frontend.ask_u64(wire.GET_PROTOCOL_FEATURES)
    assert not offered & (wire.F_INBAND_NOTIFICATIONS | wire.F_CONFIG)
    assert offered & wire.F_MQ and offered & wire.F_REPLY_ACK


def test_configuration_space_has_the_tag_and_the_number_of_queues() -> None:
    with serve_device(tag="rootfs", queues=3) as serving, serving.frontend() as frontend:
        frontend.negotiate()
        assert frontend.config() == b"rootfs".ljust(36, b"\0") + b"\3\0\0\0"
        assert frontend.config(6) == b"rootfs"
        assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 4
        with pytest.raises(ProtocolError):
            frontend.config(41)
        with pytest.raises(ProtocolError):
            frontend.tell(wire.SET_CONFIG, wire.CONFIG.pack(0, 1, 0) + b"x")


def test_every_request_queue_is_served() -> None:
    with serve_device(queues=4) as serving, connect(serving) as frontend:
        for index in range(1, 5):
            queue = frontend.start(index, 16, chain_limit=4)
            client = FuseClient(frontend, depth=4, queue=queue, timeout=60)
            assert client.request(ECHO, 0, b"q%d" % index, 2) == (0, b"q%d" % index)


def test_exception_in_the_server_costs_its_request_eio(
    serving: Serving, client: FuseClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.request(RAISE, 1, b"x", 8) == (EIO, b"")
    assert "ZeroDivisionError" in caplog.text
    assert client.request(ECHO, 1, b"still here", 10) == (0, b"still here")


def test_parked_request_is_overtaken_and_answered_later(
    serving: Serving, client: FuseClient
) -> None:
    replies = client.batch([(PARK, 1, b""), (ECHO, 1, b"a"), (UNPARK, 1, b"")], 8)
    assert list(replies) == [(0, b""), (0, b"a"), (0, b"")]


def test_parked_request_is_answered_from_another_thread(
    serving: Serving, client: FuseClient
) -> None:
    def answer() -> None:
        serving.server.arrived.wait(60)
        time.sleep(0.05)
        serving.server.answer_parked(0)

    thread = threading.Thread(target=answer)
    thread.start()
    assert client.request(PARK, 1) == (0, b"")
    thread.join()


@pytest.mark.parametrize("poll_limit_ns", [0, 50_000])
def test_no_completion_from_other_threads_is_lost(poll_limit_ns: int) -> None:
    with serve_device(poll_limit_ns=poll_limit_ns) as serving, connect(serving) as frontend:
        server, over = serving.server, threading.Event()

        def answer() -> None:
            while not over.is_set():
                if server.arrived.wait(0.01):
                    server.arrived.clear()
                    server.answer_parked(0)

        threads = [threading.Thread(target=answer) for _ in range(2)]
        for thread in threads:
            thread.start()
        client = FuseClient(frontend, depth=8, timeout=60)
        requests = [(PARK if number % 3 else ECHO, 1, b"%04d" % number) for number in range(900)]
        replies = list(client.batch(requests, 4))
        over.set()
        for thread in threads:
            thread.join()
    assert replies == [(0, b"" if op == PARK else data) for op, _, data in requests]


def test_stopping_a_queue_drains_its_parked_request_first(
    serving: Serving, client: FuseClient
) -> None:
    queue = client.queue
    client._submit(client._slots[0], (PARK, 1, b""), 0)
    queue.publish()
    assert serving.server.arrived.wait(60)
    assert client.frontend.stop(1) == 1
    assert queue.has_used()
    _, length = queue.reap()
    assert client._slots[0].result(length) == (EINTR, b"")
    assert serving.server.drains == 1


def test_stopping_waits_for_a_request_that_completes_by_itself(
    serving: Serving, client: FuseClient
) -> None:
    serving.server.drain_answers = False
    client._submit(client._slots[0], (PARK, 1, b""), 0)
    client.queue.publish()
    assert serving.server.arrived.wait(60)
    timer = threading.Timer(0.2, serving.server.answer_parked, (0,))
    timer.start()
    assert client.frontend.stop(1) == 1
    assert client.queue.has_used()
    timer.join()


def test_stopped_queue_takes_nothing_and_resumes_where_it_was(
    serving: Serving, client: FuseClient
) -> None:
    for number in range(3):
        assert client.request(ECHO, 1, b"%d" % number, 1) == (0, b"%d" % number)
    base = client.frontend.stop(1)
    assert base == 3
    client._submit(client._slots[0], (ECHO, 1, b"later"), 5)
    client.queue.publish()
    os.eventfd_write(client.queue.kick, 1)
    time.sleep(0.05)
    assert not client.queue.has_used()
    client.frontend.resume(1, base)
    client._wait()
    _, length = client.queue.reap()
    assert client._slots[0].result(length) == (0, b"later")


def test_disabled_ring_waits_until_it_is_enabled(serving: Serving, client: FuseClient) -> None:
    client.frontend.tell(wire.SET_VRING_ENABLE, wire.VRING_STATE.pack(1, 0))
    client._submit(client._slots[0], (ECHO, 1, b"x"), 1)
    client.queue.publish()
    time.sleep(0.05)
    assert not client.queue.has_used()
    client.frontend.tell(wire.SET_VRING_ENABLE, wire.VRING_STATE.pack(1, 1))
    client._wait()
    assert client.queue.reap()[1] == 17


def test_memory_added_and_removed_while_running_keeps_the_ring_alive(
    serving: Serving, client: FuseClient
) -> None:
    frontend = client.frontend
    fd = os.memfd_create("more")
    try:
        os.ftruncate(fd, 8192)
        region = wire.SINGLE_REGION.pack(0, 1 << 40, 8192, 1 << 45, 0)
        for _ in range(3):
            frontend.tell(wire.ADD_MEM_REG, region, fd)
            assert client.request(ECHO, 1, b"more", 4) == (0, b"more")
            frontend.tell(wire.REM_MEM_REG, region)
            assert client.request(ECHO, 1, b"less", 4) == (0, b"less")
    finally:
        os.close(fd)


def test_request_parked_over_a_change_of_memory_is_answered(
    serving: Serving, client: FuseClient
) -> None:
    client._submit(client._slots[0], (PARK, 1, b""), 0)
    client.queue.publish()
    assert serving.server.arrived.wait(60)
    frontend = client.frontend
    regions = frontend.memory.regions()
    table = wire.MEMORY_TABLE.pack(len(regions), 0)
    table += b"".join(wire.MEMORY_REGION.pack(*region) for region in regions)
    frontend.tell(wire.SET_MEM_TABLE, table, frontend.memory.fd)
    serving.server.answer_parked(0)
    client._wait()
    _, length = client.queue.reap()
    assert client._slots[0].result(length) == (0, b"")


def test_reset_device_forgets_the_session_and_can_be_set_up_again(
    serving: Serving, client: FuseClient
) -> None:
    client.frontend.tell(wire.RESET_DEVICE)
    assert serving.server.resets == 1
    client.queue.avail[1] = client.queue.avail_idx = 0
    client.queue.used_indices[1] = client.queue.used_idx = 0
    client.frontend.resume(1, 0)
    assert client.request(ECHO, 1, b"again", 5) == (0, b"again")


@pytest.mark.parametrize("descriptor", [(GUEST_BASE, 4, NEXT, 0), (1, 4, 0, 0), (0, 0, 4, 0)])
def test_broken_ring_is_reported_and_the_daemon_serves_the_other(
    descriptor: tuple[int, int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    with serve_device(queues=2) as serving, connect(serving) as frontend:
        broken = frontend.start(1, 8)
        err = os.eventfd(0, os.EFD_NONBLOCK)
        frontend.tell(wire.SET_VRING_ERR, wire.U64.pack(1), err)
        broken.write_descriptor(0, *descriptor)
        broken.offer(0)
        broken.publish()
        assert wait_readable(err)
        os.close(err)
        broken.offer(0)
        broken.publish()
        os.eventfd_write(broken.kick, 1)
        queue = frontend.start(2, 16, chain_limit=4)
        client = FuseClient(frontend, depth=4, queue=queue, timeout=60)
        assert client.request(ECHO, 1, b"fine", 4) == (0, b"fine")
        assert not broken.has_used()
        assert len([r for r in caplog.records if "ring 1 is broken" in r.message]) == 1
        base = frontend.stop(1)
        broken.lay_out(0, [(GUEST_BASE, 40)], [])
        frontend.resume(1, base)
        assert wait_readable(broken.call)


@pytest.mark.parametrize("room", [0, 15, 16])
def test_chain_too_short_for_the_server_costs_only_itself(
    serving: Serving, client: FuseClient, room: int
) -> None:
    queue = client.queue
    data = queue.memory.allocate(64)
    head = queue.lay_out(20, [(data, 9)], [(data + 16, room)])
    queue.enable_interrupts()
    queue.offer(head)
    queue.publish()
    assert wait_readable(queue.call)
    assert queue.reap() == (head, 0)
    queue.disable_interrupts()
    assert client.request(ECHO, 1, b"ok", 2) == (0, b"ok")


def test_ring_outside_memory_breaks_that_ring_only(serving: Serving, client: FuseClient) -> None:
    frontend = client.frontend
    frontend.tell(wire.SET_VRING_ADDR, wire.VRING_ADDRESS.pack(0, 0, 1 << 50, 1 << 50, 1 << 50, 0))
    assert client.request(ECHO, 1, b"ok", 2) == (0, b"ok")


@pytest.mark.parametrize(
    ("request_id", "payload"),
    [
        (wire.SET_FEATURES, wire.U64.pack(1 << 63)),
        (wire.SET_PROTOCOL_FEATURES, wire.U64.pack(wire.F_INBAND_NOTIFICATIONS)),
        (wire.SET_VRING_NUM, wire.VRING_STATE.pack(9, 8)),
        (wire.SET_VRING_NUM, wire.VRING_STATE.pack(0, 7)),
        (wire.SET_VRING_BASE, wire.VRING_STATE.pack(0, 65536)),
        (wire.SET_VRING_KICK, wire.U64.pack(wire.NO_FD)),
        (wire.SET_VRING_CALL, wire.U64.pack(0)),
        (wire.SET_MEM_TABLE, wire.MEMORY_TABLE.pack(1, 0)),
        (wire.SET_MEM_TABLE, wire.MEMORY_TABLE.pack(0xFFFFFFFF, 0)),
        (wire.ADD_MEM_REG, wire.SINGLE_REGION.pack(0, 0, 4096, 0, 0)),
        (wire.REM_MEM_REG, wire.SINGLE_REGION.pack(0, 0, 4096, 0, 0)),
        (wire.SET_OWNER, b"surplus"),
        (wire.GET_CONFIG, wire.CONFIG.pack(0, 1, 0) + b"\0"),
        (4000, b""),
    ],
)
def test_refused_request_is_answered_and_the_connection_goes_on(
    serving: Serving, request_id: int, payload: bytes
) -> None:
    with serving.frontend() as frontend:
        frontend.negotiate()
        with pytest.raises(ProtocolError, match="refused"):
            frontend.tell(request_id, payload)
        frontend.share_memory()
        assert FuseClient(frontend, depth=2, timeout=60).init().major == 7


def test_refused_request_without_acknowledgement_ends_the_connection(serving: Serving) -> None:
    with serving.frontend() as frontend:
        frontend.send(wire.SET_FEATURES, wire.U64.pack(1 << 63))
        with pytest.raises(EOFError):
            frontend.receive()


def test_memory_behind_a_short_file_is_refused(serving: Serving) -> None:
    fd = os.memfd_create("short")
    try:
        os.ftruncate(fd, 4096)
        with serving.frontend() as frontend:
            frontend.negotiate()
            with pytest.raises(ProtocolError):
                frontend.tell(wire.ADD_MEM_REG, wire.SINGLE_REGION.pack(0, 0, 8192, 0, 0), fd)
    finally:
        os.close(fd)


def test_kick_descriptor_that_cannot_be_polled_is_refused(serving: Serving) -> None:
    with serving.frontend() as frontend, open("/proc/self/maps") as plain:
        frontend.negotiate()
        with pytest.raises(ProtocolError):
            frontend.tell(wire.SET_VRING_KICK, wire.U64.pack(0), plain.fileno())


def test_new_frontend_is_served_after_a_disconnect(tmp_path: Path) -> None:
    with serve_device(str(tmp_path / "sock")) as serving:
        for number in range(1, 4):
            with connect(serving) as frontend:
                client = FuseClient(frontend, depth=2, timeout=60)
                assert client.request(ECHO, 1, b"%d" % number, 1) == (0, b"%d" % number)
                if number == 2:
                    client._submit(client._slots[0], (PARK, 1, b""), 0)
                    client.queue.publish()
                    assert serving.server.arrived.wait(60)
        deadline = time.monotonic() + 60
        while serving.server.resets < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert serving.server.resets == 3
        # What was parked for the frontend that is gone may still complete, to no effect.
        serving.server.answer_parked(0)
        with connect(serving) as frontend:
            client = FuseClient(frontend, depth=2, timeout=60)
            assert client.request(ECHO, 1, b"new", 3) == (0, b"new")


def test_second_frontend_waits_until_the_first_is_gone(tmp_path: Path) -> None:
    with serve_device(str(tmp_path / "sock")) as serving:
        first = connect(serving)
        second = socket.socket(socket.AF_UNIX)
        second.connect(serving.path)
        assert FuseClient(first, depth=2, timeout=60).init().major == 7
        first.close()
        with Frontend(second, timeout=60) as frontend:
            frontend.negotiate()
            frontend.share_memory()
            assert FuseClient(frontend, depth=2, timeout=60).init().major == 7
