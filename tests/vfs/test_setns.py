"""Mount namespaces: clone, unshare and setns; what of a task moves and what stays."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import INNER, bind, enter, marked, mount_id, not_in_a_user_namespace, tmpfs
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    CLONE_FILES,
    CLONE_FS,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MNT_DETACH,
    O_CREAT,
    O_PATH,
    O_RDONLY,
    O_RDWR,
)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it, which has a file ``f``."""
    return marked(root, "mnt", "f")


@pytest.fixture
def other(root: TargetTask, mnt: str) -> TargetTask:
    """A task with a mount namespace of its own, where ``/mnt`` has a tmpfs with ``theirs`` on top
    and ``root``'s has not.
    """
    task = root.clone("other", CLONE_NEWNS)
    tmpfs(task, "mnt")
    make_file(task, "mnt/theirs")
    return task


def namespace(task: TargetTask, whose: str = "", kind: str = "mnt") -> int:
    """The number of a task's namespace, as a stat of /proc/PID/ns/mnt tells it."""
    fd = task.nsfd(whose or task.name, kind)
    number: int = task.fstat(fd).st_ino
    task.close(fd)
    return number


# clone and unshare


def test_a_new_namespace_is_a_copy_and_mounts_in_it_stay_in_it(root: TargetTask, mnt: str) -> None:
    other = root.clone("other", CLONE_NEWNS)
    assert exists(other, "mnt/f")
    other.umount2("mnt", 0)
    assert not exists(other, "mnt/f")
    assert exists(root, "mnt/f")
    root.mkdir("late", 0o755)
    tmpfs(root, "late")
    make_file(root, "late/f")
    assert not exists(other, "late/f")


def test_the_mounts_of_a_copy_have_ids_of_their_own(root: TargetTask, mnt: str) -> None:
    other = root.clone("other", CLONE_NEWNS)
    assert mount_id(other, "mnt") != mount_id(root, "mnt")
    assert mount_id(other, "/") != mount_id(root, "/")
    assert other.stat("mnt").st_dev == root.stat("mnt").st_dev


def test_unshare_moves_root_and_cwd_onto_the_copies(root: TargetTask, mnt: str) -> None:
    root.chdir("mnt")
    other = root.clone("other")
    root.unshare(CLONE_NEWNS)
    assert root.getcwd() == b"/mnt"
    root.chdir("/")
    root.umount2("mnt", 0)
    assert exists(other, "/mnt/f")


def test_unshare_leaves_open_directories_in_the_old_namespace(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt", O_PATH, 0)
    before = mount_id(root, "mnt")
    root.unshare(CLONE_NEWNS)
    assert mount_id(root, "", fd) == before
    assert mount_id(root, "mnt") != before
    root.fchdir(fd)
    fails_with(errno.EINVAL, root.umount2, ".", 0)
    root.close(fd)


def test_a_chrooted_task_that_unshares_stays_where_it_is(root: TargetTask, mnt: str) -> None:
    root.chroot("mnt")
    root.unshare(CLONE_NEWNS)
    assert exists(root, "/f")
    root.chdir("/")
    assert root.getcwd() == b"/"


def test_a_copy_has_what_is_mounted_outside_of_the_chroot_too(root: TargetTask, mnt: str) -> None:
    fd = root.open("/", O_PATH, 0)
    jailed = root.clone("jailed")
    jailed.chroot("mnt")
    jailed.unshare(CLONE_NEWNS)
    reader = root.clone("reader")
    reader.setns(reader.nsfd("jailed", "mnt"), CLONE_NEWNS)
    assert exists(reader, "/mnt/f")
    root.close(fd)


def test_clone_newns_with_clone_fs_is_einval(root: TargetTask) -> None:
    fails_with(errno.EINVAL, root.clone, "other", CLONE_NEWNS | CLONE_FS)


def test_unshare_newns_takes_a_task_out_of_clone_fs_too(root: TargetTask, mnt: str) -> None:
    sharing = root.clone("sharing", CLONE_FS)
    root.unshare(CLONE_NEWNS)
    root.chdir("mnt")
    assert sharing.getcwd() == b"/"


def test_unshare_fs_takes_root_cwd_and_umask_along_and_apart(root: TargetTask, mnt: str) -> None:
    sharing = root.clone("sharing", CLONE_FS)
    root.chdir("mnt")
    root.umask(0o077)
    assert sharing.getcwd() == b"/mnt"
    sharing.unshare(CLONE_FS)
    root.chdir("/")
    root.umask(0o022)
    assert sharing.getcwd() == b"/mnt"
    assert sharing.umask(0) == 0o077


def test_unshare_files_takes_the_descriptors_along_and_apart(root: TargetTask, mnt: str) -> None:
    sharing = root.clone("sharing", CLONE_FILES)
    fd = root.open("mnt/f", O_RDWR, 0)
    sharing.unshare(CLONE_FILES)
    root.close(fd)
    assert sharing.write(fd, b"still") == 5
    sharing.close(fd)


def test_unshare_of_nothing_does_nothing_and_of_something_unknown_is_einval(
    root: TargetTask, alice: TargetTask
) -> None:
    before = namespace(root)
    root.unshare(0)
    assert namespace(root) == before
    fails_with(errno.EINVAL, root.unshare, 1)
    fails_with(errno.EINVAL, alice.unshare, CLONE_NEWNS | 1)


def test_unshare_newns_needs_cap_sys_admin_and_the_rest_needs_nothing(alice: TargetTask) -> None:
    fails_with(errno.EPERM, alice.unshare, CLONE_NEWNS)
    fails_with(errno.EPERM, alice.unshare, CLONE_NEWNS | CLONE_FILES)
    alice.unshare(CLONE_FS | CLONE_FILES)


def test_a_namespace_has_a_number_that_its_tasks_share(root: TargetTask) -> None:
    same = root.clone("same")
    apart = root.clone("apart", CLONE_NEWNS)
    assert namespace(same) == namespace(root)
    assert namespace(apart) != namespace(root)
    assert namespace(root, "apart") == namespace(apart)
    assert namespace(apart, kind="user") == namespace(root, kind="user")
    before = namespace(root)
    root.unshare(CLONE_NEWNS)
    assert namespace(root) != before
    assert namespace(same) == before


def test_a_namespace_goes_with_its_last_task_and_gives_its_filesystems_back(
    root: TargetTask, mnt: str
) -> None:
    other = root.clone("other", CLONE_NEWNS)
    other.chdir("mnt")
    fd = other.open("f", O_RDONLY, 0)
    assert fd == 0
    other.exit()
    root.umount2("mnt", 0)
    assert not exists(root, "mnt/f")


def test_a_task_in_an_unmounted_tree_stays_there_when_it_unshares(
    root: TargetTask, mnt: str
) -> None:
    make_file(root, "kept")
    root.chdir("mnt")
    root.umount2("/mnt", MNT_DETACH)
    root.unshare(CLONE_NEWNS)
    assert root.getcwd() == b"(unreachable)/"
    assert exists(root, "f")
    assert exists(root, "/kept")
    tmpfs(root, "/mnt")


def test_a_task_whose_root_was_unmounted_keeps_it_when_it_unshares(
    root: TargetTask, mnt: str
) -> None:
    not_in_a_user_namespace(root)
    root.umount2("/", MNT_DETACH)
    root.unshare(CLONE_NEWNS)
    assert not exists(root, "/mnt/f")
    root.mkdir("/mnt/still", 0o755)
    fails_with(errno.ENOENT, tmpfs, root, "/mnt")


# setns into a mount namespace


@pytest.mark.parametrize("kind", [0, CLONE_NEWNS])
def test_setns_enters_the_mount_namespace_of_a_descriptor(
    root: TargetTask, other: TargetTask, kind: int
) -> None:
    fd = root.nsfd("other", "mnt")
    root.setns(fd, kind)
    assert exists(root, "/mnt/theirs")
    assert namespace(root) == namespace(other)
    root.umount2("/mnt", 0)
    assert not exists(other, "mnt/theirs")
    root.close(fd)


def test_setns_and_back_again(root: TargetTask, other: TargetTask) -> None:
    home = root.nsfd("root", "mnt")
    away = root.nsfd("other", "mnt")
    root.setns(away, CLONE_NEWNS)
    root.setns(home, CLONE_NEWNS)
    assert not exists(root, "mnt/theirs")
    assert exists(root, "mnt/f")


def test_setns_moves_root_and_cwd_to_the_root_of_the_namespace(
    root: TargetTask, other: TargetTask
) -> None:
    fd = root.nsfd("other", "mnt")
    root.mkdir("jail", 0o755)
    root.mkdir("jail/d", 0o755)
    root.chroot("jail")
    root.chdir("/d")
    root.setns(fd, CLONE_NEWNS)
    assert root.getcwd() == b"/"
    assert exists(root, "mnt/theirs")
    assert exists(root, "/mnt/theirs")


def test_setns_to_the_own_namespace_leaves_a_chroot(root: TargetTask, mnt: str) -> None:
    fd = root.nsfd("root", "mnt")
    root.chroot("mnt")
    assert not exists(root, "/mnt")
    root.setns(fd, CLONE_NEWNS)
    assert exists(root, "/mnt/f")
    assert root.getcwd() == b"/"


def test_setns_stands_on_top_of_what_is_stacked_on_the_root(
    root: TargetTask, other: TargetTask
) -> None:
    tmpfs(other, "/")
    make_file(other, "/../on_top")
    root.setns(root.nsfd("other", "mnt"), CLONE_NEWNS)
    assert exists(root, "/on_top")
    assert exists(root, "on_top")
    assert not exists(other, "/on_top")


def test_a_namespace_descriptor_keeps_the_namespace_after_its_last_task(
    root: TargetTask, other: TargetTask
) -> None:
    fd = root.nsfd("other", "mnt")
    other.exit()
    root.setns(fd, CLONE_NEWNS)
    assert exists(root, "/mnt/theirs")


def test_setns_leaves_open_files_and_directories_as_they_are(
    root: TargetTask, other: TargetTask
) -> None:
    file = root.open("mnt/f", O_RDWR, 0)
    directory = root.open("mnt", O_PATH, 0)
    root.setns(root.nsfd("other", "mnt"), CLONE_NEWNS)
    assert root.write(file, b"home") == 4
    root.fchdir(directory)
    assert exists(root, "f")
    assert root.getcwd() == b"(unreachable)/mnt"


def test_a_child_is_born_in_the_namespace_that_its_parent_entered(
    root: TargetTask, other: TargetTask
) -> None:
    root.setns(root.nsfd("other", "mnt"), CLONE_NEWNS)
    child = root.clone("child")
    assert exists(child, "/mnt/theirs")


def test_setns_of_no_descriptor_is_ebadf_whatever_the_type(
    root: TargetTask, alice: TargetTask
) -> None:
    for task in (root, alice):
        fails_with(errno.EBADF, task.setns, 7, 0)
        fails_with(errno.EBADF, task.setns, 7, CLONE_NEWUSER)


def test_setns_of_what_is_no_namespace_is_einval(root: TargetTask) -> None:
    file = root.open("f", O_CREAT | O_RDWR, 0o644)
    directory = root.open("/", O_RDONLY, 0)
    for fd in (file, directory):
        fails_with(errno.EINVAL, root.setns, fd, 0)
        fails_with(errno.EINVAL, root.setns, fd, CLONE_NEWNS)


def test_setns_with_another_type_than_the_descriptors_is_einval(
    root: TargetTask, alice: TargetTask, other: TargetTask
) -> None:
    mounts = root.nsfd("other", "mnt")
    users = root.nsfd("other", "user")
    fails_with(errno.EINVAL, root.setns, mounts, CLONE_NEWUSER)
    fails_with(errno.EINVAL, root.setns, mounts, CLONE_NEWNS | CLONE_NEWUSER)
    fails_with(errno.EINVAL, root.setns, mounts, 1)
    fails_with(errno.EINVAL, root.setns, users, CLONE_NEWNS)
    fd = alice.nsfd("other", "mnt")
    fails_with(errno.EINVAL, alice.setns, fd, CLONE_NEWUSER)


def test_setns_into_a_mount_namespace_needs_capabilities(
    alice: TargetTask, other: TargetTask
) -> None:
    fd = alice.nsfd("other", "mnt")
    fails_with(errno.EPERM, alice.setns, fd, CLONE_NEWNS)
    fails_with(errno.EPERM, alice.setns, fd, 0)


def test_setns_into_ones_own_mount_namespace_needs_them_as_well(alice: TargetTask) -> None:
    fd = alice.nsfd("alice", "mnt")
    fails_with(errno.EPERM, alice.setns, fd, CLONE_NEWNS)


def test_setns_is_einval_while_root_and_cwd_are_shared(root: TargetTask, other: TargetTask) -> None:
    fd = root.nsfd("other", "mnt")
    sharing = root.clone("sharing", CLONE_FS)
    fails_with(errno.EINVAL, root.setns, fd, CLONE_NEWNS)
    sharing.unshare(CLONE_FS)
    root.setns(fd, CLONE_NEWNS)


def test_setns_lacking_capabilities_is_eperm_even_while_root_and_cwd_are_shared(
    alice: TargetTask, other: TargetTask
) -> None:
    fd = alice.nsfd("other", "mnt")
    alice.clone("sharing", CLONE_FS, 1000, 1000, (100,))
    fails_with(errno.EPERM, alice.setns, fd, CLONE_NEWNS)


def test_a_copy_of_a_namespace_can_be_entered_after_its_root_was_pivoted_away(
    root: TargetTask, other: TargetTask
) -> None:
    other.mkdir("/mnt/old", 0o755)
    other.pivot_root("/mnt", "/mnt/old")
    root.setns(root.nsfd("other", "mnt"), CLONE_NEWNS)
    assert exists(root, "/theirs")
    assert exists(root, "/old/mnt")


# setns into a user namespace


@pytest.fixture
def inner(alice: TargetTask, mnt: str) -> TargetTask:
    """A child of alice's in a user and a mount namespace of its own, where ``/mnt`` has a tmpfs
    with ``theirs`` on top.
    """
    task = enter(alice)
    tmpfs(task, "mnt")
    make_file(task, "mnt/theirs")
    return task


def test_setns_into_ones_own_user_namespace_is_einval(root: TargetTask, alice: TargetTask) -> None:
    for task in (root, alice):
        fd = task.nsfd("root", "user")
        fails_with(errno.EINVAL, task.setns, fd, CLONE_NEWUSER)
        fails_with(errno.EINVAL, task.setns, fd, 0)


def test_setns_into_the_parent_user_namespace_is_eperm(inner: TargetTask) -> None:
    fails_with(errno.EPERM, inner.setns, inner.nsfd("root", "user"), CLONE_NEWUSER)


def test_setns_out_to_the_parents_mount_namespace_is_eperm(inner: TargetTask) -> None:
    fails_with(errno.EPERM, inner.setns, inner.nsfd("root", "mnt"), CLONE_NEWNS)


def test_the_owner_enters_its_user_namespace_and_then_the_mounts_in_it(
    alice: TargetTask, inner: TargetTask
) -> None:
    users = alice.nsfd("inner", "user")
    mounts = alice.nsfd("inner", "mnt")
    fails_with(errno.EPERM, alice.setns, mounts, CLONE_NEWNS)
    alice.setns(users, CLONE_NEWUSER)
    fails_with(errno.EPERM, alice.umount2, "mnt", 0)
    alice.setns(mounts, CLONE_NEWNS)
    alice.umount2("/mnt", 0)
    assert not exists(inner, "mnt/theirs")
    fails_with(errno.EINVAL, alice.setns, users, CLONE_NEWUSER)


def test_nobody_else_enters_a_user_namespace(bob: TargetTask, inner: TargetTask) -> None:
    fails_with(errno.EPERM, bob.setns, bob.nsfd("inner", "user"), CLONE_NEWUSER)


def test_root_enters_the_mounts_of_a_user_namespace_without_entering_that(
    root: TargetTask, inner: TargetTask
) -> None:
    root.setns(root.nsfd("inner", "mnt"), CLONE_NEWNS)
    assert exists(root, "/mnt/theirs")
    assert namespace(root, kind="user") != namespace(inner, kind="user")
    root.umount2("/mnt", 0)
    assert not exists(inner, "mnt/theirs")


def test_whoever_entered_a_user_namespace_cannot_leave_it_again(
    root: TargetTask, inner: TargetTask
) -> None:
    home = root.nsfd("root", "user")
    root.setns(root.nsfd("inner", "user"), CLONE_NEWUSER)
    fails_with(errno.EPERM, root.setns, home, CLONE_NEWUSER)
    fails_with(errno.EPERM, tmpfs, root, "/mnt")


def test_entering_a_user_namespace_leaves_the_mounts(root: TargetTask, inner: TargetTask) -> None:
    before = namespace(root)
    root.chdir("mnt")
    root.setns(root.nsfd("inner", "user"), CLONE_NEWUSER)
    assert namespace(root) == before
    assert root.getcwd() == b"/mnt"


def test_setns_into_a_user_namespace_is_einval_while_root_and_cwd_are_shared(
    alice: TargetTask, inner: TargetTask
) -> None:
    fd = alice.nsfd("inner", "user")
    alice.clone("sharing", CLONE_FS, 1000, 1000, (100,))
    fails_with(errno.EINVAL, alice.setns, fd, CLONE_NEWUSER)


def test_a_shared_root_and_cwd_are_einval_before_a_lack_of_capability(
    bob: TargetTask, inner: TargetTask
) -> None:
    fd = bob.nsfd("inner", "user")
    bob.clone("sharing", CLONE_FS, 1001, 1001)
    fails_with(errno.EINVAL, bob.setns, fd, CLONE_NEWUSER)


def test_unshare_newuser_takes_a_task_out_of_clone_fs_too(alice: TargetTask) -> None:
    sharing = alice.clone("sharing", CLONE_FS, 1000, 1000, (100,))
    alice.unshare(CLONE_NEWUSER)
    alice.chroot("/")
    alice.umask(0o070)
    assert sharing.umask(0) == 0o022


def test_the_parent_may_enter_a_user_namespace_two_levels_down(
    alice: TargetTask, inner: TargetTask
) -> None:
    innermost = enter(inner, "innermost")
    fails_with(errno.EINVAL, innermost.umount2, "mnt", 0)
    alice.setns(alice.nsfd("innermost", "user"), CLONE_NEWUSER)
    alice.setns(alice.nsfd("innermost", "mnt"), CLONE_NEWNS)
    assert exists(alice, "/mnt/theirs")


def test_user_namespaces_nest_no_deeper_than_33_levels(alice: TargetTask) -> None:
    task = alice
    for _ in range(33):
        task.unshare(CLONE_NEWUSER)
    fails_with(errno.ENOSPC, task.unshare, CLONE_NEWUSER)
    fails_with(errno.ENOSPC, task.unshare, INNER)


def test_a_namespace_entered_keeps_its_mounts_when_its_last_born_task_ends(
    root: TargetTask, other: TargetTask
) -> None:
    root.setns(root.nsfd("other", "mnt"), CLONE_NEWNS)
    root.close(0)
    other.exit()
    root.chdir("/mnt")
    assert exists(root, "theirs")
    root.umount2("/mnt", MNT_DETACH)
    root.mkdir("/d", 0o755)
    bind(root, "/mnt", "/d")
    assert contents(root, "/d/f") == b""
