"""A FUSE client on a virtio-fs device: what a guest's kernel sends, a request at a time or many.

It is the benchmark's client too, so a request costs it little and the same with any daemon, and
it lays its chains out as Linux does: header, arguments | header, results.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from harness.vhost_user.frontend import AnyDriverQueue, Frontend
from harness.vhost_user.message import VIRTIO_RING_F_INDIRECT_DESC

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
UNLINK: Final = 10
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
RELEASE: Final = 18
INIT: Final = 26
OPENDIR: Final = 27
RELEASEDIR: Final = 29
CREATE: Final = 35
READDIRPLUS: Final = 44

ROOT: Final = 1
MINOR: Final = 38
MAX_PAGES: Final = 256

_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
_OUT_HEADER: Final = struct.Struct("<IiQ")
_INIT_IN: Final = struct.Struct("<IIIII44x")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHH32x")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY_OUT: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_GETATTR_IN: Final = struct.Struct("<IIQ")
_OPEN_IN: Final = struct.Struct("<II")
_OPEN_OUT: Final = struct.Struct("<QII")
_CREATE_IN: Final = struct.Struct("<IIII")
_READ_IN: Final = struct.Struct("<QQIIQII")
_WRITE_IN: Final = struct.Struct("<QQIIQII")
_WRITE_OUT: Final = struct.Struct("<II")
_RELEASE_IN: Final = struct.Struct("<QIIQ")
_FORGET_IN: Final = struct.Struct("<Q")
_DIRENT: Final = struct.Struct("<QQII")

ENTRY_SIZE: Final = _ENTRY_OUT.size + _ATTR.size
ATTR_SIZE: Final = _ATTR_OUT.size + _ATTR.size

_PAGE: Final = 4096

Request = tuple[int, int, bytes]
"""Opcode, nodeid, arguments."""


class Attr(NamedTuple):
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    """struct fuse_entry_out, without the timeouts."""

    nodeid: int
    generation: int
    attr: Attr


class InitReply(NamedTuple):
    """struct fuse_init_out."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int


class DirEntry(NamedTuple):
    """struct fuse_direntplus."""

    name: bytes
    offset: int
    type: int
    entry: Entry


class FuseClient:
    """struct virtio_fs: one session, with `depth` requests in flight at most.

    Each of the `depth` slots has buffers of `buffer_size` bytes for arguments and for results,
    and a chain laid out over them that changes only when sizes do. Methods named after an opcode
    raise OSError with the server's errno.
    """

    def __init__(
        self,
        frontend: Frontend | None,
        *,
        depth: int = 32,
        buffer_size: int = 64 << 10,
        queue: AnyDriverQueue | None = None,
        hiprio: AnyDriverQueue | None = None,
        spin_ns: int = 50_000,
        timeout: float = 60,
    ) -> None:
        """Take up `queue` (None: start queues 0 and 1 of `frontend`, which stays the caller's).

        `spin_ns` is how long a reply is watched for before the client sleeps on the call
        descriptor, `timeout` in seconds how long it sleeps at most.
        """
        if queue is None:
            assert frontend is not None
            hiprio = frontend.start(0)
            queue = _start_queue(frontend, buffer_size)
        self.frontend = frontend
        self.queue = queue
        self.hiprio = hiprio
        self.buffer_size = buffer_size
        self.credentials = (os.geteuid(), os.getegid(), os.getpid())
        self._unique = 0
        self._spin_ns = spin_ns
        self._timeout = timeout
        self._poll = select.poll()
        self._poll.register(queue.call, select.POLLIN)
        if depth > queue.slots:
            raise ValueError(f"{depth} requests in flight on a queue of {queue.slots} slots")
        self._slots = [_Slot(queue, number, buffer_size) for number in range(depth)]
        self._slot_of_head = {slot.head: slot for slot in self._slots}
        self._forget_slot = None if hiprio is None else _Slot(hiprio, 0, 64)

    def close(self) -> None:
        """Let go of the buffers, so that the frontend's memory can be unmapped."""
        self._slots.clear()
        self._slot_of_head.clear()
        self._forget_slot = None

    @property
    def depth(self) -> int:
        """How many requests can be in flight."""
        return len(self._slots)

    def request(
        self, opcode: int, nodeid: int, payload: bytes = b"", reply_size: int = 0
    ) -> tuple[int, bytes]:
        """One request. Returns its error (0 or a positive errno) and the results.

        `reply_size` is the room for results, in bytes, without the header.
        """
        slot = self._slots[0]
        self._submit(slot, (opcode, nodeid, payload), reply_size)
        self.queue.publish()
        self._wait()
        _, length = self.queue.reap()
        return slot.result(length)

    def batch(
        self, requests: Iterable[Request], reply_size: int = 0, depth: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Many requests, up to `depth` in flight; their results, in the order of the requests."""
        free = self._slots[: depth or len(self._slots)]
        window: deque[_Slot] = deque()
        source = iter(requests)
        exhausted = False
        while True:
            while free and not exhausted:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                slot = free.pop()
                self._submit(slot, request, reply_size)
                window.append(slot)
            if not window:
                return
            self.queue.publish()
            while window[0].length < 0:
                self._wait()
                self._reap_all()
            while window and window[0].length >= 0:
                slot = window.popleft()
                yield slot.result(slot.length)
                free.append(slot)

    def repeat(
        self,
        requests: Sequence[Request],
        reply_size: int,
        count: int,
        depth: int,
        error: int = 0,
    ) -> float:
        """Send `requests` over and over, `count` in all, `depth` in flight; the seconds it took.

        Slot number n sends request n modulo their number, encoded once: what is measured is the
        ring and the server. `error` is the errno that every reply must have.

        Raises:
            OSError: a reply has another errno, which is this one's.
        """
        queue = self.queue
        slots = self._slots[:depth]
        for number, slot in enumerate(slots):
            self._encode(slot, requests[number % len(requests)], reply_size)
        errors = {slot.head: slot.error for slot in slots}
        expected = -error
        offer, reap, publish, has_used = queue.offer, queue.reap, queue.publish, queue.has_used
        start = time.perf_counter()
        offered = 0
        for slot in slots[:count]:
            offer(slot.head)
            offered += 1
        publish()
        done = 0
        while done < count:
            self._wait()
            while has_used():
                head, _ = reap()
                done += 1
                if errors[head][0] != expected:
                    raise OSError(-errors[head][0], os.strerror(-errors[head][0]))
                if offered < count:
                    offer(head)
                    offered += 1
            publish()
        return time.perf_counter() - start

    def exchange(self, requests: Sequence[Request], reply_size: int, replies: list[bytes]) -> float:
        """Send `requests` together, `depth` at most; append their results to `replies`, in order.

        Returns the seconds from offering the first to having the last, without the encoding.

        Raises:
            OSError: with the errno of a reply that is an error.
        """
        slots = self._slots[: len(requests)]
        for slot, request in zip(slots, requests, strict=True):
            self._encode(slot, request, reply_size)
        offer = self.queue.offer
        start = time.perf_counter()
        for slot in slots:
            offer(slot.head)
        self.queue.publish()
        missing = len(slots)
        while missing:
            self._wait()
            missing -= self._reap_all()
        seconds = time.perf_counter() - start
        for slot in slots:
            error, reply = slot.result(slot.length)
            if error:
                raise OSError(error, os.strerror(error))
            replies.append(reply)
        return seconds

    def init(self, flags: int = 0, flags2: int = 0, minor: int = MINOR) -> InitReply:
        """FUSE_INIT, offering `flags` and `flags2`."""
        arguments = bytearray(_INIT_IN.size)
        _INIT_IN.pack_into(arguments, 0, 7, minor, 1 << 20, flags, flags2)
        reply = self._call(INIT, 0, bytes(arguments), _INIT_OUT.size)
        return InitReply(*_INIT_OUT.unpack(reply.ljust(_INIT_OUT.size, b"\0")))

    def lookup(self, parent: int, name: bytes) -> Entry:
        """FUSE_LOOKUP; the reply holds one lookup count of the node."""
        return _entry(self._call(LOOKUP, parent, name + b"\0", ENTRY_SIZE))

    def getattr(self, nodeid: int) -> Attr:
        """FUSE_GETATTR."""
        reply = self._call(GETATTR, nodeid, _GETATTR_IN.pack(0, 0, 0), ATTR_SIZE)
        return Attr(*_ATTR.unpack_from(reply, _ATTR_OUT.size))

    def open(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        """FUSE_OPEN; returns the file handle."""
        reply = self._call(OPEN, nodeid, _OPEN_IN.pack(flags, 0), _OPEN_OUT.size)
        return int(_OPEN_OUT.unpack(reply)[0])

    def opendir(self, nodeid: int) -> int:
        """FUSE_OPENDIR; returns the file handle."""
        reply = self._call(OPENDIR, nodeid, _OPEN_IN.pack(0, 0), _OPEN_OUT.size)
        return int(_OPEN_OUT.unpack(reply)[0])

    def create(
        self, parent: int, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644
    ) -> tuple[Entry, int]:
        """FUSE_CREATE; returns the entry, with one lookup count, and the file handle."""
        arguments = _CREATE_IN.pack(flags | os.O_CREAT, 0o100000 | mode, 0, 0) + name + b"\0"
        reply = self._call(CREATE, parent, arguments, ENTRY_SIZE + _OPEN_OUT.size)
        return _entry(reply), int(_OPEN_OUT.unpack_from(reply, ENTRY_SIZE)[0])

    def read(self, nodeid: int, handle: int, offset: int, size: int) -> bytes:
        """FUSE_READ of up to `size` bytes."""
        return self._call(READ, nodeid, _READ_IN.pack(handle, offset, size, 0, 0, 0, 0), size)

    def write(self, nodeid: int, handle: int, offset: int, data: bytes) -> int:
        """FUSE_WRITE; returns the number of bytes written."""
        arguments = _WRITE_IN.pack(handle, offset, len(data), 0, 0, 0, 0) + data
        reply = self._call(WRITE, nodeid, arguments, _WRITE_OUT.size)
        return int(_WRITE_OUT.unpack(reply)[0])

    def unlink(self, parent: int, name: bytes) -> None:
        """FUSE_UNLINK."""
        self._call(UNLINK, parent, name + b"\0", 0)

    def release(self, nodeid: int, handle: int, flags: int = os.O_RDONLY) -> None:
        """FUSE_RELEASE."""
        self._call(RELEASE, nodeid, _RELEASE_IN.pack(handle, flags, 0, 0), 0)

    def releasedir(self, nodeid: int, handle: int) -> None:
        """FUSE_RELEASEDIR."""
        self._call(RELEASEDIR, nodeid, _RELEASE_IN.pack(handle, 0, 0, 0), 0)

    def readdirplus(self, nodeid: int, handle: int, offset: int, size: int) -> list[DirEntry]:
        """FUSE_READDIRPLUS: up to `size` bytes of entries after the cookie `offset`."""
        arguments = _READ_IN.pack(handle, offset, size, 0, 0, 0, 0)
        reply = self._call(READDIRPLUS, nodeid, arguments, size)
        entries = []
        position = 0
        while position < len(reply):
            entry = _entry(reply, position)
            position += ENTRY_SIZE
            _, cookie, length, kind = _DIRENT.unpack_from(reply, position)
            position += _DIRENT.size
            entries.append(DirEntry(reply[position : position + length], cookie, kind, entry))
            position += (length + 7) & ~7
        return entries

    def forget(self, nodeid: int, count: int) -> None:
        """FUSE_FORGET of `count` lookups, on the high-priority queue; it has no reply.

        Returns when the server has seen it.
        """
        if self.hiprio is None or self._forget_slot is None:
            raise ValueError("the client has no high-priority queue")
        slot = self._forget_slot
        self._encode(slot, (FORGET, nodeid, _FORGET_IN.pack(count)), None)
        self.hiprio.offer(slot.head)
        self.hiprio.publish()
        deadline = time.monotonic() + self._timeout
        while not self.hiprio.has_used():
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not take a FORGET")
            time.sleep(0)
        self.hiprio.reap()

    def _call(self, opcode: int, nodeid: int, payload: bytes, reply_size: int) -> bytes:
        error, reply = self.request(opcode, nodeid, payload, reply_size)
        if error:
            raise OSError(error, os.strerror(error))
        return reply

    def _encode(self, slot: _Slot, request: Request, reply_size: int | None) -> None:
        opcode, nodeid, payload = request
        size = len(payload)
        split = _WRITE_IN.size if opcode == WRITE else 0
        if slot.sizes != (size, reply_size, split):
            slot.resize(size, reply_size, split)
        self._unique += 2
        _IN_HEADER.pack_into(
            slot.header, 0, 40 + size, opcode, self._unique, nodeid, *self.credentials, 0, 0
        )
        if split:
            slot.fixed[:split] = payload[:split]
            slot.arguments[: size - split] = payload[split:]
        else:
            slot.arguments[:size] = payload
        slot.length = -1

    def _submit(self, slot: _Slot, request: Request, reply_size: int) -> None:
        self._encode(slot, request, reply_size)
        self.queue.offer(slot.head)

    def _reap_all(self) -> int:
        count = 0
        while self.queue.has_used():
            head, length = self.queue.reap()
            self._slot_of_head[head].length = length
            count += 1
        return count

    def _wait(self) -> None:
        """Until something is used: watch for a while, then sleep."""
        queue = self.queue
        if queue.has_used():
            return
        if self._spin_ns:
            deadline = time.monotonic_ns() + self._spin_ns
            while time.monotonic_ns() < deadline:
                if queue.has_used():
                    return
        while not queue.enable_interrupts():
            if not self._poll.poll(self._timeout * 1000):
                raise TimeoutError("the server does not answer")
            os.eventfd_read(queue.call)
            if queue.has_used():
                break
        queue.disable_interrupts()


class _Slot:
    """Buffers for one request in flight, and the chain over them."""

    __slots__ = (
        "_addresses",
        "_capacity",
        "_number",
        "_queue",
        "_reply",
        "_results",
        "arguments",
        "error",
        "fixed",
        "head",
        "header",
        "length",
        "sizes",
    )

    def __init__(self, queue: AnyDriverQueue, number: int, capacity: int) -> None:
        memory = queue.memory
        self._queue = queue
        self._number = number
        self._capacity = capacity
        headers = memory.allocate(128)
        arguments = memory.allocate(capacity, _PAGE)
        results = memory.allocate(capacity, _PAGE)
        self._addresses = (headers, arguments, headers + 40, results)
        self.header = memory.at(headers, 40)
        self.fixed = memory.at(headers + 64, 64)
        self.arguments = memory.at(arguments, capacity)
        self._reply = memory.at(headers + 40, 16)
        self._results = memory.at(results, capacity)
        self.error = self._reply[4:8].cast("i")
        self.length = -1
        self.sizes: tuple[int, int | None, int] = (-1, None, 0)
        self.head = self.resize(0, 0)

    def resize(self, size: int, reply_size: int | None, split: int = 0) -> int:
        """Lay the chain out for so many bytes of arguments and results; None: no reply at all.

        The first `split` bytes of the arguments stand apart, as WRITE's do. Data comes a page to a
        descriptor, as from a page cache, where the queue has indirect tables.
        """
        if max(size, reply_size or 0) > self._capacity:
            raise ValueError(f"a request larger than the slot's {self._capacity} bytes")
        header, arguments, reply, results = self._addresses
        readable = [(header, 40)]
        if split:
            readable.append((header + 64, split))
        readable.extend(self._pages(arguments, size - split))
        writable = [] if reply_size is None else [(reply, 16)]
        writable.extend(self._pages(results, reply_size or 0))
        self.sizes = (size, reply_size, split)
        return self._queue.lay_out(self._number, readable, writable)

    def _pages(self, address: int, size: int) -> list[tuple[int, int]]:
        step = _PAGE if self._queue.indirect else max(size, 1)
        return [(address + offset, min(step, size - offset)) for offset in range(0, size, step)]

    def result(self, length: int) -> tuple[int, bytes]:
        """The error and the results of a reply of `length` bytes."""
        if length < 16:
            raise OSError(5, f"a reply of {length} bytes")
        size, error, _ = _OUT_HEADER.unpack(self._reply)
        return -error, bytes(self._results[: size - 16])


def _start_queue(frontend: Frontend, buffer_size: int) -> AnyDriverQueue:
    """The request queue, with room in its chains for a header, arguments, a buffer and a reply."""
    indirect = frontend.features & VIRTIO_RING_F_INDIRECT_DESC
    pages = -(-buffer_size // _PAGE) if indirect else 1
    size = 256
    while size < pages + 4:
        size *= 2
    return frontend.start(1, size, chain_limit=pages + 4)


def _entry(reply: bytes, offset: int = 0) -> Entry:
    nodeid, generation, _, _, _, _ = _ENTRY_OUT.unpack_from(reply, offset)
    return Entry(nodeid, generation, Attr(*_ATTR.unpack_from(reply, offset + _ENTRY_OUT.size)))
