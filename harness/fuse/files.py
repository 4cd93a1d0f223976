"""Operations on open files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from harness.fuse import abi
from harness.fuse.buffers import clip, length_of, scatter
from harness.fuse.request import answer, room_of
from vfs.abi import (
    FS_APPEND_FL,
    O_ACCMODE,
    O_APPEND,
    O_CREAT,
    O_DIRECT,
    O_EXCL,
    O_NOCTTY,
    O_NONBLOCK,
    O_PATH,
    O_RDWR,
    O_WRONLY,
    POLLERR,
    POLLHUP,
    RWF_APPEND,
    S_IFMT,
    S_IFREG,
    S_ISGID,
    S_ISUID,
    S_IXGRP,
    SEEK_DATA,
    SEEK_HOLE,
)
from vfs.errors import WouldBlock
from vfs.file import FileDescription
from vfs.inode import Inode, SetAttributes
from vfs.operations import (
    read_locked,
    vfs_copy_file_range,
    vfs_fallocate,
    vfs_fsync,
    vfs_llseek,
    vfs_open,
    vfs_read,
    vfs_setattr,
    vfs_write,
    write_locked,
)

if TYPE_CHECKING:
    from harness.fuse.buffers import Segments
    from harness.fuse.nodes import MountNodes, Node
    from harness.fuse.request import Header, Reply
    from harness.fuse.server import FuseServer
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry

_open_in: Final = abi.OPEN_IN.unpack_from
_open_out: Final = abi.OPEN_OUT.pack_into
_OPEN_OUT_SIZE: Final = abi.OPEN_OUT.size
_release_in: Final = abi.RELEASE_IN.unpack_from
_read_in: Final = abi.READ_IN.unpack_from
_write_in: Final = abi.WRITE_IN.unpack_from
_write_out: Final = abi.WRITE_OUT.pack_into
_HEADERS: Final = abi.IN_HEADER_SIZE + abi.WRITE_IN_SIZE
_OFFSET_MAX: Final = (1 << 63) - 1
# One request holds the VFS lock for no longer than this many bytes take; the client asks again.
_COPY_LIMIT: Final = 16 << 20
# No client asks for more at once, but a chain whose descriptors all name the same pages can claim
# to have room for more than the reply's header can tell.
_TRANSFER_LIMIT: Final = abi.MAX_WRITE
# O_APPEND travels with each WRITE, because pages written back through the same handle have places;
# O_DIRECT is between the client and its page cache, unless the mount's options pass it on.
_NOT_OURS: Final = O_CREAT | O_EXCL | O_NOCTTY | O_APPEND | O_DIRECT


def without_set_id(inode: Inode) -> int | None:
    """The mode left by FUSE_*_KILL_SUIDGID (FUSE_HANDLE_KILLPRIV_V2); None if nothing changes.

    The client has checked CAP_FSETID. A set-group-id bit without group execute stays.
    """
    mode = inode.mode
    if mode & S_IFMT != S_IFREG or not mode & (S_ISUID | S_ISGID):
        return None
    kept = mode & ~S_ISUID
    if mode & S_IXGRP:
        kept &= ~S_ISGID
    return kept & 0o7777 if kept != mode else None


def open_file(
    server: FuseServer,
    group: MountNodes,
    dentry: Dentry,
    flags: int,
    open_flags: int,
    cred: Credentials,
    check: bool = True,
) -> FileDescription:
    """Open for a client; the caller receives the description. Raises: as ``vfs_open``."""
    inode, mount = dentry.inode, group.mount
    assert inode is not None
    keep = ~_NOT_OURS
    if group.policy.direct_io:
        keep |= O_DIRECT
    if server.flags & abi.WRITEBACK_CACHE and flags & O_ACCMODE == O_WRONLY:
        # To write back part of a page the client reads the rest of it.
        flags = flags & ~O_ACCMODE | O_RDWR
    if inode.flags & FS_APPEND_FL:
        keep |= O_APPEND
    file = vfs_open(mount, dentry, flags & keep & ~O_PATH, cred, check=check)
    if open_flags & abi.OPEN_KILL_SUIDGID:
        mode = without_set_id(inode)
        if mode is not None:
            try:
                vfs_setattr(mount, dentry, SetAttributes(mode=mode), cred)
            except BaseException:
                file.put()
                raise
    return file


def reply_flags(server: FuseServer, node: Node, file: FileDescription) -> int:
    """The FOPEN_* that go with ``file``. Linux: ``fuse_finish_open`` acts on them."""
    if node.is_device or node.inode.mode & S_IFMT != S_IFREG:
        if file.seekable:
            return abi.FOPEN_DIRECT_IO
        return abi.FOPEN_DIRECT_IO | abi.FOPEN_NONSEEKABLE | abi.FOPEN_STREAM
    group = node.group
    flags = group.policy.file_flags
    if not file.seekable:
        flags |= abi.FOPEN_DIRECT_IO | abi.FOPEN_NONSEEKABLE
    elif file.generated:
        flags |= abi.FOPEN_DIRECT_IO
    elif group.keep_unchanged and node.wire is not None and node.wire is node.inode.wire:
        # The client was told these very attributes, and dropped what it had cached for others.
        flags |= abi.FOPEN_KEEP_CACHE
    if server.locks is None and type(file).flush is FileDescription.flush:
        flags |= abi.FOPEN_NOFLUSH
    return flags


def open_(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_OPEN. A client opens devices, FIFOs and sockets with its own drivers; of ours it reaches
    those that are presented as files.
    """
    node = server.nodes.by_id[header[3]]
    if node.inode.mode & S_IFMT != S_IFREG and not node.is_device:
        return -(errno.EISDIR if node.inode.is_dir else errno.ENXIO)
    flags, open_flags = _open_in(body)
    cred = server.caller(header, body)
    file = open_file(server, node.group, node.dentry, flags, open_flags, cred)
    fopen = reply_flags(server, node, file)
    _open_out(reply[1], reply[2], server.handles.add_file(file), fopen, 0)
    return _OPEN_OUT_SIZE


def release(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    file = server.handles.files.pop(_release_in(body)[0], None)
    if file is None:
        return -errno.EBADF
    if server.locks is not None:
        # No process has the description open any more, so whatever was locked through it, by
        # whichever kind of owner, is over.
        server.locks.release(file.inode, file)
    if server.polls:
        server.forget_polls(file)
    file.put()
    return 0


def flush(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_FLUSH: a process closed a descriptor, and with it loses its record locks on the file."""
    fh, _, _, owner = abi.FLUSH_IN.unpack_from(body)
    file = server.handles.files[fh]
    if server.locks is not None:
        server.locks.unlock_owner(file.inode, (server, owner))
    file.flush()
    return 0


def read(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_READ, straight into the client's buffers."""
    fh, offset, size, _, _, flags, _ = _read_in(body)
    if size > _TRANSFER_LIMIT:
        size = _TRANSFER_LIMIT
    file = server.handles.files[fh]
    segments, out, at = reply
    buffers: Segments
    if at:
        buffers = [out[at:], *segments[1:]] if len(segments) > 1 else [out[at : at + size]]
        if len(buffers) > 1:
            buffers = clip(buffers, size)
    elif len(segments) == 2:
        buffers = (out if len(out) <= size else out[:size],)
    else:
        buffers = segments[1:]
        if length_of(buffers) > size:
            buffers = clip(buffers, size)
    if not file.seekable:
        offset = 0
    elif offset > _OFFSET_MAX:
        return -errno.EINVAL
    if file.unlocked_io:
        return server.unlocked(file, vfs_read, file, buffers, offset)
    try:
        return read_locked(file, buffers, offset)
    except WouldBlock:
        if flags & O_NONBLOCK:
            return -errno.EAGAIN
        raise


def write(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_WRITE, straight from the client's buffers."""
    data, out, at = reply
    fh, offset, size, write_flags, _, flags, _ = _write_in(body)
    if header[0] != _HEADERS + size:
        return -errno.EINVAL
    if size > _TRANSFER_LIMIT:
        size = _TRANSFER_LIMIT
        data = clip(data, size)
    file = server.handles.files[fh]
    rwf = 0
    if not file.seekable:
        offset = 0
    elif flags & O_APPEND and not write_flags & abi.WRITE_CACHE:
        rwf = RWF_APPEND
    elif offset + size > _OFFSET_MAX:
        return -errno.EFBIG
    if not write_flags & abi.WRITE_KILL_SUIDGID:
        if file.unlocked_io or flags & O_NONBLOCK:
            count = _write(server, file, data, offset, rwf, flags)
        else:
            count = write_locked(file, data, offset, rwf)
    else:
        # Held, for another thread may release it while the lock is dropped.
        with file.get():
            count = _write(server, file, data, offset, rwf, flags)
            mode = without_set_id(file.inode) if count >= 0 else None
            if mode is not None:
                cred = server.caller(header, body)
                vfs_setattr(file.mount, file.dentry, SetAttributes(mode=mode), cred)
    if count < 0:
        return count
    _write_out(out, at, count, 0)
    return 8


def _write(
    server: FuseServer, file: FileDescription, data: Segments, offset: int, rwf: int, flags: int
) -> int:
    """The bytes written, or -EAGAIN. Raises: WouldBlock; as ``vfs_write``."""
    try:
        if file.unlocked_io:
            return server.unlocked(file, vfs_write, file, data, offset, rwf)
        return write_locked(file, data, offset, rwf)
    except WouldBlock:
        if flags & O_NONBLOCK:
            return -errno.EAGAIN
        raise


def fsync(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    fh, flags, _ = abi.FSYNC_IN.unpack_from(body)
    file = server.handles.files[fh]
    datasync = bool(flags & abi.FSYNC_FDATASYNC)
    if file.unlocked_io:
        server.unlocked(file, vfs_fsync, file, datasync)
    else:
        vfs_fsync(file, datasync)
    return 0


def fallocate(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    fh, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
    file = server.handles.files[fh]
    if offset > _OFFSET_MAX or length > _OFFSET_MAX:
        return -errno.EINVAL
    vfs_fallocate(file, mode, offset, length)
    return 0


def lseek(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_LSEEK: SEEK_DATA and SEEK_HOLE; the client knows the other positions itself."""
    fh, offset, whence, _ = abi.LSEEK_IN.unpack_from(body)
    file = server.handles.files[fh]
    if whence not in (SEEK_DATA, SEEK_HOLE):
        return -errno.EINVAL
    if offset > _OFFSET_MAX:
        return -errno.ENXIO
    return answer(reply, abi.LSEEK_OUT, vfs_llseek(file, offset, whence))


def _copy_range(server: FuseServer, body: bytes) -> int:
    fh_in, off_in, _, fh_out, off_out, length, flags = abi.COPY_FILE_RANGE_IN.unpack_from(body)
    files = server.handles.files
    source, target = files[fh_in], files[fh_out]
    if flags:
        return -errno.EINVAL
    if off_in > _OFFSET_MAX or off_out > _OFFSET_MAX:
        return -errno.EFBIG
    length = min(length, _COPY_LIMIT)
    if source.unlocked_io or target.unlocked_io:
        with target.get():
            return server.unlocked(
                source, vfs_copy_file_range, source, off_in, target, off_out, length
            )
    return vfs_copy_file_range(source, off_in, target, off_out, length)


def copy_file_range(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    count = _copy_range(server, body)
    return answer(reply, abi.WRITE_OUT, count, 0) if count >= 0 else count


def copy_file_range_64(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    count = _copy_range(server, body)
    return answer(reply, abi.COPY_FILE_RANGE_OUT, count) if count >= 0 else count


def ioctl(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_IOCTL, restricted: the command's number tells the sizes, and the client copied the data.

    Linux: ``fuse_do_ioctl``. Commands that nobody knows get ENOTTY.
    """
    fh, flags, command, argument, in_size, out_size = abi.IOCTL_IN.unpack_from(body)
    handles = server.handles
    file = handles.directories[fh].file if flags & abi.IOCTL_DIR else handles.files[fh]
    start = abi.IOCTL_IN.size
    if flags & abi.IOCTL_UNRESTRICTED:
        return -errno.ENOSYS
    if in_size > len(body) - start:
        return -errno.EINVAL
    data = file.ioctl(command, body[start : start + in_size] if in_size else argument)
    room = room_of(reply)
    if len(data) > out_size or 16 + len(data) > length_of(room):
        return -errno.EOVERFLOW
    return scatter(abi.IOCTL_OUT.pack(0, 0, 0, 0) + data, room)


def poll(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_POLL. Without a way to wake the client later it could only sleep for ever: ENOSYS, and
    it takes every file for ready.
    """
    fh, kh, flags, events = abi.POLL_IN.unpack_from(body)
    if server.notify is None:
        return -errno.ENOSYS
    file = server.handles.files[fh]
    if flags & abi.POLL_SCHEDULE_NOTIFY:
        queue = file.poll_queue()
        if queue is not None:
            server.schedule_poll(kh, file, queue)
    return answer(reply, abi.POLL_OUT, file.poll() & (events | POLLERR | POLLHUP), 0)
