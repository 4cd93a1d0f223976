"""The split ring: device half against driver half, chains good and bad."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtio.chain import INDIRECT, NEXT, WRITE, BadChain
from harness.virtio.driver import GUEST_BASE, DriverMemory, DriverQueue
from harness.virtio.memory import BadAddress, GuestError, GuestMemory, MemoryRegion
from harness.virtio.queue import BadRing, SplitQueue

SIZE = 8


class Ring:
    """Both ends of one ring over one memory."""

    def __init__(self, *, indirect: bool = True, event_idx: bool = True, regions: int = 1) -> None:
        self.memory = DriverMemory(1 << 20, regions)
        self.guest = GuestMemory()
        for guest, size, user, offset in self.memory.regions():
            self.guest.add(MemoryRegion(self.memory.fd, guest, size, user, offset))
        self.driver = DriverQueue(
            self.memory, SIZE, indirect=indirect, event_idx=event_idx, chain_limit=4
        )
        self.device = self.device_at(0)

    def device_at(self, base: int) -> SplitQueue:
        user = self.memory.user_address
        rings = (self.driver.descriptors, self.driver.avail_ring, self.driver.used_ring)
        return SplitQueue(
            self.guest,
            SIZE,
            (user(rings[0]), user(rings[1]), user(rings[2])),
            base,
            indirect=self.driver.indirect,
            event_idx=self.driver.event_idx,
        )

    def offer(self, head: int) -> None:
        self.driver.offer(head)
        self.driver.publish()

    def kicked(self) -> bool:
        try:
            return os.eventfd_read(self.driver.kick) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.driver.close()
        self.memory.close()


@pytest.fixture
def make_ring() -> Iterator[Callable[..., Ring]]:
    rings: list[Ring] = []

    def make(**options: bool | int) -> Ring:
        rings.append(Ring(**options))  # type: ignore[arg-type]
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


@pytest.mark.parametrize("indirect", [False, True])
def test_chain_arrives_with_its_segments_in_order(
    make_ring: Callable[..., Ring], indirect: bool
) -> None:
    ring = make_ring(indirect=indirect)
    data = ring.memory.allocate(64)
    ring.memory.at(data, 6)[:] = b"abcdef"
    ring.offer(ring.driver.lay_out(1, [(data, 2), (data + 2, 4)], [(data + 8, 8), (data + 16, 1)]))
    assert ring.device.pending() == 1
    head, request, reply = ring.device.pop()
    assert [bytes(view) for view in request] == [b"ab", b"cdef"]
    assert [len(view) for view in reply] == [8, 1]
    reply[0][:] = b"answered"
    ring.device.push(head, 8)
    assert ring.driver.reap() == (head, 8)
    assert bytes(ring.memory.at(data + 8, 8)) == b"answered"


@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap_at_65536_without_losing_a_chain(
    make_ring: Callable[..., Ring], event_idx: bool
) -> None:
    ring = make_ring(event_idx=event_idx)
    data = ring.memory.allocate(64)
    heads = [ring.driver.lay_out(slot, [(data + slot, 1)], []) for slot in range(SIZE)]
    for start in range(0, 70_000, SIZE):
        for head in heads:
            ring.driver.offer(head)
        ring.driver.publish()
        assert ring.device.pending() == SIZE
        for number in range(SIZE):
            head, _, _ = ring.device.pop()
            ring.device.push(head, start + number)
        assert [ring.driver.reap() for _ in heads] == [
            (head, start + number) for number, head in enumerate(heads)
        ]
        assert not ring.driver.has_used()


def test_chains_may_be_returned_in_another_order(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    data = ring.memory.allocate(64)
    for slot in range(3):
        ring.offer(ring.driver.lay_out(slot, [(data, 1)], []))
    heads = [ring.device.pop()[0] for _ in range(3)]
    for head in reversed(heads):
        ring.device.push(head, head)
    assert [ring.driver.reap()[0] for _ in heads] == heads[::-1]


def test_segment_spanning_regions_is_split(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring(regions=2)
    border = GUEST_BASE + (1 << 19)
    ring.memory.at(border - 2, 4)[:] = b"wxyz"
    ring.offer(ring.driver.lay_out(0, [(border - 2, 4)], []))
    assert [bytes(view) for view in ring.device.pop()[1]] == [b"wx", b"yz"]


def test_indirect_table_spanning_regions_is_read_whole(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring(regions=2)
    border = GUEST_BASE + (1 << 19)
    table = ring.memory.at(border - 24, 48)
    ring.memory.at(border + 64, 2)[:] = b"ok"
    for number, flags in enumerate((NEXT, NEXT, WRITE)):
        table[16 * number : 16 * number + 16] = (
            (border + 64 + number).to_bytes(8, "little")
            + (1).to_bytes(4, "little")
            + flags.to_bytes(2, "little")
            + (number + 1).to_bytes(2, "little")
        )
    ring.driver.write_descriptor(0, border - 24, 48, INDIRECT, 0)
    ring.offer(0)
    _, request, reply = ring.device.pop()
    assert b"".join(request) == b"ok"
    assert [len(view) for view in reply] == [1]


def test_indirect_table_in_another_order_is_followed_by_its_links(
    make_ring: Callable[..., Ring],
) -> None:
    ring = make_ring()
    data = ring.memory.allocate(64)
    ring.memory.at(data, 3)[:] = b"abc"
    ring.driver.lay_out(0, [(data, 1), (data + 1, 1), (data + 2, 1)], [])
    table = ring.driver._tables
    view = ring.memory.at(table, 48)
    first, second, third = bytes(view[:14]), bytes(view[16:30]), bytes(view[32:46])
    view[:] = first + b"\2\0" + third + b"\0\0" + second + b"\1\0"
    ring.offer(0)
    assert b"".join(ring.device.pop()[1]) == b"abc"


def test_same_buffers_again_with_another_length_are_not_mistaken(
    make_ring: Callable[..., Ring],
) -> None:
    ring = make_ring()
    data = ring.memory.allocate(64)
    for length in (4, 5, 4):
        ring.offer(ring.driver.lay_out(0, [(data, length)], [(data + 8, length)]))
        head, request, reply = ring.device.pop()
        assert (len(request[0]), len(reply[0])) == (length, length)
        ring.device.push(head, 0)


def test_descriptors_of_length_zero_add_nothing(make_ring: Callable[..., Ring]) -> None:
    for indirect in (False, True):
        ring = make_ring(indirect=indirect)
        data = ring.memory.allocate(64)
        ring.offer(ring.driver.lay_out(0, [(data, 0), (data, 3)], [(0, 0), (data, 2)]))
        _, request, reply = ring.device.pop()
        assert [len(view) for view in (*request, *reply)] == [3, 2]


def test_looping_chain_is_refused(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    ring.driver.write_descriptor(0, GUEST_BASE, 1, NEXT, 1)
    ring.driver.write_descriptor(1, GUEST_BASE, 1, NEXT, 0)
    ring.offer(0)
    with pytest.raises(BadChain, match="loop"):
        ring.device.pop()


def test_looping_indirect_table_is_refused(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    table = ring.memory.allocate(32)
    for number in (0, 1):
        ring.memory.at(table + 16 * number, 16)[:] = (
            GUEST_BASE.to_bytes(8, "little") + b"\1\0\0\0" + b"\1\0" + b"\0\0"
        )
    ring.driver.write_descriptor(0, table, 32, INDIRECT, 0)
    ring.offer(0)
    with pytest.raises(BadChain, match="loop"):
        ring.device.pop()


@pytest.mark.parametrize(
    ("flags", "length", "problem"),
    [
        (INDIRECT | NEXT, 16, BadChain),
        (INDIRECT, 0, BadChain),
        (INDIRECT, 17, BadChain),
        (INDIRECT, 16 * (SIZE + 1), BadChain),
        (INDIRECT, 0xFFFFFFF0, BadChain),
        (NEXT, 16, BadChain),
    ],
)
def test_malformed_descriptor_is_refused(
    make_ring: Callable[..., Ring], flags: int, length: int, problem: type[GuestError]
) -> None:
    ring = make_ring()
    ring.driver.write_descriptor(0, GUEST_BASE, length, flags, SIZE)
    ring.offer(0)
    with pytest.raises(problem):
        ring.device.pop()


def test_indirect_inside_indirect_is_refused(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    inner = ring.memory.allocate(16)
    ring.memory.at(inner, 16)[:] = (
        GUEST_BASE.to_bytes(8, "little") + (16).to_bytes(4, "little") + b"\4\0\0\0"
    )
    ring.driver.write_descriptor(0, inner, 16, INDIRECT, 0)
    ring.offer(0)
    with pytest.raises(BadChain):
        ring.device.pop()


def test_indirect_is_refused_when_not_negotiated(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring(indirect=False)
    ring.driver.write_descriptor(0, ring.memory.allocate(16), 16, INDIRECT, 0)
    ring.offer(0)
    with pytest.raises(BadChain):
        ring.device.pop()


def test_readable_after_writable_is_refused(make_ring: Callable[..., Ring]) -> None:
    for indirect in (False, True):
        ring = make_ring(indirect=indirect)
        data = ring.memory.allocate(64)
        head = ring.driver.lay_out(0, [(data, 1)], [(data, 1)])
        table = ring.driver.table if not indirect else ring.memory.at(ring.driver._tables, 32)
        first, second = bytes(table[12:14]), bytes(table[28:30])
        table[12:14] = (int.from_bytes(first, "little") | WRITE).to_bytes(2, "little")
        table[28:30] = (int.from_bytes(second, "little") & ~WRITE).to_bytes(2, "little")
        ring.offer(head)
        with pytest.raises(BadChain):
            ring.device.pop()


def test_buffer_outside_memory_is_a_bad_address(make_ring: Callable[..., Ring]) -> None:
    for indirect in (False, True):
        ring = make_ring(indirect=indirect)
        ring.offer(ring.driver.lay_out(0, [(GUEST_BASE + (1 << 20) - 1, 2)], []))
        with pytest.raises(BadAddress):
            ring.device.pop()


def test_head_outside_the_table_is_refused(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    ring.offer(SIZE)
    with pytest.raises(BadChain):
        ring.device.pop()


def test_avail_index_beyond_the_queue_is_a_bad_ring(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    ring.driver.avail[1] = SIZE + 1
    with pytest.raises(BadRing):
        ring.device.pending()


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_queue_size_must_be_a_power_of_two_up_to_32768(
    make_ring: Callable[..., Ring], size: int
) -> None:
    ring = make_ring()
    address = ring.memory.user_address(GUEST_BASE)
    with pytest.raises(BadRing):
        SplitQueue(ring.guest, size, (address,) * 3, 0, indirect=True, event_idx=True)


@pytest.mark.parametrize("misplaced", [(8, 0, 0), (0, 1, 0), (0, 0, 2), (1 << 20, 0, 0)])
def test_misaligned_or_absent_rings_are_refused(
    make_ring: Callable[..., Ring], misplaced: tuple[int, int, int]
) -> None:
    ring = make_ring()
    base = ring.memory.user_address(GUEST_BASE)
    addresses = (base + misplaced[0], base + misplaced[1], base + misplaced[2])
    with pytest.raises(GuestError):
        SplitQueue(ring.guest, SIZE, addresses, 0, indirect=True, event_idx=True)


def test_resumed_queue_continues_at_its_base(make_ring: Callable[..., Ring]) -> None:
    ring = make_ring()
    data = ring.memory.allocate(64)
    for slot in range(3):
        ring.offer(ring.driver.lay_out(slot, [(data, slot + 1)], []))
    head, _, _ = ring.device.pop()
    ring.device.push(head, 0)
    resumed = ring.device_at(ring.device.next_avail)
    assert resumed.pending() == 2
    assert len(resumed.pop()[1][0]) == 2
    resumed.push(1, 77)
    assert [ring.driver.reap() for _ in range(2)] == [(head, 0), (1, 77)]


@pytest.mark.parametrize("event_idx", [False, True])
def test_driver_kicks_only_while_kicks_are_enabled(
    make_ring: Callable[..., Ring], event_idx: bool
) -> None:
    ring = make_ring(event_idx=event_idx)
    head = ring.driver.lay_out(0, [(GUEST_BASE, 1)], [])
    assert not ring.device.enable_kicks()
    ring.offer(head)
    assert ring.kicked()
    ring.device.disable_kicks()
    ring.device.pop()
    ring.offer(head)
    ring.offer(head)
    assert not ring.kicked()
    assert ring.device.enable_kicks()
    ring.device.pop()
    ring.device.pop()
    assert not ring.device.enable_kicks()
    ring.offer(head)
    assert ring.kicked()


@pytest.mark.parametrize("event_idx", [False, True])
def test_device_signals_only_while_interrupts_are_enabled(
    make_ring: Callable[..., Ring], event_idx: bool
) -> None:
    ring = make_ring(event_idx=event_idx)
    assert not ring.device.must_signal()
    assert not ring.driver.enable_interrupts()
    ring.device.push(0, 0)
    assert ring.device.must_signal()
    assert not ring.device.must_signal()
    ring.driver.disable_interrupts()
    ring.device.push(0, 0)
    assert not ring.device.must_signal()
    ring.driver.reap()
    assert ring.driver.enable_interrupts()
    ring.driver.reap()
    assert not ring.driver.enable_interrupts()
    ring.device.push(0, 0)
    assert ring.device.must_signal()


def test_one_signal_covers_all_that_was_pushed_past_used_event(
    make_ring: Callable[..., Ring],
) -> None:
    ring = make_ring()
    for _ in range(3):
        ring.driver.used_idx = ring.device.used_idx
        ring.driver.enable_interrupts()
        for _ in range(5):
            ring.device.push(0, 0)
        assert ring.device.must_signal()
        assert not ring.device.must_signal()


descriptors = st.tuples(
    st.one_of(
        st.integers(0, (1 << 64) - 1),
        st.integers(GUEST_BASE - 64, GUEST_BASE + 4096),
        st.integers(GUEST_BASE + (1 << 16) - 64, GUEST_BASE + (1 << 16) + 64),
    ),
    st.one_of(st.integers(0, 256), st.integers(0, 0xFFFFFFFF)),
    st.integers(0, 7) | st.integers(0, 0xFFFF),
    st.integers(0, SIZE) | st.integers(0, 0xFFFF),
)


@settings(max_examples=300, deadline=None)
@given(
    table=st.lists(descriptors, min_size=1, max_size=SIZE),
    ring_bytes=st.binary(max_size=6 + 2 * SIZE),
    indirect=st.booleans(),
    event_idx=st.booleans(),
)
def test_random_rings_raise_nothing_but_guest_errors_and_never_leave_memory(
    table: list[tuple[int, int, int, int]], ring_bytes: bytes, indirect: bool, event_idx: bool
) -> None:
    ring = Ring(indirect=indirect, event_idx=event_idx, regions=16)
    try:
        for index, (address, length, flags, following) in enumerate(table):
            ring.driver.write_descriptor(index, address, length, flags, following)
        # Indirect descriptors into the first bytes of memory find the table itself.
        ring.memory.at(ring.driver.avail_ring, len(ring_bytes))[:] = ring_bytes
        try:
            for _ in range(ring.device.pending()):
                _, request, reply = ring.device.pop()
                assert sum(map(len, request)) + sum(map(len, reply)) <= SIZE << 32
                assert all(isinstance(view, memoryview) for view in (*request, *reply))
        except GuestError:
            pass
        ring.device.push(0, 0)
        ring.device.must_signal()
        ring.device.enable_kicks()
    finally:
        ring.close()


class Handed:
    """A completion, and what came with its chain."""

    def __init__(self) -> None:
        self.head = -1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_a_chain_means_what_its_descriptors_say_now_whatever_its_head_meant_before(
    chains: list[tuple[int, int, int]],
) -> None:
    ring = Ring()
    data = ring.memory.allocate(4096)
    seen: list[tuple[int, bytes, int]] = []

    def handle(request: Sequence[memoryview], reply: Sequence[memoryview], done: Handed) -> int:
        seen.append((done.head, b"".join(request), sum(map(len, reply))))
        return len(seen)

    for number in range(256):
        ring.memory.at(data + number, 1)[:] = bytes([number])
    for slot, start, room in chains:
        # Few slots, places and sizes, so that much comes again, alone or together.
        ring.offer(ring.driver.lay_out(slot, [(data + start, 2)], [(data + 512, 1 + room)]))
        assert ring.device.serve(handle, Handed(), ring.device.pending()) == (1, None)
        assert seen[-1] == (slot, bytes([start, start + 1]), 1 + room)
        assert ring.driver.reap() == (slot, len(seen))
    ring.close()


def test_a_burst_ends_at_a_chain_that_waits_and_goes_on_behind_it(
    make_ring: Callable[..., Ring],
) -> None:
    ring = make_ring()
    data = ring.memory.allocate(64)
    for slot in range(4):
        ring.offer(ring.driver.lay_out(slot, [(data, 1)], [(data + 8, 1 + slot)]))
    completion = Handed()

    def handle(request: Sequence[memoryview], reply: Sequence[memoryview], done: Handed) -> int:
        return -1 if done.head == 1 else 7

    taken, waiting = ring.device.serve(handle, completion, 4)
    assert (taken, completion.head) == (2, 1)
    assert waiting is not None and [len(view) for view in waiting] == [2]
    assert ring.device.serve(handle, completion, ring.device.pending()) == (2, None)
    ring.device.push(1, 5)
    assert [ring.driver.reap() for _ in range(4)] == [(0, 7), (2, 7), (3, 7), (1, 5)]
    assert not ring.driver.has_used()
