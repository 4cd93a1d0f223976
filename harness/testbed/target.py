"""What a sequence of steps runs on: something with tasks that make system calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from harness.testbed.mount_table import MountTables, rename_tables
from harness.testbed.state import State
from harness.testbed.step import Step, make_step

# The options of the tmpfs that a target starts from, the same everywhere: ENOSPC is part of it.
ROOT_OPTIONS = "mode=755,size=64m,nr_inodes=4096"
# What ``set_sysctl`` knows, all below fs.
SYSCTLS = (
    "protected_symlinks", "protected_hardlinks", "protected_regular", "protected_fifos",
    "mount_max",
)  # fmt: skip


class TargetUnavailable(Exception):
    """The target cannot be had here, or cannot do this; the message says why."""


class NoSuchTask(ValueError):
    """A step is by, or names, a task that no step before it has made, or that has exited."""


class TargetTask:
    """A task of a target: each attribute is a system call by its Linux name.

    ``task.mkdirat(AT_FDCWD, "d", 0o755)`` returns the call's value or raises its OSError.
    """

    def __init__(self, target: Target, name: str) -> None:
        self.target = target
        self.name = name

    def __getattr__(self, call: str) -> Callable[..., Any]:
        def perform(*args: Any) -> Any:
            return self.target.perform(make_step(self.name, call, *args))

        return perform

    def clone(
        self, name: str, flags: int = 0, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()
    ) -> TargetTask:
        """Start the task ``name``, which inherits what clone(2) with ``flags`` lets it."""
        self.target.perform(make_step(self.name, "clone", name, flags, uid, gid, groups))
        return TargetTask(self.target, name)


class Target(ABC):
    """A tree of files on a fresh tmpfs, and tasks on it; the first one is ``root``.

    ``root`` has uid 0, every capability that the test itself has, cwd and root at the tmpfs,
    umask 022 and no open descriptors. ``with`` closes the target.
    """

    name: str
    _mountinfo: dict[str, bytes] | None = None
    _tables: MountTables

    @abstractmethod
    def perform(self, step: Step) -> Any:
        """Make one call. Returns its value. Raises: its OSError."""

    @abstractmethod
    def observe(self) -> State:
        """Everything observable, as a hidden task with every capability sees it."""

    def observe_mounts(self) -> MountTables:
        """The mount table of each live task as that task's mountinfo shows it, in the order in
        which the tasks were made, with numbers renamed (see ``mount_table``).
        """
        texts = self._read_mountinfo()
        if texts != self._mountinfo:
            self._tables = rename_tables(texts)
            self._mountinfo = texts
        return self._tables

    @abstractmethod
    def _read_mountinfo(self) -> dict[str, bytes]:
        """The mountinfo file of each live task."""

    @abstractmethod
    def check(self) -> None:
        """Raise AssertionError on the first broken invariant, where the target can tell."""

    @abstractmethod
    def set_sysctl(self, name: str, value: int) -> None:
        """Set fs.``name`` (``protected_symlinks``, ``mount_max``); ``close`` puts the old value
        back.
        """

    @abstractmethod
    def sysctl(self, name: str) -> int:
        """The value of fs.``name``."""

    @abstractmethod
    def close(self) -> None:
        """End all tasks. Raises if something leaked, where the target can tell."""

    def task(self, name: str = "root") -> TargetTask:
        """The task ``name``, which exists already."""
        return TargetTask(self, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
