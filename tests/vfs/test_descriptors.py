"""Descriptors and the descriptions behind them."""

from __future__ import annotations

import errno

import pytest
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.step import NAMES
from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    CLOSE_RANGE_CLOEXEC,
    CLOSE_RANGE_UNSHARE,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_GETFD,
    F_GETFL,
    F_SETFD,
    F_SETFL,
    O_CLOEXEC,
    O_CREAT,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    SEEK_CUR,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    SEEK_SET,
)


@pytest.fixture
def fd(root: TargetTask) -> int:
    """Descriptor 0: ``f`` with ten bytes, open for reading and writing at position 0."""
    make_file(root, "f", b"0123456789")
    opened = root.open("f", O_RDWR, 0)
    assert opened == 0
    return int(opened)


def test_the_lowest_free_number_is_given(root: TargetTask, fd: int) -> None:
    assert [root.dup(fd) for _ in range(3)] == [1, 2, 3]
    root.close(1)
    root.close(2)
    assert root.dup(fd) == 1
    assert root.open("f", O_RDONLY, 0) == 2


def test_duplicates_share_position_and_status_flags(root: TargetTask, fd: int) -> None:
    copy = root.dup(fd)
    assert root.read(fd, 4) == b"0123"
    assert root.read(copy, 2) == b"45"
    root.fcntl(copy, F_SETFL, abi.O_APPEND)
    assert root.fcntl(fd, F_GETFL, 0) & abi.O_APPEND


def test_two_opens_share_nothing(root: TargetTask, fd: int) -> None:
    other = root.open("f", O_RDWR, 0)
    root.read(fd, 4)
    assert root.read(other, 4) == b"0123"


def test_close_on_exec_belongs_to_the_number(root: TargetTask, fd: int) -> None:
    copy = root.fcntl(fd, F_DUPFD_CLOEXEC, 7)
    assert copy == 7
    assert root.fcntl(copy, F_GETFD, 0) == abi.FD_CLOEXEC
    assert root.fcntl(fd, F_GETFD, 0) == 0
    root.fcntl(fd, F_SETFD, 1)
    assert root.fcntl(fd, F_GETFD, 0) == abi.FD_CLOEXEC
    assert root.fcntl(root.dup(fd), F_GETFD, 0) == 0
    opened = root.open("f", O_RDONLY | O_CLOEXEC, 0)
    assert root.fcntl(opened, F_GETFD, 0) == abi.FD_CLOEXEC


def test_dup2_closes_what_was_there_and_of_itself_does_nothing(root: TargetTask, fd: int) -> None:
    make_file(root, "g", b"g")
    other = root.open("g", O_RDONLY | O_CLOEXEC, 0)
    assert root.dup2(fd, other) == other
    assert root.read(other, 1) == b"0"
    assert root.fcntl(other, F_GETFD, 0) == 0
    assert root.dup2(fd, fd) == fd
    fails_with(errno.EBADF, root.dup2, 55, 55)
    fails_with(errno.EBADF, root.dup2, fd, 5000)
    fails_with(errno.EBADF, root.dup2, fd, -1)


def test_dup3_refuses_the_same_number_and_strange_flags(root: TargetTask, fd: int) -> None:
    fails_with(errno.EINVAL, root.dup3, fd, fd, 0)
    fails_with(errno.EINVAL, root.dup3, fd, 5, abi.O_APPEND)
    root.dup3(fd, 5, O_CLOEXEC)
    assert root.fcntl(5, F_GETFD, 0) == abi.FD_CLOEXEC


def test_rlimit_nofile_bounds_new_numbers_and_leaves_old_ones(root: TargetTask, fd: int) -> None:
    root.dup2(fd, 20)
    root.setrlimit_nofile(3)
    root.dup(fd)
    root.dup(fd)
    fails_with(errno.EMFILE, root.dup, fd)
    fails_with(errno.EMFILE, root.open, "f", O_RDONLY, 0)
    fails_with(errno.EBADF, root.dup2, fd, 3)
    fails_with(errno.EINVAL, root.fcntl, fd, F_DUPFD, 3)
    assert root.read(20, 1) == b"0"


def test_nothing_is_created_if_there_is_no_number_for_it(root: TargetTask, fd: int) -> None:
    root.setrlimit_nofile(1)
    fails_with(errno.EMFILE, root.open, "new", O_CREAT | O_WRONLY, 0o644)
    root.setrlimit_nofile(100)
    assert not exists(root, "new")


def test_close_range_closes_and_marks(root: TargetTask, fd: int) -> None:
    for number in (1, 2, 3, 4):
        root.dup2(fd, number)
    root.close_range(3, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)
    assert [root.fcntl(number, F_GETFD, 0) for number in (2, 3, 4)] == [0, 1, 1]
    root.close_range(1, 3, 0)
    fails_with(errno.EBADF, root.close, 2)
    root.close(4)
    fails_with(errno.EINVAL, root.close_range, 3, 2, 0)
    fails_with(errno.EINVAL, root.close_range, 0, 2, 64)


def test_close_range_unshare_leaves_the_others_table_alone(root: TargetTask, fd: int) -> None:
    sharing = root.clone("sharing", NAMES["CLONE_FILES"])
    sharing.close_range(0, 10, CLOSE_RANGE_UNSHARE)
    fails_with(errno.EBADF, sharing.close, fd)
    root.close(fd)


def test_a_fork_shares_descriptions_not_numbers(root: TargetTask, fd: int) -> None:
    child = root.clone("child")
    child.read(fd, 4)
    assert root.read(fd, 1) == b"4"
    child.close(fd)
    assert root.read(fd, 1) == b"5"


def test_clone_files_shares_the_numbers(root: TargetTask, fd: int) -> None:
    twin = root.clone("twin", NAMES["CLONE_FILES"])
    twin.close(fd)
    fails_with(errno.EBADF, root.read, fd, 1)
    twin.unshare(NAMES["CLONE_FILES"])
    root.open("f", O_RDONLY, 0)
    fails_with(errno.EBADF, twin.read, 0, 1)


def test_clone_fs_shares_cwd_root_and_umask_until_unshare(root: TargetTask) -> None:
    twin = root.clone("twin", NAMES["CLONE_FS"])
    root.mkdir("d", 0o755)
    twin.chdir("d")
    assert root.getcwd() == b"/d"
    root.umask(0o077)
    assert twin.umask(0o077) == 0o077
    twin.unshare(NAMES["CLONE_FS"])
    twin.chdir("/")
    assert root.getcwd() == b"/d"


def test_what_a_descriptor_was_not_opened_for_is_ebadf(root: TargetTask, fd: int) -> None:
    reading = root.open("f", O_RDONLY, 0)
    writing = root.open("f", O_WRONLY, 0)
    fails_with(errno.EBADF, root.write, reading, b"x")
    fails_with(errno.EBADF, root.read, writing, 1)
    fails_with(errno.EINVAL, root.ftruncate, reading, 0)
    fails_with(errno.EBADF, root.fallocate, reading, 0, 0, 1)
    neither = root.open("f", abi.O_ACCMODE, 0)
    fails_with(errno.EBADF, root.read, neither, 1)
    fails_with(errno.EBADF, root.write, neither, b"x")


def test_reading_a_directory_is_eisdir_and_writing_to_it_never_starts(root: TargetTask) -> None:
    directory = root.open("/", O_RDONLY, 0)
    fails_with(errno.EISDIR, root.read, directory, 1)
    fails_with(errno.EISDIR, root.open, "/", O_WRONLY, 0)
    fails_with(errno.EISDIR, root.open, "/", O_CREAT | O_RDONLY, 0o644)
    fails_with(errno.EISDIR, root.truncate, "/", 0)


def test_o_append_writes_at_the_end_whatever_the_offset(root: TargetTask, fd: int) -> None:
    appending = root.open("f", O_WRONLY | abi.O_APPEND, 0)
    assert root.pwrite64(appending, b"AB", 0) == 2
    assert root.lseek(appending, 0, SEEK_CUR) == 0
    root.write(appending, b"C")
    assert root.lseek(appending, 0, SEEK_CUR) == 13
    assert contents(root, "f") == b"0123456789ABC"


def test_rwf_append_and_noappend_override_the_description(root: TargetTask, fd: int) -> None:
    root.pwritev2(fd, (b"A",), 0, abi.RWF_APPEND)
    appending = root.open("f", O_WRONLY | abi.O_APPEND, 0)
    root.pwritev2(appending, (b"z",), 0, abi.RWF_NOAPPEND)
    assert contents(root, "f") == b"z123456789A"


def test_rwf_flags_are_judged_after_descriptor_length_and_offset(root: TargetTask, fd: int) -> None:
    unknown = 0x400
    fails_with(errno.EOPNOTSUPP, root.preadv2, fd, (1,), 0, unknown)
    fails_with(errno.EBADF, root.preadv2, 77, (1,), 0, unknown)
    writing = root.open("f", O_WRONLY, 0)
    fails_with(errno.EBADF, root.preadv2, writing, (1,), 0, unknown)
    assert root.preadv2(fd, (0, 0), 0, unknown) == b""
    fails_with(errno.EINVAL, root.preadv2, fd, (1,), (1 << 63) - 1, unknown)
    both = abi.RWF_APPEND | abi.RWF_NOAPPEND
    fails_with(errno.EINVAL, root.pwritev2, fd, (b"x",), 0, both)
    directory = root.open("/", O_RDONLY, 0)
    fails_with(errno.EOPNOTSUPP, root.preadv2, directory, (1,), 0, abi.RWF_SYNC)
    fails_with(errno.EISDIR, root.preadv2, directory, (1,), 0, 0)


def test_tmpfs_cannot_promise_not_to_wait(root: TargetTask, fd: int) -> None:
    fails_with(errno.EOPNOTSUPP, root.preadv2, fd, (1,), 0, abi.RWF_NOWAIT)


def test_pread_and_pwrite_leave_the_position(root: TargetTask, fd: int) -> None:
    assert root.pread64(fd, 3, 5) == b"567"
    root.pwrite64(fd, b"X", 0)
    assert root.read(fd, 2) == b"X1"
    fails_with(errno.EINVAL, root.pread64, fd, 1, -1)


def test_vectors_are_filled_one_after_the_other(root: TargetTask, fd: int) -> None:
    assert root.preadv2(fd, (3, 0, 4), -1, 0) == b"0123456"
    assert root.lseek(fd, 0, SEEK_CUR) == 7
    assert root.pwritev2(fd, (b"a", b"", b"bc"), -1, 0) == 3
    assert contents(root, "f") == b"0123456abc"


def test_seeking_goes_anywhere_but_below_zero(root: TargetTask, fd: int) -> None:
    assert root.lseek(fd, -3, SEEK_END) == 7
    assert root.lseek(fd, -2, SEEK_CUR) == 5
    assert root.lseek(fd, 1 << 40, SEEK_SET) == 1 << 40
    assert root.read(fd, 1) == b""
    fails_with(errno.EINVAL, root.lseek, fd, -1, SEEK_SET)
    fails_with(errno.EINVAL, root.lseek, fd, 0, 9)


def test_holes_are_found_at_page_borders(root: TargetTask) -> None:
    sparse = root.open("sparse", O_CREAT | O_RDWR, 0o644)
    root.pwrite64(sparse, b"x", 10_000)
    root.ftruncate(sparse, 100_000)
    assert root.lseek(sparse, 0, SEEK_DATA) == 8192
    assert root.lseek(sparse, 8192, SEEK_HOLE) == 12288
    fails_with(errno.ENXIO, root.lseek, sparse, 12288, SEEK_DATA)
    fails_with(errno.ENXIO, root.lseek, sparse, 100_000, SEEK_HOLE)
    assert root.fstat(sparse).st_blocks == 8


def test_copy_file_range_copies_within_and_refuses_overlap(root: TargetTask, fd: int) -> None:
    assert root.copy_file_range(fd, 0, fd, 20, 5, 0) == 5
    assert contents(root, "f") == b"0123456789" + b"\0" * 10 + b"01234"
    fails_with(errno.EINVAL, root.copy_file_range, fd, 0, fd, 3, 5, 0)
    fails_with(errno.EINVAL, root.copy_file_range, fd, 0, fd, 30, 5, 1)
    fails_with(errno.EOVERFLOW, root.copy_file_range, fd, 0, fd, -1, 5, 0)
    fails_with(errno.EINVAL, root.copy_file_range, fd, 0, fd, -100, 5, 0)
    fails_with(errno.EFBIG, root.copy_file_range, fd, 0, fd, (1 << 63) - 1, 5, 0)
    assert (
        root.copy_file_range(fd, None, root.open("g", O_CREAT | O_WRONLY, 0o644), None, 3, 0) == 3
    )
    assert root.lseek(fd, 0, SEEK_CUR) == 3


def test_a_deleted_file_lives_until_its_last_descriptor(root: TargetTask, fd: int) -> None:
    root.unlink("f")
    assert root.fstat(fd).st_nlink == 0
    root.write(fd, b"still")
    assert root.pread64(fd, 10, 0) == b"still56789"


def test_getfl_shows_what_stays_of_the_open_flags(root: TargetTask) -> None:
    flags = O_RDWR | O_CREAT | abi.O_EXCL | abi.O_TRUNC | abi.O_APPEND | abi.O_NONBLOCK | O_CLOEXEC
    made = root.open("f", flags, 0o644)
    kept = O_RDWR | abi.O_APPEND | abi.O_NONBLOCK | abi.O_LARGEFILE
    assert root.fcntl(made, F_GETFL, 0) == kept
    root.fcntl(made, F_SETFL, abi.O_NONBLOCK | O_CREAT | abi.O_SYNC)
    assert root.fcntl(made, F_GETFL, 0) == O_RDWR | abi.O_NONBLOCK | abi.O_LARGEFILE
    fails_with(errno.EINVAL, root.fcntl, made, 999, 0)


# O_TMPFILE


def test_a_tmpfile_has_no_name_until_linkat_gives_it_one(root: TargetTask) -> None:
    made = root.open("/", abi.O_TMPFILE | O_RDWR, 0o600)
    root.write(made, b"hidden")
    assert root.fstat(made).st_nlink == 0
    root.linkat(made, "", abi.AT_FDCWD, "named", abi.AT_EMPTY_PATH)
    assert root.fstat(made).st_nlink == 1
    assert contents(root, "named") == b"hidden"
    assert root.fcntl(made, F_GETFL, 0) == O_RDWR | abi.O_TMPFILE | abi.O_LARGEFILE


def test_a_tmpfile_opened_with_o_excl_never_gets_a_name(root: TargetTask) -> None:
    made = root.open("/", abi.O_TMPFILE | O_RDWR | abi.O_EXCL, 0o600)
    empty = abi.AT_EMPTY_PATH
    fails_with(errno.ENOENT, root.linkat, made, "", abi.AT_FDCWD, "named", empty)


def test_a_deleted_file_cannot_be_linked_again(root: TargetTask, fd: int) -> None:
    root.unlink("f")
    empty = abi.AT_EMPTY_PATH
    fails_with(errno.ENOENT, root.linkat, fd, "", abi.AT_FDCWD, "again", empty)


def test_o_trunc_of_a_tmpfile_keeps_the_set_id_bits_it_is_made_with(
    root: TargetTask, alice: TargetTask
) -> None:
    root.chmod("/", 0o777)
    made = alice.open("/", abi.O_TMPFILE | O_RDWR | abi.O_TRUNC, 0o4755)
    assert alice.fstat(made).st_mode & 0o7777 == 0o4755


def test_o_tmpfile_wants_a_directory_and_write_access(root: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.EINVAL, root.open, "/", abi.O_TMPFILE | O_RDONLY, 0o600)
    fails_with(errno.ENOTDIR, root.open, "f", abi.O_TMPFILE | O_RDWR, 0o600)
    root.open("/", abi.O_TMPFILE | abi.O_ACCMODE, 0o600)


def test_linking_by_descriptor_needs_the_openers_credentials_or_a_capability(
    root: TargetTask, alice: TargetTask
) -> None:
    root.chmod("/", 0o777)
    hers = alice.open("/", abi.O_TMPFILE | O_RDWR, 0o600)
    alice.linkat(hers, "", abi.AT_FDCWD, "hers", abi.AT_EMPTY_PATH)
    roots = root.open("/", abi.O_TMPFILE | O_RDWR, 0o666)
    heir = root.clone("heir", 0, 1000, 1000, ())
    empty = abi.AT_EMPTY_PATH
    fails_with(errno.ENOENT, heir.linkat, roots, "", abi.AT_FDCWD, "stolen", empty)
    fails_with(errno.EBADF, heir.linkat, 55, "", abi.AT_FDCWD, "stolen", empty)


def test_at_empty_path_asks_for_those_credentials_even_if_the_path_is_not_empty(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o777)
    make_file(root, "d/f")
    directory = root.open("d", O_RDONLY, 0)
    heir = root.clone("heir", 0, 1000, 1000, ())
    empty = abi.AT_EMPTY_PATH
    fails_with(errno.ENOENT, heir.linkat, directory, "f", abi.AT_FDCWD, "g", empty)
    fails_with(errno.EACCES, heir.linkat, directory, "f", abi.AT_FDCWD, "g", 0)
