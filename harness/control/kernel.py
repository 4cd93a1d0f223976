"""What can be asked of a VFS, and the one that lives in this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final, Protocol, Self

from harness.inspect import VIEWS
from harness.task_calls import TaskCalls
from harness.testbed.step import SIGNATURES
from vfs.credentials import Credentials
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

CALLS: Final = frozenset(SIGNATURES) - {"clone", "exit"} | {"flock", "ioctl"}
"""The system calls, as scripts have them."""


class Kernel(Protocol):
    """A VFS with tasks that are ours. Tasks are known by their pids, and end with `close`."""

    def create_task(self, like: int | None = None, **who: Any) -> int:
        """A clone of our task `like`, by default of the daemon's own, with a root, a cwd and
        descriptors of its own. `who`: ``flags`` of clone(2), ``uid``, ``gid``, ``groups``,
        ``capabilities`` (a mask; by default all for uid 0, none for others).

        Raises: ESRCH (`like` is not ours); as clone(2).
        """
        ...

    def exit_task(self, task: int) -> None:
        """End it. Raises: ESRCH."""
        ...

    def call(self, task: int, name: str, *arguments: Any) -> Any:
        """Make a system call of `CALLS`. It never waits.

        Raises: EAGAIN (it would); ENOSYS (there is none of that name); EINVAL (other arguments);
            ESRCH; the call's own.
        """
        ...

    def inspect(self, task: int, view: str, **arguments: Any) -> Any:
        """One of the views of `harness.inspect`, as the task sees it.

        Raises: ENOSYS (there is none of that name); EINVAL (other arguments); ESRCH; the view's.
        """
        ...

    def close(self) -> None:
        """End what is ours."""
        ...


class LocalKernel:
    """A VFS of this process."""

    def __init__(self, vfs: VirtualFilesystem, first: Task) -> None:
        """Tasks are clones of `first`, which is borrowed."""
        self.vfs = vfs
        self._first = first
        self._tasks: dict[int, Task] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def task(self, pid: int) -> Task:
        """Our task of that number, borrowed. Raises: ESRCH."""
        task = self._tasks.get(pid)
        if task is None or task.exited:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        return task

    def create_task(self, like: int | None = None, **who: Any) -> int:
        before = self._first if like is None else self.task(like)
        child = before.clone(who.pop("flags", 0), _credentials(before.cred, who))
        child.nowait = True
        self._tasks[child.pid] = child
        return child.pid

    def exit_task(self, task: int) -> None:
        self.task(task).exit()
        del self._tasks[task]

    def call(self, task: int, name: str, *arguments: Any) -> Any:
        if name not in CALLS:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        try:
            return getattr(TaskCalls(self.task(task)), name)(*arguments)
        except (TypeError, ValueError, OverflowError):
            # Outside of Python's types: what a C caller could not even have passed.
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None

    def inspect(self, task: int, view: str, **arguments: Any) -> Any:
        look = VIEWS.get(view)
        if look is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        seer = self.task(task)
        with seer.lock:
            try:
                return look(seer, **arguments)
            except TypeError:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None

    def close(self) -> None:
        for task in self._tasks.values():
            task.exit()
        self._tasks.clear()


def _credentials(before: Credentials, who: Mapping[str, Any]) -> Credentials | None:
    """Who a clone is to be; None if nothing is said. Raises: EINVAL."""
    if not who:
        return None
    try:
        uid, gid = int(who.get("uid", before.uid)), int(who.get("gid", before.gid))
        groups = tuple(map(int, who.get("groups", before.groups)))
        capabilities = who.get("capabilities", before.caps if uid == before.uid else None)
        return Credentials(uid, gid, groups, caps=capabilities, user_ns=before.user_ns)
    except (TypeError, ValueError):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
