"""Chains of many pages: what they cover is what their descriptors say, however they are joined."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtio.chain import DESCRIPTOR, INDIRECT, NEXT, WRITE, BadChain, DescriptorTable
from harness.virtio.driver import GUEST_BASE, DriverMemory
from harness.virtio.memory import BadAddress, GuestMemory, MemoryRegion

PAGE = 4096
PAGES = 32
TABLE = GUEST_BASE + PAGES * PAGE
SIZE = 64

# A buffer: page number and offset in it, bytes. Mostly whole pages, as of a page cache.
BUFFERS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, PAGES - 1), st.just(0), st.just(PAGE)),
        st.tuples(st.integers(0, PAGES - 2), st.integers(0, 100), st.integers(0, PAGE)),
    ),
    max_size=30,
)


class Chains:
    """Indirect tables in memory of four regions, whose every 8 bytes are different."""

    def __init__(self) -> None:
        self.memory = DriverMemory(4 * 16 * PAGE, 4)
        self.guest = GuestMemory()
        for guest, size, user, offset in self.memory.regions():
            self.guest.add(MemoryRegion(self.memory.fd, guest, size, user, offset))
        for at in range(0, PAGES * PAGE, 8):
            self.memory.view[at : at + 8] = at.to_bytes(8, "little")
        self.ring = memoryview(bytearray(16 * SIZE))
        self.table = DescriptorTable(self.guest, self.ring, SIZE, indirect=True)

    def walk(self, descriptors: list[tuple[int, int, int, int]]) -> tuple[bytes, bytes]:
        view = self.memory.at(TABLE, 16 * len(descriptors))
        for index, descriptor in enumerate(descriptors):
            DESCRIPTOR.pack_into(view, 16 * index, *descriptor)
        DESCRIPTOR.pack_into(self.ring, 0, TABLE, 16 * len(descriptors), INDIRECT, 0)
        request, reply = self.table.walk(0)
        return b"".join(request), b"".join(reply)

    def bytes_of(self, buffers: list[tuple[int, int, int]]) -> bytes:
        pieces = (self.memory.view[p * PAGE + o : p * PAGE + o + n] for p, o, n in buffers)
        return b"".join(pieces)


@pytest.fixture(scope="module")
def chains() -> Iterator[Chains]:
    chains = Chains()
    yield chains
    chains.guest.clear()
    chains.memory.close()


def descriptors_of(
    readable: list[tuple[int, int, int]], writable: list[tuple[int, int, int]]
) -> list[tuple[int, int, int, int]]:
    buffers = [*readable, *writable]
    return [
        (
            GUEST_BASE + page * PAGE + offset,
            length,
            (WRITE if index >= len(readable) else 0) | (NEXT if index + 1 < len(buffers) else 0),
            index + 1,
        )
        for index, (page, offset, length) in enumerate(buffers)
    ]


@settings(max_examples=300, deadline=None)
@given(readable=BUFFERS, writable=BUFFERS)
def test_a_chain_of_pages_covers_what_its_descriptors_say(
    chains: Chains, readable: list[tuple[int, int, int]], writable: list[tuple[int, int, int]]
) -> None:
    if not readable and not writable:
        return
    expected = chains.bytes_of(readable), chains.bytes_of(writable)
    descriptors = descriptors_of(readable, writable)
    for _ in range(2):  # the second time the shape is known
        assert chains.walk(descriptors) == expected


def test_neighbouring_pages_arrive_as_one_segment(chains: Chains) -> None:
    descriptors = descriptors_of([(0, 0, 40)], [(page, 0, PAGE) for page in range(4, 12)])
    chains.walk(descriptors)
    request, reply = chains.table.walk(0)
    assert [len(piece) for piece in request] == [40]
    assert [len(piece) for piece in reply] == [8 * PAGE]


@pytest.mark.parametrize("flags", [NEXT, NEXT | WRITE])
def test_a_page_outside_of_memory_breaks_a_chain_whose_shape_is_known(
    chains: Chains, flags: int
) -> None:
    good = [(GUEST_BASE + page * PAGE, PAGE, flags, page + 1) for page in range(8)]
    last = (GUEST_BASE, PAGE, flags & WRITE, 0)
    chains.walk([*good, last])
    bad = [*good[:4], (GUEST_BASE + (1 << 40), PAGE, flags, 5), *good[5:], last]
    with pytest.raises(BadAddress):
        chains.walk(bad)


def test_a_readable_page_after_a_writable_one_is_refused(chains: Chains) -> None:
    descriptors = descriptors_of([], [(page, 0, PAGE) for page in range(10)])
    address, length, _, following = descriptors[5]
    descriptors[5] = (address, length, NEXT, following)
    with pytest.raises(BadChain):
        chains.walk(descriptors)
