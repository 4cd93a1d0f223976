"""Regular files and nodes through a task's system calls."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable

import pytest
from tmpfs_kernel import KernelTmpfs, fallocate
from tmpfs_ours import Ours

from vfs import abi
from vfs.credentials import Credentials

TIB = 1 << 40


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def test_sparse_file_of_a_tebibyte_takes_the_blocks_that_were_written(ours: Ours) -> None:
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    ours.task.ftruncate(fd, TIB)
    assert ours.task.pwrite64(fd, b"end", TIB - 3) == 3
    status = ours.task.fstat(fd)
    assert (status.st_size, status.st_blocks) == (TIB, 8)
    assert ours.task.pread64(fd, 10, TIB - 6) == b"\0\0\0end"
    assert ours.task.pread64(fd, 10, TIB // 2) == bytes(10)
    assert ours.task.lseek(fd, 0, abi.SEEK_DATA) == TIB - 4096
    assert ours.task.lseek(fd, TIB - 1, abi.SEEK_HOLE) == TIB
    ours.task.close(fd)


def test_random_vectored_reads_and_writes_agree_with_a_bytearray(ours: Ours) -> None:
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    choose = random.Random(1)
    model = bytearray()
    for turn in range(300):
        offset = choose.randrange(1 << 20)
        sizes = [choose.choice([0, 1, 511, 4096, 60_000]) for _ in range(3)]
        if turn % 2:
            buffers = [choose.randbytes(size) for size in sizes]
            assert ours.task.pwritev2(fd, buffers, offset, 0) == sum(sizes)
            data = b"".join(buffers)
            if data:
                model.extend(bytes(max(0, offset + len(data) - len(model))))
                model[offset : offset + len(data)] = data
        else:
            space = [bytearray(size) for size in sizes]
            count = ours.task.preadv2(fd, space, offset, 0)
            assert b"".join(space)[:count] == model[offset : offset + sum(sizes)]
    assert ours.task.fstat(fd).st_size == len(model)
    ours.task.close(fd)


def test_hard_links_show_the_same_bytes_and_the_last_name_keeps_them(ours: Ours) -> None:
    fd = ours.open("/a", os.O_CREAT | os.O_RDWR, 0o600)
    ours.task.write(fd, b"data")
    ours.task.close(fd)
    ours.link("/a", "/b")
    ours.unlink("/a")
    fd = ours.open("/b", os.O_RDONLY)
    assert ours.task.read(fd, 10) == b"data"
    assert ours.task.fstat(fd).st_nlink == 1
    ours.task.close(fd)


@pytest.mark.parametrize("mode", range(0x80))
def test_fallocate_mode_is_taken_or_refused_as_by_the_kernel(
    mode: int, ours: Ours, make_kernel: Callable[..., KernelTmpfs]
) -> None:
    kernel = make_kernel()
    ours_fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    kernel_fd = kernel.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        ours.task.write(ours_fd, b"x" * 9000)
        os.write(kernel_fd, b"x" * 9000)
        answer = errno_of(ours.task.fallocate, ours_fd, mode, 4000, 20_000)
        assert answer == errno_of(fallocate, kernel_fd, mode, 4000, 20_000)
        ours_status, kernel_status = ours.task.fstat(ours_fd), os.fstat(kernel_fd)
        assert ours_status.st_size == kernel_status.st_size
        assert ours_status.st_blocks == kernel_status.st_blocks
    finally:
        ours.task.close(ours_fd)
        os.close(kernel_fd)


def test_copied_range_has_the_bytes_and_no_holes(
    ours: Ours, make_kernel: Callable[..., KernelTmpfs]
) -> None:
    kernel = make_kernel()
    source = ours.open("/a", os.O_CREAT | os.O_RDWR, 0o600)
    target = ours.open("/b", os.O_CREAT | os.O_RDWR, 0o600)
    ours.task.ftruncate(source, 1 << 20)
    ours.task.pwrite64(source, b"a" * 5000, 300_000)
    assert ours.task.copy_file_range(source, 5, target, 7, 2 << 20) == (1 << 20) - 5
    data = ours.task.pread64(target, 2 << 20, 0)
    assert data == bytes(300_002) + b"a" * 5000 + bytes((1 << 20) - 305_000)
    kernel_source = kernel.open("/a", os.O_CREAT | os.O_RDWR, 0o600)
    kernel_target = kernel.open("/b", os.O_CREAT | os.O_RDWR, 0o600)
    os.ftruncate(kernel_source, 1 << 20)
    os.pwrite(kernel_source, b"a" * 5000, 300_000)
    os.copy_file_range(kernel_source, kernel_target, 2 << 20, 5, 7)
    assert ours.task.fstat(target).st_blocks == os.fstat(kernel_target).st_blocks
    for fd in (kernel_source, kernel_target):
        os.close(fd)
    for fd in (source, target):
        ours.task.close(fd)


def test_copy_within_one_file_reads_what_was_there(ours: Ours) -> None:
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    data = random.Random(2).randbytes(600_000)
    ours.task.write(fd, data)
    assert ours.task.copy_file_range(fd, 0, fd, 600_000, 600_000) == 600_000
    assert ours.task.pread64(fd, 2 << 20, 0) == data * 2
    ours.task.close(fd)


def test_copy_into_a_full_filesystem_is_short_and_then_fails(
    make_ours: Callable[..., Ours],
) -> None:
    ours = make_ours("size=40k")
    source = ours.open("/a", os.O_CREAT | os.O_RDWR, 0o600)
    target = ours.open("/b", os.O_CREAT | os.O_RDWR, 0o600)
    ours.task.write(source, b"x" * 6 * 4096)
    copy = ours.task.copy_file_range
    assert copy(source, 0, target, 0, 6 * 4096) == 4 * 4096
    assert errno_of(copy, source, 0, target, 4 * 4096, 4096) == errno.ENOSPC
    ours.task.close(source)
    ours.task.close(target)


def test_o_trunc_frees_the_pages(ours: Ours) -> None:
    fd = ours.open("/f", os.O_CREAT | os.O_RDWR, 0o600)
    ours.task.write(fd, b"x" * 9000)
    ours.task.close(fd)
    ours.task.close(ours.open("/f", os.O_WRONLY | os.O_TRUNC))
    assert (ours.lstat("/f").st_size, ours.lstat("/f").st_blocks) == (0, 0)


def test_nodes_keep_type_mode_and_device(ours: Ours) -> None:
    device = abi.makedev(259, 70_000)
    for name, kind in (
        ("char", stat.S_IFCHR),
        ("block", stat.S_IFBLK),
        ("fifo", stat.S_IFIFO),
        ("socket", stat.S_IFSOCK),
    ):
        ours.mknod("/" + name, kind | 0o640, device)
        status = ours.lstat("/" + name)
        assert status.st_mode == kind | 0o640
        is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
        assert status.st_rdev == (device if is_device else 0)
        assert (status.st_size, status.st_nlink) == (0, 1)


def test_what_is_made_in_a_setgid_directory_gets_its_group(ours: Ours) -> None:
    ours.mkdir("/d")
    ours.task.chown("/d", 0, 55)
    ours.task.chmod("/d", 0o2777)
    user = ours.task.clone(cred=Credentials(1000, 1000))
    user.mkdir("/d/sub")
    user.symlink("x", "/d/link")
    user.close(user.open("/d/file", os.O_CREAT | os.O_WRONLY, 0o644))
    owners = {name: ours.lstat("/d/" + name) for name in ("sub", "link", "file")}
    user.exit()
    assert {(status.st_uid, status.st_gid) for status in owners.values()} == {(1000, 55)}
    assert owners["sub"].st_mode & stat.S_ISGID


def test_whiteout_is_a_character_device_zero_without_permissions(ours: Ours) -> None:
    ours.task.close(ours.open("/a", os.O_CREAT | os.O_WRONLY, 0o644))
    ours.rename("/a", "/b", abi.RENAME_WHITEOUT)
    status = ours.lstat("/a")
    assert (status.st_mode, status.st_rdev, status.st_nlink) == (stat.S_IFCHR, 0, 1)
