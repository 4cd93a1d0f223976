"""The kernel's system calls, raw: what ``os`` has no function for, or adds O_CLOEXEC to.

Numbers and structures are those of x86-64. Methods have the names, arguments and results of
``vfs.task.Task``'s.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from typing import Any, Final

from harness.testbed.step import SIGNATURES
from vfs.syscalls.attributes import Stat, StatfsResult, Statx
from vfs.syscalls.names import DirectoryRecord

_NUMBERS: Final = {
    "access": 21, "chdir": 80, "chmod": 90, "chown": 92, "chroot": 161, "close": 3,
    "close_range": 436, "creat": 85, "dup": 32, "dup2": 33, "dup3": 292, "faccessat2": 439,
    "fallocate": 285, "fchdir": 81, "fchmod": 91, "fchmodat2": 452, "fchown": 93, "fchownat": 260,
    "fcntl": 72, "fdatasync": 75, "fremovexattr": 199, "fsync": 74, "ftruncate": 77, "lchown": 94,
    "link": 86, "linkat": 265, "lremovexattr": 198, "lseek": 8, "mkdir": 83, "mkdirat": 258,
    "mknod": 133, "mknodat": 259, "mount": 165, "open": 2, "openat": 257, "pivot_root": 155,
    "removexattr": 197, "rename": 82, "renameat2": 316, "rmdir": 84, "symlink": 88,
    "symlinkat": 266, "sync": 162, "syncfs": 306, "truncate": 76, "umask": 95, "umount2": 166,
    "unlink": 87, "unlinkat": 263, "unshare": 272,
}  # fmt: skip
_CLONE: Final = 56
_COPY_FILE_RANGE: Final = 326
_GETCWD: Final = 79
_GETDENTS64: Final = 217
_NEWFSTATAT: Final = 262
_OPENAT2: Final = 437
_PREAD64: Final = 17
_PREADV2: Final = 327
_PRLIMIT64: Final = 302
_PWRITE64: Final = 18
_PWRITEV2: Final = 328
_READ: Final = 0
_STATX: Final = 332
_UTIMENSAT: Final = 280
_WRITE: Final = 1
_STAT_CALLS: Final = {"stat": 4, "fstat": 5, "lstat": 6}
_STATFS_CALLS: Final = {"statfs": 137, "fstatfs": 138}
_READLINK_CALLS: Final = {"readlink": 89, "readlinkat": 267}
_GETXATTR_CALLS: Final = {"getxattr": 191, "lgetxattr": 192, "fgetxattr": 193}
_SETXATTR_CALLS: Final = {"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190}
_LISTXATTR_CALLS: Final = {"listxattr": 194, "llistxattr": 195, "flistxattr": 196}

_RLIMIT_NOFILE: Final = 7
_XATTR_MAX: Final = 65536
_PATH_MAX: Final = 4096

_STAT: Final = struct.Struct("=QQQIIIIQqqqqqqqqq24x")
_STATX_STRUCT: Final = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ104x")
_STATFS: Final = struct.Struct("=qqQQQQQQqqq32x")
_DIRENT: Final = struct.Struct("=QqHB")
_OPEN_HOW: Final = struct.Struct("=QQQ")
_TIMESPECS: Final = struct.Struct("=qqqq")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *args: int | bytes | ctypes.Array[Any] | None) -> int:
    """syscall(2). Raises: OSError."""
    passed = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _libc.syscall(ctypes.c_long(number), *passed)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def is_supported() -> bool:
    """Whether the numbers here are this machine's."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def raw_clone(flags: int) -> int:
    """clone(2) as fork(2) with sharing ``flags``: 0 in the child, its pid in the parent."""
    return syscall(_CLONE, flags, 0, 0, 0, 0)


def _makedev(major: int, minor: int) -> int:
    return os.makedev(major, minor)


class HostSyscalls:
    """The calling process's system calls. Each raises OSError as the kernel answers."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The calls that take numbers and strings only and return a number or nothing."""
        number = _NUMBERS.get(name)
        if number is None:
            raise AttributeError(name)
        kinds = SIGNATURES[name]

        def call(*args: Any) -> int | None:
            passed = [_argument(kind, arg) for kind, arg in zip(kinds, args, strict=False)]
            passed += [0] * (len(kinds) - len(passed))
            result = syscall(number, *passed)
            return result if name in _RETURNS_NUMBER else None

        setattr(self, name, call)
        return call

    def setrlimit_nofile(self, limit: int) -> None:
        """The soft RLIMIT_NOFILE; the hard one stays."""
        old = ctypes.create_string_buffer(16)
        syscall(_PRLIMIT64, 0, _RLIMIT_NOFILE, None, old)
        hard = struct.unpack("=QQ", old.raw)[1]
        syscall(_PRLIMIT64, 0, _RLIMIT_NOFILE, struct.pack("=QQ", limit, hard), None)

    def openat2(
        self, dirfd: int, path: bytes, flags: int = 0, mode: int = 0, resolve: int = 0
    ) -> int:
        how = _OPEN_HOW.pack(flags, mode, resolve)
        return syscall(_OPENAT2, dirfd, path, how, len(how))

    def _read(self, number: int, fd: int, count: int, *rest: int) -> bytes:
        buffer = ctypes.create_string_buffer(max(count, 1))
        done = syscall(number, fd, buffer, count, *rest)
        return buffer.raw[:done]

    def read(self, fd: int, count: int) -> bytes:
        return self._read(_READ, fd, count)

    def pread64(self, fd: int, count: int, offset: int) -> bytes:
        return self._read(_PREAD64, fd, count, offset)

    def preadv2(self, fd: int, sizes: tuple[int, ...], offset: int, flags: int = 0) -> bytes:
        buffers = [ctypes.create_string_buffer(max(size, 1)) for size in sizes]
        vector = _iovec([(ctypes.addressof(b), n) for b, n in zip(buffers, sizes, strict=True)])
        count = syscall(_PREADV2, fd, vector, len(sizes), offset, 0, flags)
        joined = b"".join(b.raw[:n] for b, n in zip(buffers, sizes, strict=True))
        return joined[:count]

    def write(self, fd: int, data: bytes) -> int:
        return syscall(_WRITE, fd, data, len(data))

    def pwrite64(self, fd: int, data: bytes, offset: int) -> int:
        return syscall(_PWRITE64, fd, data, len(data), offset)

    def pwritev2(self, fd: int, data: tuple[bytes, ...], offset: int, flags: int = 0) -> int:
        buffers = [ctypes.create_string_buffer(item, max(len(item), 1)) for item in data]
        pairs = [(ctypes.addressof(b), len(item)) for b, item in zip(buffers, data, strict=True)]
        return syscall(_PWRITEV2, fd, _iovec(pairs), len(data), offset, 0, flags)

    def copy_file_range(
        self,
        fd_in: int,
        offset_in: int | None,
        fd_out: int,
        offset_out: int | None,
        length: int,
        flags: int = 0,
    ) -> int:
        offsets = [
            None if offset is None else (ctypes.c_int64 * 1)(offset)
            for offset in (offset_in, offset_out)
        ]
        return syscall(_COPY_FILE_RANGE, fd_in, offsets[0], fd_out, offsets[1], length, flags)

    def newfstatat(self, dirfd: int, path: bytes, flags: int = 0) -> Stat:
        buffer = ctypes.create_string_buffer(_STAT.size)
        syscall(_NEWFSTATAT, dirfd, path, buffer, flags)
        return _stat(buffer.raw)

    def _stat(self, name: str, what: bytes | int) -> Stat:
        buffer = ctypes.create_string_buffer(_STAT.size)
        syscall(_STAT_CALLS[name], what, buffer)
        return _stat(buffer.raw)

    def stat(self, path: bytes) -> Stat:
        return self._stat("stat", path)

    def lstat(self, path: bytes) -> Stat:
        return self._stat("lstat", path)

    def fstat(self, fd: int) -> Stat:
        return self._stat("fstat", fd)

    def statx(self, dirfd: int, path: bytes, flags: int = 0, mask: int = 0x7FF) -> Statx:
        buffer = ctypes.create_string_buffer(256)
        syscall(_STATX, dirfd, path, flags, mask, buffer)
        (
            answered, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, known,
            atime, atime_ns, btime, btime_ns, ctime, ctime_ns, mtime, mtime_ns,
            rdev_major, rdev_minor, dev_major, dev_minor, mnt_id,
        ) = _STATX_STRUCT.unpack(buffer.raw)  # fmt: skip
        return Statx(
            answered, attributes, known, mode, ino, nlink, uid, gid, size, blocks, blksize,
            atime * 10**9 + atime_ns, btime * 10**9 + btime_ns, ctime * 10**9 + ctime_ns,
            mtime * 10**9 + mtime_ns, _makedev(rdev_major, rdev_minor),
            _makedev(dev_major, dev_minor), mnt_id,
        )  # fmt: skip

    def _statfs(self, name: str, what: bytes | int) -> StatfsResult:
        buffer = ctypes.create_string_buffer(_STATFS.size)
        syscall(_STATFS_CALLS[name], what, buffer)
        return StatfsResult(*_STATFS.unpack(buffer.raw))

    def statfs(self, path: bytes) -> StatfsResult:
        return self._statfs("statfs", path)

    def fstatfs(self, fd: int) -> StatfsResult:
        return self._statfs("fstatfs", fd)

    def utimensat(
        self,
        dirfd: int,
        path: bytes | None,
        times: tuple[tuple[int, int], tuple[int, int]] | None,
        flags: int = 0,
    ) -> None:
        packed = None if times is None else _TIMESPECS.pack(*times[0], *times[1])
        syscall(_UTIMENSAT, dirfd, path, packed, flags)

    def readlink(self, path: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(_PATH_MAX)
        count = syscall(_READLINK_CALLS["readlink"], path, buffer, _PATH_MAX)
        return buffer.raw[:count]

    def readlinkat(self, dirfd: int, path: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(_PATH_MAX)
        count = syscall(_READLINK_CALLS["readlinkat"], dirfd, path, buffer, _PATH_MAX)
        return buffer.raw[:count]

    def getdents64(self, fd: int, size: int = 32768) -> list[DirectoryRecord]:
        raw = self._read(_GETDENTS64, fd, size)
        records = []
        while raw:
            ino, offset, length, kind = _DIRENT.unpack_from(raw)
            name = raw[_DIRENT.size : length].split(b"\0", 1)[0]
            records.append(DirectoryRecord(ino, offset, kind, name))
            raw = raw[length:]
        return records

    def getcwd(self) -> bytes:
        buffer = ctypes.create_string_buffer(_PATH_MAX)
        count = syscall(_GETCWD, buffer, _PATH_MAX) - 1
        return buffer.raw[:count]

    def _getxattr(self, name: str, what: bytes | int, key: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(_XATTR_MAX)
        count = syscall(_GETXATTR_CALLS[name], what, key, buffer, _XATTR_MAX)
        return buffer.raw[:count]

    def getxattr(self, path: bytes, key: bytes) -> bytes:
        return self._getxattr("getxattr", path, key)

    def lgetxattr(self, path: bytes, key: bytes) -> bytes:
        return self._getxattr("lgetxattr", path, key)

    def fgetxattr(self, fd: int, key: bytes) -> bytes:
        return self._getxattr("fgetxattr", fd, key)

    def _setxattr(self, name: str, what: bytes | int, key: bytes, value: bytes, flags: int) -> None:
        syscall(_SETXATTR_CALLS[name], what, key, value, len(value), flags)

    def setxattr(self, path: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        self._setxattr("setxattr", path, key, value, flags)

    def lsetxattr(self, path: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
        self._setxattr("lsetxattr", path, key, value, flags)

    def fsetxattr(self, fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
        self._setxattr("fsetxattr", fd, key, value, flags)

    def _listxattr(self, name: str, what: bytes | int) -> list[bytes]:
        buffer = ctypes.create_string_buffer(_XATTR_MAX)
        size = syscall(_LISTXATTR_CALLS[name], what, buffer, _XATTR_MAX)
        return buffer.raw[:size].split(b"\0")[:-1]

    def listxattr(self, path: bytes) -> list[bytes]:
        return self._listxattr("listxattr", path)

    def llistxattr(self, path: bytes) -> list[bytes]:
        return self._listxattr("llistxattr", path)

    def flistxattr(self, fd: int) -> list[bytes]:
        return self._listxattr("flistxattr", fd)


_RETURNS_NUMBER: Final = frozenset(
    ("creat", "dup", "dup2", "dup3", "fcntl", "lseek", "open", "openat", "umask")
)


def _argument(kind: str, value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if kind in ("path", "str") and isinstance(value, bytes) and b"\0" in value:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return value


def _iovec(pairs: list[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("=QQ", *pair) for pair in pairs)


def _stat(raw: bytes) -> Stat:
    (
        dev, ino, nlink, mode, uid, gid, _, rdev, size, blksize, blocks,
        atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns,
    ) = _STAT.unpack(raw)  # fmt: skip
    return Stat(
        mode, ino, dev, nlink, uid, gid, size, atime * 10**9 + atime_ns,
        mtime * 10**9 + mtime_ns, ctime * 10**9 + ctime_ns, blocks, blksize, rdev,
    )  # fmt: skip
