"""The device's half of a split virtqueue (section 2.7)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from harness.virtio.chain import DescriptorTable
from harness.virtio.memory import GuestError, GuestMemory

MAX_SIZE: Final = 32768
NO_NOTIFY: Final = 1
NO_INTERRUPT: Final = 1

_FENCE = threading.Lock()


def fence() -> None:
    """Order every store before it with every load after it (smp_mb on x86).

    Python has no fence, but taking a lock is an atomic read-modify-write, which on x86 is a
    locked instruction and so a full barrier. A system call would do it too (the kernel takes
    spinlocks) at five times the price.
    """
    _FENCE.acquire()
    _FENCE.release()


class HasHead(Protocol):
    """What a chain that is being handled may be given back by."""

    head: int


_Completion = TypeVar("_Completion", bound=HasHead)


class BadRing(GuestError):
    """The ring itself is not usable: its size, its alignment, or its indices."""


class SplitQueue:
    """struct vhost_virtqueue: pops chains from the available ring, pushes to the used ring.

    Not thread-safe; one thread serves a queue. Kicks are suppressed between `disable_kicks` and
    `enable_kicks`, by a stale avail_event (EVENT_IDX) or by VRING_USED_F_NO_NOTIFY.
    """

    __slots__ = (
        "_avail",
        "_event_idx",
        "_last",
        "_log_address",
        "_mask",
        "_signalled",
        "_size",
        "_table",
        "_used",
        "_used_indices",
        "next_avail",
        "used_idx",
    )

    FIRST_BASE: Final = 0
    """The `base` of a ring nobody has used yet."""

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
        """A queue of `size` entries whose tables lie at user `addresses` (desc, avail, used).

        `base` is the index of the first entry of the available ring not yet popped.

        Raises:
            BadRing: `size` is not a power of two up to 32768, or a table is misaligned.
            BadAddress: a table is not in one region.
        """
        self.check_size(size)
        descriptors, avail, used = addresses
        if descriptors & 15 or avail & 1 or used & 3:
            raise BadRing(f"misaligned ring at {descriptors:#x}, {avail:#x}, {used:#x}")
        tail = 2 if event_idx else 0
        used_view = memory.user_view(used, 4 + 8 * size + tail)
        self._avail = memory.user_view(avail, 4 + 2 * size + tail).cast("H")
        self._used_indices = used_view.cast("H")
        self._used = used_view[: 4 + 8 * size].cast("I")
        self._table = DescriptorTable(
            memory, memory.user_view(descriptors, 16 * size), size, indirect=indirect
        )
        self._last = self._table.last
        self._size = size
        self._mask = size - 1
        self._event_idx = event_idx
        self._log_address = 0
        self.next_avail = base & 0xFFFF
        self.used_idx = self._signalled = self._used_indices[1]

    @staticmethod
    def check_size(size: int) -> None:
        """Raises BadRing unless `size` is a power of two up to 32768."""
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise BadRing(f"queue size {size}")

    @property
    def size(self) -> int:
        """How many entries the rings have."""
        return self._size

    @property
    def base(self) -> int:
        """Where a queue made anew goes on (vring base of the vhost-user protocol)."""
        return self.next_avail

    def adopt(self, other: object) -> None:
        """Take the place of `other` of our class: the same ring, mapped anew."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    def pending(self) -> int:
        """How many chains the driver has made available and `pop` has not taken.

        Raises:
            BadRing: more than the queue holds.
        """
        count = (self._avail[1] - self.next_avail) & 0xFFFF
        if count > self._size:
            raise BadRing(f"{count} chains available in a queue of {self._size}")
        return count

    def has_avail(self) -> bool:
        """Whether the available ring has moved on."""
        return self._avail[1] != self.next_avail

    def pop(self) -> tuple[int, Sequence[memoryview], Sequence[memoryview]]:
        """Take a chain that `pending` counted: its head, readable and writable segments.

        Raises:
            BadChain, BadAddress: as `DescriptorTable.walk`; the chain counts as taken.
        """
        index = self.next_avail
        self.next_avail = (index + 1) & 0xFFFF
        head = self._avail[2 + (index & self._mask)]
        if head in self._last:
            place, descriptor, table, content, request, reply = self._last[head]
            if place == descriptor and table == content:
                return head, request, reply
        request, reply = self._table.walk(head)
        return head, request, reply

    def retake(self, head: int) -> tuple[int, Sequence[memoryview], Sequence[memoryview]]:
        """As `pop`, for a chain that somebody popped before us and never pushed.

        Raises:
            BadChain, BadAddress: as `DescriptorTable.walk`.
        """
        request, reply = self._table.walk(head)
        return head, request, reply

    def push(self, head: int, length: int) -> None:
        """Give back the chain `head`, with `length` bytes written to its writable segments."""
        index = self.used_idx
        used = self._used
        slot = (index & self._mask) << 1
        used[slot + 1] = head
        used[slot + 2] = length
        self.used_idx = self._used_indices[1] = (index + 1) & 0xFFFF

    def serve(
        self,
        handle: Callable[[Sequence[memoryview], Sequence[memoryview], _Completion], int],
        completion: _Completion,
        limit: int,
    ) -> tuple[int, Sequence[memoryview] | None]:
        """`pop` up to `limit` chains, `handle` each, `push` it. Returns how many were popped.

        Chains that come meanwhile are taken too. Fewer than `limit`: there are no more.
        Before a chain is handled `completion.head` is its head. One whose `handle` returns a
        negative length is not pushed and ends the burst; its writable segments are returned, too.
        This is the loop of a busy ring: made of calls, it would cost a request another 0.1 us.

        Raises:
            BadRing: as `pending`.
            BadChain, BadAddress: as `pop`; whatever `handle` raises, for the chain at
                `completion.head`, which counts as taken and is not pushed.
        """
        avail, last, mask = self._avail, self._last, self._mask
        used, used_indices = self._used, self._used_indices
        index = self.next_avail
        left = 0
        for number in range(limit):
            if not left:
                left = self.pending()
                if not left:
                    return number, None
            left -= 1
            head = avail[2 + (index & mask)]
            self.next_avail = index = (index + 1) & 0xFFFF
            if head in last:
                place, descriptor, table, content, request, reply = last[head]
                if place != descriptor or table != content:
                    request, reply = self._table.walk(head)
            else:
                request, reply = self._table.walk(head)
            completion.head = head
            length = handle(request, reply, completion)
            if length < 0:
                return number + 1, reply
            at = self.used_idx
            slot = (at & mask) << 1
            used[slot + 1] = head
            used[slot + 2] = length
            self.used_idx = used_indices[1] = (at + 1) & 0xFFFF
        return limit, None

    def must_signal(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since the last call."""
        new = self.used_idx
        old = self._signalled
        if new == old:
            return False
        self._signalled = new
        fence()
        if self._event_idx:
            # vring_need_event() of linux/virtio_ring.h.
            return (new - self._avail[2 + self._size] - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._avail[0] & NO_INTERRUPT

    def disable_kicks(self) -> None:
        """Ask the driver not to kick. A hint: kicks may still come."""
        if not self._event_idx:
            self._used_indices[0] = NO_NOTIFY

    def enable_kicks(self) -> bool:
        """Ask for a kick with the next chain; True if one came before the driver could see it."""
        if self._event_idx:
            self._used_indices[2 + 4 * self._size] = self.next_avail
        else:
            self._used_indices[0] = 0
        fence()
        return self._avail[1] != self.next_avail

    def set_log(self, memory: GuestMemory, addresses: tuple[int, int, int], used: int) -> None:
        """Prepare for `push_ranges` and `event_ranges`; `used` is the used ring, for the guest."""
        self._log_address = used

    def push_ranges(self) -> tuple[tuple[int, int], ...]:
        """What the last `push` wrote, as (guest address, length)."""
        slot = (self.used_idx - 1) & self._mask
        address = self._log_address
        return (address + 4 + (slot << 3), 8), (address + 2, 2)

    def event_ranges(self) -> tuple[tuple[int, int], ...]:
        """What `disable_kicks` and `enable_kicks` write, as (guest address, length)."""
        if self._event_idx:
            return ((self._log_address + 4 + 8 * self._size, 2),)
        return ((self._log_address, 2),)
