"""Who may look into a task. Linux: ``ptrace_may_access`` with PTRACE_MODE_READ_FSCREDS."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs.credentials import CAP_SYS_PTRACE, Credentials
from vfs.errors import oserror

if TYPE_CHECKING:
    from vfs.task import Task


def may_access(task: Task, cred: Credentials) -> bool:
    """Whether ``cred`` may see what only ``task`` and its like should: the same user and group
    without capabilities that ``cred`` lacks, or CAP_SYS_PTRACE. A task may always ask about itself.

    Every task counts as dumpable.
    """
    if task is task.vfs.current:
        return True
    theirs = task.cred
    if cred.ns_capable(theirs.user_ns, CAP_SYS_PTRACE):
        return True
    return (
        cred.fsuid == theirs.uid == theirs.fsuid
        and cred.fsgid == theirs.gid == theirs.fsgid
        and cred.user_ns is theirs.user_ns
        and not theirs.permitted & ~cred.caps
    )


def require_access(task: Task, cred: Credentials | None) -> None:
    """Linux: ``proc_fd_access_allowed``. ``cred`` None is somebody we do not know.

    Raises: EACCES.
    """
    if cred is None or not may_access(task, cred):
        raise oserror(errno.EACCES)


def asking(task: Task) -> Credentials | None:
    """Whose call this is; None for a transport's, which has no task."""
    current = task.vfs.current
    return None if current is None else current.cred
