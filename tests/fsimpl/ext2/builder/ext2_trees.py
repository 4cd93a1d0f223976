"""Trees that have everything, for images."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from pathlib import Path

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
_DAY = 86400 * 10**9


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as setxattr(2) takes it, of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<2HI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
ACCESS = acl(
    (1, 6, NO_ID), (2, 6, 1000), (2, 4, 70000), (4, 4, NO_ID), (8, 1, 5), (0x10, 7, NO_ID),
    (0x20, 4, NO_ID),
)  # fmt: skip
DEFAULT = acl((1, 7, NO_ID), (2, 7, 1001), (4, 5, NO_ID), (0x10, 7, NO_ID), (0x20, 0, NO_ID))


def write_at(path: Path, *pieces: tuple[int, bytes], size: int = 0) -> None:
    """A file with data at some offsets only."""
    with path.open("wb") as file:
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, offset)
        if size:
            file.truncate(size)


def make_extremes(top: Path) -> None:
    """Every type of file, link, attribute and time, as root, on the host's file system."""
    numbers = random.Random(5)
    (top / "file").write_bytes(b"hello\n")
    os.link(top / "file", top / "second name")
    (top / "empty").touch()
    (top / "dir").mkdir()
    (top / "dir" / "inside").mkdir()
    os.link(top / "file", top / "dir" / "third name")
    for length in (1, 59, 60, 61, 3900):
        path = ("y" * 200 + "/") * 20
        (top / f"symlink {length}").symlink_to(path[: length - 1] + "e")
    os.mkfifo(top / "fifo")
    os.mknod(top / "char", stat.S_IFCHR | 0o640, os.makedev(5, 1))
    os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(300, 70000))
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(top)  # a socket's path is short
        unix.bind("socket")
        os.chdir(here)
    (top / "random").write_bytes(numbers.randbytes(5_000_123))
    write_at(top / "hole", size=3 << 30)
    write_at(
        top / "sparse", (5_000, b"a"), (4096 * 12, b"b" * 9000), (4096 * 1036 - 3, b"cdefgh"),
        (4096 * (1036 + 1024**2) - 3, b"ijklmn"), (6 << 30, b"end"),
    )  # fmt: skip
    (top / "many").mkdir()
    for number in range(1500):
        (top / "many" / f"name {number} of many").touch()
    for name in (b"\xff\xfe not text", b"n" * 255, "größer".encode(), b"new\nline"):
        with open(os.path.join(os.fsencode(top), name), "wb") as file:
            file.write(name)
    os.setxattr(top / "file", "user.small", b"x")
    os.setxattr(top / "file", "trusted.t", b"\0" * 30)
    os.setxattr(top / "file", "system.posix_acl_access", ACCESS)
    os.setxattr(top / "random", "security.capability", CAPABILITY)
    os.setxattr(top / "char", "trusted.device", b"1")
    os.setxattr(top / "symlink 59", "trusted.link", b"2", follow_symlinks=False)
    os.setxattr(top / "symlink 60", "trusted.link", b"3", follow_symlinks=False)
    for name in ("dir", "many", "empty"):
        os.setxattr(top / name, "user.large", b"v" * 3000)
        os.setxattr(top / name, "user.no value", b"")
    os.setxattr(top / "dir", "system.posix_acl_default", DEFAULT)
    os.chown(top / "random", 100_000, 200_000)
    os.chmod(top / "random", 0o4755)
    os.chmod(top / "dir", 0o1777)
    for name, time_ns in (
        ("file", -3650 * _DAY - 1), ("empty", 47_482 * _DAY + 123_456_789),
        ("random", 0), ("fifo", 2**31 * 10**9 - 1), ("char", 2**31 * 10**9 + 1),
    ):  # fmt: skip
        os.utime(top / name, ns=(time_ns, time_ns))
    os.utime(top / "dir", ns=(1, 10**9 - 1))
