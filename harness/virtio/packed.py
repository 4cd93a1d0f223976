"""The device's half of a packed virtqueue (section 2.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.virtio.chain import (
    DESCRIPTOR,
    INDIRECT,
    MEMORISED_CHAINS,
    MEMORISED_SIZE,
    NEXT,
    WRITE,
    BadChain,
    DescriptorTable,
    PageGroup,
    Segments,
    group_pages,
)
from harness.virtio.memory import GuestMemory
from harness.virtio.queue import MAX_SIZE, BadRing, fence
from harness.wire import Recurring

AVAIL: Final = 0x80
USED: Final = 0x8000
OWNER: Final = AVAIL | USED
WRAP: Final = 0x8000

EVENT_ENABLE: Final = 0
EVENT_DISABLE: Final = 1
EVENT_DESCRIPTOR: Final = 2

_UNPACK: Final = DESCRIPTOR.unpack_from


class PackedTable(DescriptorTable):
    """struct vring_packed_desc[]: address, length, buffer id, flags.

    In an indirect table only WRITE counts; the entries are one chain, in their order.
    """

    __slots__ = ()

    def walk_kept(self, content: bytes) -> Segments:
        """The segments of a chain whose descriptors are `content`, kept from a ring.

        Raises:
            BadChain, BadAddress: as `walk_packed`.
        """
        address, length, _, flags = _UNPACK(content)
        if flags & INDIRECT and len(content) == DESCRIPTOR.size:
            return self._walk_indirect(address, length)
        if any(flags & INDIRECT for _, _, _, flags in DESCRIPTOR.iter_unpack(content)):
            raise BadChain("an indirect descriptor inside a chain")
        return self._parse(content)

    def walk_packed(self, position: int, wrap: int) -> tuple[int, int, Segments]:
        """The chain at `position` of the ring, whose descriptors the driver has made available.

        Returns its buffer id, how many descriptors it takes up, and its segments as `walk` does.

        Raises:
            BadChain: as `walk`; also for one that runs into descriptors that are the device's.
            BadAddress: as `walk`.
        """
        address, length, buffer_id, flags = _UNPACK(self._table, position << 4)
        if flags & INDIRECT:
            if flags & NEXT:
                raise BadChain("an indirect descriptor inside a chain")
            return buffer_id, 1, self._walk_indirect(address, length)
        if not flags & NEXT:
            segments: list[memoryview] = []
            self._memory.segments(address, length, segments)
            return buffer_id, 1, ((), segments) if flags & WRITE else (segments, ())
        memory = self._memory
        request: list[memoryview] = []
        reply: list[memoryview] = []
        for count in range(1, self._size + 1):
            if flags & WRITE:
                memory.segments(address, length, reply)
            elif reply:
                raise BadChain("a readable descriptor follows a writable one")
            else:
                memory.segments(address, length, request)
            if not flags & NEXT:
                return buffer_id, count, (request, reply)
            position += 1
            if position == self._size:
                position = 0
                wrap ^= 1
            address, length, buffer_id, flags = _UNPACK(self._table, position << 4)
            if flags & OWNER != (AVAIL if wrap else USED):
                raise BadChain("a chain runs into descriptors that were not made available")
            if flags & INDIRECT:
                raise BadChain("an indirect descriptor inside a chain")
        raise BadChain(f"chain is longer than the queue ({self._size})")

    def _walk_indirect(self, address: int, length: int) -> Segments:
        # As the end of `walk`, which saves itself this call.
        if not self._indirect or not 0 < length <= self._limit or length & 15:
            raise BadChain(f"indirect table of {length} bytes")
        pieces: list[memoryview] = []
        self._memory.segments(address, length, pieces)
        content = b"".join(pieces)
        if length > MEMORISED_SIZE:
            return self._parse_pages(content)
        known = self._known.get(content)
        if known is None:
            if len(self._known) >= MEMORISED_CHAINS:
                self._known.clear()
            request, reply = self._parse(content)
            known = self._known[content] = None, Recurring(request), reply
        return known[1], known[2]

    def _parse(self, table: bytes | memoryview) -> Segments:
        memory = self._memory
        request: list[memoryview] = []
        reply: list[memoryview] = []
        for address, length, _, flags in DESCRIPTOR.iter_unpack(table):
            if flags & WRITE:
                memory.segments(address, length, reply)
            elif reply:
                raise BadChain("a readable descriptor follows a writable one")
            else:
                memory.segments(address, length, request)
        return request, reply

    @staticmethod
    def _groups_of(shape: bytes) -> tuple[PageGroup, ...]:
        words = memoryview(shape).cast("Q")
        return group_pages((word & 0xFFFFFFFF, bool(word >> 48 & WRITE)) for word in words)


class PackedQueue:
    """struct vhost_virtqueue with a packed ring: the interface of `SplitQueue`.

    One ring holds what is available and what was used; who owns a descriptor is told by two of its
    flags and by wrap counters that turn over with each round. Its `head` is a chain's buffer id,
    with the number of its descriptors above bit 16, so that nothing has to be kept of chains in
    flight, and what a driver says about them can only move its own ring.
    """

    __slots__ = (
        "_device_event",
        "_driver_event",
        "_event_idx",
        "_expected",
        "_kept",
        "_last_used",
        "_lengths",
        "_log_event",
        "_log_ring",
        "_moved",
        "_next",
        "_size",
        "_table",
        "_used",
        "_used_wrap",
        "_words",
        "_wrap",
    )

    FIRST_BASE: Final = WRAP << 16 | WRAP

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: tuple[int, int, int],
        base: int,
        *,
        indirect: bool,
        event_idx: bool,
    ) -> None:
        """A queue of `size` descriptors at user `addresses` (ring, driver event, device event).

        `base` has the position of the next available descriptor in bits 0 to 14 and its wrap
        counter in bit 15; those of the next used one are in bits 16 to 31.

        Raises:
            BadRing: `size` is not in 1 to 32768, an area is misaligned, or `base` is outside.
            BadAddress: an area is not in one region.
        """
        self.check_size(size)
        ring, driver, device = addresses
        if ring & 15 or driver & 3 or device & 3:
            raise BadRing(f"misaligned ring at {ring:#x}, {driver:#x}, {device:#x}")
        self._next, self._wrap = base & ~WRAP & 0xFFFF, base >> 15 & 1
        self._used, self._used_wrap = base >> 16 & ~WRAP & 0xFFFF, base >> 31 & 1
        if self._next >= size or self._used >= size:
            raise BadRing(f"ring base {base:#x} in a queue of {size}")
        table = memory.user_view(ring, 16 * size)
        self._words = table.cast("H")
        self._lengths = table.cast("I")
        self._driver_event = memory.user_view(driver, 4).cast("H")
        self._device_event = memory.user_view(device, 4).cast("H")
        self._table = PackedTable(memory, table, size, indirect=indirect)
        self._size = size
        self._event_idx = event_idx
        self._expected = AVAIL if self._wrap else USED
        self._last_used = self._moved = 0
        self._log_ring = self._log_event = 0
        # Chains for `retake`: their descriptors, by head.
        self._kept: dict[int, list[bytes]] = {}

    @staticmethod
    def check_size(size: int) -> None:
        """Raises BadRing unless `size` is in 1 to 32768."""
        if not 0 < size <= MAX_SIZE:
            raise BadRing(f"queue size {size}")

    @property
    def size(self) -> int:
        """How many descriptors the ring has."""
        return self._size

    @property
    def used_idx(self) -> int:
        """Where the next used descriptor goes."""
        return self._used

    @property
    def used_wrap(self) -> int:
        """The wrap counter of `used_idx`."""
        return self._used_wrap

    @property
    def base(self) -> int:
        """Where a queue made anew goes on, as `__init__` takes it."""
        return self._next | self._wrap << 15 | self._used << 16 | self._used_wrap << 31

    def adopt(self, other: object) -> None:
        """Take the place of `other` of our class: the same ring, mapped anew."""
        moved, kept = self._moved, self._kept
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))
        self._moved, self._kept = moved, kept

    def pending(self) -> int:
        """How many chains the driver has made available and `pop` has not taken.

        A chain of which a part is not available yet may be counted; `pop` refuses it.
        """
        words, size = self._words, self._size
        at, expected = self._next, self._expected
        count = 0
        for _ in range(size):
            flags = words[(at << 3) + 7]
            if flags & OWNER != expected:
                break
            if not flags & NEXT:
                count += 1
            at += 1
            if at == size:
                at = 0
                expected ^= OWNER
        # One that never ends is `pop`'s to refuse.
        return count or int(self.has_avail())

    def has_avail(self) -> bool:
        """Whether the next descriptor is available."""
        return self._words[(self._next << 3) + 7] & OWNER == self._expected

    def pop(self) -> tuple[int, Sequence[memoryview], Sequence[memoryview]]:
        """Take a chain that `pending` counted: its head, readable and writable segments.

        Raises:
            BadChain, BadAddress: as `PackedTable.walk_packed`.
        """
        buffer_id, count, (request, reply) = self._table.walk_packed(self._next, self._wrap)
        at = self._next + count
        if at >= self._size:
            at -= self._size
            self._wrap ^= 1
            self._expected ^= OWNER
        self._next = at
        return buffer_id | count << 16, request, reply

    def descriptors(self, head: int) -> bytes:
        """Those of the chain `head`, the last one popped, as they are in the ring."""
        count = head >> 16
        words, start = self._words, self._next - count
        if start >= 0:
            return words[start << 3 : self._next << 3].tobytes()
        return words[(start + self._size) << 3 :].tobytes() + words[: self._next << 3].tobytes()

    def is_available(self, position: int, wrap: int) -> bool:
        """Whether what is at `position` was made available in the round `wrap`, and not used."""
        return self._words[(position << 3) + 7] & OWNER == (AVAIL if wrap else USED)

    def restore(self, position: int, wrap: int, chains: Sequence[tuple[int, bytes]]) -> None:
        """Go on where somebody else has used what is before `position` of the round `wrap`, and
        has popped `chains` behind it: heads and descriptors, for `retake`.
        """
        self._used, self._used_wrap = position, wrap
        self._next = position + sum(head >> 16 for head, _ in chains)
        self._wrap = wrap
        if self._next >= self._size:
            self._next -= self._size
            self._wrap ^= 1
        self._expected = AVAIL if self._wrap else USED
        self._kept.clear()
        for head, table in chains:
            self._kept.setdefault(head, []).append(table)

    def retake(self, head: int) -> tuple[int, Sequence[memoryview], Sequence[memoryview]]:
        """As `pop`, for a chain that somebody popped before us and never pushed (`restore`).

        Raises:
            BadChain, BadAddress: as `PackedTable.walk_packed`.
        """
        tables = self._kept[head]
        table = tables.pop(0)
        if not tables:
            del self._kept[head]
        request, reply = self._table.walk_kept(table)
        return head, request, reply

    def push(self, head: int, length: int) -> None:
        """Give back the chain `head`, with `length` bytes written to its writable segments."""
        at = self._last_used = self._used
        self._lengths[(at << 2) + 2] = length
        words = self._words
        words[(at << 3) + 6] = head & 0xFFFF
        words[(at << 3) + 7] = (OWNER if self._used_wrap else 0) | (WRITE if length else 0)
        count = head >> 16
        self._moved += count
        at += count
        if at >= self._size:
            at -= self._size
            self._used_wrap ^= 1
        self._used = at

    def must_signal(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since the last call."""
        moved = self._moved
        if not moved:
            return False
        self._moved = 0
        fence()
        flags = self._driver_event[1]
        if flags != EVENT_DESCRIPTOR or not self._event_idx:
            return flags != EVENT_DISABLE
        event = self._driver_event[0]
        position = event & ~WRAP
        if event >> 15 != self._used_wrap:
            position -= self._size
        # vring_need_event() of linux/virtio_ring.h, as vring_packed_need_event() of QEMU uses it.
        return (self._used - position - 1) & 0xFFFF < moved

    def disable_kicks(self) -> None:
        """Ask the driver not to kick. A hint: kicks may still come."""
        self._device_event[1] = EVENT_DISABLE

    def enable_kicks(self) -> bool:
        """Ask for a kick with the next chain; True if one came before the driver could see it."""
        if self._event_idx:
            self._device_event[0] = self._next | self._wrap << 15
            self._device_event[1] = EVENT_DESCRIPTOR
        else:
            self._device_event[1] = EVENT_ENABLE
        fence()
        return self.has_avail()

    def set_log(self, memory: GuestMemory, addresses: tuple[int, int, int], used: int) -> None:
        """Prepare for `push_ranges` and `event_ranges`; `used` is the device event area.

        Raises:
            BadAddress: the ring is in no region.
        """
        self._log_ring = memory.guest_address(addresses[0])
        self._log_event = used

    def push_ranges(self) -> tuple[tuple[int, int], ...]:
        """What the last `push` wrote, as (guest address, length)."""
        return ((self._log_ring + (self._last_used << 4), 16),)

    def event_ranges(self) -> tuple[tuple[int, int], ...]:
        """What `disable_kicks` and `enable_kicks` write, as (guest address, length)."""
        return ((self._log_event, 4),)
