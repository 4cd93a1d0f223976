"""Operations on open directories."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING, Final

from harness.fuse import abi
from harness.fuse.buffers import length_of, scatter
from harness.fuse.request import answer, room_of
from vfs.abi import O_DIRECTORY, S_IFBLK, S_IFCHR, S_IFREG, X_OK
from vfs.namei import step
from vfs.operations import vfs_fsync, vfs_open
from vfs.permission import inode_permission

if TYPE_CHECKING:
    from harness.fuse.buffers import Segments
    from harness.fuse.handles import DirectoryHandle
    from harness.fuse.request import Header, Reply
    from harness.fuse.server import FuseServer
    from vfs.file import DirectoryEntry

_MASK64: Final = (1 << 64) - 1
_DT_UNKNOWN: Final = 0
_DEVICES: Final = (S_IFCHR >> 12, S_IFBLK >> 12)
_UNKNOWN_ENTRY: Final = bytes(abi.ENTRY_OUT_SIZE)
# The longest listing that is put together apart: a client asks for no more than it may read, but a
# chain whose descriptors all name the same pages can claim room for gigabytes.
_LISTING_MAX: Final = abi.MAX_WRITE
# By the length of the name in words of 8 bytes: a record whose name is padded with NULs.
_RECORDS: Final = [Struct(f"<0sQQII{8 * words}s") for words in range(33)]
_RECORDS_PLUS: Final = [Struct(f"<128sQQII{8 * words}s") for words in range(33)]


def opendir(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    node = server.nodes.by_id[header[3]]
    if not node.inode.is_dir:
        return -errno.ENOTDIR
    cred = server.caller(header, body)
    file = vfs_open(node.mount, node.dentry, O_DIRECTORY, cred)
    fh = server.handles.add_directory(file)
    return answer(reply, abi.OPEN_OUT, fh, node.group.policy.directory_flags, 0)


def releasedir(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    handle = server.handles.directories.pop(abi.RELEASE_IN.unpack_from(body)[0], None)
    if handle is None:
        return -errno.EBADF
    if server.locks is not None:
        server.locks.release(handle.file.inode, handle.file)
    handle.rewind()
    handle.file.put()
    return 0


def fsyncdir(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    fh, flags, _ = abi.FSYNC_IN.unpack_from(body)
    handle = server.handles.directories[fh]
    vfs_fsync(handle.file, bool(flags & abi.FSYNC_FDATASYNC))
    return 0


def readdir(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    return _list(server, header, body, reply, False)


def readdirplus(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    return _list(server, header, body, reply, True)


def _list(server: FuseServer, header: Header, body: bytes, reply: Reply, plus: bool) -> int:
    """FUSE_READDIR(PLUS): as many records as fit in the size asked for. Linux: ``fuse_readdir``.

    EINVAL if not even one fits, as getdents64(2) says; an error after the first record waits for
    the next request.
    """
    fh, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
    handle = server.handles.directories[fh]
    _, out, at = reply
    end = at + size
    room: Segments = ()
    if end <= len(out):
        view = out[at:end]
    else:
        room = room_of(reply)
        view = memoryview(bytearray(min(size, length_of(room), _LISTING_MAX)))
    try:
        look = plus and (server.default_permissions or _may_search(server, header, body, handle))
        used = _fill(server, handle, handle.seek(offset), view, plus, look)
    except BaseException:
        handle.rewind()
        raise
    if not used and handle.pending is not None:
        return -errno.EINVAL
    if room:
        scatter(view[:used], room)
    return used


def _may_search(server: FuseServer, header: Header, body: bytes, handle: DirectoryHandle) -> bool:
    """Without search permission the names may be listed, but not looked up."""
    try:
        inode_permission(handle.file.inode, server.caller(header, body), X_OK)
    except PermissionError:
        return False
    return True


def _fill(
    server: FuseServer,
    handle: DirectoryHandle,
    entries: Iterator[DirectoryEntry],
    view: memoryview,
    plus: bool,
    may_look: bool,
) -> int:
    """Pack records until one does not fit; returns the bytes used.

    ``plus`` puts an entry before each. With ``may_look`` each name is looked up, and the lookup
    counted, once its record fits; "." and "..", and what cannot be looked up, go without: node id 0
    tells the client so.
    """
    records, untold = (_RECORDS_PLUS, _UNKNOWN_ENTRY) if plus else (_RECORDS, b"")
    fixed = 24 + len(untold)
    nodes = server.nodes
    directory = handle.file.dentry
    group = nodes.group(handle.file.mount)
    ino_base = group.ino_base if group.unique_inodes else 0
    hide = _DEVICES if nodes.emulate_devices else ()
    end = len(view)
    used = 0
    pending = handle.pending
    if pending is not None:
        entries = chain((pending,), entries)
        pending = None
    try:
        for entry in entries:
            name, ino, kind, cookie = entry
            length = len(name)
            words = length + 7 >> 3
            following = used + fixed + (words << 3)
            if following > end:
                pending = entry
                break
            told = untold
            if may_look and name != b"." and name != b"..":
                try:
                    dentry = step(directory, name)
                except OSError:
                    dentry = None
                if dentry is not None:
                    if dentry.mounted:
                        node = nodes.enter_mounted(group, dentry)
                    else:
                        node = nodes.enter(group, dentry)
                    wire = node.wire
                    if wire is not None and wire is node.inode.wire:
                        told = node.entry
                    else:
                        told = nodes.renew(node)
                    if hide and node.is_device:
                        kind = S_IFREG >> 12
            elif kind in hide:
                kind = _DT_UNKNOWN
            records[words].pack_into(
                view, used, told, (ino | ino_base) & _MASK64, cookie, length, kind, name
            )
            used = following
            handle.cookie = cookie
    except OSError:
        if not used:
            raise
        handle.iterator = None
    handle.pending = pending
    return used
