"""The dirty log of a live migration: which pages of guest memory were written."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterable
from typing import Final

from harness.virtio.memory import GuestError
from harness.virtio.sealing import settled_size

PAGE_SHIFT: Final = 12
"""VHOST_LOG_PAGE, 4096, whatever the pages of guest and host are."""

_WORD_SHIFT: Final = 5
_WORD_MASK: Final = 31
_ALL: Final = 0xFFFFFFFF
_SYS_FUTEX: Final = 202 if platform.machine() == "x86_64" else -1
_WAKE_OP_PRIVATE: Final = 5 | 128
# FUTEX_OP(FUTEX_OP_OR with FUTEX_OP_ARG_SHIFT, bit, ...): set the bit of that number.
_OR_BIT: Final = (2 | 8) << 28

_LIBC: Final = ctypes.CDLL(None)
_syscall = _LIBC["syscall"]
_syscall.argtypes = [
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint,
]
_syscall.restype = ctypes.c_long


class BadLog(GuestError):
    """The log can't be mapped, or does not reach as far as guest memory does."""


class DirtyLog:
    """vhost_dev.log of a VMM: a bit for every 4 KiB of guest-physical addresses, shared.

    The VMM takes bits away and other devices set theirs while we do, so bits are set atomically.
    Python can't; futex(2) can (FUTEX_WAKE_OP), for 1.5 us. A word of 32 pages that all became
    dirty is stored, for nothing of it can get lost; and what is set already is left alone, which
    is right because a VMM looks at a page after it has taken its bit away: callers `fence` between
    the write to guest memory and `mark`.
    """

    __slots__ = ("_address", "_bytes", "_mapping", "_pages", "_words", "call")

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Map `size` bytes from byte `offset` of the file `fd`, which is borrowed.

        Raises:
            BadLog: nothing to map, `offset` is no multiple of the page size, a file that ends
                before the log does, or mmap(2) failed.
        """
        if not size or offset % mmap.PAGESIZE:
            raise BadLog(f"a log of {size} bytes at {offset:#x} of its file")
        try:
            available = settled_size(fd)
            if offset + size > available:
                raise BadLog(f"log needs {offset + size} bytes of a file of {available}")
            self._mapping = mmap.mmap(fd, size, offset=offset)
        except (OSError, ValueError, OverflowError) as error:
            raise BadLog(f"log: {error}") from error
        self.call = -1
        self._pages = size << 3
        self._bytes = memoryview(self._mapping)
        self._words = self._bytes[: size & ~3].cast("I")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    def mark(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Set the bits of all pages that these (guest address, length) touch; no length is 0.

        Raises:
            BadLog: one is beyond the log.
        """
        words = self._words
        news = False
        for address, length in ranges:
            first = address >> PAGE_SHIFT
            last = (address + length - 1) >> PAGE_SHIFT
            if last >= self._pages:
                raise BadLog(f"guest address {address + length - 1:#x} is beyond the log")
            for word in range(first >> _WORD_SHIFT, (last >> _WORD_SHIFT) + 1):
                start = max(first - (word << _WORD_SHIFT), 0)
                end = min(last - (word << _WORD_SHIFT), _WORD_MASK)
                mask = (_ALL >> _WORD_MASK - end) & (_ALL << start)
                if word < len(words):
                    missing = mask & ~words[word]
                else:
                    missing = mask & ~int.from_bytes(self._bytes[word << 2 :], "little")
                if not missing:
                    continue
                news = True
                if mask == _ALL:
                    words[word] = _ALL
                else:
                    self._set_bits(word, missing)
        if news and self.call >= 0:
            try:
                os.eventfd_write(self.call, 1)
            except BlockingIOError:
                # The counter is full: the VMM has been told often enough.
                pass

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._bytes.release()
        self._mapping.close()

    def _set_bits(self, word: int, missing: int) -> None:
        address = self._address + (word << 2)
        while missing:
            bit = (missing & -missing).bit_length() - 1
            missing &= missing - 1
            if _SYS_FUTEX < 0 or _syscall(
                _SYS_FUTEX, address, _WAKE_OP_PRIVATE, 0, None, address, _OR_BIT | bit << 12
            ):
                # Eight pages at once lose nobody's bits either.
                self._set_bytes(word << 2, missing | 1 << bit)
                return

    def _set_bytes(self, start: int, mask: int) -> None:
        for number in range(4):
            if mask >> (number << 3) & 0xFF:
                self._bytes[start + number] = 0xFF
