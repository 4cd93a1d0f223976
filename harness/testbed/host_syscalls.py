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
from vfs import abi
from vfs.syscalls.attributes import Stat, StatfsResult, Statx
from vfs.syscalls.mount_query import Statmount
from vfs.syscalls.names import DirectoryRecord

_NUMBERS: Final = {
    "access": 21, "chdir": 80, "chmod": 90, "chown": 92, "chroot": 161, "close": 3,
    "close_range": 436, "creat": 85, "dup": 32, "dup2": 33, "dup3": 292, "faccessat2": 439,
    "fallocate": 285, "fchdir": 81, "fchmod": 91, "fchmodat2": 452, "fchown": 93, "fchownat": 260,
    "fcntl": 72, "fdatasync": 75, "fremovexattr": 199, "fsmount": 432, "fsopen": 430, "fspick": 433,
    "fsync": 74, "ftruncate": 77, "lchown": 94,
    "link": 86, "linkat": 265, "lremovexattr": 198, "lseek": 8, "mkdir": 83, "mkdirat": 258,
    "mknod": 133, "mknodat": 259, "mount": 165, "move_mount": 429, "open": 2, "open_tree": 428,
    "openat": 257, "pivot_root": 155, "removexattr": 197, "rename": 82, "renameat2": 316,
    "rmdir": 84, "setns": 308, "symlink": 88,
    "symlinkat": 266, "sync": 162, "syncfs": 306, "truncate": 76, "umask": 95, "umount2": 166,
    "unlink": 87, "unlinkat": 263, "unshare": 272,
}  # fmt: skip
_CLONE: Final = 56
_COPY_FILE_RANGE: Final = 326
_FSCONFIG: Final = 431
_GETCWD: Final = 79
_GETDENTS64: Final = 217
_LISTMOUNT: Final = 458
_MOUNT_SETATTR: Final = 442
_NEWFSTATAT: Final = 262
_OPEN_TREE_ATTR: Final = 467
_OPENAT2: Final = 437
_POLL: Final = 7
_PREAD64: Final = 17
_PREADV2: Final = 327
_PRLIMIT64: Final = 302
_PWRITE64: Final = 18
_PWRITEV2: Final = 328
_READ: Final = 0
_STATMOUNT: Final = 457
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
_POLLFD: Final = struct.Struct("=ihh")
_MOUNT_ATTR: Final = struct.Struct("=QQQQ")
_MNT_ID_REQ: Final = struct.Struct("=IIQQQ")
_STATMOUNT_STRUCT: Final = struct.Struct("=IIQIIQIIQQIIQQQQQIIQIIIIIIQ")
# struct statmount is this long before its strings.
_STATMOUNT_STRINGS: Final = 512
_STATMOUNT_SIZE: Final = 65536

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

    def poll(self, fd: int, events: int) -> int:
        """What poll(2) answers for ``fd`` at once."""
        request = ctypes.create_string_buffer(_POLLFD.pack(fd, events, 0), _POLLFD.size)
        syscall(_POLL, request, 1, 0)
        revents: int = _POLLFD.unpack(request.raw)[2]
        return revents

    def open_tree_attr(
        self, dirfd: int, path: bytes, flags: int, attr: tuple[int, int, int, int] | None
    ) -> int:
        return syscall(_OPEN_TREE_ATTR, dirfd, path, flags, *_mount_attr(attr))

    def mount_setattr(
        self, dirfd: int, path: bytes, flags: int, attr: tuple[int, int, int, int] | None
    ) -> None:
        syscall(_MOUNT_SETATTR, dirfd, path, flags, *_mount_attr(attr))

    def fsconfig(
        self, fd: int, command: int, key: str | None, value: str | bytes | None, aux: int = 0
    ) -> None:
        name = None if key is None else key.encode()
        passed = value.encode() if isinstance(value, str) else value
        if command == abi.FSCONFIG_SET_BINARY and passed is not None and aux > len(passed):
            passed = passed.ljust(aux, b"\0")
        syscall(_FSCONFIG, fd, command, name, passed, aux)

    def statmount(self, mnt_id: int, mask: int, mnt_ns_id: int = 0, flags: int = 0) -> Statmount:
        request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mnt_id, mask, mnt_ns_id)
        buffer = ctypes.create_string_buffer(_STATMOUNT_SIZE)
        syscall(_STATMOUNT, request, buffer, _STATMOUNT_SIZE, flags)
        return _statmount(buffer.raw)

    def listmount(
        self,
        mnt_id: int,
        last_mnt_id: int = 0,
        count: int = 65536,
        mnt_ns_id: int = 0,
        flags: int = 0,
    ) -> list[int]:
        request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mnt_id, last_mnt_id, mnt_ns_id)
        ids = (ctypes.c_uint64 * count)()
        found = syscall(_LISTMOUNT, request, ids, count, flags)
        return list(ids[:found])

    def _mount_at(self, path: bytes) -> int:
        return self.statx(abi.AT_FDCWD, path, 0, abi.STATX_MNT_ID_UNIQUE).stx_mnt_id

    def statmount_at(self, path: bytes, mask: int) -> Statmount:
        return self.statmount(self._mount_at(path), mask)

    def listmount_at(self, path: bytes, flags: int = 0) -> list[int]:
        return self.listmount(self._mount_at(path), flags=flags)


_RETURNS_NUMBER: Final = frozenset(
    (
        "creat", "dup", "dup2", "dup3", "fcntl", "fsmount", "fsopen", "fspick", "lseek", "open",
        "open_tree", "openat", "umask",
    )
)  # fmt: skip


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


def _mount_attr(attr: tuple[int, int, int, int] | None) -> tuple[bytes | None, int]:
    return (None, 0) if attr is None else (_MOUNT_ATTR.pack(*attr), _MOUNT_ATTR.size)


def _statmount(raw: bytes) -> Statmount:
    (
        _, mnt_opts, mask, dev_major, dev_minor, magic, sb_flags, fs_type, mnt_id, parent_id,
        id_old, parent_id_old, attr, propagation, peer_group, master, propagate_from, root, point,
        ns_id, subtype, source, opt_num, opt_array, sec_num, sec_array, supported,
    ) = _STATMOUNT_STRUCT.unpack_from(raw)  # fmt: skip

    def string(bit: int, offset: int) -> bytes | None:
        return raw[_STATMOUNT_STRINGS + offset :].split(b"\0", 1)[0] if mask & bit else None

    def strings(bit: int, offset: int, number: int) -> tuple[bytes, ...]:
        if not mask & bit:
            return ()
        return tuple(raw[_STATMOUNT_STRINGS + offset :].split(b"\0", number)[:number])

    return Statmount(
        mask, dev_major, dev_minor, magic, sb_flags, string(abi.STATMOUNT_FS_TYPE, fs_type),
        mnt_id, parent_id, id_old, parent_id_old, attr, propagation, peer_group, master,
        propagate_from, string(abi.STATMOUNT_MNT_ROOT, root),
        string(abi.STATMOUNT_MNT_POINT, point), ns_id, string(abi.STATMOUNT_FS_SUBTYPE, subtype),
        string(abi.STATMOUNT_SB_SOURCE, source), string(abi.STATMOUNT_MNT_OPTS, mnt_opts),
        strings(abi.STATMOUNT_OPT_ARRAY, opt_array, opt_num),
        strings(abi.STATMOUNT_OPT_SEC_ARRAY, sec_array, sec_num), supported,
    )  # fmt: skip
