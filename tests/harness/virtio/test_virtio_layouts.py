"""What holds for split and packed rings alike: chains, their order, their bytes, and kicks."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtio.chain import NEXT, WRITE, BadChain
from harness.virtio.driver import GUEST_BASE, DriverMemory, DriverQueue
from harness.virtio.memory import BadAddress, GuestMemory, MemoryRegion
from harness.virtio.packed import PackedQueue
from harness.virtio.packed_driver import PackedDriverQueue
from harness.virtio.queue import BadRing, SplitQueue

LAYOUTS = ["split", "packed"]
LIMIT = 4


class Ring:
    """Both ends of one ring over one memory."""

    def __init__(
        self, layout: str, *, size: int = 16, indirect: bool = True, event_idx: bool = True
    ) -> None:
        self.memory = DriverMemory(1 << 20)
        self.guest = GuestMemory()
        for guest, length, user, offset in self.memory.regions():
            self.guest.add(MemoryRegion(self.memory.fd, guest, length, user, offset))
        self.make = PackedQueue if layout == "packed" else SplitQueue
        driver = PackedDriverQueue if layout == "packed" else DriverQueue
        self.driver = driver(
            self.memory, size, indirect=indirect, event_idx=event_idx, chain_limit=LIMIT
        )
        self.device = self.device_at(self.make.FIRST_BASE)

    def device_at(self, base: int) -> SplitQueue | PackedQueue:
        user = self.memory.user_address
        driver = self.driver
        return self.make(
            self.guest,
            driver.size,
            (user(driver.descriptors), user(driver.avail_ring), user(driver.used_ring)),
            base,
            indirect=driver.indirect,
            event_idx=driver.event_idx,
        )

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

    def make(layout: str, **options: int) -> Ring:
        rings.append(Ring(layout, **options))  # type: ignore[arg-type]
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


STEPS = st.lists(st.sampled_from(["offer", "publish", "pop", "push", "reap", "remap"]), max_size=80)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=120, deadline=None)
@given(
    steps=STEPS,
    indirect=st.booleans(),
    event_idx=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_every_chain_arrives_whole_and_comes_back_with_its_length(
    layout: str, steps: list[str], indirect: bool, event_idx: bool, seed: int
) -> None:
    chance = random.Random(seed)
    ring = Ring(layout, indirect=indirect, event_idx=event_idx)
    driver, device = ring.driver, ring.device
    data = ring.memory.allocate(4096)
    ring.memory.at(data, 4096)[:] = chance.randbytes(4096)
    free = list(range(driver.slots))
    offered: list[int] = []
    published: list[int] = []
    popped: list[tuple[int, int]] = []
    pushed: list[tuple[int, int]] = []
    expected: dict[int, tuple[bytes, int]] = {}
    slot_of: dict[int, int] = {}
    try:
        for step in steps + ["publish", "pop", "push", "reap"] * 40:
            if step == "offer" and free:
                slot = free.pop(chance.randrange(len(free)))
                readable = [
                    (data + chance.randrange(4000), chance.randrange(1, 90))
                    for _ in range(chance.randrange(0, LIMIT))
                ]
                writable = [
                    (data + chance.randrange(4000), chance.randrange(1, 90))
                    for _ in range(chance.randrange(0 if readable else 1, LIMIT + 1))
                ][: LIMIT - len(readable)]
                if not readable and not writable:
                    readable = [(data, 1)]
                head = driver.lay_out(slot, readable, writable)
                slot_of[head] = slot
                expected[head] = (
                    b"".join(bytes(ring.memory.at(*buffer)) for buffer in readable),
                    sum(length for _, length in writable),
                )
                driver.offer(head)
                offered.append(head)
            elif step == "publish":
                driver.publish()
                published += offered
                offered.clear()
            elif step == "pop":
                assert device.pending() == len(published)
                assert device.has_avail() == bool(published)
                if published:
                    token, request, reply = device.pop()
                    head = published.pop(0)
                    assert token & 0xFFFF == head
                    content, room = expected[head]
                    assert b"".join(request) == content
                    assert sum(map(len, reply)) == room
                    popped.append((token, head))
            elif step == "push" and popped:
                token, head = popped.pop(chance.randrange(len(popped)))
                length = chance.randrange(1 << 20)
                device.push(token, length)
                pushed.append((head, length))
            elif step == "reap":
                assert driver.has_used() == bool(pushed)
                if pushed:
                    head, length = driver.reap()
                    assert (head, length) == pushed.pop(0)
                    free.append(slot_of[head])
            elif step == "remap":
                device.adopt(ring.device_at(device.base))
        assert not (offered or published or popped or pushed)
        assert len(free) == driver.slots
    finally:
        ring.close()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("event_idx", [False, True])
@settings(max_examples=80, deadline=None)
@given(bursts=st.lists(st.integers(1, 16), min_size=1, max_size=60))
def test_a_sleeping_side_is_always_woken(layout: str, event_idx: bool, bursts: list[int]) -> None:
    """Whoever has enabled notifications and found nothing gets one with the next chain."""
    ring = Ring(layout, event_idx=event_idx)
    driver, device = ring.driver, ring.device
    heads = [driver.lay_out(slot, [(GUEST_BASE, 1)], []) for slot in range(16)]
    free = list(heads)
    try:
        for number, burst in enumerate(bursts):
            assert not device.enable_kicks()
            offered, free = free[:burst], free[burst:]
            for head in offered:
                driver.offer(head)
            driver.publish()
            assert ring.kicked()
            device.disable_kicks()
            assert not driver.enable_interrupts()
            tokens = [device.pop()[0] for _ in range(device.pending())]
            assert len(tokens) == burst
            half = len(tokens) // 2 if number % 2 else 0
            for token in tokens[:half]:
                device.push(token, 1)
            if half:
                assert device.must_signal()
            for token in tokens[half:]:
                device.push(token, 1)
            # With an event index it has been told already, and has not asked again.
            assert device.must_signal() == (not half or not event_idx)
            assert not device.must_signal()
            while driver.has_used():
                free.append(driver.reap()[0])
            driver.disable_interrupts()
    finally:
        ring.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_silent_device_is_not_kicked_and_a_silent_driver_not_signalled(
    make_ring: Callable[..., Ring], layout: str
) -> None:
    for event_idx in (False, True):
        ring = make_ring(layout, event_idx=event_idx)
        head = ring.driver.lay_out(0, [(GUEST_BASE, 1)], [])
        ring.device.enable_kicks()
        ring.driver.offer(head)
        ring.driver.publish()
        assert ring.kicked()
        ring.device.disable_kicks()
        ring.driver.disable_interrupts()
        ring.device.push(ring.device.pop()[0], 0)
        if not event_idx:
            assert not ring.device.must_signal()
        ring.driver.reap()
        ring.driver.offer(head)
        ring.driver.publish()
        assert not ring.kicked()
        assert ring.device.enable_kicks(), "work that came unannounced is seen"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("indirect", [False, True])
def test_pages_of_a_large_chain_come_in_order(
    make_ring: Callable[..., Ring], layout: str, indirect: bool
) -> None:
    ring = Ring(layout, size=64, indirect=indirect)
    try:
        ring.driver.chain_limit = 32
        if indirect:
            ring.driver._tables = ring.memory.allocate(16 * 32 * 64)
        data = ring.memory.allocate(24 * 4096, 4096)
        readable = [(data, 40)]
        order = [3, 4, 5, 20, 19, 6, 7, 8, 9, 10]
        writable = [(data + 100, 16)] + [(data + page * 4096, 4096) for page in order]
        for page in order:
            ring.memory.at(data + page * 4096, 4096)[:] = bytes([page]) * 4096
        head = ring.driver.lay_out(0, readable, writable)
        for _ in range(2):
            ring.driver.offer(head)
            ring.driver.publish()
            token, request, reply = ring.device.pop()
            assert sum(map(len, request)) == 40
            assert b"".join(reply)[16:] == b"".join(bytes([page]) * 4096 for page in order)
            ring.device.push(token, 16)
            ring.driver.reap()
    finally:
        ring.close()


def packed_ring(make_ring: Callable[..., Ring], **options: int) -> Ring:
    ring = make_ring("packed", **options)
    assert isinstance(ring.driver, PackedDriverQueue)
    return ring


AVAIL = 0x80


@pytest.mark.parametrize(
    "descriptors",
    [
        [(GUEST_BASE, 1, 0, AVAIL | NEXT)],
        [(GUEST_BASE, 1, 0, AVAIL | NEXT)] * 16,
        [(GUEST_BASE, 1, 0, AVAIL | NEXT | WRITE), (GUEST_BASE, 1, 0, AVAIL)],
        [(GUEST_BASE, 16, 0, AVAIL | NEXT), (GUEST_BASE, 16, 0, AVAIL | 4)],
        [(GUEST_BASE, 16, 0, AVAIL | NEXT | 4), (GUEST_BASE, 16, 0, AVAIL)],
        [(GUEST_BASE, 0, 0, AVAIL | 4)],
        [(GUEST_BASE, 24, 0, AVAIL | 4)],
        [(GUEST_BASE, 16 * 17, 0, AVAIL | 4)],
    ],
)
def test_malformed_packed_chain_is_refused(
    make_ring: Callable[..., Ring], descriptors: list[tuple[int, int, int, int]]
) -> None:
    ring = packed_ring(make_ring)
    for index, descriptor in enumerate(descriptors):
        ring.driver.write_descriptor(index, *descriptor)
    assert ring.device.pending() <= 16
    with pytest.raises(BadChain):
        ring.device.pop()


def test_packed_chain_outside_memory_is_a_bad_address(make_ring: Callable[..., Ring]) -> None:
    ring = packed_ring(make_ring)
    for flags in (0, 4):
        ring.driver.write_descriptor(0, 1 << 40, 16, 0, AVAIL | flags)
        with pytest.raises(BadAddress):
            ring.device.pop()


def test_indirect_packed_chain_is_refused_when_not_negotiated(
    make_ring: Callable[..., Ring],
) -> None:
    ring = packed_ring(make_ring, indirect=False)
    ring.driver.write_descriptor(0, GUEST_BASE, 16, 0, AVAIL | 4)
    with pytest.raises(BadChain):
        ring.device.pop()


def test_packed_queue_may_have_any_size_and_wraps_within_a_chain(
    make_ring: Callable[..., Ring],
) -> None:
    ring = packed_ring(make_ring, size=7, indirect=False)
    data = ring.memory.allocate(64)
    ring.memory.at(data, 3)[:] = b"abc"
    head = ring.driver.lay_out(0, [(data, 1), (data + 1, 1), (data + 2, 1)], [])
    for number in range(50):
        ring.driver.offer(head)
        ring.driver.publish()
        token, request, _ = ring.device.pop()
        assert b"".join(request) == b"abc"
        ring.device.push(token, number)
        assert ring.driver.reap() == (0, number)


@pytest.mark.parametrize("base", [7, 0x8007, 7 << 16, 0x7FFF, 0xFFFFFFFF])
def test_packed_base_outside_the_ring_is_a_bad_ring(
    make_ring: Callable[..., Ring], base: int
) -> None:
    ring = packed_ring(make_ring, size=7)
    with pytest.raises(BadRing):
        ring.device_at(base)


@pytest.mark.parametrize("misplaced", [(8, 0, 0), (0, 2, 0), (0, 0, 2), (1 << 20, 0, 0)])
def test_misaligned_or_absent_packed_rings_are_refused(
    make_ring: Callable[..., Ring], misplaced: tuple[int, int, int]
) -> None:
    ring = packed_ring(make_ring)
    base = ring.memory.user_address(GUEST_BASE)
    addresses = (base + misplaced[0], base + misplaced[1], base + misplaced[2])
    with pytest.raises((BadRing, BadAddress)):
        PackedQueue(
            ring.guest, 16, addresses, PackedQueue.FIRST_BASE, indirect=True, event_idx=True
        )
