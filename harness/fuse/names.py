"""Operations on names: looking them up, making them, taking them away."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.fuse import abi
from harness.fuse.files import open_file, reply_flags
from vfs.abi import O_EXCL, O_TMPFILE, O_TRUNC, S_IALLUGO, S_IFDIR, S_IFMT, X_OK
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
    from harness.fuse.request import Handler, Header, Reply
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


_Work = Callable[["FuseServer", "Node", "Header", bytes, "Reply"], int]


def _in_directory(work: _Work) -> Handler:
    """A handler of the directory that the request names, held meanwhile.

    What is mounted on a name that goes away is unmounted, and that can be the very mount through
    which the directory was reached.
    """

    def handler(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
        with server.nodes.by_id[header[3]].get() as parent:
            return work(server, parent, header, body, reply)

    return handler


def _adding_to_directory(work: _Work) -> Handler:
    """``_in_directory`` for what takes no names away. Where no lookup does either, nothing can be
    unmounted meanwhile, and a CREATE saves 0.5 us.
    """

    def handler(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
        parent = server.nodes.by_id[header[3]]
        if not parent.group.asks_again:
            return work(server, parent, header, body, reply)
        with parent.get():
            return work(server, parent, header, body, reply)

    return handler


def _named(
    server: FuseServer, header: Header, body: bytes, arguments: Struct
) -> tuple[Credentials, bytes]:
    """Who makes something, and the name after ``arguments``. Raises: EINVAL."""
    cred = server.caller(header, body)
    return cred, name_in(server.strip_extensions(header, body), arguments.size)


def _umask(server: FuseServer, parent: Node, umask: int) -> int:
    """What of the caller's ``umask`` is ours to apply: with FUSE_DONT_MASK all of it, unless the
    directory's default ACL is in its place.
    """
    if not umask or not server.flags & abi.DONT_MASK:
        return 0
    try:
        parent.inode.getxattr(b"system.posix_acl_default")
    except OSError:
        return umask
    return 0


def _labelled(
    server: FuseServer,
    parent: Node,
    name: bytes | None,
    dentry: Dentry,
    header: Header,
    body: bytes,
    cred: Credentials,
) -> Dentry:
    """``dentry``, new, with the labels that came with the request (FUSE_SECURITY_CTX). Without
    them it must not be: then ``name``, if it has one, goes again.
    """
    inode = dentry.inode
    assert inode is not None
    try:
        for attribute, value in server.security_contexts(header, body):
            inode.setxattr(attribute, value, 0)
    except OSError:
        dentry.put()
        if name is not None:
            (vfs_rmdir if inode.is_dir else vfs_unlink)(parent, name, cred)
        raise
    return dentry


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
    if not server.default_permissions:
        inode_permission(parent.inode, server.caller(header, body), X_OK)
    group = parent.group
    end = len(body) - 1
    name = body[:end]
    children = parent.dentry.children
    if children and name in children and not group.asks_again and not body[end]:
        # As below for the common case, a cached name whose node the client has, in half the time.
        child = children[name]
        inode = child.inode
        if inode is not None and not child.mounted:
            known = group.nodes.get(child if inode.mode & S_IFMT == S_IFDIR else inode)
            if known is not None and known.dentry is child:
                known.nlookup += 1
                wire = known.wire
                _, out, at = reply
                out[at : at + 128] = (
                    known.entry if wire is not None and wire is inode.wire else nodes.renew(known)
                )
                return 128
    if end < 1 or body.find(0) != end or 0x2F in body:
        return -errno.EINVAL
    if name == b"." or name == b"..":
        return _lookup_dot(server, parent, name, reply)
    held = parent.get() if group.asks_again else None
    try:
        dentry = step(parent.dentry, name)
        if dentry is None:
            # There is no such name, which the client may remember for a while.
            if not group.negative:
                return -errno.ENOENT
            _, out, at = reply
            out[at : at + 128] = group.negative
            return 128
        node = nodes.enter_mounted(group, dentry) if dentry.mounted else nodes.enter(group, dentry)
        wire = node.wire
        _, out, at = reply
        out[at : at + 128] = (
            node.entry if wire is not None and wire is node.inode.wire else nodes.renew(node)
        )
    finally:
        if held is not None:
            held.put()
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


@_adding_to_directory
def mknod(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(body)
    cred, name = _named(server, header, body, abi.MKNOD_IN)
    umask = _umask(server, parent, umask)
    dentry = vfs_mknod(parent, name, mode, rdev, cred, umask=umask)
    dentry = _labelled(server, parent, name, dentry, header, body, cred)
    return _reply_entry(server, parent, dentry, reply)


@_adding_to_directory
def mkdir(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    mode, umask = abi.MKDIR_IN.unpack_from(body)
    cred, name = _named(server, header, body, abi.MKDIR_IN)
    dentry = vfs_mkdir(parent, name, mode & ~_umask(server, parent, umask), cred)
    dentry = _labelled(server, parent, name, dentry, header, body, cred)
    return _reply_entry(server, parent, dentry, reply)


@_adding_to_directory
def symlink(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    cred = server.caller(header, body)
    name, target = two_names_in(server.strip_extensions(header, body), 0)
    dentry = vfs_symlink(parent, name, target, cred)
    dentry = _labelled(server, parent, name, dentry, header, body, cred)
    return _reply_entry(server, parent, dentry, reply)


@_adding_to_directory
def link(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    source = server.nodes.by_id[abi.LINK_IN.unpack_from(body)[0]]
    name = name_in(body, abi.LINK_IN.size)
    dentry = vfs_link(source, parent, name, server.caller(header, body))
    source.inode.refresh()
    return _reply_entry(server, parent, dentry, reply)


@_in_directory
def unlink(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    vfs_unlink(parent, name_in(body, 0), server.caller(header, body))
    return 0


@_in_directory
def rmdir(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    vfs_rmdir(parent, name_in(body, 0), server.caller(header, body))
    return 0


def _rename(
    server: FuseServer, old_parent: Node, header: Header, body: bytes, start: int, flags: int
) -> int:
    new_parent = server.nodes.by_id[abi.RENAME_IN.unpack_from(body)[0]]
    names = two_names_in(body, start)
    cred = server.caller(header, body)
    vfs_rename(old_parent, names[0], new_parent, names[1], flags, cred)
    return 0


@_in_directory
def rename(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    return _rename(server, parent, header, body, abi.RENAME_IN.size, 0)


@_in_directory
def rename2(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    _, flags, _ = abi.RENAME2_IN.unpack_from(body)
    return _rename(server, parent, header, body, abi.RENAME2_IN.size, flags)


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
        file = open_file(server, parent.group, dentry, flags, open_flags, cred, check)
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


@_adding_to_directory
def create(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_CREATE: create and open. A file that appeared meanwhile is opened, but for O_EXCL."""
    flags, mode, umask, open_flags = abi.CREATE_IN.unpack_from(body)
    cred, name = _named(server, header, body, abi.CREATE_IN)
    existing, absent = None, False
    if not flags & O_EXCL and name not in (b"", b".", b"..") and 0x2F not in name:
        existing = step(parent.dentry, name)
        absent = existing is None
    if existing is not None:
        # The client expects a regular file of this very superblock.
        covered = existing in parent.mount.children
        if covered or not existing.inode or not existing.inode.is_regular:
            existing.put()
            return -errno.EEXIST
        dentry, fresh = existing, False
    else:
        umask = _umask(server, parent, umask)
        mode &= S_IALLUGO
        dentry, fresh = vfs_create(parent, name, mode, flags, cred, umask, absent), True
        dentry = _labelled(server, parent, name, dentry, header, body, cred)
        flags &= ~O_TRUNC
    return _open_entry(server, parent, dentry, flags, open_flags, fresh, cred, reply)


@_adding_to_directory
def tmpfile(server: FuseServer, parent: Node, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_TMPFILE: O_TMPFILE. The name in the request is "/", for nothing."""
    cred = server.caller(header, body)
    flags, mode, umask, open_flags = abi.CREATE_IN.unpack_from(body)
    umask = _umask(server, parent, umask)
    dentry = vfs_tmpfile(parent, mode & S_IALLUGO, cred, not flags & O_EXCL, umask)
    dentry = _labelled(server, parent, None, dentry, header, body, cred)
    flags &= ~O_TMPFILE
    return _open_entry(server, parent, dentry, flags, open_flags, True, cred, reply)
