"""Memory that a frontend shares stays as long as it was when it was mapped, where Linux can see to
that.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from harness.virtio.memory import BadRegion, MemoryRegion
from harness.virtio.sealing import forbid_shrinking

SIZE = 1 << 16
_PUNCH_HOLE_KEEP_SIZE = 3


def sealable() -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    return fd


def test_mapped_memory_cannot_be_truncated_by_the_frontend() -> None:
    fd = sealable()
    region = MemoryRegion(fd, 0, SIZE, 0, 0)
    for size in (0, SIZE - 1, SIZE // 2):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    region.view[SIZE - 1] = 7
    assert os.pread(fd, 1, SIZE - 1) == b"\7"
    region.close()
    os.close(fd)


def test_mapped_memory_can_still_grow_and_give_pages_back() -> None:
    fd = sealable()
    region = MemoryRegion(fd, 0, SIZE, 0, 0)
    region.view[0] = 7
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.fallocate(
        fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(mmap.PAGESIZE)
    )
    assert region.view[0] == 0
    os.ftruncate(fd, 2 * SIZE)
    MemoryRegion(fd, SIZE, SIZE, SIZE, SIZE).close()
    region.close()
    os.close(fd)


def test_memory_that_was_truncated_before_is_refused() -> None:
    fd = sealable()
    os.ftruncate(fd, SIZE // 2)
    with pytest.raises(BadRegion):
        MemoryRegion(fd, 0, SIZE, 0, 0)
    os.close(fd)


def test_files_that_cannot_be_sealed_are_mapped_as_they_are() -> None:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    assert not forbid_shrinking(fd)
    MemoryRegion(fd, 0, SIZE, 0, 0).close()
    os.close(fd)


def test_memory_that_is_sealed_already_needs_nothing() -> None:
    fd = sealable()
    assert forbid_shrinking(fd)
    assert forbid_shrinking(fd)
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert forbid_shrinking(reader)
    os.close(reader)
    os.close(fd)
