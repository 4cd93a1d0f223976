"""/proc/PID: one task. Linux: fs/proc/base.c, fs/proc/array.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from fsimpl.proc.base import TaskDirectory, TaskLink, path_link, task_text
from fsimpl.proc.fd import FdDirectory, FdinfoDirectory, parse_number
from fsimpl.proc.mounts import MOUNTINFO, MOUNTS, MOUNTSTATS
from fsimpl.proc.namespaces import NamespacesDirectory
from fsimpl.pseudo import PseudoDirectory, Row, directory, text
from vfs import abi
from vfs.errors import oserror
from vfs.inode import Inode

if TYPE_CHECKING:
    from fsimpl.proc.filesystem import ProcSuperblock
    from vfs.credentials import Credentials
    from vfs.task import Task

HIDEPID_OFF = 0
HIDEPID_NO_ACCESS = 1
HIDEPID_INVISIBLE = 2
HIDEPID_NOT_PTRACEABLE = 4

_COMM_LENGTH = 15
_ESCAPES = {ord("\n"): "\\n", ord("\\"): "\\\\"}


def show_status(task: Task) -> bytes:
    """Linux: ``proc_pid_status``, as far as a task of the VFS has it."""
    cred = task.cred
    name = task.comm[:_COMM_LENGTH].decode("latin-1").translate(_ESCAPES).encode("latin-1")
    state = b"R (running)" if task is task.vfs.current else b"S (sleeping)"
    groups = b"".join(b"%d " % gid for gid in sorted(cred.groups)) or b" "
    lines = (
        (b"Name", name),
        (b"Umask", b"%04o" % task.fs.umask),
        (b"State", state),
        (b"Tgid", b"%d" % task.pid),
        (b"Pid", b"%d" % task.pid),
        (b"Uid", b"%d\t%d\t%d\t%d" % (cred.uid, cred.fsuid, cred.fsuid, cred.fsuid)),
        (b"Gid", b"%d\t%d\t%d\t%d" % (cred.gid, cred.fsgid, cred.fsgid, cred.fsgid)),
        (b"Groups", groups),
        (b"CapPrm", b"%016x" % cred.permitted),
        (b"CapEff", b"%016x" % cred.caps),
    )
    return b"".join(b"%b:\t%b\n" % line for line in lines)


def _show_id_map(of: PseudoDirectory) -> bytes:
    """Every id means itself in every user namespace here."""
    return b"%10d %10d %10d\n" % (0, 0, 0xFFFFFFFF)


def _store_id_map(of: PseudoDirectory, data: bytes, cred: Credentials) -> None:
    """Linux: ``map_write``: a map is written once, and ours is. Raises: EPERM."""
    raise oserror(errno.EPERM)


class _ExeLink(TaskLink):
    """/proc/PID/exe. Our tasks run no program, as kernel threads do: ENOENT."""

    __slots__ = ()


class PidDirectory(TaskDirectory):
    """/proc/PID, which hidepid= guards."""

    __slots__ = ()
    superblock: ProcSuperblock
    table = {
        b"cwd": path_link(lambda task: task.fs.cwd),
        b"exe": Row(abi.S_IFLNK, _ExeLink),
        b"fd": directory(FdDirectory),
        b"fdinfo": directory(FdinfoDirectory),
        b"gid_map": text(_show_id_map, _store_id_map),
        b"mountinfo": MOUNTINFO,
        b"mounts": MOUNTS,
        b"mountstats": MOUNTSTATS,
        b"ns": directory(NamespacesDirectory),
        b"root": path_link(lambda task: task.fs.root),
        b"status": task_text(show_status),
        b"uid_map": text(_show_id_map, _store_id_map),
    }

    def __init__(self, above: PseudoDirectory, task: Task) -> None:
        super().__init__(above, task=task)

    def permission(self, cred: Credentials, mask: int) -> None:
        """Linux: ``proc_pid_permission``.

        Raises: ESRCH (exited), ENOENT or EPERM (hidden), EACCES.
        """
        self.require_alive(errno.ESRCH)
        superblock = self.superblock
        if not superblock.reveals(self.task, HIDEPID_NO_ACCESS, cred):
            invisible = superblock.hidepid >= HIDEPID_INVISIBLE
            raise oserror(errno.ENOENT if invisible else errno.EPERM)
        super().permission(cred, mask)

    def refresh(self) -> None:
        """Linux: ``pid_getattr``. Raises: ENOENT (hidden)."""
        if not self.task.exited and not self.superblock.shows(self.task, HIDEPID_INVISIBLE):
            raise oserror(errno.ENOENT)
        super().refresh()


class ThreadsDirectory(TaskDirectory):
    """/proc/PID/task. Every task is the one thread of its group."""

    __slots__ = ()

    def names(self) -> list[bytes]:
        return [b"%d" % self.task.pid]

    def find(self, name: bytes) -> Inode | None:
        return ThreadDirectory(self, self.task) if parse_number(name) == self.task.pid else None


class ThreadDirectory(PidDirectory):
    """/proc/PID/task/TID."""

    __slots__ = ()


class ThreadGroupDirectory(PidDirectory):
    """/proc/PID, with its threads."""

    __slots__ = ()
    table = {**PidDirectory.table, b"task": directory(ThreadsDirectory)}
