"""Operations on attributes, symlinks' text, extended attributes and filesystem figures."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from harness.fuse import abi
from harness.fuse.buffers import length_of, scatter
from harness.fuse.files import without_set_id
from harness.fuse.names import name_in
from harness.fuse.request import answer, room_of
from vfs.abi import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_NODUMP_FL,
    S_IALLUGO,
    S_ISGID,
    STATX_ATTR_APPEND,
    STATX_ATTR_IMMUTABLE,
    STATX_ATTR_NODUMP,
    STATX_BASIC_STATS,
    STATX_BTIME,
    XATTR_LIST_MAX,
    XATTR_SIZE_MAX,
    major,
    minor,
)
from vfs.errors import oserror
from vfs.inode import SetAttributes
from vfs.operations import vfs_access, vfs_readlink, vfs_setattr, vfs_statfs
from vfs.xattr import vfs_getxattr, vfs_listxattr, vfs_removexattr, vfs_setxattr

if TYPE_CHECKING:
    from harness.fuse.request import Header, Reply
    from harness.fuse.server import FuseServer

_SECOND_NS: Final = 10**9
_OFFSET_MAX: Final = (1 << 63) - 1
_CHANGES: Final = (
    abi.FATTR_MODE | abi.FATTR_UID | abi.FATTR_GID | abi.FATTR_SIZE | abi.FATTR_ATIME
    | abi.FATTR_MTIME | abi.FATTR_CTIME
)  # fmt: skip
_STATX_FLAGS: Final = (
    (FS_IMMUTABLE_FL, STATX_ATTR_IMMUTABLE),
    (FS_APPEND_FL, STATX_ATTR_APPEND),
    (FS_NODUMP_FL, STATX_ATTR_NODUMP),
)
_STATX_FLAGS_KNOWN: Final = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND | STATX_ATTR_NODUMP


def getattr_(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_GETATTR. The handle that may come with it says nothing that the node does not."""
    nodes = server.nodes
    node = nodes.by_id[header[3]]
    inode = node.inode
    inode.refresh()
    wire = inode.wire
    if wire is None or wire is not node.wire:
        nodes.renew(node)
    _, out, at = reply
    out[at : at + 104] = node.attr
    return 104


def _time(seconds: int, nanoseconds: int) -> int:
    """Nanoseconds since the epoch. Raises: EINVAL."""
    if nanoseconds >= _SECOND_NS:
        raise oserror(errno.EINVAL)
    return int(seconds) * _SECOND_NS + nanoseconds


def setattr_(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_SETATTR. Linux: ``fuse_do_setattr``.

    One that changes nothing comes from ``file_remove_privs`` before a write, or a chown(2) of
    nothing: what is left of both, once FUSE_HANDLE_KILLPRIV_V2 has taken the mode out, is that
    set-id bits and file capabilities go. The reply is how the client learns of it.
    """
    node = server.nodes.by_id[header[3]]
    (
        valid, _, fh, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        mode, _, uid, gid, _,
    ) = abi.SETATTR_IN.unpack_from(body)  # fmt: skip
    inode = node.inode
    inode.refresh()
    attributes = SetAttributes()
    if valid & abi.FATTR_MODE:
        attributes.mode = mode & S_IALLUGO
    if valid & abi.FATTR_UID:
        attributes.uid = uid
    if valid & abi.FATTR_GID:
        attributes.gid = gid
    if valid & abi.FATTR_SIZE:
        if size > _OFFSET_MAX:
            return -errno.EFBIG
        attributes.size = size
        if valid & abi.FATTR_FH:
            file = server.handles.files.get(fh)
            if file is None or file.inode is not inode:
                return -errno.EBADF
            if not file.writable:
                return -errno.EINVAL
            attributes.file = file
        if valid & abi.FATTR_KILL_SUIDGID and attributes.mode is None:
            attributes.mode = without_set_id(inode)
    if not valid & _CHANGES and server.flags & abi.HANDLE_KILLPRIV_V2:
        node.mount.want_write()
        attributes.mode = without_set_id(inode)
        if not inode.host_managed:
            inode.killpriv()
    now = valid & (abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW)
    now_ns = server.vfs.clock.now_ns() if now else 0
    if valid & abi.FATTR_ATIME:
        attributes.atime_ns = now_ns if now & abi.FATTR_ATIME_NOW else _time(atime, atime_ns)
    if valid & abi.FATTR_MTIME:
        attributes.mtime_ns = now_ns if now & abi.FATTR_MTIME_NOW else _time(mtime, mtime_ns)
    if valid & abi.FATTR_CTIME:
        attributes.ctime_ns = _time(ctime, ctime_ns)
    attributes.touch = now == abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW
    vfs_setattr(node.mount, node.dentry, attributes, server.caller(header, body))
    return getattr_(server, header, body, reply)


def statx(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_STATX: GETATTR with the time of birth."""
    nodes = server.nodes
    node = nodes.by_id[header[3]]
    inode = node.inode
    inode.refresh()
    nodes.renew(node)
    shown = abi.ATTR.unpack(node.attr[16:])
    group = node.group
    flags = 0
    for flag, attribute in _STATX_FLAGS:
        if inode.flags & flag:
            flags |= attribute
    dev = inode.superblock.dev
    return answer(
        reply, abi.STATX_OUT, group.attr_s, group.attr_ns, 0,
        STATX_BASIC_STATS | STATX_BTIME, shown[14], flags, shown[10], shown[11], shown[12],
        shown[9], shown[0], shown[1], shown[2], _STATX_FLAGS_KNOWN,
        *divmod(inode.atime_ns, _SECOND_NS), *divmod(inode.btime_ns, _SECOND_NS),
        *divmod(inode.ctime_ns, _SECOND_NS), *divmod(inode.mtime_ns, _SECOND_NS),
        major(shown[13]), minor(shown[13]), major(dev), minor(dev),
    )  # fmt: skip


def access(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_ACCESS: access(2) and chdir(2), when the permission checks are ours."""
    node = server.nodes.by_id[header[3]]
    mask = abi.ACCESS_IN.unpack_from(body)[0]
    if mask & ~7:
        return -errno.EINVAL
    node.inode.refresh()
    vfs_access(node.mount, node.dentry, mask, server.caller(header, body))
    return 0


def statfs(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    node = server.nodes.by_id[header[3]]
    figures = vfs_statfs(node.mount, node.dentry)
    return answer(
        reply, abi.KSTATFS, figures.blocks, figures.bfree, figures.bavail, figures.files,
        figures.ffree, figures.bsize, figures.namelen, figures.frsize, 0,
    )  # fmt: skip


def syncfs(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    node = server.nodes.by_id[header[3]]
    node.dentry.superblock.sync()
    return 0


def _reply_bytes(data: bytes, reply: Reply) -> int:
    """Put ``data`` after the header; -1 if there is no room."""
    _, out, at = reply
    end = at + len(data)
    if end <= len(out):
        out[at:end] = data
        return len(data)
    room = room_of(reply)
    if len(data) > length_of(room):
        return -1
    return scatter(data, room)


def readlink(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    node = server.nodes.by_id[header[3]]
    target = vfs_readlink(node.mount, node.dentry, server.caller(header, body))
    count = _reply_bytes(target, reply)
    return count if count >= 0 else -errno.ENAMETOOLONG


def _sized(data: bytes, size: int, reply: Reply) -> int:
    """Reply as getxattr(2) does: the size for a ``size`` of 0, else the data or ERANGE."""
    if not size:
        data = abi.GETXATTR_OUT.pack(len(data), 0)
    elif len(data) > size:
        return -errno.ERANGE
    count = _reply_bytes(data, reply)
    return count if count >= 0 else -errno.ERANGE


def getxattr(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    node = server.nodes.by_id[header[3]]
    if server.has_no_xattrs(node.mount.superblock):
        return -errno.ENOSYS
    size, _ = abi.GETXATTR_IN.unpack_from(body)
    name = name_in(body, 8)
    value = vfs_getxattr(node.dentry, name, server.caller(header, body))
    return _sized(value, min(size, XATTR_SIZE_MAX), reply)


def listxattr(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    node = server.nodes.by_id[header[3]]
    if server.has_no_xattrs(node.mount.superblock):
        return -errno.ENOSYS
    size, _ = abi.GETXATTR_IN.unpack_from(body)
    names = vfs_listxattr(node.dentry, server.caller(header, body))
    data = b"".join([name + b"\0" for name in names])
    if len(data) > XATTR_LIST_MAX:
        return -errno.E2BIG
    return _sized(data, size, reply)


def setxattr(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_SETXATTR; its structure is longer with FUSE_SETXATTR_EXT."""
    node = server.nodes.by_id[header[3]]
    if server.has_no_xattrs(node.mount.superblock):
        return -errno.ENOSYS
    size, flags = abi.SETXATTR_COMPAT_IN.unpack_from(body)
    start = 16 if server.flags & abi.SETXATTR_EXT else 8
    end = body.find(0, start)
    if end < 0 or len(body) - end - 1 != size:
        return -errno.EINVAL
    cred = server.caller(header, body)
    vfs_setxattr(node.mount, node.dentry, body[start:end], body[end + 1 :], flags, cred)
    inode = node.inode
    if start == 16 and abi.SETXATTR_IN.unpack_from(body)[2] & abi.SETXATTR_ACL_KILL_SGID:
        inode.refresh()
        if inode.mode & S_ISGID:
            kept = SetAttributes(mode=inode.mode & S_IALLUGO & ~S_ISGID)
            vfs_setattr(node.mount, node.dentry, kept, cred)
    return 0


def removexattr(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    node = server.nodes.by_id[header[3]]
    if server.has_no_xattrs(node.mount.superblock):
        return -errno.ENOSYS
    vfs_removexattr(node.mount, node.dentry, name_in(body, 0), server.caller(header, body))
    return 0
