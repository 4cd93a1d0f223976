"""A VirtualFilesystem in this process as a target."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from fsimpl.tmpfs import TmpfsType
from harness.testbed.state import State, observe_task, observe_tree
from harness.testbed.step import Step
from harness.testbed.target import ROOT_OPTIONS, NoSuchTask, Target
from vfs.clock import Clock
from vfs.credentials import Credentials
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

_OBSERVER = "observer"


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


class VfsTarget(Target):
    """A target on a VirtualFilesystem of its own, whose invariants and references are checked."""

    name = "vfs"

    def __init__(
        self, options: str = ROOT_OPTIONS, *, clock: Clock | None = None, tracing: bool = False
    ) -> None:
        self.vfs = VirtualFilesystem(clock=clock, tracing=tracing)
        self.vfs.register(TmpfsType())
        with self.vfs.create_namespace("tmpfs", options=options) as namespace:
            root = self.vfs.create_task(namespace)
        self.tasks: dict[str, Task] = {"root": root, _OBSERVER: root.clone()}
        self._calls = {name: TaskCalls(task) for name, task in self.tasks.items()}

    def perform(self, step: Step) -> Any:
        if step.task not in self.tasks:
            raise NoSuchTask(f"no task {step.task}")
        if step.call == "clone":
            name, flags, uid, gid, groups = step.args
            if name in self.tasks:
                raise ValueError(f"task {name} exists")
            child = self.tasks[step.task].clone(flags, Credentials(uid, gid, groups))
            self.tasks[name] = child
            self._calls[name] = TaskCalls(child)
            return None
        if any(
            isinstance(arg, bytes) and b"\0" in arg and step.call not in ("write", "pwrite64")
            for arg in step.args[:1]
        ):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return getattr(self._calls[step.task], step.call)(*step.args)

    def observe(self) -> State:
        tree = observe_tree(self._calls[_OBSERVER])
        tasks = {
            name: observe_task(self._calls[name])
            for name, task in self.tasks.items()
            if name != _OBSERVER and not task.exited
        }
        return State(tree, tasks)

    def sysctl(self, name: str) -> int:
        value = getattr(self.vfs, name)
        assert isinstance(value, int)
        return value

    def set_sysctl(self, name: str, value: int) -> None:
        assert name.startswith("protected_")
        setattr(self.vfs, name, value)

    def check(self) -> None:
        self.vfs.check()

    def close(self) -> None:
        self.vfs.shutdown()
