"""Errors are ``OSError``: one helper that words them, and the one subclass that means "wait".

Linux: include/uapi/asm-generic/errno.h. Numbers become words in the shell and ``-errno`` in the
FUSE server, nowhere else.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfs.wait import WaitQueue


def oserror(number: int, subject: bytes | None = None) -> OSError:
    """An ``OSError`` for ``number``; Python picks the subclass (``ENOENT`` -> FileNotFoundError).

    ``subject`` is the path or name the caller gave, shown as the file name.
    """
    if subject is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fsdecode(subject))


class WouldBlock(BlockingIOError):
    """An operation that cannot finish now; ``queue`` wakes when it is worth trying again.

    Raised under the VFS lock by a file's or lock's operation, caught by whoever may wait: a task's
    thread, or the FUSE server, which parks the request. Its errno is EAGAIN, so a caller with
    O_NONBLOCK lets it pass unchanged.
    """

    def __init__(self, queue: WaitQueue) -> None:
        super().__init__(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.queue = queue


class InvariantViolation(AssertionError):
    """A ``check()`` found the first broken invariant; the message names objects and rule."""
