"""Requests that wait: locks, devices, interrupts, polls."""

from __future__ import annotations

import threading
from errno import EAGAIN, EBADF, EINTR, EIO, ENOSYS
from stat import S_IFCHR, S_IFREG

import pytest
from fuse_session import ROOT, FuseError, Pending, Session, expect

from harness.fuse import abi
from vfs.abi import O_NONBLOCK, POLLIN, POLLOUT
from vfs.device import CharDevice, DeviceFile
from vfs.errors import WouldBlock
from vfs.file import Buffers
from vfs.locks import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX


class Doorbell(CharDevice):
    """A device whose readers wait until it is rung."""

    name = "doorbell"
    major = 240
    minor = 7

    def __init__(self) -> None:
        super().__init__()
        self.text = b""

    def ring(self, text: bytes) -> None:
        self.text = text
        self.wait.wake_all()

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        if not self.text:
            raise WouldBlock(self.wait)
        text, self.text = self.text, b""
        buffers[0][: len(text)] = text
        return len(text)

    def poll(self, file: DeviceFile) -> int:
        return POLLIN if self.text else 0


def lock_body(
    fh: int, owner: int, kind: int, start: int = 0, end: int = OFFSET_MAX, flock: bool = False
) -> bytes:
    return abi.LK_IN.pack(fh, owner, start, end, kind, owner, int(flock), 0)


def ring_session(**options: object) -> tuple[Session, Doorbell, int]:
    session = Session(devices="emulate", **options)
    bell = Doorbell()
    session.vfs.devices.register(bell)
    node = session.mknod(ROOT, b"bell", S_IFCHR | 0o666, bell.rdev)
    assert node.attr.mode & 0o170000 == S_IFREG
    return session, bell, node.nodeid


def read_body(fh: int, flags: int = 0) -> bytes:
    return abi.READ_IN.pack(fh, 0, 100, 0, 0, flags, 0)


def test_an_emulated_device_is_a_stream_that_reads_its_driver() -> None:
    session, bell, nodeid = ring_session()
    with session:
        attr = session.getattr(nodeid)
        assert (attr.size, attr.rdev) == (0, 0)
        opened = session.open(nodeid, 0)
        assert opened.flags & abi.FOPEN_DIRECT_IO
        bell.ring(b"ding")
        assert session.read(opened.fh, 0, 100) == b"ding"
        fh = session.opendir(ROOT)
        kinds = {name: kind for name, _, kind, *_ in session.readdir(fh, plus=True)}
        assert kinds[b"bell"] == S_IFREG >> 12
        session.releasedir(fh)


def test_a_read_waits_for_its_device_and_is_answered_later() -> None:
    session, bell, nodeid = ring_session()
    with session:
        fh = session.open(nodeid, 0).fh
        pending = session.start("READ", nodeid, read_body(fh))
        assert isinstance(pending, Pending)
        assert not pending.answered
        bell.ring(b"ding")
        assert pending.wait() == b"ding"


def test_a_read_that_may_not_wait_fails_with_eagain() -> None:
    session, _, nodeid = ring_session()
    with session:
        fh = session.open(nodeid, 0).fh
        expect(EAGAIN, session.call, "READ", nodeid, read_body(fh, O_NONBLOCK))


def test_an_interrupt_ends_the_wait_with_eintr() -> None:
    session, bell, nodeid = ring_session()
    with session:
        fh = session.open(nodeid, 0).fh
        pending = session.start("READ", nodeid, read_body(fh))
        assert isinstance(pending, Pending)
        session.call("INTERRUPT", 0, abi.INTERRUPT_IN.pack(pending.unique), 0)
        expect(EINTR, pending.wait)
        bell.ring(b"ding")
        assert session.read(fh, 0, 100) == b"ding"


def test_an_interrupt_that_comes_before_its_request_is_not_lost() -> None:
    session, _, nodeid = ring_session()
    with session:
        fh = session.open(nodeid, 0).fh
        coming = session.unique + 4
        session.call("INTERRUPT", 0, abi.INTERRUPT_IN.pack(coming), 0)
        expect(EINTR, session.call, "READ", nodeid, read_body(fh))
        assert session.unique == coming


def test_drain_and_reset_answer_what_waits() -> None:
    session, _, nodeid = ring_session()
    with session:
        fh = session.open(nodeid, 0).fh
        first = session.start("READ", nodeid, read_body(fh))
        assert isinstance(first, Pending)
        session.server.drain()
        expect(EINTR, first.wait)
        second = session.start("READ", nodeid, read_body(fh))
        assert isinstance(second, Pending)
        session.server.reset()
        expect(EINTR, second.wait)


def test_poll_wakes_the_client_once_when_the_device_is_ready() -> None:
    told: list[tuple[int, bytes]] = []
    session, bell, nodeid = ring_session(notify=lambda code, payload: told.append((code, payload)))
    with session:
        fh = session.open(nodeid, 0).fh
        body = abi.POLL_IN.pack(fh, 77, abi.POLL_SCHEDULE_NOTIFY, POLLIN | POLLOUT)
        for _ in range(2):
            assert abi.POLL_OUT.unpack(session.call("POLL", nodeid, body, 8))[0] == 0
        bell.ring(b"ding")
        bell.ring(b"dong")
        assert told == [(abi.NOTIFY_POLL, abi.NOTIFY_POLL_WAKEUP_OUT.pack(77))]
        assert abi.POLL_OUT.unpack(session.call("POLL", nodeid, body, 8))[0] == POLLIN
        session.release(fh)
        bell.ring(b"ding")
        assert len(told) == 1
        expect(EBADF, session.call, "POLL", nodeid, body, 8)


def test_poll_without_a_way_to_wake_the_client_fails_with_enosys() -> None:
    session, _, nodeid = ring_session()
    with session:
        body = abi.POLL_IN.pack(session.open(nodeid, 0).fh, 1, 1, POLLIN)
        expect(ENOSYS, session.call, "POLL", nodeid, body, 8)


def test_record_locks_of_two_owners_exclude_each_other() -> None:
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        fh = opened.fh
        session.call("SETLK", 0, lock_body(fh, 1, F_WRLCK, 0, 99), 0)
        expect(EAGAIN, session.call, "SETLK", 0, lock_body(fh, 2, F_RDLCK, 50, 60), 0)
        session.call("SETLK", 0, lock_body(fh, 2, F_WRLCK, 100, 199), 0)
        reply = session.call("GETLK", 0, lock_body(fh, 2, F_RDLCK, 50, 60), 24)
        assert abi.FILE_LOCK.unpack(reply) == (0, 99, F_WRLCK, 1)
        reply = session.call("GETLK", 0, lock_body(fh, 1, F_RDLCK, 50, 60), 24)
        assert abi.FILE_LOCK.unpack(reply)[2] == F_UNLCK


def test_setlkw_waits_until_the_lock_is_given_up() -> None:
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        fh = opened.fh
        session.call("SETLK", 0, lock_body(fh, 1, F_WRLCK), 0)
        pending = session.start("SETLKW", 0, lock_body(fh, 2, F_WRLCK), 0)
        assert isinstance(pending, Pending)
        assert not pending.answered
        session.call("SETLK", 0, lock_body(fh, 1, F_UNLCK), 0)
        assert pending.wait() == b""
        expect(EAGAIN, session.call, "SETLK", 0, lock_body(fh, 1, F_WRLCK), 0)


def test_closing_a_descriptor_gives_up_its_owners_locks() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        other = session.open(entry.nodeid)
        session.call("SETLK", 0, lock_body(opened.fh, 1, F_WRLCK), 0)
        session.call("FLUSH", 0, abi.FLUSH_IN.pack(other.fh, 0, 0, 1), 0)
        session.call("SETLK", 0, lock_body(other.fh, 2, F_WRLCK), 0)


def test_flock_ends_with_its_description() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        other = session.open(entry.nodeid)
        session.call("SETLK", 0, lock_body(opened.fh, 1, F_WRLCK, flock=True), 0)
        expect(EAGAIN, session.call, "SETLK", 0, lock_body(other.fh, 2, F_RDLCK, flock=True), 0)
        pending = session.start("SETLKW", 0, lock_body(other.fh, 2, F_RDLCK, flock=True), 0)
        assert isinstance(pending, Pending)
        session.release(opened.fh)
        assert pending.wait() == b""


def test_locks_left_to_the_client_are_not_implemented() -> None:
    with Session(local_locks=True) as session:
        _, opened = session.create(ROOT, b"file")
        expect(ENOSYS, session.call, "SETLK", 0, lock_body(opened.fh, 1, F_WRLCK), 0)


def test_two_requests_with_one_number_do_not_both_wait() -> None:
    session, _, nodeid = ring_session()
    with session:
        fh = session.open(nodeid, 0).fh
        first = session.start("READ", nodeid, read_body(fh))
        assert isinstance(first, Pending)
        session.unique -= 2
        try:
            session.call("READ", nodeid, read_body(fh))
        except FuseError as error:
            assert error.errno == EINTR
        assert not first.answered


def test_a_request_that_cannot_wait_for_want_of_a_thread_is_answered_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Session() as session:
        entry, first = session.create(ROOT, b"file")
        second = session.open(entry.nodeid)
        session.call("SETLK", entry.nodeid, lock_body(first.fh, 1, F_WRLCK), 0)

        def no_more(self: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", no_more)
        expect(EIO, session.start, "SETLKW", entry.nodeid, lock_body(second.fh, 2, F_WRLCK), 0)
        monkeypatch.undo()
        assert not len(session.server.parking)
        waiting = session.start("SETLKW", entry.nodeid, lock_body(second.fh, 2, F_WRLCK), 0)
        assert isinstance(waiting, Pending)
        session.call("SETLK", entry.nodeid, lock_body(first.fh, 1, F_UNLCK), 0)
        assert waiting.wait() == b""
