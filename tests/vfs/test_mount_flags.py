"""Mount and superblock flags: what each forbids, where it is kept, how a remount changes it."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    bind,
    flags_of,
    is_read_only,
    not_in_a_user_namespace,
    rbind,
    remount,
    remount_bind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    AT_FDCWD,
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
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SILENT,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    O_CREAT,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
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
)

# What statfs shows of a mount with this flag; one without any of atime's is relatime.
SHOWN = {
    "nothing": (0, ST_RELATIME),
    "rdonly": (MS_RDONLY, ST_RDONLY | ST_RELATIME),
    "nosuid": (MS_NOSUID, ST_NOSUID | ST_RELATIME),
    "nodev": (MS_NODEV, ST_NODEV | ST_RELATIME),
    "noexec": (MS_NOEXEC, ST_NOEXEC | ST_RELATIME),
    "nosymfollow": (MS_NOSYMFOLLOW, ST_NOSYMFOLLOW | ST_RELATIME),
    "noatime": (MS_NOATIME, ST_NOATIME),
    "relatime": (MS_RELATIME, ST_RELATIME),
    "strictatime": (MS_STRICTATIME, 0),
    "nodiratime": (MS_NODIRATIME, ST_NODIRATIME | ST_RELATIME),
    "noatime_nodiratime": (MS_NOATIME | MS_NODIRATIME, ST_NOATIME | ST_NODIRATIME),
    "noatime_relatime": (MS_NOATIME | MS_RELATIME, ST_NOATIME),
    "strictatime_beats_relatime": (MS_STRICTATIME | MS_RELATIME, 0),
    "strictatime_beats_noatime": (MS_STRICTATIME | MS_NOATIME, 0),
    "silent": (MS_SILENT, ST_RELATIME),
    "rec": (MS_REC, ST_RELATIME),
}
SHOWN_IDS = list(SHOWN)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it, which has a file ``f``."""
    root.mkdir("mnt", 0o755)
    tmpfs(root, "mnt")
    make_file(root, "mnt/f", b"on top")
    return "mnt"


@pytest.fixture
def second(root: TargetTask, mnt: str) -> str:
    """``/second``, a bind of ``/mnt``."""
    root.mkdir("second", 0o755)
    bind(root, "mnt", "second")
    return "second"


# What is shown


@pytest.mark.parametrize("flags, shown", SHOWN.values(), ids=SHOWN_IDS)
def test_statfs_shows_a_new_mounts_flags(root: TargetTask, flags: int, shown: int) -> None:
    root.mkdir("mnt", 0o755)
    tmpfs(root, "mnt", flags)
    assert root.statfs("mnt").f_flags == ST_VALID | shown


@pytest.mark.parametrize("flags, shown", SHOWN.values(), ids=SHOWN_IDS)
def test_a_bind_remount_sets_exactly_the_flags_it_names(
    root: TargetTask, second: str, flags: int, shown: int
) -> None:
    remount_bind(root, "second", flags)
    assert flags_of(root, "second") == shown
    assert flags_of(root, "mnt") == ST_RELATIME


@pytest.mark.parametrize("flags, shown", SHOWN.values(), ids=SHOWN_IDS)
def test_a_remount_sets_the_flags_of_the_mount_it_names_only(
    root: TargetTask, second: str, flags: int, shown: int
) -> None:
    remount(root, "second", flags)
    assert flags_of(root, "second") == shown
    # A superblock that is read-only is shown so through each of its mounts.
    assert flags_of(root, "mnt") == ST_RELATIME | (ST_RDONLY if flags & MS_RDONLY else 0)


def test_all_flags_together_are_shown_together(root: TargetTask) -> None:
    root.mkdir("mnt", 0o755)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NOSYMFOLLOW | MS_RDONLY
    tmpfs(root, "mnt", flags)
    shown = ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_NOATIME
    assert flags_of(root, "mnt") == shown | ST_NOSYMFOLLOW | ST_RDONLY
    assert flags_of(root, "/") == ST_RELATIME


def test_synchronous_is_the_superblocks_and_shown_through_every_mount(
    root: TargetTask, second: str
) -> None:
    remount(root, "mnt", MS_SYNCHRONOUS)
    assert flags_of(root, "mnt") == ST_RELATIME | ST_SYNCHRONOUS
    assert flags_of(root, "second") == ST_RELATIME | ST_SYNCHRONOUS
    remount(root, "second")
    assert flags_of(root, "mnt") == ST_RELATIME


def test_a_new_mount_can_be_synchronous(root: TargetTask) -> None:
    root.mkdir("mnt", 0o755)
    tmpfs(root, "mnt", MS_SYNCHRONOUS)
    assert flags_of(root, "mnt") == ST_RELATIME | ST_SYNCHRONOUS


@pytest.mark.parametrize("flag", [MS_DIRSYNC, MS_LAZYTIME, MS_SYNCHRONOUS])
def test_superblock_flags_have_no_part_in_a_bind_remount(
    root: TargetTask, mnt: str, flag: int
) -> None:
    remount_bind(root, "mnt", flag)
    assert flags_of(root, "mnt") == ST_RELATIME


@pytest.mark.parametrize("flag", [MS_DIRSYNC, MS_LAZYTIME, MS_MANDLOCK])
def test_superblock_flags_without_an_effect_here_are_taken(root: TargetTask, flag: int) -> None:
    root.mkdir("mnt", 0o755)
    tmpfs(root, "mnt", flag)
    make_file(root, "mnt/f", b"data")
    remount(root, "mnt", flag)
    assert contents(root, "mnt/f") == b"data"


def test_a_bind_has_the_flags_of_what_it_was_made_from_and_not_those_asked_for(
    root: TargetTask, mnt: str
) -> None:
    remount_bind(root, "mnt", MS_NOEXEC | MS_NOATIME)
    root.mkdir("copy", 0o755)
    bind(root, "mnt", "copy", MS_RDONLY | MS_NOSUID)
    assert flags_of(root, "copy") == ST_NOEXEC | ST_NOATIME


def test_a_recursive_bind_copies_the_flags_of_each_mount(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    tmpfs(root, "mnt/d", MS_NODEV)
    remount_bind(root, "mnt", MS_NOEXEC)
    root.mkdir("copy", 0o755)
    rbind(root, "mnt", "copy")
    assert flags_of(root, "copy") == ST_NOEXEC | ST_RELATIME
    assert flags_of(root, "copy/d") == ST_NODEV | ST_RELATIME


def test_a_bind_remount_with_rec_does_not_reach_the_mounts_below(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("mnt/d", 0o755)
    tmpfs(root, "mnt/d")
    remount_bind(root, "mnt", MS_REC | MS_RDONLY)
    assert is_read_only(root, "mnt")
    assert not is_read_only(root, "mnt/d")


def test_a_flag_of_one_namespaces_mount_is_not_its_copys(root: TargetTask, mnt: str) -> None:
    other = root.clone("other", abi.CLONE_NEWNS)
    remount_bind(other, "mnt", MS_RDONLY | MS_NOEXEC)
    assert flags_of(other, "mnt") == ST_RDONLY | ST_NOEXEC | ST_RELATIME
    assert flags_of(root, "mnt") == ST_RELATIME


# In mountinfo: what the mount has, and what the superblock has.
TEXT = {
    "rdonly": (MS_RDONLY, {"ro", "relatime"}, {"ro"}),
    "nosuid": (MS_NOSUID, {"rw", "nosuid", "relatime"}, {"rw"}),
    "nodev": (MS_NODEV, {"rw", "nodev", "relatime"}, {"rw"}),
    "noexec": (MS_NOEXEC, {"rw", "noexec", "relatime"}, {"rw"}),
    "nosymfollow": (MS_NOSYMFOLLOW, {"rw", "nosymfollow", "relatime"}, {"rw"}),
    "noatime": (MS_NOATIME, {"rw", "noatime"}, {"rw"}),
    "strictatime": (MS_STRICTATIME, {"rw"}, {"rw"}),
    "nodiratime": (MS_NODIRATIME, {"rw", "nodiratime", "relatime"}, {"rw"}),
    "synchronous": (MS_SYNCHRONOUS, {"rw", "relatime"}, {"rw", "sync"}),
    "dirsync": (MS_DIRSYNC, {"rw", "relatime"}, {"rw", "dirsync"}),
    "lazytime": (MS_LAZYTIME, {"rw", "relatime"}, {"rw", "lazytime"}),
    "mandlock": (MS_MANDLOCK, {"rw", "relatime"}, {"rw", "mand"}),
}


def options_in_mountinfo(task: TargetTask, path: str) -> tuple[set[str], set[str]]:
    lines = [line.split() for line in task.mountinfo().decode().splitlines()]
    found = [line for line in lines if line[4] == f"/{path}"][-1]
    return set(found[5].split(",")), set(found[-1].split(","))


@pytest.mark.parametrize("flags, mount, superblock", TEXT.values(), ids=list(TEXT))
def test_mountinfo_shows_a_flag_with_the_mount_or_with_the_superblock(
    root: TargetTask, flags: int, mount: set[str], superblock: set[str]
) -> None:
    root.mkdir("mnt", 0o755)
    tmpfs(root, "mnt", flags)
    assert options_in_mountinfo(root, "mnt") == (mount, superblock)


def test_mountinfo_shows_a_bind_remount_with_the_mount_only(root: TargetTask, second: str) -> None:
    remount_bind(root, "second", MS_RDONLY | MS_SYNCHRONOUS | MS_LAZYTIME)
    assert options_in_mountinfo(root, "second") == ({"ro", "relatime"}, {"rw"})
    assert options_in_mountinfo(root, "mnt") == ({"rw", "relatime"}, {"rw"})


def test_mountinfo_shows_a_remount_with_the_superblock_of_every_mount(
    root: TargetTask, second: str
) -> None:
    # A superblock is DIRSYNC from its start or never.
    remount(root, "second", MS_RDONLY | MS_SYNCHRONOUS | MS_DIRSYNC | MS_LAZYTIME)
    shown = {"ro", "sync", "lazytime"}
    assert options_in_mountinfo(root, "second") == ({"ro", "relatime"}, shown)
    assert options_in_mountinfo(root, "mnt") == ({"rw", "relatime"}, shown)


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
    root: TargetTask, second: str
) -> None:
    remount(root, "mnt", MS_RDONLY)
    every_change_is(errno.EROFS, root, "mnt")
    every_change_is(errno.EROFS, root, "second")
    assert contents(root, "mnt/f") == b"on top"


def test_a_read_only_bind_refuses_every_change_and_the_other_mount_does_not(
    root: TargetTask, second: str
) -> None:
    remount_bind(root, "second", MS_RDONLY)
    every_change_is(errno.EROFS, root, "second")
    root.mkdir("mnt/new", 0o755)
    assert exists(root, "second/new")


def test_a_mount_made_read_only_has_a_read_only_superblock_too(root: TargetTask) -> None:
    root.mkdir("mnt", 0o755)
    tmpfs(root, "mnt", MS_RDONLY)
    remount_bind(root, "mnt")
    assert is_read_only(root, "mnt")
    remount(root, "mnt")
    assert not is_read_only(root, "mnt")


def test_a_writable_superblock_does_not_make_a_read_only_mount_writable(
    root: TargetTask, second: str
) -> None:
    remount_bind(root, "second", MS_RDONLY)
    remount(root, "mnt")
    assert is_read_only(root, "second")
    assert not is_read_only(root, "mnt")


def test_a_remount_makes_the_named_mount_and_the_superblock_writable_and_no_other_mount(
    root: TargetTask, second: str
) -> None:
    remount_bind(root, "second", MS_RDONLY)
    remount(root, "mnt", MS_RDONLY)
    remount(root, "mnt")
    assert not is_read_only(root, "mnt")
    assert is_read_only(root, "second")
    remount_bind(root, "second")
    assert not is_read_only(root, "second")


def test_an_existing_name_on_a_read_only_mount_is_eexist_first(root: TargetTask, mnt: str) -> None:
    remount(root, "mnt", MS_RDONLY)
    fails_with(errno.EEXIST, root.mkdir, "mnt/f", 0o755)
    fails_with(errno.EROFS, root.unlink, "mnt/missing")
    fails_with(errno.EROFS, root.unlink, "mnt/" + "n" * 256)
    root.close(root.open("mnt/f", O_CREAT | O_RDONLY, 0o644))


def test_a_remount_read_only_is_ebusy_while_a_file_is_open_for_writing(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt/f", O_WRONLY, 0)
    fails_with(errno.EBUSY, remount, root, "mnt", MS_RDONLY)
    fails_with(errno.EBUSY, remount_bind, root, "mnt", MS_RDONLY)
    root.close(fd)
    remount_bind(root, "mnt", MS_RDONLY)


def test_a_writer_through_one_mount_keeps_the_superblock_writable_and_not_the_other_mount(
    root: TargetTask, second: str
) -> None:
    fd = root.open("mnt/f", O_WRONLY, 0)
    remount_bind(root, "second", MS_RDONLY)
    fails_with(errno.EBUSY, remount, root, "second", MS_RDONLY)
    root.write(fd, b"written")
    root.close(fd)
    assert contents(root, "second/f").startswith(b"written")


def test_an_unlinked_file_open_for_writing_keeps_a_mount_writable(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt/f", O_RDWR, 0)
    root.unlink("mnt/f")
    fails_with(errno.EBUSY, remount_bind, root, "mnt", MS_RDONLY)
    fails_with(errno.EBUSY, remount, root, "mnt", MS_RDONLY)
    root.close(fd)
    remount(root, "mnt", MS_RDONLY)


def test_an_unlinked_file_open_for_reading_keeps_the_superblock_writable_and_not_the_mount(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt/f", O_RDONLY, 0)
    root.unlink("mnt/f")
    remount_bind(root, "mnt", MS_RDONLY)
    remount_bind(root, "mnt")
    fails_with(errno.EBUSY, remount, root, "mnt", MS_RDONLY)
    root.close(fd)


def test_a_failed_bind_remount_leaves_the_other_flags_alone(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt/f", O_WRONLY, 0)
    fails_with(errno.EBUSY, remount_bind, root, "mnt", MS_RDONLY | MS_NOEXEC)
    assert flags_of(root, "mnt") == ST_RELATIME
    fails_with(errno.EBUSY, remount, root, "mnt", MS_RDONLY | MS_NOEXEC)
    assert flags_of(root, "mnt") == ST_RELATIME
    root.close(fd)


def test_a_failed_remount_for_its_options_leaves_the_mounts_flags_alone(
    root: TargetTask, mnt: str
) -> None:
    fails_with(errno.EINVAL, remount, root, "mnt", MS_NOEXEC, "no_such_option")
    assert flags_of(root, "mnt") == ST_RELATIME


def test_a_bind_remount_does_not_read_its_options(root: TargetTask, mnt: str) -> None:
    root.mount(None, "mnt", None, MS_REMOUNT | MS_BIND | MS_NOEXEC, "no_such_option")
    assert flags_of(root, "mnt") == ST_NOEXEC | ST_RELATIME


def test_a_remount_changes_the_options_of_the_filesystem(root: TargetTask, second: str) -> None:
    remount(root, "second", 0, "size=1m")
    size = root.statfs("mnt").f_blocks * root.statfs("mnt").f_bsize
    assert size == 1 << 20


def test_remounting_what_is_no_mounts_root_is_einval(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    fails_with(errno.EINVAL, remount, root, "mnt/d")
    fails_with(errno.EINVAL, remount_bind, root, "mnt/d")
    fails_with(errno.EINVAL, remount, root, "mnt/f")


def test_remounting_a_mount_of_another_namespace_is_einval(root: TargetTask, mnt: str) -> None:
    fd = root.open("mnt", abi.O_PATH, 0)
    other = root.clone("other", abi.CLONE_NEWNS)
    other.fchdir(fd)
    fails_with(errno.EINVAL, remount, other, ".")
    fails_with(errno.EINVAL, remount_bind, other, ".")
    root.close(fd)


def test_remounting_needs_cap_sys_admin(root: TargetTask, alice: TargetTask, mnt: str) -> None:
    fails_with(errno.EPERM, remount, alice, "mnt")
    fails_with(errno.EPERM, remount_bind, alice, "mnt", MS_RDONLY)
    fails_with(errno.ENOENT, remount, alice, "missing")


def test_devices_and_fifos_on_a_read_only_mount_can_be_opened_for_writing(
    root: TargetTask, mnt: str
) -> None:
    root.mknod("mnt/fifo", abi.S_IFIFO | 0o600, 0)
    remount(root, "mnt", MS_RDONLY)
    root.close(root.open("mnt/fifo", O_RDWR, 0))
    root.access("mnt/fifo", abi.W_OK)


def test_truncating_on_a_read_only_mount_asks_for_kind_and_permission_first(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    root.mkdir("mnt/d", 0o755)
    root.mknod("mnt/fifo", abi.S_IFIFO | 0o666, 0)
    remount_bind(root, "mnt", MS_RDONLY)
    fails_with(errno.EISDIR, alice.truncate, "mnt/d", 0)
    fails_with(errno.EINVAL, alice.truncate, "mnt/fifo", 0)
    fails_with(errno.EACCES, alice.truncate, "mnt/f", 0)
    fails_with(errno.EROFS, root.truncate, "mnt/f", 0)


def test_a_descriptor_decides_by_its_mount_whether_attributes_may_change(
    root: TargetTask, second: str
) -> None:
    remount_bind(root, "second", MS_RDONLY)
    writable = root.open("mnt/f", O_RDONLY, 0)
    read_only = root.open("second/f", O_RDONLY, 0)
    root.fchmod(writable, 0o600)
    fails_with(errno.EROFS, root.fchmod, read_only, 0o600)
    fails_with(errno.EROFS, root.fsetxattr, read_only, "user.a", b"", 0)
    root.close(writable)
    root.close(read_only)


# The other flags


def test_a_nodev_mount_refuses_devices_and_no_fifos(root: TargetTask, mnt: str) -> None:
    not_in_a_user_namespace(root)
    root.mknod("mnt/null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    root.mknod("mnt/fifo", abi.S_IFIFO | 0o666, 0)
    remount_bind(root, "mnt", MS_NODEV)
    fails_with(errno.EACCES, root.open, "mnt/null", O_RDONLY, 0)
    root.close(root.open("mnt/null", abi.O_PATH, 0))
    root.close(root.open("mnt/fifo", O_RDWR, 0))


def test_a_device_that_one_mount_refuses_another_opens(root: TargetTask, second: str) -> None:
    not_in_a_user_namespace(root)
    root.mknod("mnt/null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    remount_bind(root, "second", MS_NODEV)
    fails_with(errno.EACCES, root.open, "second/null", O_RDONLY, 0)
    try:
        root.close(root.open("mnt/null", O_RDONLY, 0))
    except OSError as error:
        # A target without the driver says so; nodev's answer is another one.
        assert error.errno == errno.ENXIO


def test_a_noexec_mount_fails_access_x_ok_for_files_and_not_for_directories(
    root: TargetTask, mnt: str
) -> None:
    make_file(root, "mnt/run", mode=0o755)
    root.access("mnt/run", abi.X_OK)
    remount_bind(root, "mnt", MS_NOEXEC)
    fails_with(errno.EACCES, root.access, "mnt/run", abi.X_OK)
    root.access("mnt", abi.X_OK)


def test_a_nosymfollow_mount_follows_none_of_its_symlinks(root: TargetTask, mnt: str) -> None:
    root.symlink("f", "mnt/link")
    root.symlink("mnt/f", "outside")
    remount_bind(root, "mnt", MS_NOSYMFOLLOW)
    fails_with(errno.ELOOP, root.stat, "mnt/link")
    fails_with(errno.ELOOP, root.open, "mnt/link", O_RDONLY, 0)
    assert root.readlink("mnt/link") == b"f"
    assert contents(root, "outside") == b"on top"
