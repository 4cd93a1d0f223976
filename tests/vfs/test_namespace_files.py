"""Mount namespaces as files: where one may be mounted, and what holds it there."""

from __future__ import annotations

import errno
from typing import NamedTuple

import pytest
from mount_calls_support import attach, bind, clone_tree, tmpfs
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_RECURSIVE,
    CLONE_NEWNS,
    MNT_DETACH,
    O_RDONLY,
    STATMOUNT_MNT_NS_ID,
)


class Pair(NamedTuple):
    """Two tasks in mount namespaces of their own. ``younger`` has a tmpfs with ``theirs`` on
    ``/mnt``.
    """

    older: TargetTask
    younger: TargetTask


@pytest.fixture
def pair(root: TargetTask) -> Pair:
    """Age is what the ids tell, which Linux gives out on each processor from a stock of its own."""
    root.mkdir("mnt", 0o755)
    make_file(root, "here")
    make_file(root, "there")
    tasks = [root.clone(name, CLONE_NEWNS) for name in ("one", "two")]
    tasks.sort(key=lambda task: int(task.statmount_at("/", STATMOUNT_MNT_NS_ID).mnt_ns_id))
    older, younger = tasks
    tmpfs(younger, "mnt")
    make_file(younger, "mnt/theirs")
    return Pair(older, younger)


def mount_namespace(task: TargetTask, whose: TargetTask, path: str, kind: str = "mnt") -> None:
    """Put the namespace of ``whose`` at ``path``."""
    fd = task.nsfd(whose.name, kind)
    mounted = clone_tree(task, "", 0, fd)
    task.close(fd)
    try:
        attach(task, mounted, path)
    finally:
        task.close(mounted)


def namespace(task: TargetTask) -> int:
    fd = task.nsfd(task.name, "mnt")
    number: int = task.fstat(fd).st_ino
    task.close(fd)
    return number


def test_a_namespace_can_be_mounted_on_a_file_and_entered_there(pair: Pair) -> None:
    mount_namespace(pair.older, pair.younger, "here")
    pair.younger.exit()
    fd = pair.older.open("here", O_RDONLY, 0)
    pair.older.setns(fd, CLONE_NEWNS)
    assert exists(pair.older, "/mnt/theirs")


def test_a_mounted_namespace_keeps_its_number_when_its_last_task_ends(pair: Pair) -> None:
    mount_namespace(pair.older, pair.younger, "here")
    number = namespace(pair.younger)
    pair.younger.exit()
    assert pair.older.stat("here").st_ino == number
    pair.older.umount2("here", 0)
    assert contents(pair.older, "here") == b""


def test_a_namespace_does_not_go_onto_a_directory(pair: Pair) -> None:
    fails_with(errno.EINVAL, mount_namespace, pair.older, pair.younger, "mnt")


def test_a_mount_namespace_cannot_be_mounted_in_itself_or_in_a_younger_one(pair: Pair) -> None:
    fails_with(errno.ELOOP, mount_namespace, pair.older, pair.older, "here")
    fails_with(errno.ELOOP, mount_namespace, pair.younger, pair.older, "here")
    mount_namespace(pair.younger, pair.older, "here", "user")


def test_a_tree_that_holds_a_mount_namespace_does_not_go_into_that(pair: Pair) -> None:
    task = pair.older
    mount_namespace(task, pair.younger, "here")
    tree = clone_tree(task, "/", AT_RECURSIVE)
    task.setns(task.nsfd(pair.younger.name, "mnt"), CLONE_NEWNS)
    fails_with(errno.ELOOP, attach, task, tree, "/mnt")


def test_a_mounted_mount_namespace_is_left_out_of_a_new_one_and_a_user_namespace_is_not(
    pair: Pair,
) -> None:
    mount_namespace(pair.older, pair.younger, "here")
    mount_namespace(pair.older, pair.younger, "there", "user")
    late = pair.older.clone("late", CLONE_NEWNS)
    device = pair.older.stat("here").st_dev
    assert device == pair.older.stat("there").st_dev != late.stat("/").st_dev
    assert late.stat("there").st_dev == device
    assert late.stat("here").st_dev == late.stat("/").st_dev


def test_a_bind_of_a_mounted_namespace_is_that_namespace(pair: Pair) -> None:
    mount_namespace(pair.older, pair.younger, "here")
    bind(pair.older, "here", "there")
    pair.older.umount2("here", MNT_DETACH)
    assert pair.older.stat("there").st_ino == namespace(pair.younger)
    pair.older.setns(pair.older.open("there", O_RDONLY, 0), 0)
    assert exists(pair.older, "/mnt/theirs")
