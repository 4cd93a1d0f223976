"""Dirty logging: what the log says of guest memory, against what really changed in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from vhost_user_support import ECHO, PARK, Serving, serve_device

from harness.vhost_user import message as wire
from harness.vhost_user.connection import ProtocolError
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient
from harness.virtio.driver import GUEST_BASE

PAGE = 4096
FIRST = GUEST_BASE // PAGE
LAYOUTS = pytest.mark.parametrize("packed", [False, True])


class Watched:
    """A guest with a log, whose memory is compared with what it was."""

    def __init__(self, serving: Serving, packed: bool, **options: int) -> None:
        self.frontend: Frontend = serving.frontend(**options)
        self.frontend.negotiate(packed=packed, extra=wire.F_LOG_SHMFD)
        self.frontend.share_memory()
        self.client = FuseClient(self.frontend, depth=8, timeout=60)
        self.before = bytes(self.frontend.memory.view)

    def changed(self) -> set[int]:
        """Pages that are not what they were at the last call."""
        now = bytes(self.frontend.memory.view)
        pages = range(0, len(now), PAGE)
        found = {at // PAGE for at in pages if now[at : at + PAGE] != self.before[at : at + PAGE]}
        self.before = now
        return {FIRST + page for page in found}

    def submit(self, opcode: int, payload: bytes, room: int) -> None:
        """Lay a request out without giving it to the device, then look at memory."""
        self.client._submit(self.client._slots[0], (opcode, 1, payload), room)
        self.changed()

    def answer(self) -> tuple[int, bytes]:
        """Publish what was submitted and take the reply."""
        before = self.before
        self.client.queue.publish()
        self.client._wait()
        head, length = self.client.queue.reap()
        assert head == self.client._slots[0].head
        self.before = before
        return self.client._slots[0].result(length)

    def driver_pages(self) -> set[int]:
        """Pages that the driver writes too: its rings' and its event index's."""
        queue = self.client.queue
        places = (queue.descriptors, queue.avail_ring, queue.used_ring)
        ends = {queue.descriptors + 16 * queue.size - 1, queue.avail_ring + 6 + 2 * queue.size}
        return {at // PAGE for at in (*places, *ends)}


@pytest.fixture
def serving() -> Iterator[Serving]:
    with serve_device() as serving:
        yield serving


@LAYOUTS
def test_log_has_every_page_that_changed(serving: Serving, packed: bool) -> None:
    watched = Watched(serving, packed)
    with watched.frontend as frontend:
        frontend.start_log()
        frontend.dirty_pages()
        for size in (1, 100, PAGE, 3 * PAGE + 5, 28_000):
            watched.submit(ECHO, os.urandom(size), size)
            error, _ = watched.answer()
            assert error == 0
            base = frontend.stop(1)
            changed, dirty = watched.changed(), frontend.dirty_pages()
            assert changed - watched.driver_pages() <= dirty
            # The reply is in its pages, and not more of them than it is long.
            slot = watched.client._slots[0]
            results = slot._addresses[3] // PAGE
            assert {*range(results, results + -(-size // PAGE))} <= dirty
            # Used rings, the high-priority one's included, may lie on two pages each.
            assert len(dirty) <= -(-size // PAGE) + 6
            used = watched.client.queue
            assert (used.descriptors if packed else used.used_ring) // PAGE in dirty
            frontend.resume(1, base)
            frontend.dirty_pages()
        watched.client.close()


@LAYOUTS
def test_nothing_is_logged_before_logging_starts_or_after_it_stops(
    serving: Serving, packed: bool
) -> None:
    watched = Watched(serving, packed)
    with watched.frontend as frontend:
        client = watched.client
        client.request(ECHO, 1, b"before", 6)
        frontend.start_log()
        client.request(ECHO, 1, b"during", 6)
        assert frontend.dirty_pages()
        frontend.stop_log()
        frontend.dirty_pages()
        client.request(ECHO, 1, b"after", 6)
        assert not frontend.dirty_pages()
        frontend.start_log()
        client.request(ECHO, 1, b"again", 6)
        assert frontend.dirty_pages()
        client.close()


@LAYOUTS
def test_logging_can_go_on_and_off_under_requests(serving: Serving, packed: bool) -> None:
    watched = Watched(serving, packed)
    with watched.frontend as frontend:
        client = watched.client
        for number in range(60):
            (frontend.stop_log if number % 2 else frontend.start_log)()
            payloads = [b"%04d" % (number * 100 + i) for i in range(30)]
            replies = client.batch([(ECHO, 1, payload) for payload in payloads], 4)
            assert [reply for _, reply in replies] == payloads
        client.close()


@LAYOUTS
def test_answer_to_a_request_from_before_logging_is_logged(serving: Serving, packed: bool) -> None:
    watched = Watched(serving, packed)
    with watched.frontend as frontend:
        watched.submit(PARK, b"", 2 * PAGE)
        watched.client.queue.publish()
        assert serving.server.arrived.wait(60)
        frontend.start_log()
        frontend.dirty_pages()
        watched.changed()
        serving.server.answer_parked(0)
        watched.client._wait()
        frontend.stop(1)
        changed = watched.changed() - watched.driver_pages()
        assert changed
        assert changed <= frontend.dirty_pages()
        watched.client.close()


def test_guest_addresses_are_logged_whatever_region_they_are_in(serving: Serving) -> None:
    watched = Watched(serving, False, regions=8)
    with watched.frontend as frontend:
        frontend.start_log()
        step = frontend.memory.size // 8
        queue = watched.client.queue
        borders = [GUEST_BASE + number * step for number in range(1, 8)]
        request = frontend.memory.allocate(64)
        for border in borders:
            # The reply lies across the border, half of it in each region.
            head = queue.lay_out(20, [(request, 40 + 8)], [(border - 12, 24)])
            header = bytearray(48)
            header[:8] = (48).to_bytes(4, "little") + ECHO.to_bytes(4, "little")
            frontend.memory.at(request, 48)[:] = header
            frontend.dirty_pages()
            queue.enable_interrupts()
            queue.offer(head)
            queue.publish()
            watched.client._wait()
            assert queue.reap() == (head, 24)
            assert {border // PAGE - 1, border // PAGE} <= frontend.dirty_pages()
        watched.client.close()


def test_used_ring_is_logged_where_the_frontend_says_it_is(serving: Serving) -> None:
    watched = Watched(serving, False)
    with watched.frontend as frontend:
        frontend.start_log()
        queue = watched.client.queue
        user = frontend.memory.user_address
        elsewhere = GUEST_BASE + frontend.memory.size - 4 * PAGE
        frontend.tell(
            wire.SET_VRING_ADDR,
            wire.VRING_ADDRESS.pack(
                1,
                wire.VRING_F_LOG,
                user(queue.descriptors),
                user(queue.used_ring),
                user(queue.avail_ring),
                elsewhere,
            ),
        )
        frontend.dirty_pages()
        watched.client.request(ECHO, 1, b"x", 1)
        assert elsewhere // PAGE in frontend.dirty_pages()
        watched.client.close()


def test_log_that_is_too_short_costs_the_ring_and_is_reported(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(serving, False)
    with watched.frontend as frontend:
        err = os.eventfd(0)
        frontend.tell(wire.SET_VRING_ERR, wire.U64.pack(1), err)
        frontend.start_log(spare=-(frontend.memory.size // PAGE) // 1)
        watched.client._submit(watched.client._slots[0], (ECHO, 1, b"x"), 1)
        watched.client.queue.publish()
        os.eventfd_write(watched.client.queue.kick, 1)
        assert os.eventfd_read(err)
        os.close(err)
        assert "beyond the log" in caplog.text
        assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 2
        watched.client.close()


def test_log_of_a_wrong_size_is_refused(serving: Serving) -> None:
    with serving.frontend() as frontend:
        frontend.negotiate(extra=wire.F_LOG_SHMFD)
        fd = os.memfd_create("log")
        os.ftruncate(fd, 100)
        for payload in (wire.LOG.pack(101, 0), wire.LOG.pack(0, 0), wire.LOG.pack(8, 8)):
            with pytest.raises(ProtocolError):
                frontend.tell(wire.SET_LOG_BASE, payload, fd)
        with pytest.raises(ProtocolError):
            frontend.tell(wire.SET_LOG_BASE, wire.LOG.pack(100, 0))
        frontend.tell(wire.SET_LOG_BASE, wire.LOG.pack(100, 0), fd)
        os.close(fd)


def test_log_descriptor_is_told_of_new_pages(serving: Serving) -> None:
    watched = Watched(serving, False)
    with watched.frontend as frontend:
        told = os.eventfd(0)
        frontend.tell(wire.SET_LOG_FD, b"", told)
        frontend.start_log()
        watched.client.request(ECHO, 1, b"x", 1)
        assert os.eventfd_read(told)
        os.close(told)
        watched.client.close()
