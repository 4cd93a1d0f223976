"""Access times: which mount moves them, and how a remount changes that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mount_calls_support import (
    bind,
    flags_of,
    remount,
    remount_bind,
    tmpfs,
)
from vfs_support import make_file

from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    AT_FDCWD,
    MS_NOATIME,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_RDONLY,
    MS_RELATIME,
    MS_STRICTATIME,
    O_RDONLY,
    ST_NOATIME,
    ST_NODIRATIME,
    ST_NOEXEC,
    ST_RELATIME,
)

OLD = ((1000, 0), (2000, 0))


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it, which has a file ``f``."""
    root.mkdir("mnt", 0o755)
    tmpfs(root, "mnt")
    make_file(root, "mnt/f", b"on top")
    return "mnt"


@pytest.fixture
def second(root: TargetTask, mnt: str) -> str:
    """``/second``, a bind of ``/mnt``."""
    root.mkdir("second", 0o755)
    bind(root, "mnt", "second")
    return "second"


def atime_after_read(task: TargetTask, path: str) -> int:
    fd = task.open(path, O_RDONLY, 0)
    task.read(fd, 1)
    task.close(fd)
    seconds: int = task.stat(path).st_atime_ns // 10**9
    return seconds


def atime_after_listing(task: TargetTask, path: str) -> int:
    fd = task.open(path, O_RDONLY, 0)
    task.getdents64(fd, 1000)
    task.close(fd)
    seconds: int = task.stat(path).st_atime_ns // 10**9
    return seconds


def test_relatime_moves_an_atime_older_than_mtime_and_noatime_does_not(
    root: TargetTask, mnt: str
) -> None:
    root.utimensat(AT_FDCWD, "mnt/f", OLD, 0)
    remount_bind(root, "mnt", MS_NOATIME)
    assert atime_after_read(root, "mnt/f") == 1000
    remount_bind(root, "mnt", MS_RELATIME)
    assert atime_after_read(root, "mnt/f") > 2000


def test_relatime_leaves_a_young_atime_alone_and_strictatime_does_not(
    root: TargetTask, mnt: str
) -> None:
    future = 1 << 32
    root.utimensat(AT_FDCWD, "mnt/f", ((future, 0), (1, 0)), 0)
    assert atime_after_read(root, "mnt/f") == future
    remount_bind(root, "mnt", MS_STRICTATIME)
    assert atime_after_read(root, "mnt/f") < future


def test_nodiratime_spares_directories_only(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.utimensat(AT_FDCWD, "mnt/d", OLD, 0)
    root.utimensat(AT_FDCWD, "mnt/f", OLD, 0)
    remount_bind(root, "mnt", MS_NODIRATIME | MS_STRICTATIME)
    assert atime_after_listing(root, "mnt/d") == 1000
    assert atime_after_read(root, "mnt/f") > 2000


def test_a_noatime_mount_spares_directories_and_symlinks_too(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.symlink("f", "mnt/link")
    root.utimensat(AT_FDCWD, "mnt/d", OLD, 0)
    root.utimensat(AT_FDCWD, "mnt/link", OLD, abi.AT_SYMLINK_NOFOLLOW)
    remount_bind(root, "mnt", MS_NOATIME)
    assert atime_after_listing(root, "mnt/d") == 1000
    root.readlink("mnt/link")
    root.stat("mnt/link")
    assert root.lstat("mnt/link").st_atime_ns == 1000 * 10**9


@pytest.mark.parametrize("through", ["mount", "superblock"])
def test_reading_through_what_is_read_only_leaves_the_atime_alone(
    root: TargetTask, second: str, through: str
) -> None:
    root.utimensat(AT_FDCWD, "mnt/f", OLD, 0)
    (remount_bind if through == "mount" else remount)(root, "second", MS_RDONLY | MS_STRICTATIME)
    assert atime_after_read(root, "second/f") == 1000


def test_the_mount_that_is_read_through_decides_about_the_atime(
    root: TargetTask, second: str
) -> None:
    remount_bind(root, "second", MS_NOATIME)
    root.utimensat(AT_FDCWD, "mnt/f", OLD, 0)
    assert atime_after_read(root, "second/f") == 1000
    assert atime_after_read(root, "mnt/f") > 2000


@pytest.mark.parametrize("change", [remount, remount_bind])
@pytest.mark.parametrize(
    "flags, shown",
    [
        (MS_NOATIME, ST_NOATIME),
        (MS_STRICTATIME, 0),
        (MS_NODIRATIME, ST_NODIRATIME | ST_RELATIME),
        (MS_RELATIME, ST_RELATIME),
    ],
    ids=["noatime", "strictatime", "nodiratime", "relatime"],
)
def test_a_remount_silent_about_atime_keeps_what_there_was(
    root: TargetTask, mnt: str, change: Callable[..., None], flags: int, shown: int
) -> None:
    remount_bind(root, "mnt", flags)
    change(root, "mnt", MS_NOEXEC)
    assert flags_of(root, "mnt") == shown | ST_NOEXEC


def test_a_remount_that_names_one_atime_flag_drops_the_others(root: TargetTask, mnt: str) -> None:
    remount_bind(root, "mnt", MS_NOATIME | MS_NODIRATIME)
    remount_bind(root, "mnt", MS_NODIRATIME)
    assert flags_of(root, "mnt") == ST_NODIRATIME | ST_RELATIME
    remount_bind(root, "mnt", MS_RELATIME)
    assert flags_of(root, "mnt") == ST_RELATIME
