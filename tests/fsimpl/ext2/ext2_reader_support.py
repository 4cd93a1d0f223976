"""Images of mke2fs and of the running kernel, and what the kernel and the VFS see in them."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from vfs.task import Task

MIB = 1 << 20
ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as setxattr(2) takes it, of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
AN_ACL = acl(
    (1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (8, 4, 70000), (16, 7, NO_ID), (32, 0, NO_ID)
)


def mke2fs(image: Path, size: str, *arguments: str, tree: Path | None = None) -> Path:
    """An image of ``size``; of ``tree`` if given. Returns ``image``."""
    source = [] if tree is None else ["-d", str(tree)]
    command = ["mke2fs", "-q", "-F", *arguments, *source, str(image), size]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return image


def debugfs(image: Path, *requests: str) -> str:
    """Run ``requests``, which may write; returns what they print."""
    text = "".join(request + "\n" for request in requests)
    command = ["debugfs", "-w", "-f", "-", str(image)]
    done = subprocess.run(command, check=True, input=text, capture_output=True, text=True)
    return done.stdout


def index_directories(image: Path) -> None:
    """Give each directory of several blocks an index, which mke2fs does not."""
    done = subprocess.run(["e2fsck", "-fyD", str(image)], capture_output=True)
    assert done.returncode in (0, 1), done.stdout


@contextmanager
def kernel_mount(image: Path, options: str = "ro") -> Generator[Path]:
    """``image`` mounted by the kernel, where that may be done here."""
    if os.geteuid():
        pytest.skip("mounting takes root")
    place = image.with_name(image.name + ".mounted")
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "ext4", "-o", f"loop,{options}", str(image), str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the kernel does not mount it: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def populate(root: Path, block_size: int) -> None:
    """A tree with one of everything, as far as the filesystem below ``root`` takes it."""
    (root / "empty").write_bytes(b"")
    (root / "small").write_bytes(b"small\n")
    (root / "tail").write_bytes(os.urandom(block_size * 3 + 17))
    (root / "indirect").write_bytes(os.urandom(block_size * 40))
    (root / "double").write_bytes(os.urandom(block_size * (12 + block_size // 4 + 30)))
    fan = block_size // 4
    places = (0, 5, 11, 12, 12 + fan - 1, 12 + fan, 12 + fan + fan * fan - 1, 12 + fan + fan * fan)
    with (root / "sparse").open("wb") as file:
        for place in places:
            file.seek(place * block_size)
            file.write(b"%d" % place)
        file.truncate((places[-1] + 100) * block_size + 3)
    with (root / "large").open("wb") as file:
        file.truncate(3 << 30)
        file.seek((3 << 30) - 1)
        file.write(b"x")
    with (root / "fragments").open("wb") as file:
        for place in range(0, 800, 2):
            file.seek(place * block_size)
            file.write(b"%d" % place)
    with (root / "unwritten").open("wb") as file:
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, 20 * block_size)
        file.seek(3 * block_size)
        file.write(b"written")
    os.mkfifo(root / "fifo", 0o640)
    for name, device in (("old", (1, 3)), ("wide", (300, 70000)), ("disk", (7, 255))):
        kind = stat.S_IFBLK if name == "disk" else stat.S_IFCHR
        os.mknod(root / name, kind | 0o600, os.makedev(*device))
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(root, os.O_PATH)
        bound.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    for length in (1, 59, 60, min(block_size - 1, 4095)):
        (root / f"link-{length}").symlink_to("t" * length)
    (root / "hard").hardlink_to(root / "small")
    deep = root / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "name with \u00fc and \n").write_bytes(b"deep")
    (deep / ("n" * 255)).write_bytes(b"long")
    (deep / "again").hardlink_to(root / "small")
    many = root / "many"
    many.mkdir()
    for number in range(1200):
        (many / f"{number:04}{'x' * (number % 60)}\u00e4").touch()
    for number in range(0, 1200, 7):
        (many / f"{number:04}{'x' * (number % 60)}\u00e4").unlink()
    attributes = root / "attributes"
    attributes.mkdir(0o700)
    for name, values in {
        "little": {"user.a": b"1"},
        "several": {"user.a": b"1", "user.bb": b"", "trusted.t": b"t", "security.s": b"\0\xff"},
        "big": {"user.big": b"b" * (block_size - 200), "user.small": b"s"},
        "capability": {"security.capability": struct.pack("<5I", 0x2000001, 1 << 10, 0, 0, 0)},
        "acl": {ACL_ACCESS: AN_ACL, "user.beside": b"x"},
    }.items():
        (attributes / name).write_bytes(b"with attributes")
        for key, value in values.items():
            os.setxattr(attributes / name, key, value)
    os.setxattr(attributes, ACL_DEFAULT, AN_ACL)
    os.setxattr(attributes, "user.of.directory", b"d")
    owned = root / "owned"
    owned.mkdir(0o2775)
    os.chown(owned, 65536, 4_000_000_000)
    (owned / "setuid").touch()
    os.chown(owned / "setuid", 1000, 100)
    (owned / "setuid").chmod(0o6755)
    for name, seconds in (("old", -1_500_000_000), ("new", 8_000_000_000), ("now", 1_700_000_000)):
        (owned / name).touch()
        times = seconds * 10**9 + 123_456_789, seconds * 10**9 + 987_654_321
        os.utime(owned / name, ns=times)


def _pread(task: Task, fd: int, count: int, offset: int) -> bytes:
    return task.pread64(fd, count, offset)


class View(Protocol):
    """What a tree can be asked, by paths from its root."""

    def stat(self, path: str) -> Any: ...
    def names(self, path: str) -> list[tuple[str, int]]: ...
    def readlink(self, path: str) -> bytes: ...
    def attributes(self, path: str) -> dict[str, bytes]: ...
    def content(self, path: str) -> list[tuple[int, int, str]]: ...


def _pieces(size: int, seek: Any, read: Any) -> list[tuple[int, int, str]]:
    """Where there is data, from and to, and its hash."""
    found = []
    at = 0
    while at < size:
        try:
            start = seek(at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        at = seek(start, os.SEEK_HOLE)
        found.append((start, at))
    # Not before, because Linux takes for data what it has read of an unwritten extent.
    return [(start, end, _hash(start, end, read)) for start, end in found]


def _hash(start: int, end: int, read: Any) -> str:
    digest = hashlib.sha256()
    for offset in range(start, end, MIB):
        digest.update(read(min(MIB, end - offset), offset))
    return digest.hexdigest()


class HostView:
    """A directory of the host."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def _path(self, path: str) -> bytes:
        return self.root + os.fsencode(path)

    def stat(self, path: str) -> os.stat_result:
        return os.lstat(self._path(path))

    def names(self, path: str) -> list[tuple[str, int]]:
        with os.scandir(self._path(path)) as entries:
            return sorted((os.fsdecode(entry.name), entry.inode()) for entry in entries)

    def readlink(self, path: str) -> bytes:
        return os.readlink(self._path(path))

    def attributes(self, path: str) -> dict[str, bytes]:
        where = self._path(path)
        names = os.listxattr(where, follow_symlinks=False)
        return {name: os.getxattr(where, name, follow_symlinks=False) for name in names}

    def content(self, path: str) -> list[tuple[int, int, str]]:
        fd = os.open(self._path(path), os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            return _pieces(
                size,
                lambda at, whence: os.lseek(fd, at, whence),
                lambda count, at: os.pread(fd, count, at),
            )
        finally:
            os.close(fd)


class TaskView:
    """A directory of the VFS."""

    def __init__(self, task: Task, root: str) -> None:
        self.task = task
        self.root = root

    def stat(self, path: str) -> Any:
        return self.task.lstat(self.root + path)

    def names(self, path: str) -> list[tuple[str, int]]:
        fd = self.task.open(self.root + path, os.O_RDONLY | os.O_DIRECTORY)
        found = []
        while records := self.task.getdents64(fd, 500):
            found += [(os.fsdecode(r.d_name), r.d_ino) for r in records]
        self.task.close(fd)
        return sorted(entry for entry in found if entry[0] not in (".", ".."))

    def readlink(self, path: str) -> bytes:
        return self.task.readlink(self.root + path)

    def attributes(self, path: str) -> dict[str, bytes]:
        where = self.root + path
        names = self.task.listxattr(where, follow=False)
        return {os.fsdecode(n): self.task.getxattr(where, n, follow=False) for n in names}

    def content(self, path: str) -> list[tuple[int, int, str]]:
        task = self.task
        fd = task.open(self.root + path, os.O_RDONLY)
        try:
            return _pieces(
                task.fstat(fd).st_size,
                lambda at, whence: task.lseek(fd, at, whence),
                lambda count, at: task.pread64(fd, count, at),
            )
        finally:
            task.close(fd)


FIELDS = (
    "st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blocks",
    "st_mtime_ns", "st_atime_ns", "st_ctime_ns",
)  # fmt: skip
SOURCE_FIELDS = ("st_mode", "st_uid", "st_gid", "st_rdev")


def describe(
    view: View, fields: tuple[str, ...] = FIELDS, skip: tuple[str, ...] = ()
) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree, by path; but for the paths in ``skip``."""
    found: dict[str, tuple[object, ...]] = {}
    todo = [""]
    while todo:
        path = todo.pop()
        status = view.stat(path or "/")
        row: list[object] = [getattr(status, field) for field in fields if path or not skip]
        row.append(view.attributes(path or "/"))
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            names = [entry for entry in view.names(path or "/") if f"{path}/{entry[0]}" not in skip]
            row.append(names if "st_ino" in fields else [name for name, _ in names])
            todo += [f"{path}/{name}" for name, _ in names]
        elif stat.S_ISLNK(mode):
            row.append(view.readlink(path))
        elif stat.S_ISREG(mode):
            row.append(view.content(path))
        found[path] = tuple(row)
    return found


def assert_same(task: Task, where: str, tree: Path, fields: tuple[str, ...]) -> None:
    """The image mounted at ``where`` holds what ``tree`` does; where holes begin and end depends on
    the size of blocks.
    """
    skip = ("/lost+found",)
    expected = describe(HostView(tree), fields, skip)
    found = describe(TaskView(task, where), fields, skip)
    assert found.keys() == expected.keys()
    for path, row in expected.items():
        if not stat.S_ISREG(task.lstat(where + path).st_mode):
            assert found[path] == row, path
            continue
        assert found[path][:-1] == row[:-1], path
        assert task.stat(where + path).st_size == os.lstat(os.fsencode(f"{tree}{path}")).st_size
        fd = task.open(where + path, os.O_RDONLY)
        for start, end, digest in HostView(tree).content(path):
            assert _hash(start, end, partial(_pread, task, fd)) == digest, (path, start)
        task.close(fd)
