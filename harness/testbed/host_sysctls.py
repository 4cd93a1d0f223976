"""fs.protected_* and fs.mount-max, which the whole host has once, and who relies on them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.testbed.target import TargetUnavailable

_DIRECTORY: Final = Path("/proc/sys/fs")


class HostSysctls:
    """The sysctls as somebody wants them, for as long as somebody here does.

    Whoever reads one shares a lock on their directory until ``release``, and whoever changes one
    has it alone: another test bed on this host waits, and finds all as it was before.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._alone = False
        self._users = 0
        self._wanted: dict[str, int] = {}
        self._before: dict[str, int] = {}

    def acquire(self) -> None:
        """Begin to use them; nothing is locked yet."""
        self._users += 1

    def release(self) -> None:
        """The last one who does puts back what was changed, and unlocks."""
        self._users -= 1
        if self._users or self._fd < 0:
            return
        try:
            for name, value in self._before.items():
                _write(name, value)
        finally:
            self._before.clear()
            self._wanted.clear()
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1
            self._alone = False

    def get(self, name: str) -> int:
        """It stays like this until ``release``, or ``set``."""
        self._lock(alone=False)
        value = self._wanted[name] = _read(name)
        return value

    def set(self, name: str, value: int) -> None:
        """Raises: TargetUnavailable if it is not ours to set."""
        self._lock(alone=False)
        if _read(name) != value:
            # This is to unlock first (flock(2)): the others need not be any more as they were.
            self._lock(alone=True)
            for wanted, number in (*self._wanted.items(), (name, value)):
                now = _read(wanted)
                if now != number:
                    _write(wanted, number)
                    self._before.setdefault(wanted, now)
        self._wanted[name] = value

    def _lock(self, *, alone: bool) -> None:
        if self._fd < 0:
            self._fd = os.open(_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        elif alone and not self._alone:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._alone |= alone


@contextmanager
def host_sysctls() -> Iterator[HostSysctls]:
    """They stay as they are read inside of the ``with``."""
    sysctls = HostSysctls()
    sysctls.acquire()
    try:
        yield sysctls
    finally:
        sysctls.release()


def _path(name: str) -> Path:
    return _DIRECTORY / ("mount-max" if name == "mount_max" else name)


def _read(name: str) -> int:
    return int(_path(name).read_text())


def _write(name: str, value: int) -> None:
    try:
        _path(name).write_text(str(value))
    except OSError as error:
        raise TargetUnavailable(f"fs.{name}: {error.strerror}") from None
