"""The ioctls that are passed to the host: inode flags, project ids, fsverity, encryption policy.

The host is asked with the process's own rights, so what it would have checked of the caller is
checked here first. The caller is who opened the file, as FUSE too has it.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from fsimpl.passthrough import oslib
from fsimpl.passthrough.dynamic import (
    FS_IOC_SETPATHXATTR,
    FS_IOC_SETPERMISSION,
    set_path_xattr,
    set_permission,
)
from vfs import abi
from vfs.credentials import CAP_LINUX_IMMUTABLE
from vfs.errors import oserror
from vfs.permission import inode_permission, owner_or_capable
from vfs.user_namespace import INITIAL_USER_NAMESPACE

if TYPE_CHECKING:
    from fsimpl.passthrough.directory import PassthroughDirectory
    from fsimpl.passthrough.file import PassthroughFile

    Open: TypeAlias = PassthroughFile | PassthroughDirectory

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC32_GETFLAGS: Final = 0x80046601
FS_IOC32_SETFLAGS: Final = 0x40046602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
FS_IOC_ENABLE_VERITY: Final = 0x40806685
FS_IOC_MEASURE_VERITY: Final = 0xC0046686
FS_IOC_GET_ENCRYPTION_POLICY_EX: Final = 0xC0096616

# FS_IOC_GETFLAGS is declared with a long and moves an int: what else there is stays as it was.
_FLAGS_SIZE: Final = 4
_FSXATTR: Final = struct.Struct("=5I8x")  # xflags, extsize, nextents, projid, cowextsize
_XFLAG_IMMUTABLE: Final = 0x8
_XFLAG_APPEND: Final = 0x10
_XFLAG_PROJINHERIT: Final = 0x200
_GUARDED_FLAGS: Final = abi.FS_IMMUTABLE_FL | abi.FS_APPEND_FL
_GUARDED_XFLAGS: Final = _XFLAG_IMMUTABLE | _XFLAG_APPEND

# struct fsverity_enable_arg: version, hash, block size, salt size and pointer, signature's size,
# pad, pointer.
_VERITY: Final = struct.Struct("=4IQIIQ88x")
_DIGEST: Final = struct.Struct("=HH")
_POLICY_SIZE: Final = struct.Struct("=Q")
_POLICY_MAX: Final = 24

Argument = bytes | memoryview | int


def host_ioctl(file: Open, command: int, argument: Argument) -> bytes:
    """``command`` on the host's file under ``file``; returns what it writes back.

    Raises: ENOTTY for one that is not passed, or that the host's file system does not know;
    EOPNOTSUPP; EPERM, EACCES, EROFS for who may not; EINVAL for an argument that is too short.
    """
    if command in (FS_IOC_GETFLAGS, FS_IOC32_GETFLAGS):
        return _get(file, FS_IOC_GETFLAGS, _FLAGS_SIZE)
    if command in (FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS):
        return _set_flags(file, argument)
    if command == FS_IOC_FSGETXATTR:
        return _get(file, command, _FSXATTR.size)
    if command == FS_IOC_FSSETXATTR:
        return _set_fsxattr(file, argument)
    if command == FS_IOC_GET_ENCRYPTION_POLICY_EX:
        return _encryption_policy(file, argument)
    if command == FS_IOC_ENABLE_VERITY:
        return _enable_verity(file, argument)
    if command == FS_IOC_MEASURE_VERITY:
        return _measure_verity(file, argument)
    paths = file.inode.superblock.paths
    if paths is not None:
        if command == FS_IOC_SETPERMISSION and paths.owners.room:
            return set_permission(file, argument)
        if command == FS_IOC_SETPATHXATTR and paths.xattrs.room:
            return set_path_xattr(file, argument)
    raise oserror(errno.ENOTTY)


def _bytes_of(argument: Argument, size: int) -> bytes:
    if isinstance(argument, int) or len(argument) < size:
        raise oserror(errno.EINVAL)
    return bytes(argument)


def _get(file: Open, command: int, size: int) -> bytes:
    buffer = bytearray(max(size, 8))
    oslib.ioctl(file.fd, command, buffer)
    return bytes(buffer[:size])


def _may_change(file: Open, guarded: int) -> None:
    """Linux: ``vfs_fileattr_set``. ``guarded`` are changes of immutable and append-only."""
    file.mount.want_write()
    inode = file.inode
    inode.refresh()
    if not owner_or_capable(inode, file.cred):
        raise oserror(errno.EPERM)
    if guarded:
        file.cred.require(CAP_LINUX_IMMUTABLE)


def _set_flags(file: Open, argument: Argument) -> bytes:
    data = _bytes_of(argument, _FLAGS_SIZE)[:_FLAGS_SIZE]
    old = int.from_bytes(_get(file, FS_IOC_GETFLAGS, _FLAGS_SIZE), "little")
    _may_change(file, (old ^ int.from_bytes(data, "little")) & _GUARDED_FLAGS)
    oslib.ioctl(file.fd, FS_IOC_SETFLAGS, bytearray(data + bytes(4)))
    file.inode.refresh()
    return b""


def _set_fsxattr(file: Open, argument: Argument) -> bytes:
    data = _bytes_of(argument, _FSXATTR.size)[: _FSXATTR.size]
    old = _FSXATTR.unpack(_get(file, FS_IOC_FSGETXATTR, _FSXATTR.size))
    new = _FSXATTR.unpack(data)
    changes_project = old[3] != new[3] or (old[0] ^ new[0]) & _XFLAG_PROJINHERIT
    superblock = file.inode.superblock
    # extsize and cowextsize; the number of extents is only told.
    same_sizes = old[1] == new[1] and old[4] == new[4]
    only_project = not (old[0] ^ new[0]) & ~_XFLAG_PROJINHERIT and same_sizes
    if only_project and file.cred.fsuid in superblock.options.privileged_quota_uids:
        file.mount.want_write()
    else:
        _may_change(file, (old[0] ^ new[0]) & _GUARDED_XFLAGS)
        # Project ids are the host's, which a user namespace must not hand out.
        if changes_project and file.cred.user_ns is not INITIAL_USER_NAMESPACE:
            raise oserror(errno.EINVAL)
    oslib.ioctl(file.fd, FS_IOC_FSSETXATTR, bytearray(data))
    file.inode.refresh()
    return b""


def _encryption_policy(file: Open, argument: Argument) -> bytes:
    room = min(_POLICY_SIZE.unpack_from(_bytes_of(argument, _POLICY_SIZE.size))[0], _POLICY_MAX)
    buffer = bytearray(_POLICY_SIZE.size + _POLICY_MAX)
    _POLICY_SIZE.pack_into(buffer, 0, room)
    oslib.ioctl(file.fd, FS_IOC_GET_ENCRYPTION_POLICY_EX, buffer)
    return bytes(buffer[: _POLICY_SIZE.size + _POLICY_SIZE.unpack_from(buffer)[0]])


def _enable_verity(file: Open, argument: Argument) -> bytes:
    """Salt and signature follow the structure, as FUSE sends them; its pointers say nothing."""
    data = _bytes_of(argument, _VERITY.size)
    version, algorithm, block, salt_size, _, signature_size, pad, _ = _VERITY.unpack_from(data)
    end = _VERITY.size + salt_size + signature_size
    if len(data) != end or pad:
        raise oserror(errno.EINVAL)
    inode_permission(file.inode, file.cred, abi.W_OK)
    file.mount.want_write()
    tail = ctypes.create_string_buffer(data[_VERITY.size :], salt_size + signature_size + 1)
    salt = ctypes.addressof(tail)
    fixed = _VERITY.pack(
        version, algorithm, block, salt_size, salt if salt_size else 0,
        signature_size, 0, salt + salt_size if signature_size else 0,
    )  # fmt: skip
    oslib.ioctl(file.fd, FS_IOC_ENABLE_VERITY, bytearray(fixed[:40] + data[40 : _VERITY.size]))
    file.inode.refresh()
    return b""


def _measure_verity(file: Open, argument: Argument) -> bytes:
    _, room = _DIGEST.unpack_from(_bytes_of(argument, _DIGEST.size))
    buffer = bytearray(_DIGEST.size + room)
    _DIGEST.pack_into(buffer, 0, 0, room)
    oslib.ioctl(file.fd, FS_IOC_MEASURE_VERITY, buffer)
    return bytes(buffer[: _DIGEST.size + _DIGEST.unpack_from(buffer)[1]])
