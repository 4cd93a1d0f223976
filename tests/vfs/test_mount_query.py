"""statmount, listmount, and what statx and statfs tell about mounts, on the VFS and on Linux."""

from __future__ import annotations

import errno

import pytest
from vfs_support import fails_with, make_file

from harness.testbed.target import Target, TargetTask
from vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    LISTMOUNT_REVERSE,
    LSMT_ROOT,
    MNT_DETACH,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_BIND,
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
    O_PATH,
    ST_MANDLOCK,
    ST_NOATIME,
    ST_NODEV,
    ST_NODIRATIME,
    ST_NOEXEC,
    ST_NOSUID,
    ST_NOSYMFOLLOW,
    ST_RDONLY,
    ST_RELATIME,
    ST_SYNCHRONOUS,
    ST_VALID,
    STATMOUNT_FS_SUBTYPE,
    STATMOUNT_FS_TYPE,
    STATMOUNT_MNT_BASIC,
    STATMOUNT_MNT_NS_ID,
    STATMOUNT_MNT_OPTS,
    STATMOUNT_MNT_POINT,
    STATMOUNT_MNT_ROOT,
    STATMOUNT_OPT_ARRAY,
    STATMOUNT_OPT_SEC_ARRAY,
    STATMOUNT_PROPAGATE_FROM,
    STATMOUNT_SB_BASIC,
    STATMOUNT_SB_SOURCE,
    STATMOUNT_SUPPORTED_MASK,
    STATX_ATTR_MOUNT_ROOT,
    STATX_MNT_ID,
    STATX_MNT_ID_UNIQUE,
    TMPFS_MAGIC,
    major,
    minor,
)

ALL = 0x7FFF
FIRST_UNIQUE_ID = (1 << 31) + 1
NO_SUCH_ID = 1 << 62


@pytest.fixture
def root(target: Target) -> TargetTask:
    task = target.task()
    for name in "abcd":
        task.mkdir(name, 0o755)
    return task


def tmpfs(task: TargetTask, path: str, source: str = "none", flags: int = 0) -> int:
    """Mounts and returns the unique id."""
    task.mount(source, path, "tmpfs", flags, None)
    return unique_id(task, path)


def bind(task: TargetTask, source: str, path: str) -> int:
    task.mount(source, path, None, MS_BIND, None)
    return unique_id(task, path)


def change(task: TargetTask, path: str, propagation: int) -> None:
    task.mount(None, path, None, propagation, None)


def unique_id(task: TargetTask, path: str) -> int:
    answer = task.statx(AT_FDCWD, path, 0, STATX_MNT_ID_UNIQUE)
    assert answer.stx_mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE) == STATX_MNT_ID_UNIQUE
    found: int = answer.stx_mnt_id
    return found


def namespace_id(task: TargetTask) -> int:
    found: int = task.statmount(unique_id(task, "/"), STATMOUNT_MNT_NS_ID).mnt_ns_id
    return found


# statx, statfs


def test_statx_gives_the_id_of_mountinfo_unless_the_unique_one_is_asked_for(
    root: TargetTask,
) -> None:
    unique = tmpfs(root, "a")
    for mask in (0, STATX_MNT_ID):
        answer = root.statx(AT_FDCWD, "a", 0, mask)
        assert answer.stx_mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE) == STATX_MNT_ID
        assert b"\n%d " % answer.stx_mnt_id in root.mountinfo()
    both = root.statx(AT_FDCWD, "a", 0, STATX_MNT_ID | STATX_MNT_ID_UNIQUE)
    assert both.stx_mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE) == STATX_MNT_ID_UNIQUE
    assert both.stx_mnt_id == unique >= FIRST_UNIQUE_ID


def test_statx_marks_the_root_of_every_mount_and_nothing_else(root: TargetTask) -> None:
    make_file(root, "f")
    make_file(root, "a/f")
    root.mkdir("a/d", 0o755)
    bind(root, "f", "a/f")
    bind(root, "a/d", "b")

    def marked(path: str, dirfd: int = AT_FDCWD, flags: int = 0) -> bool:
        answer = root.statx(dirfd, path, flags, 0)
        assert answer.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT
        return bool(answer.stx_attributes & STATX_ATTR_MOUNT_ROOT)

    assert marked("/") and marked("b") and marked("a/f")
    assert not marked("a/d") and not marked("f") and not marked("a")
    covered = root.open("b", O_PATH, 0)
    tmpfs(root, "b")
    assert marked("", covered, AT_EMPTY_PATH)
    root.close(covered)


def test_statfs_shows_the_flags_of_mount_and_superblock(root: TargetTask) -> None:
    tmpfs(root, "a")
    assert root.statfs("a").f_flags == ST_VALID | ST_RELATIME
    mount_flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_NOSYMFOLLOW
    tmpfs(root, "b", "none", mount_flags | MS_RDONLY | MS_SYNCHRONOUS | MS_MANDLOCK | MS_DIRSYNC)
    assert root.statfs("b").f_flags == (
        ST_VALID | ST_RDONLY | ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_SYNCHRONOUS | ST_MANDLOCK
        | ST_NOATIME | ST_NODIRATIME | ST_NOSYMFOLLOW
    )  # fmt: skip


# statmount


def test_statmount_answers_what_is_asked_and_nothing_else(root: TargetTask) -> None:
    unique = tmpfs(root, "a", "src")
    nothing = root.statmount(unique, 0)
    assert not any(nothing)
    basic = root.statmount(unique, STATMOUNT_MNT_BASIC)
    assert basic.mask == STATMOUNT_MNT_BASIC
    assert basic.mnt_id == unique and basic.mnt_parent_id == unique_id(root, "/")
    assert basic.mnt_id_old == root.statx(AT_FDCWD, "a", 0, 0).stx_mnt_id
    assert basic.mnt_parent_id_old == root.statx(AT_FDCWD, "/", 0, 0).stx_mnt_id
    assert basic.fs_type is basic.mnt_root is basic.mnt_point is basic.sb_source is None
    assert basic.sb_magic == basic.mnt_ns_id == basic.supported_mask == 0


@pytest.mark.usefixtures("every_id")
def test_statmount_answers_everything_that_a_tmpfs_has(root: TargetTask) -> None:
    root.mount("src", "a", "tmpfs", 0, "size=1m,mode=700")
    root.mkdir("a/d", 0o755)
    unique = bind(root, "a/d", "b")
    answer = root.statmount(unique, (1 << 63) | ALL)
    assert answer.mask == ALL & ~(STATMOUNT_FS_SUBTYPE | STATMOUNT_OPT_SEC_ARRAY | 0x2000 | 0x4000)
    device = root.stat("a").st_dev
    assert (answer.sb_dev_major, answer.sb_dev_minor) == (major(device), minor(device))
    assert (answer.sb_magic, answer.sb_flags) == (TMPFS_MAGIC, 0)
    assert (answer.fs_type, answer.sb_source) == (b"tmpfs", b"src")
    assert (answer.mnt_root, answer.mnt_point) == (b"/d", b"/b")
    assert answer.mnt_opts == b"size=1024k,mode=700"
    assert answer.opt_array == (b"size=1024k", b"mode=700")
    assert answer.opt_sec_array == () and answer.fs_subtype is None
    assert answer.mnt_attr == 0 and answer.mnt_propagation == MS_PRIVATE
    assert answer.supported_mask == ALL


@pytest.mark.usefixtures("every_id")
def test_an_empty_string_is_not_answered(root: TargetTask) -> None:
    unique = tmpfs(root, "a", "")
    assert root.statmount(unique, STATMOUNT_SB_SOURCE | STATMOUNT_MNT_OPTS).mask == 0
    assert root.statmount(unique, STATMOUNT_OPT_ARRAY | STATMOUNT_FS_TYPE).opt_array == ()


def test_statmount_does_not_escape(root: TargetTask) -> None:
    name = "s p\tt\nn\\b#h"
    root.mkdir(name, 0o755)
    root.mkdir(name + "/d", 0o755)
    unique = bind(root, name, name + "/d")
    answer = root.statmount(unique, STATMOUNT_MNT_ROOT | STATMOUNT_MNT_POINT)
    assert answer.mnt_root == b"/" + name.encode()
    assert answer.mnt_point == b"/" + name.encode() + b"/d"
    source = tmpfs(root, "a", name)
    assert root.statmount(source, STATMOUNT_SB_SOURCE).sb_source == name.encode()


def test_statmount_tells_attributes_and_superblock_flags(root: TargetTask) -> None:
    mount_flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_NOSYMFOLLOW
    superblock_flags = MS_RDONLY | MS_SYNCHRONOUS | MS_DIRSYNC | MS_LAZYTIME
    unique = tmpfs(root, "a", "none", mount_flags | superblock_flags | MS_MANDLOCK)
    answer = root.statmount(unique, STATMOUNT_SB_BASIC | STATMOUNT_MNT_BASIC)
    assert answer.sb_flags == superblock_flags
    assert answer.mnt_attr == (
        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        | MOUNT_ATTR_NOATIME | MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOSYMFOLLOW
    )  # fmt: skip
    unique = tmpfs(root, "b", "none", MS_STRICTATIME)
    assert root.statmount(unique, STATMOUNT_MNT_BASIC).mnt_attr == MOUNT_ATTR_STRICTATIME


def test_statmount_tells_propagation(root: TargetTask) -> None:
    ids = [tmpfs(root, "a")]
    change(root, "a", MS_SHARED)
    ids.append(bind(root, "a", "b"))
    change(root, "b", MS_SLAVE)
    ids.append(bind(root, "b", "c"))
    change(root, "c", MS_SHARED)
    ids.append(tmpfs(root, "d"))
    change(root, "d", MS_UNBINDABLE)
    a, b, c, d = (root.statmount(unique, STATMOUNT_MNT_BASIC) for unique in ids)
    assert [mount.mnt_propagation for mount in (a, b, c, d)] == [
        MS_SHARED, MS_SLAVE, MS_SHARED | MS_SLAVE, MS_UNBINDABLE,
    ]  # fmt: skip
    assert a.mnt_peer_group and c.mnt_peer_group and a.mnt_peer_group != c.mnt_peer_group
    assert b.mnt_master == c.mnt_master == a.mnt_peer_group
    assert not (a.mnt_master or b.mnt_peer_group or d.mnt_master or d.mnt_peer_group)
    private = root.statmount(ids[3], STATMOUNT_PROPAGATE_FROM)
    assert (private.mask, private.propagate_from) == (STATMOUNT_PROPAGATE_FROM, 0)
    # Unlike mountinfo's, even if it is the master.
    assert root.statmount(ids[1], STATMOUNT_PROPAGATE_FROM).propagate_from == a.mnt_peer_group


def test_statmount_checks_flags_then_ids_then_the_namespace_then_the_mount(
    root: TargetTask,
) -> None:
    unique = tmpfs(root, "a")
    fails_with(errno.EINVAL, root.statmount, unique, 0, 0, 2)
    for never in (0, 1, FIRST_UNIQUE_ID - 1):
        fails_with(errno.EINVAL, root.statmount, never, 0, NO_SUCH_ID)
    fails_with(errno.ENOENT, root.statmount, unique, 0, NO_SUCH_ID)
    fails_with(errno.ENOENT, root.statmount, NO_SUCH_ID, 0)
    fails_with(errno.ENOENT, root.statmount, LSMT_ROOT, 0)
    root.umount2("a", 0)
    fails_with(errno.ENOENT, root.statmount, unique, 0)


def test_a_mount_outside_of_the_root_is_for_the_privileged_and_has_no_mount_point(
    root: TargetTask,
) -> None:
    outside = tmpfs(root, "a", "outside")
    root.mkdir("a/jail", 0o755)
    root.mkdir("a/jail/m", 0o755)
    inside = tmpfs(root, "a/jail/m", "inside")
    child = root.clone("child")
    child.chroot("a/jail")
    user = clone_user(child)
    mask = STATMOUNT_MNT_POINT | STATMOUNT_SB_SOURCE
    seen = child.statmount(outside, mask)
    assert (seen.mask, seen.sb_source, seen.mnt_point) == (STATMOUNT_SB_SOURCE, b"outside", None)
    fails_with(errno.EPERM, user.statmount, outside, mask)
    for task in (child, user):
        assert task.statmount(inside, mask).mnt_point == b"/m"


def clone_user(task: TargetTask, flags: int = 0, uid: int = 1000) -> TargetTask:
    return task.clone(f"user{uid}", flags, uid, uid)


# listmount


def test_listmount_names_what_lies_below_in_order(root: TargetTask) -> None:
    a, b = tmpfs(root, "a"), tmpfs(root, "b")
    root.mkdir("a/d", 0o755)
    c = tmpfs(root, "a/d")
    d = tmpfs(root, "a/d")
    assert root.listmount(a) == [c, d]
    assert root.listmount(c) == [d]
    assert root.listmount(b) == root.listmount(d) == []
    top = unique_id(root, "/")
    assert root.listmount(top) == [a, b, c, d]
    assert root.listmount(LSMT_ROOT) == [top, a, b, c, d]


def test_listmount_goes_on_behind_an_id_in_either_direction(root: TargetTask) -> None:
    top = unique_id(root, "/")
    a, b, c = (tmpfs(root, name) for name in "abc")
    assert root.listmount(top, 0, 2) == [a, b]
    assert root.listmount(top, b, 2) == [c]
    assert root.listmount(top, c) == root.listmount(top, NO_SUCH_ID) == []
    assert root.listmount(top, FIRST_UNIQUE_ID) == [a, b, c]
    assert root.listmount(LSMT_ROOT, 0, 2, 0, LISTMOUNT_REVERSE) == [c, b]
    assert root.listmount(LSMT_ROOT, b, 9, 0, LISTMOUNT_REVERSE) == [a, top]
    assert root.listmount(top, NO_SUCH_ID, 9, 0, LISTMOUNT_REVERSE) == [c, b, a]
    root.umount2("b", 0)
    assert root.listmount(top, b) == [c]
    assert root.listmount(top, b, 9, 0, LISTMOUNT_REVERSE) == [a]
    assert root.listmount(top, 0, 0) == []


def test_listmount_checks_flags_then_the_count_then_ids_then_the_namespace(
    root: TargetTask,
) -> None:
    top = unique_id(root, "/")
    fails_with(errno.EINVAL, root.listmount, 0, 0, 1_000_001, 0, 2)
    fails_with(errno.EOVERFLOW, root.listmount, 0, 1, 1_000_001, NO_SUCH_ID)
    for never in (0, 1, FIRST_UNIQUE_ID - 1):
        fails_with(errno.EINVAL, root.listmount, never, 0, 1, NO_SUCH_ID)
    for never in (1, FIRST_UNIQUE_ID - 1):
        fails_with(errno.EINVAL, root.listmount, top, never, 1, NO_SUCH_ID)
    fails_with(errno.ENOENT, root.listmount, top, 0, 1, NO_SUCH_ID)
    fails_with(errno.ENOENT, root.listmount, NO_SUCH_ID)


def test_listmount_stays_below_the_callers_root_unless_it_is_privileged(root: TargetTask) -> None:
    outside = tmpfs(root, "a")
    root.mkdir("a/jail", 0o755)
    root.mkdir("a/jail/m", 0o755)
    beside = tmpfs(root, "b")
    inside = tmpfs(root, "a/jail/m")
    child = root.clone("child")
    child.chroot("a/jail")
    user = clone_user(child)
    for task in (child, user):
        assert task.listmount(LSMT_ROOT) == [inside]
        assert task.listmount(inside) == []
    assert child.listmount(outside) == [inside]
    assert child.listmount(beside) == []
    for mount in (outside, beside):
        fails_with(errno.EPERM, user.listmount, mount)


# Other namespaces


def test_a_mount_of_another_namespace_is_found_by_that_ones_id(root: TargetTask) -> None:
    child = root.clone("child", CLONE_NEWNS)
    other, own = namespace_id(child), namespace_id(root)
    assert other != own
    theirs = tmpfs(child, "a", "theirs")
    child.mkdir("a/d", 0o755)
    child.chroot("a")
    fails_with(errno.ENOENT, root.statmount, theirs, 0)
    mask = STATMOUNT_MNT_POINT | STATMOUNT_MNT_NS_ID
    answer = root.statmount(theirs, mask, other)
    assert (answer.mnt_point, answer.mnt_ns_id) == (b"/a", other)
    assert theirs in root.listmount(LSMT_ROOT, 0, 99, other)
    assert theirs not in root.listmount(LSMT_ROOT)
    mine = unique_id(root, "/")
    assert root.statmount(mine, mask, own).mnt_point == b"/"
    fails_with(errno.ENOENT, root.statmount, mine, 0, other)
    fails_with(errno.ENOENT, root.listmount, mine, 0, 99, other)


def test_in_another_namespace_paths_start_at_its_root_and_not_at_the_callers(
    root: TargetTask,
) -> None:
    child = root.clone("child", CLONE_NEWNS)
    other = namespace_id(child)
    theirs = tmpfs(child, "a")
    everything = root.listmount(LSMT_ROOT, 0, 99, other)
    root.chroot("b")
    assert root.statmount(theirs, STATMOUNT_MNT_POINT, other).mnt_point == b"/a"
    assert root.listmount(LSMT_ROOT, 0, 99, other) == everything
    assert root.listmount(LSMT_ROOT) == []


def test_another_namespace_wants_a_privilege_and_hides_differently_without(
    root: TargetTask,
) -> None:
    child = root.clone("child", CLONE_NEWNS)
    other = namespace_id(child)
    theirs = unique_id(child, "/")
    user = clone_user(root)
    fails_with(errno.EPERM, user.statmount, theirs, 0, other)
    fails_with(errno.EPERM, user.statmount, NO_SUCH_ID, 0, other)
    fails_with(errno.EINVAL, user.statmount, 0, 0, other)
    fails_with(errno.ENOENT, user.listmount, theirs, 0, 1, other)
    fails_with(errno.ENOENT, user.listmount, LSMT_ROOT, 0, 1, other)
    own = namespace_id(user)
    assert user.statmount(unique_id(user, "/"), STATMOUNT_MNT_NS_ID, own).mnt_ns_id == own


def test_the_privilege_over_another_namespace_is_one_in_its_user_namespace(
    root: TargetTask,
) -> None:
    child = root.clone("child", CLONE_NEWNS | CLONE_NEWUSER)
    below, above = namespace_id(child), namespace_id(root)
    theirs, ours = unique_id(child, "/"), unique_id(root, "/")
    assert root.statmount(theirs, STATMOUNT_MNT_NS_ID, below).mnt_ns_id == below
    fails_with(errno.EPERM, child.statmount, ours, 0, above)
    fails_with(errno.ENOENT, child.listmount, LSMT_ROOT, 0, 1, above)


def test_a_namespace_is_gone_with_its_last_task(root: TargetTask) -> None:
    child = root.clone("child", CLONE_NEWNS)
    other, theirs = namespace_id(child), unique_id(child, "/")
    child.exit()
    fails_with(errno.ENOENT, root.statmount, theirs, 0, other)
    fails_with(errno.ENOENT, root.listmount, LSMT_ROOT, 0, 1, other)


def test_an_unmounted_root_has_no_mounts_below_it(root: TargetTask) -> None:
    unique = tmpfs(root, "a")
    child = root.clone("child")
    child.chroot("a")
    root.umount2("a", MNT_DETACH)
    assert child.listmount(LSMT_ROOT) == []
    fails_with(errno.ENOENT, child.statmount, unique, STATMOUNT_SUPPORTED_MASK)
