"""FIFOs in the VFS, step by step against the host kernel's.

Each script of steps runs on a FIFO of ours and on one that mkfifo(3) made, both opened with
O_NONBLOCK, so that waiting shows as EAGAIN; the answers must be the same.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from fsimpl.tmpfs import TmpfsType
from vfs import abi
from vfs.credentials import Credentials
from vfs.dentry import Dentry
from vfs.errors import WouldBlock
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode
from vfs.mount import Mount
from vfs.operations import vfs_open, vfs_read, vfs_write
from vfs.pipe import FIONREAD, PIPE_BUF, PIPE_CAPACITY, PipeFile
from vfs.superblock import DCACHE_PINNED, FilesystemType, Superblock
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

READ, WRITE, BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


class BareType(FilesystemType):
    """A file system of one empty directory, for nodes without names."""

    name = "bare"

    def get_tree(self, context: FilesystemContext) -> Superblock:
        superblock = Superblock(context, magic=0x62617265, dcache=DCACHE_PINNED)
        superblock.root = Dentry.make_root(superblock, Inode(superblock, abi.S_IFDIR | 0o755))
        return superblock


class Fifo(Protocol):
    """What both sides can do; answers are results or the names of errnos."""

    def open(self, key: str, flags: int) -> object: ...
    def close(self, key: str) -> object: ...
    def read(self, key: str, size: int) -> object: ...
    def write(self, key: str, data: bytes) -> object: ...
    def poll(self, key: str) -> object: ...
    def waiting(self, key: str) -> object: ...


class OurFifo:
    """A FIFO in the VFS, with its open files by key."""

    def __init__(self) -> None:
        self.vfs = VirtualFilesystem(tracing=True)
        self.vfs.register(BareType())
        self.namespace = self.vfs.create_namespace("bare")
        superblock = next(s for s in self.vfs.superblocks if s.type.name == "bare")
        self.mount = Mount(superblock, b"bare")
        inode = Inode(superblock, abi.S_IFIFO | 0o644)
        self.dentry = self.vfs.dcache.disconnected(superblock, b"fifo", inode)
        self.files: dict[str, PipeFile] = {}

    def new(self, flags: int) -> PipeFile:
        with self.vfs.lock:
            file = vfs_open(self.mount, self.dentry, flags, Credentials.root())
        assert isinstance(file, PipeFile)
        return file

    def open(self, key: str, flags: int) -> object:
        file = self.new(flags)
        file.wait_open()
        self.files[key] = file
        return None

    def close(self, key: str) -> object:
        with self.vfs.lock:
            self.files.pop(key).put()
        return None

    def read(self, key: str, size: int) -> object:
        buffer = bytearray(size)
        count = vfs_read(self.files[key], [memoryview(buffer)], 0)
        return bytes(buffer[:count])

    def write(self, key: str, data: bytes) -> object:
        return vfs_write(self.files[key], [memoryview(data)], 0)

    def poll(self, key: str) -> object:
        return self.files[key].poll()

    def waiting(self, key: str) -> object:
        return struct.unpack("=i", self.files[key].ioctl(FIONREAD, 0))[0]

    def shutdown(self) -> None:
        for key in list(self.files):
            self.close(key)
        with self.vfs.lock:
            self.dentry.put()
            self.mount.put()
            self.namespace.put()
            assert not self.vfs.fifos
        self.vfs.shutdown()


class HostFifo:
    """A FIFO of the kernel we run on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.fds: dict[str, int] = {}

    def open(self, key: str, flags: int) -> object:
        self.fds[key] = os.open(self.path, flags)
        return None

    def close(self, key: str) -> object:
        os.close(self.fds.pop(key))
        return None

    def read(self, key: str, size: int) -> object:
        return os.read(self.fds[key], size)

    def write(self, key: str, data: bytes) -> object:
        return os.write(self.fds[key], data)

    def poll(self, key: str) -> object:
        poller = select.poll()
        poller.register(self.fds[key], 0x7FF)
        ready = poller.poll(0)
        return ready[0][1] if ready else 0

    def waiting(self, key: str) -> object:
        count = array.array("i", [0])
        fcntl.ioctl(self.fds[key], FIONREAD, count)
        return count[0]

    def shutdown(self) -> None:
        for key in list(self.fds):
            self.close(key)


@pytest.fixture
def ours() -> Iterator[OurFifo]:
    fifo = OurFifo()
    yield fifo
    fifo.shutdown()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostFifo]:
    fifo = HostFifo(tmp_path / "fifo")
    yield fifo
    fifo.shutdown()


def run(fifo: Fifo, script: list[tuple[object, ...]]) -> list[object]:
    """The answer to each (method, arguments...) of ``script``."""
    answers: list[object] = []
    for method, *arguments in script:
        try:
            answers.append(getattr(fifo, str(method))(*arguments))
        except OSError as error:
            assert error.errno is not None
            answers.append(errno.errorcode[error.errno])
    return answers


def nonblocking(key: str, access: int) -> tuple[object, ...]:
    return ("open", key, access | os.O_NONBLOCK)


def both_ends() -> list[tuple[object, ...]]:
    return [nonblocking("r", READ), nonblocking("w", WRITE)]


SCRIPTS: dict[str, list[tuple[object, ...]]] = {
    "a_writer_without_a_reader_gets_enxio": [nonblocking("w", WRITE)],
    "a_reader_alone_reads_the_end_of_file": [
        nonblocking("r", READ), ("poll", "r"), ("read", "r", 9), ("read", "r", 0), ("poll", "r"),
    ],
    "a_reader_sees_a_hang_up_only_after_a_writer_was_there": [
        nonblocking("r", READ), ("poll", "r"), nonblocking("w", WRITE), ("poll", "r"),
        ("close", "w"), ("poll", "r"), nonblocking("w", WRITE), ("poll", "r"),
    ],
    "an_empty_pipe_with_a_writer_would_block": [
        *both_ends(), ("read", "r", 9), ("read", "r", 0), ("poll", "r"), ("poll", "w"),
    ],
    "bytes_come_out_in_order_and_are_left_after_the_writer_went": [
        *both_ends(), ("write", "w", b"abc"), ("write", "w", b"def"), ("waiting", "r"),
        ("waiting", "w"), ("poll", "r"), ("read", "r", 4), ("close", "w"), ("poll", "r"),
        ("read", "r", 9), ("poll", "r"), ("read", "r", 9),
    ],
    "writing_without_readers_is_epipe": [
        *both_ends(), ("close", "r"), ("poll", "w"), ("write", "w", b"x"), ("write", "w", b""),
    ],
    "a_large_write_stops_at_the_capacity": [
        *both_ends(), ("write", "w", b"x" * 70000), ("poll", "w"), ("write", "w", b"x"),
        ("write", "w", b""), ("waiting", "r"),
    ],
    "room_comes_back_by_whole_pages": [
        *both_ends(), ("write", "w", b"x" * 70000), ("read", "r", 100), ("poll", "w"),
        ("write", "w", b"y"), ("read", "r", 3996), ("poll", "w"), ("write", "w", b"y" * 4096),
        ("poll", "w"), ("read", "r", 100000),
    ],
    "up_to_pipe_buf_goes_in_whole_or_not_at_all": [
        *both_ends(), ("write", "w", b"x" * (65536 - 100)), ("write", "w", b"y" * 200),
        ("write", "w", b"z" * 100), ("write", "w", b"z"), ("waiting", "r"),
    ],
    "a_short_write_does_not_share_a_page_that_is_too_full": [
        *both_ends(), *[("write", "w", b"z" * 3000)] * 18, ("waiting", "r"), ("poll", "w"),
    ],
    "beyond_pipe_buf_a_write_is_split": [
        *both_ends(), ("write", "w", b"x" * (65536 - 5000)), ("write", "w", b"y" * 9000),
        ("waiting", "r"), ("read", "r", 100000), ("write", "w", b"y" * 9000), ("waiting", "r"),
    ],
    "a_write_continues_the_last_page_even_when_partly_read": [
        *both_ends(), ("write", "w", b"x" * 3000), ("read", "r", 2999), ("write", "w", b"y" * 1097),
        ("write", "w", b"z" * 1096), ("waiting", "r"), ("read", "r", 9000),
    ],
    "one_file_can_be_both_ends": [
        nonblocking("b", BOTH), ("poll", "b"), ("write", "b", b"q"), ("poll", "b"),
        ("read", "b", 9), ("read", "b", 9), ("open", "w", WRITE), ("open", "r", READ),
        ("close", "b"), ("poll", "r"), ("poll", "w"),
    ],
    "what_nobody_read_is_gone_with_the_last_close": [
        nonblocking("b", BOTH), ("write", "b", b"lost"), ("close", "b"), nonblocking("r", READ),
        ("read", "r", 9), ("waiting", "r"),
    ],
    "access_mode_3_is_einval": [nonblocking("x", 3)],
    "several_writers_share_one_pipe": [
        *both_ends(), nonblocking("w2", WRITE), ("write", "w", b"1"), ("write", "w2", b"2"),
        ("close", "w"), ("poll", "r"), ("read", "r", 9), ("read", "r", 9), ("close", "w2"),
        ("read", "r", 9),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_on_linux(name: str, ours: OurFifo, host: HostFifo) -> None:
    assert run(ours, SCRIPTS[name]) == run(host, SCRIPTS[name])


def test_a_vector_is_written_and_read_in_order(ours: OurFifo) -> None:
    run(ours, both_ends())
    parts = [memoryview(b"ab"), memoryview(b""), memoryview(b"cdef")]
    assert vfs_write(ours.files["w"], parts, 0) == 6
    first, second = bytearray(1), bytearray(9)
    assert vfs_read(ours.files["r"], [memoryview(first), memoryview(second)], 0) == 6
    assert (bytes(first), bytes(second)) == (b"a", b"bcdef\0\0\0\0")


def test_a_blocking_reader_waits_until_a_writer_opens(ours: OurFifo) -> None:
    reader = ours.new(READ)
    with pytest.raises(WouldBlock) as blocked:
        reader.wait_open()
    woken: list[bool] = []
    blocked.value.queue.add(lambda: woken.append(True))
    writer = ours.new(WRITE)
    writer.wait_open()
    assert woken
    reader.wait_open()
    reader.put()
    writer.put()


def test_a_waiting_reader_lets_a_nonblocking_writer_in(ours: OurFifo) -> None:
    """Who waits in open counts already."""
    reader = ours.new(READ)
    writer = ours.new(WRITE | os.O_NONBLOCK)
    writer.put()
    reader.wait_open()  # the writer came and went meanwhile: that is enough
    assert reader.poll() == abi.POLLHUP
    reader.put()


def test_an_open_that_gives_up_is_not_counted_any_more(ours: OurFifo) -> None:
    reader = ours.new(READ)
    with pytest.raises(WouldBlock):
        reader.wait_open()
    reader.put()
    with pytest.raises(OSError) as refused:
        ours.new(WRITE | os.O_NONBLOCK)
    assert refused.value.errno == errno.ENXIO


def test_a_blocked_writer_is_woken_by_a_reader_that_frees_a_page(ours: OurFifo) -> None:
    run(ours, [*both_ends(), ("write", "w", b"x" * PIPE_CAPACITY)])
    with pytest.raises(WouldBlock) as blocked:
        ours.write("w", b"more")
    woken: list[bool] = []
    blocked.value.queue.add(lambda: woken.append(True))
    ours.read("r", 1)
    assert not woken, "one byte less frees no page"
    ours.read("r", PIPE_BUF)
    assert woken
    assert ours.write("w", b"more") == 4


@pytest.mark.parametrize("leaver", ["r", "w"])
def test_whoever_polls_learns_that_the_other_end_closed(ours: OurFifo, leaver: str) -> None:
    run(ours, both_ends())
    stays = ours.files["w" if leaver == "r" else "r"]
    queue = stays.poll_queue()
    assert queue is not None
    woken: list[bool] = []
    queue.add(lambda: woken.append(True))
    ours.close(leaver)
    assert woken
    assert stays.poll() & (abi.POLLERR | abi.POLLHUP)


def test_two_fifos_have_two_pipes(ours: OurFifo) -> None:
    superblock = ours.mount.superblock
    other = ours.vfs.dcache.disconnected(superblock, b"2", Inode(superblock, abi.S_IFIFO | 0o644))
    run(ours, [("open", "b", BOTH), ("write", "b", b"mine")])
    file = vfs_open(ours.mount, other, BOTH, Credentials.root())
    assert isinstance(file, PipeFile)
    assert file.poll() & abi.POLLIN == 0
    file.put()
    other.put()


def test_writing_moves_mtime(ours: OurFifo) -> None:
    inode = ours.dentry.inode
    assert inode is not None
    run(ours, both_ends())
    inode.mtime_ns = 1
    ours.write("w", b"x")
    assert inode.mtime_ns > 1


def test_fsync_of_a_fifo_is_einval(ours: OurFifo) -> None:
    run(ours, [("open", "b", BOTH)])
    with pytest.raises(OSError) as refused:
        ours.files["b"].fsync(False)
    assert refused.value.errno == errno.EINVAL


# As tasks use them


@pytest.fixture
def fifo_task() -> Iterator[Task]:
    """A task with a FIFO at /fifo."""
    vfs = VirtualFilesystem(tracing=True)
    vfs.register(TmpfsType())
    with vfs.create_namespace("tmpfs") as namespace:
        task = vfs.create_task(namespace)
    task.mknod("/fifo", abi.S_IFIFO | 0o600)
    yield task
    task.exit()
    assert not vfs.fifos
    vfs.shutdown()


def test_two_tasks_meet_in_open_and_talk(fifo_task: Task) -> None:
    other = fifo_task.clone()
    got: list[bytes] = []

    def read_all() -> None:
        fd = other.open("/fifo", READ)
        while data := other.read(fd, 1000):
            got.append(data)
        other.close(fd)

    reader = threading.Thread(target=read_all)
    reader.start()
    fd = fifo_task.open("/fifo", WRITE)
    sent = bytes(range(256)) * 2000
    for start in range(0, len(sent), 5000):
        part = sent[start : start + 5000]
        while part:
            part = part[fifo_task.write(fd, part) :]
    fifo_task.close(fd)
    reader.join(60)
    assert b"".join(got) == sent
    other.exit()


def test_a_new_writer_after_the_last_one_left_is_heard_again(fifo_task: Task) -> None:
    reader = fifo_task.open("/fifo", READ | os.O_NONBLOCK)
    for message in (b"one", b"two"):
        writer = fifo_task.open("/fifo", WRITE)
        assert fifo_task.write(writer, message) == 3
        fifo_task.close(writer)
        assert fifo_task.read(reader, 9) == message
        assert fifo_task.read(reader, 9) == b""
    fifo_task.close(reader)


def test_a_fifo_cannot_seek(fifo_task: Task) -> None:
    fd = fifo_task.open("/fifo", BOTH)
    for operation in (
        lambda: fifo_task.lseek(fd, 0, os.SEEK_SET),
        lambda: fifo_task.pread64(fd, 1, 0),
        lambda: fifo_task.pwrite64(fd, b"x", 0),
    ):
        with pytest.raises(OSError) as refused:
            operation()
        assert refused.value.errno == errno.ESPIPE
    fifo_task.close(fd)


def test_access_to_a_fifo_is_its_modes(fifo_task: Task) -> None:
    user = fifo_task.clone(cred=Credentials(1000, 1000))
    with pytest.raises(PermissionError):
        user.open("/fifo", READ | os.O_NONBLOCK)
    user.exit()


def test_a_blocking_write_waits_until_all_of_it_is_in(fifo_task: Task) -> None:
    reader = fifo_task.open("/fifo", READ | os.O_NONBLOCK)
    writer = fifo_task.open("/fifo", WRITE)
    counts: list[int] = []
    thread = threading.Thread(
        target=lambda: counts.append(fifo_task.write(writer, b"x" * (2 * PIPE_CAPACITY)))
    )
    thread.start()
    left = 2 * PIPE_CAPACITY
    while left:
        if fifo_task.poll(reader, abi.POLLIN):
            left -= len(fifo_task.read(reader, 10_000))
    thread.join(60)
    assert counts == [2 * PIPE_CAPACITY]
    fifo_task.close(writer)
    fifo_task.close(reader)
