"""The dirty log: the right bits, nobody else's lost, nothing beyond its end."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtio import dirty_log
from harness.virtio.dirty_log import BadLog, DirtyLog

PAGES = 400
SIZE = PAGES // 8


@pytest.fixture
def log_fd() -> Iterator[int]:
    fd = os.memfd_create("log")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def bits(fd: int) -> set[int]:
    return {
        8 * number + bit
        for number, byte in enumerate(os.pread(fd, SIZE, 0))
        for bit in range(8)
        if byte >> bit & 1
    }


def pages_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {page for at, n in ranges for page in range(at // 4096, (at + n - 1) // 4096 + 1)}


RANGES = st.lists(
    st.integers(0, PAGES * 4096 - 1).flatmap(
        lambda at: st.tuples(
            st.just(at),
            st.integers(1, PAGES * 4096 - at) | st.just(1) | st.just(min(8, PAGES * 4096 - at)),
        )
    ),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(ranges=RANGES, before=st.sets(st.integers(0, PAGES - 1)))
def test_exactly_the_pages_touched_are_added(
    ranges: list[tuple[int, int]], before: set[int]
) -> None:
    fd = os.memfd_create("log")
    try:
        os.ftruncate(fd, SIZE)
        log = DirtyLog(fd, SIZE, 0)
        log.mark([(page * 4096, 1) for page in before])
        assert bits(fd) == before
        log.mark(ranges)
        assert bits(fd) == before | pages_of(ranges)
        log.close()
    finally:
        os.close(fd)


def test_bits_set_by_two_processes_at_once_are_all_there(log_fd: int) -> None:
    """Both set bits of the same words; a load and a store would lose most of the races."""
    rounds, mapping = 3000, mmap.mmap(log_fd, SIZE)
    ready, steady = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        log = DirtyLog(log_fd, SIZE, 0)
        for number in range(rounds):
            os.read(ready[0], 1)
            log.mark([(page * 4096, 1) for page in range(1, 32, 2)])
            os.write(steady[1], b".")
            if number == rounds - 1:
                os._exit(0)
    log = DirtyLog(log_fd, SIZE, 0)
    lost = 0
    for _ in range(rounds):
        mapping[:4] = bytes(4)
        os.write(ready[1], b".")
        log.mark([(page * 4096, 1) for page in range(0, 32, 2)])
        os.read(steady[0], 1)
        lost += mapping[:4] != b"\xff" * 4
    os.waitpid(child, 0)
    for fd in (*ready, *steady):
        os.close(fd)
    log.close()
    mapping.close()
    assert not lost


def test_without_the_system_call_neighbours_are_marked_too_and_nothing_is_lost(
    log_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dirty_log, "_SYS_FUTEX", -1)
    log = DirtyLog(log_fd, SIZE, 0)
    log.mark([(9 * 4096, 1), (30 * 4096, 3 * 4096)])
    assert bits(log_fd) == {*range(8, 16), *range(24, 40)}
    log.close()


def test_range_beyond_the_log_is_refused(log_fd: int) -> None:
    log = DirtyLog(log_fd, SIZE, 0)
    log.mark([(PAGES * 4096 - 1, 1)])
    for address, length in ((PAGES * 4096 - 1, 2), (PAGES * 4096, 1), (1 << 63, 1)):
        with pytest.raises(BadLog):
            log.mark([(address, length)])
    assert bits(log_fd) == {PAGES - 1}
    log.close()


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (SIZE + 1, 0), (SIZE, 4096), (SIZE, 1)])
def test_log_that_its_file_does_not_hold_is_refused(log_fd: int, size: int, offset: int) -> None:
    with pytest.raises(BadLog):
        DirtyLog(log_fd, size, offset)


def test_log_in_something_that_is_no_file_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(BadLog):
        DirtyLog(reader, SIZE, 0)
    os.close(reader)
    os.close(writer)


def test_news_are_told_and_repetitions_are_not(log_fd: int) -> None:
    log = DirtyLog(log_fd, SIZE, 0)
    log.call = os.eventfd(0, os.EFD_NONBLOCK)
    log.mark([(0, 1)])
    assert os.eventfd_read(log.call) == 1
    log.mark([(0, 4096)])
    with pytest.raises(BlockingIOError):
        os.eventfd_read(log.call)
    os.close(log.call)
    log.close()
