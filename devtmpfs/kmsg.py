"""/dev/kmsg: the daemon's own log, as records. Linux: kernel/printk/printk.c;
Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
from collections import deque
from typing import Final

from vfs import abi
from vfs.clock import Clock, SystemClock
from vfs.device import CharDevice, DeviceFile, scatter, total_length
from vfs.errors import WouldBlock, oserror
from vfs.file import Buffers

RECORD_MAX: Final = 1024  # PRINTKRB_RECORD_MAX: bytes of text in one record
LOG_BUFFER_SIZE: Final = 1 << 18  # bytes of formatted records kept (CONFIG_LOG_BUF_SHIFT=18)
_DEFAULT_LEVEL = 4  # CONFIG_MESSAGE_LOGLEVEL_DEFAULT: KERN_WARNING
_FACILITY_USER = 1
_PREFIX = re.compile(rb"<(\d*)>")
_ESCAPED = re.compile(rb"[^\x20-\x5b\x5d-\x7e]")  # what is not printable ASCII, and the backslash


class LogRing:
    """Linux: ``printk_ringbuffer``. Numbered records, the oldest of which give way.

    Safe to use from any thread, with or without the VFS lock.
    """

    __slots__ = ("_clock", "_lock", "_records", "_size", "_start_ns", "first", "limit")

    def __init__(self, clock: Clock, limit: int = LOG_BUFFER_SIZE) -> None:
        self._clock = clock
        self._start_ns = clock.now_ns()
        self._lock = threading.Lock()
        self._records: deque[bytes] = deque()
        self._size = 0
        self.first = 0  # the sequence number of the oldest record
        self.limit = limit

    @property
    def next(self) -> int:
        """The sequence number that the next record will get."""
        return self.first + len(self._records)

    def append(self, priority: int, text: bytes) -> None:
        """Add a record now; ``priority`` is facility * 8 + level. ``text`` is cut at RECORD_MAX."""
        escaped = _ESCAPED.sub(lambda match: b"\\x%02x" % match[0][0], text[:RECORD_MAX])
        with self._lock:
            usec = (self._clock.now_ns() - self._start_ns) // 1000
            record = b"%d,%d,%d,-;%b\n" % (priority, self.next, usec, escaped)
            self._records.append(record)
            self._size += len(record)
            while self._size > self.limit and len(self._records) > 1:
                self._size -= len(self._records.popleft())
                self.first += 1

    def record(self, sequence: int) -> bytes | None:
        """The formatted record, or None if it was overwritten or does not exist yet."""
        with self._lock:
            index = sequence - self.first
            return self._records[index] if 0 <= index < len(self._records) else None


class KmsgFile:
    """Linux: ``struct devkmsg_user``. Where one open file stands; its ``private_data``."""

    __slots__ = ("sequence",)

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence


class Kmsg(CharDevice):
    """Linux: ``kmsg_fops``. ``handler`` is the logging.Handler that feeds it.

    One read gives one record, whatever the offset; each open file has its own place, at first
    before the oldest record. A record is readable as soon as it is written, where Linux waits for
    a possible continuation if the newline is missing; writes are not rate limited.
    """

    name = "kmsg"
    major = 1
    minor = 11
    mode = 0o644
    driver = "mem"

    def __init__(self, clock: Clock | None = None, limit: int = LOG_BUFFER_SIZE) -> None:
        super().__init__()
        self.ring = LogRing(SystemClock() if clock is None else clock, limit)
        self.handler = KmsgHandler(self)

    def log(self, priority: int, text: bytes) -> None:
        """Add a record and wake the readers. From any thread."""
        self.ring.append(priority, text)
        self.wait.wake_all()

    def open(self, file: DeviceFile) -> None:
        file.private_data = KmsgFile(self.ring.first)

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        """One record. Linux: ``devkmsg_read``.

        Raises: WouldBlock at the end; EPIPE once if the next record was overwritten, after which
        reading goes on at the oldest; EINVAL if the record does not fit.
        """
        user = _user(file)
        ring = self.ring
        record = ring.record(user.sequence)
        if record is None:
            if user.sequence >= ring.next:
                raise WouldBlock(self.wait)
            user.sequence = ring.first
            raise oserror(errno.EPIPE)
        if len(record) > total_length(buffers):
            raise oserror(errno.EINVAL)
        user.sequence += 1
        return scatter(record, buffers)

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        """One record: ``<N>`` (facility * 8 + level) may come first; a last newline is dropped.

        Facility 0 is the kernel's and becomes "user". Linux: ``devkmsg_write``.

        Raises: EINVAL beyond RECORD_MAX bytes.
        """
        size = total_length(buffers)
        if size > RECORD_MAX:
            raise oserror(errno.EINVAL)
        line = b"".join(buffers)
        level, facility = _DEFAULT_LEVEL, _FACILITY_USER
        prefix = _PREFIX.match(line)
        if prefix:
            number = int(prefix[1] or b"0") & 0xFFFFFFFF
            level = number & 7
            facility = number >> 3 & 0xFF or _FACILITY_USER
            line = line[prefix.end() :]
        self.log(facility << 3 | level, line.partition(b"\0")[0].removesuffix(b"\n"))
        return size

    def llseek(self, file: DeviceFile, offset: int, whence: int) -> int:
        """SEEK_SET and SEEK_DATA: the oldest record; SEEK_END: after the newest.

        Linux: ``devkmsg_llseek`` (nothing ever clears our log, so DATA is SET). Returns 0.

        Raises: ESPIPE unless ``offset`` is 0; EINVAL for another ``whence``.
        """
        if not abi.SEEK_SET <= whence <= abi.SEEK_HOLE:
            raise oserror(errno.EINVAL)
        if offset:
            raise oserror(errno.ESPIPE)
        if whence in (abi.SEEK_SET, abi.SEEK_DATA):
            _user(file).sequence = self.ring.first
        elif whence == abi.SEEK_END:
            _user(file).sequence = self.ring.next
        else:
            raise oserror(errno.EINVAL)
        return 0

    def poll(self, file: DeviceFile) -> int:
        """Linux: ``devkmsg_poll``."""
        sequence = _user(file).sequence
        if sequence >= self.ring.next:
            return 0
        mask = abi.POLLIN | abi.POLLRDNORM
        if sequence < self.ring.first:
            mask |= abi.POLLERR | abi.POLLPRI
        return mask


def _user(file: DeviceFile) -> KmsgFile:
    user = file.private_data
    assert isinstance(user, KmsgFile)
    return user


class KmsgHandler(logging.Handler):
    """Sends logging records to a Kmsg: one record a line, facility 0, syslog's levels.

    Loggers are the caller's to attach: ``logging.getLogger("dentry").addHandler(kmsg.handler)``.
    """

    def __init__(self, kmsg: Kmsg) -> None:
        super().__init__()
        self._kmsg = kmsg
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).encode("utf-8", "surrogateescape").split(b"\n")
        except Exception:
            self.handleError(record)
            return
        level = _syslog_level(record.levelno)
        for line in lines:
            self._kmsg.log(level, line)


def _syslog_level(levelno: int) -> int:
    """Python's level as KERN_CRIT, KERN_ERR, KERN_WARNING, KERN_INFO or KERN_DEBUG."""
    if levelno >= logging.CRITICAL:
        return 2
    if levelno >= logging.ERROR:
        return 3
    if levelno >= logging.WARNING:
        return 4
    return 6 if levelno >= logging.INFO else 7
