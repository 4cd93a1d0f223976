"""Who may do what, which errno comes first, and what happens to set-id bits."""

from __future__ import annotations

import errno

import pytest
from vfs_support import exists, fails_with, make_file, mode

from harness.testbed.target import Target, TargetTask
from vfs import abi
from vfs.abi import AT_FDCWD, O_CREAT, O_RDONLY, O_RDWR, O_WRONLY, R_OK, W_OK, X_OK


@pytest.fixture
def shared(root: TargetTask) -> None:
    """``/`` may be written by everybody, and nobody's umask gets in the way."""
    root.chmod("/", 0o777)
    root.umask(0)


def test_the_owner_class_decides_for_the_owner_even_if_others_may_more(
    root: TargetTask, alice: TargetTask, bob: TargetTask
) -> None:
    make_file(root, "f")
    root.chown("f", 1000, 100)
    root.chmod("f", 0o077)
    fails_with(errno.EACCES, alice.open, "f", O_RDONLY, 0)
    bob.open("f", O_RDWR, 0)


def test_a_supplementary_group_counts_as_the_group(root: TargetTask, alice: TargetTask) -> None:
    make_file(root, "f")
    root.chown("f", 0, 100)
    root.chmod("f", 0o640)
    alice.open("f", O_RDONLY, 0)
    fails_with(errno.EACCES, alice.open, "f", O_WRONLY, 0)


def test_root_reads_and_writes_anything_but_executes_only_what_has_an_x(root: TargetTask) -> None:
    make_file(root, "f", mode=0o000)
    root.open("f", O_RDWR, 0)
    fails_with(errno.EACCES, root.access, "f", X_OK)
    root.chmod("f", 0o001)
    root.access("f", R_OK | W_OK | X_OK)


def test_access_asks_about_existence_with_f_ok(root: TargetTask, alice: TargetTask) -> None:
    make_file(root, "f", mode=0o000)
    alice.access("f", 0)
    fails_with(errno.ENOENT, alice.access, "g", 0)
    fails_with(errno.EINVAL, alice.access, "f", 8)


@pytest.mark.usefixtures("shared")
def test_an_existing_name_is_eexist_before_eacces(root: TargetTask, alice: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.mkdir("d/there", 0o755)
    fails_with(errno.EEXIST, alice.mkdir, "d/there", 0o755)
    fails_with(errno.EACCES, alice.mkdir, "d/new", 0o755)
    fails_with(errno.EEXIST, alice.symlink, "x", "d/there")


def test_a_missing_name_is_enoent_before_eacces(root: TargetTask, alice: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.ENOENT, alice.unlink, "d/missing")
    fails_with(errno.ENOENT, alice.rmdir, "d/missing")
    fails_with(errno.ENOENT, alice.rename, "d/missing", "d/other")


def test_taking_a_name_away_needs_the_directory_not_the_file(
    root: TargetTask, alice: TargetTask
) -> None:
    root.mkdir("open", 0o755)
    root.chmod("open", 0o777)
    make_file(root, "open/f", mode=0o000)
    make_file(root, "g", mode=0o666)
    alice.unlink("open/f")
    fails_with(errno.EACCES, alice.unlink, "g")


def test_only_the_owner_changes_a_mode(root: TargetTask, alice: TargetTask) -> None:
    make_file(root, "f", mode=0o666)
    fails_with(errno.EPERM, alice.chmod, "f", 0o600)
    root.chown("f", 1000, 1000)
    alice.chmod("f", 0o600)
    assert mode(root, "f") == 0o600


def test_a_symlinks_own_mode_cannot_be_changed(root: TargetTask) -> None:
    root.symlink("x", "link")
    fails_with(errno.EOPNOTSUPP, root.fchmodat2, AT_FDCWD, "link", 0o600, abi.AT_SYMLINK_NOFOLLOW)


def test_an_owner_may_give_a_file_to_a_group_of_their_own_only(
    root: TargetTask, alice: TargetTask
) -> None:
    make_file(root, "f")
    root.chown("f", 1000, 1000)
    alice.chown("f", -1, 100)
    fails_with(errno.EPERM, alice.chown, "f", -1, 1001)
    fails_with(errno.EPERM, alice.chown, "f", 1001, -1)
    assert root.stat("f").st_gid == 100


@pytest.mark.usefixtures("every_id")
def test_chown_minus_one_leaves_the_id(root: TargetTask) -> None:
    make_file(root, "f")
    root.chown("f", 5, 6)
    root.chown("f", -1, 7)
    root.chown("f", -1, -1)
    assert (root.stat("f").st_uid, root.stat("f").st_gid) == (5, 7)


# Sticky directories


@pytest.fixture
def tmp(root: TargetTask) -> str:
    root.mkdir("tmp", 0o777)
    root.chmod("tmp", 0o1777)
    return "tmp"


def test_a_sticky_directory_protects_others_names(
    root: TargetTask, alice: TargetTask, bob: TargetTask, tmp: str
) -> None:
    make_file(alice, "tmp/f")
    alice.mkdir("tmp/d", 0o777)
    fails_with(errno.EPERM, bob.unlink, "tmp/f")
    fails_with(errno.EPERM, bob.rmdir, "tmp/d")
    fails_with(errno.EPERM, bob.rename, "tmp/f", "tmp/g")
    alice.unlink("tmp/f")
    root.rmdir("tmp/d")


def test_a_sticky_directory_protects_the_target_of_a_rename(
    alice: TargetTask, bob: TargetTask, tmp: str
) -> None:
    make_file(alice, "tmp/hers")
    make_file(bob, "tmp/his")
    fails_with(errno.EPERM, bob.rename, "tmp/his", "tmp/hers")


def test_the_owner_of_a_sticky_directory_removes_what_they_like(
    root: TargetTask, alice: TargetTask, bob: TargetTask, tmp: str
) -> None:
    root.chown("tmp", 1000, 1000)
    make_file(bob, "tmp/f")
    alice.unlink("tmp/f")


# Setgid


def test_a_setgid_directory_hands_down_its_group_and_to_directories_the_bit(
    root: TargetTask, alice: TargetTask
) -> None:
    root.mkdir("d", 0o777)
    root.chown("d", 0, 100)
    root.chmod("d", 0o2777)
    alice.mkdir("d/sub", 0o755)
    make_file(alice, "d/f")
    assert root.stat("d/sub").st_gid == root.stat("d/f").st_gid == 100
    assert mode(root, "d/sub") == 0o2755
    assert mode(root, "d/f") == 0o644


@pytest.mark.usefixtures("shared")
def test_a_non_member_cannot_make_a_setgid_executable_in_a_setgid_directory(
    root: TargetTask, alice: TargetTask, bob: TargetTask
) -> None:
    root.mkdir("d", 0o777)
    root.chown("d", 0, 100)
    root.chmod("d", 0o2777)
    alice.close(alice.open("d/member", O_CREAT | O_WRONLY, 0o2755))
    bob.close(bob.open("d/stranger", O_CREAT | O_WRONLY, 0o2755))
    assert mode(root, "d/member") == 0o2755
    assert mode(root, "d/stranger") == 0o755


def test_the_setgid_bit_is_stripped_before_the_umask_takes_the_x(
    root: TargetTask, bob: TargetTask
) -> None:
    root.mkdir("d", 0o777)
    root.chown("d", 0, 100)
    root.chmod("d", 0o2777)
    bob.umask(0o077)
    bob.close(bob.open("d/f", O_CREAT | O_WRONLY, 0o2775))
    bob.mknod("d/node", abi.S_IFREG | 0o2775, 0)
    assert mode(root, "d/f") == 0o700
    assert mode(root, "d/node") == 0o700


def test_chmod_drops_setgid_for_a_group_the_owner_is_not_in(
    root: TargetTask, alice: TargetTask
) -> None:
    make_file(root, "f")
    root.chown("f", 1000, 1001)
    alice.chmod("f", 0o2755)
    assert mode(root, "f") == 0o755
    root.chmod("f", 0o2755)
    assert mode(root, "f") == 0o2755


# Set-id bits go when content or owner changes


def set_id_file(root: TargetTask, bits: int = 0o6777) -> None:
    make_file(root, "f", b"old")
    root.chmod("f", bits)


def test_a_write_by_a_user_drops_suid_and_executable_sgid(
    root: TargetTask, alice: TargetTask
) -> None:
    set_id_file(root)
    fd = alice.open("f", O_WRONLY, 0)
    assert mode(root, "f") == 0o6777
    alice.write(fd, b"new")
    assert mode(root, "f") == 0o777


@pytest.mark.usefixtures("every_id")
def test_a_write_by_root_keeps_set_id_bits(root: TargetTask) -> None:
    set_id_file(root)
    root.write(root.open("f", O_WRONLY, 0), b"new")
    assert mode(root, "f") == 0o6777


def test_the_writer_counts_for_set_id_bits_not_the_opener(root: TargetTask) -> None:
    set_id_file(root)
    fd = root.open("f", O_WRONLY, 0)
    heir = root.clone("heir", 0, 1000, 1000, ())
    heir.write(fd, b"new")
    assert mode(root, "f") == 0o777
    root.chmod("f", 0o6777)
    heir.fallocate(fd, 0, 0, 10)
    assert mode(root, "f") == 0o777


def test_truncating_drops_set_id_bits_by_each_of_its_ways(
    root: TargetTask, alice: TargetTask
) -> None:
    set_id_file(root)
    alice.truncate("f", 1)
    assert mode(root, "f") == 0o777
    root.chmod("f", 0o6777)
    alice.ftruncate(alice.open("f", O_WRONLY, 0), 2)
    assert mode(root, "f") == 0o777
    root.chmod("f", 0o6777)
    alice.open("f", O_WRONLY | abi.O_TRUNC, 0)
    assert mode(root, "f") == 0o777


@pytest.mark.usefixtures("every_id")
def test_chown_drops_suid_and_executable_sgid_even_for_root(root: TargetTask) -> None:
    set_id_file(root)
    root.chown("f", 5, 5)
    assert mode(root, "f") == 0o777


def test_chown_of_nothing_drops_set_id_bits_and_is_the_owners_if_there_are_any(
    root: TargetTask, alice: TargetTask
) -> None:
    set_id_file(root)
    fails_with(errno.EPERM, alice.chown, "f", -1, -1)
    root.chown("f", -1, -1)
    assert mode(root, "f") == 0o777
    alice.chown("f", -1, -1)


@pytest.mark.usefixtures("every_id")
def test_chown_keeps_the_sgid_of_what_the_group_cannot_execute_for_root(root: TargetTask) -> None:
    set_id_file(root, 0o2767)
    root.chown("f", 5, 5)
    assert mode(root, "f") == 0o2767


@pytest.mark.usefixtures("every_id")
def test_chown_of_a_directory_keeps_its_bits(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.chmod("d", 0o6755)
    root.chown("d", 5, 5)
    assert mode(root, "d") == 0o6755


# Times


def test_setting_times_needs_ownership_but_touching_only_write_permission(
    root: TargetTask, alice: TargetTask
) -> None:
    make_file(root, "f")
    root.chmod("f", 0o666)
    alice.utimensat(AT_FDCWD, "f", None, 0)
    now = (0, abi.UTIME_NOW)
    alice.utimensat(AT_FDCWD, "f", (now, now), 0)
    fails_with(errno.EPERM, alice.utimensat, AT_FDCWD, "f", ((1, 0), (1, 0)), 0)
    fails_with(errno.EPERM, alice.utimensat, AT_FDCWD, "f", (now, (0, abi.UTIME_OMIT)), 0)
    root.chmod("f", 0o644)
    fails_with(errno.EACCES, alice.utimensat, AT_FDCWD, "f", None, 0)


def test_utimensat_walks_before_it_looks_at_the_times(root: TargetTask) -> None:
    bad = ((0, 10**9), (0, 0))
    fails_with(errno.ENOENT, root.utimensat, AT_FDCWD, "missing", bad, 0)
    fails_with(errno.EINVAL, root.utimensat, AT_FDCWD, "/", bad, 0)
    fails_with(errno.EBADF, root.utimensat, 77, None, bad, 0)
    fails_with(errno.EFAULT, root.utimensat, AT_FDCWD, None, None, 0)


def test_omitting_both_times_looks_at_nothing_at_all(root: TargetTask) -> None:
    omit = (0, abi.UTIME_OMIT)
    root.utimensat(AT_FDCWD, "missing", (omit, omit), 0)


def test_o_noatime_is_the_owners(root: TargetTask, alice: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.EPERM, alice.open, "f", O_RDONLY | abi.O_NOATIME, 0)
    root.chown("f", 1000, 1000)
    alice.open("f", O_RDONLY | abi.O_NOATIME, 0)


# fs.protected_*


def test_protected_symlinks_stops_others_links_in_a_sticky_directory(
    target: Target, root: TargetTask, alice: TargetTask, bob: TargetTask, tmp: str
) -> None:
    make_file(root, "f")
    alice.symlink("/f", "tmp/link")
    bob.stat("tmp/link")
    target.set_sysctl("protected_symlinks", 1)
    fails_with(errno.EACCES, bob.stat, "tmp/link")
    fails_with(errno.EACCES, root.open, "tmp/link", O_RDONLY, 0)
    alice.stat("tmp/link")
    bob.readlink("tmp/link")
    root.symlink("/f", "tmp/roots")
    bob.stat("tmp/roots")


def test_protected_symlinks_concerns_the_last_link_only(
    target: Target, root: TargetTask, alice: TargetTask, bob: TargetTask, tmp: str
) -> None:
    root.mkdir("d", 0o755)
    alice.symlink("/d", "tmp/link")
    target.set_sysctl("protected_symlinks", 1)
    bob.stat("tmp/link/.")
    fails_with(errno.EACCES, bob.stat, "tmp/link/")


def test_protected_hardlinks_wants_the_owner_or_one_who_may_read_and_write(
    target: Target, root: TargetTask, alice: TargetTask, tmp: str
) -> None:
    make_file(root, "readable", mode=0o644)
    make_file(root, "writable")
    root.chmod("writable", 0o666)
    make_file(root, "suid")
    root.chmod("suid", 0o4777)
    alice.link("readable", "tmp/before")
    target.set_sysctl("protected_hardlinks", 1)
    fails_with(errno.EPERM, alice.link, "readable", "tmp/a")
    fails_with(errno.EPERM, alice.link, "suid", "tmp/b")
    alice.link("writable", "tmp/c")
    root.link("readable", "tmp/d")


@pytest.mark.parametrize("level", [1, 2])
def test_protected_regular_stops_o_creat_on_others_files_in_sticky_directories(
    target: Target, root: TargetTask, alice: TargetTask, bob: TargetTask, level: int
) -> None:
    root.mkdir("world", 0o777)
    root.chmod("world", 0o1777)
    root.mkdir("group", 0o777)
    root.chown("group", 0, 1000)
    root.chmod("group", 0o1770)
    for path in ("world/f", "group/f"):
        make_file(root, path)
        root.chown(path, 1001, 1001)
        root.chmod(path, 0o666)
    target.set_sysctl("protected_regular", level)
    fails_with(errno.EACCES, alice.open, "world/f", O_CREAT | O_WRONLY, 0o644)
    alice.open("world/f", O_WRONLY, 0)
    bob.open("world/f", O_CREAT | O_WRONLY, 0o644)
    if level == 2:
        fails_with(errno.EACCES, alice.open, "group/f", O_CREAT | O_WRONLY, 0o644)
    else:
        alice.open("group/f", O_CREAT | O_WRONLY, 0o644)


def test_protected_fifos_stops_o_creat_on_others_fifos(
    target: Target, root: TargetTask, alice: TargetTask, bob: TargetTask, tmp: str
) -> None:
    bob.umask(0)
    bob.mknod("tmp/fifo", abi.S_IFIFO | 0o666, 0)
    flags = O_RDWR | abi.O_NONBLOCK
    alice.close(alice.open("tmp/fifo", flags | O_CREAT, 0o644))
    target.set_sysctl("protected_fifos", 1)
    fails_with(errno.EACCES, alice.open, "tmp/fifo", flags | O_CREAT, 0o644)
    alice.close(alice.open("tmp/fifo", flags, 0))


# Nodes


def test_device_nodes_need_cap_mknod_and_whiteouts_do_not(
    root: TargetTask, alice: TargetTask, tmp: str
) -> None:
    fails_with(errno.EPERM, alice.mknod, "tmp/null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    alice.mknod("tmp/whiteout", abi.S_IFCHR, 0)
    alice.mknod("tmp/fifo", abi.S_IFIFO | 0o600, 0)
    alice.mknod("tmp/socket", abi.S_IFSOCK | 0o600, 0)
    root.mknod("tmp/null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    assert root.stat("tmp/null").st_rdev == abi.makedev(1, 3)


def test_mknod_judges_the_type_before_it_walks(root: TargetTask) -> None:
    fails_with(errno.EPERM, root.mknod, "missing/x", abi.S_IFDIR | 0o755, 0)
    fails_with(errno.EINVAL, root.mknod, "missing/x", 0o30000, 0)
    fails_with(errno.EINVAL, root.mknod, "x", abi.S_IFLNK | 0o777, 0)


def test_opening_a_socket_is_enxio_and_a_symlink_never(root: TargetTask) -> None:
    root.mknod("socket", abi.S_IFSOCK | 0o600, 0)
    fails_with(errno.ENXIO, root.open, "socket", O_RDWR, 0)


def test_xattr_names_are_judged_before_the_path(root: TargetTask) -> None:
    fails_with(errno.ERANGE, root.getxattr, "missing", "user." + "n" * 251)
    fails_with(errno.ERANGE, root.fsetxattr, 77, "", b"", 0)
    fails_with(errno.EINVAL, root.setxattr, "missing", "user.a", b"", 8)


def test_user_xattrs_follow_the_files_permissions_and_trusted_ones_hide(
    root: TargetTask, alice: TargetTask
) -> None:
    make_file(root, "f")
    root.setxattr("f", "user.a", b"1", 0)
    root.setxattr("f", "trusted.a", b"2", 0)
    assert alice.getxattr("f", "user.a") == b"1"
    fails_with(errno.EACCES, alice.setxattr, "f", "user.a", b"x", 0)
    fails_with(errno.EPERM, alice.setxattr, "f", "trusted.a", b"x", 0)
    fails_with(errno.ENODATA, alice.getxattr, "f", "trusted.a")
    assert set(root.listxattr("f")) == {b"user.a", b"trusted.a"}
    assert alice.listxattr("f") == [b"user.a"]


@pytest.mark.usefixtures("every_id")
def test_user_xattrs_are_for_files_and_directories_only(root: TargetTask) -> None:
    root.symlink("x", "link")
    root.mknod("fifo", abi.S_IFIFO | 0o666, 0)
    fails_with(errno.EPERM, root.lsetxattr, "link", "user.a", b"1", 0)
    fails_with(errno.EPERM, root.setxattr, "fifo", "user.a", b"1", 0)
    fails_with(errno.ENODATA, root.lgetxattr, "link", "user.a")
    root.lsetxattr("link", "trusted.a", b"1", 0)


def test_a_failed_create_leaves_nothing_behind(root: TargetTask, alice: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.EACCES, alice.open, "d/f", O_CREAT | O_WRONLY, 0o644)
    assert not exists(root, "d/f")


def test_a_file_created_without_write_permission_is_still_open_for_writing(
    root: TargetTask, alice: TargetTask, tmp: str
) -> None:
    fd = alice.open("tmp/f", O_CREAT | O_WRONLY, 0o400)
    assert alice.write(fd, b"x") == 1
    fails_with(errno.EACCES, alice.open, "tmp/f", O_WRONLY, 0)
