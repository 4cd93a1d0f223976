"""The host kernel as the oracle: the same calls by a child process with other ids."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR, S_ISLNK
from typing import Any

from vfs.task import Task

Call = Callable[[Any], object]


class Kernel:
    """``os`` with the method names of ``Task`` that the tests use."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fchownat(self, dirfd: int, path: str, uid: int, gid: int, flags: int = 0) -> None:
        os.chown(path, uid, gid, follow_symlinks=not flags)


def outcome(call: Call, api: Any) -> object:
    """What ``call`` returns, or the name of its errno."""
    try:
        return call(api)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def by_kernel(
    directory: Path, uid: int, gid: int, groups: list[int], calls: list[Call], umask: int = 0
) -> list[object]:
    """The outcomes of ``calls`` in a forked child that stands in ``directory`` with these ids."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            os.chdir(directory)
            os.umask(umask)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump([outcome(call, Kernel()) for call in calls], pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcomes: list[object] = pickle.load(pipe)
    assert os.waitpid(child, 0)[1] == 0
    return outcomes


def by_task(task: Task, calls: list[Call]) -> list[object]:
    """The outcomes of ``calls`` by ``task``."""
    return [outcome(call, task) for call in calls]


def tree(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything below ``directory``: mode, owner, links, device, size and target by path."""
    found = {}
    inside = (
        os.path.join(top, name) for top, dirs, files in os.walk(directory) for name in dirs + files
    )
    for path in [directory, *map(Path, sorted(inside))]:
        stat = path.lstat()
        size = 0 if S_ISDIR(stat.st_mode) else stat.st_size
        target = os.readlink(path) if S_ISLNK(stat.st_mode) else None
        found[str(path.relative_to(directory))] = (
            oct(stat.st_mode), stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_rdev, size, target,
        )  # fmt: skip
    return found


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
