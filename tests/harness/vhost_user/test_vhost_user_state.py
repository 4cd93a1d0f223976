"""The transfer of a device's state, with a state that is a string of bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from errno import EPIPE
from pathlib import Path

import pytest
from vhost_user_support import ECHO, PARK, UNPARK, Serving, serve_device, wait_for

from harness.vhost_user import message as wire
from harness.vhost_user.connection import ProtocolError
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient
from harness.vhost_user.state import DeviceState


class Bytes(DeviceState):
    """A state of any size, and a record of what was asked."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.calls: list[str] = []
        self.error: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def prepare(self) -> None:
        self.calls.append("prepare")

    def cancel(self) -> None:
        self.calls.append("cancel")

    def save(self, fd: int) -> None:
        self.calls.append("save")
        try:
            left = memoryview(self.content)
            while left:
                left = left[os.write(fd, left) :]
            assert self.gate.wait(60)
            if self.error is not None:
                raise self.error
        except OSError as error:
            self.error = error
            raise

    def load(self, fd: int) -> None:
        self.calls.append("load")
        pieces = []
        while piece := os.read(fd, 65536):
            pieces.append(piece)
        self.content = b"".join(pieces)
        if self.error is not None:
            raise self.error


@pytest.fixture
def state() -> Bytes:
    return Bytes()


@pytest.fixture
def serving(state: Bytes) -> Iterator[Serving]:
    with serve_device(state=state) as serving:
        yield serving


def connect(serving: Serving) -> Frontend:
    frontend = serving.frontend()
    frontend.negotiate(extra=wire.F_DEVICE_STATE | wire.F_LOG_SHMFD | wire.F_STATUS)
    frontend.share_memory()
    return frontend


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_state_saved_by_one_device_is_loaded_by_another(state: Bytes, serving: Serving) -> None:
    content = state.content = os.urandom(3 << 20)
    with connect(serving) as source:
        saved = read_all(source.transfer_state(wire.SAVE))
        assert source.check_state()
    assert saved == content
    other = Bytes()
    with serve_device(state=other) as serving2, connect(serving2) as target:
        with os.fdopen(target.transfer_state(wire.LOAD), "wb") as file:
            file.write(saved)
        assert target.check_state()
        # The device works, and can be saved in its turn.
        client = FuseClient(target, depth=2, timeout=60)
        assert client.request(ECHO, 1, b"x", 1) == (0, b"x")
        client.close()
        for index in (0, 1):
            target.stop(index)
        assert read_all(target.transfer_state(wire.SAVE)) == content
        assert target.check_state()
    assert other.content == content


@pytest.mark.parametrize("error", [OSError(EPIPE, "no more"), ValueError("nonsense")])
@pytest.mark.parametrize("direction", [wire.SAVE, wire.LOAD])
def test_failure_is_reported_by_check_and_the_next_transfer_may_succeed(
    state: Bytes, serving: Serving, error: Exception, direction: int
) -> None:
    with connect(serving) as frontend:
        for expected in (error, None):
            state.error = expected
            fd = frontend.transfer_state(direction)
            if direction == wire.SAVE:
                read_all(fd)
            else:
                os.close(fd)
            assert frontend.check_state() == (expected is None)
        assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 2


def test_check_waits_for_a_transfer_while_the_device_lives_on(
    state: Bytes, serving: Serving
) -> None:
    state.gate.clear()
    with connect(serving) as frontend:
        fd = frontend.transfer_state(wire.SAVE)
        timer = threading.Timer(0.1, state.gate.set)
        timer.start()
        assert frontend.check_state()
        timer.join()
        assert read_all(fd) == b""


def test_check_without_a_transfer_is_an_error(serving: Serving) -> None:
    with connect(serving) as frontend:
        assert not frontend.check_state()


def test_transfer_is_refused_while_a_ring_is_started(serving: Serving) -> None:
    with connect(serving) as frontend:
        frontend.start(1, 16)
        with pytest.raises(ProtocolError):
            frontend.transfer_state(wire.SAVE)
        frontend.stop(1)
        assert read_all(frontend.transfer_state(wire.SAVE)) == b""


def test_second_transfer_is_refused_while_one_is_under_way(state: Bytes, serving: Serving) -> None:
    state.gate.clear()
    with connect(serving) as frontend:
        fd = frontend.transfer_state(wire.SAVE)
        with pytest.raises(ProtocolError):
            frontend.transfer_state(wire.SAVE)
        state.gate.set()
        assert frontend.check_state()
        os.close(fd)


@pytest.mark.parametrize("payload", [(2, 0), (0, 1)])
def test_unknown_direction_or_phase_is_an_error(serving: Serving, payload: tuple[int, int]) -> None:
    with connect(serving) as frontend:
        reader, writer = os.pipe()
        frontend.send(wire.SET_DEVICE_STATE_FD, wire.DEVICE_STATE.pack(*payload), writer)
        with frontend.receive() as reply:
            assert wire.U64.unpack(reply.payload) == (wire.STATE_NO_FD | wire.STATE_ERROR,)
        os.close(reader)
        os.close(writer)


def test_frontend_that_goes_in_the_middle_ends_the_transfer(tmp_path: Path) -> None:
    state = Bytes(bytes(8 << 20))
    with serve_device(str(tmp_path / "sock"), state=state) as serving:
        frontend = connect(serving)
        fd = frontend.transfer_state(wire.SAVE)
        os.read(fd, 100)
        frontend.close()
        os.close(fd)
        assert wait_for(lambda: isinstance(state.error, BrokenPipeError))
        state.error, state.content = None, b"again"
        with connect(serving) as frontend:
            assert read_all(frontend.transfer_state(wire.SAVE)) == b"again"
            assert frontend.check_state()


def start_parked(client: FuseClient, serving: Serving) -> None:
    """Send a request that waits."""
    client._submit(
        client._slots[1],
        (
            PARK,
            1,
            b"",
        ),
        0,
    )
    client.queue.publish()
    assert serving.server.arrived.wait(60)
    serving.server.arrived.clear()


def answered(client: FuseClient, serving: Serving) -> bool:
    """Whether the request that waited is answered when another one asks for that."""
    assert serving.server.arrived.wait(60)
    assert len(serving.server.parked) == 1
    client._submit(client._slots[2], (UNPARK, 1, b""), 0)
    client.queue.publish()
    done = 0
    while done < 2:
        client._wait()
        done += client._reap_all()
    return client._slots[1].result(client._slots[1].length) == (0, b"")


def test_request_that_waits_when_the_rings_stop_waits_on_when_they_go_on(
    state: Bytes, serving: Serving
) -> None:
    with connect(serving) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        for _ in range(2):
            start_parked(client, serving)
            hiprio = frontend.stop(0)
            base = frontend.stop(1)
            assert not serving.server.parked
            frontend.tell(wire.SET_STATUS, wire.U64.pack(0))
            frontend.resume(0, hiprio)
            frontend.resume(1, base)
            assert answered(client, serving)
            assert client.request(ECHO, 1, b"x", 1) == (0, b"x")
        assert serving.server.drains == 2
        client.close()


def test_ring_that_goes_on_while_another_stops_has_its_requests_served_again(
    state: Bytes,
) -> None:
    with serve_device(state=state, queues=2) as serving, connect(serving) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        other = FuseClient(frontend, queue=frontend.start(2), depth=4, timeout=60, buffer_size=4096)
        start_parked(client, serving)
        start_parked(other, serving)
        frontend.stop(1)
        # By its own ring's thread, which had both.
        assert answered(other, serving)
        client.close()
        other.close()


def test_request_that_waits_goes_along_to_another_device(state: Bytes, serving: Serving) -> None:
    frontend = connect(serving)
    client = FuseClient(frontend, depth=4, timeout=60)
    assert client.request(ECHO, 1, b"x", 1) == (0, b"x")
    start_parked(client, serving)
    frontend.stop(0)
    base = frontend.stop(1)
    read_all(frontend.transfer_state(wire.SAVE))
    assert frontend.check_state()
    ((ring, heads),) = state.held.items()
    assert (ring, len(heads)) == (1, 1)

    class Carrier(Bytes):
        def load(self, fd: int) -> None:
            super().load(fd)
            self.held = {1: heads, 99: [7]}

    with serve_device(state=Carrier()) as other:
        frontend.attach(other.sock)
        os.close(frontend.transfer_state(wire.LOAD))
        assert frontend.check_state()
        frontend.resume(1, base)
        assert answered(client, other)
        client.close()
        frontend.close()


def test_ring_that_another_driver_has_set_up_gets_nothing_that_waited(serving: Serving) -> None:
    with connect(serving) as frontend:
        client = FuseClient(frontend, depth=4, timeout=60)
        start_parked(client, serving)
        frontend.stop(0)
        frontend.stop(1)
        client.close()
        client = FuseClient(frontend, depth=4, timeout=60)
        assert client.request(ECHO, 1, b"x", 1) == (0, b"x")
        assert not serving.server.parked
        client.close()


def test_log_all_prepares_and_its_end_cancels(state: Bytes, serving: Serving) -> None:
    with connect(serving) as frontend:
        frontend.start_log()
        assert state.calls == ["prepare"]
        frontend.tell(wire.SET_FEATURES, wire.U64.pack(frontend.features))
        assert state.calls == ["prepare"]
        frontend.stop_log()
        assert state.calls == ["prepare", "cancel"]
        frontend.start_log()
    serving.wait_until_gone()
    assert state.calls == ["prepare", "cancel", "prepare", "cancel"]
