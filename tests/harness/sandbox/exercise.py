"""Requests that take a passthrough through all that it does with the host."""

from __future__ import annotations

import os
import stat
import struct
from errno import ENOSYS, ENOTTY, EOPNOTSUPP
from typing import Any

from harness.fuse import abi
from harness.fuse.opcodes import OPCODES
from harness.vhost_user.fuse_client import FuseClient

OP = {row.name: row.number for row in OPCODES}
ROOT = 1
NAME = b"user.x\0"
OPTIONAL = (ENOSYS, EOPNOTSUPP, ENOTTY)


class Exercise:
    """Works in a new directory of the root, as whoever `client` is, and leaves nothing."""

    def __init__(self, client: FuseClient, name: bytes, *, devices: bool = False) -> None:
        """With `devices` it may make some."""
        self.client = client
        self.name = name
        self.devices = devices
        self.skipped: set[str] = set()

    def call(self, op: str, node: int, body: bytes = b"", size: int = 4096) -> bytes:
        error, reply = self.client.request(OP[op], node, body, size)
        if error in OPTIONAL:
            self.skipped.add(op)
            return b""
        assert not error, f"{op}: {os.strerror(error)}"
        return reply

    def node(self, reply: bytes) -> int:
        return int(struct.unpack_from("<Q", reply)[0])

    def setattr(self, node: int, valid: int, **values: Any) -> None:
        fields = ("valid", "padding", "fh", "size", "lock_owner", "atime", "mtime", "ctime",
                  "atimensec", "mtimensec", "ctimensec", "mode", "unused", "uid", "gid",
                  "unused2")  # fmt: skip
        words = [{"valid": valid, **values}.get(field, 0) for field in fields]
        self.call("SETATTR", node, abi.SETATTR_IN.pack(*words))

    def run(self) -> None:
        made = self.call("MKDIR", ROOT, abi.MKDIR_IN.pack(0o777, 0) + self.name + b"\0")
        top = self.node(made)
        self.files(top)
        self.names(top)
        self.attributes(top)
        self.call("RMDIR", ROOT, self.name + b"\0")
        self.call("STATFS", ROOT)
        self.call("SYNCFS", ROOT, abi.SYNCFS_IN.pack(0))

    def create(self, top: int, name: bytes) -> tuple[int, int]:
        body = abi.CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0) + name + b"\0"
        reply = self.call("CREATE", top, body)
        return self.node(reply), int(struct.unpack_from("<Q", reply, 128)[0])

    def files(self, top: int) -> None:
        client = self.client
        node, fh = self.create(top, b"file")
        assert client.write(node, fh, 0, b"data" * 10000) == 40000
        assert client.read(node, fh, 0, 8) == b"datadata"
        other, other_fh = self.create(top, b"other")
        copy = abi.COPY_FILE_RANGE_IN.pack(fh, 0, other, other_fh, 0, 1000, 0)
        self.call("COPY_FILE_RANGE", node, copy)
        for mode in (0, 1, 3, 0x10):
            self.call("FALLOCATE", node, abi.FALLOCATE_IN.pack(fh, 4096, 4096, mode, 0))
        for whence in (3, 4):
            self.call("LSEEK", node, abi.LSEEK_IN.pack(fh, 0, whence, 0))
        self.call("FSYNC", node, abi.FSYNC_IN.pack(fh, 0, 0))
        self.call("FSYNC", node, abi.FSYNC_IN.pack(fh, 1, 0))
        self.call("FLUSH", node, abi.FLUSH_IN.pack(fh, 0, 0, 7))
        lock = abi.LK_IN.pack(fh, 7, 0, 10, 1, 1, 0, 0)
        for op in ("SETLK", "GETLK"):
            self.call(op, node, lock)
        self.call("POLL", node, abi.POLL_IN.pack(fh, 1, 0, 1))
        for command in (0x80086601, 0x801C581F):  # FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR
            self.call("IOCTL", node, abi.IOCTL_IN.pack(fh, 0, command, 0, 0, 4096))
        client.release(node, fh, os.O_RDWR)
        client.release(other, other_fh, os.O_RDWR)
        for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC):
            fh = client.open(node, flags)
            if flags != os.O_RDONLY:
                client.write(node, fh, 0, b"more")
            client.release(node, fh, flags)
        body = abi.CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"/\0"
        reply = self.call("TMPFILE", top, body)
        if reply:
            client.release(self.node(reply), int(struct.unpack_from("<Q", reply, 128)[0]))
        for name in (b"file", b"other"):
            client.unlink(top, name)

    def names(self, top: int) -> None:
        client = self.client
        link = self.node(self.call("SYMLINK", top, b"link\0target\0"))
        assert self.call("READLINK", link) == b"target"
        kinds = [stat.S_IFIFO | 0o644, stat.S_IFSOCK | 0o600, stat.S_IFREG | 0o600]
        if self.devices:
            kinds += [stat.S_IFCHR | 0o600]
        for kind in kinds:
            body = abi.MKNOD_IN.pack(kind, os.makedev(1, 3), 0, 0) + b"node\0"
            node = self.node(self.call("MKNOD", top, body))
            self.call("GETATTR", node, abi.GETATTR_IN.pack(0, 0, 0))
            self.call("LINK", top, abi.LINK_IN.pack(node) + b"hard\0")
            self.call("RENAME", top, abi.RENAME_IN.pack(top) + b"hard\0moved\0")
            # Twice, for names of one file are exchanged without doing anything.
            for _ in range(2):
                exchange = abi.RENAME2_IN.pack(top, 2, 0) + b"moved\0link\0"
                self.call("RENAME2", top, exchange)
            client.unlink(top, b"node")
            client.unlink(top, b"moved")
        handle = client.opendir(top)
        assert {entry.name for entry in client.readdirplus(top, handle, 0, 4096)} >= {b"link"}
        self.call("READDIR", top, abi.READ_IN.pack(handle, 0, 4096, 0, 0, 0, 0))
        self.call("FSYNCDIR", top, abi.FSYNC_IN.pack(handle, 0, 0))
        client.releasedir(top, handle)
        client.unlink(top, b"link")
        client.forget(link, 1)

    def attributes(self, top: int) -> None:
        client = self.client
        node, fh = self.create(top, b"file")
        uid, gid, _ = client.credentials
        self.setattr(node, abi.FATTR_MODE, mode=0o600)
        self.setattr(node, abi.FATTR_UID | abi.FATTR_GID, uid=uid, gid=gid)
        self.setattr(node, abi.FATTR_SIZE, size=100)
        self.setattr(node, abi.FATTR_SIZE | abi.FATTR_FH, size=50, fh=fh)
        self.setattr(node, abi.FATTR_ATIME | abi.FATTR_MTIME, atime=1, mtime=2)
        self.call("ACCESS", node, abi.ACCESS_IN.pack(4, 0))
        self.call("STATX", node, abi.STATX_IN.pack(0, 0, 0, 0, 0xFFF))
        self.call("SETXATTR", node, abi.SETXATTR_IN.pack(1, 0, 0, 0) + NAME + b"w")
        self.call("GETXATTR", node, abi.GETXATTR_IN.pack(4096, 0) + NAME)
        self.call("LISTXATTR", node, abi.GETXATTR_IN.pack(4096, 0))
        self.call("REMOVEXATTR", node, NAME)
        client.release(node, fh, os.O_RDWR)
        client.unlink(top, b"file")
