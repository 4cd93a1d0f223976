"""Mounts in the mount namespace of a less privileged user namespace: what is locked, and to whom.

``inner`` is a child of alice (uid 1000) made by clone(CLONE_NEWUSER|CLONE_NEWNS) after ``root``
mounted something; it has every capability in its user namespace, and none outside of it.
"""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    INNER,
    bind,
    enter,
    exists_at,
    flags_of,
    is_read_only,
    marked,
    move,
    only_one_of_a_kind,
    propagation,
    rbind,
    remount,
    remount_bind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MNT_DETACH,
    MNT_EXPIRE,
    MNT_FORCE,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_RELATIME,
    MS_SHARED,
    MS_STRICTATIME,
    MS_UNBINDABLE,
    O_PATH,
    O_RDONLY,
    ST_NOATIME,
    ST_NOEXEC,
    ST_NOSUID,
    ST_RDONLY,
    ST_RELATIME,
)


@pytest.fixture
def mnt(root: TargetTask, alice: TargetTask) -> str:
    """``/mnt`` with a tmpfs that has a file ``f`` and a tmpfs on ``/mnt/d`` with a file ``deep``;
    below that one lies ``shallow``. ``/w`` and ``/v`` are empty directories.
    """
    root.mkdir("w", 0o777)
    root.mkdir("v", 0o777)
    marked(root, "mnt", "f")
    root.mkdir("mnt/d", 0o755)
    make_file(root, "mnt/d/shallow")
    tmpfs(root, "mnt/d")
    make_file(root, "mnt/d/deep")
    root.mkdir("mnt/plain", 0o755)
    make_file(root, "mnt/plain/p")
    return "mnt"


@pytest.fixture
def inner(alice: TargetTask, mnt: str) -> TargetTask:
    return enter(alice)


# What it may do


def test_a_user_may_mount_in_a_namespace_of_its_own(root: TargetTask, inner: TargetTask) -> None:
    tmpfs(inner, "w")
    make_file(inner, "w/f", b"mine")
    assert contents(inner, "w/f") == b"mine"
    assert not exists(root, "w/f")
    inner.umount2("w", 0)
    assert not exists(inner, "w/f")


def test_a_user_may_change_flags_and_superblock_of_its_own_mounts(inner: TargetTask) -> None:
    tmpfs(inner, "w", MS_NOSUID | MS_RDONLY)
    remount_bind(inner, "w", MS_RDONLY | MS_NOEXEC | MS_NOATIME)
    assert flags_of(inner, "w") == ST_RDONLY | ST_NOEXEC | ST_NOATIME
    remount(inner, "w", MS_RELATIME, "size=1m")
    assert flags_of(inner, "w") == ST_RELATIME
    make_file(inner, "w/f")


def test_a_user_may_move_bind_and_stack_its_own_mounts(inner: TargetTask) -> None:
    tmpfs(inner, "w")
    make_file(inner, "w/f")
    move(inner, "w", "v")
    bind(inner, "v", "w")
    assert exists(inner, "w/f")
    tmpfs(inner, "w")
    assert not exists(inner, "w/f")
    inner.umount2("w", 0)
    inner.umount2("w", 0)
    inner.umount2("v", 0)


def test_a_user_may_mount_over_what_it_cannot_unmount_and_take_its_own_off_again(
    inner: TargetTask,
) -> None:
    tmpfs(inner, "mnt/d")
    assert not exists(inner, "mnt/d/deep")
    inner.umount2("mnt/d", 0)
    assert exists(inner, "mnt/d/deep")
    fails_with(errno.EINVAL, inner.umount2, "mnt/d", 0)


def test_a_user_may_chroot_and_pivot_in_a_namespace_of_its_own(inner: TargetTask) -> None:
    tmpfs(inner, "w")
    inner.mkdir("w/old", 0o755)
    make_file(inner, "w/f")
    inner.pivot_root("w", "w/old")
    assert exists(inner, "/f")
    assert exists(inner, "/old/mnt/d/deep")
    inner.chroot("/old/mnt")
    assert exists(inner, "/f")


def test_capabilities_in_a_user_namespace_reach_files_whose_ids_it_knows(
    root: TargetTask, alice: TargetTask
) -> None:
    make_file(root, "secret", b"secret", 0o600)
    inner = enter(alice)
    fails_with(errno.EACCES, contents, alice, "secret")
    assert contents(inner, "secret") == b"secret"


# What it may not do


def test_a_user_namespace_alone_does_not_make_the_mounts_ones_own(alice: TargetTask) -> None:
    inner = alice.clone("inner", CLONE_NEWUSER, 1000, 1000, (100,))
    fails_with(errno.EPERM, tmpfs, inner, "/")
    fails_with(errno.EPERM, inner.umount2, "/", MNT_DETACH)
    fails_with(errno.EPERM, inner.pivot_root, "/", "/")
    fails_with(errno.EPERM, propagation, inner, "/", MS_PRIVATE)
    inner.unshare(CLONE_NEWNS)
    tmpfs(inner, "/")


def test_a_new_mount_namespace_takes_a_new_user_namespace_first(alice: TargetTask) -> None:
    fails_with(errno.EPERM, alice.unshare, CLONE_NEWNS)
    alice.unshare(INNER)
    tmpfs(alice, "/")


def test_a_chrooted_task_cannot_make_a_user_namespace(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    jailed = root.clone("jailed")
    jailed.chroot("jail")
    fails_with(errno.EPERM, jailed.unshare, CLONE_NEWUSER)
    fails_with(errno.EPERM, jailed.unshare, INNER)


def test_inherited_mounts_cannot_be_unmounted(inner: TargetTask) -> None:
    for path in ("mnt/d", "mnt", "/"):
        for flags in (0, MNT_DETACH, MNT_EXPIRE, MNT_FORCE):
            fails_with(errno.EINVAL, inner.umount2, path, flags)
    assert exists(inner, "mnt/d/deep")


def test_inherited_mounts_cannot_be_moved(inner: TargetTask) -> None:
    fails_with(errno.EINVAL, move, inner, "mnt", "w")
    fails_with(errno.EINVAL, move, inner, "mnt/d", "w")


def test_the_superblock_of_an_inherited_mount_cannot_be_remounted(inner: TargetTask) -> None:
    fails_with(errno.EPERM, remount, inner, "mnt", MS_RDONLY)
    fails_with(errno.EPERM, remount, inner, "mnt", 0, "size=1m")
    assert not is_read_only(inner, "mnt")
    bind(inner, "mnt/plain", "w")
    fails_with(errno.EPERM, remount, inner, "w", MS_RDONLY)


def test_a_forced_unmount_takes_capability_over_the_superblock(inner: TargetTask) -> None:
    bind(inner, "mnt/plain", "w")
    fails_with(errno.EPERM, inner.umount2, "w", MNT_FORCE)
    fails_with(errno.EPERM, inner.umount2, "w", MNT_FORCE | MNT_DETACH)
    inner.umount2("w", 0)
    tmpfs(inner, "w")
    inner.umount2("w", MNT_FORCE)


def test_unmounting_ones_root_takes_capability_over_the_superblock(inner: TargetTask) -> None:
    bind(inner, "mnt/plain", "w")
    inner.chroot("w")
    inner.chdir("/")
    fails_with(errno.EPERM, inner.umount2, "/", 0)
    fails_with(errno.EINVAL, inner.umount2, "/", MNT_EXPIRE)
    inner.umount2("/", MNT_DETACH)
    assert exists(inner, "/p")


def test_unmounting_ones_own_tmpfs_as_root_makes_it_read_only(inner: TargetTask) -> None:
    tmpfs(inner, "w")
    inner.chroot("w")
    inner.umount2("/", 0)
    assert is_read_only(inner, "/")


def test_the_owner_outside_of_its_user_namespace_may_still_mount_nothing(
    alice: TargetTask, inner: TargetTask
) -> None:
    fails_with(errno.EPERM, tmpfs, alice, "w")
    fails_with(errno.EPERM, alice.umount2, "mnt", 0)


def test_capabilities_inside_are_none_over_the_system(inner: TargetTask) -> None:
    tmpfs(inner, "w")
    fails_with(errno.EPERM, inner.mknod, "w/null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    inner.mknod("w/fifo", abi.S_IFIFO | 0o666, 0)
    make_file(inner, "w/f")
    fails_with(errno.EPERM, inner.setxattr, "w/f", "trusted.a", b"", 0)


def test_a_filesystem_type_that_is_not_for_user_namespaces_is_eperm(inner: TargetTask) -> None:
    name = only_one_of_a_kind(inner)
    fails_with(errno.EPERM, inner.mount, "none", "w", name, 0, None)
    fails_with(errno.ENODEV, inner.mount, "none", "w", "no-such-type", 0, None)


def test_devices_on_a_tmpfs_of_a_user_namespace_open_for_nobody(
    root: TargetTask, inner: TargetTask
) -> None:
    tmpfs(inner, "w")
    visitor = root.clone("visitor")
    fd = visitor.nsfd("inner", "mnt")
    visitor.setns(fd, CLONE_NEWNS)
    visitor.mknod("/w/null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    assert flags_of(visitor, "/w") == ST_RELATIME
    fails_with(errno.EACCES, visitor.open, "/w/null", O_RDONLY, 0)
    fails_with(errno.EACCES, inner.open, "/w/null", O_RDONLY, 0)


# Trees that are locked together


def test_a_plain_bind_of_a_tree_with_locked_mounts_in_it_is_einval(inner: TargetTask) -> None:
    fails_with(errno.EINVAL, bind, inner, "mnt", "w")
    fails_with(errno.EINVAL, bind, inner, "/", "w")
    bind(inner, "mnt/plain", "w")
    assert exists(inner, "w/p")
    bind(inner, "mnt/d", "v")
    assert exists(inner, "v/deep")


def test_a_plain_bind_may_leave_out_what_one_mounted_oneself(inner: TargetTask) -> None:
    tmpfs(inner, "mnt/plain")
    bind(inner, "mnt/plain", "w")
    tmpfs(inner, "w")
    inner.mkdir("w/x", 0o755)
    tmpfs(inner, "w/x")
    bind(inner, "w", "v")
    assert not exists(inner, "v/x/none")
    inner.umount2("v", 0)


def test_a_recursive_bind_keeps_what_is_inside_locked_and_its_top_free(inner: TargetTask) -> None:
    rbind(inner, "mnt", "w")
    assert exists(inner, "w/d/deep")
    fails_with(errno.EINVAL, inner.umount2, "w/d", 0)
    fails_with(errno.EINVAL, inner.umount2, "w/d", MNT_DETACH)
    fails_with(errno.EINVAL, move, inner, "w/d", "v")
    fails_with(errno.EINVAL, bind, inner, "w", "v")
    fails_with(errno.EBUSY, inner.umount2, "w", 0)
    move(inner, "w", "v")
    assert exists(inner, "v/d/deep")
    inner.umount2("v", MNT_DETACH)
    assert not exists(inner, "v/f")


def test_a_plain_bind_of_a_locked_mount_alone_can_be_unmounted(inner: TargetTask) -> None:
    bind(inner, "mnt/d", "w")
    assert exists(inner, "w/deep")
    inner.umount2("w", 0)


def test_a_lazily_unmounted_locked_tree_stays_together(inner: TargetTask) -> None:
    rbind(inner, "mnt", "w")
    tmpfs(inner, "w/plain")
    make_file(inner, "w/plain/own")
    fd = inner.open("w", O_RDONLY, 0)
    inner.umount2("w", MNT_DETACH)
    assert exists_at(inner, fd, "d/deep")
    assert not exists_at(inner, fd, "d/shallow")
    assert not exists_at(inner, fd, "plain/own")
    inner.close(fd)


def test_a_recursive_bind_of_a_locked_unbindable_mount_is_eperm(inner: TargetTask) -> None:
    propagation(inner, "mnt/d", MS_UNBINDABLE)
    fails_with(errno.EPERM, rbind, inner, "mnt", "w")
    fails_with(errno.EINVAL, bind, inner, "mnt/d", "w")
    propagation(inner, "mnt/d", MS_PRIVATE)
    rbind(inner, "mnt", "w")


def test_an_unbindable_mounts_copy_in_a_new_namespace_is_bindable(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    propagation(root, "mnt/d", MS_UNBINDABLE)
    fails_with(errno.EINVAL, bind, root, "mnt/d", "w")
    for task in (root.clone("other", CLONE_NEWNS), enter(alice)):
        bind(task, "mnt/d", "w")
        assert exists(task, "w/deep")


def test_locks_are_inherited_by_further_mount_namespaces_of_the_same_user_namespace(
    inner: TargetTask,
) -> None:
    tmpfs(inner, "w")
    inner.unshare(CLONE_NEWNS)
    fails_with(errno.EINVAL, inner.umount2, "mnt/d", 0)
    fails_with(errno.EINVAL, inner.umount2, "mnt", MNT_DETACH)
    inner.umount2("w", 0)


def test_what_one_mounted_oneself_is_locked_in_a_user_namespace_further_in(
    inner: TargetTask,
) -> None:
    tmpfs(inner, "w", MS_NOEXEC)
    innermost = enter(inner, "innermost")
    fails_with(errno.EINVAL, innermost.umount2, "w", 0)
    fails_with(errno.EINVAL, innermost.umount2, "mnt", MNT_DETACH)
    fails_with(errno.EPERM, remount_bind, innermost, "w")
    fails_with(errno.EPERM, remount, innermost, "w", MS_NOEXEC)
    tmpfs(innermost, "v")
    inner.umount2("w", 0)
    assert not exists(inner, "v/none")


def test_pivot_root_to_an_inherited_mount_is_einval(inner: TargetTask) -> None:
    fails_with(errno.EINVAL, inner.pivot_root, "mnt", "mnt/plain")
    fails_with(errno.EINVAL, inner.pivot_root, "mnt/d", "mnt/d")


def test_pivot_root_hands_the_lock_on_to_the_new_root(inner: TargetTask) -> None:
    tmpfs(inner, "w")
    inner.mkdir("w/old", 0o755)
    inner.pivot_root("w", "w/old")
    outside = inner.open("/old", O_PATH, 0)
    fails_with(errno.EINVAL, inner.umount2, "/", MNT_DETACH)
    fails_with(errno.EINVAL, inner.umount2, "/", 0)
    inner.umount2("/old", MNT_DETACH)
    inner.fchdir(outside)
    assert exists(inner, "mnt/d/deep")
    inner.close(outside)


def test_pivot_root_to_a_copy_of_everything_frees_the_old_root_and_nothing_inside(
    inner: TargetTask,
) -> None:
    rbind(inner, "/", "w")
    inner.chdir("w")
    inner.pivot_root(".", ".")
    inner.umount2(".", MNT_DETACH)
    inner.chdir("/")
    assert exists(inner, "/mnt/d/deep")
    fails_with(errno.EINVAL, inner.umount2, "/mnt/d", 0)
    fails_with(errno.EINVAL, inner.umount2, "/mnt", MNT_DETACH)
    fails_with(errno.EINVAL, inner.umount2, "/", MNT_DETACH)


def test_an_own_mount_with_a_copy_of_locked_ones_in_it_moves_and_goes_as_a_whole(
    inner: TargetTask,
) -> None:
    tmpfs(inner, "w")
    inner.mkdir("w/copy", 0o755)
    rbind(inner, "mnt", "w/copy")
    move(inner, "w", "v")
    fails_with(errno.EINVAL, inner.umount2, "v/copy/d", 0)
    move(inner, "v/copy", "w")
    assert exists(inner, "w/d/deep")
    inner.umount2("w", MNT_DETACH)
    inner.umount2("v", 0)


def test_pivot_root_away_from_an_own_root_does_not_lock_the_next(inner: TargetTask) -> None:
    tmpfs(inner, "w")
    inner.chroot("w")
    inner.chdir("/")
    inner.mkdir("new", 0o755)
    tmpfs(inner, "new")
    inner.mkdir("new/old", 0o755)
    inner.pivot_root("new", "new/old")
    inner.umount2("/old", MNT_DETACH)
    inner.umount2("/", MNT_DETACH)


def test_a_mount_namespaces_owner_in_the_parent_cannot_break_its_locks_either(
    root: TargetTask, inner: TargetTask
) -> None:
    visitor = root.clone("visitor")
    visitor.setns(visitor.nsfd("inner", "mnt"), CLONE_NEWNS)
    fails_with(errno.EINVAL, visitor.umount2, "/mnt/d", 0)
    fails_with(errno.EINVAL, bind, visitor, "/mnt", "/w")
    visitor.mount(None, "/mnt", None, abi.MS_REMOUNT, "size=2m")


# Locked flags


@pytest.mark.parametrize(
    "flag",
    [MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC],
    ids=["rdonly", "nosuid", "nodev", "noexec"],
)
def test_an_inherited_flag_cannot_be_cleared_and_others_can_be_added_and_cleared(
    root: TargetTask, alice: TargetTask, mnt: str, flag: int
) -> None:
    remount_bind(root, "mnt", flag)
    inner = enter(alice)
    fails_with(errno.EPERM, remount_bind, inner, "mnt")
    fails_with(errno.EPERM, remount, inner, "mnt")
    before = flags_of(inner, "mnt")
    others = (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC) & ~flag
    remount_bind(inner, "mnt", flag | others)
    fails_with(errno.EPERM, remount_bind, inner, "mnt", others)
    remount_bind(inner, "mnt", flag)
    assert flags_of(inner, "mnt") == before


def test_an_inherited_flag_stays_locked_in_a_bind_of_the_mount(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    remount_bind(root, "mnt", MS_NOEXEC | MS_NOSUID)
    inner = enter(alice)
    bind(inner, "mnt/plain", "w")
    fails_with(errno.EPERM, remount_bind, inner, "w", MS_NOEXEC)
    remount_bind(inner, "w", MS_NOEXEC | MS_NOSUID)


def test_an_inherited_nosymfollow_can_be_cleared(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    remount_bind(root, "mnt", MS_NOSYMFOLLOW)
    inner = enter(alice)
    remount_bind(inner, "mnt")
    assert flags_of(inner, "mnt") == ST_RELATIME


@pytest.mark.parametrize("was", [MS_RELATIME, MS_NOATIME, MS_STRICTATIME, MS_NODIRATIME])
@pytest.mark.parametrize("wanted", [MS_RELATIME, MS_NOATIME, MS_STRICTATIME, MS_NODIRATIME])
def test_the_atime_mode_of_an_inherited_mount_cannot_be_changed(
    root: TargetTask, alice: TargetTask, mnt: str, was: int, wanted: int
) -> None:
    remount_bind(root, "mnt", was)
    inner = enter(alice)
    if wanted == was:
        remount_bind(inner, "mnt", wanted)
    else:
        fails_with(errno.EPERM, remount_bind, inner, "mnt", wanted)
    assert flags_of(inner, "mnt") == flags_of(root, "mnt")


def test_a_remount_silent_about_atime_is_none_that_changes_it(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    remount_bind(root, "mnt", MS_NOATIME)
    inner = enter(alice)
    remount_bind(inner, "mnt", MS_NOEXEC)
    assert flags_of(inner, "mnt") == ST_NOATIME | ST_NOEXEC


def test_the_original_of_a_locked_mount_is_not_locked(root: TargetTask, inner: TargetTask) -> None:
    remount_bind(root, "mnt", MS_NOEXEC)
    remount_bind(root, "mnt")
    root.umount2("mnt/d", 0)
    assert exists(inner, "mnt/d/deep")
    assert flags_of(inner, "mnt") == ST_RELATIME


# Propagation across the border


@pytest.fixture
def shared(root: TargetTask, alice: TargetTask) -> str:
    """``/shared``, a shared tmpfs with directories ``a`` and ``b``."""
    marked(root, "shared", "s")
    root.mkdir("shared/a", 0o777)
    root.mkdir("shared/b", 0o777)
    propagation(root, "shared", MS_SHARED)
    return "shared"


def test_mounts_of_the_parent_arrive_and_ones_own_do_not_get_out(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    inner = enter(alice)
    tmpfs(root, "shared/a")
    make_file(root, "shared/a/f")
    assert exists(inner, "shared/a/f")
    tmpfs(inner, "shared/b")
    make_file(inner, "shared/b/f")
    assert not exists(root, "shared/b/f")
    root.umount2("shared/a", 0)
    assert not exists(inner, "shared/a/f")


def test_what_arrives_is_free_at_its_top_and_locked_inside(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    marked(root, "tree", "t")
    marked(root, "tree/sub", "s")
    inner = enter(alice)
    rbind(root, "tree", "shared/a")
    assert exists(inner, "shared/a/sub/s")
    fails_with(errno.EINVAL, inner.umount2, "shared/a/sub", 0)
    inner.umount2("shared/a", MNT_DETACH)
    assert not exists(inner, "shared/a/t")
    assert exists(root, "shared/a/t")


def test_the_flags_of_what_arrives_are_locked(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    inner = enter(alice)
    tmpfs(root, "shared/a", MS_NOSUID | MS_NOATIME)
    assert flags_of(inner, "shared/a") == ST_NOSUID | ST_NOATIME
    fails_with(errno.EPERM, remount_bind, inner, "shared/a", MS_NOATIME)
    fails_with(errno.EPERM, remount_bind, inner, "shared/a", MS_NOSUID | MS_RELATIME)
    fails_with(errno.EPERM, remount, inner, "shared/a", MS_NOSUID | MS_NOATIME)


def test_a_user_may_cut_itself_off_from_its_parents_mounts(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    inner = enter(alice)
    propagation(inner, "shared", MS_PRIVATE)
    tmpfs(root, "shared/a")
    make_file(root, "shared/a/f")
    assert not exists(inner, "shared/a/f")


def test_a_user_may_share_what_it_receives_further(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    inner = enter(alice)
    propagation(inner, "shared", MS_SHARED)
    inner.unshare(CLONE_NEWNS)
    tmpfs(root, "shared/a")
    make_file(root, "shared/a/f")
    assert exists(inner, "shared/a/f")


def test_a_mount_that_the_parent_unmounts_goes_from_a_shared_place_although_it_is_locked(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    tmpfs(root, "shared/a")
    make_file(root, "shared/a/f")
    inner = enter(alice)
    fails_with(errno.EINVAL, inner.umount2, "shared/a", 0)
    root.umount2("shared/a", 0)
    assert not exists(inner, "shared/a/f")


def test_a_mount_of_ones_own_on_one_that_the_parent_unmounts_stays_on_the_bare_directory(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    tmpfs(root, "shared/a")
    make_file(root, "shared/a/f")
    inner = enter(alice)
    tmpfs(inner, "shared/a")
    make_file(inner, "shared/a/own")
    root.umount2("shared/a", 0)
    assert exists(inner, "shared/a/own")
    inner.umount2("shared/a", 0)
    assert not exists(inner, "shared/a/f")


def test_the_death_of_the_namespace_leaves_the_parents_mounts(
    root: TargetTask, alice: TargetTask, shared: str
) -> None:
    inner = enter(alice)
    tmpfs(inner, "shared/a")
    inner.exit()
    assert exists(root, "shared/s")
    root.umount2("shared", 0)


def test_proc_belongs_to_the_pid_namespaces_user_namespace(
    root: TargetTask, inner: TargetTask
) -> None:
    inner.mkdir("proc", 0o755)
    fails_with(errno.EPERM, inner.mount, "proc", "proc", "proc", 0, None)
    root.mount("proc", "proc", "proc", 0, None)
    assert exists(root, "proc/self")
