"""Inflight memory of packed rings, which keeps descriptors too: the ring loses them."""

from __future__ import annotations

import struct
from typing import Final

from harness.virtio.chain import DESCRIPTOR
from harness.virtio.inflight import ALIGNMENT, VERSION, BadInflight
from harness.virtio.packed import PackedQueue

HEADER_SIZE: Final = 32
"""struct QueueRegionPacked: u64 features, u16 version, desc_num, free_head, old_free_head,
used_idx, old_used_idx, u8 used_wrap_counter, old_used_wrap_counter, and what aligns the entries.
"""
ENTRY_SIZE: Final = 32
"""struct DescStatePacked: u8 inflight, pad, u16 next, last, num, u64 counter; then id, flags,
length and address of the descriptor.
"""
_DESCRIPTOR: Final = struct.Struct("=HHIQ")

# Where the header's fields are, in the views of 16 and of 8 bits.
_VERSION: Final = 4
_DESC_NUM: Final = 5
_FREE_HEAD: Final = 6
_OLD_FREE_HEAD: Final = 7
_USED_IDX: Final = 8
_OLD_USED_IDX: Final = 9
_USED_WRAP: Final = 20
_OLD_USED_WRAP: Final = 21

# An entry's, besides ``inflight``, from its own begin in views of 16 and of 64 bits.
_NEXT: Final = 1
_LAST: Final = 2
_NUM: Final = 3
_COUNTER: Final = 1
_KEPT: Final = 16  # bytes


class PackedInflightQueue:
    """struct QueueRegionPacked: the interface of `InflightQueue`, for a packed ring.

    Entries are a free list, from ``free_head``, and a list for each chain that is worked on, in the
    order of its descriptors. Whatever is stored is valid only once its ``old_`` twin says so, or
    the ring itself, if we were killed in between.
    """

    __slots__ = ("_bytes", "_counter", "_entries", "_halves", "_queue", "_size", "_words")

    def __init__(self, view: memoryview, size: int) -> None:
        """`view` is the queue's part of the region, for `size` descriptors."""
        self._bytes = view
        self._halves = view.cast("H")
        self._words = view.cast("Q")
        self._size = size
        self._counter = 0
        # Head entries by what `PackedQueue.pop` calls a chain; a driver may use an id twice.
        self._entries: dict[int, list[int]] = {}
        self._queue: PackedQueue | None = None

    @staticmethod
    def region_size(queue_size: int) -> int:
        """Bytes of one queue's part of the region."""
        return -(-(HEADER_SIZE + ENTRY_SIZE * queue_size) // ALIGNMENT) * ALIGNMENT

    @staticmethod
    def header(queue_size: int, features: int) -> bytes:
        """What a new region begins with. Version 0: whoever begins knows where the ring is."""
        return bytes(HEADER_SIZE)

    def resume(self, queue: PackedQueue) -> list[int]:
        """Set `queue` behind what has been taken, and have it `retake` what was not given back by
        whoever served the ring before: those heads, oldest first.

        Raises:
            BadInflight: the region is for a smaller ring, or is none.
        """
        if self._halves[_VERSION] != VERSION:
            self._begin(queue)
        if min(self._halves[_DESC_NUM], self._size) < queue.size:
            raise BadInflight(
                f"a ring of {queue.size} with inflight memory for {self._halves[_DESC_NUM]}"
            )
        self._roll_back(queue)
        position, wrap = self._halves[_USED_IDX], self._bytes[_USED_WRAP]
        if position >= queue.size or wrap > 1:
            raise BadInflight(f"inflight memory of a ring at {position}, {wrap}")
        self._clear_free()
        found = [e for e in range(self._size) if self._bytes[ENTRY_SIZE * (e + 1)]]
        found.sort(key=lambda e: self._words[4 * (e + 1) + _COUNTER])
        if found:
            self._counter = (self._words[4 * (found[-1] + 1) + _COUNTER] + 1) & ((1 << 64) - 1)
        self._entries.clear()
        chains: list[tuple[int, bytes]] = []
        for entry in found:
            head, table = self._chain(entry, queue.size)
            self._entries.setdefault(head, []).append(entry)
            chains.append((head, table))
        if sum(head >> 16 for head, _ in chains) > queue.size:
            raise BadInflight("more descriptors in flight than the ring has")
        queue.restore(position, wrap, chains)
        self._queue = queue
        return [head for head, _ in chains]

    def _begin(self, queue: PackedQueue) -> None:
        halves = self._halves
        for entry in range(self._size):
            halves[16 * (entry + 1) + _NEXT] = entry + 1
            self._bytes[ENTRY_SIZE * (entry + 1)] = 0
        position, wrap = queue.used_idx, queue.used_wrap
        halves[_DESC_NUM] = self._size
        halves[_FREE_HEAD] = halves[_OLD_FREE_HEAD] = 0
        halves[_USED_IDX] = halves[_OLD_USED_IDX] = position
        self._bytes[_USED_WRAP] = self._bytes[_OLD_USED_WRAP] = wrap
        halves[_VERSION] = VERSION

    def _roll_back(self, queue: PackedQueue) -> None:
        """Undo what was begun, unless the ring has it."""
        halves, view = self._halves, self._bytes
        old = halves[_OLD_USED_IDX], view[_OLD_USED_WRAP]
        begun = old[0] < queue.size and (halves[_USED_IDX], view[_USED_WRAP]) != old
        if begun and not queue.is_available(*old):
            halves[_OLD_FREE_HEAD] = halves[_FREE_HEAD]
            halves[_OLD_USED_IDX] = halves[_USED_IDX]
            view[_OLD_USED_WRAP] = view[_USED_WRAP]
        halves[_FREE_HEAD] = halves[_OLD_FREE_HEAD]
        halves[_USED_IDX] = halves[_OLD_USED_IDX]
        view[_USED_WRAP] = view[_OLD_USED_WRAP]

    def _clear_free(self) -> None:
        entry = self._halves[_FREE_HEAD]
        for _ in range(self._size):
            if entry >= self._size:
                break
            self._bytes[ENTRY_SIZE * (entry + 1)] = 0
            entry = self._halves[16 * (entry + 1) + _NEXT]

    def _chain(self, entry: int, size: int) -> tuple[int, bytes]:
        """The head that `PackedQueue.pop` gave, and the descriptors as they were in the ring."""
        count = self._halves[16 * (entry + 1) + _NUM]
        if not 0 < count <= size:
            raise BadInflight(f"a chain of {count} descriptors in flight")
        table = b""
        buffer_id = 0
        for _ in range(count):
            if entry >= self._size:
                raise BadInflight("a chain in flight without an end")
            at = ENTRY_SIZE * (entry + 1) + _KEPT
            buffer_id, flags, length, address = _DESCRIPTOR.unpack_from(self._bytes, at)
            table += DESCRIPTOR.pack(address, length, buffer_id, flags)
            entry = self._halves[16 * (entry + 1) + _NEXT]
        return buffer_id | count << 16, table

    def take(self, head: int) -> None:
        """The chain `head` has been popped, and its descriptors are in the ring yet.

        Raises:
            BadInflight: somebody else has written to the region.
        """
        assert self._queue is not None
        table = self._queue.descriptors(head)
        halves, view = self._halves, self._bytes
        first = entry = halves[_OLD_FREE_HEAD]
        last = entry
        for number, (address, length, buffer_id, flags) in enumerate(DESCRIPTOR.iter_unpack(table)):
            if entry >= self._size:
                raise BadInflight("no room in inflight memory")
            if not number:
                halves[16 * (first + 1) + _NUM] = len(table) // DESCRIPTOR.size
                self._words[4 * (first + 1) + _COUNTER] = self._counter
                self._counter = (self._counter + 1) & ((1 << 64) - 1)
                view[ENTRY_SIZE * (first + 1)] = 1
            at = ENTRY_SIZE * (entry + 1) + _KEPT
            _DESCRIPTOR.pack_into(view, at, buffer_id, flags, length, address)
            last = entry
            entry = halves[16 * (entry + 1) + _NEXT]
        halves[16 * (first + 1) + _LAST] = last
        halves[_FREE_HEAD] = entry
        # From here on it is in flight.
        halves[_OLD_FREE_HEAD] = entry
        self._entries.setdefault(head, []).append(first)

    def give(self, head: int) -> None:
        """The chain `head` is about to be pushed.

        Raises:
            BadInflight: as `take`.
        """
        halves, view = self._halves, self._bytes
        entry = self._entries[head][0]
        last = halves[16 * (entry + 1) + _LAST]
        if last >= self._size:
            raise BadInflight("a chain in flight without an end")
        halves[16 * (last + 1) + _NEXT] = halves[_FREE_HEAD]
        halves[_FREE_HEAD] = entry
        assert self._queue is not None
        position = halves[_USED_IDX] + (head >> 16)
        if position >= self._queue.size:
            position -= self._queue.size
            view[_USED_WRAP] ^= 1
        halves[_USED_IDX] = position & 0xFFFF

    def given(self, head: int, used_idx: int) -> None:
        """It has been, and the next used descriptor is at `used_idx`."""
        halves, view = self._halves, self._bytes
        entries = self._entries[head]
        view[ENTRY_SIZE * (entries.pop(0) + 1)] = 0
        if not entries:
            del self._entries[head]
        halves[_OLD_FREE_HEAD] = halves[_FREE_HEAD]
        halves[_OLD_USED_IDX] = used_idx
        view[_OLD_USED_WRAP] = view[_USED_WRAP]
