"""Inflight memory of packed rings: what is found in it, wherever the writer stopped."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtio import inflight
from harness.virtio.driver import DriverMemory
from harness.virtio.inflight import BadInflight, InflightRegion
from harness.virtio.memory import GuestError, GuestMemory, MemoryRegion
from harness.virtio.packed import PackedQueue
from harness.virtio.packed_driver import PackedDriverQueue
from harness.virtio.packed_inflight import PackedInflightQueue

SIZE = 7
SLOTS = 3


class Killed(BaseException):
    """The writer ends here."""


class Counted:
    """The bytes of a region, whose writer is killed after `left` stores."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.left = -1

    def __getitem__(self, at: int) -> int:
        return int(self.view[at])

    def __setitem__(self, at: int, value: int) -> None:
        if not self.left:
            raise Killed
        self.left -= 1
        self.view[at] = value


class Ring:
    """A driver and its device's side, which a new writer can take over at any time."""

    def __init__(self, memory: DriverMemory, guest: GuestMemory, region: memoryview) -> None:
        self.memory = memory
        self.guest = guest
        self.region = region
        self.driver = PackedDriverQueue(memory, SIZE, chain_limit=2, indirect=False)
        self.buffers = [memory.allocate(64) for _ in range(SLOTS)]
        self.takeover()

    def takeover(self) -> list[int]:
        user = self.memory.user_address
        driver = self.driver
        addresses = (user(driver.descriptors), user(driver.avail_ring), user(driver.used_ring))
        base = self.driver.recovered_base()
        self.queue = PackedQueue(self.guest, SIZE, addresses, base, indirect=False, event_idx=False)
        self.notes = PackedInflightQueue(self.region, SIZE)
        heads = self.notes.resume(self.queue)
        self.counted = Counted(self.notes._halves)
        self.notes._halves = self.counted  # type: ignore[assignment]
        return heads

    def offer(self, slot: int, both: bool) -> None:
        at = self.buffers[slot]
        writable = [(at + 32, 16)] if both else []
        self.driver.offer(self.driver.lay_out(slot, [(at, 16 + slot)], writable))
        self.driver.publish()


@contextmanager
def new_ring() -> Iterator[Ring]:
    memory = DriverMemory(1 << 16)
    guest = GuestMemory()
    for address, size, user, offset in memory.regions():
        guest.add(MemoryRegion(memory.fd, address, size, user, offset))
    region = memoryview(bytearray(PackedInflightQueue.region_size(SIZE)))
    ring = Ring(memory, guest, region)
    try:
        yield ring
    finally:
        ring.driver.close()
        del ring.queue, ring.notes, ring.counted
        guest.clear()
        memory.close()


def test_the_layout_is_that_of_the_specification() -> None:
    fd, size = inflight.create(2, SIZE, 1 << 34, PackedInflightQueue)
    try:
        assert size == 2 * 256
        region = InflightRegion(fd, size, 0, 2, SIZE, PackedInflightQueue)
        with new_ring() as ring:
            notes = region.queue(1)
            assert isinstance(notes, PackedInflightQueue)
            assert notes.resume(ring.queue) == []
            ring.offer(2, True)
            head, _, _ = ring.queue.pop()
            notes.take(head)
            found = os.pread(fd, 256, 256)
            del notes
        # features, version, desc_num, free_head, old_free_head, used_idx, old_used_idx, wraps
        assert struct.unpack_from("<Q6H2B", found) == (0, 1, SIZE, 2, 2, 0, 0, 1, 1)
        # inflight, pad, next, last, num, counter, id, flags, len, addr
        first = struct.unpack_from("<BBHHHQHHIQ", found, 32)
        assert first[:6] == (1, 0, 1, 1, 2, 0)
        assert (first[6], first[7], first[8]) == (2, 0x81, 18)
        second = struct.unpack_from("<BBHHHQHHIQ", found, 64)
        assert (second[0], second[6], second[7], second[8]) == (0, 2, 0x82, 16)
        assert struct.unpack_from("<BBH", found, 96) == (0, 0, 3)
        region.close()
    finally:
        os.close(fd)


STEPS = st.lists(st.tuples(st.sampled_from("ottgg"), st.integers(0, SLOTS - 1)), max_size=60)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS, cut=st.integers(-1, 60))
def test_what_is_recovered_is_what_was_taken_and_not_used(
    steps: list[tuple[str, int]], cut: int
) -> None:
    """In any order of completion, with the writer killed after any store."""
    with new_ring() as ring:
        ring.counted.left = cut
        free, offered, taken = list(range(SLOTS)), [], []
        used: list[int] = []
        try:
            for what, which in steps:
                if what == "o" and free:
                    slot = free.pop(which % len(free))
                    ring.offer(slot, bool(which % 2))
                    offered.append(slot)
                elif what == "t" and offered:
                    head, _, _ = ring.queue.pop()
                    assert head & 0xFFFF == offered[0]
                    ring.notes.take(head)
                    taken.append((offered.pop(0), head))
                elif what == "g" and taken:
                    slot, head = taken[which % len(taken)]
                    ring.notes.give(head)
                    ring.queue.push(head, slot)
                    taken.remove((slot, head))
                    used.append(slot)
                    ring.notes.given(head, ring.queue.used_idx)
                    assert ring.driver.reap() == (slot, slot)
                    free.append(used.pop())
        except Killed:
            pass
        ring.counted.left = -1
        expected = [slot for slot, _ in taken]
        heads = ring.takeover()
        found = [head & 0xFFFF for head in heads]
        # The last store of `take` is what makes it so; whoever dies before it has not begun.
        assert found == expected
        for head, slot in zip(heads, found, strict=True):
            _, request, _ = ring.queue.retake(head)
            assert [len(piece) for piece in request] == [16 + slot]
            ring.notes.give(head)
            ring.queue.push(head, slot)
            ring.notes.given(head, ring.queue.used_idx)
        for slot in offered:
            head, _, _ = ring.queue.pop()
            assert head & 0xFFFF == slot
            ring.notes.take(head)
            ring.notes.give(head)
            ring.queue.push(head, slot)
            ring.notes.given(head, ring.queue.used_idx)
        answered = []
        while ring.driver.has_used():
            answered.append(ring.driver.reap()[0])
        assert answered == [*used, *found, *offered]
        assert ring.takeover() == []


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=256), offers=st.lists(st.integers(0, SLOTS - 1), unique=True))
def test_a_random_region_yields_chains_or_is_refused(content: bytes, offers: list[int]) -> None:
    with new_ring() as ring:
        for slot in offers:
            ring.offer(slot, True)
        ring.region[: len(content)] = content
        try:
            heads = ring.takeover()
            assert sum(head >> 16 for head in heads) <= SIZE
            for head in heads:
                ring.queue.retake(head)
            for _ in range(ring.queue.pending()):
                head, _, _ = ring.queue.pop()
                ring.notes.take(head)
                ring.notes.give(head)
                ring.queue.push(head, 0)
                ring.notes.given(head, ring.queue.used_idx)
        except GuestError:
            pass


def test_a_region_for_a_smaller_ring_is_refused() -> None:
    with new_ring() as ring:
        struct.pack_into("<H", ring.region, 10, SIZE - 1)
        with pytest.raises(BadInflight):
            ring.takeover()
