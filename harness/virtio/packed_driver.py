"""The driver's half of a packed virtqueue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from harness.virtio.chain import DESCRIPTOR, INDIRECT, NEXT, WRITE
from harness.virtio.driver import Buffer, DriverMemory, DriverRing
from harness.virtio.packed import (
    AVAIL,
    EVENT_DESCRIPTOR,
    EVENT_DISABLE,
    EVENT_ENABLE,
    OWNER,
    USED,
    WRAP,
)
from harness.virtio.queue import fence

_Descriptors = list[tuple[int, int, int]]


class PackedDriverQueue(DriverRing):
    """struct vring_virtqueue_packed: the interface of `DriverQueue`.

    A slot is a buffer id. Its descriptors are copied into the ring whenever it is offered, for
    there they have no place of their own; with INDIRECT_DESC there is one, to the slot's table.
    """

    START_BASE: Final = WRAP << 16 | WRAP

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
            memory, size, avail_size=4, used_size=4,
            indirect=indirect, event_idx=event_idx, chain_limit=chain_limit,
        )  # fmt: skip
        self.driver_event = memory.at(self.avail_ring, 4).cast("H")
        self.device_event = memory.at(self.used_ring, 4).cast("H")
        self._words = self.table.cast("H")
        self._lengths = self.table.cast("I")
        self._laid_out: dict[int, _Descriptors] = {}
        self._counts: dict[int, int] = {}
        self._next = self._used = 0
        self._wrap = self._used_wrap = 1
        self._added = 0
        self._withheld: tuple[int, int] | None = None

    def lay_out(self, slot: int, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Point `slot` at these buffers. Returns what to offer.

        Raises:
            ValueError: more buffers than `chain_limit`, or none.
        """
        count = self._count(readable, writable)
        descriptors = [
            (address, length, WRITE if number >= len(readable) else 0)
            for number, (address, length) in enumerate((*readable, *writable))
        ]
        if self.indirect:
            table, view = self._slot_table(slot, count)
            for number, (address, length, flags) in enumerate(descriptors):
                DESCRIPTOR.pack_into(view, 16 * number, address, length, 0, flags)
            descriptors = [(table, 16 * count, INDIRECT)]
        self._laid_out[slot] = [
            (address, length, flags | (NEXT if number < len(descriptors) else 0))
            for number, (address, length, flags) in enumerate(descriptors, 1)
        ]
        return slot

    def write_descriptor(
        self, index: int, address: int, length: int, buffer_id: int, flags: int
    ) -> None:
        """Write one descriptor of the ring, right or wrong."""
        DESCRIPTOR.pack_into(self.table, 16 * index, address, length, buffer_id, flags)

    def offer(self, head: int) -> None:
        """Put `head` into the ring; the device sees it after `publish`."""
        descriptors = self._laid_out[head]
        self._counts[head] = len(descriptors)
        for address, length, flags in descriptors:
            flags |= AVAIL if self._wrap else USED
            at = self._next
            if self._withheld is None:
                self._withheld = (8 * at + 7, flags)
                flags = self._words[8 * at + 7]
            DESCRIPTOR.pack_into(self.table, 16 * at, address, length, head, flags)
            self._next = (at + 1) % self.size
            if not self._next:
                self._wrap ^= 1
            self._added += 1

    def publish(self) -> None:
        """Let the device see what was offered, and kick it if it asks for that."""
        if self._withheld is not None:
            index, flags = self._withheld
            self._withheld = None
            self._words[index] = flags
        added, self._added = self._added, 0
        fence()
        flags = self.device_event[1]
        if flags == EVENT_DESCRIPTOR:
            event = self.device_event[0]
            position = event & ~WRAP
            if event >> 15 != self._wrap:
                position -= self.size
            wanted = (self._next - position - 1) & 0xFFFF < added
        else:
            wanted = flags != EVENT_DISABLE
        if wanted:
            os.eventfd_write(self.kick, 1)

    def has_used(self) -> bool:
        """Whether `reap` has something to return."""
        flags = self._words[8 * self._used + 7]
        return flags & OWNER == (OWNER if self._used_wrap else 0)

    def reap(self) -> tuple[int, int]:
        """The next used chain: its head and the number of bytes the device says it wrote."""
        head, length = self._words[8 * self._used + 6], self._lengths[4 * self._used + 2]
        self._used += self._counts[head]
        if self._used >= self.size:
            self._used -= self.size
            self._used_wrap ^= 1
        return head, length

    def enable_interrupts(self) -> bool:
        """Ask for a signal with the next used chain; True if one is there already."""
        if self.event_idx:
            self.driver_event[0] = self._used | self._used_wrap << 15
            self.driver_event[1] = EVENT_DESCRIPTOR
        else:
            self.driver_event[1] = EVENT_ENABLE
        fence()
        return self.has_used()

    def disable_interrupts(self) -> None:
        """Ask for none."""
        self.driver_event[1] = EVENT_DISABLE

    def recovered_base(self) -> int:
        """Where a device goes on that knows only what the ring says: behind what it used."""
        return (self._used | self._used_wrap << 15) * (1 << 16 | 1)

    def close(self) -> None:
        """Close the eventfds and let go of the memory."""
        self._release(self._words, self._lengths, self.driver_event, self.device_event)
