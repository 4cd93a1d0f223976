"""Guest memory: mapping of regions and translation of addresses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from harness.virtio.memory import BadAddress, BadRegion, GuestMemory, MemoryRegion

PAGE = os.sysconf("SC_PAGESIZE")
USER = 0x7000_0000_0000


@pytest.fixture
def ram() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 8 * PAGE)
    for page in range(8):
        os.pwrite(fd, bytes([page]) * PAGE, page * PAGE)
    yield fd
    os.close(fd)


def two_regions(ram: int) -> GuestMemory:
    """Pages 0-1 of the file at guest page 16, pages 4-5 behind them at 18."""
    memory = GuestMemory()
    memory.add(MemoryRegion(ram, 16 * PAGE, 2 * PAGE, USER, 0))
    memory.add(MemoryRegion(ram, 18 * PAGE, 2 * PAGE, USER + 64 * PAGE, 4 * PAGE))
    return memory


def segments(memory: GuestMemory, address: int, length: int) -> list[bytes]:
    found: list[memoryview] = []
    memory.segments(address, length, found)
    return [bytes(view) for view in found]


def test_range_inside_a_region_is_one_segment_of_the_right_bytes(ram: int) -> None:
    assert segments(two_regions(ram), 19 * PAGE, 3) == [b"\5\5\5"]


def test_range_spanning_regions_is_split_where_they_meet(ram: int) -> None:
    assert segments(two_regions(ram), 18 * PAGE - 2, 5) == [b"\1\1", b"\4\4\4"]


def test_writes_through_a_segment_reach_the_file(ram: int) -> None:
    found: list[memoryview] = []
    two_regions(ram).segments(18 * PAGE + 7, 2, found)
    found[0][:] = b"hi"
    assert os.pread(ram, 2, 4 * PAGE + 7) == b"hi"


def test_empty_range_has_no_segments_wherever_it_is(ram: int) -> None:
    assert segments(two_regions(ram), 1 << 63, 0) == []


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0, 1),
        (16 * PAGE - 1, 2),
        (20 * PAGE - 1, 2),
        (20 * PAGE, 1),
        ((1 << 64) - 1, 0xFFFFFFFF),
        (16 * PAGE, 0xFFFFFFFF),
    ],
)
def test_range_outside_memory_is_a_bad_address(ram: int, address: int, length: int) -> None:
    with pytest.raises(BadAddress):
        segments(two_regions(ram), address, length)


def test_user_addresses_are_translated_within_one_region_only(ram: int) -> None:
    memory = two_regions(ram)
    assert bytes(memory.user_view(USER + PAGE, 2)) == b"\1\1"
    assert bytes(memory.user_view(USER + 64 * PAGE, 1)) == b"\4"
    for address, length in ((USER - 1, 2), (USER + 2 * PAGE - 1, 2), (USER + 2 * PAGE, 1)):
        with pytest.raises(BadAddress):
            memory.user_view(address, length)


@pytest.mark.parametrize("misaligned", range(4))
def test_region_that_is_not_made_of_pages_is_refused(ram: int, misaligned: int) -> None:
    values = [PAGE, PAGE, USER, PAGE]
    MemoryRegion(ram, *values).close()
    values[misaligned] += 512
    with pytest.raises(BadRegion):
        MemoryRegion(ram, *values)


@pytest.mark.parametrize(
    ("guest", "size", "user", "offset"),
    [
        (0, 0, 0, 0),
        (0, 9 * PAGE, USER, 0),
        (0, PAGE, USER, 8 * PAGE),
        (0, PAGE, USER, (1 << 64) - PAGE),
        ((1 << 64) - PAGE, 2 * PAGE, USER, 0),
        (0, 2 * PAGE, (1 << 64) - PAGE, 0),
        (0, 1 << 63, USER, 0),
    ],
)
def test_region_beyond_its_file_or_address_space_is_refused(
    ram: int, guest: int, size: int, user: int, offset: int
) -> None:
    with pytest.raises(BadRegion):
        MemoryRegion(ram, guest, size, user, offset)


def test_region_of_something_that_is_no_file_is_refused() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(BadRegion):
            MemoryRegion(reader, 0, PAGE, USER, 0)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("guest", "user"), [(17 * PAGE, USER + 256 * PAGE), (64 * PAGE, USER + PAGE)]
)
def test_overlapping_region_is_refused_and_changes_nothing(ram: int, guest: int, user: int) -> None:
    memory = two_regions(ram)
    with pytest.raises(BadRegion):
        memory.add(MemoryRegion(ram, guest, 2 * PAGE, user, 0))
    assert len(memory.regions) == 2
    assert segments(memory, 18 * PAGE, 1) == [b"\4"]


def test_removed_region_is_gone_and_the_other_stays(ram: int) -> None:
    memory = two_regions(ram)
    with pytest.raises(BadRegion):
        memory.remove(16 * PAGE, PAGE, USER)
    memory.remove(16 * PAGE, 2 * PAGE, USER)
    with pytest.raises(BadAddress):
        segments(memory, 17 * PAGE, 1)
    assert segments(memory, 18 * PAGE, 1) == [b"\4"]


def test_segments_in_use_outlive_their_region(ram: int) -> None:
    memory = two_regions(ram)
    held: list[memoryview] = []
    memory.segments(16 * PAGE, 4, held)
    memory.clear()
    held[0][:] = b"late"
    assert os.pread(ram, 4, 0) == b"late"


def test_mappings_and_descriptors_are_released_when_unused(ram: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        two_regions(ram).clear()
    assert len(os.listdir("/proc/self/fd")) == before
