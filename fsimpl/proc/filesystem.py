"""The root of proc, its mount options, and its type. Linux: fs/proc/root.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from fsimpl.proc.access import asking, may_access
from fsimpl.proc.base import ProcDirectory
from fsimpl.proc.fd import parse_number
from fsimpl.proc.pid import (
    HIDEPID_INVISIBLE,
    HIDEPID_NO_ACCESS,
    HIDEPID_NOT_PTRACEABLE,
    HIDEPID_OFF,
    ThreadGroupDirectory,
)
from fsimpl.proc.sysctl import SYS
from fsimpl.pseudo import PseudoSuperblock, symlink, text
from vfs import abi
from vfs.errors import oserror
from vfs.fs_context import FilesystemContext, Parameter
from vfs.fs_parser import bad_value, parse_enum, parse_id, parse_string, parse_u32
from vfs.inode import Inode
from vfs.superblock import FilesystemType, Statfs, Superblock
from vfs.user_namespace import INITIAL_USER_NAMESPACE

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.task import Task

PROC_SUPER_MAGIC = 0x9FA0
_BLOCK_SIZE = 1024

_HIDEPID = {
    "off": HIDEPID_OFF,
    "noaccess": HIDEPID_NO_ACCESS,
    "invisible": HIDEPID_INVISIBLE,
    "ptraceable": HIDEPID_NOT_PTRACEABLE,
}


class ProcOptions:
    """Linux: ``struct proc_fs_context``. What was asked for; None where nothing was."""

    __slots__ = ("gid", "hidepid", "pid_only")

    def __init__(self) -> None:
        self.hidepid: int | None = None
        self.gid: int | None = None
        self.pid_only = False

    @staticmethod
    def of(context: FilesystemContext) -> ProcOptions:
        """The options in ``context``."""
        assert isinstance(context.fs_private, ProcOptions)
        return context.fs_private

    def parse(self, context: FilesystemContext, parameter: Parameter) -> bool:
        """Linux: ``proc_parse_param``. Raises: EINVAL for a bad value."""
        if parameter.key == "gid":
            self.gid = parse_id(context, parameter)
        elif parameter.key == "hidepid":
            word = parse_string(context, parameter)
            level = _HIDEPID[word] if word in _HIDEPID else parse_u32(context, parameter)
            if level not in _HIDEPID.values():
                raise bad_value(context, parameter)
            self.hidepid = level
        elif parameter.key == "subset":
            parse_enum(context, parameter, ("pid",))
            self.pid_only = True
        else:
            return False
        return True


class ProcType(FilesystemType):
    """Linux: ``proc_fs_type``. Every mount makes a superblock of its own.

    There are no pid namespaces: each shows all tasks of the VirtualFilesystem, and belongs to the
    initial user namespace, whose root alone may mount it.
    """

    name = "proc"
    userns_mount = True

    def init_context(self, context: FilesystemContext) -> None:
        context.fs_private = ProcOptions()
        context.user_ns = INITIAL_USER_NAMESPACE

    def parse_parameter(self, context: FilesystemContext, parameter: Parameter) -> bool:
        return ProcOptions.of(context).parse(context, parameter)

    def get_tree(self, context: FilesystemContext) -> Superblock:
        return ProcSuperblock(context, ProcOptions.of(context))


class ProcSuperblock(PseudoSuperblock):
    """Linux: ``struct proc_fs_info``. ``gid`` is the group that hidepid= hides nothing from."""

    __slots__ = ("gid", "hidepid", "pid_only")

    def __init__(self, context: FilesystemContext, options: ProcOptions) -> None:
        self.hidepid = HIDEPID_OFF
        self.gid = 0
        self.pid_only = False
        self._apply(options)
        context.vfs.watch_exits(self._task_exited)
        super().__init__(context, ProcRoot, magic=PROC_SUPER_MAGIC)
        self.block_size = _BLOCK_SIZE

    def _apply(self, options: ProcOptions) -> None:
        if options.gid is not None:
            self.gid = options.gid
        if options.hidepid is not None:
            self.hidepid = options.hidepid
        self.pid_only = self.pid_only or options.pid_only

    def reveals(self, task: Task, minimum: int, cred: Credentials | None) -> bool:
        """Linux: ``has_pid_permissions``: whether what hidepid= hides from the level ``minimum`` on
        is there for ``cred`` all the same (None: somebody we do not know).
        """
        if self.hidepid < minimum:
            return True
        if cred is None:
            return False
        if self.hidepid != HIDEPID_NOT_PTRACEABLE and cred.in_group(self.gid):
            return True
        return may_access(task, cred)

    def shows(self, task: Task, minimum: int) -> bool:
        """``reveals`` to the task that asks."""
        return self.reveals(task, minimum, asking(task))

    def _task_exited(self, task: Task) -> None:
        """Linux: ``proc_flush_pid``."""
        # The same exit may have unmounted us just now from what another proc showed of the task.
        if self.root is not None:
            self.invalidate(self.root, b"%d" % task.pid)

    def statfs(self) -> Statfs:
        """Linux: ``simple_statfs``."""
        size = abi.PAGE_SIZE
        return Statfs(self.magic, size, 0, 0, 0, 0, 0, abi.NAME_MAX, size, 0)

    def reconfigure(self, context: FilesystemContext) -> None:
        """Linux: ``proc_reconfigure``."""
        self._apply(ProcOptions.of(context))

    def show_options(self) -> str:
        """Linux: ``proc_show_options``."""
        shown = f",gid={self.gid}" if self.gid else ""
        if self.hidepid:
            name = next(name for name, level in _HIDEPID.items() if level == self.hidepid)
            shown += f",hidepid={name}"
        return shown + (",subset=pid" if self.pid_only else "")

    def release(self) -> None:
        self.vfs.unwatch_exits(self._task_exited)
        super().release()


def _own_pid(root: ProcRoot) -> bytes:
    """The pid of the task that asks. Raises: ENOENT if it is no task."""
    current = root.superblock.vfs.current
    if current is None:
        raise oserror(errno.ENOENT)
    return b"%d" % current.pid


def _own_thread(root: ProcRoot) -> bytes:
    pid = _own_pid(root)
    return b"%b/task/%b" % (pid, pid)


def _show_filesystems(root: ProcRoot) -> bytes:
    """Linux: ``filesystems_proc_show``."""
    types = root.superblock.vfs.filesystem_types.values()
    return b"".join(
        b"%b\t%b\n" % (b"" if fstype.requires_device else b"nodev", fstype.name.encode())
        for fstype in types
    )


class ProcRoot(ProcDirectory):
    """/proc. ``subset=pid`` leaves the tasks and the links to one's own."""

    __slots__ = ()
    superblock: ProcSuperblock
    table = {
        b"filesystems": text(_show_filesystems),
        b"mounts": symlink(b"self/mounts"),
        b"sys": SYS,
        b"self": symlink(_own_pid),
        b"thread-self": symlink(_own_thread),
    }
    _with_subset: ClassVar = (b"self", b"thread-self")

    def _is_left_out(self, name: bytes) -> bool:
        return self.superblock.pid_only and name in self.table and name not in self._with_subset

    def update(self) -> None:
        """Linux: ``proc_root_getattr``: each task counts as a subdirectory."""
        nlink = 3 + len(self.superblock.vfs.tasks)
        if nlink != self.nlink:
            self.nlink = nlink
            self.changed()

    def listing(self) -> list[bytes]:
        return [name for name in super().listing() if not self._is_left_out(name)]

    def names(self) -> list[bytes]:
        shows = self.superblock.shows
        tasks = self.superblock.vfs.tasks
        pids = sorted(task.pid for task in tasks if shows(task, HIDEPID_INVISIBLE))
        return [b"%d" % pid for pid in pids]

    def lookup(self, name: bytes) -> Inode:
        """Raises: ENOENT."""
        if self._is_left_out(name):
            raise oserror(errno.ENOENT)
        return super().lookup(name)

    def find(self, name: bytes) -> Inode | None:
        """Linux: ``proc_pid_lookup``."""
        pid = parse_number(name)
        for task in self.superblock.vfs.tasks:
            if task.pid == pid and self.superblock.shows(task, HIDEPID_NOT_PTRACEABLE):
                return ThreadGroupDirectory(self, task)
        return None

    def still(self, name: bytes, inode: Inode) -> bool:
        """Linux: ``pid_revalidate``."""
        return isinstance(inode, ThreadGroupDirectory) and not inode.task.exited
