"""The driver's half of a split virtqueue, and the memory it shares with the device."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Final

from harness.virtio.chain import DESCRIPTOR, INDIRECT, NEXT, WRITE
from harness.virtio.queue import NO_INTERRUPT, NO_NOTIFY, fence

GUEST_BASE: Final = 0x4000_0000
USER_BASE: Final = 0x7F00_0000_0000
USER_GAP: Final = 1 << 32

Buffer = tuple[int, int]
"""A guest-physical address and a length."""


class DriverMemory:
    """A guest's RAM: a memfd, at made-up guest addresses, given out from the bottom up.

    With more than one region the guest sees contiguous memory, while the user addresses of the
    regions lie 4 GiB apart, as for RAM that a VMM maps in pieces.
    """

    def __init__(self, size: int, regions: int = 1) -> None:
        """`size` bytes in `regions` regions of equal size, each a multiple of the page size."""
        self.fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._mapping = mmap.mmap(self.fd, size)
        self.view = memoryview(self._mapping)
        self.size = size
        self._region_size = size // regions
        self._next = 0

    def regions(self) -> list[tuple[int, int, int, int]]:
        """Guest address, size, user address and file offset of each region."""
        step = self._region_size
        return [
            (GUEST_BASE + start, step, self.user_address(GUEST_BASE + start), start)
            for start in range(0, self.size, step)
        ]

    def user_address(self, guest_address: int) -> int:
        """Where the made-up VMM has `guest_address`."""
        region, offset = divmod(guest_address - GUEST_BASE, self._region_size)
        return USER_BASE + region * USER_GAP + offset

    def allocate(self, length: int, alignment: int = 64) -> int:
        """The guest address of `length` zeroed bytes, never given back.

        Raises:
            MemoryError: the memory is used up.
        """
        start = -(-self._next // alignment) * alignment
        if start + length > self.size:
            raise MemoryError(f"guest memory of {self.size} bytes is used up")
        self._next = start + length
        return GUEST_BASE + start

    def at(self, guest_address: int, length: int) -> memoryview:
        """A view of `length` bytes at `guest_address`."""
        start = guest_address - GUEST_BASE
        return self.view[start : start + length]

    def close(self) -> None:
        """Unmap and close; views that others hold keep the mapping alive."""
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            pass
        os.close(self.fd)


class DriverRing:
    """What the driver's halves of a split and of a packed virtqueue have in common.

    Chains are laid out once in slots, offered and reaped many times. With INDIRECT_DESC a slot has
    a table of its own. `kick` and `call` are the eventfds, owned here.
    """

    def __init__(
        self,
        memory: DriverMemory,
        size: int,
        *,
        avail_size: int,
        used_size: int,
        indirect: bool,
        event_idx: bool,
        chain_limit: int,
    ) -> None:
        """`avail_size` and `used_size` are those of the areas that the driver and the device
        write to.
        """
        self.memory = memory
        self.size = size
        self.indirect = indirect
        self.event_idx = event_idx
        self.chain_limit = chain_limit
        self.descriptors = memory.allocate(16 * size)
        self.avail_ring = memory.allocate(avail_size)
        self.used_ring = memory.allocate(used_size)
        self.table = memory.at(self.descriptors, 16 * size)
        self._tables = memory.allocate(16 * chain_limit * size) if indirect else 0
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return self.size if self.indirect else self.size // self.chain_limit

    def _count(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Raises: ValueError for more buffers than `chain_limit`, or none."""
        count = len(readable) + len(writable)
        if not 0 < count <= self.chain_limit:
            raise ValueError(f"{count} buffers in a chain of at most {self.chain_limit}")
        return count

    def _slot_table(self, slot: int, count: int) -> tuple[int, memoryview]:
        """The address of the slot's own table, and a view of its first `count` descriptors."""
        table = self._tables + 16 * self.chain_limit * slot
        return table, self.memory.at(table, 16 * count)

    def _release(self, *views: memoryview) -> None:
        """Let go of `views` and of what is ours."""
        for view in (*views, self.table):
            view.release()
        os.close(self.kick)
        os.close(self.call)


class DriverQueue(DriverRing):
    """struct vring_virtqueue: a split ring.

    Without INDIRECT_DESC a slot is `chain_limit` neighbours of the table. A request to the same
    buffers costs one store in the available ring.
    """

    START_BASE: Final = 0

    def __init__(
        self,
        memory: DriverMemory,
        size: int,
        *,
        indirect: bool = True,
        event_idx: bool = True,
        chain_limit: int = 8,
    ) -> None:
        super().__init__(
            memory, size, avail_size=6 + 2 * size, used_size=6 + 8 * size,
            indirect=indirect, event_idx=event_idx, chain_limit=chain_limit,
        )  # fmt: skip
        self.avail = memory.at(self.avail_ring, 6 + 2 * size).cast("H")
        used = memory.at(self.used_ring, 6 + 8 * size)
        self.used_indices = used.cast("H")
        self.used = used[: 4 + 8 * size].cast("I")
        self._mask = size - 1
        self.avail_idx = 0
        self.used_idx = 0
        self._published = 0

    def lay_out(self, slot: int, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Point `slot` at these buffers. Returns the head index to offer.

        Raises:
            ValueError: more buffers than `chain_limit`, or none.
        """
        count = self._count(readable, writable)
        if self.indirect:
            first, head = 0, slot
            table, view = self._slot_table(slot, count)
            DESCRIPTOR.pack_into(self.table, 16 * slot, table, 16 * count, INDIRECT, 0)
        else:
            view, first = self.table, slot * self.chain_limit
            head = first
        for number, (address, length) in enumerate((*readable, *writable)):
            index = first + number
            flags = WRITE if number >= len(readable) else 0
            if number + 1 < count:
                flags |= NEXT
            DESCRIPTOR.pack_into(view, 16 * index, address, length, flags, index + 1)
        return head

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int
    ) -> None:
        """Write one descriptor of the queue's table, right or wrong."""
        DESCRIPTOR.pack_into(self.table, 16 * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Put `head` into the available ring; the device sees it after `publish`."""
        self.avail[2 + (self.avail_idx & self._mask)] = head
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def publish(self) -> None:
        """Let the device see what was offered, and kick it if it asks for that."""
        new = self.avail_idx
        old = self._published
        self.avail[1] = self._published = new
        fence()
        if self.event_idx:
            wanted = (new - self.used_indices[2 + 4 * self.size] - 1) & 0xFFFF < (
                new - old
            ) & 0xFFFF
        else:
            wanted = not self.used_indices[0] & NO_NOTIFY
        if wanted:
            os.eventfd_write(self.kick, 1)

    def has_used(self) -> bool:
        """Whether `reap` has something to return."""
        return self.used_indices[1] != self.used_idx

    def reap(self) -> tuple[int, int]:
        """The next used chain: its head and the number of bytes the device says it wrote."""
        slot = (self.used_idx & self._mask) << 1
        self.used_idx = (self.used_idx + 1) & 0xFFFF
        return self.used[slot + 1], self.used[slot + 2]

    def enable_interrupts(self) -> bool:
        """Ask for a signal with the next used chain; True if one is there already."""
        if self.event_idx:
            self.avail[2 + self.size] = self.used_idx
        else:
            self.avail[0] = 0
        fence()
        return self.has_used()

    def disable_interrupts(self) -> None:
        """Ask for none. With EVENT_IDX the stale used_event does it."""
        if not self.event_idx:
            self.avail[0] = NO_INTERRUPT

    def recovered_base(self) -> int:
        """Where a device goes on that knows only what the ring says: behind what it used."""
        return self.used_indices[1]

    def close(self) -> None:
        """Close the eventfds and let go of the memory."""
        self._release(self.avail, self.used_indices, self.used)
