"""A VirtualFilesystem in this process as a target."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from fsimpl.proc import ProcType
from fsimpl.tmpfs import TmpfsType
from harness.testbed.state import State, observe_task, observe_tree
from harness.testbed.step import Step
from harness.testbed.target import ROOT_OPTIONS, SYSCTLS, NoSuchTask, Target
from vfs import abi
from vfs.clock import Clock
from vfs.credentials import CAP_SETGID, CAP_SETUID, Credentials
from vfs.mountinfo import show_mountinfo, show_mounts, show_mountstats
from vfs.nsfs import open_namespace
from vfs.syscalls.mount_query import Statmount
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

_OBSERVER = "observer"
_POLLNVAL = 0x20


class TaskCalls:
    """A ``Task``'s calls with the arguments that steps have, where they differ: data, not buffers;
    the xattr calls' three forms by their names.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._task, name)
        return method

    def preadv2(self, fd: int, sizes: tuple[int, ...], offset: int, flags: int = 0) -> bytes:
        buffers = [bytearray(size) for size in sizes]
        count = self._task.preadv2(fd, buffers, offset, flags)
        return b"".join(buffers)[:count]

    def mount(
        self,
        source: bytes | None,
        target: bytes,
        fstype: str | None,
        flags: int,
        data: str | None,
    ) -> None:
        self._task.mount(source, target, fstype, flags, data or "")

    def setrlimit_nofile(self, limit: int) -> None:
        self._task.files.limit = limit

    def access(self, path: bytes, mode: int) -> None:
        self._task.access(path, mode)

    def lgetxattr(self, path: bytes, name: bytes) -> bytes:
        return self._task.getxattr(path, name, follow=False)

    def lsetxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        self._task.setxattr(path, name, value, flags, follow=False)

    def llistxattr(self, path: bytes) -> list[bytes]:
        return self._task.listxattr(path, follow=False)

    def lremovexattr(self, path: bytes, name: bytes) -> None:
        self._task.removexattr(path, name, follow=False)

    def fgetxattr(self, fd: int, name: bytes) -> bytes:
        return self._task.getxattr(fd, name)

    def fsetxattr(self, fd: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._task.setxattr(fd, name, value, flags)

    def flistxattr(self, fd: int) -> list[bytes]:
        return self._task.listxattr(fd)

    def fremovexattr(self, fd: int, name: bytes) -> None:
        self._task.removexattr(fd, name)

    def poll(self, fd: int, events: int) -> int:
        with self._task.vfs.lock:
            try:
                file = self._task.files.get_file(fd)
            except OSError:
                return _POLLNVAL
            if file.flags & abi.O_PATH:
                return _POLLNVAL
            return file.poll() & (events | abi.POLLERR | abi.POLLHUP)

    def mountinfo(self) -> bytes:
        return show_mountinfo(self._task.namespace, self._task.fs.root)

    def mounts(self) -> bytes:
        return show_mounts(self._task.namespace, self._task.fs.root)

    def mountstats(self) -> bytes:
        return show_mountstats(self._task.namespace, self._task.fs.root)

    def _mount_at(self, path: bytes) -> int:
        return self._task.statx(abi.AT_FDCWD, path, 0, abi.STATX_MNT_ID_UNIQUE).stx_mnt_id

    def statmount_at(self, path: bytes, mask: int) -> Statmount:
        return self._task.statmount(self._mount_at(path), mask)

    def listmount_at(self, path: bytes, flags: int = 0) -> list[int]:
        return self._task.listmount(self._mount_at(path), flags=flags)


class VfsTarget(Target):
    """A target on a VirtualFilesystem of its own, whose invariants and references are checked."""

    name = "vfs"

    def __init__(
        self, options: str = ROOT_OPTIONS, *, clock: Clock | None = None, tracing: bool = False
    ) -> None:
        self.vfs = VirtualFilesystem(clock=clock, tracing=tracing)
        self.vfs.register(TmpfsType())
        self.vfs.register(ProcType())
        with self.vfs.create_namespace("tmpfs", options=options) as namespace:
            root = self.vfs.create_task(namespace)
        self.tasks: dict[str, Task] = {"root": root, _OBSERVER: root.clone()}
        self._calls = {name: TaskCalls(task) for name, task in self.tasks.items()}

    def perform(self, step: Step) -> Any:
        task = self._live(step.task)
        if step.call == "clone":
            return self._clone(task, *step.args)
        if step.call == "nsfd":
            return self._nsfd(task, *step.args)
        if any(
            isinstance(arg, bytes) and b"\0" in arg and step.call not in ("write", "pwrite64")
            for arg in step.args[:1]
        ):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return getattr(self._calls[step.task], step.call)(*step.args)

    def _live(self, name: str) -> Task:
        task = None if name == _OBSERVER else self.tasks.get(name)
        if task is None or task.exited:
            raise NoSuchTask(f"no task {name}" if task is None else f"task {name} has exited")
        return task

    def _clone(
        self, task: Task, name: str, flags: int, uid: int, gid: int, groups: tuple[int, ...]
    ) -> None:
        if name in self.tasks:
            raise ValueError(f"task {name} exists")
        if flags & abi.CLONE_NEWUSER and not flags & abi.CLONE_FS:
            child = task.clone(flags, _with_ids(task.cred, uid, gid, groups))
        else:
            child = task.clone(flags)
            try:
                child.cred = _with_ids(task.cred, uid, gid, groups)
            except OSError:
                child.exit()
                raise
        self.tasks[name] = child
        self._calls[name] = TaskCalls(child)

    def _nsfd(self, task: Task, name: str, kind: str) -> int:
        owner = self._live(name)
        if kind not in ("mnt", "user"):
            raise ValueError(f"no namespace {kind!r}")
        namespace = owner.namespace if kind == "mnt" else owner.cred.user_ns
        with self.vfs.lock:
            file = open_namespace(self.vfs, namespace, task.cred)
            file.flags |= abi.O_LARGEFILE  # what an open of /proc/PID/ns/... leaves
            try:
                return task.files.install(file)
            except OSError:
                file.put()
                raise

    def observe(self) -> State:
        tree = observe_tree(self._calls[_OBSERVER])
        tasks = {
            name: observe_task(self._calls[name])
            for name, task in self.tasks.items()
            if name != _OBSERVER and not task.exited
        }
        return State(tree, tasks)

    def _read_mountinfo(self) -> dict[str, bytes]:
        return {
            name: self._calls[name].mountinfo()
            for name, task in self.tasks.items()
            if name != _OBSERVER and not task.exited
        }

    def sysctl(self, name: str) -> int:
        value = getattr(self.vfs, name)
        assert isinstance(value, int)
        return value

    def set_sysctl(self, name: str, value: int) -> None:
        assert name in SYSCTLS
        setattr(self.vfs, name, value)

    def check(self) -> None:
        self.vfs.check()

    def close(self) -> None:
        self.vfs.shutdown()


def _with_ids(cred: Credentials, uid: int, gid: int, groups: tuple[int, ...]) -> Credentials:
    """``cred`` after setgroups, setresgid and setresuid, which are left out if nothing changes.

    Raises: EPERM.
    """
    if (uid, gid, frozenset(groups)) == (cred.uid, cred.gid, cred.groups):
        return cred
    cred.require(CAP_SETGID)
    if uid != cred.uid:
        cred.require(CAP_SETUID)
    dropped = cred.uid == 0 and uid != 0
    gained = cred.uid != 0 and uid == 0
    caps = 0 if dropped else cred.permitted if gained else cred.caps
    permitted = 0 if dropped else cred.permitted
    return Credentials(uid, gid, groups, caps=caps, permitted=permitted, user_ns=cred.user_ns)
