"""/dev/kmsg. Answers were taken from Linux 6.18 where asking it would fill its log."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from devtmpfs.kmsg import LOG_BUFFER_SIZE, RECORD_MAX, Kmsg
from vfs import abi
from vfs.device import DeviceFile
from vfs.task import Task

if TYPE_CHECKING:
    from tests.devtmpfs.conftest import Machine

NONBLOCK = os.O_NONBLOCK


def fails_with(number: int) -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(f"[Errno {number}]"))


def seek(task: Task, fd: int, offset: int, whence: int) -> int:
    file = task.files.get_file(fd)
    assert isinstance(file, DeviceFile)
    return file.llseek(offset, whence)


@pytest.fixture
def kmsg(machine: Machine) -> Kmsg:
    return machine.standard.kmsg


def test_a_record_has_priority_sequence_microseconds_and_text(machine: Machine, task: Task) -> None:
    kmsg = machine.standard.kmsg
    kmsg.log(6, b"first")
    machine.clock.advance_ns(1_234_567_890)
    kmsg.log(3, b"second")
    fd = task.open("/dev/kmsg", os.O_RDONLY | NONBLOCK)
    assert task.read(fd, 8192) == b"6,0,0,-;first\n"
    assert task.read(fd, 8192) == b"3,1,1234567,-;second\n"
    with fails_with(errno.EAGAIN):
        task.read(fd, 8192)
    task.close(fd)


@pytest.mark.parametrize(
    ("written", "priority", "text"),
    [
        (b"plain\n", 12, b"plain"),
        (b"<3>err", 11, b"err"),
        (b"<30>fac\nx\n", 30, rb"fac\x0ax"),
        (b"<0>kern0", 8, b"kern0"),
        (b"<999999>big", 575, b"big"),
        (b"<3", 12, b"<3"),
        (b"<abc>x", 12, b"<abc>x"),
        (b"", 12, b""),
        (b"\n", 12, b""),
        (b"a\0b", 12, b"a"),
        (b"tab\tbs\\ \x01 \x7f \xff uni\xc3\xa9", 12, rb"tab\x09bs\x5c \x01 \x7f \xff uni\xc3\xa9"),
        (b"x" * 1024, 12, b"x" * 1024),
        (b"<->m", 12, b"<->m"),
        (b"<3>", 11, b""),
        (b"<12345678901>q", 1077, b"q"),
        (b"a\n\n", 12, rb"a\x0a"),
        (b"<-3>neg", 12, b"<-3>neg"),
        (b"<0x1f>hex", 12, b"<0x1f>hex"),
        (b"<010>oct", 10, b"oct"),
        (b"<4294967299>w", 11, b"w"),
        (b"<3 >sp", 12, b"<3 >sp"),
        (b"<>e", 8, b"e"),
        (b"<3><4>z", 11, b"<4>z"),
        (b"  lead \n", 12, b"  lead "),
        (b"a\rb", 12, rb"a\x0db"),
    ],
)
def test_a_written_line_becomes_a_record_as_on_linux(
    task: Task, written: bytes, priority: int, text: bytes
) -> None:
    fd = task.open("/dev/kmsg", os.O_RDWR | NONBLOCK)
    assert task.write(fd, written) == len(written)
    assert task.read(fd, 8192) == b"%d,0,0,-;%b\n" % (priority, text)
    task.close(fd)


def test_a_vector_is_one_record(task: Task) -> None:
    fd = task.open("/dev/kmsg", os.O_RDWR | NONBLOCK)
    assert task.writev(fd, [b"<4>ab", b"cd"]) == 7
    assert task.read(fd, 99) == b"12,0,0,-;abcd\n"
    task.close(fd)


def test_a_line_beyond_the_record_size_is_einval(task: Task) -> None:
    fd = task.open("/dev/kmsg", os.O_WRONLY)
    with fails_with(errno.EINVAL):
        task.write(fd, b"x" * (RECORD_MAX + 1))
    task.close(fd)


def test_a_buffer_too_small_is_einval_and_loses_nothing(task: Task, kmsg: Kmsg) -> None:
    kmsg.log(6, b"text")
    record = b"6,0,0,-;text\n"
    fd = task.open("/dev/kmsg", os.O_RDONLY)
    for size in (0, len(record) - 1):
        with fails_with(errno.EINVAL):
            task.read(fd, size)
    assert task.read(fd, len(record)) == record
    task.close(fd)


def test_each_open_file_has_its_own_place_at_first_before_the_oldest(
    task: Task, kmsg: Kmsg
) -> None:
    for text in (b"a", b"b"):
        kmsg.log(6, text)
    first = task.open("/dev/kmsg", os.O_RDONLY)
    second = task.open("/dev/kmsg", os.O_RDONLY)
    assert task.read(first, 99).endswith(b"a\n")
    assert task.read(first, 99).endswith(b"b\n")
    assert task.read(second, 99).endswith(b"a\n")
    assert task.pread64(second, 99, 4711).endswith(b"b\n"), "the offset does not matter"
    task.close(first)
    task.close(second)


def test_seeking_goes_to_the_oldest_or_past_the_newest(task: Task, kmsg: Kmsg) -> None:
    kmsg.log(6, b"old")
    fd = task.open("/dev/kmsg", os.O_RDONLY | NONBLOCK)
    assert seek(task, fd, 0, os.SEEK_END) == 0
    with fails_with(errno.EAGAIN):
        task.read(fd, 99)
    for whence in (os.SEEK_SET, os.SEEK_DATA):
        assert seek(task, fd, 0, whence) == 0
        assert task.read(fd, 99).endswith(b"old\n")
    task.close(fd)


def _answer(operation: Callable[[int, int], int], offset: int, whence: int) -> object:
    try:
        return operation(offset, whence)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_seeking_answers_as_on_linux(task: Task, kmsg: Kmsg) -> None:
    try:
        host = os.open("/dev/kmsg", os.O_RDONLY)
    except OSError:
        pytest.skip("the host does not let us read its /dev/kmsg")
    fd = task.open("/dev/kmsg", os.O_RDONLY)
    for offset in (0, 5, -1):
        for whence in (0, 1, 2, 3, 4, 9):
            ours = _answer(lambda o, w: seek(task, fd, o, w), offset, whence)
            theirs = _answer(lambda o, w: os.lseek(host, o, w), offset, whence)
            assert ours == theirs, (offset, whence)
    os.close(host)
    task.close(fd)


def test_a_reader_that_was_overtaken_gets_epipe_once_and_goes_on_at_the_oldest(
    machine: Machine, task: Task
) -> None:
    kmsg = machine.standard.kmsg
    kmsg.log(6, b"lost")
    fd = task.open("/dev/kmsg", os.O_RDONLY | NONBLOCK)
    count = LOG_BUFFER_SIZE // 1000 + 2
    for index in range(count):
        kmsg.log(6, b"%04d" % index + b"x" * 996)
    assert task.poll_now(fd) == abi.POLLIN | abi.POLLRDNORM | abi.POLLERR | abi.POLLPRI
    with fails_with(errno.EPIPE):
        task.read(fd, 8192)
    sequence = int(task.read(fd, 8192).split(b",")[1])
    assert sequence == kmsg.ring.first > 0
    read = 1
    while task.poll_now(fd):
        record = task.read(fd, 8192)
        sequence += 1
        assert record.startswith(b"6,%d," % sequence)
        read += 1
    assert sequence == count
    assert LOG_BUFFER_SIZE - 2000 < read * 1015 < LOG_BUFFER_SIZE + 2000
    task.close(fd)


def test_a_blocked_reader_wakes_with_the_next_record(task: Task, kmsg: Kmsg) -> None:
    fd = task.open("/dev/kmsg", os.O_RDONLY)
    assert task.poll_now(fd) == 0
    queue = task.files.get_file(fd).poll_queue()
    assert queue is not None
    woken: list[bool] = []
    queue.add(lambda: woken.append(True))
    kmsg.log(6, b"news")
    assert woken
    assert task.poll_now(fd) == abi.POLLIN | abi.POLLRDNORM
    assert task.read(fd, 99) == b"6,0,0,-;news\n"
    task.close(fd)


def test_python_logging_arrives_with_the_levels_of_syslog(task: Task, kmsg: Kmsg) -> None:
    logger = logging.Logger("fuse")
    logger.addHandler(kmsg.handler)
    for level in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
        logger.log(level, "level %d", level)
    logger.info("two\nlines \N{SNOWMAN}")
    fd = task.open("/dev/kmsg", os.O_RDONLY | NONBLOCK)
    records = [task.read(fd, 8192) for _ in range(7)]
    task.close(fd)
    assert records == [
        b"2,0,0,-;fuse: level 50\n",
        b"3,1,0,-;fuse: level 40\n",
        b"4,2,0,-;fuse: level 30\n",
        b"6,3,0,-;fuse: level 20\n",
        b"7,4,0,-;fuse: level 10\n",
        b"6,5,0,-;fuse: two\n",
        rb"6,6,0,-;lines \xe2\x98\x83" + b"\n",
    ]


def test_the_node_is_readable_by_all_and_writable_by_root(task: Task) -> None:
    assert task.stat("/dev/kmsg").st_mode == os.stat("/dev/kmsg").st_mode
    assert task.stat("/dev/kmsg").st_rdev == os.makedev(1, 11)
