"""Descriptor chains: from a head index to segments of guest memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from harness.virtio.memory import GuestError, GuestMemory

DESCRIPTOR: Final = struct.Struct("<QIHH")
"""struct vring_desc: address, length, flags, next."""

_UNPACK: Final = DESCRIPTOR.unpack_from

NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4

_PAGE_MASK: Final = 4095
_MEMORISED_SIZE: Final = 6 * 16
_MEMORISED_CHAINS: Final = 1024

Segments = tuple[Sequence[memoryview], Sequence[memoryview]]


class BadChain(GuestError):
    """A descriptor chain breaks a rule of section 2.7.5."""


class DescriptorTable:
    """struct vring_desc[]: the table of one queue.

    What is read is read once and checked afterwards, for the guest can change it meanwhile.

    A driver that allocates a small indirect table tends to get the one it freed last, for buffers
    that it freed with it (Linux 6.1 in QEMU: 5 different tables in 6000 requests), so what small
    tables mean is remembered by their bytes. A request then costs the ring 0.9 instead of 2.2 us,
    and 0.6 us more where no table ever comes back. What is remembered holds for one state of
    memory: a change of memory makes a new DescriptorTable.
    """

    __slots__ = ("_indirect", "_known", "_limit", "_memory", "_size", "_table")

    def __init__(
        self, memory: GuestMemory, table: memoryview, size: int, *, indirect: bool
    ) -> None:
        """`table` holds `size` descriptors; `indirect` says that INDIRECT_DESC was negotiated."""
        self._memory = memory
        self._table = table
        self._size = size
        self._limit = size << 4
        self._indirect = indirect
        self._known: dict[bytes, Segments] = {}

    def walk(self, head: int) -> Segments:
        """The readable and the writable segments of the chain that begins at `head`, in order.

        They may be returned again for another chain over the same buffers, so the sequences are
        not the caller's to change. A descriptor of length 0 adds nothing. One that spans regions
        adds several segments.

        Raises:
            BadChain: `head` or a next index is outside the table; more descriptors than the
                queue has (so also a loop); a readable one after a writable one; an indirect one
                not negotiated, inside a chain or an indirect table, with NEXT set, or whose
                length is no multiple of 16 or exceeds that of the queue's own table.
            BadAddress: a descriptor points outside memory.
        """
        if head >= self._size:
            raise BadChain(f"head {head} in a queue of {self._size}")
        address, length, flags, _ = _UNPACK(self._table, head << 4)
        if not flags & INDIRECT:
            return self._follow(self._table, self._size, head)
        if flags & NEXT or not self._indirect or not 0 < length <= self._limit or length & 15:
            raise BadChain(f"indirect table of {length} bytes, flags {flags:#x}")
        memory = self._memory
        start = address - memory.low
        if start >= 0 and address + length <= memory.high:
            table = memory.view[start : start + length]
        else:
            pieces: list[memoryview] = []
            memory.segments(address, length, pieces)
            table = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        if length > _MEMORISED_SIZE:
            return self._parse(table)
        content = table.tobytes()
        known = self._known.get(content)
        if known is None:
            if len(self._known) >= _MEMORISED_CHAINS:
                self._known.clear()
            known = self._known[content] = self._parse(content)
        return known

    def _parse(self, table: bytes | memoryview) -> Segments:
        memory = self._memory
        low, high, view = memory.low, memory.high, memory.view
        request: list[memoryview] = []
        reply: list[memoryview] = []
        segments = request
        # Pages of one buffer that follow each other in memory become one segment: a segment a page
        # made a 1 MiB READ three times as dear. `kind` is the direction of the run so far.
        start = end = kind = 0
        # Linux lays indirect tables out in order. Loop and bounds are then those of the table.
        for position, (address, length, flags, following) in enumerate(
            DESCRIPTOR.iter_unpack(table), 1
        ):
            if address == end and flags | NEXT == kind and not address & _PAGE_MASK:
                end += length
            else:
                if end > start:
                    if low <= start and end <= high:
                        segments.append(view[start - low : end - low])
                    else:
                        memory.segments(start, end - start, segments)
                start, end, kind = address, address + length, flags | NEXT
                if flags & WRITE:
                    segments = reply
                elif segments is reply:
                    raise BadChain("a readable descriptor follows a writable one")
                if flags & INDIRECT:
                    raise BadChain("an indirect table inside an indirect table")
            if not flags & NEXT:
                if end > start:
                    if low <= start and end <= high:
                        segments.append(view[start - low : end - low])
                    else:
                        memory.segments(start, end - start, segments)
                return request, reply
            if following != position:
                return self._follow(table, len(table) >> 4, 0)
        raise BadChain(f"chain leaves its table of {len(table) >> 4}")

    def _follow(self, table: bytes | memoryview, count: int, index: int) -> Segments:
        memory = self._memory
        request: list[memoryview] = []
        reply: list[memoryview] = []
        for _ in range(self._size):
            address, length, flags, following = _UNPACK(table, index << 4)
            if flags & INDIRECT:
                raise BadChain("an indirect descriptor inside a chain")
            if flags & WRITE:
                memory.segments(address, length, reply)
            elif reply:
                raise BadChain("a readable descriptor follows a writable one")
            else:
                memory.segments(address, length, request)
            if not flags & NEXT:
                return request, reply
            if following >= count:
                raise BadChain(f"next descriptor {following} in a table of {count}")
            index = following
        raise BadChain(f"chain loops or is longer than the queue ({self._size})")
