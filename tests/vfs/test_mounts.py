"""Mounts: putting them on, taking them off, what their flags forbid, namespaces, pivot_root."""

from __future__ import annotations

import errno

import pytest
from vfs_support import contents, exists, fails_with, make_file, mode

from harness.testbed.step import NAMES
from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    AT_FDCWD,
    MNT_DETACH,
    MNT_EXPIRE,
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    O_CREAT,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    UMOUNT_NOFOLLOW,
)


def tmpfs(task: TargetTask, path: str, flags: int = 0, data: str = "") -> None:
    task.mount("none", path, "tmpfs", flags, data)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it, which has a file ``f``; below it lies a file ``hidden``."""
    root.mkdir("mnt", 0o755)
    make_file(root, "mnt/hidden")
    tmpfs(root, "mnt")
    make_file(root, "mnt/f", b"on top")
    return "mnt"


# On and off


def test_a_mount_covers_what_was_there_until_it_is_taken_off(root: TargetTask, mnt: str) -> None:
    assert contents(root, "mnt/f") == b"on top"
    assert not exists(root, "mnt/hidden")
    assert root.stat("mnt").st_dev != root.stat("/").st_dev
    root.umount2("mnt", 0)
    assert exists(root, "mnt/hidden")
    assert not exists(root, "mnt/f")


def test_mounts_stack_and_come_off_topmost_first(root: TargetTask, mnt: str) -> None:
    tmpfs(root, "mnt")
    assert not exists(root, "mnt/f")
    root.umount2("mnt", 0)
    assert exists(root, "mnt/f")


def test_unmounting_the_root_or_the_cwd_means_what_is_stacked_on_it(root: TargetTask) -> None:
    fd = root.open("f", O_CREAT | O_WRONLY, 0o644)
    for path in ("/", "."):
        tmpfs(root, path)
        fails_with(errno.EAGAIN, root.umount2, path, MNT_EXPIRE)
        root.umount2(path, 0)
    root.mount(None, "/", None, MS_REMOUNT, None)
    root.write(fd, b"still writable")
    root.close(fd)


def test_dotdot_crosses_from_a_mounts_root_to_the_mount_points_parent(
    root: TargetTask, mnt: str
) -> None:
    assert root.stat("mnt/..").st_ino == root.stat("/").st_ino
    root.chdir("mnt")
    assert root.getcwd() == b"/mnt"
    root.chdir("..")
    assert root.getcwd() == b"/"


def test_mounting_and_unmounting_need_cap_sys_admin(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    fails_with(errno.EPERM, alice.mount, "none", "/", "tmpfs", 0, "")
    fails_with(errno.EPERM, alice.umount2, "mnt", 0)
    fails_with(errno.EPERM, alice.unshare, NAMES["CLONE_NEWNS"])


def test_an_unknown_filesystem_type_is_enodev_and_none_is_einval(root: TargetTask) -> None:
    fails_with(errno.ENODEV, root.mount, "none", "/", "no-such-type", 0, "")
    fails_with(errno.EINVAL, root.mount, "none", "/", None, 0, "")


def test_a_directory_goes_onto_a_directory_and_a_file_onto_a_file(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "f", b"f")
    make_file(root, "g", b"g")
    fails_with(errno.ENOTDIR, root.mount, "none", "f", "tmpfs", 0, "")
    fails_with(errno.ENOTDIR, root.mount, "d", "f", None, MS_BIND, None)
    fails_with(errno.ENOTDIR, root.mount, "f", "d", None, MS_BIND, None)
    root.mount("f", "g", None, MS_BIND, None)
    assert contents(root, "g") == b"f"
    root.umount2("g", 0)


def test_unmounting_what_is_no_mounts_root_is_einval(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.EINVAL, root.umount2, "d", 0)
    fails_with(errno.EINVAL, root.umount2, "mnt/f", 0)
    fails_with(errno.ENOENT, root.umount2, "missing", 0)
    fails_with(errno.EINVAL, root.umount2, "mnt", 0x80)


def test_an_open_file_keeps_a_mount_busy(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    root.close(fd)
    root.umount2("mnt", 0)


def test_a_cwd_keeps_a_mount_busy(root: TargetTask, mnt: str) -> None:
    root.chdir("mnt")
    fails_with(errno.EBUSY, root.umount2, "/mnt", 0)
    root.chdir("/")
    root.umount2("mnt", 0)


def test_a_mount_below_keeps_a_mount_busy(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    tmpfs(root, "mnt/d")
    fails_with(errno.EBUSY, root.umount2, "mnt", 0)
    root.umount2("mnt/d", 0)
    root.umount2("mnt", 0)


def test_a_lazy_unmount_leaves_open_files_and_takes_everything_below_along(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("mnt/d", 0o755)
    tmpfs(root, "mnt/d")
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


def test_umount_nofollow_takes_a_symlink_for_what_it_is(root: TargetTask, mnt: str) -> None:
    root.symlink("mnt", "link")
    fails_with(errno.EINVAL, root.umount2, "link", UMOUNT_NOFOLLOW)
    root.umount2("link", 0)
    assert exists(root, "mnt/hidden")


def test_mnt_expire_takes_two_calls_with_no_use_in_between(root: TargetTask, mnt: str) -> None:
    fails_with(errno.EAGAIN, root.umount2, "mnt", MNT_EXPIRE)
    root.stat("mnt/f")
    fails_with(errno.EAGAIN, root.umount2, "mnt", MNT_EXPIRE)
    root.umount2("mnt", MNT_EXPIRE)
    assert exists(root, "mnt/hidden")


def test_mnt_expire_of_a_busy_mount_is_ebusy_and_with_detach_einval(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    fails_with(errno.EBUSY, root.umount2, "mnt", MNT_EXPIRE)
    fails_with(errno.EINVAL, root.umount2, "mnt", MNT_EXPIRE | MNT_DETACH)
    root.close(fd)


def test_mount_points_cannot_be_removed_or_renamed(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "f")
    make_file(root, "g")
    root.mount("f", "g", None, MS_BIND, None)
    fails_with(errno.EBUSY, root.rmdir, "mnt")
    fails_with(errno.EBUSY, root.unlink, "g")
    fails_with(errno.EBUSY, root.rename, "mnt", "other")
    fails_with(errno.EBUSY, root.rename, "d", "mnt")
    fails_with(errno.EBUSY, root.rename, "f", "g")


def test_names_do_not_cross_mounts(root: TargetTask, mnt: str) -> None:
    make_file(root, "f")
    fails_with(errno.EXDEV, root.link, "f", "mnt/g")
    fails_with(errno.EXDEV, root.rename, "f", "mnt/g")


def test_a_deleted_directory_cannot_be_mounted_on(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.chdir("d")
    root.rmdir("/d")
    fails_with(errno.ENOENT, root.mount, "none", ".", "tmpfs", 0, "")


# Binds


def test_a_bind_shows_the_same_files_from_a_second_place(root: TargetTask, mnt: str) -> None:
    root.mkdir("second", 0o755)
    root.mount("mnt", "second", None, MS_BIND, None)
    assert root.stat("second/f").st_ino == root.stat("mnt/f").st_ino
    make_file(root, "second/g", b"both")
    assert contents(root, "mnt/g") == b"both"


def test_a_bind_of_a_subdirectory_ends_dotdot_at_its_mount_point(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("a/sub", 0o755)
    root.mkdir("b", 0o755)
    root.mount("a/sub", "b", None, MS_BIND, None)
    assert root.stat("b/..").st_ino == root.stat("/").st_ino
    root.chdir("b")
    assert root.getcwd() == b"/b"


def test_link_and_rename_between_binds_of_one_filesystem_are_exdev(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("second", 0o755)
    root.mount("mnt", "second", None, MS_BIND, None)
    fails_with(errno.EXDEV, root.link, "mnt/f", "second/g")
    fails_with(errno.EXDEV, root.rename, "mnt/f", "second/g")


def test_a_bind_leaves_mounts_below_out_and_a_recursive_one_takes_them(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("mnt/d", 0o755)
    tmpfs(root, "mnt/d")
    make_file(root, "mnt/d/deep")
    root.mkdir("plain", 0o755)
    root.mkdir("whole", 0o755)
    root.mount("mnt", "plain", None, MS_BIND, None)
    root.mount("mnt", "whole", None, MS_BIND | MS_REC, None)
    assert not exists(root, "plain/d/deep")
    assert exists(root, "whole/d/deep")


def test_a_directory_that_left_a_binds_tree_has_no_parent_there(root: TargetTask) -> None:
    for path in ("a", "a/sub", "a/sub/d", "b", "out"):
        root.mkdir(path, 0o755)
    root.mount("a/sub", "b", None, MS_BIND, None)
    root.chdir("b/d")
    root.rename("/a/sub/d", "/out/d")
    fails_with(errno.ENOENT, root.stat, "..")
    assert root.getcwd() == b"(unreachable)/"


def test_a_binds_source_must_be_given_and_be_there(root: TargetTask) -> None:
    fails_with(errno.EINVAL, root.mount, None, "/", None, MS_BIND, None)
    fails_with(errno.EINVAL, root.mount, "", "/", None, MS_BIND, None)
    fails_with(errno.ENOENT, root.mount, "missing", "/", None, MS_BIND, None)


def test_moving_a_mount_takes_it_away_from_where_it_was(root: TargetTask, mnt: str) -> None:
    root.mkdir("new", 0o755)
    fd = root.open("mnt/f", O_RDONLY, 0)
    root.mount("mnt", "new", None, MS_MOVE, None)
    assert contents(root, "new/f") == b"on top"
    assert exists(root, "mnt/hidden")
    assert root.read(fd, 100) == b"on top"
    root.close(fd)


def test_nothing_can_be_mounted_in_a_tree_that_was_unmounted(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.chdir("mnt")
    root.umount2("/mnt", abi.MNT_DETACH)
    fails_with(errno.ENOENT, root.mount, "none", "d", "tmpfs", 0, "")
    fails_with(errno.ENOENT, root.mount, "d", "d", None, MS_BIND, None)
    fails_with(errno.ENOENT, root.mount, ".", "d", None, MS_MOVE, None)
    fails_with(errno.EINVAL, root.mount, "d", "d", None, MS_MOVE, None)
    fails_with(errno.EINVAL, root.mount, "d", "/mnt", None, MS_BIND, None)
    fails_with(errno.EINVAL, root.mount, None, ".", None, MS_REMOUNT, None)


def test_truncating_on_a_read_only_mount_asks_for_kind_and_permission_first(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    root.mkdir("mnt/d", 0o755)
    root.mknod("mnt/fifo", abi.S_IFIFO | 0o666, 0)
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
    fails_with(errno.EISDIR, alice.truncate, "mnt/d", 0)
    fails_with(errno.EINVAL, alice.truncate, "mnt/fifo", 0)
    fails_with(errno.EACCES, alice.truncate, "mnt/f", 0)
    fails_with(errno.EROFS, root.truncate, "mnt/f", 0)


def test_moving_a_mount_below_itself_is_eloop(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    fails_with(errno.ELOOP, root.mount, "mnt", "mnt/d", None, MS_MOVE, None)


def test_only_a_mounts_root_can_be_moved(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    root.mkdir("mnt/sub", 0o755)
    fails_with(errno.EINVAL, root.mount, "mnt/sub", "d", None, MS_MOVE, None)
    fails_with(errno.ELOOP, root.mount, "/", "d", None, MS_MOVE, None)


# Read-only, per mount and per superblock


def every_change_is(number: int, task: TargetTask, top: str) -> None:
    for call, args in (
        (task.open, (f"{top}/f", O_WRONLY, 0)),
        (task.open, (f"{top}/f", O_RDONLY | abi.O_TRUNC, 0)),
        (task.open, (f"{top}/new", O_CREAT | O_WRONLY, 0o644)),
        (task.open, (top, abi.O_TMPFILE | O_RDWR, 0o644)),
        (task.mkdir, (f"{top}/new", 0o755)),
        (task.mknod, (f"{top}/new", abi.S_IFIFO, 0)),
        (task.symlink, ("x", f"{top}/new")),
        (task.link, (f"{top}/f", f"{top}/new")),
        (task.unlink, (f"{top}/f",)),
        (task.rmdir, (f"{top}/f",)),
        (task.rename, (f"{top}/f", f"{top}/new")),
        (task.chmod, (f"{top}/f", 0o600)),
        (task.chown, (f"{top}/f", 1, 1)),
        (task.truncate, (f"{top}/f", 0)),
        (task.utimensat, (AT_FDCWD, f"{top}/f", None, 0)),
        (task.setxattr, (f"{top}/f", "user.a", b"", 0)),
        (task.removexattr, (f"{top}/f", "user.a")),
        (task.access, (f"{top}/f", abi.W_OK)),
    ):
        fails_with(number, call, *args)


def test_a_read_only_superblock_refuses_every_change_through_every_mount(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("second", 0o755)
    root.mount("mnt", "second", None, MS_BIND, None)
    root.mount(None, "mnt", None, MS_REMOUNT | MS_RDONLY, None)
    every_change_is(errno.EROFS, root, "mnt")
    every_change_is(errno.EROFS, root, "second")
    assert contents(root, "mnt/f") == b"on top"


def test_a_read_only_bind_refuses_every_change_and_the_other_mount_does_not(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("second", 0o755)
    root.mount("mnt", "second", None, MS_BIND, None)
    root.mount(None, "second", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
    every_change_is(errno.EROFS, root, "second")
    root.mkdir("mnt/new", 0o755)
    assert exists(root, "second/new")


def test_an_existing_name_on_a_read_only_mount_is_eexist_first(root: TargetTask, mnt: str) -> None:
    root.mount(None, "mnt", None, MS_REMOUNT | MS_RDONLY, None)
    fails_with(errno.EEXIST, root.mkdir, "mnt/f", 0o755)
    fails_with(errno.EROFS, root.unlink, "mnt/missing")
    fails_with(errno.EROFS, root.unlink, "mnt/" + "n" * 256)
    root.close(root.open("mnt/f", O_CREAT | O_RDONLY, 0o644))


def test_a_remount_read_only_is_ebusy_while_a_file_is_open_for_writing(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt/f", O_WRONLY, 0)
    fails_with(errno.EBUSY, root.mount, None, "mnt", None, MS_REMOUNT | MS_RDONLY, None)
    bind = MS_REMOUNT | MS_BIND | MS_RDONLY
    fails_with(errno.EBUSY, root.mount, None, "mnt", None, bind, None)
    root.close(fd)
    root.mount(None, "mnt", None, bind, None)


def test_remounting_what_is_no_mounts_root_is_einval(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    fails_with(errno.EINVAL, root.mount, None, "mnt/d", None, MS_REMOUNT, None)
    fails_with(errno.EINVAL, root.mount, None, "mnt/d", None, MS_REMOUNT | MS_BIND, None)


def test_devices_and_fifos_on_a_read_only_mount_can_be_opened_for_writing(
    root: TargetTask, mnt: str
) -> None:
    root.mknod("mnt/fifo", abi.S_IFIFO | 0o600, 0)
    root.mount(None, "mnt", None, MS_REMOUNT | MS_RDONLY, None)
    root.close(root.open("mnt/fifo", O_RDWR, 0))
    root.access("mnt/fifo", abi.W_OK)


# The other flags


def test_statfs_shows_the_mounts_flags(root: TargetTask) -> None:
    root.mkdir("mnt", 0o755)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | abi.MS_NOATIME | MS_NOSYMFOLLOW | MS_RDONLY
    tmpfs(root, "mnt", flags)
    shown = abi.ST_VALID | abi.ST_NOSUID | abi.ST_NODEV | abi.ST_NOEXEC | abi.ST_NOATIME
    assert root.statfs("mnt").f_flags == shown | abi.ST_NOSYMFOLLOW | abi.ST_RDONLY
    assert root.statfs("/").f_flags == abi.ST_VALID | abi.ST_RELATIME


def test_a_nodev_mount_refuses_devices(root: TargetTask, mnt: str) -> None:
    root.mknod("mnt/null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | MS_NODEV, None)
    fails_with(errno.EACCES, root.open, "mnt/null", O_RDONLY, 0)


def test_a_noexec_mount_fails_access_x_ok_for_files_and_not_for_directories(
    root: TargetTask, mnt: str
) -> None:
    make_file(root, "mnt/run", mode=0o755)
    root.access("mnt/run", abi.X_OK)
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | MS_NOEXEC, None)
    fails_with(errno.EACCES, root.access, "mnt/run", abi.X_OK)
    root.access("mnt", abi.X_OK)


def test_a_nosymfollow_mount_follows_none_of_its_symlinks(root: TargetTask, mnt: str) -> None:
    root.symlink("f", "mnt/link")
    root.symlink("mnt/f", "outside")
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | MS_NOSYMFOLLOW, None)
    fails_with(errno.ELOOP, root.stat, "mnt/link")
    assert root.readlink("mnt/link") == b"f"
    assert contents(root, "outside") == b"on top"


OLD = ((1000, 0), (2000, 0))


def atime_after_read(task: TargetTask, path: str) -> int:
    fd = task.open(path, O_RDONLY, 0)
    task.read(fd, 1)
    task.close(fd)
    seconds: int = task.stat(path).st_atime_ns // 10**9
    return seconds


def test_relatime_moves_an_atime_older_than_mtime_and_noatime_does_not(
    root: TargetTask, mnt: str
) -> None:
    root.utimensat(AT_FDCWD, "mnt/f", OLD, 0)
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | abi.MS_NOATIME, None)
    assert atime_after_read(root, "mnt/f") == 1000
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | abi.MS_RELATIME, None)
    assert atime_after_read(root, "mnt/f") > 2000


def test_relatime_leaves_a_young_atime_alone_and_strictatime_does_not(
    root: TargetTask, mnt: str
) -> None:
    future = 1 << 32
    root.utimensat(AT_FDCWD, "mnt/f", ((future, 0), (1, 0)), 0)
    assert atime_after_read(root, "mnt/f") == future
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | abi.MS_STRICTATIME, None)
    assert atime_after_read(root, "mnt/f") < future


def test_nodiratime_spares_directories_only(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.utimensat(AT_FDCWD, "mnt/d", OLD, 0)
    root.utimensat(AT_FDCWD, "mnt/f", OLD, 0)
    flags = MS_REMOUNT | MS_BIND | abi.MS_NODIRATIME | abi.MS_STRICTATIME
    root.mount(None, "mnt", None, flags, None)
    fd = root.open("mnt/d", O_RDONLY, 0)
    root.getdents64(fd, 1000)
    root.close(fd)
    assert root.stat("mnt/d").st_atime_ns == 1000 * 10**9
    assert atime_after_read(root, "mnt/f") > 2000


def test_a_remount_silent_about_atime_keeps_noatime(root: TargetTask, mnt: str) -> None:
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | abi.MS_NOATIME, None)
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | MS_NOEXEC, None)
    assert root.statfs("mnt").f_flags == abi.ST_VALID | abi.ST_NOATIME | abi.ST_NOEXEC


# Namespaces


def test_a_new_namespace_is_a_copy_and_mounts_in_it_stay_in_it(root: TargetTask, mnt: str) -> None:
    other = root.clone("other", NAMES["CLONE_NEWNS"])
    assert contents(other, "mnt/f") == b"on top"
    other.umount2("mnt", 0)
    assert not exists(other, "mnt/f")
    assert exists(root, "mnt/f")
    root.mkdir("late", 0o755)
    tmpfs(root, "late")
    make_file(root, "late/f")
    assert not exists(other, "late/f")


def test_unshare_moves_root_and_cwd_onto_the_copies(root: TargetTask, mnt: str) -> None:
    root.chdir("mnt")
    other = root.clone("other")
    root.unshare(NAMES["CLONE_NEWNS"])
    assert root.getcwd() == b"/mnt"
    root.chdir("/")
    root.umount2("mnt", 0)
    assert exists(other, "/mnt/f")


def test_a_file_from_another_namespaces_mount_cannot_be_mounted(root: TargetTask, mnt: str) -> None:
    other = root.clone("other", NAMES["CLONE_NEWNS"])
    root.mkdir("d", 0o755)
    fd = root.open("mnt", O_RDONLY, 0)
    heir = root.clone("heir", NAMES["CLONE_NEWNS"])
    heir.fchdir(fd)
    fails_with(errno.EINVAL, heir.mount, ".", "/d", None, MS_BIND, None)
    fails_with(errno.EINVAL, heir.umount2, ".", 0)
    fails_with(errno.EINVAL, heir.mount, "none", ".", "tmpfs", 0, "")
    other.exit()


def test_removing_a_directory_mounted_on_elsewhere_only_detaches_that_mount(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o755)
    other = root.clone("other", NAMES["CLONE_NEWNS"])
    tmpfs(other, "d")
    make_file(other, "d/f")
    root.rmdir("d")
    assert not exists(other, "d")


def test_clone_newns_with_clone_fs_is_einval(root: TargetTask) -> None:
    both = NAMES["CLONE_NEWNS"] | NAMES["CLONE_FS"]
    fails_with(errno.EINVAL, root.clone, "other", both)


# chroot and pivot_root


def test_chroot_needs_cap_sys_chroot_and_a_directory(root: TargetTask, alice: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.EPERM, alice.chroot, "/")
    fails_with(errno.ENOTDIR, root.chroot, "f")
    fails_with(errno.ENOENT, root.chroot, "missing")


def test_pivot_root_swaps_the_roots(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/old", 0o755)
    root.pivot_root("mnt", "mnt/old")
    assert contents(root, "/f") == b"on top"
    assert exists(root, "/old/mnt")
    assert root.getcwd() == b"/"
    root.umount2("/old", MNT_DETACH)
    assert not exists(root, "/old/mnt")


def test_pivot_root_dot_dot_stacks_the_old_root_on_the_new(root: TargetTask, mnt: str) -> None:
    root.chdir("mnt")
    root.pivot_root(".", ".")
    root.umount2(".", MNT_DETACH)
    root.chdir("/")
    assert contents(root, "/f") == b"on top"


def test_pivot_root_moves_every_task_that_stood_at_the_old_root(root: TargetTask, mnt: str) -> None:
    at_root = root.clone("at_root")
    elsewhere = root.clone("elsewhere")
    root.mkdir("d", 0o755)
    elsewhere.chdir("d")
    root.mkdir("mnt/old", 0o755)
    root.pivot_root("mnt", "mnt/old")
    assert exists(at_root, "f")
    assert exists(at_root, "/f")
    assert elsewhere.getcwd() == b"/old/d"


def test_pivot_root_wants_a_mount_other_than_the_root(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    root.mkdir("mnt/old", 0o755)
    fails_with(errno.EBUSY, root.pivot_root, "d", "d")
    fails_with(errno.EBUSY, root.pivot_root, "/", "/")
    fails_with(errno.EBUSY, root.pivot_root, "mnt", "d")
    fails_with(errno.EINVAL, root.pivot_root, "mnt/old", "mnt/old")
    make_file(root, "mnt/file")
    fails_with(errno.ENOTDIR, root.pivot_root, "mnt", "mnt/file")


def test_pivot_root_wants_put_old_below_new_root(root: TargetTask, mnt: str) -> None:
    root.mkdir("second", 0o755)
    tmpfs(root, "second")
    fails_with(errno.EINVAL, root.pivot_root, "mnt", "second")


def test_pivot_root_needs_cap_sys_admin(alice: TargetTask) -> None:
    fails_with(errno.EPERM, alice.pivot_root, "/", "/")


def test_the_root_mount_itself_cannot_be_unmounted_lazily_by_a_chrooted_task_without_parent(
    root: TargetTask, mnt: str
) -> None:
    jailed = root.clone("jailed")
    jailed.chroot("mnt")
    jailed.chdir("/")
    fails_with(errno.ENOENT, jailed.stat, "/mnt")
    jailed.umount2("/", MNT_DETACH)
    assert exists(root, "mnt/hidden")
    assert contents(jailed, "/f") == b"on top"


def test_mounting_over_the_root_of_a_mount_hides_it_from_walks_not_from_its_cwd(
    root: TargetTask, mnt: str
) -> None:
    root.chdir("mnt")
    tmpfs(root, "/mnt")
    assert not exists(root, "/mnt/f")
    assert exists(root, "f")
    assert mode(root, "/mnt") == 0o1777
