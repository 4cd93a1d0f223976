"""open_tree: mounts that a descriptor holds, what works in them, how long they live."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    attach,
    attach_at,
    bind,
    clone_tree,
    enter,
    exists_at,
    make_file_at,
    marked,
    mount_id,
    move,
    new_tmpfs,
    open_tree,
    propagation,
    remount_bind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    CLONE_FILES,
    CLONE_NEWNS,
    F_GETFD,
    F_GETFL,
    FD_CLOEXEC,
    MNT_DETACH,
    MS_BIND,
    MS_NOEXEC,
    MS_REMOUNT,
    MS_SHARED,
    MS_UNBINDABLE,
    O_DIRECTORY,
    O_PATH,
    O_RDONLY,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    ST_NOEXEC,
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


# open_tree without OPEN_TREE_CLONE


def test_open_tree_alone_is_an_o_path_descriptor_of_what_is_there(
    root: TargetTask, mnt: str
) -> None:
    fd = open_tree(root, "mnt")
    assert root.fcntl(fd, F_GETFL, 0) & O_PATH
    assert mount_id(root, "", fd) == mount_id(root, "mnt")
    assert exists_at(root, fd, "d/deep")
    fails_with(errno.EBADF, root.read, fd, 1)
    root.umount2("mnt/d", 0)
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    root.close(fd)


def test_closing_a_plain_open_tree_leaves_the_mount(root: TargetTask, mnt: str) -> None:
    root.close(open_tree(root, "mnt"))
    assert exists(root, "mnt/f")


def test_open_tree_follows_symlinks_unless_told_not_to(root: TargetTask, mnt: str) -> None:
    root.symlink("mnt", "link")
    fd = open_tree(root, "link")
    assert exists_at(root, fd, "f")
    link = open_tree(root, "link", AT_SYMLINK_NOFOLLOW)
    assert root.readlinkat(link, "") == b"mnt"
    root.close(fd)
    root.close(link)


def test_open_tree_at_a_descriptor_itself_takes_at_empty_path(root: TargetTask, mnt: str) -> None:
    directory = root.open("mnt", O_RDONLY | O_DIRECTORY, 0)
    fails_with(errno.ENOENT, open_tree, root, "", 0, directory)
    fd = open_tree(root, "", AT_EMPTY_PATH, directory)
    assert exists_at(root, fd, "f")
    root.close(directory)
    root.close(fd)


@pytest.mark.parametrize("flag, expected", [(0, 0), (OPEN_TREE_CLOEXEC, FD_CLOEXEC)])
@pytest.mark.parametrize("cloned", [0, OPEN_TREE_CLONE])
def test_open_tree_cloexec_is_the_descriptors(
    root: TargetTask, flag: int, expected: int, cloned: int
) -> None:
    fd = open_tree(root, "/", flag | cloned)
    assert root.fcntl(fd, F_GETFD, 0) == expected
    root.close(fd)


@pytest.mark.parametrize("flags", [2, 0x400, 0x200, 1 << 30, 0x4])
def test_open_tree_with_an_unknown_flag_is_einval_before_all_else(
    root: TargetTask, alice: TargetTask, flags: int
) -> None:
    fails_with(errno.EINVAL, open_tree, root, "/", flags)
    fails_with(errno.EINVAL, open_tree, root, "missing", flags)
    fails_with(errno.EINVAL, open_tree, alice, "/", flags | OPEN_TREE_CLONE)


def test_at_recursive_without_open_tree_clone_is_einval(root: TargetTask) -> None:
    fails_with(errno.EINVAL, open_tree, root, "/", AT_RECURSIVE)
    fails_with(errno.EINVAL, open_tree, root, "missing", AT_RECURSIVE)


def test_only_a_cloning_open_tree_needs_cap_sys_admin_and_before_the_name(
    alice: TargetTask,
) -> None:
    alice.close(open_tree(alice, "/"))
    fails_with(errno.ENOENT, open_tree, alice, "missing")
    fails_with(errno.EPERM, open_tree, alice, "/", OPEN_TREE_CLONE)
    fails_with(errno.EPERM, open_tree, alice, "missing", OPEN_TREE_CLONE)


# Detached copies


def test_a_detached_copy_is_a_mount_of_its_own_of_the_same_files(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt")
    assert mount_id(root, "", fd) not in {mount_id(root, "mnt"), mount_id(root, "/")}
    make_file_at(root, fd, "new", b"both")
    assert contents(root, "mnt/new") == b"both"
    root.close(fd)


@pytest.mark.parametrize("flags, below", [(0, False), (AT_RECURSIVE, True)])
def test_a_detached_copy_has_the_mounts_below_if_it_is_recursive(
    root: TargetTask, mnt: str, flags: int, below: bool
) -> None:
    fd = clone_tree(root, "mnt", flags)
    assert exists_at(root, fd, "d/deep") is below
    assert exists_at(root, fd, "d/shallow") is not below
    root.close(fd)


def test_a_detached_copy_of_a_directory_or_a_file_starts_there(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    make_file(root, "a/f", b"file")
    directory = clone_tree(root, "a")
    assert exists_at(root, directory, "f")
    assert root.newfstatat(directory, "..", 0).st_ino == root.stat("a").st_ino
    make_file(root, "g")
    file = clone_tree(root, "a/f")
    attach(root, file, "g")
    assert contents(root, "g") == b"file"
    root.close(directory)
    root.close(file)


def test_a_detached_tree_can_be_worked_in_and_is_unreachable_from_the_root(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.fchdir(fd)
    assert root.getcwd() == b"(unreachable)/"
    root.chdir("d")
    assert root.getcwd() == b"(unreachable)/d"
    make_file(root, "made")
    root.chdir("../..")
    assert root.getcwd() == b"(unreachable)/"
    assert exists(root, "/mnt/d/made")
    root.close(fd)


def test_a_detached_copy_has_the_flags_of_its_original(root: TargetTask, mnt: str) -> None:
    remount_bind(root, "mnt", MS_NOEXEC)
    fd = clone_tree(root, "mnt")
    remount_bind(root, "mnt")
    assert root.fstatfs(fd).f_flags & ST_NOEXEC
    root.close(fd)


def test_a_detached_copy_does_not_keep_the_original_busy(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.umount2("mnt/d", 0)
    root.umount2("mnt", 0)
    assert exists_at(root, fd, "d/deep")
    root.close(fd)


def test_an_unbindable_mount_cannot_be_cloned_and_is_left_out_below(
    root: TargetTask, mnt: str
) -> None:
    propagation(root, "mnt/d", MS_UNBINDABLE)
    fails_with(errno.EINVAL, clone_tree, root, "mnt/d")
    fails_with(errno.EINVAL, clone_tree, root, "mnt/d", AT_RECURSIVE)
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    assert exists_at(root, fd, "d/shallow")
    root.close(fd)


def test_a_mount_of_another_namespace_cannot_be_cloned(root: TargetTask, mnt: str) -> None:
    directory = root.open("mnt", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    fails_with(errno.EINVAL, clone_tree, other, "", 0, directory)
    plain = open_tree(other, "", AT_EMPTY_PATH, directory)
    other.close(plain)
    root.close(directory)


def test_a_lazily_unmounted_mount_cannot_be_cloned(root: TargetTask, mnt: str) -> None:
    root.chdir("mnt")
    root.umount2("/mnt", MNT_DETACH)
    fails_with(errno.EINVAL, clone_tree, root, ".")


def test_a_tree_with_locked_mounts_is_cloned_whole_or_not_at_all(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    inner = enter(alice)
    fails_with(errno.EINVAL, clone_tree, inner, "mnt")
    fd = clone_tree(inner, "mnt", AT_RECURSIVE)
    assert exists_at(inner, fd, "d/deep")
    below = inner.openat(fd, "d", O_PATH, 0)
    inner.fchdir(below)
    fails_with(errno.EINVAL, inner.umount2, ".", 0)
    inner.close(below)
    inner.close(fd)


def test_a_detached_tree_does_not_see_what_is_mounted_on_the_original(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.mkdir("mnt/late", 0o755)
    tmpfs(root, "mnt/late")
    make_file(root, "mnt/late/f")
    assert not exists_at(root, fd, "late/f")
    root.close(fd)


def test_a_detached_copy_of_a_shared_mount_receives_mounts_only_once_it_is_attached(
    root: TargetTask, mnt: str
) -> None:
    propagation(root, "mnt", MS_SHARED)
    fd = clone_tree(root, "mnt")
    marked(root, "mnt/early", "f")
    assert not exists_at(root, fd, "early/f")
    attach(root, fd, "w")
    marked(root, "mnt/late", "f")
    assert not exists(root, "w/early/f")
    assert exists(root, "w/late/f")
    root.close(fd)


def test_the_mounts_of_a_detached_tree_are_in_nobodys_mountinfo(root: TargetTask, mnt: str) -> None:
    before = root.mountinfo()
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    own = new_tmpfs(root)
    assert root.mountinfo() == before
    root.close(fd)
    root.close(own)


# What the old calls do with detached trees


def test_a_detached_tree_is_not_in_the_namespace_of_the_old_calls(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.fchdir(fd)
    fails_with(errno.EINVAL, tmpfs, root, ".")
    fails_with(errno.EINVAL, tmpfs, root, "d")
    fails_with(errno.EINVAL, bind, root, "/w", "d")
    fails_with(errno.EINVAL, move, root, "/mnt/d", ".")
    fails_with(errno.EINVAL, root.umount2, ".", 0)
    fails_with(errno.EINVAL, root.umount2, "d", 0)
    fails_with(errno.EINVAL, root.umount2, "d", MNT_DETACH)
    fails_with(errno.EINVAL, root.mount, None, ".", None, MS_REMOUNT | MS_BIND, None)
    fails_with(errno.EINVAL, root.mount, None, ".", None, MS_REMOUNT, None)
    fails_with(errno.EINVAL, root.pivot_root, ".", ".")
    root.close(fd)


def test_an_old_bind_may_take_from_a_detached_tree(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.fchdir(fd)
    bind(root, "d", "/w")
    assert exists(root, "/w/deep")
    root.close(fd)


def test_an_old_move_may_put_a_detached_tree_in_place(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.fchdir(fd)
    fails_with(errno.EINVAL, move, root, "d", "/w")
    move(root, ".", "/w")
    assert exists(root, "/w/d/deep")
    root.close(fd)
    assert exists(root, "/w/d/deep")


def test_the_propagation_type_of_a_detached_mount_can_be_changed(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt")
    root.fchdir(fd)
    propagation(root, ".", MS_UNBINDABLE)
    fails_with(errno.EINVAL, clone_tree, root, "", 0, fd)
    root.close(fd)


def test_a_detached_tree_can_be_chrooted_into_and_is_no_place_to_mount(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    jailed = root.clone("jailed")
    jailed.fchdir(fd)
    jailed.chroot(".")
    assert jailed.getcwd() == b"/"
    assert exists(jailed, "/d/deep")
    fails_with(errno.EINVAL, tmpfs, jailed, "/d")
    fails_with(errno.EINVAL, jailed.umount2, "/", MNT_DETACH)
    jailed.unshare(CLONE_NEWNS)
    assert exists(jailed, "/d/deep")
    assert jailed.getcwd() == b"/"
    jailed.close(fd)
    root.close(fd)
    assert exists(jailed, "/d/deep")


def test_a_directory_mounted_on_in_a_detached_tree_only_can_be_removed(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.umount2("mnt/d", 0)
    assert exists_at(root, fd, "d/deep")
    root.rename("mnt/d", "mnt/e")
    assert exists_at(root, fd, "e/deep")
    root.unlink("mnt/e/shallow")
    root.rmdir("mnt/e")
    assert not exists_at(root, fd, "e")
    root.close(fd)


def test_a_directory_mounted_on_in_ones_namespace_cannot_be_removed_through_a_detached_tree(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt")
    root.unlinkat(fd, "d/shallow", 0)
    fails_with(errno.EBUSY, root.unlinkat, fd, "d", abi.AT_REMOVEDIR)
    root.umount2("mnt/d", 0)
    root.unlinkat(fd, "d", abi.AT_REMOVEDIR)
    root.close(fd)


def test_names_do_not_cross_from_a_mount_to_its_detached_copy(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt")
    fails_with(errno.EXDEV, root.linkat, AT_FDCWD, "mnt/f", fd, "g", 0)
    fails_with(errno.EXDEV, root.renameat2, AT_FDCWD, "mnt/f", fd, "g", 0)
    root.renameat2(fd, "f", fd, "g", 0)
    assert exists(root, "mnt/g")
    root.close(fd)


# Trees made of detached trees


def test_a_detached_tree_can_be_cloned_in_whole_and_in_part(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    whole = clone_tree(root, "", AT_RECURSIVE, fd)
    part = clone_tree(root, "d", 0, fd)
    root.close(fd)
    assert exists_at(root, whole, "d/deep")
    assert exists_at(root, part, "deep")
    attach(root, part, "w")
    assert exists(root, "w/deep")
    root.close(whole)
    root.close(part)


def test_a_detached_tree_can_be_mounted_into_another(root: TargetTask, mnt: str) -> None:
    outer = new_tmpfs(root)
    root.mkdirat(outer, "sub", 0o755)
    inner = clone_tree(root, "mnt", AT_RECURSIVE)
    attach_at(root, inner, outer, "sub")
    assert exists_at(root, outer, "sub/d/deep")
    root.close(inner)
    assert exists_at(root, outer, "sub/d/deep")
    attach(root, outer, "w")
    assert exists(root, "w/sub/d/deep")
    root.close(outer)
    assert exists(root, "w/sub/d/deep")


def test_a_detached_tree_can_be_mounted_on_the_root_of_another(root: TargetTask, mnt: str) -> None:
    lower = new_tmpfs(root)
    upper = clone_tree(root, "mnt")
    attach_at(root, upper, lower, "")
    attach(root, lower, "w")
    assert exists(root, "w/f")
    root.umount2("w", MNT_DETACH)
    root.close(lower)
    root.close(upper)


def test_an_attached_mount_cannot_be_moved_into_a_detached_tree(root: TargetTask, mnt: str) -> None:
    outer = new_tmpfs(root)
    root.mkdirat(outer, "sub", 0o755)
    fails_with(errno.EINVAL, root.move_mount, AT_FDCWD, "mnt", outer, "sub", 0)
    assert exists(root, "mnt/f")
    root.close(outer)


def test_a_detached_tree_cannot_be_moved_about_in_itself(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.mkdirat(fd, "e", 0o755)
    fails_with(errno.EINVAL, root.move_mount, fd, "d", fd, "e", 0)
    fails_with(errno.EINVAL, attach_at, root, fd, fd, "e")
    root.close(fd)


def test_part_of_a_detached_tree_cannot_be_attached_by_itself(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    fails_with(errno.EINVAL, root.move_mount, fd, "d", AT_FDCWD, "w", 0)
    root.close(fd)


def test_a_detached_tree_is_of_the_namespace_that_it_was_made_in(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    other = root.clone("other", CLONE_NEWNS)
    fails_with(errno.EINVAL, clone_tree, other, "", 0, fd)
    addition = new_tmpfs(other)
    fails_with(errno.EINVAL, attach_at, other, addition, fd, "")
    attach(other, fd, "w")
    assert exists(other, "w/d/deep")
    assert not exists(root, "w/f")
    other.close(addition)
    root.close(fd)


# How long they live


def test_closing_the_descriptor_dissolves_the_tree(root: TargetTask, mnt: str) -> None:
    fd = new_tmpfs(root)
    make_file_at(root, fd, "f")
    heir = root.openat(fd, ".", O_PATH, 0)
    root.mkdirat(fd, "sub", 0o755)
    attach_at(root, clone_tree(root, "mnt"), fd, "sub")
    root.close(fd)
    root.fchdir(heir)
    assert exists(root, "f")
    fails_with(errno.EINVAL, attach, root, heir, "/w")
    fails_with(errno.EINVAL, clone_tree, root, "", 0, heir)
    root.close(heir)


def test_a_dissolved_tree_stays_together_for_who_is_in_it(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    root.fchdir(fd)
    root.close(fd)
    assert exists(root, "f")
    assert exists(root, "d/deep")
    assert root.getcwd() == b"(unreachable)/"


def test_a_file_open_in_a_dissolved_tree_keeps_working(root: TargetTask) -> None:
    fd = new_tmpfs(root)
    file = root.openat(fd, "f", abi.O_RDWR | abi.O_CREAT, 0o644)
    root.close(fd)
    root.write(file, b"data")
    assert root.pread64(file, 10, 0) == b"data"
    root.close(file)


def test_a_duplicate_keeps_a_tree_from_dissolving(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt")
    copy = root.dup(fd)
    root.close(fd)
    attach(root, copy, "w")
    assert exists(root, "w/f")
    root.close(copy)


def test_another_tasks_inherited_descriptor_keeps_a_tree_from_dissolving(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt")
    heir = root.clone("heir")
    root.close(fd)
    attach(heir, fd, "w")
    assert exists(root, "w/f")
    heir.close(fd)


def test_the_end_of_the_last_task_with_the_descriptor_dissolves_the_tree(
    root: TargetTask, mnt: str
) -> None:
    child = root.clone("child")
    fd = clone_tree(child, "mnt")
    make_file_at(child, fd, "from_child")
    child.exit()
    root.umount2("mnt/d", 0)
    root.umount2("mnt", 0)
    assert not exists(root, "mnt/from_child")


def test_a_descriptor_opened_through_a_tree_does_not_keep_it(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    again = open_tree(root, "", AT_EMPTY_PATH, fd)
    root.close(fd)
    fails_with(errno.EINVAL, attach, root, again, "w")
    root.close(again)


def test_an_attached_tree_is_not_dissolved_by_its_descriptor(root: TargetTask, mnt: str) -> None:
    fd = clone_tree(root, "mnt", AT_RECURSIVE)
    attach(root, fd, "w")
    root.close(fd)
    assert exists(root, "w/d/deep")
    root.umount2("w/d", 0)
    root.umount2("w", 0)


def test_a_tree_unmounted_again_before_its_descriptor_is_closed_is_gone(
    root: TargetTask, mnt: str
) -> None:
    fd = clone_tree(root, "mnt")
    attach(root, fd, "w")
    fails_with(errno.EBUSY, root.umount2, "w", 0)
    root.umount2("w", MNT_DETACH)
    assert exists_at(root, fd, "f")
    fails_with(errno.EINVAL, attach, root, fd, "w")
    root.close(fd)


def test_one_table_of_descriptors_is_one_descriptor(root: TargetTask, mnt: str) -> None:
    sharing = root.clone("sharing", CLONE_FILES)
    fd = clone_tree(root, "mnt")
    held = root.openat(fd, ".", O_PATH, 0)
    sharing.close(fd)
    fails_with(errno.EINVAL, attach, root, held, "w")
    root.close(held)
