"""A VirtualFilesystem in this process as a target."""

from __future__ import annotations

import errno
import os
from typing import Any

from fsimpl.proc import ProcType
from fsimpl.tmpfs import TmpfsType
from harness.task_calls import TaskCalls
from harness.testbed.state import State, observe_task, observe_tree
from harness.testbed.step import Step
from harness.testbed.target import ROOT_OPTIONS, SYSCTLS, NoSuchTask, Target
from vfs import abi
from vfs.clock import Clock
from vfs.credentials import CAP_SETGID, CAP_SETUID, Credentials
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

_OBSERVER = "observer"


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
        return TaskCalls(task).nsfd(owner.pid, kind)

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
