"""What the tests of the mount system calls share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from vfs_support import fails_with, make_file

from devtmpfs import DevtmpfsType
from harness.testbed.target import TargetTask
from harness.testbed.vfs_target import VfsTarget
from vfs import abi

_NO_NAME = (errno.ENOENT, errno.ENOTDIR)


def tmpfs(task: TargetTask, path: str, flags: int = 0, data: str = "") -> None:
    task.mount("none", path, "tmpfs", flags, data)


def bind(task: TargetTask, source: str, target: str, flags: int = 0) -> None:
    task.mount(source, target, None, abi.MS_BIND | flags, None)


def rbind(task: TargetTask, source: str, target: str) -> None:
    bind(task, source, target, abi.MS_REC)


def move(task: TargetTask, source: str, target: str) -> None:
    task.mount(source, target, None, abi.MS_MOVE, None)


def propagation(task: TargetTask, path: str, kind: int) -> None:
    task.mount(None, path, None, kind, None)


def remount(task: TargetTask, path: str, flags: int = 0, data: str | None = None) -> None:
    """Change the superblock, and the mount's flags with it."""
    task.mount(None, path, None, abi.MS_REMOUNT | flags, data)


def remount_bind(task: TargetTask, path: str, flags: int = 0) -> None:
    """Change this mount's flags only."""
    task.mount(None, path, None, abi.MS_REMOUNT | abi.MS_BIND | flags, None)


def marked(task: TargetTask, path: str, mark: str) -> str:
    """A new directory ``path`` with a tmpfs on it that has a file ``mark``."""
    task.mkdir(path, 0o755)
    tmpfs(task, path)
    make_file(task, f"{path}/{mark}")
    return path


def flags_of(task: TargetTask, path: str) -> int:
    """ST_* of the mount at ``path`` without the bit that says that they are valid."""
    shown: int = task.statfs(path).f_flags
    return shown & ~abi.ST_VALID


def mount_id(task: TargetTask, path: str, dirfd: int = abi.AT_FDCWD) -> int:
    """The id of the mount that ``path`` is on; unlike mountinfo's it is never used again."""
    flags = abi.AT_EMPTY_PATH if not path else 0
    result: int = task.statx(dirfd, path, flags, abi.STATX_MNT_ID_UNIQUE).stx_mnt_id
    return result


def exists_at(task: TargetTask, dirfd: int, path: str) -> bool:
    try:
        task.newfstatat(dirfd, path, abi.AT_SYMLINK_NOFOLLOW)
    except OSError as error:
        if error.errno not in _NO_NAME:
            raise
        return False
    return True


def make_file_at(task: TargetTask, dirfd: int, path: str, data: bytes = b"") -> None:
    fd = task.openat(dirfd, path, abi.O_WRONLY | abi.O_CREAT | abi.O_TRUNC, 0o644)
    if data:
        assert task.write(fd, data) == len(data)
    task.close(fd)


def is_read_only(task: TargetTask, directory: str) -> bool:
    """Whether making a name in ``directory`` answers EROFS; a name made is taken away again."""
    try:
        task.mkdir(f"{directory}/.probe", 0o755)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return True
    task.rmdir(f"{directory}/.probe")
    return False


def all_fail_with(number: int, call: Callable[..., Any], *argument_lists: tuple[Any, ...]) -> None:
    for args in argument_lists:
        fails_with(number, call, *args)


INNER = abi.CLONE_NEWUSER | abi.CLONE_NEWNS


def enter(alice: TargetTask, name: str = "inner") -> TargetTask:
    """A child of ``alice`` in a user and a mount namespace of its own, hers."""
    return alice.clone(name, INNER, 1000, 1000, (100,))


def open_tree(task: TargetTask, path: str, flags: int = 0, dirfd: int = abi.AT_FDCWD) -> int:
    fd: int = task.open_tree(dirfd, path, flags)
    return fd


def clone_tree(task: TargetTask, path: str, flags: int = 0, dirfd: int = abi.AT_FDCWD) -> int:
    """A descriptor of a detached copy; AT_RECURSIVE takes the mounts below along."""
    if not path:
        flags |= abi.AT_EMPTY_PATH
    return open_tree(task, path, abi.OPEN_TREE_CLONE | flags, dirfd)


def new_tmpfs(task: TargetTask, attributes: int = 0, *options: tuple[str, str]) -> int:
    """A descriptor of a new tmpfs that is mounted nowhere, by fsopen, fsconfig and fsmount."""
    context = task.fsopen("tmpfs", 0)
    for key, value in options:
        task.fsconfig(context, abi.FSCONFIG_SET_STRING, key, value, 0)
    task.fsconfig(context, abi.FSCONFIG_CMD_CREATE, None, None, 0)
    fd: int = task.fsmount(context, 0, attributes)
    task.close(context)
    return fd


def attach(task: TargetTask, fd: int, path: str, flags: int = 0) -> None:
    """Put what ``fd`` stands on at ``path``."""
    task.move_mount(fd, "", abi.AT_FDCWD, path, abi.MOVE_MOUNT_F_EMPTY_PATH | flags)


def attach_at(task: TargetTask, fd: int, dirfd: int, path: str, flags: int = 0) -> None:
    """Put what ``fd`` stands on at ``path`` below ``dirfd``, or at that itself."""
    flags |= abi.MOVE_MOUNT_F_EMPTY_PATH | (0 if path else abi.MOVE_MOUNT_T_EMPTY_PATH)
    task.move_mount(fd, "", dirfd, path, flags)


def set_attributes(
    task: TargetTask,
    path: str,
    attr_set: int = 0,
    attr_clr: int = 0,
    kind: int = 0,
    flags: int = 0,
    dirfd: int = abi.AT_FDCWD,
) -> None:
    """mount_setattr(2); ``kind`` is a propagation type."""
    if not path:
        flags |= abi.AT_EMPTY_PATH
    task.mount_setattr(dirfd, path, flags, (attr_set, attr_clr, kind, 0))


def move_mount(task: TargetTask, source: str, target: str, flags: int = 0) -> None:
    task.move_mount(abi.AT_FDCWD, source, abi.AT_FDCWD, target, flags)


def not_in_a_user_namespace(task: TargetTask) -> None:
    """Skip where the kernel's target is a user's: its root is locked, and it has no devices."""
    if task.target.name == "linux" and os.geteuid():
        pytest.skip("a user's target is in a user namespace")


def only_one_of_a_kind(task: TargetTask) -> str:
    """The name of a filesystem type that has one superblock, and is not for user namespaces."""
    if isinstance(task.target, VfsTarget) and "devtmpfs" not in task.target.vfs.filesystem_types:
        task.target.vfs.register(DevtmpfsType())
    return "devtmpfs"
