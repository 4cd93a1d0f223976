"""Names and attributes: the host's are ours, also when the host changes them behind our back."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from passthrough_kernel import Call, by_kernel, by_task, tree

from fsimpl.passthrough import PassthroughSuperblock
from fsimpl.passthrough.inode import PassthroughInode
from vfs import VirtualFilesystem, abi
from vfs.inode import SetAttributes
from vfs.task import Task

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_attributes_are_the_hosts(inside: Task, shared: Path) -> None:
    (shared / "f").write_bytes(b"x" * 5000)
    (shared / "d").mkdir()
    (shared / "l").symlink_to("somewhere")
    os.mkfifo(shared / "p")
    for name in ("f", "d", "l", "p", "."):
        host, ours = os.lstat(shared / name), inside.lstat(name)
        for field in ours._fields:
            if field not in ("st_dev", "st_blksize"):
                assert getattr(ours, field) == getattr(host, field), (name, field)


def test_birth_time_is_the_hosts(inside: Task, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    shown = subprocess.run(["stat", "-c", "%W", shared / "f"], capture_output=True, check=True)
    ours = inside.statx(abi.AT_FDCWD, "f", 0, abi.STATX_BTIME).stx_btime_ns
    assert ours // 10**9 == int(shown.stdout)


def test_names_are_found_and_missed_whichever_were_before_them(inside: Task, shared: Path) -> None:
    for name in ("a", "b", "c"):
        (shared / name).write_bytes(name.encode())
    os.link(shared / "a", shared / "a2")
    for name in ("no1", "a", "b", "no2", "no3", "a2", "no4", "c", "no1", "a", "c"):
        if name.startswith("no"):
            with pytest.raises(FileNotFoundError):
                inside.stat(name)
        else:
            assert inside.stat(name).st_ino == (shared / name).stat().st_ino


def test_a_name_that_the_host_makes_while_we_make_it_is_the_hosts(
    inside: Task, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*where: Any) -> PassthroughInode | None:
        found = find_child(*where)
        (shared / "f").write_bytes(b"the host's")
        return found

    find_child = PassthroughSuperblock.find_child
    with monkeypatch.context() as patched:
        patched.setattr(PassthroughSuperblock, "find_child", too_early)
        with pytest.raises(FileExistsError):
            inside.open("f", abi.O_CREAT | abi.O_WRONLY, 0o644)
    assert (shared / "f").read_bytes() == b"the host's"
    inside.close(inside.open("f", abi.O_CREAT | abi.O_WRONLY, 0o644))


def test_what_the_host_changes_is_seen_at_the_next_look(inside: Task, shared: Path) -> None:
    path = shared / "f"
    with pytest.raises(FileNotFoundError):
        inside.stat("f")
    path.write_bytes(b"abc")
    first = inside.stat("f")
    assert first.st_size == 3
    path.write_bytes(b"abcdef")
    path.chmod(0o611)
    second = inside.stat("f")
    assert (second.st_size, second.st_mode & 0o7777) == (6, 0o611)
    (shared / "g").write_bytes(b"another")
    os.rename(shared / "g", path)
    assert inside.stat("f").st_ino == path.stat().st_ino != first.st_ino
    path.unlink()
    with pytest.raises(FileNotFoundError):
        inside.stat("f")
    path.mkdir()
    assert inside.stat("f").st_mode & abi.S_IFMT == abi.S_IFDIR


def test_a_packed_copy_of_attributes_lives_until_one_of_them_changes(
    inside: Task, shared: Path, superblock: PassthroughSuperblock
) -> None:
    (shared / "f").write_bytes(b"abc")
    inode = superblock.root_inode.lookup(b"f")
    assert inode is not None
    inode.wire = b"packed"
    inode.refresh()
    inside.stat("f")
    assert inode.wire == b"packed"
    (shared / "f").chmod(0o600)
    inode.refresh()
    assert inode.wire is None
    assert inode.mode & 0o7777 == 0o600
    inode.put()


def test_a_file_the_host_deleted_stays_usable_through_what_is_open(
    inside: Task, shared: Path
) -> None:
    (shared / "f").write_bytes(b"abc")
    fd = inside.open("f", abi.O_RDWR)
    (shared / "f").unlink()
    assert inside.fstat(fd).st_nlink == 0
    assert inside.write(fd, b"xyz") == 3
    assert inside.pread64(fd, 10, 0) == b"xyz"
    inside.fchmod(fd, 0o640)
    assert inside.fstat(fd).st_mode & 0o7777 == 0o640
    inside.ftruncate(fd, 1)
    assert inside.fstat(fd).st_size == 1
    with pytest.raises(FileNotFoundError):
        inside.stat("f")


def test_nothing_can_be_made_in_a_directory_the_host_deleted(inside: Task, shared: Path) -> None:
    (shared / "d").mkdir()
    inside.chdir("d")
    (shared / "d").rmdir()
    with pytest.raises(FileNotFoundError):
        inside.mkdir("new")
    with pytest.raises(FileNotFoundError):
        inside.open("new", abi.O_CREAT | abi.O_RDWR, 0o644)


def test_rename_exchange_swaps_a_file_and_a_directory(inside: Task, shared: Path) -> None:
    (shared / "f").write_bytes(b"abc")
    (shared / "d").mkdir()
    (shared / "d" / "inner").touch()
    inside.stat("d/inner")
    inside.renameat2(abi.AT_FDCWD, "f", abi.AT_FDCWD, "d", abi.RENAME_EXCHANGE)
    assert (shared / "d").read_bytes() == b"abc"
    assert os.listdir(shared / "f") == ["inner"]
    assert inside.stat("f/inner").st_ino == (shared / "f" / "inner").stat().st_ino


def test_rename_noreplace_keeps_what_the_host_has_made_meanwhile(
    inside: Task, shared: Path, superblock: PassthroughSuperblock
) -> None:
    (shared / "a").write_bytes(b"a")
    root = superblock.root_inode
    inode = root.lookup(b"a")
    assert inode is not None
    (shared / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        root.rename(b"a", inode, root, b"b", None, abi.RENAME_NOREPLACE, inside.cred)
    inode.put()
    assert (shared / "b").read_bytes() == b"b"


NAME_CALLS: list[Call] = [
    lambda api: api.mkdir("d", 0o755),
    lambda api: api.mkdir("d/e", 0o755),
    lambda api: api.mkdir("d", 0o755),
    lambda api: api.rmdir("d"),
    lambda api: api.unlink("d"),
    lambda api: api.close(api.open("f", abi.O_CREAT | abi.O_EXCL | abi.O_WRONLY, 0o640)),
    lambda api: api.open("f", abi.O_CREAT | abi.O_EXCL | abi.O_WRONLY, 0o640),
    lambda api: api.link("f", "d/hard"),
    lambda api: api.link("d", "d2"),
    lambda api: api.symlink("f", "d/soft"),
    lambda api: api.symlink("x" * 4095, "long"),
    lambda api: api.symlink("x" * 4096, "toolong"),
    lambda api: api.rename("d/hard", "f"),
    lambda api: api.rename("d", "d/e/f"),
    lambda api: api.rename("f", "d"),
    lambda api: api.rename("d", "f"),
    lambda api: api.rename("d/e", "g"),
    lambda api: api.rmdir("f"),
    lambda api: api.mkdir("n" * 255, 0o700),
    lambda api: api.mkdir("n" * 256, 0o700),
    lambda api: api.unlink("missing"),
    lambda api: api.rename("missing", "f"),
    lambda api: api.mkdir("f/x", 0o755),
    lambda api: api.truncate("f", 12345),
    lambda api: api.truncate("d", 1),
    lambda api: api.chmod("f", 0o4751),
    lambda api: api.unlink("d/hard"),
    lambda api: api.open("d/soft", abi.O_RDONLY | abi.O_NOFOLLOW),
    lambda api: api.open("g", abi.O_RDONLY | abi.O_CREAT),
]


@needs_root
def test_calls_on_names_end_as_the_kernels_do(inside: Task, shared: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    twin.chmod(0o755)
    ids = (os.geteuid(), os.getegid(), os.getgroups())
    assert by_task(inside, NAME_CALLS) == by_kernel(twin, *ids, NAME_CALLS)
    assert tree(shared) == tree(twin)


def test_times_are_set_left_alone_or_now_as_asked(inside: Task, shared: Path) -> None:
    (shared / "f").touch()
    (shared / "l").symlink_to("f")
    inside.utimensat(abi.AT_FDCWD, "f", ((1, 1), (2, 2)))
    host = (shared / "f").stat()
    assert (host.st_atime_ns, host.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    with inside.vfs.lock:
        inode = inside.fs.root.inode.lookup(b"f")
        assert inode is not None
        inode.setattr(SetAttributes(mtime_ns=-5), inside.cred)
        assert (inode.atime_ns, inode.mtime_ns) == (1_000_000_001, -5)
        inode.put()
    inside.utimensat(abi.AT_FDCWD, "l", ((7, 7), (8, 8)), abi.AT_SYMLINK_NOFOLLOW)
    assert (shared / "l").lstat().st_mtime_ns == 8_000_000_008
    assert (shared / "f").stat().st_mtime_ns == -5


def test_an_unnamed_file_can_be_written_and_then_named(inside: Task, shared: Path) -> None:
    inside.mkdir("d")
    fd = inside.open("d", abi.O_TMPFILE | abi.O_RDWR, 0o640)
    inside.write(fd, b"unnamed")
    assert inside.fstat(fd).st_nlink == 0
    assert os.listdir(shared / "d") == []
    inside.linkat(fd, "", abi.AT_FDCWD, "named", abi.AT_EMPTY_PATH)
    assert (shared / "named").read_bytes() == b"unnamed"
    assert inside.fstat(fd).st_nlink == 1
    assert (shared / "named").stat().st_mode & 0o7777 == 0o640


@needs_root
def test_extended_attributes_are_the_hosts_on_files_directories_and_symlinks(
    inside: Task, shared: Path
) -> None:
    (shared / "f").touch()
    (shared / "d").mkdir()
    (shared / "l").symlink_to("f")
    for name in ("f", "d"):
        inside.setxattr(name, "user.small", b"\0\xff")
        assert os.getxattr(shared / name, "user.small") == b"\0\xff"
    big = os.urandom(3000)
    inside.setxattr("f", "user.big", big)
    inside.setxattr("f", "user.empty", b"")
    assert inside.getxattr("f", "user.big") == big
    assert inside.getxattr("f", "user.empty") == b""
    assert sorted(inside.listxattr("f")) == [b"user.big", b"user.empty", b"user.small"]
    inside.removexattr("f", "user.big")
    assert sorted(os.listxattr(shared / "f")) == ["user.empty", "user.small"]
    for attempt, number in (
        (lambda: inside.getxattr("f", "user.none"), errno.ENODATA),
        (lambda: inside.setxattr("f", "user.small", b"", abi.XATTR_CREATE), errno.EEXIST),
        (lambda: inside.setxattr("f", "user.none", b"", abi.XATTR_REPLACE), errno.ENODATA),
        (lambda: inside.removexattr("f", "user.none"), errno.ENODATA),
        (lambda: inside.setxattr("l", "user.a", b"", follow=False), errno.EPERM),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == number
    inside.setxattr("l", "trusted.of", b"link", follow=False)
    assert os.getxattr(shared / "l", "trusted.of", follow_symlinks=False) == b"link"
    assert inside.getxattr("l", "trusted.of", follow=False) == b"link"
    assert b"trusted.of" not in inside.listxattr("f")


@needs_root
def test_an_acl_is_set_by_the_owner_and_by_nobody_else(
    inside: Task, inside_user: Task, shared: Path
) -> None:
    for name, owner in (("mine", 1000), ("roots", 0)):
        (shared / name).touch()
        os.chown(shared / name, owner, owner)
    # user::rwx, user:1001:r--, group::r--, mask::r--, other::---
    entries = ((1, 7, -1), (2, 4, 1001), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    inside_user.setxattr("mine", "system.posix_acl_access", acl)
    assert os.getxattr(shared / "mine", "system.posix_acl_access") == acl
    with pytest.raises(PermissionError) as caught:
        inside_user.setxattr("roots", "system.posix_acl_access", acl)
    assert caught.value.errno == errno.EPERM


def test_statfs_shows_the_hosts_figures(inside: Task, shared: Path) -> None:
    ours, host = inside.statfs("/"), os.statvfs(shared)
    assert (ours.f_bsize, ours.f_blocks, ours.f_files, ours.f_namelen) == (
        host.f_bsize, host.f_blocks, host.f_files, host.f_namemax,
    )  # fmt: skip


@pytest.fixture
def bind_mounted(shared: Path) -> Iterator[Path]:
    """``shared/mnt``, where the host has bind-mounted ``shared/d``."""
    if os.geteuid():
        pytest.skip("mounts on the host: needs root")
    (shared / "d").mkdir()
    (shared / "d" / "f").write_bytes(b"x")
    (shared / "mnt").mkdir()
    if subprocess.run(["mount", "--bind", shared / "d", shared / "mnt"]).returncode:
        pytest.skip("no mounts here")
    yield shared / "mnt"
    subprocess.run(["umount", "-l", shared / "mnt"], check=True)


def test_a_file_seen_through_two_mounts_of_the_host_is_two_inodes(
    bind_mounted: Path, inside: Task, superblock: PassthroughSuperblock, shared: Path
) -> None:
    assert inside.stat("d/f").st_ino == inside.stat("mnt/f").st_ino
    assert len(superblock.inodes) == 5
    inside.mkdir("mnt/new")
    assert (shared / "d" / "new").is_dir()
    with pytest.raises(OSError) as caught:
        inside.link("d/f", "mnt/g")
    assert caught.value.errno == errno.EXDEV
    with pytest.raises(OSError) as caught:
        inside.rmdir("mnt")
    assert caught.value.errno == errno.EBUSY


def test_a_mount_of_the_hosts_on_a_known_directory_is_noticed(inside: Task, shared: Path) -> None:
    if os.geteuid():
        pytest.skip("mounts on the host: needs root")
    (shared / "mnt").mkdir()
    before = inside.stat("mnt").st_ino
    if subprocess.run(["mount", "-t", "tmpfs", "none", shared / "mnt"]).returncode:
        pytest.skip("no mounts here")
    try:
        (shared / "mnt" / "f").write_bytes(b"on tmpfs")
        assert inside.stat("mnt/f").st_size == 8
        assert inside.stat("mnt").st_ino != before
    finally:
        subprocess.run(["umount", "-l", shared / "mnt"], check=True)
    assert inside.stat("mnt").st_ino == before


def test_a_read_only_mount_leaves_the_hosts_access_times_alone(
    vfs: VirtualFilesystem, shared: Path
) -> None:
    if os.geteuid():
        pytest.skip("O_NOATIME on files of others: needs root")
    (shared / "f").write_bytes(b"abc")
    os.utime(shared / "f", (1, 1))
    with vfs.create_namespace(
        "passthrough", source=bytes(shared), flags=abi.MS_RDONLY
    ) as namespace:
        task = vfs.create_task(namespace)
    assert task.read(task.open("f", abi.O_RDONLY), 10) == b"abc"
    assert (shared / "f").stat().st_atime == 1
    with pytest.raises(OSError) as caught:
        task.mkdir("d")
    assert caught.value.errno == errno.EROFS


def test_a_file_is_created_in_the_cwd_after_the_host_moved_it(inside: Task, shared: Path) -> None:
    (shared / "a").mkdir()
    inside.chdir("/a")
    os.rename(shared / "a", shared / "b")
    with pytest.raises(FileNotFoundError):
        inside.stat("/a")
    inside.close(inside.open("new", abi.O_CREAT | abi.O_WRONLY, 0o644))
    assert os.listdir(shared / "b") == ["new"]
