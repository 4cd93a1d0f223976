"""A file's bytes, against a plain ``bytearray`` and against a file on the kernel's tmpfs."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tmpfs_kernel import KernelTmpfs, fallocate

from fsimpl.tmpfs.limits import Limit
from fsimpl.tmpfs.ranges import PageRanges
from fsimpl.tmpfs.store import PAGE_SIZE, WINDOW_PAGES, WINDOW_SIZE, PageStore
from vfs.errors import InvariantViolation

KEEP_SIZE, PUNCH_HOLE = 1, 2
TIB = 1 << 40


@pytest.fixture
def store() -> Iterator[PageStore]:
    store = PageStore(Limit())
    yield store
    store.check()
    store.free()
    assert store.limit.used == 0


def write(store: PageStore, offset: int, data: bytes) -> int:
    return store.write(memoryview(data), offset)


def read(store: PageStore, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(b"\xee" * length))
    store.read(buffer, offset)
    return bytes(buffer)


def test_write_at_a_tebibyte_costs_one_page(store: PageStore) -> None:
    assert write(store, TIB, b"x") == 1
    assert store.pages == 1
    assert read(store, TIB - 1, 3) == b"\0x\0"
    assert (store.seek_data(0), store.seek_hole(TIB)) == (TIB, TIB + PAGE_SIZE)


def test_appends_of_any_size_read_back_across_windows(store: PageStore) -> None:
    pattern = bytes(range(251)) * 40
    whole = b"".join(pattern for _ in range(60))
    for offset in range(0, len(whole), len(pattern)):
        write(store, offset, whole[offset : offset + len(pattern)])
    assert len(whole) > 2 * WINDOW_SIZE
    assert read(store, 0, len(whole)) == whole
    assert store.pages == -(-len(whole) // PAGE_SIZE)


def test_window_written_backwards_reads_back_and_is_one_piece(store: PageStore) -> None:
    for page in reversed(range(WINDOW_PAGES)):
        write(store, page * PAGE_SIZE, bytes([page]) * PAGE_SIZE)
    expected = b"".join(bytes([page]) * PAGE_SIZE for page in range(WINDOW_PAGES))
    assert read(store, 0, WINDOW_SIZE) == expected
    assert store.pages == WINDOW_PAGES
    assert (store.seek_data(0), store.seek_hole(0)) == (0, WINDOW_SIZE)


def test_hole_punched_in_a_full_window_frees_whole_pages_and_zeroes_the_rest(
    store: PageStore,
) -> None:
    write(store, 0, b"a" * WINDOW_SIZE)
    store.punch(PAGE_SIZE - 10, 2 * PAGE_SIZE)
    assert store.pages == WINDOW_PAGES - 1
    after = read(store, 0, 4 * PAGE_SIZE)
    end = 3 * PAGE_SIZE - 10
    assert after == b"a" * (PAGE_SIZE - 10) + bytes(2 * PAGE_SIZE) + b"a" * (4 * PAGE_SIZE - end)
    assert (store.seek_hole(0), store.seek_data(PAGE_SIZE)) == (PAGE_SIZE, 2 * PAGE_SIZE)


def test_punch_within_one_page_zeroes_only_its_range(store: PageStore) -> None:
    write(store, 0, b"a" * PAGE_SIZE)
    store.punch(100, 50)
    assert read(store, 0, PAGE_SIZE) == b"a" * 100 + bytes(50) + b"a" * (PAGE_SIZE - 150)
    assert store.pages == 1


def test_bytes_cut_off_by_truncation_do_not_come_back(store: PageStore) -> None:
    write(store, 0, b"a" * 10_000)
    store.truncate(5000)
    assert store.pages == 2
    write(store, 12_000, b"b")
    assert read(store, 0, 12_001) == b"a" * 5000 + bytes(7000) + b"b"


def test_write_stops_at_the_limit_on_a_page_boundary_and_loses_nothing() -> None:
    store = PageStore(Limit(10))
    assert write(store, 100, b"x" * 100_000) == 10 * PAGE_SIZE - 100
    assert write(store, 10 * PAGE_SIZE, b"y") == 0
    assert write(store, 10 * PAGE_SIZE - 5, b"y" * 10) == 5
    assert read(store, 0, 10 * PAGE_SIZE) == bytes(100) + b"x" * (10 * PAGE_SIZE - 105) + b"yyyyy"
    store.check()


def test_write_at_the_limit_uses_the_pages_that_were_promised() -> None:
    store = PageStore(Limit(10))
    store.allocate(5 * PAGE_SIZE, 8 * PAGE_SIZE)
    assert write(store, 0, b"q" * 12 * PAGE_SIZE) == 2 * PAGE_SIZE
    assert write(store, 5 * PAGE_SIZE, b"r" * 12 * PAGE_SIZE) == 8 * PAGE_SIZE
    store.check()


def test_allocation_beyond_the_limit_changes_no_page_count() -> None:
    store = PageStore(Limit(10))
    store.allocate(0, 8 * PAGE_SIZE)
    with pytest.raises(OSError) as failure:
        store.allocate(6 * PAGE_SIZE, 8 * PAGE_SIZE)
    assert failure.value.errno == errno.ENOSPC
    assert store.pages == store.limit.used == 8


def test_promised_pages_cost_no_memory_and_are_holes_until_written(store: PageStore) -> None:
    store.allocate(0, TIB)
    assert store.pages == TIB // PAGE_SIZE
    assert (store.seek_data(0), store.seek_hole(0)) == (None, 0)
    write(store, TIB // 2, b"x")
    assert store.pages == TIB // PAGE_SIZE
    assert store.seek_data(0) == TIB // 2
    store.truncate(0)
    assert store.pages == 0


def test_page_promised_twice_is_data_even_if_the_second_time_fails_further_on() -> None:
    store = PageStore(Limit(10))
    store.allocate(0, 2 * PAGE_SIZE)
    store.allocate(8 * PAGE_SIZE, 2 * PAGE_SIZE)
    write(store, 20 * PAGE_SIZE, b"z" * 3 * PAGE_SIZE)
    with pytest.raises(OSError):
        store.allocate(0, 10 * PAGE_SIZE)
    assert (store.seek_data(0), store.seek_hole(0)) == (0, 2 * PAGE_SIZE)
    assert store.seek_data(2 * PAGE_SIZE) == 20 * PAGE_SIZE
    store.check()


def test_check_notices_a_page_that_was_not_charged(store: PageStore) -> None:
    write(store, 0, b"x")
    store.pages += 1
    with pytest.raises(InvariantViolation):
        store.check()
    store.pages -= 1


PAGES = st.integers(0, 40)


class RangesMachine(RuleBasedStateMachine):
    """``PageRanges`` against a ``set`` of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = PageRanges()
        self.model: set[int] = set()

    @rule(first=PAGES, count=st.integers(1, 12))
    def add(self, first: int, count: int) -> None:
        self.ranges.add(first, first + count)
        self.model.update(range(first, first + count))

    @rule(first=PAGES, count=st.integers(1, 12))
    def remove(self, first: int, count: int) -> None:
        gone = self.model & set(range(first, first + count))
        assert self.ranges.remove(first, first + count) == len(gone)
        self.model -= gone

    @rule(first=PAGES, count=st.integers(1, 12))
    def count(self, first: int, count: int) -> None:
        wanted = self.model & set(range(first, first + count))
        assert self.ranges.count(first, first + count) == len(wanted)

    @invariant()
    def holds_the_same_pages_in_maximal_ranges(self) -> None:
        runs = list(self.ranges)
        assert {page for first, end in runs for page in range(first, end)} == self.model
        assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


class StoreMachine(RuleBasedStateMachine):
    """``PageStore`` against a ``bytearray``, and against a file of the kernel's.

    The page limit is small, so that writes come up short. Offsets crowd around page and window
    boundaries.
    """

    LIMIT = 150
    OFFSETS = st.builds(
        lambda page, delta: max(0, page * PAGE_SIZE + delta),
        st.integers(0, 2 * WINDOW_PAGES + 3) | st.integers(0, 6),
        st.sampled_from([0, 0, 0, -1, 1, 100, 2000]),
    )
    LENGTHS = st.sampled_from([1, 100, 4096, 4096, 4097, 8192, 12000, 70_000, WINDOW_SIZE + 5000])

    def __init__(self) -> None:
        super().__init__()
        self.store = PageStore(Limit(self.LIMIT))
        self.size = 0
        self.model = bytearray()
        self.count = 0
        self.kernel: KernelTmpfs | None = None

    @initialize()
    def open_kernel_file(self) -> None:
        try:
            self.kernel = KernelTmpfs(nr_blocks=str(self.LIMIT))
        except PermissionError:
            return
        self.fd = self.kernel.open("f", os.O_RDWR | os.O_CREAT)

    def teardown(self) -> None:
        if self.kernel is not None:
            os.close(self.fd)
            self.kernel.close()

    @rule(offset=OFFSETS, length=LENGTHS)
    def write(self, offset: int, length: int) -> None:
        self.count += 1
        data = bytes([self.count % 255 + 1]) * length
        stored = write(self.store, offset, data)
        if self.kernel is not None:
            try:
                expected = os.pwrite(self.fd, data, offset)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                expected = 0
            assert stored == expected
        if stored:
            self.size = max(self.size, offset + stored)
            self.model.extend(bytes(self.size - len(self.model)))
            self.model[offset : offset + stored] = data[:stored]

    @rule(size=OFFSETS)
    def truncate(self, size: int) -> None:
        if size <= self.size:
            self.store.truncate(size)
        self.size = size
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        if self.kernel is not None:
            os.ftruncate(self.fd, size)

    @rule(offset=OFFSETS, length=LENGTHS)
    def punch(self, offset: int, length: int) -> None:
        self.store.punch(offset, length)
        end = min(offset + length, self.size)
        if end > offset:
            self.model[offset:end] = bytes(end - offset)
        if self.kernel is not None:
            fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, offset, length)

    @rule(offset=OFFSETS, length=LENGTHS, keep_size=st.booleans())
    def allocate(self, offset: int, length: int, keep_size: bool) -> None:
        failed = expected = 0
        try:
            self.store.allocate(offset, length)
        except OSError as error:
            failed = error.errno or -1
        if self.kernel is not None:
            try:
                fallocate(self.fd, KEEP_SIZE if keep_size else 0, offset, length)
            except OSError as error:
                expected = error.errno or -1
            assert failed == expected
        if not failed and not keep_size and offset + length > self.size:
            self.size = offset + length
            self.model.extend(bytes(self.size - len(self.model)))

    @rule(offset=OFFSETS, length=LENGTHS)
    def read(self, offset: int, length: int) -> None:
        length = min(length, max(self.size - offset, 0))
        assert read(self.store, offset, length) == self.model[offset : offset + length]

    @precondition(lambda self: self.kernel is not None and self.size)
    @rule(data=st.data())
    def seek(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, self.size - 1))
        hole = min(self.store.seek_hole(offset), self.size)
        assert hole == os.lseek(self.fd, offset, os.SEEK_HOLE)

    @precondition(lambda self: self.kernel is not None)
    @invariant()
    def looks_like_the_kernel_file(self) -> None:
        status = os.fstat(self.fd)
        assert (status.st_size, status.st_blocks) == (self.size, self.store.pages * 8)
        offset = 0
        while offset < self.size:
            data = self.store.seek_data(offset)
            if data is not None and data >= self.size:
                data = None
            try:
                expected: int | None = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                expected = None
            assert data == expected
            if data is None:
                break
            offset = min(self.store.seek_hole(data), self.size)
            assert offset == os.lseek(self.fd, data, os.SEEK_HOLE)

    @invariant()
    def accounts_agree(self) -> None:
        self.store.check()
        assert self.store.limit.used == self.store.pages


TestRanges = RangesMachine.TestCase
TestRanges.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
