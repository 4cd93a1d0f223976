"""A process that may do harm: its own mounts, bounded memory, and an end to what hangs."""

from __future__ import annotations

import os
import resource
import signal
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from harness import linux
from vfs import abi

_MEMORY: Final = 4 << 30
_TMPFS: Final = "size=64m,nr_inodes=20000,mode=700"


class Stuck(Exception):
    """The time is over."""


def isolate(scratch: Path) -> bool:
    """Bound this process, and give it a small tmpfs of its own at ``scratch``, without devices.

    Returns False if mounting is not permitted. Nobody else sees the tmpfs, and it ends with the
    process: guests fill disks, and what they make as root is better not found there by others.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or hard > _MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, hard))
    try:
        linux.unshare(abi.CLONE_NEWNS)
        linux.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
        flags = abi.MS_NODEV | abi.MS_NOSUID | abi.MS_NOEXEC
        linux.mount("fuzz", str(scratch), "tmpfs", flags, _TMPFS)
    except PermissionError:
        return False
    return True


def fork() -> int:
    """fork(2) for a child that runs code of ours only, prints nothing, and ends with ``os._exit``
    or with us.

    Python warns of threads, whose locks the child may find held; ours have none that it needs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        linux.die_with_parent(signal.SIGKILL)
        # Whoever reads what we print must not wait for the child.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    return child


@contextmanager
def limited(seconds: float) -> Generator[None]:
    """Raise Stuck inside of the ``with`` when the time is over. For main threads."""

    def stuck(*_: object) -> NoReturn:
        raise Stuck(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stuck)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
