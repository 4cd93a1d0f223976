"""The opcode table: one row for each thing that a kernel may ask.

The server dispatches by it, the tracer prints by it, and docs/fuse-support.md is made from it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from harness.fuse import abi, attributes, directories, files, locking, names, session
from harness.fuse.request import Handler

# What happens to a request besides its handler's work (Opcode.kind).
PLAIN: Final = 0  # arguments as bytes, a reply of a fixed size
DATA_OUT: Final = 1  # the reply's length varies: the handler places it
DATA_IN: Final = 2  # the arguments are followed by data, left in the client's buffers
SILENT: Final = 3  # never answered

YES: Final = "yes"
NO: Final = "no"


class Opcode(NamedTuple):
    """One row. ``since`` is the first minor version that has it.

    ``arguments`` is the structure after the header, ``names`` how many NUL-terminated strings
    follow it; ``result`` is how many bytes the fixed part of the reply has. ``mutating``: it can
    change the filesystem. ``status`` and ``note`` are for the reader of the documentation.
    """

    number: int
    name: str
    since: int
    arguments: Struct | None
    names: int
    handler: Handler
    result: int
    kind: int
    mutating: bool
    status: str
    note: str


def _row(
    number: int,
    name: str,
    handler: Handler,
    arguments: Struct | None = None,
    names: int = 0,
    result: int = 0,
    kind: int = PLAIN,
    *,
    since: int = 0,
    mutating: bool = False,
    status: str = YES,
    note: str = "",
) -> Opcode:
    return Opcode(
        number, name, since, arguments, names, handler, result, kind, mutating, status, note
    )


_ENTRY: Final = abi.ENTRY_OUT_SIZE
_ATTR: Final = abi.ATTR_OUT_SIZE
_OPENED: Final = abi.OPEN_OUT.size

# fmt: off
OPCODES: Final = (
    _row(1, "LOOKUP", names.lookup, None, 1, _ENTRY, note="also `.` and `..`, for file handles"),
    _row(2, "FORGET", session.forget, abi.FORGET_IN, kind=SILENT),
    _row(3, "GETATTR", attributes.getattr_, None, 0, _ATTR),
    _row(4, "SETATTR", attributes.setattr_, abi.SETATTR_IN, 0, _ATTR, mutating=True),
    _row(5, "READLINK", attributes.readlink, kind=DATA_OUT),
    _row(6, "SYMLINK", names.symlink, None, 2, _ENTRY, mutating=True),
    _row(8, "MKNOD", names.mknod, abi.MKNOD_IN, 1, _ENTRY, mutating=True),
    _row(9, "MKDIR", names.mkdir, abi.MKDIR_IN, 1, _ENTRY, mutating=True),
    _row(10, "UNLINK", names.unlink, None, 1, mutating=True),
    _row(11, "RMDIR", names.rmdir, None, 1, mutating=True),
    _row(12, "RENAME", names.rename, abi.RENAME_IN, 2, mutating=True),
    _row(13, "LINK", names.link, abi.LINK_IN, 1, _ENTRY, mutating=True),
    _row(14, "OPEN", files.open_, abi.OPEN_IN, 0, _OPENED,
         mutating=True, note="truncates for O_TRUNC; devices with `devices=emulate`"),
    _row(15, "READ", files.read, abi.READ_IN, kind=DATA_OUT,
         note="into the client's memory; waits without holding up others"),
    _row(16, "WRITE", files.write, abi.WRITE_IN, 0, abi.WRITE_OUT.size, DATA_IN,
         mutating=True, note="from the client's memory; waits without holding up others"),
    _row(17, "STATFS", attributes.statfs, None, 0, abi.KSTATFS.size),
    _row(18, "RELEASE", files.release, abi.RELEASE_IN),
    _row(20, "FSYNC", files.fsync, abi.FSYNC_IN),
    _row(21, "SETXATTR", attributes.setxattr, abi.SETXATTR_COMPAT_IN, 1, mutating=True),
    _row(22, "GETXATTR", attributes.getxattr, abi.GETXATTR_IN, 1, kind=DATA_OUT),
    _row(23, "LISTXATTR", attributes.listxattr, abi.GETXATTR_IN, kind=DATA_OUT),
    _row(24, "REMOVEXATTR", attributes.removexattr, None, 1, mutating=True),
    _row(25, "FLUSH", files.flush, abi.FLUSH_IN),
    _row(26, "INIT", session.init, abi.INIT_IN, 0, abi.INIT_OUT.size),
    _row(27, "OPENDIR", directories.opendir, abi.OPEN_IN, 0, _OPENED),
    _row(28, "READDIR", directories.readdir, abi.READ_IN, kind=DATA_OUT),
    _row(29, "RELEASEDIR", directories.releasedir, abi.RELEASE_IN),
    _row(30, "FSYNCDIR", directories.fsyncdir, abi.FSYNC_IN),
    _row(31, "GETLK", locking.getlk, abi.LK_IN, 0, abi.FILE_LOCK.size),
    _row(32, "SETLK", locking.setlk, abi.LK_IN, note="record locks and flock"),
    _row(33, "SETLKW", locking.setlkw, abi.LK_IN, note="waits; an INTERRUPT ends it"),
    _row(34, "ACCESS", attributes.access, abi.ACCESS_IN,
         note="sent only where the client does not check permissions"),
    _row(35, "CREATE", names.create, abi.CREATE_IN, 1, _ENTRY + _OPENED, mutating=True),
    _row(36, "INTERRUPT", session.interrupt, abi.INTERRUPT_IN, kind=SILENT),
    _row(37, "BMAP", session.not_implemented, abi.BMAP_IN,
         status=NO, note="ENOSYS: there is no block device under a file"),
    _row(38, "DESTROY", session.destroy),
    _row(39, "IOCTL", files.ioctl, abi.IOCTL_IN, 0, abi.IOCTL_OUT.size, DATA_OUT,
         mutating=True, note="what the file knows, else ENOTTY; no unrestricted ones (CUSE)"),
    _row(40, "POLL", files.poll, abi.POLL_IN, 0, abi.POLL_OUT.size,
         note="/dev/fuse; ENOSYS over virtio-fs, which cannot wake a poller"),
    _row(41, "NOTIFY_REPLY", session.silence, kind=SILENT,
         status=NO, note="we never ask for pages (NOTIFY_RETRIEVE)"),
    _row(42, "BATCH_FORGET", session.batch_forget, abi.BATCH_FORGET_IN, kind=SILENT),
    _row(43, "FALLOCATE", files.fallocate, abi.FALLOCATE_IN, mutating=True),
    _row(44, "READDIRPLUS", directories.readdirplus, abi.READ_IN, kind=DATA_OUT),
    _row(45, "RENAME2", names.rename2, abi.RENAME2_IN, 2, mutating=True),
    _row(46, "LSEEK", files.lseek, abi.LSEEK_IN, 0, abi.LSEEK_OUT.size),
    _row(47, "COPY_FILE_RANGE", files.copy_file_range, abi.COPY_FILE_RANGE_IN, 0,
         abi.WRITE_OUT.size, since=28, mutating=True),
    _row(48, "SETUPMAPPING", session.not_implemented, abi.SETUPMAPPING_IN, since=31,
         status=NO, note="ENOSYS: there is no DAX window"),
    _row(49, "REMOVEMAPPING", session.not_implemented, abi.REMOVEMAPPING_IN, since=31,
         status=NO, note="ENOSYS: there is no DAX window"),
    _row(50, "SYNCFS", attributes.syncfs, abi.SYNCFS_IN, since=34),
    _row(51, "TMPFILE", names.tmpfile, abi.CREATE_IN, 1, _ENTRY + _OPENED, since=37,
         mutating=True),
    _row(52, "STATX", attributes.statx, abi.STATX_IN, 0, abi.STATX_OUT.size, since=39,
         note="adds the time of birth"),
    _row(53, "COPY_FILE_RANGE_64", files.copy_file_range_64, abi.COPY_FILE_RANGE_IN, 0,
         abi.COPY_FILE_RANGE_OUT.size, since=45, mutating=True),
)
# fmt: on
BY_NUMBER: Final = {row.number: row for row in OPCODES}
NAMES: Final = {row.number: row.name for row in OPCODES}
