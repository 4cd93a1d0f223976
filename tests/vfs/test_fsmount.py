"""fsmount and open_tree_attr: the attributes that a mount is born with."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    attach,
    clone_tree,
    exists_at,
    flags_of,
    make_file_at,
    marked,
    new_tmpfs,
    remount_bind,
    set_attributes,
    tmpfs,
)
from vfs_support import exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_RECURSIVE,
    F_GETFD,
    F_GETFL,
    FD_CLOEXEC,
    FSCONFIG_CMD_CREATE,
    FSMOUNT_CLOEXEC,
    O_PATH,
    O_RDONLY,
    OPEN_TREE_CLONE,
    ST_NOATIME,
    ST_NODEV,
    ST_NODIRATIME,
    ST_NOEXEC,
    ST_NOSUID,
    ST_NOSYMFOLLOW,
    ST_RDONLY,
    ST_RELATIME,
)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it that has a file ``f``, and a tmpfs on ``/mnt/d`` with ``deep``;
    below that one lies ``shallow``. ``/w`` is an empty directory.
    """
    root.mkdir("w", 0o755)
    marked(root, "mnt", "f")
    root.mkdir("mnt/d", 0o755)
    make_file(root, "mnt/d/shallow")
    tmpfs(root, "mnt/d")
    make_file(root, "mnt/d/deep")
    return "mnt"


# fsmount


def test_fsmount_gives_a_detached_mount_of_a_new_filesystem(root: TargetTask) -> None:
    fd = new_tmpfs(root, 0, ("size", "1m"), ("mode", "750"))
    assert root.fstatfs(fd).f_blocks * root.fstatfs(fd).f_bsize == 1 << 20
    assert root.fstat(fd).st_mode & 0o7777 == 0o750
    assert root.fcntl(fd, F_GETFL, 0) & O_PATH
    make_file_at(root, fd, "f")
    root.mkdir("w", 0o755)
    attach(root, fd, "w")
    assert exists(root, "w/f")
    root.close(fd)


ATTRIBUTES = {
    "nothing": (0, ST_RELATIME),
    "rdonly": (abi.MOUNT_ATTR_RDONLY, ST_RDONLY | ST_RELATIME),
    "nosuid": (abi.MOUNT_ATTR_NOSUID, ST_NOSUID | ST_RELATIME),
    "nodev": (abi.MOUNT_ATTR_NODEV, ST_NODEV | ST_RELATIME),
    "noexec": (abi.MOUNT_ATTR_NOEXEC, ST_NOEXEC | ST_RELATIME),
    "noatime": (abi.MOUNT_ATTR_NOATIME, ST_NOATIME),
    "strictatime": (abi.MOUNT_ATTR_STRICTATIME, 0),
    "nodiratime": (abi.MOUNT_ATTR_NODIRATIME, ST_NODIRATIME | ST_RELATIME),
    "nosymfollow": (abi.MOUNT_ATTR_NOSYMFOLLOW, ST_NOSYMFOLLOW | ST_RELATIME),
    "several": (
        abi.MOUNT_ATTR_NOEXEC | abi.MOUNT_ATTR_NODIRATIME | abi.MOUNT_ATTR_NOATIME,
        ST_NOEXEC | ST_NODIRATIME | ST_NOATIME,
    ),
}


@pytest.mark.parametrize("attributes, shown", ATTRIBUTES.values(), ids=list(ATTRIBUTES))
def test_fsmount_gives_the_mount_its_attributes(
    root: TargetTask, attributes: int, shown: int
) -> None:
    root.mkdir("w", 0o755)
    fd = new_tmpfs(root, attributes)
    attach(root, fd, "w")
    assert flags_of(root, "w") == shown
    root.close(fd)


def test_fsmount_rdonly_is_the_mounts_and_not_the_superblocks(root: TargetTask) -> None:
    fd = new_tmpfs(root, abi.MOUNT_ATTR_RDONLY)
    fails_with(errno.EROFS, make_file_at, root, fd, "f")
    root.mkdir("w", 0o755)
    attach(root, fd, "w")
    remount_bind(root, "w")
    make_file(root, "w/f")
    root.close(fd)


@pytest.fixture
def context(root: TargetTask) -> int:
    """An fsopen("tmpfs") whose superblock was made."""
    fd: int = root.fsopen("tmpfs", 0)
    root.fsconfig(fd, FSCONFIG_CMD_CREATE, None, None, 0)
    return fd


@pytest.mark.parametrize(
    "attributes",
    [
        0x30,
        0x40,
        0x70,
        abi.MOUNT_ATTR_IDMAP,
        0x100,
        1 << 30,
    ],
)
def test_fsmount_with_bad_attributes_is_einval(
    root: TargetTask, context: int, attributes: int
) -> None:
    fails_with(errno.EINVAL, root.fsmount, context, 0, attributes)
    fails_with(errno.EINVAL, root.fsmount, 77, 0, attributes)
    root.close(root.fsmount(context, 0, 0))


def test_fsmount_cloexec_is_the_descriptors_and_other_flags_are_einval(
    root: TargetTask, context: int
) -> None:
    fails_with(errno.EINVAL, root.fsmount, context, 2, 0)
    fd = root.fsmount(context, FSMOUNT_CLOEXEC, 0)
    assert root.fcntl(fd, F_GETFD, 0) == FD_CLOEXEC
    root.close(fd)


def test_fsmount_of_a_context_without_a_superblock_is_einval(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    fails_with(errno.EINVAL, root.fsmount, fd, 0, 0)
    root.close(fd)


def test_a_second_fsmount_of_a_context_is_refused(root: TargetTask, context: int) -> None:
    root.close(root.fsmount(context, 0, 0))
    fails_with(errno.EBUSY, root.fsmount, context, 0, 0)


def test_fsmount_of_something_else_is_einval_and_of_nothing_ebadf(root: TargetTask) -> None:
    file = root.open("f", abi.O_CREAT | O_RDONLY, 0o644)
    fails_with(errno.EINVAL, root.fsmount, file, 0, 0)
    fails_with(errno.EBADF, root.fsmount, 77, 0, 0)


def test_fsmount_needs_cap_sys_admin_before_its_arguments(root: TargetTask, context: int) -> None:
    user = root.clone("user", 0, 1000, 1000)
    fails_with(errno.EPERM, user.fsmount, context, 0, 0)
    fails_with(errno.EPERM, user.fsmount, 77, 8, 1 << 30)
    fails_with(errno.EPERM, user.fsopen, "tmpfs", 0)


def test_a_context_that_was_mounted_and_closed_leaves_the_filesystem(root: TargetTask) -> None:
    root.mkdir("w", 0o755)
    fd = new_tmpfs(root)
    attach(root, fd, "w")
    root.close(fd)
    make_file(root, "w/f")
    root.umount2("w", 0)
    assert not exists(root, "w/f")


def test_fspick_and_reconfigure_reach_every_mount_of_the_superblock(root: TargetTask) -> None:
    fd = new_tmpfs(root)
    picked = root.fspick(fd, "", abi.FSPICK_EMPTY_PATH)
    root.fsconfig(picked, abi.FSCONFIG_SET_STRING, "size", "1m", 0)
    root.fsconfig(picked, abi.FSCONFIG_CMD_RECONFIGURE, None, None, 0)
    assert root.fstatfs(fd).f_blocks * root.fstatfs(fd).f_bsize == 1 << 20
    root.close(picked)
    root.close(fd)


# open_tree_attr


def test_open_tree_attr_changes_the_copy_and_not_the_original(root: TargetTask, mnt: str) -> None:
    attr = (abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOEXEC, 0, 0, 0)
    fd = root.open_tree_attr(AT_FDCWD, "mnt", OPEN_TREE_CLONE, attr)
    assert root.fstatfs(fd).f_flags & (ST_RDONLY | ST_NOEXEC) == ST_RDONLY | ST_NOEXEC
    fails_with(errno.EROFS, make_file_at, root, fd, "new")
    assert flags_of(root, "mnt") == ST_RELATIME
    root.close(fd)


@pytest.mark.parametrize("flags, read_only", [(0, False), (AT_RECURSIVE, True)])
def test_open_tree_attr_is_recursive_if_the_copy_is(
    root: TargetTask, mnt: str, flags: int, read_only: bool
) -> None:
    attr = (abi.MOUNT_ATTR_RDONLY, 0, 0, 0)
    fd = root.open_tree_attr(AT_FDCWD, "mnt", OPEN_TREE_CLONE | flags, attr)
    fails_with(errno.EROFS, make_file_at, root, fd, "new")
    if read_only:
        fails_with(errno.EROFS, make_file_at, root, fd, "d/new")
    else:
        assert exists_at(root, fd, "d/shallow")
    assert flags_of(root, "mnt/d") == ST_RELATIME
    root.close(fd)


def test_open_tree_attr_without_a_copy_changes_the_mount_itself(root: TargetTask, mnt: str) -> None:
    fd = root.open_tree_attr(AT_FDCWD, "mnt", 0, (abi.MOUNT_ATTR_NOEXEC, 0, 0, 0))
    assert flags_of(root, "mnt") == ST_RELATIME | ST_NOEXEC
    root.close(fd)


def test_open_tree_attr_of_a_directory_that_is_no_mount_works_on_a_copy_only(
    root: TargetTask,
) -> None:
    root.mkdir("a", 0o755)
    attr = (abi.MOUNT_ATTR_RDONLY, 0, 0, 0)
    fails_with(errno.EINVAL, root.open_tree_attr, AT_FDCWD, "a", 0, attr)
    fd = root.open_tree_attr(AT_FDCWD, "a", OPEN_TREE_CLONE, attr)
    fails_with(errno.EROFS, make_file_at, root, fd, "f")
    make_file(root, "a/f")
    root.close(fd)


def test_open_tree_attr_without_attributes_is_open_tree(root: TargetTask, mnt: str) -> None:
    for attr in (None, (0, 0, 0, 0)):
        fd = root.open_tree_attr(AT_FDCWD, "mnt", OPEN_TREE_CLONE, attr)
        assert exists_at(root, fd, "f")
        root.close(fd)


def test_open_tree_attr_that_fails_leaves_no_descriptor(root: TargetTask, mnt: str) -> None:
    fails_with(
        errno.EINVAL, root.open_tree_attr, AT_FDCWD, "mnt", OPEN_TREE_CLONE, (1 << 40, 0, 0, 0)
    )
    fails_with(errno.EINVAL, root.open_tree_attr, AT_FDCWD, "mnt", AT_RECURSIVE, (1, 0, 0, 0))
    fd = root.open("mnt/f", O_RDONLY, 0)
    assert fd == 0
    root.close(fd)


def test_a_detached_mounts_attributes_can_be_changed_before_it_is_attached(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE | AT_NO_AUTOMOUNT)
    set_attributes(root, "", abi.MOUNT_ATTR_RDONLY, 0, 0, AT_RECURSIVE, fd)
    fails_with(errno.EINVAL, set_attributes, root, "d", abi.MOUNT_ATTR_NOEXEC, 0, 0, 0, fd)
    attach(root, fd, "w")
    assert flags_of(root, "w") == ST_RDONLY | ST_RELATIME
    assert flags_of(root, "w/d") == ST_RDONLY | ST_RELATIME
    assert flags_of(root, "mnt") == ST_RELATIME
    set_attributes(root, "w/d", 0, abi.MOUNT_ATTR_RDONLY)
    make_file(root, "w/d/new")
    root.close(fd)
