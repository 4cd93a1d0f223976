"""What can be asked of a VFS, and the one that lives in this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from harness.control.metrics import Metrics, prometheus
from harness.control.trace import Listening, Subscription, Trace
from harness.inspect import VIEWS
from harness.task_calls import TaskCalls
from harness.testbed.step import SIGNATURES
from vfs.credentials import Credentials
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

if TYPE_CHECKING:
    from harness.fuse.server import FuseServer

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

    def subscribe(
        self,
        topics: Sequence[str] = (),
        names: Sequence[str] = (),
        pid: int | None = None,
        failed: bool = False,
    ) -> Listening:
        """Listen to what happens, as `harness.control.trace` has it: all `topics` if none is named,
        `names` that fit one of these patterns, of one `pid`, only what `failed`.

        Raises: EINVAL (no such topic).
        """
        ...

    def measure(self) -> dict[str, Any]:
        """What is done, in numbers, as `harness.control.metrics` has them."""
        ...

    def metrics(self) -> str:
        """`measure` in the text format of Prometheus."""
        ...

    def close(self) -> None:
        """End what is ours."""
        ...


class Watch:
    """What is told and counted of a VFS, for all its `LocalKernel`s. To be closed after them."""

    def __init__(
        self,
        first: Task,
        server: FuseServer | None = None,
        depth: Callable[[], int | None] | None = None,
    ) -> None:
        """All are borrowed. `depth` tells how many requests wait for `server`'s thread."""
        self.trace = Trace(first.vfs, server)
        self.metrics = Metrics(first, server, depth)

    def close(self) -> None:
        """Watch no more."""
        self.metrics.close()


class LocalKernel:
    """A VFS of this process."""

    def __init__(self, vfs: VirtualFilesystem, first: Task, watch: Watch | None = None) -> None:
        """Tasks are clones of `first`. It is borrowed, as is `watch`, which several may share."""
        self.vfs = vfs
        self._first = first
        self._tasks: dict[int, Task] = {}
        self._watch = watch or Watch(first)
        self._own_watch = watch is None
        self._subscriptions: list[Subscription] = []

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
        identity = {name: value for name, value in who.items() if name != "flags"}
        child = before.clone(who.get("flags", 0), _credentials(before.cred, identity))
        child.nowait = True
        self._tasks[child.pid] = child
        self._watch.trace.task_made(child.pid, like, who)
        return child.pid

    def exit_task(self, task: int) -> None:
        self.task(task).exit()
        del self._tasks[task]

    def call(self, task: int, name: str, *arguments: Any) -> Any:
        if name not in CALLS:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        try:
            calls = TaskCalls(self.task(task))
            return self._watch.trace.call(
                task, name, arguments, lambda: getattr(calls, name)(*arguments)
            )
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

    def subscribe(
        self,
        topics: Sequence[str] = (),
        names: Sequence[str] = (),
        pid: int | None = None,
        failed: bool = False,
        wake: Callable[[], None] | None = None,
    ) -> Subscription:
        subscription = self._watch.trace.subscribe(topics, names, pid, failed, wake)
        self._subscriptions.append(subscription)
        return subscription

    def measure(self) -> dict[str, Any]:
        return self._watch.metrics.measure()

    def metrics(self) -> str:
        return prometheus(self.measure())

    def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
        for task in self._tasks.values():
            task.exit()
        self._tasks.clear()
        if self._own_watch:
            self._watch.close()


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
