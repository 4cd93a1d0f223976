"""The rows: what a guest's kernel asks of a virtio-fs daemon, one kind of request at a time."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from harness.vhost_user.fuse_client import (
    ATTR_SIZE,
    CREATE,
    ENTRY_SIZE,
    GETATTR,
    LOOKUP,
    OPEN,
    READ,
    READDIRPLUS,
    RELEASE,
    ROOT,
    UNLINK,
    WRITE,
    FuseClient,
    Request,
)

FILES = 100
BLOCK_SIZES = (4 << 10, 128 << 10, 1 << 20)
FILE_SIZE = 8 << 20

# The structs a client needs for its arguments; linux/fuse.h.
_OPEN_IN = struct.Struct("<II")
_CREATE_IN = struct.Struct("<IIII")
_READ_IN = struct.Struct("<QQIIQII")  # WRITE's has the same shape
_RELEASE_IN = struct.Struct("<QIIQ")
_FH_OUT = struct.Struct("<Q")

# Runs about ``count`` requests at ``depth``; returns the requests sent and the seconds they took.
Run = Callable[["Session", int, int], tuple[int, float]]


class Row(NamedTuple):
    """One kind of request. ``weight`` divides the number of requests, for those that cost much;
    ``size`` is the bytes of data that each moves.
    """

    name: str
    run: Run
    weight: int = 1
    size: int = 0


class Session:
    """A client with the files that the rows use, made through the client itself."""

    def __init__(self, client: FuseClient) -> None:
        self.client = client
        names = [b"file%03d" % number for number in range(FILES)]
        self.nodes: list[int] = []
        for name in names:
            entry, handle = client.create(ROOT, name, os.O_RDWR, 0o644)
            client.release(entry.nodeid, handle)
            self.nodes.append(entry.nodeid)
        self.names = names
        entry, self.handle = client.create(ROOT, b"data", os.O_RDWR, 0o644)
        self.data = entry.nodeid
        for offset in range(0, FILE_SIZE, 1 << 20):
            client.write(self.data, self.handle, offset, os.urandom(1 << 20))
        self.directory = client.opendir(ROOT)

    def timed(
        self, requests: list[Request], reply_size: int, count: int, depth: int, error: int = 0
    ) -> tuple[int, float]:
        """``FuseClient.repeat``, with the count beside the time."""
        return count, self.client.repeat(requests, reply_size, count, depth, error)


def _lookup(session: Session, count: int, depth: int) -> tuple[int, float]:
    requests = [(LOOKUP, ROOT, name + b"\0") for name in session.names]
    result = session.timed(requests, ENTRY_SIZE, count, depth)
    for node in session.nodes[:depth]:
        session.client.forget(node, count // depth)
    return result


def _lookup_miss(session: Session, count: int, depth: int) -> tuple[int, float]:
    requests = [(LOOKUP, ROOT, b"missing%03d\0" % number) for number in range(FILES)]
    return session.timed(requests, ENTRY_SIZE, count, depth, errno.ENOENT)


def _getattr(session: Session, count: int, depth: int) -> tuple[int, float]:
    requests = [(GETATTR, node, bytes(16)) for node in session.nodes]
    return session.timed(requests, ATTR_SIZE, count, depth)


def _pairs(
    session: Session,
    count: int,
    depth: int,
    first: Callable[[int], Request],
    reply_size: int,
    second: Callable[[int, bytes], Request],
) -> tuple[int, float]:
    """Batches of ``depth`` first requests, each followed by the one that undoes it."""
    client = session.client
    rounds = max(1, count // depth // 2)
    seconds = 0.0
    for _ in range(rounds):
        replies: list[bytes] = []
        seconds += client.exchange([first(n) for n in range(depth)], reply_size, replies)
        undo = [second(n, reply) for n, reply in enumerate(replies)]
        seconds += client.exchange(undo, 0, [])
    return rounds * depth * 2, seconds


def _create_unlink(session: Session, count: int, depth: int) -> tuple[int, float]:
    arguments = _CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
    handles: list[tuple[int, int]] = []

    def undo(number: int, reply: bytes) -> Request:
        handles.append((_FH_OUT.unpack_from(reply)[0], _FH_OUT.unpack_from(reply, ENTRY_SIZE)[0]))
        return UNLINK, ROOT, b"new%03d\0" % number

    result = _pairs(
        session,
        count,
        depth,
        lambda number: (CREATE, ROOT, arguments + b"new%03d\0" % number),
        ENTRY_SIZE + 16,
        undo,
    )
    for node, handle in handles:
        session.client.release(node, handle)
        session.client.forget(node, 1)
    return result


def _open_release(session: Session, count: int, depth: int) -> tuple[int, float]:
    return _pairs(
        session,
        count,
        depth,
        lambda number: (OPEN, session.nodes[number], _OPEN_IN.pack(os.O_RDONLY, 0)),
        16,
        lambda number, reply: (
            RELEASE,
            session.nodes[number],
            _RELEASE_IN.pack(_FH_OUT.unpack_from(reply)[0], os.O_RDONLY, 0, 0),
        ),
    )


def _readdirplus(session: Session, count: int, depth: int) -> tuple[int, float]:
    arguments = _READ_IN.pack(session.directory, 0, 4096, 0, 0, 0, 0)
    result = session.timed([(READDIRPLUS, ROOT, arguments)], 4096, count, depth)
    for listed in session.client.readdirplus(ROOT, session.directory, 0, 4096):
        if listed.entry.nodeid:
            session.client.forget(listed.entry.nodeid, count + 1)
    return result


def _read(size: int) -> Run:
    def run(session: Session, count: int, depth: int) -> tuple[int, float]:
        requests = [
            (READ, session.data, _READ_IN.pack(session.handle, offset, size, 0, 0, 0, 0))
            for offset in range(0, FILE_SIZE, size)
        ]
        return session.timed(requests[:depth], size, count, depth)

    return run


def _write(size: int) -> Run:
    def run(session: Session, count: int, depth: int) -> tuple[int, float]:
        block = os.urandom(size)
        requests = [
            (WRITE, session.data, _READ_IN.pack(session.handle, offset, size, 0, 0, 0, 0) + block)
            for offset in range(0, FILE_SIZE, size)
        ]
        return session.timed(requests[:depth], 8, count, depth)

    return run


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"


ROWS = [
    Row("LOOKUP", _lookup),
    Row("GETATTR", _getattr),
    Row("lookup miss", _lookup_miss),
    Row("CREATE+UNLINK", _create_unlink, 2),
    Row("OPEN+RELEASE", _open_release, 2),
    Row("READDIRPLUS", _readdirplus, 4),
    *(Row(f"READ {_size(size)}", _read(size), max(1, size >> 14), size) for size in BLOCK_SIZES),
    *(Row(f"WRITE {_size(size)}", _write(size), max(1, size >> 14), size) for size in BLOCK_SIZES),
]
