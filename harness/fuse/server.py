"""The FUSE server: from a request's bytes to the VFS and back. No transport is known here.

``handle`` finds the request's pieces where Linux puts them (virtio-fs: header, arguments | header,
results, each its own segment; /dev/fuse: one buffer each way) and anything else by copying. A row
of the opcode table does the rest.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from harness.fuse import abi, session
from harness.fuse.buffers import Segments, clip, gather, length_of, scatter, skip
from harness.fuse.cache import AUTO, CachePolicy, adapted, has_no_xattrs, wanted_flags
from harness.fuse.handles import HandleTable
from harness.fuse.identity import Identities, security_contexts, supplementary_groups
from harness.fuse.nodes import NodeTable
from harness.fuse.observe import Observer, observed
from harness.fuse.opcodes import BY_NUMBER, DATA_IN, NAMES, PLAIN, SILENT
from harness.fuse.parking import Parking
from harness.fuse.ratelimit import RateLimit
from harness.fuse.request import NO_REPLY, Handler, Header, Reply
from harness.wire import PENDING, Recurring
from vfs.errors import WouldBlock, oserror
from vfs.locks import LockManager

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.file import FileDescription
    from vfs.mount import Mount, VirtualDentry
    from vfs.superblock import Superblock
    from vfs.virtual_filesystem import VirtualFilesystem
    from vfs.wait import WaitQueue

_log = logging.getLogger(__name__)
_R = TypeVar("_R")

# The table as the server indexes it: (handler, bytes of arguments, bytes of result, kind).
_Row = tuple[Handler, int, int, int]
_ROWS: Final = 64
_UNKNOWN: Final[_Row] = (session.not_implemented, 0, 0, PLAIN)
_INIT: Final = 26
_NO_GROUPS: Final[frozenset[int]] = frozenset()
_EMPTY: Final = memoryview(bytearray())
# The largest request but for data is SETXATTR's, the largest reply READ's.
_BODY_MAX: Final = abi.MAX_WRITE + (64 << 10)
# What the kernel takes for an error (fuse_dev_do_write refuses the rest).
_ERRNO_END: Final = 512

# Header, opcode as counted, handler, body, segments, first of the reply, and where results go.
_Parsed = tuple[Header, int, Handler, bytes | None, Segments, memoryview, memoryview, int]
# As much of it as the lengths of a chain's segments tell: the header, the rest and its length if
# that is all, what follows it and the length of everything if the rest can be a WRITE's arguments
# (-1: not so), the reply's first segment, that in words, where results go, and the room there.
_Frame = tuple[
    memoryview, memoryview, int, Segments, int, memoryview, memoryview, memoryview, int, int
]

_in_header = abi.IN_HEADER.unpack_from
_out_header = abi.OUT_HEADER.pack_into


def _rows(minor: int) -> list[_Row]:
    """The rows that a client of 7.``minor`` may use."""
    rows = [_UNKNOWN] * _ROWS
    for row in BY_NUMBER.values():
        if row.since <= minor or row.kind == SILENT:
            size = 0 if row.arguments is None else row.arguments.size
            rows[row.number] = (row.handler, size, row.result, row.kind)
    return rows


def _rows_before_init() -> list[_Row]:
    rows: list[_Row] = [(session.before_init, 0, 0, PLAIN)] * _ROWS
    for row in BY_NUMBER.values():
        if row.kind == SILENT:
            rows[row.number] = (session.silence, 0, 0, SILENT)
    init = BY_NUMBER[_INIT]
    rows[_INIT] = (init.handler, abi.INIT_IN.size, init.result, PLAIN)
    return rows


_BEFORE_INIT: Final = _rows_before_init()


def _frame_of(request: Segments, reply: Segments) -> _Frame | tuple[()]:
    """The frame of a chain that is laid out as Linux does it; empty for others."""
    if not request or len(request[0]) != 40 or not reply or len(reply[0]) < 16:
        return ()
    rest = request[1] if len(request) > 1 else _EMPTY
    size = total = -1
    data = request[2:]
    if not data:
        size = len(rest)
    elif len(rest) == abi.WRITE_IN_SIZE:
        total = length_of(request)
    first = reply[0]
    if len(first) > 16 or len(reply) < 2:
        out, at = first, 16
    else:
        out, at = reply[1], 0
    # The two words of fuse_out_header without an error, in two thirds of the time of `pack_into`.
    words = first[:16].cast("Q")
    return request[0], rest, size, data, total, first, words, out, at, len(out) - at


class _Scattered:
    """A completion that copies a reply from its bounce buffer to where the client wants it."""

    __slots__ = ("_bounce", "_completion", "_reply")

    def __init__(
        self, bounce: memoryview, reply: Segments, completion: Callable[[int], None]
    ) -> None:
        self._bounce = bounce
        self._reply = reply
        self._completion = completion

    def __call__(self, length: int) -> None:
        if length > 0:
            scatter(self._bounce[:length], self._reply)
        self._completion(length)


class PollWaiter:
    """Wakes the client's pollers of one file, once. Linux: FUSE_NOTIFY_POLL."""

    __slots__ = ("_file", "_kh", "_server", "queue")

    def __init__(
        self, server: FuseServer, kh: int, file: FileDescription, queue: WaitQueue
    ) -> None:
        self._server = server
        self._kh = kh
        self._file = file
        self.queue = queue

    def __call__(self) -> None:
        server = self._server
        server.polls.pop((self._kh, self._file), None)
        notify = server.notify
        if notify is not None:
            try:
                notify(abi.NOTIFY_POLL, abi.NOTIFY_POLL_WAKEUP_OUT.pack(self._kh))
            except OSError as error:
                _log.warning("a poll wake-up did not reach the client: %s", error.strerror)


class FuseServer:
    """One FUSE session over one VFS. Linux: the userspace end of ``struct fuse_conn``.

    Implements ``harness.wire.FuseHandler``. Options:

    ``default_permissions``
        the client's kernel checks permissions (virtio-fs always; /dev/fuse with the mount option
        of that name, which must agree). Otherwise the checks are ours, and no name may be cached.
    ``cache``
        what the client may keep: a policy, or one for each filesystem type by name, where ``"*"``
        is for the others. The options of a mount (passthrough's ``cache=``) come first.
    ``announce_submounts``
        tell mount points to a client that can take them (FUSE_SUBMOUNTS); it gives each mount its
        own st_dev. A client that cannot sees one superblock; ``unique_inodes`` then keeps inode
        numbers of different filesystems apart (None: exactly then).
    ``devices``
        ``"emulate"`` presents device nodes whose driver is registered here as regular files, so
        that a guest reads a device that lives in this process. MS_NODEV still counts.
    ``local_locks``
        leaves record locks and flocks to each client, unseen by others, and saves it a FLUSH for
        every close. Without it they are the VFS's, and all its clients share them.
    ``allow_idmap``
        lets the client mount with mapped ids (FUSE_ALLOW_IDMAP). Linux refuses a session that asks
        for it without ``default_permissions`` on the mount.
    ``notify``
        sends the client an unasked-for message, ``notify(code, payload)``, soon: it is called under
        the VFS lock and must not wait for the client. Set by a transport that can, before the
        session starts. The client then learns at once what is mounted and unmounted; otherwise
        when its entries time out, or a node that it names is gone.

    ``counts`` is the number of requests by opcode (0: unknown ones). ``root`` is what node 1 is.
    """

    __slots__ = (
        "_bugs", "_cache", "_observers", "_plain_rows", "_rows", "_sessions", "_watching", "counts",
        "default_permissions", "flags", "handles", "identities", "lock", "locks", "minor", "nodes",
        "notify", "parking", "polls", "root", "unique_inodes", "vfs", "wanted_flags",
    )  # fmt: skip

    def __init__(
        self,
        vfs: VirtualFilesystem,
        root: VirtualDentry,
        *,
        default_permissions: bool = True,
        cache: CachePolicy | Mapping[str, CachePolicy] = AUTO,
        announce_submounts: bool = True,
        unique_inodes: bool | None = None,
        devices: Literal["node", "emulate"] = "node",
        local_locks: bool = False,
        allow_idmap: bool = False,
        notify: Callable[[int, bytes], None] | None = None,
    ) -> None:
        """Borrows ``root`` for its whole life; holds references in a session only."""
        self.vfs = vfs
        self.lock = vfs.lock
        self.root = root
        self._cache = cache
        self.default_permissions = default_permissions
        self.unique_inodes = unique_inodes
        self.locks: LockManager | None = None if local_locks else vfs.locks
        self.notify = notify
        self.wanted_flags = session.ALWAYS_WANTED
        if announce_submounts:
            self.wanted_flags |= abi.SUBMOUNTS
        if allow_idmap:
            self.wanted_flags |= abi.ALLOW_IDMAP
        if self.locks is not None:
            self.wanted_flags |= abi.POSIX_LOCKS | abi.FLOCK_LOCKS
        self.wanted_flags = wanted_flags(self.wanted_flags, root.mount.superblock)
        if not default_permissions:
            # To Linux an ACL in the client means that it checks permissions.
            self.wanted_flags &= ~(abi.POSIX_ACL | abi.DONT_MASK)
        self.minor = 0
        self.flags = 0
        self.counts = [0] * _ROWS
        self._bugs = RateLimit()
        self._sessions = 0
        self._watching = False
        self._observers: tuple[Observer, ...] = ()
        self._rows = self._plain_rows = _BEFORE_INIT
        self.identities = Identities(default_permissions)
        self.parking = Parking(vfs.lock)
        self.polls: dict[tuple[int, FileDescription], PollWaiter] = {}
        self.handles = HandleTable()
        self.nodes = NodeTable(self._policy, devices == "emulate")

    def _policy(self, superblock: Superblock) -> CachePolicy:
        policies = self._cache
        if isinstance(policies, CachePolicy):
            policy = policies
        else:
            policy = policies.get(superblock.type.name) or policies.get("*", AUTO)
        policy = adapted(policy, superblock)
        if not self.default_permissions:
            # A name that the client has cached for one user would lead another, who may not search
            # the directory, to the file: we are only asked in a LOOKUP.
            return policy._replace(entry_ns=0, negative_ns=0)
        return policy

    # The transport's side

    def handle(self, request: Segments, reply: Segments, completion: Callable[[int], None]) -> int:
        """Serve one request, as ``harness.wire.FuseHandler.handle`` says. Never raises."""
        with self.lock:
            return self.handle_locked(request, reply, completion)

    def handle_locked(
        self, request: Segments, reply: Segments, completion: Callable[[int], None]
    ) -> int:
        """``handle`` for one who has the lock, once."""
        first = _EMPTY
        unique = 0
        try:
            fits = False
            # What is known of a chain that comes again saves 0.3 us.
            if request.__class__ is Recurring:
                frame = request.frame
                if frame is None:
                    frame = request.frame = _frame_of(request, reply)
                if frame:
                    head, rest, size, data, total, first, words, out, at, room = frame
                    header: Header = _in_header(head)
                    unique = header[2]
                    opcode = header[1]
                    if opcode < _ROWS:
                        handler, arguments, result, kind = self._rows[opcode]
                        if kind < DATA_IN:
                            fits = room >= result and header[0] == 40 + size >= 40 + arguments
                            segments = reply
                        else:
                            fits = room >= result and kind == DATA_IN and header[0] == total
                            segments = data
                        body = rest.tobytes()
            if not fits:
                parsed = self._parse(request, reply)
                if parsed is None:
                    return self._rearranged(request, reply, completion)
                header, opcode, handler, whole, segments, first, out, at = parsed
                unique = header[2]
                if whole is None:
                    return self._error(first, unique, errno.EINVAL)
                body = whole
            self.counts[opcode] += 1
            try:
                count = handler(self, header, body, (segments, out, at))
            except WouldBlock as stop:
                place = segments, out, at
                return self._park(stop.queue, handler, header, body, place, first, completion)
            if count >= 0:
                count += 16
                if fits:
                    words[0] = count
                    words[1] = unique
                else:
                    _out_header(first, 0, count, 0, unique)
                return count
            if count == NO_REPLY:
                return 0
            _out_header(first, 0, 16, count, unique)
            return 16
        except Exception as error:
            return self._failed(first, unique, error)

    def drain(self) -> None:
        """Answer every request that waits, with EINTR."""
        self.parking.interrupt_all()

    def withdraw(self) -> None:
        """Give every request that waits back unanswered, to be sent again."""
        self.parking.withdraw_all()

    def reset(self) -> None:
        """End the session: its requests, polls, locks, handles and nodes; every reference is given
        back. The next request must be INIT.
        """
        with self.lock:
            self.parking.close()
            self._use_rows(_BEFORE_INIT)
            for waiter in list(self.polls.values()):
                waiter.queue.remove(waiter)
            self.polls.clear()
            if self._watching:
                self.vfs.unwatch_mounts(self.invalidate_name)
                self._watching = False
            if self.locks is not None:
                for file in self.handles.descriptions():
                    self.locks.release(file.inode, file)
            self.handles.clear()
            self.nodes.clear()

    def check(self) -> None:
        """Raises InvariantViolation on the first broken invariant of the session."""
        with self.lock:
            self.nodes.check()
            self.handles.check()
            if self.locks is not None:
                self.locks.check()

    def observe(self, observer: Observer) -> None:
        """Have `observer` told of every request from now on, as `harness.fuse.observe` says.

        A server that nobody observes does not even ask whether somebody does.
        """
        with self.lock:
            self._observers += (observer,)
            self._use_rows(self._plain_rows)

    def unobserve(self, observer: Observer) -> None:
        """The end of `observe`. May be called by the observer."""
        with self.lock:
            self._observers = tuple(other for other in self._observers if other != observer)
            self._use_rows(self._plain_rows)

    def _use_rows(self, rows: list[_Row]) -> None:
        self._plain_rows = rows
        watchers = self._observers
        if watchers:
            rows = [(observed(handler, watchers), *sizes) for handler, *sizes in rows]  # type: ignore[misc]
        self._rows = rows

    def statistics(self) -> dict[str, int]:
        """How many requests of which kind there were, the most frequent first."""
        named = [(NAMES.get(number, "unknown"), n) for number, n in enumerate(self.counts) if n]
        return dict(sorted(named, key=lambda item: -item[1]))

    # The handlers' side; all under the VFS lock.

    def start_session(self, minor: int, flags: int) -> None:
        """INIT was agreed: begin with nothing but the root."""
        self.reset()
        self._plant(self.nodes, flags, self._sessions)
        self._open(minor, flags)

    def _plant(self, nodes: NodeTable, flags: int, generation: int) -> None:
        nodes.submounts = bool(flags & abi.SUBMOUNTS)
        unique = self.unique_inodes
        nodes.unique_inodes = not nodes.submounts if unique is None else unique
        nodes.plant(self.root, generation)

    def _open(self, minor: int, flags: int) -> None:
        self.minor = minor
        self.flags = flags
        self._sessions = self.nodes.generation + 1
        self._use_rows(_rows(minor))
        if self.notify is not None:
            self.vfs.watch_mounts(self.invalidate_name)
            self._watching = True

    def prepare_nodes(self, flags: int, generation: int) -> NodeTable:
        """A table with a root, to be filled for ``resume_session``, or cleared."""
        nodes = NodeTable(self._policy, self.nodes.emulate_devices)
        self._plant(nodes, flags, generation)
        return nodes

    def resume_session(
        self, minor: int, flags: int, nodes: NodeTable, handles: HandleTable
    ) -> None:
        """Go on with a session that was agreed with another server, in place of ours, which was
        reset. Takes over both tables.
        """
        self.nodes = nodes
        self.handles = handles
        self._open(minor, flags)

    def invalidate_name(self, parent: Mount, mountpoint: Dentry) -> None:
        """Something was mounted there or unmounted: to the client, the name leads elsewhere now.

        Linux: ``fuse_reverse_inval_entry`` drops it with all below, and what the client mounted
        there for it. No attributes are told to be dropped: the directory's are the same, and those
        of inodes that cannot be reached any more mislead nobody.
        """
        place = self.nodes.name_of(parent, mountpoint)
        if place is not None and self.notify is not None:
            nodeid, name = place
            payload = abi.NOTIFY_INVAL_ENTRY_OUT.pack(nodeid, len(name), 0) + name + b"\0"
            self.notify(abi.NOTIFY_INVAL_ENTRY, payload)

    def caller(self, header: Header, body: bytes) -> Credentials:
        """Whose request it is. Raises: EINVAL for broken extensions."""
        extensions = header[7] * 8
        if not extensions:
            known = self.identities.plain.get((header[4], header[5]))
            if known is not None:
                return known
        groups = _NO_GROUPS
        if extensions:
            if extensions > len(body):
                raise oserror(errno.EINVAL)
            groups = supplementary_groups(body[-extensions:])
        return self.identities.of(header[4], header[5], header[6], groups)

    def security_contexts(self, header: Header, body: bytes) -> list[tuple[bytes, bytes]]:
        """The attributes that something new is to have. Raises: EINVAL for broken extensions."""
        extensions = header[7] * 8
        if not extensions or not self.flags & abi.SECURITY_CTX:
            return []
        return security_contexts(body[-extensions:])

    @staticmethod
    def strip_extensions(header: Header, body: bytes) -> bytes:
        """``body`` without the extensions at its end."""
        extensions = header[7] * 8
        return body[:-extensions] if extensions else body

    def has_no_xattrs(self, superblock: Superblock) -> bool:
        """Whether nothing that the client sees has extended attributes, ``superblock`` included: it
        may be told to ask no more (ENOSYS), which saves it a request before every write.
        """
        return has_no_xattrs(superblock) and all(
            has_no_xattrs(mount.superblock) for mount in self.root.mount.tree()
        )

    def unlocked(self, file: FileDescription, function: Callable[..., _R], *args: object) -> _R:
        """``function(*args)`` without the VFS lock, while ``file`` is held."""
        file.get()
        self.lock.release()
        try:
            return function(*args)
        finally:
            self.lock.acquire()
            file.put()

    def schedule_poll(self, kh: int, file: FileDescription, queue: WaitQueue) -> None:
        """Wake the client's poll handle ``kh`` when ``queue`` wakes."""
        key = kh, file
        waiter = self.polls.get(key)
        if waiter is None:
            waiter = self.polls[key] = PollWaiter(self, kh, file, queue)
            queue.add(waiter)

    def forget_polls(self, file: FileDescription) -> None:
        """``file`` is released: nobody polls it any more."""
        for key in [key for key in self.polls if key[1] is file]:
            waiter = self.polls.pop(key)
            waiter.queue.remove(waiter)

    # Off the fast path

    def _parse(self, request: Segments, reply: Segments) -> _Parsed | None:
        """The parts of a request however it is cut; None: its front, or its reply's, is in pieces.

        Of one that is not as long as it says there is no body.
        """
        head = request[0] if request else _EMPTY
        start = len(head)
        if start < 40:
            return None
        header: Header = _in_header(head)
        opcode = header[1] if header[1] < _ROWS else 0
        handler, arguments, result, kind = self._rows[opcode] if header[1] == opcode else _UNKNOWN
        first = out = _EMPTY
        at = 0
        if kind != SILENT:
            out = first = reply[0] if reply else _EMPTY
            room = len(out) - 16
            at = 16
            if not room and len(reply) > 1:
                out = reply[1]
                room = len(out)
                at = 0
            if room < result:
                return None
        size = header[0] - 40
        body: bytes | None = None
        if kind == DATA_IN:
            data: Segments
            if start == 40 and len(request) > 1 and len(request[1]) == arguments:
                body, data = request[1].tobytes(), request[2:]
            else:
                body, data = gather(skip(request, 40), arguments), skip(request, 40 + arguments)
            left = size - arguments
            if length_of(data) > left:
                data = clip(data, left)
            if len(body) < arguments or length_of(data) != left:
                body = None
            return header, opcode, handler, body, data, first, out, at
        if 0 <= size <= _BODY_MAX and size >= arguments:
            if start == 40 and len(request) == 2 and len(request[1]) == size:
                body = request[1].tobytes()
            elif start == header[0]:
                body = head[40:].tobytes()
            else:
                body = gather(skip(request, 40), size)
                if len(body) != size:
                    body = None
        return header, opcode, handler, body, reply, first, out, at

    def _rearranged(
        self, request: Segments, reply: Segments, completion: Callable[[int], None]
    ) -> int:
        """Serve a request of which `_parse` could not make anything."""
        if not request or len(request[0]) < abi.IN_HEADER_SIZE:
            return self._gathered(request, reply, completion)
        return self._bounced(request, reply, completion)

    def _gathered(
        self, request: Segments, reply: Segments, completion: Callable[[int], None]
    ) -> int:
        """A header in pieces: make the front of the request whole; data stays where it is."""
        if len(request) < 2 or length_of(request) < abi.IN_HEADER_SIZE:
            # Not even a request: there is no number to answer to.
            return 0
        head = memoryview(gather(request, abi.IN_HEADER_SIZE))
        return self.handle_locked([head, *skip(request, abi.IN_HEADER_SIZE)], reply, completion)

    def _bounced(
        self, request: Segments, reply: Segments, completion: Callable[[int], None]
    ) -> int:
        """A reply whose front is in pieces goes through a buffer of our own."""
        room = length_of(reply)
        if len(reply) < 2:
            if room < abi.OUT_HEADER_SIZE:
                return 0
            return self._error(reply[0], _in_header(request[0])[2], errno.EIO)
        bounce = memoryview(bytearray(min(room, _BODY_MAX)))
        length = self.handle_locked(request, (bounce,), _Scattered(bounce, reply, completion))
        if length > 0:
            scatter(bounce[:length], reply)
        return length

    @staticmethod
    def _error(first: memoryview, unique: int, number: int) -> int:
        """Answer with an errno; returns the reply's length (0 where no reply is expected)."""
        if len(first) < abi.OUT_HEADER_SIZE:
            return 0
        _out_header(first, 0, abi.OUT_HEADER_SIZE, -number, unique)
        return abi.OUT_HEADER_SIZE

    def _failed(self, first: memoryview, unique: int, error: Exception) -> int:
        """Answer a request whose handler raised: an OSError is its errno, all else our bug."""
        if isinstance(error, OSError):
            number = error.errno
            if number is not None and 0 < number < _ERRNO_END:
                return self._error(first, unique, number)
        # A client that has found a bug of ours must not fill the disk with it.
        if self._bugs.allows():
            _log.error(
                "request %d failed (%d more before it)", unique, self._bugs.missed(), exc_info=error
            )
        return self._error(first, unique, errno.EIO)

    def _park(
        self,
        queue: WaitQueue,
        handler: Handler,
        header: Header,
        body: bytes,
        reply: Reply,
        first: memoryview,
        completion: Callable[[int], None],
    ) -> int:
        """Let the request wait on ``queue``. Needs the lock, held since the handler gave up."""
        unique = header[2]

        def attempt() -> int:
            try:
                count = handler(self, header, body, reply)
            except WouldBlock as stop:
                return self._park(stop.queue, handler, header, body, reply, first, completion)
            except Exception as error:
                return self._failed(first, unique, error)
            if count < 0:
                return self._error(first, unique, -count)
            _out_header(first, 0, 16 + count, 0, unique)
            return 16 + count

        def fail(number: int) -> int:
            return self._error(first, unique, number)

        if self.parking.park(unique, queue, attempt, fail, completion):
            return PENDING
        return self._error(first, unique, errno.EINTR)
