"""umount2: what keeps a mount busy, what each flag does, and what becomes of the mounts below."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    bind,
    is_read_only,
    make_file_at,
    marked,
    not_in_a_user_namespace,
    rbind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_FDCWD,
    CLONE_FILES,
    CLONE_FS,
    CLONE_NEWNS,
    MNT_DETACH,
    MNT_EXPIRE,
    MNT_FORCE,
    MS_REMOUNT,
    O_CREAT,
    O_DIRECTORY,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    RENAME_EXCHANGE,
    UMOUNT_NOFOLLOW,
)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it, which has a file ``f``; below it lies a file ``hidden``."""
    root.mkdir("mnt", 0o755)
    make_file(root, "mnt/hidden")
    tmpfs(root, "mnt")
    make_file(root, "mnt/f", b"on top")
    return "mnt"


@pytest.fixture
def nested(root: TargetTask, mnt: str) -> str:
    """``/mnt/d`` with a tmpfs on it, which has a file ``deep``; below it lies ``shallow``."""
    root.mkdir("mnt/d", 0o755)
    make_file(root, "mnt/d/shallow")
    tmpfs(root, "mnt/d")
    make_file(root, "mnt/d/deep", b"deep")
    return "mnt/d"


# Refused


def test_unmounting_what_is_no_mounts_root_is_einval(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.EINVAL, root.umount2, "d", 0)
    fails_with(errno.EINVAL, root.umount2, "mnt/f", 0)
    fails_with(errno.EINVAL, root.umount2, "d", MNT_DETACH)
    fails_with(errno.EINVAL, root.umount2, "d", MNT_EXPIRE)


def test_unmounting_a_name_that_is_not_there_is_enoent(root: TargetTask, mnt: str) -> None:
    fails_with(errno.ENOENT, root.umount2, "missing", 0)
    fails_with(errno.ENOENT, root.umount2, "", 0)
    fails_with(errno.ENOTDIR, root.umount2, "mnt/f/", 0)


@pytest.mark.parametrize("flag", [0x10, 0x80, 1 << 30])
def test_an_unknown_umount_flag_is_einval_before_the_name_is_looked_at(
    root: TargetTask, alice: TargetTask, mnt: str, flag: int
) -> None:
    fails_with(errno.EINVAL, root.umount2, "mnt", flag)
    fails_with(errno.EINVAL, root.umount2, "missing", flag)
    fails_with(errno.EINVAL, alice.umount2, "mnt", flag)


def test_unmounting_needs_cap_sys_admin_after_the_name_and_before_it_is_a_mount(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    fails_with(errno.EPERM, alice.umount2, "mnt", 0)
    fails_with(errno.EPERM, alice.umount2, "mnt", MNT_DETACH)
    fails_with(errno.EPERM, alice.umount2, "mnt/f", 0)
    fails_with(errno.ENOENT, alice.umount2, "missing", 0)


def test_a_mount_of_another_namespace_cannot_be_unmounted_through_a_descriptor(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    other.fchdir(fd)
    fails_with(errno.EINVAL, other.umount2, ".", 0)
    fails_with(errno.EINVAL, other.umount2, ".", MNT_DETACH)
    root.close(fd)


# Busy


def test_an_open_file_keeps_a_mount_busy(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    root.close(fd)
    root.umount2("mnt", 0)


def test_an_o_path_descriptor_keeps_a_mount_busy(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt", O_PATH, 0)
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    root.close(fd)
    root.umount2("mnt", 0)


def test_a_cwd_keeps_a_mount_busy(root: TargetTask, mnt: str) -> None:
    root.chdir("mnt")
    fails_with(errno.EBUSY, root.umount2, "/mnt", 0)
    fails_with(errno.EBUSY, root.umount2, ".", 0)
    root.chdir("/")
    root.umount2("mnt", 0)


def test_another_tasks_root_keeps_a_mount_busy(root: TargetTask, mnt: str) -> None:
    jailed = root.clone("jailed")
    outside = jailed.open("/", O_PATH, 0)
    jailed.chroot("mnt")
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    jailed.fchdir(outside)
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    jailed.chroot(".")
    root.umount2("mnt", 0)
    jailed.close(outside)


def test_a_mount_below_keeps_a_mount_busy(root: TargetTask, nested: str) -> None:
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    root.umount2("mnt/d", 0)
    root.umount2("mnt", 0)


def test_a_descriptor_that_two_tasks_share_keeps_a_mount_busy_until_both_let_go(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    heir = root.clone("heir")
    root.close(fd)
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    heir.close(fd)
    root.umount2("mnt", 0)


def test_one_close_in_a_table_shared_by_clone_files_lets_go(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    other = root.clone("other", CLONE_FILES)
    other.close(fd)
    root.umount2("mnt", 0)


def test_a_cwd_shared_by_clone_fs_lets_go_when_either_leaves(root: TargetTask, mnt: str) -> None:
    other = root.clone("other", CLONE_FS)
    root.chdir("mnt")
    fails_with(errno.EBUSY, root.umount2, "/mnt", 0)
    other.chdir("/")
    root.umount2("/mnt", 0)


def test_a_file_open_through_a_bind_keeps_that_bind_busy_only(root: TargetTask, mnt: str) -> None:
    root.mkdir("second", 0o755)
    bind(root, "mnt", "second")
    fd = root.open("second/f", O_RDONLY, 0)
    root.umount2("mnt", 0)
    fails_with(errno.EBUSY, root.umount2, "second", 0)
    root.close(fd)
    root.umount2("second", 0)


def test_a_copy_in_another_namespace_does_not_keep_a_mount_busy(root: TargetTask, mnt: str) -> None:
    other = root.clone("other", CLONE_NEWNS)
    fd = other.open("mnt/f", O_RDONLY, 0)
    root.umount2("mnt", 0)
    assert other.read(fd, 100) == b"on top"
    other.close(fd)


def test_a_failed_unmount_changes_nothing(root: TargetTask, nested: str) -> None:
    fd = root.open("mnt/f", O_WRONLY, 0)
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    assert contents(root, "mnt/d/deep") == b"deep"
    root.write(fd, b"still")
    root.close(fd)


# Off


def test_mounts_stack_and_come_off_topmost_first(root: TargetTask, mnt: str) -> None:
    tmpfs(root, "mnt")
    assert not exists(root, "mnt/f")
    root.umount2("mnt", 0)
    assert exists(root, "mnt/f")
    root.umount2("mnt", 0)
    assert exists(root, "mnt/hidden")


def test_a_tmpfs_that_is_unmounted_everywhere_is_gone(root: TargetTask, mnt: str) -> None:
    root.umount2("mnt", 0)
    tmpfs(root, "mnt")
    assert not exists(root, "mnt/f")


def test_a_filesystem_lives_on_in_a_bind_after_its_first_mount_is_gone(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("second", 0o755)
    bind(root, "mnt", "second")
    root.umount2("mnt", 0)
    assert contents(root, "second/f") == b"on top"


def test_a_file_that_is_a_mount_point_is_unmounted_by_its_name(root: TargetTask) -> None:
    make_file(root, "below", b"below")
    make_file(root, "above", b"above")
    bind(root, "above", "below")
    assert contents(root, "below") == b"above"
    root.umount2("below", 0)
    assert contents(root, "below") == b"below"


def test_unmounting_the_root_or_the_cwd_means_what_is_stacked_on_it(root: TargetTask) -> None:
    fd = root.open("f", O_CREAT | O_WRONLY, 0o644)
    for path in ("/", "."):
        tmpfs(root, path)
        fails_with(errno.EAGAIN, root.umount2, path, MNT_EXPIRE)
        root.umount2(path, 0)
    root.mount(None, "/", None, MS_REMOUNT, None)
    root.write(fd, b"still writable")
    root.close(fd)


def test_unmounting_ones_root_makes_its_filesystem_read_only_instead(root: TargetTask) -> None:
    not_in_a_user_namespace(root)
    fd = root.open("f", O_CREAT | O_WRONLY, 0o644)
    fails_with(errno.EBUSY, root.umount2, "/", 0)
    assert not is_read_only(root, "/")
    root.close(fd)
    root.umount2("/", 0)
    assert exists(root, "/f")
    assert is_read_only(root, "/")
    root.mount(None, "/", None, MS_REMOUNT, None)
    assert not is_read_only(root, "/")


def test_unmounting_the_mount_of_a_chrooted_tasks_root_makes_it_read_only_and_stays(
    root: TargetTask, mnt: str
) -> None:
    jailed = root.clone("jailed")
    jailed.chroot("mnt")
    jailed.umount2("/", 0)
    assert exists(root, "mnt/f")
    assert is_read_only(root, "mnt")
    assert not is_read_only(root, "/")


# MNT_DETACH


def test_a_lazy_unmount_leaves_open_files_and_takes_everything_below_along(
    root: TargetTask, nested: str
) -> None:
    fd = root.open("mnt/f", O_RDWR, 0)
    root.umount2("mnt", MNT_DETACH)
    assert exists(root, "mnt/hidden")
    assert root.read(fd, 100) == b"on top"
    root.write(fd, b"!")
    root.close(fd)
    fails_with(errno.EINVAL, root.umount2, "mnt", 0)


def test_a_cwd_in_a_lazily_unmounted_tree_is_unreachable(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.chdir("mnt/d")
    root.umount2("/mnt", MNT_DETACH)
    assert root.getcwd() == b"(unreachable)/d"
    make_file(root, "../still", b"works")
    root.chdir("..")
    assert root.getcwd() == b"(unreachable)/"
    assert root.stat("..").st_ino == root.stat(".").st_ino


def test_a_lazily_unmounted_tree_comes_apart_into_its_mounts(root: TargetTask, nested: str) -> None:
    outer = root.open("mnt", O_RDONLY | O_DIRECTORY, 0)
    inner = root.open("mnt/d", O_RDONLY | O_DIRECTORY, 0)
    root.umount2("mnt", MNT_DETACH)
    root.newfstatat(outer, "d/shallow", 0)
    fails_with(errno.ENOENT, root.newfstatat, outer, "d/deep", 0)
    root.newfstatat(inner, "deep", 0)
    fails_with(errno.ENOENT, root.newfstatat, inner, "../f", 0)
    root.close(outer)
    root.close(inner)


def test_a_lazily_unmounted_filesystem_can_still_be_written_through_a_descriptor(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt", O_RDONLY | O_DIRECTORY, 0)
    root.umount2("mnt", MNT_DETACH)
    make_file_at(root, fd, "late", b"late")
    file = root.openat(fd, "late", O_RDONLY, 0)
    assert root.read(file, 100) == b"late"
    root.close(file)
    root.unlinkat(fd, "late", 0)
    root.close(fd)


def test_a_lazily_unmounted_mount_cannot_be_unmounted_again(root: TargetTask, mnt: str) -> None:
    root.chdir("mnt")
    root.umount2(".", MNT_DETACH)
    fails_with(errno.EINVAL, root.umount2, ".", 0)
    fails_with(errno.EINVAL, root.umount2, ".", MNT_DETACH)
    fails_with(errno.EINVAL, root.umount2, ".", MNT_EXPIRE)


def test_a_lazy_unmount_frees_the_mount_point_at_once(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    root.umount2("mnt", MNT_DETACH)
    root.unlink("mnt/hidden")
    root.rmdir("mnt")
    assert root.read(fd, 100) == b"on top"
    root.close(fd)


def test_a_lazy_unmount_of_the_middle_of_a_stack_uncovers_what_was_below_all(
    root: TargetTask, mnt: str
) -> None:
    root.chdir("mnt")
    tmpfs(root, "/mnt")
    make_file(root, "/mnt/topmost")
    root.umount2("/mnt", MNT_DETACH)
    assert exists(root, "/mnt/f")
    root.umount2("/mnt", MNT_DETACH)
    assert exists(root, "/mnt/hidden")
    assert root.getcwd() == b"(unreachable)/"


def test_lazily_unmounting_everything_leaves_the_task_with_its_files(root: TargetTask) -> None:
    not_in_a_user_namespace(root)
    make_file(root, "f", b"kept")
    root.umount2("/", MNT_DETACH)
    assert contents(root, "/f") == b"kept"
    assert contents(root, "f") == b"kept"
    fails_with(errno.EINVAL, root.umount2, "/", MNT_DETACH)
    fails_with(errno.ENOENT, root.mount, "none", "/", "tmpfs", 0, "")


# MNT_FORCE, MNT_EXPIRE, UMOUNT_NOFOLLOW


def test_a_forced_unmount_of_a_busy_tmpfs_is_ebusy_still(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    fails_with(errno.EBUSY, root.umount2, "mnt", MNT_FORCE)
    root.umount2("mnt", MNT_FORCE | MNT_DETACH)
    assert exists(root, "mnt/hidden")
    root.close(fd)


def test_a_forced_unmount_of_an_unused_mount_is_an_unmount(root: TargetTask, mnt: str) -> None:
    root.umount2("mnt", MNT_FORCE)
    assert exists(root, "mnt/hidden")


def test_umount_nofollow_takes_a_symlink_for_what_it_is(root: TargetTask, mnt: str) -> None:
    root.symlink("mnt", "link")
    fails_with(errno.EINVAL, root.umount2, "link", UMOUNT_NOFOLLOW)
    root.umount2("link", 0)
    assert exists(root, "mnt/hidden")


def test_umount_nofollow_follows_symlinks_on_the_way(root: TargetTask, nested: str) -> None:
    root.symlink("mnt", "link")
    root.umount2("link/d", UMOUNT_NOFOLLOW)
    assert exists(root, "mnt/d/shallow")


def test_mnt_expire_takes_two_calls_with_no_use_in_between(root: TargetTask, mnt: str) -> None:
    fails_with(errno.EAGAIN, root.umount2, "mnt", MNT_EXPIRE)
    root.stat("mnt/f")
    fails_with(errno.EAGAIN, root.umount2, "mnt", MNT_EXPIRE)
    root.umount2("mnt", MNT_EXPIRE)
    assert exists(root, "mnt/hidden")


def test_an_open_and_close_in_between_make_mnt_expire_start_over(
    root: TargetTask, mnt: str
) -> None:
    fails_with(errno.EAGAIN, root.umount2, "mnt", MNT_EXPIRE)
    root.close(root.open("mnt/f", O_RDONLY, 0))
    fails_with(errno.EAGAIN, root.umount2, "mnt", MNT_EXPIRE)
    root.umount2("mnt", MNT_EXPIRE)


def test_mnt_expire_of_a_busy_mount_is_ebusy(root: TargetTask, nested: str) -> None:
    fd = root.open("mnt/d/deep", O_RDONLY, 0)
    fails_with(errno.EBUSY, root.umount2, "mnt/d", MNT_EXPIRE)
    root.close(fd)
    fails_with(errno.EBUSY, root.umount2, "mnt", MNT_EXPIRE)


@pytest.mark.parametrize("other", [MNT_DETACH, MNT_FORCE, MNT_DETACH | MNT_FORCE])
def test_mnt_expire_with_detach_or_force_is_einval_even_if_busy(
    root: TargetTask, mnt: str, other: int
) -> None:
    fails_with(errno.EINVAL, root.umount2, "mnt", MNT_EXPIRE | other)
    fd = root.open("mnt/f", O_RDONLY, 0)
    fails_with(errno.EINVAL, root.umount2, "mnt", MNT_EXPIRE | other)
    root.close(fd)


def test_ones_root_cannot_expire(root: TargetTask) -> None:
    fails_with(errno.EINVAL, root.umount2, "/", MNT_EXPIRE)


def test_mnt_expire_takes_umount_nofollow_with_it(root: TargetTask, mnt: str) -> None:
    fails_with(errno.EAGAIN, root.umount2, "mnt", MNT_EXPIRE | UMOUNT_NOFOLLOW)
    root.umount2("mnt", MNT_EXPIRE | UMOUNT_NOFOLLOW)


# Mount points that are removed or renamed


def test_mount_points_cannot_be_removed_or_renamed(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "f")
    make_file(root, "g")
    bind(root, "f", "g")
    fails_with(errno.EBUSY, root.rmdir, "mnt")
    fails_with(errno.EBUSY, root.unlink, "g")
    fails_with(errno.EBUSY, root.rename, "mnt", "other")
    fails_with(errno.EBUSY, root.rename, "d", "mnt")
    fails_with(errno.EBUSY, root.rename, "f", "g")


def test_a_directory_above_a_mount_point_can_be_renamed(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    marked(root, "a/mnt", "f")
    root.rename("a", "b")
    assert exists(root, "b/mnt/f")
    root.chdir("b/mnt")
    assert root.getcwd() == b"/b/mnt"


def test_a_mount_point_seen_through_another_bind_cannot_be_removed_either(
    root: TargetTask,
) -> None:
    root.mkdir("tree", 0o755)
    root.mkdir("view", 0o755)
    bind(root, "tree", "view")
    marked(root, "tree/d", "f")
    assert exists(root, "view/d")
    assert not exists(root, "view/d/f")
    fails_with(errno.EBUSY, root.rmdir, "view/d")
    fails_with(errno.EBUSY, root.rename, "view/d", "view/e")
    root.umount2("tree/d", 0)
    root.rmdir("view/d")


def test_removing_a_directory_mounted_on_in_another_namespace_detaches_that_mount(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o755)
    other = root.clone("other", CLONE_NEWNS)
    tmpfs(other, "d")
    make_file(other, "d/f")
    root.rmdir("d")
    assert not exists(other, "d")


def test_unlinking_a_file_mounted_on_in_another_namespace_detaches_that_mount(
    root: TargetTask,
) -> None:
    make_file(root, "below", b"below")
    make_file(root, "above", b"above")
    other = root.clone("other", CLONE_NEWNS)
    bind(other, "above", "below")
    root.unlink("below")
    assert not exists(other, "below")
    make_file(root, "below", b"again")
    assert contents(other, "below") == b"again"


def test_renaming_a_directory_mounted_on_in_another_namespace_takes_that_mount_along(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "d/below")
    other = root.clone("other", CLONE_NEWNS)
    tmpfs(other, "d")
    make_file(other, "d/f")
    fails_with(errno.EBUSY, other.rename, "d", "e")
    root.rename("d", "e")
    assert not exists(other, "d")
    assert exists(other, "e/f")
    assert not exists(other, "e/below")


def test_exchanging_directories_mounted_on_in_another_namespace_exchanges_the_mounts(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o755)
    root.mkdir("e", 0o755)
    other = root.clone("other", CLONE_NEWNS)
    tmpfs(other, "d")
    make_file(other, "d/f")
    root.renameat2(AT_FDCWD, "d", AT_FDCWD, "e", RENAME_EXCHANGE)
    assert exists(other, "e/f")
    assert not exists(other, "d/f")


def test_renaming_over_a_directory_mounted_on_in_another_namespace_detaches_that_mount(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o755)
    root.mkdir("e", 0o755)
    make_file(root, "e/moved")
    other = root.clone("other", CLONE_NEWNS)
    tmpfs(other, "d")
    make_file(other, "d/f")
    root.rename("e", "d")
    assert exists(other, "d/moved")
    assert not exists(other, "d/f")


def test_a_mount_detached_by_a_removal_keeps_its_mounts_below_as_long_as_it_is_used(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o755)
    other = root.clone("other", CLONE_NEWNS)
    tmpfs(other, "d")
    make_file(other, "d/f")
    marked(other, "d/sub", "deep")
    fd = other.open("d", O_PATH, 0)
    other.fchdir(fd)
    root.rmdir("d")
    assert other.getcwd() == b"(unreachable)/"
    assert exists(other, "f")
    other.chdir("sub")
    assert exists(other, "deep")
    assert other.getcwd() == b"(unreachable)/sub"
    assert exists(other, "../f")
    other.close(fd)
    assert other.getcwd() == b"(unreachable)/"
    assert exists(other, "deep")
    assert not exists(other, "../f")


def test_removing_a_directory_mounted_on_in_two_namespaces_is_ebusy_in_each(
    root: TargetTask, mnt: str
) -> None:
    other = root.clone("other", CLONE_NEWNS)
    fails_with(errno.EBUSY, root.rmdir, "mnt")
    fails_with(errno.EBUSY, other.rmdir, "mnt")
    other.umount2("mnt", 0)
    other.unlink("mnt/hidden")
    other.rmdir("mnt")
    assert not exists(root, "mnt")


def test_a_recursive_bind_is_taken_off_as_a_whole_by_a_lazy_unmount(
    root: TargetTask, nested: str
) -> None:
    root.mkdir("copy", 0o755)
    rbind(root, "mnt", "copy")
    fails_with(errno.EBUSY, root.umount2, "copy", 0)
    root.umount2("copy", MNT_DETACH)
    assert not exists(root, "copy/f")
    assert exists(root, "mnt/d/deep")
