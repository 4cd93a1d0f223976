"""Advisory locks, against the kernel's own where it can be asked."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsimpl.tmpfs import TmpfsType
from vfs import VirtualFilesystem
from vfs.errors import WouldBlock
from vfs.inode import Inode
from vfs.locks import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX, LockManager

F_OFD_GETLK, F_OFD_SETLK = 36, 37
OWNERS = 3
HOLDERS = [object() for _ in range(OWNERS)]


class Host:
    """The kernel's locks: open file descriptions are the owners."""

    def __init__(self) -> None:
        number, path = tempfile.mkstemp()
        self.fds = [number, *(os.open(path, os.O_RDWR) for _ in range(OWNERS - 1))]
        os.unlink(path)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def set(self, owner: int, kind: int, start: int, end: int) -> int:
        length = 0 if end == OFFSET_MAX else end - start + 1
        flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(self.fds[owner], F_OFD_SETLK, flock)
        except OSError as error:
            return error.errno or 0
        return 0

    def test(self, owner: int, kind: int, start: int, end: int) -> tuple[int, int, int] | None:
        length = 0 if end == OFFSET_MAX else end - start + 1
        flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        reply = fcntl.fcntl(self.fds[owner], F_OFD_GETLK, flock)
        found, _, at, count, _ = struct.unpack("hhqqi4x", reply)
        if found == F_UNLCK:
            return None
        return found, at, at + count - 1 if count else OFFSET_MAX


def try_lock(
    manager: LockManager, inode: Inode, owner: int, kind: int, start: int, end: int
) -> int:
    try:
        manager.set_record(inode, owner, HOLDERS[owner], kind, start, end)
    except WouldBlock:
        return errno.EAGAIN
    return 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, OWNERS - 1),
            st.sampled_from([F_RDLCK, F_WRLCK, F_UNLCK]),
            st.integers(0, 20),
            st.one_of(st.integers(0, 20), st.just(None)),
        ),
        max_size=25,
    )
)
def test_record_locks_behave_as_the_kernels(
    steps: list[tuple[int, int, int, int | None]],
) -> None:
    vfs = VirtualFilesystem()
    vfs.register(TmpfsType())
    namespace = vfs.create_namespace("tmpfs")
    inode = namespace.root.root.inode
    assert inode is not None
    manager, host = LockManager(), Host()
    try:
        for owner, kind, start, length in steps:
            end = OFFSET_MAX if length is None else start + length
            expected = host.set(owner, kind, start, end)
            assert try_lock(manager, inode, owner, kind, start, end) == expected
            manager.check()
            for asker in range(OWNERS):
                for at in range(0, 42, 3):
                    found = manager.test(inode, asker, F_WRLCK, at, at)
                    theirs = host.test(asker, F_WRLCK, at, at)
                    assert (found is None) == (theirs is None)
    finally:
        host.close()
    for owner in range(OWNERS):
        manager.release(inode, HOLDERS[owner])
    assert len(manager) == 0
    namespace.put()
    vfs.shutdown()


@pytest.fixture
def inode(vfs: VirtualFilesystem) -> Iterator[Inode]:
    with vfs.create_namespace("tmpfs") as namespace:
        found = namespace.root.root.inode
        assert found is not None
        yield found


def test_a_waiter_is_woken_when_the_lock_goes(inode: Inode) -> None:
    manager = LockManager()
    manager.set_record(inode, 1, "a", F_WRLCK, 0, 10)
    with pytest.raises(WouldBlock) as stopped:
        manager.set_record(inode, 2, "b", F_RDLCK, 5, 5)
    woken: list[bool] = []
    stopped.value.queue.add(lambda: woken.append(True))
    manager.unlock_owner(inode, 1)
    assert woken
    assert len(manager) == 0


def test_a_failed_flock_upgrade_loses_the_lock_as_on_linux(inode: Inode) -> None:
    manager = LockManager()
    manager.set_flock(inode, 1, "a", F_RDLCK)
    manager.set_flock(inode, 2, "b", F_RDLCK)
    with pytest.raises(WouldBlock):
        manager.set_flock(inode, 1, "a", F_WRLCK)
    manager.set_flock(inode, 2, "b", F_WRLCK)
    manager.release(inode, "b")
    assert len(manager) == 0


def test_the_kernel_loses_the_lock_of_a_failed_flock_upgrade() -> None:
    with tempfile.NamedTemporaryFile() as file:
        a, b = os.open(file.name, os.O_RDWR), os.open(file.name, os.O_RDWR)
        try:
            fcntl.flock(a, fcntl.LOCK_SH)
            fcntl.flock(b, fcntl.LOCK_SH)
            with pytest.raises(BlockingIOError):
                fcntl.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(a)
            os.close(b)


def test_ranges_that_are_none_are_refused(inode: Inode) -> None:
    manager = LockManager()
    for start, end, kind in ((5, 4, F_RDLCK), (0, 1 << 63, F_RDLCK), (0, 1, 9)):
        with pytest.raises(OSError) as error:
            manager.set_record(inode, 1, "a", kind, start, end)
        assert error.value.errno == errno.EINVAL
    assert len(manager) == 0
