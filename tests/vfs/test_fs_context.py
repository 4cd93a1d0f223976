"""Contexts of mounts: fsopen, fsconfig and fspick, their log, their order of errors, and what a
remount may change.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from vfs_support import fails_with, make_file

from harness.testbed.target import TargetTask
from vfs import VirtualFilesystem, abi
from vfs.dentry import Dentry
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode
from vfs.superblock import DCACHE_PINNED, FilesystemType, Superblock
from vfs.syscalls.fs_context import context_of
from vfs.task import Task
from vfs.user_namespace import INITIAL_USER_NAMESPACE

SET_FLAG, SET_STRING, SET_BINARY = (
    abi.FSCONFIG_SET_FLAG,
    abi.FSCONFIG_SET_STRING,
    abi.FSCONFIG_SET_BINARY,
)
SET_PATH, SET_PATH_EMPTY, SET_FD = (
    abi.FSCONFIG_SET_PATH,
    abi.FSCONFIG_SET_PATH_EMPTY,
    abi.FSCONFIG_SET_FD,
)
CREATE, CREATE_EXCL, RECONFIGURE = (
    abi.FSCONFIG_CMD_CREATE,
    abi.FSCONFIG_CMD_CREATE_EXCL,
    abi.FSCONFIG_CMD_RECONFIGURE,
)
ANON_INODE_FS_MAGIC = 0x09041934

CLOEXEC = 1


def messages(task: TargetTask, fd: int) -> list[bytes]:
    """What is in the log, which is empty then."""
    found = []
    while True:
        try:
            found.append(task.read(fd, 1000))
        except OSError as error:
            assert error.errno == errno.ENODATA
            return found


def flag(task: TargetTask, fd: int, key: str) -> None:
    task.fsconfig(fd, SET_FLAG, key, None, 0)


def string(task: TargetTask, fd: int, key: str, value: str) -> None:
    task.fsconfig(fd, SET_STRING, key, value, 0)


def command(task: TargetTask, fd: int, number: int) -> None:
    task.fsconfig(fd, number, None, None, 0)


def picked(task: TargetTask, path: str = "mnt") -> int:
    fd = task.fspick(abi.AT_FDCWD, path, 0)
    assert isinstance(fd, int)
    return fd


def superblock_flags(task: TargetTask, path: str = "mnt") -> int:
    """Of a mount that has none of these flags itself."""
    flags = task.statfs(path).f_flags
    assert isinstance(flags, int)
    return flags & (abi.ST_RDONLY | abi.ST_SYNCHRONOUS | abi.ST_MANDLOCK)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """A tmpfs of ten pages and twenty inodes."""
    root.mkdir("mnt", 0o755)
    root.mount("none", "mnt", "tmpfs", 0, "size=40k,nr_inodes=20")
    return "mnt"


# The descriptor


@pytest.mark.usefixtures("every_id")
def test_the_descriptor_is_an_anonymous_file_of_no_type(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    attributes = root.fstat(fd)
    assert (attributes.st_mode, attributes.st_size, attributes.st_uid) == (0o600, 0, 0)
    assert root.fstatfs(fd).f_type == ANON_INODE_FS_MAGIC
    assert root.fcntl(fd, abi.F_GETFL, 0) & abi.O_ACCMODE == abi.O_RDWR
    assert root.poll(fd, abi.POLLIN | abi.POLLOUT) == abi.POLLIN | abi.POLLOUT
    fails_with(errno.ESPIPE, root.lseek, fd, 0, abi.SEEK_SET)
    fails_with(errno.ESPIPE, root.pread64, fd, 10, 0)
    fails_with(errno.EINVAL, root.write, fd, b"x")
    fails_with(errno.EINVAL, root.ftruncate, fd, 0)
    fails_with(errno.ENOTDIR, root.fchdir, fd)
    fails_with(errno.EOPNOTSUPP, root.fchmod, fd, 0o777)
    fails_with(errno.EOPNOTSUPP, root.fchown, fd, 1, 1)
    fails_with(errno.EOPNOTSUPP, root.preadv2, fd, (10,), -1, abi.RWF_NOWAIT)
    assert root.fstat(fd).st_mode == 0o600


def test_anonymous_files_share_one_inode(root: TargetTask) -> None:
    one, other = root.fstat(root.fsopen("tmpfs", 0)), root.fstat(root.fsopen("tmpfs", 0))
    assert (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def test_cloexec_is_what_was_asked_for(root: TargetTask, mnt: str) -> None:
    assert root.fcntl(root.fsopen("tmpfs", 0), abi.F_GETFD, 0) == 0
    assert root.fcntl(root.fsopen("tmpfs", CLOEXEC), abi.F_GETFD, 0) == abi.FD_CLOEXEC
    assert root.fcntl(root.fspick(abi.AT_FDCWD, mnt, 0), abi.F_GETFD, 0) == 0
    picked_too = root.fspick(abi.AT_FDCWD, mnt, CLOEXEC)
    assert root.fcntl(picked_too, abi.F_GETFD, 0) == abi.FD_CLOEXEC


def test_fsopen_looks_at_flags_then_name_then_type(root: TargetTask) -> None:
    fails_with(errno.EINVAL, root.fsopen, "nonsense", 2)
    fails_with(errno.ENODEV, root.fsopen, "nonsense", 0)
    fails_with(errno.ENODEV, root.fsopen, "", 0)
    fails_with(errno.ENODEV, root.fsopen, "x" * 4095, 0)
    fails_with(errno.EINVAL, root.fsopen, "x" * 4096, 0)


def test_without_a_free_descriptor_nothing_is_opened(root: TargetTask, mnt: str) -> None:
    root.setrlimit_nofile(0)
    fails_with(errno.ENODEV, root.fsopen, "nonsense", 0)
    fails_with(errno.EMFILE, root.fsopen, "tmpfs", 0)
    fails_with(errno.EMFILE, root.fspick, abi.AT_FDCWD, mnt, 0)
    fails_with(errno.ENOENT, root.fspick, abi.AT_FDCWD, "missing", 0)
    root.umount2(mnt, 0)


def test_fsopen_and_fspick_need_the_administrator(root: TargetTask, alice: TargetTask) -> None:
    fails_with(errno.EPERM, alice.fsopen, "nonsense", 2)
    fails_with(errno.EPERM, alice.fspick, abi.AT_FDCWD, "missing", 64)


# The log


def test_a_message_is_read_once_and_whole(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    fails_with(errno.EINVAL, flag, root, fd, "foo")
    fails_with(errno.EINVAL, flag, root, fd, "bar")
    first = b"e tmpfs: Unknown parameter 'foo'\n"
    fails_with(errno.EMSGSIZE, root.read, fd, len(first) - 1)
    fails_with(errno.EMSGSIZE, root.read, fd, 0)
    assert root.read(fd, len(first)) == first
    assert messages(root, fd) == [b"e tmpfs: Unknown parameter 'bar'\n"]


def test_a_vector_takes_a_message_for_each_buffer_that_is_filled(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    for name in ("foo", "bar", "baz"):
        fails_with(errno.EINVAL, flag, root, fd, name)
    one = b"e tmpfs: Unknown parameter 'foo'\n"
    two = one.replace(b"foo", b"bar")
    fails_with(errno.EMSGSIZE, root.preadv2, fd, (3, 1000), -1, 0)
    assert root.preadv2(fd, (len(one), len(two), 5), -1, 0) == one + two
    assert root.preadv2(fd, (1000, 1000), -1, 0) == one.replace(b"foo", b"baz")


def test_the_log_keeps_the_last_eight_messages(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    for number in range(12):
        fails_with(errno.EINVAL, flag, root, fd, f"k{number}")
    assert messages(root, fd) == [
        b"e tmpfs: Unknown parameter 'k%d'\n" % number for number in range(4, 12)
    ]


def test_a_duplicate_reads_the_same_log(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    other = root.dup(fd)
    fails_with(errno.EINVAL, flag, root, fd, "foo")
    root.close(fd)
    assert messages(root, other) == [b"e tmpfs: Unknown parameter 'foo'\n"]


# fsconfig's arguments

# Each is refused before the descriptor is looked at.
WRONG_ARGUMENTS = [
    (SET_FLAG, None, None, 0), (SET_FLAG, "a", "b", 0), (SET_FLAG, "a", None, 1),
    (SET_STRING, "a", None, 0), (SET_STRING, None, "a", 0), (SET_STRING, "a", "b", 1),
    (SET_BINARY, "a", b"b", 0), (SET_BINARY, "a", b"b", -1), (SET_BINARY, None, b"b", 1),
    (SET_BINARY, "a", b"b", (1 << 20) + 1), (SET_PATH, "a", "/", -1), (SET_PATH, "a", None, 0),
    (SET_PATH_EMPTY, "a", "", -1), (SET_FD, "a", None, -1), (SET_FD, "a", "b", 0),
    (SET_FD, None, None, 0), (CREATE, "a", None, 0), (CREATE, None, "a", 0),
    (CREATE, None, None, 1), (CREATE_EXCL, "a", None, 0), (RECONFIGURE, "a", None, 0),
    (RECONFIGURE, None, None, 1),
]  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG_ARGUMENTS, ids=repr)
def test_arguments_that_a_command_does_not_take_come_before_the_descriptor(
    root: TargetTask, arguments: tuple[Any, ...]
) -> None:
    fd = root.fsopen("tmpfs", 0)
    fails_with(errno.EINVAL, root.fsconfig, fd, *arguments)
    fails_with(errno.EINVAL, root.fsconfig, 99, *arguments)
    assert messages(root, fd) == []


def test_an_unknown_command_comes_before_the_descriptor_but_not_a_negative_one(
    root: TargetTask,
) -> None:
    fails_with(errno.EOPNOTSUPP, root.fsconfig, 99, 9, None, None, 0)
    fails_with(errno.EOPNOTSUPP, root.fsconfig, 99, 100, "a", "b", 1)
    fails_with(errno.EINVAL, root.fsconfig, -1, 9, None, None, 0)


def test_the_descriptor_must_be_a_context(root: TargetTask) -> None:
    path_only = root.open("/", abi.O_PATH)
    directory = root.open("/", abi.O_RDONLY)
    fails_with(errno.EBADF, root.fsconfig, 99, CREATE, None, None, 0)
    fails_with(errno.EBADF, root.fsconfig, path_only, CREATE, None, None, 0)
    fails_with(errno.EINVAL, root.fsconfig, directory, CREATE, None, None, 0)
    # Before a value that is wrong in itself.
    fails_with(errno.EBADF, root.fsconfig, 99, SET_PATH, "a", "", abi.AT_FDCWD)
    fails_with(errno.EINVAL, root.fsconfig, directory, SET_FD, "a", None, 99)


def test_values_are_fetched_before_they_are_judged(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    fails_with(errno.ENOENT, root.fsconfig, fd, SET_PATH, "a", "", abi.AT_FDCWD)
    fails_with(errno.ENAMETOOLONG, root.fsconfig, fd, SET_PATH, "a", "x" * 4096, abi.AT_FDCWD)
    fails_with(errno.EBADF, root.fsconfig, fd, SET_FD, "a", None, 99)
    fails_with(errno.EINVAL, root.fsconfig, fd, SET_FLAG, "k" * 256, None, 0)
    fails_with(errno.EINVAL, root.fsconfig, fd, SET_STRING, "size", "1" * 256, 0)
    assert messages(root, fd) == []
    root.fsconfig(fd, SET_STRING, "size", "1" * 255, 0)
    command(root, fd, CREATE)
    fails_with(errno.EBADF, root.fsconfig, fd, SET_FD, "a", None, 99)


def test_parameters_of_every_kind_reach_the_filesystem(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    somewhere = root.open("/", abi.O_PATH)
    for arguments in (
        (SET_BINARY, "size", b"4k", 2),
        (SET_PATH, "size", "/missing", 99),
        (SET_PATH_EMPTY, "size", "", abi.AT_FDCWD),
        (SET_FD, "size", None, somewhere),
    ):
        fails_with(errno.EINVAL, root.fsconfig, fd, *arguments)
        assert messages(root, fd) == [b"e tmpfs: Bad value for 'size'\n"]
    fails_with(errno.EINVAL, root.fsconfig, fd, SET_BINARY, "foo", b"x", 1)
    assert messages(root, fd) == [b"e tmpfs: Unknown parameter 'foo'\n"]


# Parameters


def test_each_parameter_is_judged_when_it_is_given(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    string(root, fd, "size", "1m")
    fails_with(errno.EINVAL, string, root, fd, "size", "9x")
    assert messages(root, fd) == [b"e tmpfs: Bad value for 'size'\n"]
    command(root, fd, CREATE)


def test_superblock_flags_are_taken_with_any_value(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    flag(root, fd, "ro")
    string(root, fd, "rw", "")
    string(root, fd, "sync", "no")
    root.fsconfig(fd, SET_BINARY, "async", b"ab", 2)
    root.fsconfig(fd, SET_FD, "mand", None, fd)
    root.fsconfig(fd, SET_PATH, "nomand", "/missing", abi.AT_FDCWD)
    for name in ("silent", "posixacl", "nosuid", "remount", ""):
        fails_with(errno.EINVAL, flag, root, fd, name)
        assert messages(root, fd) == [b"e tmpfs: Unknown parameter '%s'\n" % name.encode()]


def test_the_source_is_one_string(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    fails_with(errno.EINVAL, flag, root, fd, "source")
    fails_with(errno.EINVAL, root.fsconfig, fd, SET_BINARY, "source", b"x", 1)
    string(root, fd, "source", "")
    fails_with(errno.EINVAL, string, root, fd, "source", "x")
    assert messages(root, fd) == [
        b"e Non-string source\n", b"e Non-string source\n", b"e Multiple sources\n",
    ]  # fmt: skip


# Phases


def test_a_context_is_created_once(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    fails_with(errno.EBUSY, command, root, fd, RECONFIGURE)
    flag(root, fd, "ro")
    command(root, fd, CREATE)
    fails_with(errno.EBUSY, flag, root, fd, "ro")
    fails_with(errno.EBUSY, flag, root, fd, "foo")
    fails_with(errno.EBUSY, command, root, fd, CREATE)
    fails_with(errno.EBUSY, command, root, fd, CREATE_EXCL)
    fails_with(errno.EBUSY, command, root, fd, RECONFIGURE)
    assert messages(root, fd) == []


def test_a_tmpfs_is_always_exclusive(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    command(root, fd, CREATE_EXCL)
    fails_with(errno.EBUSY, flag, root, fd, "ro")


def test_a_user_may_set_parameters_but_not_create(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    user = root.clone("user", 0, 1000, 1000, ())
    string(user, fd, "size", "1m")
    fails_with(errno.EPERM, command, user, fd, CREATE)
    fails_with(errno.EPERM, command, user, fd, CREATE)
    assert messages(user, fd) == []
    command(root, fd, CREATE)


def test_a_user_who_reconfigures_spoils_the_context(root: TargetTask, mnt: str) -> None:
    fd = picked(root)
    user = root.clone("user", 0, 1000, 1000, ())
    flag(user, fd, "ro")
    fails_with(errno.EPERM, command, user, fd, RECONFIGURE)
    fails_with(errno.EBUSY, command, root, fd, RECONFIGURE)
    fails_with(errno.EBUSY, flag, root, fd, "ro")
    assert superblock_flags(root) == 0


# Reconfiguring


def test_a_picked_context_reconfigures_again_and_again(root: TargetTask, mnt: str) -> None:
    fd = picked(root)
    fails_with(errno.EBUSY, command, root, fd, CREATE)
    fails_with(errno.EBUSY, command, root, fd, CREATE_EXCL)
    flag(root, fd, "ro")
    flag(root, fd, "sync")
    assert superblock_flags(root) == 0
    command(root, fd, RECONFIGURE)
    assert superblock_flags(root) == abi.ST_RDONLY | abi.ST_SYNCHRONOUS
    fails_with(errno.EROFS, root.mkdir, "mnt/d", 0o755)
    flag(root, fd, "rw")
    command(root, fd, RECONFIGURE)
    # What the first round spoke of and the second did not is off.
    assert superblock_flags(root) == 0
    root.mkdir("mnt/d", 0o755)
    command(root, fd, RECONFIGURE)


def test_flags_that_were_not_spoken_of_stay(root: TargetTask, mnt: str) -> None:
    first = picked(root)
    flag(root, first, "mand")
    flag(root, first, "ro")
    command(root, first, RECONFIGURE)
    second = picked(root)
    flag(root, second, "sync")
    command(root, second, RECONFIGURE)
    assert superblock_flags(root) == abi.ST_MANDLOCK | abi.ST_RDONLY | abi.ST_SYNCHRONOUS


def test_each_round_has_parameters_of_its_own(root: TargetTask, mnt: str) -> None:
    fd = picked(root)
    string(root, fd, "source", "x")
    string(root, fd, "size", "80k")
    command(root, fd, RECONFIGURE)
    assert root.statfs(mnt).f_blocks == 20
    second = picked(root)
    string(root, second, "size", "40k")
    command(root, second, RECONFIGURE)
    string(root, fd, "source", "y")
    command(root, fd, RECONFIGURE)
    assert root.statfs(mnt).f_blocks == 10


def test_dirsync_is_for_new_mounts_only(root: TargetTask, mnt: str) -> None:
    fd = picked(root)
    flag(root, fd, "dirsync")
    fails_with(errno.EINVAL, command, root, fd, RECONFIGURE)
    fails_with(errno.EBUSY, flag, root, fd, "ro")
    fails_with(errno.EBUSY, command, root, fd, RECONFIGURE)
    fails_with(errno.EINVAL, root.mount, None, mnt, None, abi.MS_REMOUNT, "dirsync")
    root.mount(None, mnt, None, abi.MS_REMOUNT | abi.MS_DIRSYNC, "")


def test_a_refused_reconfiguration_changes_nothing(root: TargetTask, mnt: str) -> None:
    make_file(root, "mnt/f", bytes(16384))
    for key, value, message in (
        ("size", "4k", b"e tmpfs: Too small a size for current use\n"),
        ("nr_inodes", "1", b"e tmpfs: Too few inodes for current use\n"),
    ):
        fd = picked(root)
        flag(root, fd, "ro")
        string(root, fd, "size", "80k")
        string(root, fd, key, value)
        fails_with(errno.EINVAL, command, root, fd, RECONFIGURE)
        assert messages(root, fd) == [message]
        assert superblock_flags(root) == 0
        assert (root.statfs(mnt).f_blocks, root.statfs(mnt).f_files) == (10, 20)


@pytest.mark.usefixtures("every_id")
def test_limits_that_were_given_up_do_not_come_back(root: TargetTask, mnt: str) -> None:
    fd = picked(root)
    string(root, fd, "size", "0")
    string(root, fd, "nr_inodes", "0")
    command(root, fd, RECONFIGURE)
    string(root, fd, "nr_inodes", "50")
    fails_with(errno.EINVAL, command, root, fd, RECONFIGURE)
    other = picked(root)
    string(root, other, "size", "1m")
    fails_with(errno.EINVAL, command, root, other, RECONFIGURE)
    third = picked(root)
    flag(root, third, "noswap")
    fails_with(errno.EINVAL, command, root, third, RECONFIGURE)
    assert [messages(root, each) for each in (fd, other, third)] == [
        [b"e tmpfs: Cannot retroactively limit inodes\n"],
        [b"e tmpfs: Cannot retroactively limit size\n"],
        [b"e tmpfs: Cannot disable swap on remount\n"],
    ]


def test_a_filesystem_with_writers_stays_writable(root: TargetTask, mnt: str) -> None:
    root.mkdir("other", 0o755)
    root.mount(mnt, "other", None, abi.MS_BIND, None)
    writer = root.open("other/f", abi.O_CREAT | abi.O_WRONLY, 0o644)
    fd = picked(root)
    flag(root, fd, "ro")
    fails_with(errno.EBUSY, command, root, fd, RECONFIGURE)
    fails_with(errno.EBUSY, root.mount, None, mnt, None, abi.MS_REMOUNT | abi.MS_RDONLY, None)
    fails_with(errno.EBUSY, root.mount, None, mnt, None, abi.MS_REMOUNT, "ro")
    assert superblock_flags(root) == 0
    root.close(writer)
    root.mount(None, mnt, None, abi.MS_REMOUNT, "ro")
    assert superblock_flags(root) == abi.ST_RDONLY


@pytest.mark.parametrize("kind", ["file", "directory", "unnamed"])
def test_a_deleted_file_in_use_keeps_the_filesystem_writable(
    root: TargetTask, mnt: str, kind: str
) -> None:
    if kind == "directory":
        root.mkdir("mnt/f", 0o755)
        held = root.open("mnt/f", abi.O_RDONLY)
        root.rmdir("mnt/f")
    elif kind == "file":
        make_file(root, "mnt/f")
        held = root.open("mnt/f", abi.O_PATH)
        root.unlink("mnt/f")
    else:
        held = root.open("mnt", abi.O_TMPFILE | abi.O_RDWR, 0o644)
    fails_with(errno.EBUSY, root.mount, None, mnt, None, abi.MS_REMOUNT | abi.MS_RDONLY, None)
    root.close(held)
    root.mount(None, mnt, None, abi.MS_REMOUNT | abi.MS_RDONLY, None)


def test_a_read_only_mount_may_have_become_so_twice(root: TargetTask, mnt: str) -> None:
    for _ in range(2):
        fd = picked(root)
        flag(root, fd, "ro")
        command(root, fd, RECONFIGURE)
    assert superblock_flags(root) == abi.ST_RDONLY


def test_a_picked_filesystem_lives_on_without_its_mount(root: TargetTask, mnt: str) -> None:
    fd = picked(root)
    root.umount2(mnt, 0)
    fails_with(errno.EINVAL, root.fspick, abi.AT_FDCWD, mnt, 0)
    flag(root, fd, "ro")
    command(root, fd, RECONFIGURE)


def test_a_mounted_context_reconfigures_what_it_made(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    string(root, fd, "size", "40k")
    flag(root, fd, "ro")
    command(root, fd, CREATE)
    mount = root.fsmount(fd, 0, 0)
    assert root.fstatfs(mount).f_flags & abi.ST_RDONLY
    fails_with(errno.EBUSY, command, root, fd, CREATE)
    string(root, fd, "size", "80k")
    fails_with(errno.EINVAL, flag, root, fd, "nonsense")
    assert root.fstatfs(mount).f_blocks == 10
    command(root, fd, RECONFIGURE)
    figures = root.fstatfs(mount)
    # "ro" was spoken of when it was created, and not since.
    assert (figures.f_blocks, figures.f_flags & abi.ST_RDONLY) == (20, 0)


def test_what_was_created_with_dirsync_is_reconfigured_by_fspick_only(root: TargetTask) -> None:
    fd = root.fsopen("tmpfs", 0)
    flag(root, fd, "dirsync")
    command(root, fd, CREATE)
    mount = root.fsmount(fd, 0, 0)
    fails_with(errno.EINVAL, command, root, fd, RECONFIGURE)
    fails_with(errno.EBUSY, command, root, fd, RECONFIGURE)
    other = root.fspick(mount, "", abi.FSPICK_EMPTY_PATH)
    flag(root, other, "sync")
    command(root, other, RECONFIGURE)
    assert root.fstatfs(mount).f_flags & abi.ST_SYNCHRONOUS


# fspick


def test_fspick_takes_the_root_of_any_mount(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.mkdir("bound", 0o755)
    make_file(root, "file")
    fails_with(errno.EINVAL, root.fspick, abi.AT_FDCWD, "mnt/d", 0)
    fails_with(errno.EINVAL, root.fspick, abi.AT_FDCWD, "file", 0)
    root.mount("mnt/d", "bound", None, abi.MS_BIND, None)
    root.mount("file", "file", None, abi.MS_BIND, None)
    root.fspick(abi.AT_FDCWD, "file", 0)
    fd = root.fspick(abi.AT_FDCWD, "bound", 0)
    flag(root, fd, "ro")
    command(root, fd, RECONFIGURE)
    assert superblock_flags(root) == abi.ST_RDONLY


def test_fspick_follows_links_unless_told_not_to(root: TargetTask, mnt: str) -> None:
    root.symlink(mnt, "link")
    root.fspick(abi.AT_FDCWD, "link", abi.FSPICK_NO_AUTOMOUNT)
    fails_with(errno.EINVAL, root.fspick, abi.AT_FDCWD, "link", abi.FSPICK_SYMLINK_NOFOLLOW)
    root.fspick(abi.AT_FDCWD, "link/", abi.FSPICK_SYMLINK_NOFOLLOW)


def test_fspick_of_an_empty_path_is_the_descriptors(root: TargetTask, mnt: str) -> None:
    directory = root.open(mnt, abi.O_PATH)
    fails_with(errno.ENOENT, root.fspick, directory, "", 0)
    fd = root.fspick(directory, "", abi.FSPICK_EMPTY_PATH)
    flag(root, fd, "ro")
    command(root, fd, RECONFIGURE)
    assert superblock_flags(root) == abi.ST_RDONLY
    fails_with(errno.EBADF, root.fspick, 99, "mnt", 0)
    fails_with(errno.EINVAL, root.fspick, abi.AT_FDCWD, "missing", 16)


# mount(2)


@pytest.mark.parametrize(
    ("options", "flags", "expected"),
    [
        ("ro", 0, abi.ST_RDONLY),
        ("ro=", 0, abi.ST_RDONLY),
        ("ro=no", 0, abi.ST_RDONLY),
        ("ro,rw", 0, 0),
        ("rw,ro", 0, abi.ST_RDONLY),
        ("=,=x,,sync", 0, abi.ST_SYNCHRONOUS),
        ("async", abi.MS_SYNCHRONOUS, 0),
        ("mand,sync", 0, abi.ST_MANDLOCK | abi.ST_SYNCHRONOUS),
    ],
)
def test_mount_data_may_name_superblock_flags(
    root: TargetTask, options: str, flags: int, expected: int
) -> None:
    root.mkdir("mnt", 0o755)
    root.mount("none", "mnt", "tmpfs", flags, options)
    assert superblock_flags(root) == expected
    root.umount2("mnt", 0)
    root.mount("none", "mnt", "tmpfs", 0, "")
    root.mount(None, "mnt", None, abi.MS_REMOUNT | flags, options)
    assert superblock_flags(root) == expected


def test_a_remount_clears_the_flags_it_does_not_repeat(root: TargetTask, mnt: str) -> None:
    root.mount(None, mnt, None, abi.MS_REMOUNT | abi.MS_SYNCHRONOUS | abi.MS_MANDLOCK, "")
    assert superblock_flags(root) == abi.ST_SYNCHRONOUS | abi.ST_MANDLOCK
    root.mount(None, mnt, None, abi.MS_REMOUNT, "")
    assert superblock_flags(root) == 0


def test_mount_data_may_name_the_source_if_the_call_does_not(root: TargetTask) -> None:
    root.mkdir("mnt", 0o755)
    fails_with(errno.EINVAL, root.mount, "a", "mnt", "tmpfs", 0, "source=b")
    fails_with(errno.EINVAL, root.mount, "", "mnt", "tmpfs", 0, "source=b")
    root.mount(None, "mnt", "tmpfs", 0, "source=b")
    root.mount(None, "mnt", None, abi.MS_REMOUNT, "source=c")


@pytest.mark.parametrize("options", ["nonsense", "ro,nonsense", "size=", "size", "inode64="])
def test_a_wrong_option_refuses_mount_and_remount(root: TargetTask, mnt: str, options: str) -> None:
    fails_with(errno.EINVAL, root.mount, None, mnt, None, abi.MS_REMOUNT, options)
    assert superblock_flags(root) == 0
    root.umount2(mnt, 0)
    fails_with(errno.EINVAL, root.mount, "none", mnt, "tmpfs", 0, options)


# User namespaces


@pytest.fixture
def context_of_root(root: TargetTask) -> int:
    """A context that ``container`` inherits."""
    fd = root.fsopen("tmpfs", 0)
    assert isinstance(fd, int)
    return fd


@pytest.fixture
def container(root: TargetTask, context_of_root: int) -> TargetTask:
    """Root of a user namespace of its own, in a copy of the mounts."""
    root.mkdir("mnt", 0o755)
    return root.clone("container", abi.CLONE_NEWUSER | abi.CLONE_NEWNS, 0, 0, ())


def test_a_user_namespaces_root_makes_its_own_tmpfs(container: TargetTask) -> None:
    fd = container.fsopen("tmpfs", 0)
    string(container, fd, "size", "1m")
    fails_with(errno.EINVAL, flag, container, fd, "noswap")
    assert messages(container, fd) == [
        b"e tmpfs: Turning off swap in unprivileged tmpfs mounts unsupported\n"
    ]
    command(container, fd, CREATE)
    container.mount("none", "mnt", "tmpfs", 0, "")
    container.mount(None, "mnt", None, abi.MS_REMOUNT, "size=1m")
    other = picked(container)
    flag(container, other, "ro")
    command(container, other, RECONFIGURE)
    assert superblock_flags(container) == abi.ST_RDONLY


def test_a_user_namespaces_root_creates_nothing_in_a_context_of_its_parents(
    root: TargetTask, container: TargetTask, context_of_root: int
) -> None:
    string(container, context_of_root, "size", "1m")
    for _ in range(2):
        fails_with(errno.EPERM, command, container, context_of_root, CREATE)
    command(root, context_of_root, CREATE)


def test_a_user_namespaces_root_reconfigures_no_filesystem_of_its_parents(
    container: TargetTask,
) -> None:
    fd = picked(container, "/")
    flag(container, fd, "ro")
    fails_with(errno.EPERM, command, container, fd, RECONFIGURE)
    fails_with(errno.EBUSY, command, container, fd, RECONFIGURE)
    fails_with(errno.EPERM, container.mount, None, "/", None, abi.MS_REMOUNT, "")
    fails_with(errno.EINVAL, container.mount, None, "/", None, abi.MS_REMOUNT, "nonsense")


# What no user can see on Linux without a filesystem of ours


class SharedType(FilesystemType):
    """No Linux analogue: one superblock for all, as sysfs has it, and a state that is counted."""

    name = "shared"
    userns_mount = True

    def __init__(self) -> None:
        self.made: Superblock | None = None
        self.states = 0

    def init_context(self, context: FilesystemContext) -> None:
        self.states += 1
        context.fs_private = self

    def free_context(self, context: FilesystemContext) -> None:
        self.states -= 1

    def get_tree(self, context: FilesystemContext) -> Superblock:
        if self.made is not None:
            return context.reuse(self.made)
        context.require_source()
        superblock = self.made = Superblock(context, magic=1, dcache=DCACHE_PINNED)
        superblock.root = Dentry.make_root(superblock, Inode(superblock, abi.S_IFDIR | 0o755))
        return superblock


@pytest.fixture
def shared(vfs: VirtualFilesystem) -> Iterator[SharedType]:
    kind = SharedType()
    vfs.register(kind)
    yield kind
    for each in vfs.tasks:
        each.exit()
    assert kind.states == 0


def log_of(task: Task, fd: int) -> list[bytes]:
    context = context_of(task.files.get_file(fd))
    assert context is not None and context.log is not None
    return list(context.log)


def created(task: Task, number: int = CREATE) -> int:
    fd = task.fsopen("shared")
    task.fsconfig(fd, SET_STRING, "source", "x")
    task.fsconfig(fd, number)
    return fd


def test_a_superblock_is_shared_unless_exclusiveness_is_asked_for(
    task: Task, shared: SharedType
) -> None:
    created(task, CREATE_EXCL)
    created(task)
    assert shared.made is not None and shared.made.count == 2
    fd = task.fsopen("shared")
    fails_with(errno.EBUSY, task.fsconfig, fd, CREATE_EXCL)
    assert log_of(task, fd) == [b"w shared: reusing existing filesystem not allowed\n"]
    fails_with(errno.EBUSY, task.fsconfig, fd, CREATE)
    fails_with(errno.EBUSY, task.fsconfig, fd, SET_FLAG, "ro")
    assert shared.made.count == 2


def test_a_superblock_is_not_shared_with_another_user_namespace(
    task: Task, shared: SharedType
) -> None:
    created(task)
    child = task.clone()
    child.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
    fd = child.fsopen("shared")
    fails_with(errno.EBUSY, child.fsconfig, fd, CREATE)
    assert log_of(child, fd) == [
        b"w shared: reusing existing filesystem in another namespace not allowed\n"
    ]


def test_a_type_that_needs_a_source_says_so_and_spoils_the_context(
    task: Task, shared: SharedType
) -> None:
    fd = task.fsopen("shared")
    fails_with(errno.EINVAL, task.fsconfig, fd, CREATE)
    assert log_of(task, fd) == [b"e No source specified\n"]
    fails_with(errno.EBUSY, task.fsconfig, fd, SET_STRING, "source", "x")


def test_a_superblock_remembers_whose_it_is(task: Task, shared: SharedType) -> None:
    child = task.clone()
    child.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
    created(child)
    assert shared.made is not None
    assert shared.made.user_ns is child.cred.user_ns
    assert shared.made.nodev
    root = task.fs.root.mount.superblock
    assert root.user_ns is INITIAL_USER_NAMESPACE and not root.nodev


def test_a_context_that_was_mounted_takes_parameters_for_a_remount(
    task: Task, shared: SharedType
) -> None:
    fd = task.fsopen("shared")
    task.fsconfig(fd, SET_STRING, "source", "x")
    task.fsconfig(fd, SET_FLAG, "ro")
    task.fsconfig(fd, CREATE)
    context = context_of(task.files.get_file(fd))
    assert context is not None and shared.made is not None
    assert (context.source, context.superblock) == (b"x", shared.made)
    context.clean()
    assert (context.source, shared.states) == (b"none", 0)
    assert shared.made.read_only
    fails_with(errno.EBUSY, task.fsconfig, fd, CREATE)
    task.fsconfig(fd, SET_STRING, "source", "y")
    task.fsconfig(fd, SET_FLAG, "sync")
    task.fsconfig(fd, RECONFIGURE)
    # "ro" was spoken of once, and not this time.
    assert shared.made.flags == abi.MS_SYNCHRONOUS


def test_binary_values_are_as_long_as_they_say(task: Task) -> None:
    fd = task.fsopen("tmpfs")
    fails_with(errno.EFAULT, task.fsconfig, fd, SET_BINARY, "ro", b"ab", 3)
    task.fsconfig(fd, SET_BINARY, "ro", b"abc", 2)


def test_the_hidden_filesystem_goes_with_its_last_file(vfs: VirtualFilesystem, task: Task) -> None:
    before = dict(vfs.ledger.live)
    one, other = task.fsopen("tmpfs"), task.fsopen("tmpfs")
    task.close(one)
    where = task.files.get_file(other)
    assert where.dentry.superblock.dname(where.dentry) == b"anon_inode:[fscontext]"
    vfs.check()
    task.close(other)
    assert dict(vfs.ledger.live) == before
    task.close(task.fsopen("tmpfs"))


def test_messages_of_mount_go_to_the_log_of_the_process(
    task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    task.mkdir("mnt")
    with caplog.at_level(logging.DEBUG, "vfs.fs_context"):
        fails_with(errno.EINVAL, task.mount, "none", "mnt", "tmpfs", 0, "foo=1")
    assert caplog.messages == ["tmpfs: Unknown parameter 'foo'"]


def test_names_that_are_not_text_pass_through(task: Task) -> None:
    fails_with(errno.ENODEV, task.fsopen, b"\xff")
    fd = task.fsopen("tmpfs")
    fails_with(errno.EINVAL, task.fsconfig, fd, SET_FLAG, b"\xff\xfe")
    assert task.read(fd, 100) == b"e tmpfs: Unknown parameter '\xff\xfe'\n"
