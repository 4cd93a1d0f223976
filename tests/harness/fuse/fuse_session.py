"""A FUSE client in the same process: builds requests, hands them to ``handle``, reads replies."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fsimpl.passthrough import PassthroughType
from fsimpl.tmpfs import TmpfsType
from harness.fuse import abi
from harness.fuse.opcodes import OPCODES
from harness.fuse.server import FuseServer
from harness.wire import PENDING
from vfs.mount import Mount, VirtualDentry
from vfs.mount_tree import attach_tree
from vfs.namei import traverse_mounts
from vfs.virtual_filesystem import VirtualFilesystem

ROOT = abi.ROOT_ID
OP = {row.name: row.number for row in OPCODES}
ALL_FLAGS = (1 << 45) - 1


class Attr(NamedTuple):
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    nodeid: int
    generation: int
    entry_s: int
    attr_s: int
    attr: Attr


class Opened(NamedTuple):
    fh: int
    flags: int


class FuseError(Exception):
    """A reply whose header carried an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class Pending:
    """A request that waits for its answer."""

    def __init__(self, unique: int, reply: bytearray) -> None:
        self.unique = unique
        self.reply = reply
        self.lengths: list[int] = []
        self._done = threading.Event()

    def __call__(self, length: int) -> None:
        self.lengths.append(length)
        self._done.set()

    def wait(self, timeout: float = 10) -> bytes:
        """The payload, once it comes. Raises: FuseError."""
        assert self._done.wait(timeout), "never answered"
        assert len(self.lengths) == 1
        return parse(bytes(self.reply[: self.lengths[0]]), self.unique)

    @property
    def answered(self) -> bool:
        return self._done.is_set()


def parse(reply: bytes, unique: int) -> bytes:
    length, error, answered = abi.OUT_HEADER.unpack_from(reply)
    assert (length, answered) == (len(reply), unique)
    if error:
        assert length == 16
        raise FuseError(-error)
    return reply[16:]


def unpack_entry(payload: bytes) -> Entry:
    nodeid, generation, entry_s, attr_s, _, _, attr = abi.ENTRY_OUT.unpack_from(payload)
    return Entry(nodeid, generation, entry_s, attr_s, Attr(*abi.ATTR.unpack(attr)))


def unpack_dirents(payload: bytes, plus: bool) -> Iterator[tuple[bytes, int, int, int, int]]:
    """(name, ino, type, cookie, nodeid)"""
    at = 0
    while at < len(payload):
        nodeid = abi.ENTRY_OUT.unpack_from(payload, at)[0] if plus else 0
        at += 128 if plus else 0
        ino, cookie, length, kind = abi.DIRENT.unpack_from(payload, at)
        yield payload[at + 24 : at + 24 + length], ino, kind, cookie, nodeid
        at += 24 + (length + 7 & ~7)


class Session:
    """A server over a fresh tmpfs, or over ``source`` of the host, and the client's side."""

    def __init__(
        self,
        init: bool = True,
        flags: int = ALL_FLAGS,
        minor: int = abi.KERNEL_MINOR_VERSION,
        vfs: VirtualFilesystem | None = None,
        source: str | os.PathLike[str] | None = None,
        mount_options: str = "",
        **options: Any,
    ) -> None:
        if vfs is None:
            vfs = VirtualFilesystem(tracing=True)
            vfs.register(TmpfsType())
            vfs.register(PassthroughType())
        self.vfs = vfs
        if source is None:
            self.namespace = self.vfs.create_namespace("tmpfs")
        else:
            self.namespace = self.vfs.create_namespace(
                "passthrough", os.fsencode(source), options=mount_options
            )
        rootfs = self.namespace.root
        self.root = VirtualDentry(*traverse_mounts(rootfs, rootfs.root))
        self.server = FuseServer(self.vfs, self.root, **options)
        self.unique = 0
        self.uid = self.gid = self.pid = 0
        self.extensions = b""
        if init:
            self.init(flags, minor)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.check()
        self.server.reset()
        self.server.check()
        self.namespace.put()
        self.vfs.shutdown()

    def request(self, opcode: int, nodeid: int, body: bytes = b"") -> bytes:
        self.unique += 2
        ext = self.extensions
        header = abi.IN_HEADER.pack(
            40 + len(body) + len(ext), opcode, self.unique, nodeid,
            self.uid, self.gid, self.pid, len(ext) // 8, 0,
        )  # fmt: skip
        return header + body + ext

    def start(self, name: str, nodeid: int, body: bytes = b"", room: int = 8192) -> Pending | bytes:
        """Send a request as Linux's virtio-fs lays it out; the payload, or what is pending."""
        whole = bytearray(self.request(OP[name], nodeid, body))
        view = memoryview(whole)
        request: Sequence[memoryview] = [view[:40], view[40:]] if len(whole) > 40 else [view]
        if name == "WRITE":
            request = [view[:40], view[40:80], *pages(view[80:])]
        back = bytearray(16 + room)
        out = memoryview(back)
        reply = [out[:16], out[16:]] if room else [out]
        if name == "READ":
            reply = [out[:16], *pages(out[16:])]
        pending = Pending(self.unique, back)
        length = self.server.handle(request, reply, pending)
        if length == PENDING:
            return pending
        assert not pending.lengths
        if not length:
            return b""
        return parse(bytes(back[:length]), self.unique)

    def call(self, name: str, nodeid: int, body: bytes = b"", room: int = 8192) -> bytes:
        payload = self.start(name, nodeid, body, room)
        assert isinstance(payload, bytes)
        return payload

    def init(
        self, flags: int = ALL_FLAGS, minor: int = abi.KERNEL_MINOR_VERSION, major: int = 7
    ) -> tuple[int, ...]:
        """(major, minor, max_readahead, flags, ..., flags2, max_stack_depth, request_timeout)"""
        body = abi.INIT_EXT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)
        if minor < 36:
            body = body[:16]
        return abi.INIT_OUT.unpack(self.call("INIT", 0, body, 64))

    def lookup(self, parent: int, name: bytes) -> Entry:
        return unpack_entry(self.call("LOOKUP", parent, name + b"\0", 128))

    def getattr(self, nodeid: int) -> Attr:
        payload = self.call("GETATTR", nodeid, abi.GETATTR_IN.pack(0, 0, 0), 104)
        return Attr(*abi.ATTR.unpack(abi.ATTR_OUT.unpack(payload)[3]))

    def setattr(self, nodeid: int, valid: int, **fields: int) -> Attr:
        order = (
            "fh", "size", "owner", "atime", "mtime", "ctime", "atime_ns", "mtime_ns", "ctime_ns",
            "mode", "unused", "uid", "gid", "unused2",
        )  # fmt: skip
        body = abi.SETATTR_IN.pack(valid, 0, *(fields.pop(name, 0) for name in order))
        assert not fields
        payload = self.call("SETATTR", nodeid, body, 104)
        return Attr(*abi.ATTR.unpack(abi.ATTR_OUT.unpack(payload)[3]))

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> Entry:
        return unpack_entry(
            self.call("MKDIR", parent, abi.MKDIR_IN.pack(mode, 0) + name + b"\0", 128)
        )

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0) -> Entry:
        body = abi.MKNOD_IN.pack(mode, rdev, 0, 0) + name + b"\0"
        return unpack_entry(self.call("MKNOD", parent, body, 128))

    def symlink(self, parent: int, name: bytes, target: bytes) -> Entry:
        body = name + b"\0" + target + b"\0"
        return unpack_entry(self.call("SYMLINK", parent, body, 128))

    def link(self, nodeid: int, parent: int, name: bytes) -> Entry:
        body = abi.LINK_IN.pack(nodeid) + name + b"\0"
        return unpack_entry(self.call("LINK", parent, body, 128))

    def create(
        self, parent: int, name: bytes, mode: int = 0o644, flags: int = 2, open_flags: int = 0
    ) -> tuple[Entry, Opened]:
        body = abi.CREATE_IN.pack(flags, 0o100000 | mode, 0, open_flags) + name + b"\0"
        payload = self.call("CREATE", parent, body, 144)
        return unpack_entry(payload), Opened(*abi.OPEN_OUT.unpack_from(payload, 128)[:2])

    def open(self, nodeid: int, flags: int = 2, open_flags: int = 0) -> Opened:
        payload = self.call("OPEN", nodeid, abi.OPEN_IN.pack(flags, open_flags), 16)
        return Opened(*abi.OPEN_OUT.unpack(payload)[:2])

    def release(self, fh: int) -> None:
        self.call("RELEASE", 0, abi.RELEASE_IN.pack(fh, 0, 0, 0), 0)

    def read(self, fh: int, offset: int, size: int, flags: int = 0) -> bytes:
        return self.call("READ", 0, abi.READ_IN.pack(fh, offset, size, 0, 0, flags, 0), size)

    def write(self, fh: int, offset: int, data: bytes, write_flags: int = 0, flags: int = 0) -> int:
        body = abi.WRITE_IN.pack(fh, offset, len(data), write_flags, 0, flags, 0) + data
        written: int = abi.WRITE_OUT.unpack(self.call("WRITE", 0, body, 8))[0]
        return written

    def forget(self, nodeid: int, nlookup: int = 1) -> None:
        assert self.call("FORGET", nodeid, abi.FORGET_IN.pack(nlookup), 0) == b""

    def opendir(self, nodeid: int) -> int:
        payload = self.call("OPENDIR", nodeid, abi.OPEN_IN.pack(0, 0), 16)
        fh: int = abi.OPEN_OUT.unpack(payload)[0]
        return fh

    def releasedir(self, fh: int) -> None:
        self.call("RELEASEDIR", 0, abi.RELEASE_IN.pack(fh, 0, 0, 0), 0)

    def readdir(
        self, fh: int, offset: int = 0, size: int = 4096, plus: bool = False
    ) -> list[tuple[bytes, int, int, int, int]]:
        name = "READDIRPLUS" if plus else "READDIR"
        payload = self.call(name, ROOT, abi.READ_IN.pack(fh, offset, size, 0, 0, 0, 0), size)
        return list(unpack_dirents(payload, plus))

    def list(self, fh: int, size: int = 4096, plus: bool = False) -> list[tuple[bytes, int]]:
        """Everything, over as many requests as it takes: (name, nodeid)."""
        found: list[tuple[bytes, int]] = []
        offset = 0
        while batch := self.readdir(fh, offset, size, plus):
            found.extend((name, nodeid) for name, _, _, _, nodeid in batch)
            offset = batch[-1][3]
        return found


def mount_tmpfs(session: Session, nodeid: int) -> None:
    """Mount a tmpfs on the directory ``nodeid``."""
    node = session.server.nodes.by_id[nodeid]
    other = session.vfs.create_namespace("tmpfs")
    with other:
        top, _ = traverse_mounts(other.root, other.root.root)
        mount = Mount(top.superblock, b"none")
    attach_tree(mount, node.mount, node.dentry, session.namespace.user_ns)


def pages(view: memoryview, size: int = 4096) -> list[memoryview]:
    return [view[at : at + size] for at in range(0, len(view), size)]


def expect(number: int, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """``function`` must be answered with errno ``number``."""
    try:
        result = function(*args, **kwargs)
    except FuseError as error:
        assert error.errno == number, f"{error} instead of {errno.errorcode[number]}"
    else:
        raise AssertionError(f"{result!r} instead of {errno.errorcode[number]}")
