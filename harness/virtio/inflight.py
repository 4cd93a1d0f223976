"""The memory in which a device notes what it has taken, for the one that comes after its death."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from harness.virtio.memory import GuestError
from harness.virtio.sealing import settled_size

if TYPE_CHECKING:
    from harness.virtio.packed_inflight import PackedInflightQueue
    from harness.virtio.queue import SplitQueue

VERSION: Final = 1
ALIGNMENT: Final = 64

_HEADER: Final = struct.Struct("=QHHHH")
"""struct QueueRegionSplit: features, version, desc_num, last_batch_head, used_idx."""
_ENTRY: Final = 16
"""Bytes of struct DescStateSplit: u8 inflight, 5 of padding, u16 next, u64 counter."""

# Where the fields are in the views of 16 and of 64 bits.
_HEADER_VERSION: Final = 4
_HEADER_DESC_NUM: Final = 5
_HEADER_LAST_BATCH: Final = 6
_HEADER_USED_IDX: Final = 7


class BadInflight(GuestError):
    """The region can't be mapped, or is not for this queue."""


class InflightQueue:
    """struct QueueRegionSplit: which chains of one split ring are being worked on.

    Every field is stored with one instruction and in the order that the specification gives, so
    that whoever finds the region knows, wherever we were killed, which chains are still unanswered.
    """

    __slots__ = ("_bytes", "_counter", "_halves", "_size", "_words")

    def __init__(self, view: memoryview, size: int) -> None:
        """`view` is the queue's part of the region, for `size` descriptors."""
        self._bytes = view
        self._halves = view.cast("H")
        self._words = view.cast("Q")
        self._size = size
        self._counter = 0

    @staticmethod
    def region_size(queue_size: int) -> int:
        """Bytes of one queue's part of the region."""
        size = _HEADER.size + _ENTRY * queue_size
        return -(-size // ALIGNMENT) * ALIGNMENT

    @staticmethod
    def header(queue_size: int, features: int) -> bytes:
        """What a new part begins with."""
        return _HEADER.pack(features, VERSION, queue_size, 0, 0)

    def resume(self, queue: SplitQueue) -> list[int]:
        """Set `queue` behind what has been taken, and return what is to be taken again: `recover`.

        Raises:
            BadInflight: as `recover`.
        """
        found = self.recover(queue.size, queue.used_idx)
        queue.next_avail = (queue.used_idx + len(found)) & 0xFFFF
        return found

    def recover(self, size: int, used_idx: int) -> list[int]:
        """What has been taken and not given back by whoever served the ring before, oldest first.

        The ring has `size` descriptors, and its used index is at `used_idx`.

        Raises:
            BadInflight: the region is for a smaller ring.
        """
        halves = self._halves
        if halves[_HEADER_VERSION] != VERSION:
            halves[_HEADER_DESC_NUM] = self._size
            halves[_HEADER_USED_IDX] = used_idx
            halves[_HEADER_VERSION] = VERSION
        count = min(halves[_HEADER_DESC_NUM], self._size)
        if count < size:
            raise BadInflight(f"a ring of {size} with inflight memory for {count}")
        # Killed between the used index and our note of it: the batch has been answered.
        batch = (used_idx - halves[_HEADER_USED_IDX]) & 0xFFFF
        head = halves[_HEADER_LAST_BATCH]
        for _ in range(min(batch, size)):
            if head >= size:
                break
            self._bytes[_ENTRY * (head + 1)] = 0
            head = halves[8 * head + 11]
        halves[_HEADER_USED_IDX] = used_idx
        found = [i for i in range(size) if self._bytes[_ENTRY * (i + 1)]]
        found.sort(key=lambda i: self._words[2 * i + 3])
        if found:
            self._counter = (self._words[2 * found[-1] + 3] + 1) & ((1 << 64) - 1)
        return found

    def take(self, head: int) -> None:
        """The chain `head` has been popped."""
        self._words[2 * head + 3] = self._counter
        self._counter = (self._counter + 1) & ((1 << 64) - 1)
        self._bytes[_ENTRY * (head + 1)] = 1

    def give(self, head: int) -> None:
        """The chain `head` is about to be pushed."""
        halves = self._halves
        halves[8 * head + 11] = halves[_HEADER_LAST_BATCH]
        halves[_HEADER_LAST_BATCH] = head

    def given(self, head: int, used_idx: int) -> None:
        """It has been, and the used index is `used_idx`."""
        self._bytes[_ENTRY * (head + 1)] = 0
        self._halves[_HEADER_USED_IDX] = used_idx


Layout: TypeAlias = "type[InflightQueue] | type[PackedInflightQueue]"


def create(
    num_queues: int, queue_size: int, features: int, layout: Layout = InflightQueue
) -> tuple[int, int]:
    """A new region for queues that are not used yet: its descriptor, which is the caller's, and
    its size.

    Raises:
        OSError: from memfd_create(2), ftruncate(2).
    """
    step = layout.region_size(queue_size)
    fd = os.memfd_create("inflight", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, step * num_queues)
        header = layout.header(queue_size, features)
        for number in range(num_queues):
            os.pwrite(fd, header, step * number)
    except BaseException:
        os.close(fd)
        raise
    return fd, step * num_queues


class InflightRegion:
    """The shared memory of SET_INFLIGHT_FD: a part for each ring, as `layout` has it."""

    __slots__ = ("_layout", "_mapping", "_num_queues", "_queue_size", "_view")

    def __init__(
        self,
        fd: int,
        size: int,
        offset: int,
        num_queues: int,
        queue_size: int,
        layout: Layout = InflightQueue,
    ) -> None:
        """Map `size` bytes from byte `offset` of the file `fd`, which is borrowed.

        Raises:
            BadInflight: `num_queues` queues of `queue_size` do not fit, `offset` is no multiple of
                the page size, the file ends before the region does, or mmap(2) failed.
        """
        if not 0 < num_queues * layout.region_size(queue_size) <= size or offset % mmap.PAGESIZE:
            raise BadInflight(f"{num_queues} queues of {queue_size} in {size} bytes at {offset:#x}")
        try:
            available = settled_size(fd)
            if offset + size > available:
                raise BadInflight(f"inflight memory of {size} in a file of {available} bytes")
            self._mapping = mmap.mmap(fd, size, offset=offset)
        except (OSError, ValueError, OverflowError) as error:
            raise BadInflight(f"inflight memory: {error}") from error
        self._view = memoryview(self._mapping)
        self._num_queues = num_queues
        self._queue_size = queue_size
        self._layout = layout

    def queue(self, index: int) -> InflightQueue | PackedInflightQueue | None:
        """The part of ring `index`, or None if the region has none for it."""
        if index >= self._num_queues:
            return None
        step = self._layout.region_size(self._queue_size)
        return self._layout(self._view[index * step : (index + 1) * step], self._queue_size)

    def close(self) -> None:
        """Unmap now, or when the last ring that notes something in it lets go."""
        self._view.release()
        try:
            self._mapping.close()
        except BufferError:
            pass
