"""Operations on names: looking them up, making them, taking them away."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from harness.fuse import abi
from harness.fuse.files import open_file, reply_flags
from vfs.abi import O_EXCL, O_TMPFILE, O_TRUNC, S_IALLUGO, X_OK
from vfs.errors import oserror
from vfs.namei import follow_dotdot, step
from vfs.operations import (
    vfs_create,
    vfs_link,
    vfs_mkdir,
    vfs_mknod,
    vfs_rename,
    vfs_rmdir,
    vfs_symlink,
    vfs_tmpfile,
    vfs_unlink,
)
from vfs.permission import inode_permission

if TYPE_CHECKING:
    from struct import Struct

    from harness.fuse.nodes import Node
    from harness.fuse.request import Header, Reply
    from harness.fuse.server import FuseServer
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry


def name_in(body: bytes, start: int) -> bytes:
    """The NUL-terminated string from ``start`` to the end. Raises: EINVAL."""
    end = len(body) - 1
    if body.find(0, start) != end:
        raise oserror(errno.EINVAL)
    return body[start:end]


def two_names_in(body: bytes, start: int) -> tuple[bytes, bytes]:
    """Two NUL-terminated strings from ``start`` to the end. Raises: EINVAL."""
    middle = body.find(0, start)
    if middle < 0:
        raise oserror(errno.EINVAL)
    return body[start:middle], name_in(body, middle + 1)


def _named(
    server: FuseServer, header: Header, body: bytes, arguments: Struct
) -> tuple[Credentials, bytes]:
    """Who makes something, and the name after ``arguments``. Raises: EINVAL."""
    cred = server.caller(header, body)
    return cred, name_in(server.strip_extensions(header, body), arguments.size)


def _reply_entry(server: FuseServer, parent: Node, dentry: Dentry, reply: Reply) -> int:
    """Count a lookup of ``dentry`` and tell; takes over the caller's reference."""
    nodes = server.nodes
    _, out, at = reply
    out[at : at + 128] = nodes.entry(nodes.enter(parent.group, dentry))
    return 128


def lookup(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_LOOKUP. "." and ".." come from file handles (FUSE_EXPORT_SUPPORT)."""
    nodes = server.nodes
    parent = nodes.by_id[header[3]]
    end = len(body) - 1
    if end < 1 or body.find(0) != end or 0x2F in body:
        return -errno.EINVAL
    name = body[:end]
    if not server.default_permissions:
        inode_permission(parent.inode, server.caller(header, body), X_OK)
    if name == b"." or name == b"..":
        return _lookup_dot(server, parent, name, reply)
    _, out, at = reply
    dentry = step(parent.dentry, name)
    group = parent.group
    if dentry is None:
        negative_ns = group.policy.negative_ns
        if not negative_ns:
            return -errno.ENOENT
        seconds, nanoseconds = divmod(negative_ns, 10**9)
        abi.ENTRY_OUT.pack_into(out, at, 0, 0, seconds, 0, nanoseconds, 0, b"")
        return 128
    node = nodes.enter_mounted(group, dentry) if dentry.mounted else nodes.enter(group, dentry)
    wire = node.wire
    out[at : at + 128] = (
        node.entry if wire is not None and wire is node.inode.wire else nodes.renew(node)
    )
    return 128


def _lookup_dot(server: FuseServer, node: Node, name: bytes, reply: Reply) -> int:
    nodes = server.nodes
    mount, dentry = node.mount, node.dentry
    assert nodes.root is not None
    if name == b"..":
        if not node.inode.is_dir:
            return -errno.ENOTDIR
        mount, dentry = follow_dotdot(mount, dentry, nodes.root)
    assert dentry.inode is not None
    dentry.inode.refresh()
    found = nodes.enter(nodes.group(mount), dentry.superblock.vfs.dcache.hold(dentry))
    _, out, at = reply
    out[at : at + 128] = nodes.entry(found)
    return 128


def mknod(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    parent = server.nodes.by_id[header[3]]
    mode, rdev, _, _ = abi.MKNOD_IN.unpack_from(body)
    cred, name = _named(server, header, body, abi.MKNOD_IN)
    return _reply_entry(server, parent, vfs_mknod(parent, name, mode, rdev, cred), reply)


def mkdir(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    parent = server.nodes.by_id[header[3]]
    mode, _ = abi.MKDIR_IN.unpack_from(body)
    cred, name = _named(server, header, body, abi.MKDIR_IN)
    return _reply_entry(server, parent, vfs_mkdir(parent, name, mode, cred), reply)


def symlink(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    parent = server.nodes.by_id[header[3]]
    cred = server.caller(header, body)
    names = two_names_in(server.strip_extensions(header, body), 0)
    return _reply_entry(server, parent, vfs_symlink(parent, *names, cred), reply)


def link(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    by_id = server.nodes.by_id
    parent = by_id[header[3]]
    source = by_id[abi.LINK_IN.unpack_from(body)[0]]
    name = name_in(body, abi.LINK_IN.size)
    dentry = vfs_link(source, parent, name, server.caller(header, body))
    source.inode.refresh()
    return _reply_entry(server, parent, dentry, reply)


def unlink(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    parent = server.nodes.by_id[header[3]]
    vfs_unlink(parent, name_in(body, 0), server.caller(header, body))
    return 0


def rmdir(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    parent = server.nodes.by_id[header[3]]
    vfs_rmdir(parent, name_in(body, 0), server.caller(header, body))
    return 0


def _rename(server: FuseServer, header: Header, body: bytes, start: int, flags: int) -> int:
    by_id = server.nodes.by_id
    old_parent = by_id[header[3]]
    new_parent = by_id[abi.RENAME_IN.unpack_from(body)[0]]
    names = two_names_in(body, start)
    cred = server.caller(header, body)
    vfs_rename(old_parent, names[0], new_parent, names[1], flags, cred)
    return 0


def rename(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    return _rename(server, header, body, abi.RENAME_IN.size, 0)


def rename2(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    _, flags, _ = abi.RENAME2_IN.unpack_from(body)
    return _rename(server, header, body, abi.RENAME2_IN.size, flags)


def _open_entry(
    server: FuseServer,
    parent: Node,
    dentry: Dentry,
    flags: int,
    open_flags: int,
    fresh: bool,
    cred: Credentials,
    reply: Reply,
) -> int:
    """Open ``dentry`` and tell both the entry and the handle; takes over the reference on it."""
    try:
        check = not fresh
        file = open_file(server, parent.mount, dentry, flags, open_flags, cred, check)
    except BaseException:
        dentry.put()
        raise
    nodes = server.nodes
    node = nodes.enter(parent.group, dentry)
    fopen = reply_flags(server, node, file)
    _, out, at = reply
    out[at : at + 128] = nodes.entry(node)
    abi.OPEN_OUT.pack_into(out, at + 128, server.handles.add_file(file), fopen, 0)
    return 144


def create(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_CREATE: create and open. A file that appeared meanwhile is opened, but for O_EXCL."""
    parent = server.nodes.by_id[header[3]]
    flags, mode, _, open_flags = abi.CREATE_IN.unpack_from(body)
    cred, name = _named(server, header, body, abi.CREATE_IN)
    existing = None
    if not flags & O_EXCL and name not in (b"", b".", b"..") and 0x2F not in name:
        existing = step(parent.dentry, name)
    if existing is not None:
        # The client expects a regular file of this very superblock.
        if existing.mounted or not existing.inode or not existing.inode.is_regular:
            existing.put()
            return -errno.EEXIST
        dentry, fresh = existing, False
    else:
        dentry, fresh = vfs_create(parent, name, mode & S_IALLUGO, cred), True
        flags &= ~O_TRUNC
    return _open_entry(server, parent, dentry, flags, open_flags, fresh, cred, reply)


def tmpfile(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_TMPFILE: O_TMPFILE. The name in the request is "/", for nothing."""
    parent = server.nodes.by_id[header[3]]
    cred = server.caller(header, body)
    flags, mode, _, open_flags = abi.CREATE_IN.unpack_from(body)
    dentry = vfs_tmpfile(parent, mode & S_IALLUGO, cred, not flags & O_EXCL)
    flags &= ~O_TMPFILE
    return _open_entry(server, parent, dentry, flags, open_flags, True, cred, reply)
