"""null, zero, full, random and urandom, each step against the host's own."""

from __future__ import annotations

import errno
import fcntl
import os
import select

import pytest

from devtmpfs.memory_devices import RNDGETENTCNT
from vfs.device import DeviceFile
from vfs.task import Task

DEVICES = ["null", "zero", "full", "random", "urandom"]


class Ours:
    def __init__(self, task: Task, path: str) -> None:
        self.task = task
        self.fd = task.open(path, os.O_RDWR)

    def close(self) -> None:
        self.task.close(self.fd)

    def read(self, size: int) -> object:
        return self.task.read(self.fd, size)

    def pread(self, size: int, offset: int) -> object:
        return self.task.pread64(self.fd, size, offset)

    def write(self, data: bytes) -> object:
        return self.task.write(self.fd, data)

    def pwrite(self, data: bytes, offset: int) -> object:
        return self.task.pwrite64(self.fd, data, offset)

    def lseek(self, offset: int, whence: int) -> object:
        file = self.task.files.get_file(self.fd)
        assert isinstance(file, DeviceFile)
        return file.llseek(offset, whence)

    def poll(self) -> object:
        return self.task.poll_now(self.fd)

    def ioctl(self, command: int) -> object:
        return self.task.ioctl(self.fd, command, bytes(4))

    def fsync(self) -> None:
        self.task.fsync(self.fd)

    def ftruncate(self) -> None:
        self.task.ftruncate(self.fd, 0)


class Host:
    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR)

    def close(self) -> None:
        os.close(self.fd)

    def read(self, size: int) -> object:
        return os.read(self.fd, size)

    def pread(self, size: int, offset: int) -> object:
        return os.pread(self.fd, size, offset)

    def write(self, data: bytes) -> object:
        return os.write(self.fd, data)

    def pwrite(self, data: bytes, offset: int) -> object:
        return os.pwrite(self.fd, data, offset)

    def lseek(self, offset: int, whence: int) -> object:
        return os.lseek(self.fd, offset, whence)

    def poll(self) -> object:
        poller = select.poll()
        poller.register(self.fd, 0x7FF)
        return poller.poll(0)[0][1]

    def ioctl(self, command: int) -> object:
        return fcntl.ioctl(self.fd, command, bytes(4))

    def fsync(self) -> None:
        os.fsync(self.fd)

    def ftruncate(self) -> None:
        os.ftruncate(self.fd, 0)


STEPS: list[tuple[object, ...]] = [
    ("read", 4), ("read", 0), ("read", 200_000), ("pread", 9, 1 << 40), ("write", b"abcd"),
    ("write", b""), ("pwrite", b"x", 77), ("poll",), ("ioctl", 0x12345), ("ioctl", 0x5401),
    ("fsync",), ("ftruncate",), ("lseek", 0, os.SEEK_CUR),
    *[("lseek", 5, whence) for whence in (0, 1, 2, 3, 4, 9)], ("lseek", -5, os.SEEK_SET),
    ("lseek", 0, os.SEEK_CUR), ("read", 3),
]  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_every_step_answers_as_on_linux(task: Task, name: str) -> None:
    ours, host = Ours(task, f"/dev/{name}"), Host(f"/dev/{name}")
    answers: list[list[tuple[object, ...]]] = []
    for side in (ours, host):
        answers.append([])
        for method, *arguments in STEPS:
            try:
                answer = getattr(side, str(method))(*arguments)
            except OSError as error:
                assert error.errno is not None
                answer = errno.errorcode[error.errno]
            if "random" in name and isinstance(answer, bytes):
                answer = len(answer)
            answers[-1].append((method, *arguments, answer))
        side.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", DEVICES)
def test_nodes_have_the_numbers_and_modes_of_the_host(task: Task, name: str) -> None:
    ours, host = task.stat(f"/dev/{name}"), os.stat(f"/dev/{name}")
    assert ours.st_mode == host.st_mode
    assert ours.st_rdev == host.st_rdev


@pytest.mark.parametrize("name", ["zero", "urandom"])
def test_a_read_fills_every_buffer_of_a_vector(task: Task, name: str) -> None:
    fd = task.open(f"/dev/{name}", os.O_RDONLY)
    buffers = [bytearray(b"\xaa" * size) for size in (3, 0, 70_000)]
    assert task.readv(fd, buffers) == 70_003
    if name == "zero":
        assert not any(map(any, buffers))
    else:
        tail = buffers[2][-64:]
        assert tail != b"\xaa" * 64, "the part beyond one chunk was filled too"
        assert len(set(buffers[2])) > 200
    task.close(fd)


@pytest.mark.parametrize("name", ["random", "urandom"])
def test_two_reads_of_random_bytes_differ(task: Task, name: str) -> None:
    fd = task.open(f"/dev/{name}", os.O_RDONLY)
    assert task.read(fd, 32) != task.read(fd, 32)
    task.close(fd)


def test_the_entropy_count_is_that_of_a_seeded_pool(task: Task) -> None:
    fd = task.open("/dev/random", os.O_RDONLY)
    host = os.open("/dev/random", os.O_RDONLY)
    assert task.ioctl(fd, RNDGETENTCNT) == fcntl.ioctl(host, RNDGETENTCNT, bytes(4))
    os.close(host)
    task.close(fd)


def test_creating_and_truncating_dev_null_just_opens_it(task: Task) -> None:
    """What every ``> /dev/null`` does."""
    fd = task.open("/dev/null", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    assert task.write(fd, b"gone") == 4
    task.close(fd)
    assert task.stat("/dev/null").st_size == 0
