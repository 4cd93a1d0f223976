"""Keeping shared memory as long as it was when it was mapped."""

from __future__ import annotations

import os
import stat
from fcntl import F_ADD_SEALS, F_GET_SEALS, F_SEAL_SHRINK, fcntl


def forbid_shrinking(fd: int) -> bool:
    """Whether nobody can shrink the file `fd` (borrowed) from now on.

    Whoever shrinks a file that we map kills us with SIGBUS at the next touch of what is gone, and
    Python cannot catch that. A memfd that may still be sealed is sealed here (F_SEAL_SHRINK), which
    leaves its owner everything else: growing it, and giving pages back by punching holes. Other
    files cannot be sealed: those of a mounted tmpfs or hugetlbfs, a memfd made without
    MFD_ALLOW_SEALING. To mean anything, the size must be looked at afterwards.
    """
    try:
        if fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK:
            return True
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)
    except OSError:
        return False
    return True


def settled_size(fd: int) -> int:
    """The bytes that may be mapped of the file `fd` (borrowed), looked at after `forbid_shrinking`;
    0 if it is no regular file.
    """
    forbid_shrinking(fd)
    status = os.fstat(fd)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
