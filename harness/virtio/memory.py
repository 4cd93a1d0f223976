"""Guest memory: regions shared by a VMM, mapped here, addressed by the guest and by the VMM."""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from harness.virtio.sealing import settled_size

ADDRESS_LIMIT: Final = 1 << 64
ALIGNMENT: Final = 4096
"""Of everything about a region: what KVM and mmap(2) ask of a VMM anyway."""


class GuestError(Exception):
    """Something a guest or its VMM supplied can't be used. It costs a queue or a connection."""


class BadAddress(GuestError):
    """A range of addresses lies, at least partly, in no region."""


class BadRegion(GuestError):
    """A region can't be mapped: misaligned, its file too short, or it overlaps another."""


def address_of(view: memoryview) -> int:
    """Where the first byte of `view`, which is writable and not empty, lies in our memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class MemoryRegion:
    """struct vhost_memory_region, mapped: `size` bytes of a file at two addresses.

    `guest_address` is where the guest sees them, `user_address` where the VMM does (vhost-user
    gives ring addresses in the latter). The mapping lives as long as any view of it.
    """

    __slots__ = ("_base", "_mapping", "guest_address", "guest_end", "size", "user_address", "view")

    def __init__(
        self, fd: int, guest_address: int, size: int, user_address: int, offset: int
    ) -> None:
        """Map `size` bytes from byte `offset` of the file `fd`, which is borrowed.

        A memfd is sealed against shrinking (`forbid_shrinking`). A VMM that truncates any other
        file afterwards kills us with SIGBUS, as it does any vhost-user backend; a guest can't.

        Raises:
            BadRegion: size 0, addresses that wrap, an address, size or offset that is no multiple
                of 4096, no regular file, a file that ends before the region does, or mmap(2)
                failed.
        """
        if size == 0 or max(guest_address, user_address, offset) + size > ADDRESS_LIMIT:
            raise BadRegion(f"region of {size:#x} bytes at {guest_address:#x} wraps or is empty")
        if (guest_address | size | user_address | offset) % ALIGNMENT:
            raise BadRegion(f"region of {size:#x} bytes at {guest_address:#x} is misaligned")
        try:
            available = settled_size(fd)
            if offset + size > available:
                raise BadRegion(
                    f"region needs {offset + size:#x} bytes of a file of {available:#x}"
                )
            # hugetlbfs maps and unmaps whole huge pages only; its block is its page.
            page = max(mmap.PAGESIZE, os.fstatvfs(fd).f_bsize)
            start = offset - offset % page
            length = min(offset + size + -(offset + size) % page, available) - start
            self._mapping = mmap.mmap(fd, length, offset=start)
        except (OSError, ValueError, OverflowError) as error:
            raise BadRegion(f"region at {guest_address:#x}: {error}") from error
        self.guest_address = guest_address
        self.guest_end = guest_address + size
        self.user_address = user_address
        self.size = size
        self._base = 0
        self.view = memoryview(self._mapping)[offset - start : offset - start + size]

    @property
    def base(self) -> int:
        """Where `view` begins in our own address space."""
        if not self._base:
            self._base = address_of(self.view)
        return self._base

    def close(self) -> None:
        """Unmap now, or when the last view that a pending request holds is gone."""
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            pass


class GuestMemory:
    """struct vhost_memory: the regions of one guest, and the translation of its addresses.

    `low`, `high` and `view` describe the region used last: a caller that translates many
    addresses compares with them itself and calls `segments` only on a miss.
    """

    __slots__ = ("_regions", "_starts", "high", "low", "view")

    def __init__(self) -> None:
        self._regions: list[MemoryRegion] = []
        self._starts: list[int] = []
        self._remember(None)

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """The regions, by guest address."""
        return tuple(self._regions)

    def add(self, region: MemoryRegion) -> None:
        """Take over `region`.

        Raises:
            BadRegion: it overlaps another, in guest or in user addresses.
        """
        for other in self._regions:
            if (
                region.guest_address < other.guest_end and other.guest_address < region.guest_end
            ) or (
                region.user_address < other.user_address + other.size
                and other.user_address < region.user_address + region.size
            ):
                raise BadRegion(f"region at {region.guest_address:#x} overlaps another")
        index = bisect_right(self._starts, region.guest_address)
        self._regions.insert(index, region)
        self._starts.insert(index, region.guest_address)
        self._remember(region)

    def remove(self, guest_address: int, size: int, user_address: int) -> None:
        """Drop the region that has exactly these addresses and this size.

        Raises:
            BadRegion: there is none.
        """
        for index, region in enumerate(self._regions):
            if (region.guest_address, region.size, region.user_address) == (
                guest_address,
                size,
                user_address,
            ):
                del self._regions[index], self._starts[index]
                self._remember(self._regions[0] if self._regions else None)
                region.close()
                return
        raise BadRegion(f"no region of {size:#x} bytes at {guest_address:#x} to remove")

    def clear(self) -> None:
        """Drop all regions."""
        regions = self._regions
        self._regions, self._starts = [], []
        self._remember(None)
        for region in regions:
            region.close()

    def segments(self, address: int, length: int, into: list[memoryview]) -> None:
        """Append views of `length` bytes at guest-physical `address`, split where regions meet.

        Raises:
            BadAddress: a byte of the range is in no region; `into` may have grown.
        """
        end = address + length
        while address < end:
            index = bisect_right(self._starts, address) - 1
            if index < 0 or address >= self._regions[index].guest_end:
                raise BadAddress(f"guest address {address:#x} is not in memory")
            region = self._regions[index]
            self._remember(region)
            offset = address - region.guest_address
            piece = region.view[offset : offset + end - address]
            into.append(piece)
            address += len(piece)

    def user_view(self, address: int, length: int) -> memoryview:
        """A view of `length` bytes at `address` in the VMM's address space, in one region.

        Raises:
            BadAddress: no region holds the whole range.
        """
        for region in self._regions:
            offset = address - region.user_address
            if offset >= 0 and offset + length <= region.size:
                return region.view[offset : offset + length]
        raise BadAddress(f"user address {address:#x}+{length:#x} is not in one region")

    def guest_address(self, user_address: int) -> int:
        """The guest-physical address of what the VMM has at `user_address`.

        Raises:
            BadAddress: no region holds it.
        """
        for region in self._regions:
            offset = user_address - region.user_address
            if 0 <= offset < region.size:
                return region.guest_address + offset
        raise BadAddress(f"user address {user_address:#x} is in no region")

    def guest_ranges(self, segments: Iterable[memoryview]) -> list[tuple[int, int]]:
        """Guest-physical address and length of each of `segments`, views of present regions.

        For the dirty log only, at about 1 us a segment: chains do not carry their addresses.
        """
        ranges: list[tuple[int, int]] = []
        for segment in segments:
            address = address_of(segment)
            for region in self._regions:
                offset = address - region.base
                if 0 <= offset < region.size:
                    ranges.append((region.guest_address + offset, len(segment)))
                    break
        return ranges

    def _remember(self, region: MemoryRegion | None) -> None:
        if region is None:
            self.low = self.high = 0
            self.view = memoryview(b"")
        else:
            self.low = region.guest_address
            self.high = region.guest_end
            self.view = region.view
