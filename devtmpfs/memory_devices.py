"""null, zero, full, random and urandom. Linux: drivers/char/mem.c, drivers/char/random.c; null(4),
full(4), random(4).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from vfs import abi
from vfs.device import CharDevice, Device, DeviceFile, total_length
from vfs.errors import oserror
from vfs.file import Buffers

MEM_MAJOR: Final = 1
RNDGETENTCNT: Final = 0x80045200
_ENTROPY_BITS = struct.pack("=i", 256)  # what a seeded pool of Linux 6.x always answers
_ZEROS = bytes(1 << 16)
_RANDOM_CHUNK = 1 << 16  # bounds what one read allocates at a time


class MemoryDevice(CharDevice):
    """What the drivers of major 1 share: an offset that stays 0, readable by everybody."""

    major = MEM_MAJOR
    mode = 0o666
    driver = "mem"

    def llseek(self, file: DeviceFile, offset: int, whence: int) -> int:
        """Linux: ``null_lseek``: 0, wherever one wants to go.

        Raises: EINVAL for a ``whence`` that lseek(2) does not know.
        """
        if not abi.SEEK_SET <= whence <= abi.SEEK_HOLE:
            raise oserror(errno.EINVAL)
        return 0


class Null(MemoryDevice):
    """Linux: ``null_fops``. Always at its end; swallows what is written."""

    name = "null"
    minor = 3

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        return 0

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        return total_length(buffers)


class Zero(MemoryDevice):
    """Linux: ``zero_fops``. Endless zeros; swallows what is written."""

    name = "zero"
    minor = 5

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        zeros = memoryview(_ZEROS)
        for buffer in buffers:
            for start in range(0, len(buffer), len(zeros)):
                part = buffer[start : start + len(zeros)]
                part[:] = zeros[: len(part)]
        return total_length(buffers)

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        return total_length(buffers)


class Full(Zero):
    """Linux: ``full_fops``. Endless zeros; no room for even an empty write."""

    name = "full"
    minor = 7

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        """Raises: ENOSPC."""
        raise oserror(errno.ENOSPC)


class Urandom(MemoryDevice):
    """Linux: ``urandom_fops``. The host's random numbers.

    What is written is taken and dropped: the host's pool is not ours to stir.
    """

    name = "urandom"
    minor = 9

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        for buffer in buffers:
            for start in range(0, len(buffer), _RANDOM_CHUNK):
                part = buffer[start : start + _RANDOM_CHUNK]
                part[:] = os.urandom(len(part))
        return total_length(buffers)

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        return total_length(buffers)

    def ioctl(self, file: DeviceFile, command: int, argument: bytes | memoryview | int) -> bytes:
        """RNDGETENTCNT. Raises: EINVAL for a command it does not know (Linux: ``random_ioctl``)."""
        if command != RNDGETENTCNT:
            raise oserror(errno.EINVAL)
        return _ENTROPY_BITS


class Random(Urandom):
    """Linux: ``random_fops``. As urandom, since the pool is seeded long before we run."""

    name = "random"
    minor = 8

    def poll(self, file: DeviceFile) -> int:
        """Linux: ``random_poll``: writable only as long as the pool wants more."""
        return abi.POLLIN | abi.POLLRDNORM


def memory_devices() -> list[Device]:
    """A new one of each."""
    return [Null(), Zero(), Full(), Random(), Urandom()]
