"""System calls that Python's ``os`` lacks, or would answer a common miss with an exception.

Every function raises OSError as ``os`` does, except where it says that a miss is a return value.
Structures are the kernel's own (uapi), which are the same on all 64-bit architectures.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from ctypes import c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_void_p
from typing import Any, Final, TypeVar

from vfs import abi
from vfs.errors import oserror

_libc: Final = ctypes.CDLL(None, use_errno=True)

# Numbers that all architectures share, since they are younger than 5.1.
_SYS_OPENAT2: Final = c_long(437)
_SYS_FACCESSAT2: Final = c_long(439)
_SYS_SETXATTRAT: Final = c_long(463)
_SYS_GETXATTRAT: Final = c_long(464)
_SYS_LISTXATTRAT: Final = c_long(465)
_SYS_REMOVEXATTRAT: Final = c_long(466)
_PR_GET_SECUREBITS: Final = 27
SECBIT_NO_SETUID_FIXUP: Final = 4
# glibc's setgroups changes all threads of the process; the system call changes its caller.
_SYS_SETGROUPS: Final = c_long({"x86_64": 116, "aarch64": 159, "riscv64": 159}[platform.machine()])


def _function(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    return function


# Left without argtypes on purpose: what it is given needs no conversion, and without the check a
# call costs 0.4 µs less (1.4 against 1.8 µs, of a LOOKUP's whole cost); errno costs 0.1 µs more. So
# who wants to know why it failed asks again, by ``StatBuffer``.
statx: Final[Any] = ctypes.CDLL(None).statx
_statx_errno: Final[Any] = ctypes.CDLL(None, use_errno=True).statx
_syscall: Final[Any] = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = c_long
_fchmodat = _function("fchmodat", c_int, c_char_p, c_uint, c_int)
_fchownat = _function("fchownat", c_int, c_char_p, c_uint, c_uint, c_int)
_linkat = _function("linkat", c_int, c_char_p, c_int, c_char_p, c_int)
_name_to_handle_at = _function("name_to_handle_at", c_int, c_char_p, c_void_p, c_void_p, c_int)
_open_by_handle_at = _function("open_by_handle_at", c_int, c_void_p, c_int)
_renameat2 = _function("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
_utimensat = _function("utimensat", c_int, c_char_p, c_char_p, c_int)
_fallocate = _function("fallocate64", c_int, c_int, c_int64, c_int64)
_fstatfs = _function("fstatfs64", c_int, c_void_p)
_ioctl = _function("ioctl", c_int, ctypes.c_ulong, c_void_p)
_syncfs = _function("syncfs", c_int)
_getdents64 = _function("getdents64", c_int, c_void_p, c_size_t)
_getdents64.restype = c_long
# They know no errors; as ``statx``.
_setfsuid: Final[Any] = ctypes.CDLL(None).setfsuid
_setfsuid.restype = c_uint
_setfsgid: Final[Any] = ctypes.CDLL(None).setfsgid
_setfsgid.restype = c_uint
_prctl = _function("prctl", c_int, c_long, c_long, c_long, c_long)
_capget = _function("capget", c_char_p, c_void_p)
_capset = _function("capset", c_char_p, c_char_p)


def call(function: Any, *arguments: object) -> int:
    """``function``'s result, again after EINTR as ``os`` does (PEP 475). Raises: its errno."""
    while True:
        result: int = function(*arguments)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise oserror(number)


# Attributes (struct statx, up to and including stx_mnt_id)

STATX_SIZE: Final = 152
STATX: Final = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ")
# On kernels without unique mount ids the bit is ignored, and the recycled id given as ever.
STATX_WANTED: Final = abi.STATX_BASIC_STATS | abi.STATX_BTIME | abi.STATX_MNT_ID_UNIQUE


class StatBuffer:
    """Where statx(2) writes; reused, so it belongs to whoever holds the VFS lock.

    ``view.raw`` is the first STATX_SIZE bytes of what was written.
    """

    __slots__ = ("pointer", "storage", "view")

    def __init__(self) -> None:
        self.storage = ctypes.create_string_buffer(256)
        self.pointer = c_void_p(ctypes.addressof(self.storage))
        self.view = (ctypes.c_char * STATX_SIZE).from_buffer(self.storage)

    def of(self, fd: int) -> bytes:
        """The attributes of what ``fd`` stands for, as the first STATX_SIZE bytes of the struct."""
        if statx(fd, b"", abi.AT_EMPTY_PATH, STATX_WANTED, self.pointer):
            call(_statx_errno, fd, b"", abi.AT_EMPTY_PATH, STATX_WANTED, self.pointer)
        return self.view.raw

    def find(self, directory: int, name: bytes) -> bool:
        """Whether there is ``name``; ``view`` has its attributes then, a symlink's its own."""
        while _statx_errno(directory, name, abi.AT_SYMLINK_NOFOLLOW, STATX_WANTED, self.pointer):
            number = ctypes.get_errno()
            if number == errno.ENOENT:
                return False
            if number != errno.EINTR:
                raise oserror(number, name)
        return True


# Names

_PATH_FLAGS: Final = abi.O_PATH | abi.O_NOFOLLOW | abi.O_CLOEXEC
_HOW_CHILD: Final = struct.pack(
    "=QQQ",
    _PATH_FLAGS,
    0,
    abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_MAGICLINKS,
)
_HOW_SIZE: Final = c_size_t(len(_HOW_CHILD))


def open_child(directory: int, name: bytes) -> int:
    """An O_PATH descriptor of ``name``, itself if it is a symlink; -1 if there is no such name."""
    while True:
        fd: int = _syscall(_SYS_OPENAT2, directory, name, _HOW_CHILD, _HOW_SIZE)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        # EXDEV: it was moved out of the directory between being found and being opened.
        if number in (errno.ENOENT, errno.EXDEV):
            return -1
        if number != errno.EINTR:
            raise oserror(number, name)


def linkat(source: int, source_name: bytes, directory: int, name: bytes) -> None:
    """A new ``name`` for what ``source_name``, followed, leads to."""
    call(_linkat, source, source_name, directory, name, abi.AT_SYMLINK_FOLLOW)


def renameat2(old: int, old_name: bytes, new: int, new_name: bytes, flags: int) -> None:
    call(_renameat2, old, old_name, new, new_name, flags)


def faccessat2(fd: int, mask: int) -> None:
    """Whether the thread, as it is now, may ``mask`` (R_OK|W_OK|X_OK). Raises: EACCES, EROFS."""
    call(_syscall, _SYS_FACCESSAT2, fd, b"", mask, abi.AT_EACCESS | abi.AT_EMPTY_PATH)


# File handles: who a file is to its file system, for as long as the file exists

_FILE_HANDLE: Final = struct.Struct("=Ii")  # handle_bytes, handle_type; the handle follows
_MAX_HANDLE_SZ: Final = 128


def name_to_handle_at(directory: int, name: bytes) -> bytes:
    """The file handle (struct file_handle, as long as it needs be) of ``name``, itself if it is a
    symlink; of what ``directory`` stands for if ``name`` is empty.

    Raises: EOPNOTSUPP where files cannot be found again by a handle; ENOENT.
    """
    buffer = ctypes.create_string_buffer(_FILE_HANDLE.size + _MAX_HANDLE_SZ)
    _FILE_HANDLE.pack_into(buffer, 0, _MAX_HANDLE_SZ, 0)
    mount = c_int()
    flags = 0 if name else abi.AT_EMPTY_PATH
    call(_name_to_handle_at, directory, name, buffer, ctypes.byref(mount), flags)
    return buffer.raw[: _FILE_HANDLE.size + _FILE_HANDLE.unpack_from(buffer)[0]]


def open_by_handle_at(mount: int, handle: bytes) -> int:
    """An O_PATH descriptor of the file that ``handle`` names. ``mount`` has some file or directory
    of its file system open, and not with O_PATH.

    Raises: ESTALE (there is no such file any more), EPERM (without CAP_DAC_READ_SEARCH).
    """
    return call(_open_by_handle_at, mount, ctypes.create_string_buffer(handle), _PATH_FLAGS)


# Changing attributes of what ``directory/name``, followed, leads to


def fchmodat(directory: int, name: bytes, mode: int) -> None:
    call(_fchmodat, directory, name, mode, 0)


def fchownat(directory: int, name: bytes, uid: int, gid: int) -> None:
    """0xFFFFFFFF leaves an id alone."""
    call(_fchownat, directory, name, uid, gid, 0)


_TIMES: Final = struct.Struct("=qqqq")


def utimensat(directory: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Times as (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT for nanoseconds."""
    call(_utimensat, directory, name, _TIMES.pack(*atime, *mtime), 0)


# Extended attributes of what ``directory/name``, followed, leads to; ``directory`` is
# /proc/self/fd, wherever that is mounted. The *xattrat calls are of Linux 6.13.

_XATTR_ARGS: Final = struct.Struct("=QII")
_XATTR_ARGS_SIZE: Final = c_size_t(_XATTR_ARGS.size)
_syscall(_SYS_LISTXATTRAT, -1, b".", 0, None, c_size_t(0))
HAS_XATTRAT: Final = ctypes.get_errno() != errno.ENOSYS
_PROC_SELF_FD: Final = b"/proc/self/fd"
_WORKING_DIRECTORY: Final = threading.Lock()
_Result = TypeVar("_Result")


def _by_path(directory: int, name: bytes, function: Callable[[bytes], _Result]) -> _Result:
    """``function`` of a path to ``directory/name``, for calls that take nothing else.

    Where /proc is in sight that is one below it. In a sandbox, which has no other use for it, the
    working directory is moved: it belongs to all threads.
    """
    found = os.fstat(directory)
    try:
        # Who shares a directory may have put something of that name there.
        visible = os.path.samestat(os.stat(_PROC_SELF_FD), found)
    except OSError:
        visible = False
    if visible:
        return function(_PROC_SELF_FD + b"/" + name)
    with _WORKING_DIRECTORY:
        before = os.open(".", abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC)
        try:
            os.fchdir(directory)
            return function(name)
        finally:
            os.fchdir(before)
            os.close(before)


def getxattrat(directory: int, name: bytes, attribute: bytes) -> bytes:
    """Raises: ENODATA, EOPNOTSUPP."""
    if not HAS_XATTRAT:
        return _by_path(directory, name, lambda path: os.getxattr(path, attribute))
    size = 4096
    while True:
        buffer = ctypes.create_string_buffer(size)
        args = _XATTR_ARGS.pack(ctypes.addressof(buffer), size, 0)
        try:
            count = call(
                _syscall, _SYS_GETXATTRAT, directory, name, 0, attribute, args, _XATTR_ARGS_SIZE
            )
        except OSError as error:
            if error.errno != errno.ERANGE or size == abi.XATTR_SIZE_MAX:
                raise
            size = abi.XATTR_SIZE_MAX
        else:
            return buffer.raw[:count]


_ASK_SIZE: Final = _XATTR_ARGS.pack(0, 0, 0)


def lacks_xattr(directory: int, name: bytes, attribute: bytes) -> bool:
    """Whether there is no such ``attribute``, for sure: where it is not supported there may be
    something else like it.
    """
    if not HAS_XATTRAT:
        try:
            _by_path(directory, name, lambda path: os.getxattr(path, attribute))
        except OSError as error:
            return error.errno == errno.ENODATA
        return False
    count = _syscall(_SYS_GETXATTRAT, directory, name, 0, attribute, _ASK_SIZE, _XATTR_ARGS_SIZE)
    return count < 0 and ctypes.get_errno() == errno.ENODATA


def setxattrat(directory: int, name: bytes, attribute: bytes, value: bytes, flags: int) -> None:
    """Raises: EEXIST, ENODATA, ENOSPC, EOPNOTSUPP."""
    if not HAS_XATTRAT:
        _by_path(directory, name, lambda path: os.setxattr(path, attribute, value, flags))
        return
    buffer = ctypes.create_string_buffer(value, len(value) or 1)
    args = _XATTR_ARGS.pack(ctypes.addressof(buffer), len(value), flags)
    call(_syscall, _SYS_SETXATTRAT, directory, name, 0, attribute, args, _XATTR_ARGS_SIZE)


def removexattrat(directory: int, name: bytes, attribute: bytes) -> None:
    """Raises: ENODATA, EOPNOTSUPP."""
    if not HAS_XATTRAT:
        _by_path(directory, name, lambda path: os.removexattr(path, attribute))
        return
    call(_syscall, _SYS_REMOVEXATTRAT, directory, name, 0, attribute)


def listxattrat(directory: int, name: bytes) -> list[bytes]:
    if not HAS_XATTRAT:
        return [os.fsencode(attribute) for attribute in _by_path(directory, name, os.listxattr)]
    buffer = ctypes.create_string_buffer(abi.XATTR_LIST_MAX)
    count = call(
        _syscall, _SYS_LISTXATTRAT, directory, name, 0, buffer, c_size_t(abi.XATTR_LIST_MAX)
    )
    return buffer.raw[:count].split(b"\0")[:-1]


# Files and filesystems


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    call(_fallocate, fd, mode, offset, length)


def syncfs(fd: int) -> None:
    call(_syncfs, fd)


def ioctl(fd: int, command: int, buffer: bytearray) -> None:
    """``command`` with ``buffer`` to read from and write to, which is as long as it needs be."""
    view = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    call(_ioctl, fd, command, ctypes.addressof(view))


# f_type, f_bsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_fsid, f_namelen, f_frsize
_STATFS: Final = struct.Struct("=qqQQQQQQqq")


def fstatfs(fd: int) -> tuple[int, ...]:
    """The fields of ``struct statfs`` in its order, up to f_frsize."""
    buffer = ctypes.create_string_buffer(256)
    call(_fstatfs, fd, buffer)
    return _STATFS.unpack_from(buffer)


_DIRENT: Final = struct.Struct("=QqHB")


class DirentBuffer:
    """Where getdents64(2) writes."""

    __slots__ = ("data",)
    SIZE: Final = 32768

    def __init__(self) -> None:
        self.data = ctypes.create_string_buffer(self.SIZE)

    def read(self, fd: int) -> bytes:
        """The next entries (struct linux_dirent64), for ``dirents``; empty at the end."""
        return ctypes.string_at(self.data, call(_getdents64, fd, self.data, self.SIZE))


def dirents(data: bytes, position: int) -> Iterator[tuple[bytes, int, int, int, int]]:
    """The entries in ``data`` from ``position`` on: (name, inode number, DT_*, d_off, where the
    next one begins).
    """
    unpack, size = _DIRENT.unpack_from, _DIRENT.size
    end = len(data)
    while position < end:
        ino, cookie, length, kind = unpack(data, position)
        start = position + size
        name = data[start : data.index(b"\0", start)]
        position += length
        yield name, ino, kind, cookie, position


# Identity of the calling thread


def setfsuid(uid: int) -> None:
    """Raises: EOVERFLOW if it did not take: not permitted, or no such id in our user namespace."""
    _setfsuid(uid)
    if _setfsuid(0xFFFFFFFF) != uid:
        raise oserror(errno.EOVERFLOW)


def setfsgid(gid: int) -> None:
    """Raises: as ``setfsuid``."""
    _setfsgid(gid)
    if _setfsgid(0xFFFFFFFF) != gid:
        raise oserror(errno.EOVERFLOW)


def getfsuid() -> int:
    return int(_setfsuid(0xFFFFFFFF))


def getfsgid() -> int:
    return int(_setfsgid(0xFFFFFFFF))


def setgroups(groups: Iterable[int]) -> None:
    """Raises: EPERM, EINVAL."""
    ids = list(groups)
    call(_syscall, _SYS_SETGROUPS, c_size_t(len(ids)), (c_uint * len(ids))(*ids))


def get_securebits() -> int:
    return call(_prctl, _PR_GET_SECUREBITS, 0, 0, 0, 0)


_CAP_HEADER: Final = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
_CAP_DATA: Final = struct.Struct("=IIIIII")
_LOW: Final = 0xFFFFFFFF


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of the calling thread, as bit masks."""
    buffer = ctypes.create_string_buffer(_CAP_DATA.size)
    call(_capget, _CAP_HEADER, buffer)
    e0, p0, i0, e1, p1, i1 = _CAP_DATA.unpack(buffer.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Raises: EPERM."""
    low = (effective & _LOW, permitted & _LOW, inheritable & _LOW)
    data = _CAP_DATA.pack(*low, effective >> 32, permitted >> 32, inheritable >> 32)
    call(_capset, _CAP_HEADER, data)
