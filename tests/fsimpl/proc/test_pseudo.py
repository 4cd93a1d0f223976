"""The base of generated trees, as one who builds a tree on it meets it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from proc_support import fails_with

from fsimpl.pseudo import (
    MagicLink,
    PseudoDirectory,
    PseudoFile,
    PseudoSuperblock,
    Row,
    directory,
    symlink,
    text,
)
from vfs import Credentials, VirtualFilesystem, abi
from vfs.abi import O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode
from vfs.mount import VirtualDentry
from vfs.superblock import DCACHE_REVALIDATE, DCACHE_VALID, FilesystemType, Superblock
from vfs.task import Task

MAGIC = 0x74657374


class Battery:
    """What the tree shows."""

    def __init__(self) -> None:
        self.level = 80
        self.limit = b"100"
        self.cells = [b"cell0", b"cell1"]
        self.asked = 0


class CellDirectory(PseudoDirectory):
    table = {b"voltage": text(lambda cell: b"4\n")}


class Cells(PseudoDirectory):
    """Names that come and go."""

    def names(self) -> list[bytes]:
        return list(battery_of(self).cells)

    def find(self, name: bytes) -> Inode | None:
        battery_of(self).asked += 1
        return CellDirectory(self) if name in battery_of(self).cells else None


class Counter(PseudoFile):
    """A file that is a class: each text is another one."""

    def show(self) -> bytes:
        battery = battery_of(self)
        battery.asked += 1
        return b"%d times\n" % battery.asked


class ToRoot(MagicLink):
    def readlink(self) -> bytes:
        return b"root:[it]"

    def follow_magic_link(self, cred: Credentials) -> VirtualDentry:
        current = self.superblock.vfs.current
        assert current is not None
        return VirtualDentry(current.fs.root.mount, current.fs.root.dentry).get()


def battery_of(inode: Inode) -> Battery:
    fstype = inode.superblock.type
    assert isinstance(fstype, BatteryType)
    return fstype.battery


def store_limit(above: PseudoDirectory, data: bytes, cred: Credentials) -> None:
    if not data.strip().isdigit():
        raise OSError(errno.EINVAL, "no number")
    battery_of(above).limit = data.strip()


class BatteryDirectory(PseudoDirectory):
    table = {
        b"level": text(lambda above: b"%d\n" % battery_of(above).level),
        b"limit": text(lambda above: battery_of(above).limit, store_limit),
        b"reset": text(None, store_limit),
        b"count": Row(abi.S_IFREG, Counter),
        b"link": symlink(b"cells/cell0"),
        b"away": Row(abi.S_IFLNK, ToRoot),
        b"cells": directory(Cells),
        b"sub": directory({b"deep": text(lambda above: b"deep\n")}, mode=0o500),
    }


class BatteryType(FilesystemType):
    name = "battery"

    def __init__(self, dcache: int) -> None:
        self.battery = Battery()
        self.dcache = dcache

    def get_tree(self, context: FilesystemContext) -> Superblock:
        return PseudoSuperblock(context, BatteryDirectory, magic=MAGIC, dcache=self.dcache)


@pytest.fixture
def mount(vfs: VirtualFilesystem, task: Task) -> Callable[[int], Battery]:
    """Mounts the tree on /b."""

    def make(dcache: int) -> Battery:
        fstype = BatteryType(dcache)
        vfs.register(fstype)
        task.mkdir("/b", 0o755)
        task.mount("none", "/b", "battery")
        return fstype.battery

    return make


@pytest.fixture
def battery(mount: Callable[[int], Battery]) -> Battery:
    return mount(DCACHE_REVALIDATE)


def read(task: Task, path: str) -> bytes:
    fd = task.open(path, O_RDONLY)
    try:
        return task.read(fd, 100)
    finally:
        task.close(fd)


def test_rows_become_files_links_and_directories(task: Task, battery: Battery) -> None:
    assert task.listdir("/b") == [name.decode() for name in BatteryDirectory.table]
    assert read(task, "/b/level") == b"80\n"
    assert read(task, "/b/sub/deep") == b"deep\n"
    assert task.readlink("/b/link") == b"cells/cell0"
    assert read(task, "/b/link/voltage") == b"4\n"
    modes = [task.lstat(f"/b/{name}").st_mode & 0o777 for name in ("level", "limit", "reset")]
    assert modes == [0o444, 0o644, 0o200]
    assert task.stat("/b").st_nlink == 4
    assert task.stat("/b/sub").st_mode == abi.S_IFDIR | 0o500


def test_each_write_is_one_message(task: Task, battery: Battery) -> None:
    fd = task.open("/b/limit", O_RDWR | O_TRUNC)
    assert task.write(fd, b"55\n") == 3
    assert task.pwrite64(fd, b"66", 1000) == 2
    assert battery.limit == b"66"
    fails_with(errno.EINVAL, task.write, fd, b"much")
    assert task.pread64(fd, 10, 0) == b"66"
    fails_with(errno.EINVAL, task.read, task.open("/b/reset", O_RDWR), 1)
    fails_with(errno.EINVAL, task.write, task.open("/b/level", O_WRONLY), b"1")


def test_a_text_is_made_at_the_first_read_and_at_each_rewind(task: Task, battery: Battery) -> None:
    fd = task.open("/b/count", O_RDONLY)
    assert not battery.asked
    assert task.read(fd, 3) == b"1 t"
    assert task.read(fd, 30) == b"imes\n"
    assert task.read(fd, 30) == b""
    assert task.pread64(fd, 3, 2) == b"tim"
    assert battery.asked == 1
    task.lseek(fd, 0, abi.SEEK_SET)
    assert task.read(fd, 30) == b"2 times\n"
    other = task.open("/b/count", O_RDONLY)
    assert task.pread64(other, 30, 2) == b"times\n"


def test_a_magic_link_jumps_whatever_its_text_says(task: Task, battery: Battery) -> None:
    assert task.readlink("/b/away") == b"root:[it]"
    assert task.stat("/b/away").st_ino == task.stat("/").st_ino
    assert task.stat("/b/away/b/level").st_size == 0


def test_computed_names_come_and_go(task: Task, battery: Battery) -> None:
    assert task.listdir("/b/cells") == ["cell0", "cell1"]
    kept = task.open("/b/cells/cell0/voltage", O_RDONLY)
    battery.cells = [b"cell1", b"cell2"]
    assert task.listdir("/b/cells") == ["cell1", "cell2"]
    fails_with(errno.ENOENT, task.stat, "/b/cells/cell0")
    assert read(task, "/b/cells/cell2/voltage") == b"4\n"
    assert task.read(kept, 10) == b"4\n"


def test_where_the_cache_is_valid_a_name_is_asked_for_once(
    vfs: VirtualFilesystem, task: Task, mount: Callable[[int], Battery]
) -> None:
    battery = mount(DCACHE_VALID)
    for _ in range(3):
        task.stat("/b/cells/cell0")
        fails_with(errno.ENOENT, task.stat, "/b/cells/cell2")
    assert battery.asked == 2
    with task.lock, task._lookup(abi.AT_FDCWD, "/b/cells") as found:
        superblock: Any = found.dentry.superblock
        battery.cells = [b"cell2"]
        for name in (b"cell0", b"cell2"):
            superblock.invalidate(found.dentry, name)
    fails_with(errno.ENOENT, task.stat, "/b/cells/cell0")
    assert read(task, "/b/cells/cell2/voltage") == b"4\n"


def test_invalidate_takes_mounts_below_away_and_leaves_open_files(
    vfs: VirtualFilesystem, task: Task, battery: Battery
) -> None:
    task.mount("none", "/b/cells/cell0", "tmpfs")
    kept = task.open("/b/cells/cell1/voltage", O_RDONLY)
    fails_with(errno.ENOENT, task.stat, "/b/cells/cell0/voltage")
    with task.lock, task._lookup(abi.AT_FDCWD, "/b/cells") as found:
        superblock: Any = found.dentry.superblock
        for name in (b"cell0", b"cell1", b"nothing"):
            superblock.invalidate(found.dentry, name)
    assert read(task, "/b/cells/cell0/voltage") == b"4\n"
    assert task.read(kept, 10) == b"4\n"


def test_a_seek_to_a_cookie_holds_while_names_change(task: Task, battery: Battery) -> None:
    battery.cells = [b"cell%d" % index for index in range(20)]
    fd = task.open("/b/cells", O_RDONLY)
    entries = task.getdents64(fd, 4096)
    after_five = entries[6].d_off
    battery.cells = [b"early", *battery.cells[3:]]
    task.lseek(fd, after_five, abi.SEEK_SET)
    rest = [entry.d_name for entry in task.getdents64(fd, 4096)]
    assert rest == [*(b"cell%d" % index for index in range(5, 20)), b"early"]


def test_nothing_is_made_or_changed(task: Task, battery: Battery) -> None:
    fails_with(errno.EPERM, task.mkdir, "/b/x", 0o755)
    fails_with(errno.EACCES, task.open, "/b/x", O_CREAT | O_RDWR, 0o644)
    fails_with(errno.EPERM, task.unlink, "/b/level")
    fails_with(errno.EPERM, task.fchmodat2, abi.AT_FDCWD, "/b/level", 0o600, 0)
    task.utimensat(abi.AT_FDCWD, "/b/level", ((5, 0), (5, 0)))
    assert task.stat("/b/level").st_mtime_ns == 5 * 10**9
    task.truncate("/b/limit", 0)
    assert battery.limit == b"100"


def test_who_asks_is_known_during_a_call_and_not_after(vfs: VirtualFilesystem, task: Task) -> None:
    seen: list[object] = []

    class Asking(PseudoDirectory):
        def names(self) -> list[bytes]:
            seen.append(self.superblock.vfs.current)
            return []

    class AskingType(FilesystemType):
        name = "asking"

        def get_tree(self, context: FilesystemContext) -> Superblock:
            return PseudoSuperblock(context, Asking, magic=MAGIC)

    vfs.register(AskingType())
    task.mkdir("/a", 0o755)
    task.mount("none", "/a", "asking")
    with task.clone() as other:
        task.listdir("/a")
        other.listdir("/a")
        assert seen == [task, other]
    assert vfs.current is None
