"""Mount namespaces of other user namespaces: what they may not change; and setns(2) into any."""

from __future__ import annotations

import errno

import pytest
from mount_support import (
    bind,
    less_privileged,
    make_private,
    make_rprivate,
    make_rshared,
    make_shared,
    make_slave,
    make_unbindable,
    mkdirs,
    mounted,
    move,
    new_namespace,
    peers,
    points,
    rbind,
    unmount,
    view,
)
from vfs_support import exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE_FS,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MNT_DETACH,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_MOVE,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_STRICTATIME,
    O_RDONLY,
    OPEN_TREE_CLONE,
)

BIND_REMOUNT = MS_REMOUNT | MS_BIND


def tree(root: TargetTask) -> None:
    """A on ``/a``, and on its ``b`` B with a directory ``c``; ``/d`` is free."""
    mkdirs(root, "/d")
    mounted(root, "A", "/a", "b")
    make_file(root, "/a/b/hidden")
    mounted(root, "B", "/a/b", "c")


# What becomes a slave


def test_shared_mounts_are_slaves_of_their_originals_in_a_less_privileged_namespace(
    root: TargetTask,
) -> None:
    mounted(root, "P", "/private")
    mounted(root, "S", "/shared")
    make_shared(root, "/shared")
    mounted(root, "U", "/unbindable")
    make_unbindable(root, "/unbindable")
    mkdirs(root, "/slave")
    bind(root, "/shared", "/slave")
    make_slave(root, "/slave")
    jail = less_privileged(root, "jail")
    assert view(root, jail) == [
        "root:/private P",
        "root:/shared S shared:1",
        "root:/slave S master:1",
        "root:/unbindable U unbindable",
        "jail:/private P",
        "jail:/shared S master:1",
        "jail:/slave S master:1",
        "jail:/unbindable U",
    ]


def test_a_shared_slave_is_a_slave_of_its_original_in_a_less_privileged_namespace(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a")
    make_shared(root, "/a")
    mkdirs(root, "/b")
    bind(root, "/a", "/b")
    make_slave(root, "/b")
    make_shared(root, "/b")
    jail = less_privileged(root, "jail")
    assert view(root, jail) == [
        "root:/a A shared:1",
        "root:/b A shared:2 master:1",
        "jail:/a A master:1",
        "jail:/b A master:2",
    ]


def test_mounts_of_a_less_privileged_namespace_do_not_get_out_and_others_get_in(
    root: TargetTask,
) -> None:
    mkdirs(root, "/in", "/out")
    make_rshared(root, "/")
    jail = less_privileged(root, "jail")
    make_rshared(jail, "/")
    mounted(jail, "J", "/out")
    mounted(root, "R", "/in")
    assert view(root, jail) == [
        "root:/ shared:1",
        "root:/in R shared:2",
        "jail:/ shared:3 master:1",
        "jail:/in R shared:4 master:2",
        "jail:/out J shared:5",
    ]
    unmount(root, "/in")
    assert points(jail) == ["/out"]


def test_peers_in_two_namespaces_of_one_less_privileged_user_stay_peers(
    root: TargetTask,
) -> None:
    jail = less_privileged(root, "jail")
    make_rshared(jail, "/")
    cell = new_namespace(jail, "cell")
    assert peers(jail, "/", cell, "/")


# Locked together


@pytest.mark.parametrize("flags", [0, MNT_DETACH])
def test_an_inherited_mount_cannot_be_unmounted_in_a_less_privileged_namespace(
    root: TargetTask, flags: int
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    fails_with(errno.EINVAL, jail.umount2, "/a/b", flags)
    fails_with(errno.EINVAL, jail.umount2, "/a", flags)
    assert view(jail) == ["/a A", "/a/b B"]


def test_an_inherited_mount_can_be_unmounted_in_a_namespace_of_the_same_user_namespace(
    root: TargetTask,
) -> None:
    tree(root)
    other = new_namespace(root, "other")
    unmount(other, "/a/b")
    assert exists(other, "/a/b/hidden")


def test_an_inherited_mount_cannot_be_moved_in_a_less_privileged_namespace(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    fails_with(errno.EINVAL, jail.mount, "/a/b", "/d", None, MS_MOVE, None)
    fails_with(errno.EINVAL, jail.mount, "/a", "/d", None, MS_MOVE, None)


def test_a_bind_that_would_uncover_what_a_locked_mount_covers_is_einval(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    fails_with(errno.EINVAL, jail.mount, "/a", "/d", None, MS_BIND, None)
    bind(jail, "/a/b", "/d")
    assert view(jail) == ["/a A", "/a/b B", "/d B"]


def test_a_clone_of_a_tree_that_would_uncover_what_a_locked_mount_covers_is_einval(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    fails_with(errno.EINVAL, jail.open_tree, AT_FDCWD, "/a", OPEN_TREE_CLONE)
    jail.close(jail.open_tree(AT_FDCWD, "/a", OPEN_TREE_CLONE | AT_RECURSIVE))


def test_a_recursive_bind_keeps_the_parts_locked_together_and_can_go_as_a_whole(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    rbind(jail, "/a", "/d")
    fails_with(errno.EINVAL, jail.umount2, "/d/b", MNT_DETACH)
    fails_with(errno.EBUSY, jail.umount2, "/d", 0)
    unmount(jail, "/d", MNT_DETACH)
    assert view(jail) == ["/a A", "/a/b B"]


def test_a_recursive_bind_leaves_an_unbindable_mount_in_only_if_it_is_locked(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    make_unbindable(jail, "/a/b")
    fails_with(errno.EPERM, jail.mount, "/a", "/d", None, MS_BIND | MS_REC, None)
    mounted(jail, "C", "/a/b/c")
    make_private(jail, "/a/b")
    make_unbindable(jail, "/a/b/c")
    rbind(jail, "/a", "/d")
    assert view(jail) == ["/a A", "/a/b B", "/a/b/c C unbindable", "/d A", "/d/b B"]


def test_what_a_less_privileged_namespace_mounted_itself_is_its_own_to_take_off(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    mounted(jail, "X", "/a/b")
    mounted(jail, "Y", "/d", "sub")
    unmount(jail, "/a/b")
    move(jail, "/d", "/a/b/c")
    unmount(jail, "/a/b/c")
    assert view(jail) == ["/a A", "/a/b B"]


def test_a_mount_that_arrives_from_a_more_privileged_namespace_can_be_taken_off(
    root: TargetTask,
) -> None:
    mkdirs(root, "/d")
    make_shared(root, "/")
    jail = less_privileged(root, "jail")
    mounted(root, "D", "/d")
    unmount(jail, "/d")
    assert view(root, jail) == ["root:/ shared:1", "root:/d D shared:2", "jail:/ master:1"]


def test_a_tree_that_arrives_from_a_more_privileged_namespace_stays_together(
    root: TargetTask,
) -> None:
    tree(root)
    make_shared(root, "/")
    jail = less_privileged(root, "jail")
    rbind(root, "/a", "/d")
    fails_with(errno.EINVAL, jail.umount2, "/d/b", 0)
    unmount(jail, "/d", MNT_DETACH)
    assert points(jail) == ["/a", "/a/b"]


def test_a_propagated_unmount_takes_off_a_locked_mount_that_was_asked_for_itself(
    root: TargetTask,
) -> None:
    tree(root)
    make_rshared(root, "/")
    jail = less_privileged(root, "jail")
    unmount(root, "/a/b")
    assert view(root, jail) == [
        "root:/ shared:1",
        "root:/a A shared:2",
        "jail:/ master:1",
        "jail:/a A master:2",
    ]


def test_a_propagated_unmount_leaves_a_locked_mount_on_one_that_stays(root: TargetTask) -> None:
    tree(root)
    mkdirs(root, "/a/x")
    make_rshared(root, "/")
    jail = less_privileged(root, "jail")
    free = new_namespace(root, "free")
    for task in (jail, free):
        make_slave(task, "/a")
        mounted(task, "X", "/a/x")
    unmount(root, "/a", MNT_DETACH)
    assert view(root, jail, free) == [
        "root:/ shared:1",
        "jail:/ master:1",
        "jail:/a A",
        "jail:/a/b B",
        "jail:/a/x X",
        "free:/ shared:1",
        "free:/a A",
        "free:/a/x X",
    ]


def test_a_locked_mount_beneath_which_another_arrives_and_leaves_stays_locked(
    root: TargetTask,
) -> None:
    mounted(root, "L", "/d")
    mkdirs(root, "/copy")
    make_rshared(root, "/")
    jail = less_privileged(root, "jail")
    # With the copy goes its original, but not what is locked.
    rbind(root, "/", "/copy")
    unmount(root, "/copy", MNT_DETACH)
    assert view(root, jail) == ["root:/ shared:1", "jail:/ master:1", "jail:/d L"]
    mounted(root, "X", "/d")
    assert view(jail) == ["/ master:1", "/d X master:2", "/d L"]
    fails_with(errno.EINVAL, jail.umount2, "/d", 0)
    unmount(root, "/d")
    assert view(jail) == ["/ master:1", "/d L"]
    fails_with(errno.EINVAL, jail.umount2, "/d", 0)


def test_a_propagated_unmount_of_a_whole_tree_takes_its_locked_parts_along(
    root: TargetTask,
) -> None:
    tree(root)
    make_shared(root, "/")
    jail = less_privileged(root, "jail")
    rbind(root, "/a", "/d")
    unmount(root, "/d", MNT_DETACH)
    assert points(jail) == ["/a", "/a/b"]


def test_a_locked_mount_goes_when_its_mount_point_is_removed_elsewhere(root: TargetTask) -> None:
    mounted(root, "D", "/d")
    jail = less_privileged(root, "jail")
    unmount(root, "/d")
    root.rmdir("/d")
    assert view(jail) == []
    assert not exists(jail, "/d")


def test_a_namespace_below_a_less_privileged_one_keeps_what_is_locked_locked(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    cell = new_namespace(jail, "cell")
    fails_with(errno.EINVAL, cell.umount2, "/a/b", 0)


def test_pivot_root_onto_a_locked_mount_is_einval_and_onto_a_bind_of_it_is_not(
    root: TargetTask,
) -> None:
    tree(root)
    jail = less_privileged(root, "jail")
    fails_with(errno.EINVAL, jail.pivot_root, "/a/b", "/a/b/c")
    bind(jail, "/a/b", "/a/b")
    jail.pivot_root("/a/b", "/a/b/c")
    unmount(jail, "/c", MNT_DETACH)
    assert view(jail) == ["/ B"]


# Locked flags

LOCKED = {
    "rdonly": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
}


@pytest.mark.parametrize("flag", LOCKED.values(), ids=LOCKED)
def test_an_inherited_flag_cannot_be_taken_off_in_a_less_privileged_namespace(
    root: TargetTask, flag: int
) -> None:
    mounted(root, "A", "/a", flags=flag & ~MS_RDONLY)
    root.mount(None, "/a", None, BIND_REMOUNT | flag, None)
    jail = less_privileged(root, "jail")
    before = jail.statfs("/a").f_flags
    fails_with(errno.EPERM, jail.mount, None, "/a", None, BIND_REMOUNT, None)
    fails_with(errno.EPERM, jail.mount_setattr, AT_FDCWD, "/a", 0, (0, MOUNT_ATTR[flag], 0, 0))
    assert jail.statfs("/a").f_flags == before
    jail.mount(None, "/a", None, BIND_REMOUNT | flag, None)
    root.mount(None, "/a", None, BIND_REMOUNT, None)


MOUNT_ATTR = {MS_RDONLY: 1, MS_NOSUID: 2, MS_NODEV: 4, MS_NOEXEC: 8}


@pytest.mark.parametrize("flag", LOCKED.values(), ids=LOCKED)
def test_a_bind_of_a_mount_with_a_locked_flag_has_it_locked_too(
    root: TargetTask, flag: int
) -> None:
    mkdirs(root, "/b")
    mounted(root, "A", "/a")
    root.mount(None, "/a", None, BIND_REMOUNT | flag, None)
    jail = less_privileged(root, "jail")
    bind(jail, "/a", "/b")
    fails_with(errno.EPERM, jail.mount, None, "/b", None, BIND_REMOUNT, None)


def test_flags_that_a_less_privileged_namespace_set_itself_are_its_own_to_take_off(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a")
    jail = less_privileged(root, "jail")
    jail.mount(None, "/a", None, BIND_REMOUNT | MS_RDONLY | MS_NOEXEC | MS_NODEV, None)
    fails_with(errno.EROFS, jail.mkdir, "/a/x", 0o755)
    jail.mount(None, "/a", None, BIND_REMOUNT, None)
    jail.mkdir("/a/x", 0o755)


def test_nosymfollow_is_not_locked(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    root.symlink("/", "/a/link")
    root.mount(None, "/a", None, BIND_REMOUNT | MS_NOSYMFOLLOW, None)
    jail = less_privileged(root, "jail")
    fails_with(errno.ELOOP, jail.stat, "/a/link")
    jail.mount(None, "/a", None, BIND_REMOUNT, None)
    jail.stat("/a/link")


@pytest.mark.parametrize(
    ("inherited", "wanted", "allowed"),
    [
        (MS_RELATIME, MS_RELATIME, True),
        (MS_RELATIME, 0, True),
        (MS_RELATIME, MS_NOATIME, False),
        (MS_RELATIME, MS_STRICTATIME, False),
        (MS_NOATIME, MS_NOATIME, True),
        (MS_NOATIME, 0, True),
        (MS_NOATIME, MS_RELATIME, False),
        (MS_NOATIME, MS_STRICTATIME, False),
        (MS_STRICTATIME, MS_STRICTATIME, True),
        (MS_STRICTATIME, MS_RELATIME, False),
        (MS_STRICTATIME, MS_NOATIME, False),
        (MS_NODIRATIME | MS_RELATIME, MS_RELATIME, False),
        (MS_RELATIME, MS_NODIRATIME | MS_RELATIME, False),
        (MS_NODIRATIME | MS_RELATIME, MS_NODIRATIME | MS_RELATIME, True),
    ],
)
def test_inherited_atime_flags_cannot_be_changed_in_a_less_privileged_namespace(
    root: TargetTask, inherited: int, wanted: int, allowed: bool
) -> None:
    mounted(root, "A", "/a", flags=inherited)
    jail = less_privileged(root, "jail")
    if allowed:
        jail.mount(None, "/a", None, BIND_REMOUNT | wanted, None)
    else:
        fails_with(errno.EPERM, jail.mount, None, "/a", None, BIND_REMOUNT | wanted, None)


def test_flags_are_not_locked_in_a_namespace_of_the_same_user_namespace(root: TargetTask) -> None:
    mounted(root, "A", "/a", flags=MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME)
    root.mount(None, "/a", None, BIND_REMOUNT | MS_RDONLY, None)
    other = new_namespace(root, "other")
    other.mount(None, "/a", None, BIND_REMOUNT | MS_STRICTATIME, None)
    other.mkdir("/a/x", 0o755)


def test_flags_of_a_mount_that_arrives_from_a_more_privileged_namespace_are_locked(
    root: TargetTask,
) -> None:
    mkdirs(root, "/d")
    mounted(root, "A", "/a")
    root.mount(None, "/a", None, BIND_REMOUNT | MS_RDONLY, None)
    make_shared(root, "/")
    jail = less_privileged(root, "jail")
    bind(root, "/a", "/d")
    fails_with(errno.EPERM, jail.mount, None, "/d", None, BIND_REMOUNT, None)
    fails_with(
        errno.EPERM,
        jail.mount_setattr,
        AT_FDCWD,
        "/d",
        0,
        (0, MOUNT_ATTR_RDONLY, 0, 0),
    )


def test_an_inherited_superblock_cannot_be_remounted_in_a_less_privileged_namespace(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a")
    jail = less_privileged(root, "jail")
    fails_with(errno.EPERM, jail.mount, None, "/a", None, MS_REMOUNT | MS_RDONLY, None)
    mounted(jail, "B", "/a")
    jail.mount(None, "/a", None, MS_REMOUNT | MS_RDONLY, None)
    fails_with(errno.EROFS, jail.mkdir, "/a/x", 0o755)


# Privilege is over the namespace's owner


def test_mounting_needs_privilege_over_the_mount_namespaces_owner(root: TargetTask) -> None:
    tree(root)
    guest = root.clone("guest", CLONE_NEWUSER)
    fails_with(errno.EPERM, guest.mount, "none", "/d", "tmpfs", 0, "")
    fails_with(errno.EPERM, guest.umount2, "/a/b", 0)
    fails_with(errno.EPERM, guest.mount, "/a", "/d", None, MS_BIND | MS_REC, None)
    fails_with(errno.EPERM, guest.pivot_root, "/a/b", "/a/b/c")
    guest.unshare(CLONE_NEWNS)
    mounted(guest, "D", "/d")
    assert points(root) == ["/a", "/a/b"]


def test_an_unprivileged_user_gets_a_mount_namespace_along_with_a_user_namespace(
    root: TargetTask, alice: TargetTask
) -> None:
    mkdirs(root, "/d")
    fails_with(errno.EPERM, alice.unshare, CLONE_NEWNS)
    alice.unshare(CLONE_NEWUSER | CLONE_NEWNS)
    alice.mount("D", "/d", "tmpfs", 0, None)
    assert view(root, alice) == ["alice:/d D"]


# setns


def enter(task: TargetTask, owner: TargetTask, nstype: int = CLONE_NEWNS) -> None:
    fd = task.nsfd(owner.name, "mnt")
    task.setns(fd, nstype)
    task.close(fd)


def test_setns_enters_the_namespace_at_its_root(root: TargetTask) -> None:
    mkdirs(root, "/d")
    other = new_namespace(root, "other")
    mounted(other, "D", "/d")
    root.chdir("/d")
    enter(root, other)
    assert root.getcwd() == b"/"
    assert view(root) == ["/d D"]
    mounted(root, "E", "/d")
    assert view(other) == ["/d D", "/d E"]


def test_setns_goes_to_what_is_mounted_on_top_of_the_root(root: TargetTask) -> None:
    other = new_namespace(root, "other")
    other.mount("T", "/", "tmpfs", 0, "mode=755")
    other.chroot("/.")
    enter(root, other)
    make_file(root, "/f")
    root.chdir("/")
    assert exists(root, "f")


def test_setns_takes_a_type_that_fits_or_none_and_only_a_namespace(root: TargetTask) -> None:
    other = new_namespace(root, "other")
    fd = root.nsfd("other", "mnt")
    fails_with(errno.EINVAL, root.setns, fd, CLONE_NEWUSER)
    fails_with(errno.EINVAL, root.setns, fd, CLONE_FS)
    root.setns(fd, 0)
    make_file(root, "/f")
    file = root.open("/f", O_RDONLY, 0)
    fails_with(errno.EINVAL, root.setns, file, CLONE_NEWNS)
    fails_with(errno.EBADF, root.setns, 99, CLONE_NEWNS)
    assert exists(other, "/f")


def test_setns_is_einval_for_a_task_that_shares_root_and_cwd(root: TargetTask) -> None:
    other = new_namespace(root, "other")
    root.clone("sibling", CLONE_FS)
    fd = root.nsfd(other.name, "mnt")
    fails_with(errno.EINVAL, root.setns, fd, CLONE_NEWNS)


def test_setns_needs_privilege_over_the_namespaces_owner(
    root: TargetTask, alice: TargetTask
) -> None:
    jail = less_privileged(root, "jail")
    fd = jail.nsfd("jail", "mnt")
    jail.setns(fd, CLONE_NEWNS)
    enter(root, jail)
    fails_with(errno.EPERM, enter, alice, alice)


def test_an_inherited_descriptor_of_a_more_privileged_namespace_does_not_open_it(
    root: TargetTask,
) -> None:
    fd = root.nsfd("root", "mnt")
    jail = less_privileged(root, "jail")
    fails_with(errno.EPERM, jail.setns, fd, CLONE_NEWNS)


def test_a_descriptor_keeps_a_namespace_whose_tasks_have_ended(root: TargetTask) -> None:
    mkdirs(root, "/d")
    other = new_namespace(root, "other")
    mounted(other, "D", "/d")
    make_rprivate(other, "/")
    fd = root.nsfd("other", "mnt")
    other.exit()
    root.setns(fd, CLONE_NEWNS)
    assert view(root) == ["/d D"]
