"""One request of each opcode, good as it is, over a small tree of known contents."""

from __future__ import annotations

from typing import NamedTuple

from fuse_session import ROOT, Session

from harness.fuse import abi

TARGET = b"t" * 50
VALUE = b"v" * 60
NAME = b"user.x"


class Request(NamedTuple):
    nodeid: int
    body: bytes


class Requests:
    """``file`` (with an attribute), ``victim``, ``dir`` (empty), ``link``; and a handle of
    ``file``, opened with ``flags``. ``by_name`` has a request for each row of the opcode table.
    """

    def __init__(self, session: Session, flags: int = 2) -> None:
        entry, opened = session.create(ROOT, b"file", 0o644)
        session.write(opened.fh, 0, b"data" * 1000)
        session.release(opened.fh)
        session.create(ROOT, b"victim", 0o644)
        session.mkdir(ROOT, b"dir")
        link = session.symlink(ROOT, b"link", TARGET).nodeid
        session.server.handles.clear()
        self.file = file = entry.nodeid
        attribute = NAME + b"\0" + VALUE
        session.call("SETXATTR", file, abi.SETXATTR_IN.pack(len(VALUE), 0, 0, 0) + attribute)
        self.fh = fh = session.open(file, flags).fh
        other = session.open(file, flags).fh
        directory = session.opendir(ROOT)
        setattr_in = abi.SETATTR_IN.pack(abi.FATTR_MODE, *(0,) * 10, 0o600, 0, 0, 0, 0)
        lock = abi.LK_IN.pack(fh, 7, 0, 10, 0, 1, 0, 0)
        listing = abi.READ_IN.pack(directory, 0, 4096, 0, 0, 0, 0)
        create = abi.CREATE_IN.pack(2, 0o100644, 0, 0) + b"new\0"
        copy = abi.COPY_FILE_RANGE_IN.pack(fh, 0, file, other, 2048, 100, 0)
        released = session.open(file, 0).fh
        closed = session.opendir(ROOT)
        self.by_name = {
            "LOOKUP": Request(ROOT, b"victim\0"),
            "FORGET": Request(file, abi.FORGET_IN.pack(0)),
            "GETATTR": Request(file, abi.GETATTR_IN.pack(0, 0, 0)),
            "SETATTR": Request(file, setattr_in),
            "READLINK": Request(link, b""),
            "SYMLINK": Request(ROOT, b"new\0" + TARGET + b"\0"),
            "MKNOD": Request(ROOT, abi.MKNOD_IN.pack(0o010644, 0, 0, 0) + b"new\0"),
            "MKDIR": Request(ROOT, abi.MKDIR_IN.pack(0o755, 0) + b"new\0"),
            "UNLINK": Request(ROOT, b"victim\0"),
            "RMDIR": Request(ROOT, b"dir\0"),
            "RENAME": Request(ROOT, abi.RENAME_IN.pack(ROOT) + b"victim\0new\0"),
            "LINK": Request(ROOT, abi.LINK_IN.pack(file) + b"new\0"),
            "OPEN": Request(file, abi.OPEN_IN.pack(1, 0)),
            "READ": Request(file, abi.READ_IN.pack(fh, 0, 4000, 0, 0, 0, 0)),
            "WRITE": Request(file, abi.WRITE_IN.pack(fh, 0, 4, 0, 0, 0, 0) + b"DATA"),
            "STATFS": Request(ROOT, b""),
            "RELEASE": Request(file, abi.RELEASE_IN.pack(released, 0, 0, 0)),
            "FSYNC": Request(file, abi.FSYNC_IN.pack(fh, 0, 0)),
            "SETXATTR": Request(file, abi.SETXATTR_IN.pack(1, 0, 0, 0) + NAME + b"\0w"),
            "GETXATTR": Request(file, abi.GETXATTR_IN.pack(4096, 0) + NAME + b"\0"),
            "LISTXATTR": Request(file, abi.GETXATTR_IN.pack(4096, 0)),
            "REMOVEXATTR": Request(file, NAME + b"\0"),
            "FLUSH": Request(file, abi.FLUSH_IN.pack(fh, 0, 0, 0)),
            "INIT": Request(0, abi.INIT_EXT_IN.pack(7, 45, 0, 0, 0)),
            "OPENDIR": Request(ROOT, abi.OPEN_IN.pack(0, 0)),
            "READDIR": Request(ROOT, listing),
            "RELEASEDIR": Request(ROOT, abi.RELEASE_IN.pack(closed, 0, 0, 0)),
            "FSYNCDIR": Request(ROOT, abi.FSYNC_IN.pack(directory, 0, 0)),
            "GETLK": Request(file, lock),
            "SETLK": Request(file, lock),
            "SETLKW": Request(file, lock),
            "ACCESS": Request(file, abi.ACCESS_IN.pack(4, 0)),
            "CREATE": Request(ROOT, create),
            "INTERRUPT": Request(0, abi.INTERRUPT_IN.pack(1)),
            "BMAP": Request(file, abi.BMAP_IN.pack(0, 4096, 0)),
            "DESTROY": Request(0, b""),
            "IOCTL": Request(file, abi.IOCTL_IN.pack(fh, 0, 0x5401, 0, 0, 4096)),
            "POLL": Request(file, abi.POLL_IN.pack(fh, 1, 0, 1)),
            "NOTIFY_REPLY": Request(0, b""),
            "BATCH_FORGET": Request(0, abi.BATCH_FORGET_IN.pack(0, 0)),
            "FALLOCATE": Request(file, abi.FALLOCATE_IN.pack(fh, 8192, 4096, 0, 0)),
            "READDIRPLUS": Request(ROOT, listing),
            "RENAME2": Request(ROOT, abi.RENAME2_IN.pack(ROOT, 0, 0) + b"victim\0new\0"),
            "LSEEK": Request(file, abi.LSEEK_IN.pack(fh, 0, 3, 0)),
            "COPY_FILE_RANGE": Request(file, copy),
            "SETUPMAPPING": Request(file, bytes(abi.SETUPMAPPING_IN.size)),
            "REMOVEMAPPING": Request(file, bytes(abi.REMOVEMAPPING_IN.size)),
            "SYNCFS": Request(ROOT, abi.SYNCFS_IN.pack(0)),
            "TMPFILE": Request(ROOT, abi.CREATE_IN.pack(2, 0o100644, 0, 0) + b"/\0"),
            "STATX": Request(file, abi.STATX_IN.pack(0, 0, 0, 0, 0xFFF)),
            "COPY_FILE_RANGE_64": Request(file, copy),
        }


def state(session: Session) -> tuple[object, ...]:
    """What a request could have changed: lookup counts, handles, attributes, names, contents."""
    server = session.server
    nodes = {
        node.nodeid: (node.nlookup, node.inode.mode, node.inode.size, node.inode.ctime_ns)
        for node in server.nodes.by_id.values()
    }
    handles = sorted(server.handles.files), sorted(server.handles.directories)
    names = sorted(session.root.dentry.children or {})
    return nodes, handles, names, len(server.locks or ())
