"""pivot_root and chroot: what becomes of roots and working directories, and each refusal."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    bind,
    marked,
    move,
    not_in_a_user_namespace,
    propagation,
    rbind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    CLONE_FS,
    CLONE_NEWNS,
    MNT_DETACH,
    MS_PRIVATE,
    MS_SHARED,
    O_DIRECTORY,
    O_PATH,
    O_RDONLY,
)


@pytest.fixture
def new(root: TargetTask) -> str:
    """``/new`` with a tmpfs on it, which has a file ``f`` and a directory ``old``."""
    root.mkdir("new", 0o755)
    make_file(root, "new/hidden")
    tmpfs(root, "new")
    make_file(root, "new/f", b"on top")
    root.mkdir("new/old", 0o755)
    return "new"


# What it does


def test_pivot_root_swaps_the_roots(root: TargetTask, new: str) -> None:
    root.pivot_root("new", "new/old")
    assert contents(root, "/f") == b"on top"
    assert exists(root, "/old/new/hidden")
    assert root.getcwd() == b"/"
    root.umount2("/old", MNT_DETACH)
    assert not exists(root, "/old/new")


def test_pivot_root_dot_dot_stacks_the_old_root_on_the_new(root: TargetTask, new: str) -> None:
    root.chdir("new")
    root.pivot_root(".", ".")
    root.umount2(".", MNT_DETACH)
    root.chdir("/")
    assert contents(root, "/f") == b"on top"


def test_after_pivot_root_dot_dot_the_old_root_is_reached_by_dotdot_only(
    root: TargetTask, new: str
) -> None:
    root.chdir("new")
    root.pivot_root(".", ".")
    assert exists(root, "f")
    assert exists(root, "/f")
    assert exists(root, "/../new/hidden")


def test_pivot_root_to_the_new_root_itself_needs_no_directory_for_the_old_one(
    root: TargetTask, new: str
) -> None:
    root.pivot_root("new", "new")
    assert exists(root, "/f")
    root.chdir("/..")
    assert exists(root, "new/hidden")
    root.umount2(".", MNT_DETACH)
    assert not exists(root, "/../new")


def test_pivot_root_moves_every_task_that_stood_at_the_old_root(root: TargetTask, new: str) -> None:
    at_root = root.clone("at_root")
    elsewhere = root.clone("elsewhere")
    root.mkdir("d", 0o755)
    elsewhere.chdir("d")
    root.pivot_root("new", "new/old")
    assert exists(at_root, "f")
    assert exists(at_root, "/f")
    assert exists(elsewhere, "/f")
    assert elsewhere.getcwd() == b"/old/d"


def test_pivot_root_leaves_a_task_alone_that_is_chrooted_elsewhere(
    root: TargetTask, new: str
) -> None:
    root.mkdir("jail", 0o755)
    make_file(root, "jail/inside")
    jailed = root.clone("jailed")
    jailed.chroot("jail")
    jailed.chdir("/")
    root.pivot_root("new", "new/old")
    assert exists(jailed, "/inside")
    assert jailed.getcwd() == b"/"


def test_pivot_root_does_not_change_an_open_directory_of_the_old_root(
    root: TargetTask, new: str
) -> None:
    fd = root.open("/", O_RDONLY | O_DIRECTORY, 0)
    root.pivot_root("new", "new/old")
    root.fchdir(fd)
    assert root.getcwd() == b"/old"
    assert exists(root, "new/hidden")
    root.close(fd)


def test_pivot_root_takes_the_mounts_of_both_trees_along(root: TargetTask, new: str) -> None:
    marked(root, "below_old", "o")
    marked(root, "new/below_new", "n")
    root.pivot_root("new", "new/old")
    assert exists(root, "/below_new/n")
    assert exists(root, "/old/below_old/o")


def test_pivot_root_frees_the_mount_point_of_the_new_root(root: TargetTask, new: str) -> None:
    root.pivot_root("new", "new/old")
    root.unlink("/old/new/hidden")
    root.rmdir("/old/new")
    assert not exists(root, "/old/new")


def test_pivot_root_back_restores_the_tree(root: TargetTask, new: str) -> None:
    root.mkdir("back", 0o755)
    root.pivot_root("new", "new/old")
    root.pivot_root("old", "old/back")
    assert exists(root, "/new/hidden")
    assert contents(root, "/back/f") == b"on top"
    assert root.getcwd() == b"/"


def test_a_bind_of_a_directory_onto_itself_makes_it_fit_to_be_a_root(root: TargetTask) -> None:
    not_in_a_user_namespace(root)
    root.mkdir("d", 0o755)
    root.mkdir("d/old", 0o755)
    fails_with(errno.EBUSY, root.pivot_root, "d", "d/old")
    bind(root, "d", "d")
    root.pivot_root("d", "d/old")
    assert exists(root, "/old/d/old")


def test_pivot_root_of_one_namespace_does_not_show_in_a_copy_of_it(
    root: TargetTask, new: str
) -> None:
    other = root.clone("other", CLONE_NEWNS)
    root.pivot_root("new", "new/old")
    assert exists(other, "/new/f")
    assert not exists(other, "/f")


def test_a_chrooted_task_pivots_below_its_own_root_when_that_is_a_mount(
    root: TargetTask, new: str
) -> None:
    marked(root, "new/inner", "inside")
    root.mkdir("new/inner/old", 0o755)
    jailed = root.clone("jailed")
    jailed.chroot("new")
    jailed.chdir("/")
    jailed.pivot_root("inner", "inner/old")
    assert exists(jailed, "/inside")
    assert exists(jailed, "/old/f")
    assert exists(root, "/new/inside")
    assert exists(root, "/new/old/f")


def test_what_is_stacked_on_the_root_goes_with_the_old_root(root: TargetTask, new: str) -> None:
    tmpfs(root, "/")
    make_file(root, "/../stacked")
    root.pivot_root("new", "new/old")
    assert exists(root, "/f")
    assert exists(root, "/old/stacked")
    root.umount2("/old", 0)
    assert exists(root, "/old/new/hidden")


def test_pivot_root_moves_tasks_that_share_root_and_cwd_once(root: TargetTask, new: str) -> None:
    sharing = root.clone("sharing", CLONE_FS)
    root.pivot_root("new", "new/old")
    assert sharing.getcwd() == b"/"
    assert exists(sharing, "/f")
    sharing.chdir("/old/new")
    assert root.getcwd() == b"/old/new"


def test_pivot_root_moves_a_task_of_another_namespace_that_stood_at_the_old_root(
    root: TargetTask, new: str
) -> None:
    fd = root.open("/", O_PATH, 0)
    visitor = root.clone("visitor", CLONE_NEWNS)
    visitor.fchdir(fd)
    root.pivot_root("new", "new/old")
    assert exists(visitor, "f")
    assert exists(visitor, "/new/hidden") is False
    assert exists(visitor, "/new/f")
    root.close(fd)


# What it refuses


def test_pivot_root_needs_cap_sys_admin_before_it_looks_at_names(
    alice: TargetTask,
) -> None:
    fails_with(errno.EPERM, alice.pivot_root, "/", "/")
    fails_with(errno.EPERM, alice.pivot_root, "missing", "missing")


def test_pivot_root_wants_both_names_to_be_directories(root: TargetTask, new: str) -> None:
    make_file(root, "file")
    make_file(root, "new/file")
    fails_with(errno.ENOENT, root.pivot_root, "missing", "new/old")
    fails_with(errno.ENOENT, root.pivot_root, "new", "new/missing")
    fails_with(errno.ENOENT, root.pivot_root, "", "")
    fails_with(errno.ENOTDIR, root.pivot_root, "file", "new/missing")
    fails_with(errno.ENOTDIR, root.pivot_root, "new", "new/file")


def test_pivot_root_follows_symlinks_in_both_names(root: TargetTask, new: str) -> None:
    root.symlink("new", "link")
    root.symlink("old", "new/link")
    root.pivot_root("link", "new/link")
    assert exists(root, "/old/link")


def test_pivot_root_to_something_on_the_current_roots_mount_is_ebusy(
    root: TargetTask, new: str
) -> None:
    not_in_a_user_namespace(root)
    root.mkdir("d", 0o755)
    fails_with(errno.EBUSY, root.pivot_root, "d", "d")
    fails_with(errno.EBUSY, root.pivot_root, "/", "/")
    fails_with(errno.EBUSY, root.pivot_root, "new", "d")
    fails_with(errno.EBUSY, root.pivot_root, "/", "new/old")


def test_pivot_root_to_a_directory_that_is_no_mounts_root_is_einval(
    root: TargetTask, new: str
) -> None:
    root.mkdir("new/d", 0o755)
    fails_with(errno.EINVAL, root.pivot_root, "new/d", "new/d")
    fails_with(errno.EINVAL, root.pivot_root, "new/old", "new/old")


def test_pivot_root_wants_put_old_at_or_below_new_root(root: TargetTask, new: str) -> None:
    marked(root, "second", "s")
    marked(root, "new/sub", "s")
    fails_with(errno.EINVAL, root.pivot_root, "new", "second")
    fails_with(errno.EINVAL, root.pivot_root, "new/sub", "new/old")


def test_pivot_root_wants_the_new_root_below_the_current_one(root: TargetTask, new: str) -> None:
    marked(root, "outside", "o")
    fd = root.open("outside", O_PATH, 0)
    jailed = root.clone("jailed")
    jailed.chroot("new")
    jailed.fchdir(fd)
    fails_with(errno.EINVAL, jailed.pivot_root, ".", ".")
    root.close(fd)


def test_pivot_root_of_a_task_whose_root_is_no_mount_is_einval(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    marked(root, "jail/new", "f")
    root.mkdir("jail/new/old", 0o755)
    jailed = root.clone("jailed")
    jailed.chroot("jail")
    jailed.chdir("/")
    fails_with(errno.EINVAL, jailed.pivot_root, "new", "new/old")


def test_pivot_root_is_einval_when_put_old_is_on_a_shared_mount(root: TargetTask, new: str) -> None:
    propagation(root, "new", MS_SHARED)
    fails_with(errno.EINVAL, root.pivot_root, "new", "new/old")
    propagation(root, "new", MS_PRIVATE)
    root.pivot_root("new", "new/old")


def test_pivot_root_is_einval_when_the_new_roots_parent_is_shared(root: TargetTask) -> None:
    marked(root, "parent", "p")
    marked(root, "parent/new", "f")
    root.mkdir("parent/new/old", 0o755)
    propagation(root, "parent", MS_SHARED)
    propagation(root, "parent/new", MS_PRIVATE)
    fails_with(errno.EINVAL, root.pivot_root, "parent/new", "parent/new/old")
    propagation(root, "parent", MS_PRIVATE)
    root.pivot_root("parent/new", "parent/new/old")


def test_pivot_root_to_the_current_root_is_einval_rather_than_ebusy_when_it_is_shared(
    root: TargetTask,
) -> None:
    not_in_a_user_namespace(root)
    propagation(root, "/", MS_SHARED)
    fails_with(errno.EINVAL, root.pivot_root, "/", "/")
    propagation(root, "/", MS_PRIVATE)
    fails_with(errno.EBUSY, root.pivot_root, "/", "/")


def test_pivot_root_to_a_shared_mount_with_put_old_on_a_private_one_below_works(
    root: TargetTask, new: str
) -> None:
    propagation(root, "new", MS_SHARED)
    marked(root, "new/holder", "h")
    propagation(root, "new/holder", MS_PRIVATE)
    root.mkdir("new/holder/old", 0o755)
    root.pivot_root("new", "new/holder/old")
    assert exists(root, "/f")
    assert exists(root, "/holder/old/new")


def test_pivot_root_to_a_mount_of_another_namespace_is_einval(root: TargetTask, new: str) -> None:
    fd = root.open("new", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    other.fchdir(fd)
    fails_with(errno.EINVAL, other.pivot_root, ".", "old")
    root.close(fd)


def test_pivot_root_to_a_lazily_unmounted_mount_is_enoent(root: TargetTask, new: str) -> None:
    root.chdir("new")
    root.umount2("/new", MNT_DETACH)
    fails_with(errno.ENOENT, root.pivot_root, ".", "old")


def test_pivot_root_with_a_deleted_put_old_is_enoent(root: TargetTask, new: str) -> None:
    root.chdir("new/old")
    root.rmdir("/new/old")
    fails_with(errno.ENOENT, root.pivot_root, "/new", ".")


def test_pivot_root_uses_the_topmost_of_a_stack_of_mounts(root: TargetTask, new: str) -> None:
    tmpfs(root, "new")
    make_file(root, "new/topmost")
    root.mkdir("new/old", 0o755)
    root.pivot_root("new", "new/old")
    assert exists(root, "/topmost")
    assert exists(root, "/old/new/f")


# chroot


def test_chroot_needs_cap_sys_chroot_and_a_directory(root: TargetTask, alice: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.EPERM, alice.chroot, "/")
    fails_with(errno.ENOTDIR, root.chroot, "f")
    fails_with(errno.ENOENT, root.chroot, "missing")
    fails_with(errno.ENOENT, alice.chroot, "missing")
    fails_with(errno.ENOTDIR, alice.chroot, "f")


def test_chroot_to_a_directory_without_search_permission_is_eacces_before_eperm(
    root: TargetTask, alice: TargetTask
) -> None:
    root.mkdir("closed", 0o700)
    fails_with(errno.EACCES, alice.chroot, "closed")


def test_chroot_leaves_the_cwd_where_it_is_and_out_of_reach(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    root.chroot("jail")
    assert root.getcwd() == b"(unreachable)/"
    assert exists(root, "jail")
    assert not exists(root, "/jail")


def test_a_chrooted_task_cannot_walk_out_by_dotdot(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    make_file(root, "outside")
    root.chroot("jail")
    root.chdir("/")
    assert root.stat("..").st_ino == root.stat(".").st_ino
    assert not exists(root, "../outside")
    assert root.getcwd() == b"/"


def test_a_chrooted_tasks_absolute_symlinks_start_at_its_root(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    make_file(root, "f", b"outside")
    make_file(root, "jail/f", b"inside")
    root.symlink("/f", "jail/link")
    root.chroot("jail")
    assert contents(root, "/link") == b"inside"


def test_a_cwd_outside_of_the_root_still_reaches_the_real_root_by_dotdot(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    root.mkdir("d", 0o755)
    root.chdir("d")
    root.chroot("/jail")
    root.chdir("..")
    assert exists(root, "jail")
    assert root.getcwd() == b"(unreachable)/"


def test_chroot_is_the_tasks_own_unless_it_shares_clone_fs(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    make_file(root, "jail/inside")
    alone = root.clone("alone")
    sharing = root.clone("sharing", CLONE_FS)
    root.chroot("jail")
    assert exists(sharing, "/inside")
    assert not exists(alone, "/inside")


def test_a_chrooted_task_sees_mounts_made_below_its_root_later(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    root.mkdir("jail/d", 0o755)
    jailed = root.clone("jailed")
    jailed.chroot("jail")
    tmpfs(root, "jail/d")
    make_file(root, "jail/d/f")
    assert exists(jailed, "/d/f")


def test_moving_a_mount_takes_the_task_along_that_has_its_root_in_it(
    root: TargetTask, new: str
) -> None:
    jailed = root.clone("jailed")
    jailed.chroot("new")
    root.mkdir("elsewhere", 0o755)
    move(root, "new", "elsewhere")
    assert exists(jailed, "/f")


def test_chroot_into_a_bind_reaches_what_is_mounted_below_a_recursive_one(
    root: TargetTask, new: str
) -> None:
    marked(root, "new/sub", "s")
    root.mkdir("jail", 0o755)
    rbind(root, "new", "jail")
    root.chroot("jail")
    root.chdir("/")
    assert exists(root, "/sub/s")
    root.chdir("sub")
    assert root.getcwd() == b"/sub"


def test_a_chrooted_tasks_lazy_unmount_of_its_root_takes_it_from_everybody_else(
    root: TargetTask, new: str
) -> None:
    jailed = root.clone("jailed")
    jailed.chroot("new")
    jailed.chdir("/")
    fails_with(errno.ENOENT, jailed.stat, "/new")
    jailed.umount2("/", MNT_DETACH)
    assert exists(root, "new/hidden")
    assert contents(jailed, "/f") == b"on top"
