"""Writes cpio archives in the `newc` format, the one the kernel unpacks as an initramfs.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel, and cpio(5).
"""

from __future__ import annotations

import stat
from typing import Final

_MAGIC: Final = b"070701"
_HEADER_SIZE: Final = 110
_TRAILER: Final = b"TRAILER!!!"
_FIELD_MAX: Final = 0xFFFFFFFF


class CpioWriter:
    """An archive under construction, in memory.

    Paths are relative to the archive's root, without a leading slash, and a directory comes
    before what it holds: the kernel unpacks in order and makes no parents. Everything belongs to
    root and has mtime 0, so that equal contents give equal archives.
    """

    __slots__ = ("_archive", "_ino")

    def __init__(self) -> None:
        self._archive = bytearray()
        self._ino = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._entry(path, stat.S_IFDIR | mode, nlink=2)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(path, stat.S_IFREG | mode, data=data)

    def symlink(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, data=target.encode("utf-8", "surrogateescape"))

    def device(self, path: str, kind: int, major: int, minor: int, mode: int = 0o600) -> None:
        """A device node; `kind` is `stat.S_IFCHR` or `stat.S_IFBLK`."""
        self._entry(path, kind | mode, rdev=(major, minor))

    def fifo(self, path: str, mode: int = 0o600) -> None:
        self._entry(path, stat.S_IFIFO | mode)

    def finish(self) -> bytes:
        """Return the archive with its trailer. The writer stays usable and unchanged."""
        trailer = bytearray(self._archive)
        _append(trailer, _TRAILER, ino=0, mode=0, nlink=1, data=b"", rdev=(0, 0))
        return bytes(trailer)

    def _entry(
        self,
        path: str,
        mode: int,
        *,
        nlink: int = 1,
        data: bytes = b"",
        rdev: tuple[int, int] = (0, 0),
    ) -> None:
        name = path.encode("utf-8", "surrogateescape")
        if not name or name.startswith(b"/") or b"\0" in name:
            raise ValueError(f"not a path inside an archive: {path!r}")
        if len(data) > _FIELD_MAX:
            raise ValueError(f"{path}: {len(data)} bytes do not fit a newc header")
        self._ino += 1
        _append(self._archive, name, ino=self._ino, mode=mode, nlink=nlink, data=data, rdev=rdev)


def _append(
    archive: bytearray,
    name: bytes,
    *,
    ino: int,
    mode: int,
    nlink: int,
    data: bytes,
    rdev: tuple[int, int],
) -> None:
    uid = gid = mtime = dev_major = dev_minor = check = 0
    fields = (
        *(ino, mode, uid, gid, nlink, mtime, len(data)),
        *(dev_major, dev_minor, *rdev, len(name) + 1, check),
    )
    archive += _MAGIC + b"".join(b"%08X" % field for field in fields)
    archive += name + b"\0"
    archive += bytes(-(_HEADER_SIZE + len(name) + 1) % 4)
    archive += data
    archive += bytes(-len(data) % 4)
