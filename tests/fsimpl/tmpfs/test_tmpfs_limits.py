"""Limits: what is charged, when there is none left, and that nothing is lost then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from tmpfs_kernel import KernelTmpfs
from tmpfs_ours import Ours

from vfs import abi
from vfs.errors import InvariantViolation

PAGE = 4096


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def create(side: Ours | KernelTmpfs, path: str) -> None:
    fd = side.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    if isinstance(side, Ours):
        side.task.close(fd)
    else:
        os.close(fd)


def test_every_way_to_a_new_name_fails_with_enospc_when_inodes_are_out(
    make_ours: Callable[..., Ours],
) -> None:
    ours = make_ours("nr_inodes=3")
    create(ours, "/a")
    create(ours, "/b")
    for call in (
        lambda: create(ours, "/c"),
        lambda: ours.mkdir("/c"),
        lambda: ours.mknod("/c", abi.S_IFIFO | 0o600),
        lambda: ours.symlink("a", "/c"),
        lambda: ours.link("/a", "/c"),
        lambda: ours.open("/", os.O_TMPFILE | os.O_RDWR, 0o600),
        lambda: ours.rename("/a", "/c", abi.RENAME_WHITEOUT),
    ):
        assert errno_of(call) == errno.ENOSPC
        ours.check()
    assert sorted(ours.listdir("/")) == ["a", "b"]
    ours.unlink("/a")
    ours.mkdir("/c")


def test_deleted_file_gives_its_pages_back_when_its_last_user_leaves(
    make_ours: Callable[..., Ours],
) -> None:
    ours = make_ours("size=40k,nr_inodes=5")
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    ours.task.write(fd, b"x" * 3 * PAGE)
    ours.unlink("/f")
    assert ours.usage() == (10, 7, 5, 3)
    assert ours.task.pread64(fd, 5, 0) == b"xxxxx"
    ours.task.close(fd)
    assert ours.usage() == (10, 10, 5, 4)


def test_write_into_a_full_filesystem_is_short_and_then_fails(
    make_ours: Callable[..., Ours],
) -> None:
    ours = make_ours("size=40k")
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    assert ours.task.pwrite64(fd, b"x" * 100_000, 100) == 10 * PAGE - 100
    assert errno_of(ours.task.pwrite64, fd, b"y", 10 * PAGE) == errno.ENOSPC
    assert ours.task.pwrite64(fd, b"z" * 10, 10 * PAGE - 5) == 5
    status = ours.task.fstat(fd)
    assert (status.st_size, status.st_blocks) == (10 * PAGE, 80)
    data = ours.task.pread64(fd, 100_000, 0)
    assert data == bytes(100) + b"x" * (10 * PAGE - 105) + b"zzzzz"
    ours.task.close(fd)


def test_vectored_write_stops_in_the_buffer_that_no_longer_fits(
    make_ours: Callable[..., Ours],
) -> None:
    ours = make_ours("size=8k")
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    assert ours.task.writev(fd, [b"a" * 5000, b"b" * 5000, b"c" * 5000]) == 2 * PAGE
    assert ours.task.pread64(fd, 10_000, 0) == b"a" * 5000 + b"b" * (2 * PAGE - 5000)
    ours.task.close(fd)


def test_symlink_too_long_for_its_inode_needs_a_page(make_ours: Callable[..., Ours]) -> None:
    ours = make_ours("size=4k,nr_inodes=10")
    ours.symlink("x" * 127, "/short")
    ours.symlink("x" * 128, "/long")
    assert (ours.lstat("/short").st_blocks, ours.lstat("/long").st_blocks) == (0, 8)
    assert errno_of(ours.symlink, "x" * 128, "/more") == errno.ENOSPC
    assert sorted(ours.listdir("/")) == ["long", "short"]
    ours.check()
    ours.unlink("/long")
    assert ours.usage()[1] == 1


def test_tmpfile_costs_one_inode_whether_named_or_not(make_ours: Callable[..., Ours]) -> None:
    ours = make_ours("nr_inodes=5")
    fd = ours.open("/", os.O_TMPFILE | os.O_RDWR, 0o600)
    assert ours.task.fstat(fd).st_nlink == 0
    assert ours.usage()[3] == 3
    ours.task.linkat(fd, b"", -100, "/named", abi.AT_EMPTY_PATH)
    assert ours.task.fstat(fd).st_nlink == 1
    assert ours.usage()[3] == 3
    ours.task.close(fd)
    ours.unlink("/named")
    assert ours.usage()[3] == 4


def test_unlimited_filesystem_reports_zeros(make_ours: Callable[..., Ours]) -> None:
    ours = make_ours("size=0,nr_inodes=0")
    create(ours, "/a")
    assert ours.usage() == (0, 0, 0, 0)


def test_xattrs_use_and_return_inode_space_as_on_the_kernel(
    make_ours: Callable[..., Ours], make_kernel: Callable[..., KernelTmpfs]
) -> None:
    kernel = make_kernel(size="1m", nr_inodes="12")
    ours = make_ours("size=1m,nr_inodes=12")
    create(kernel, "/f")
    create(ours, "/f")
    steps: list[tuple[str, str, bytes, int]] = [
        ("set", "user.a", b"x" * 1000, 0),
        ("set", "user.b", b"", 0),
        ("set", "trusted.c", b"y" * 950, 0),
        ("set", "security.d", b"z", 0),
        ("set", "user.big", b"q" * 40_000, 0),
        ("set", "user.a", b"x" * 3000, 0),
        ("set", "user.a", b"1", 0),
        ("set", "user.b", b"q" * 40_000, abi.XATTR_CREATE),
        ("set", "user.b", b"1", abi.XATTR_CREATE),
        ("set", "user.none", b"1", abi.XATTR_REPLACE),
        ("set", "user.b", b"1", 3),
        ("set", "user.none", b"1", 3),
        ("set", "user.", b"1", 0),
        ("set", "trusted.", b"1", 0),
        ("set", "foo.x", b"1", 0),
        ("set", "system.x", b"1", 0),
        ("get", "user.", b"", 0),
        ("get", "user.none", b"", 0),
        ("get", "user.a", b"", 0),
        ("remove", "user.none", b"", 0),
        ("remove", "user.a", b"", 0),
        ("set", "user.A", b"1", 0),
    ]
    for operation, name, value, flags in steps:
        answers = []
        for side in (ours, kernel):
            answer: object = None
            try:
                if operation == "set":
                    side.setxattr("/f", name, value, flags)
                elif operation == "get":
                    answer = side.getxattr("/f", name)
                else:
                    side.removexattr("/f", name)
            except OSError as error:
                answer = error.errno
            answers.append((answer, side.listxattr("/f"), side.usage()))
        assert answers[0] == answers[1], (operation, name)
        ours.check()


def test_write_drops_the_capability_attribute(make_ours: Callable[..., Ours]) -> None:
    ours = make_ours()
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o755)
    ours.setxattr("/f", "security.capability", b"\1\0\0\2" + bytes(16))
    ours.setxattr("/f", "user.a", b"1")
    ours.task.write(fd, b"x")
    ours.task.close(fd)
    assert ours.listxattr("/f") == ["user.a"]


def test_check_notices_pages_and_links_that_do_not_add_up(
    make_ours: Callable[..., Ours],
) -> None:
    ours = make_ours()
    create(ours, "/f")
    ours.superblock.blocks.used += 1
    with pytest.raises(InvariantViolation):
        ours.check()
    ours.superblock.blocks.used -= 1
    (dentry,) = (ours.superblock.root.children or {}).values()
    dentry.inode.nlink += 1
    with pytest.raises(InvariantViolation):
        ours.check()
    dentry.inode.nlink -= 1
