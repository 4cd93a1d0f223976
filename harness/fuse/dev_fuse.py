"""The /dev/fuse transport: the host's own kernel as the client of a FuseHandler."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import signal
import struct
import threading
import time
from errno import EBUSY, ECONNABORTED, EINVAL, EIO, ENODEV, ENOENT, ENOTCONN, ENOTDIR
from queue import SimpleQueue
from typing import Final, Self

from harness.fuse.host_mount import HostMount, MountOptions, abort, attach, detach
from harness.wire import PENDING, FuseHandler

LOG = logging.getLogger(__name__)

MAX_PAYLOAD: Final = 1 << 20
"""Bytes of data in one request or reply: what the kernel's max_pages_limit of 256 comes to."""

DEFAULT_READERS: Final = 1
"""Two and three gained nothing on two CPUs, with one to four clients and data in memory: requests
per second changed by less than the runs differed. The interpreter lock is what they wait for.
More can pay where a passthrough's host waits for a disk.
"""

UNMOUNT_TIMEOUT: Final = 10.0
"""Seconds that an unmount may take before the connection is aborted."""

END_TIMEOUT: Final = 1.0
"""Seconds that readers may take to see the end, after which somebody still uses the mount."""

NOTIFY_POLL: Final = 1
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3

_DEV_IOC_CLONE: Final = 0x8004E500
# A request is read whole or not at all, so a buffer has room for the largest: a page for header
# and arguments, which also keeps above FUSE_MIN_READ_BUFFER, and then the data.
_BUFFER_SIZE: Final = MAX_PAYLOAD + mmap.PAGESIZE
_SPARE_SLOTS: Final = 8

_OUT_HEADER: Final = struct.Struct("<IiQ")
_UNIQUE: Final = struct.Struct("<Q")
_UNIQUE_OFFSET: Final = 8
_POLL_WAKEUP: Final = struct.Struct("<Q")
_INVAL_INODE: Final = struct.Struct("<Qqq")
_INVAL_ENTRY: Final = struct.Struct("<QII")


class _Slot:
    """Buffers for one request in flight, and the way back for its reply.

    The memory is mapped, so only the pages that requests really touch are ever there.
    """

    __slots__ = ("_mount", "complete", "fd", "reply", "reply_views", "request", "request_views")

    def __init__(self, fd: int, mount: FuseMount) -> None:
        self.fd = fd
        self._mount = mount
        self.request = memoryview(mmap.mmap(-1, _BUFFER_SIZE))
        self.reply = memoryview(mmap.mmap(-1, _BUFFER_SIZE))
        self.request_views = (self.request,)
        self.reply_views = (self.reply,)
        self.complete = self._complete

    def _complete(self, length: int) -> None:
        """Answer a request that was PENDING. From any thread."""
        self._mount.finish(self, length)

    def send(self, length: int) -> None:
        """Write the first `length` bytes of the reply buffer, to whoever still wants them."""
        try:
            os.write(self.fd, self.reply[:length])
        except OSError as error:
            # ENOENT: the client was killed, or its request interrupted, and nobody waits.
            if error.errno in (ENOENT, ENODEV, ECONNABORTED):
                return
            (unique,) = _UNIQUE.unpack_from(self.request, _UNIQUE_OFFSET)
            LOG.error("the kernel refused the reply to request %d: %s", unique, error.strerror)
            self._send_error(unique)

    def _send_error(self, unique: int) -> None:
        # Without any reply the client would wait for ever.
        try:
            os.write(self.fd, _OUT_HEADER.pack(_OUT_HEADER.size, -EIO, unique))
        except OSError as error:
            LOG.debug("nor an error to request %d: %s", unique, error.strerror)


class FuseMount:
    """struct fuse_conn, the daemon's side: a mount on the host, served by threads of ours.

    A context manager: mounted and served inside of `with`, unmounted after it. Whatever goes
    wrong, clients are not left hanging: a reader thread that dies takes the connection with it,
    and the kernel aborts it when the process dies. The process must not fork without exec while
    mounted, because a child's copy of the descriptor keeps a dead connection alive.
    """

    def __init__(
        self,
        mountpoint: str | os.PathLike[str],
        handler: FuseHandler,
        *,
        options: MountOptions | None = None,
        readers: int = DEFAULT_READERS,
    ) -> None:
        """`handler` serves the requests of `readers` threads, each with a queue of its own."""
        if readers < 1:
            raise OSError(EINVAL, "a mount needs one reader at least")
        self.mountpoint = os.fspath(mountpoint)
        self._handler = handler
        self._options = options or MountOptions()
        self._num_readers = readers
        self._mount: HostMount | None = None
        self._clones: list[int] = []
        self._threads: list[threading.Thread] = []
        self._spare: list[_Slot] = []
        # Between late completions and the closing of the descriptors that they would write to.
        self._late = threading.Lock()
        self._closed = False
        # What `post_notify` was given and is not sent yet, in order; None at the end.
        self._posting = threading.Condition(threading.Lock())
        self._posted: dict[tuple[int, bytes], None] | None = {}
        # Not an Event: a signal handler may put into a SimpleQueue that its thread is reading.
        self._ended: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(self, *exc: object) -> None:
        self.unmount()

    @property
    def connection(self) -> int:
        """The number of the connection in /sys/fs/fuse/connections, while mounted."""
        return self._attached().connection

    def depth(self) -> int | None:
        """How many requests the kernel wants answered; None if it does not tell us."""
        try:
            path = f"/sys/fs/fuse/connections/{self.connection}/waiting"
            with open(path, encoding="ascii") as waiting:
                return int(waiting.read())
        except OSError:
            return None

    def mount(self) -> None:
        """Mount, and start to serve in threads.

        Raises:
            HostMountError: in one line, what the host has against it.
        """
        self._require_unmounted()
        self.serve(attach(self.mountpoint, self._options))

    def serve(self, mount: HostMount) -> None:
        """Start to serve `mount`, which somebody else has attached, and whose descriptor is ours
        from now on; as `mount` does.
        """
        self._require_unmounted()
        self._mount = mount
        self._posted = {}
        try:
            notifier = threading.Thread(target=self._send_posted, name="fuse-notifier", daemon=True)
            self._threads.append(notifier)
            notifier.start()
            for index in range(self._num_readers):
                fd = mount.fd if index == 0 else self._clone(mount.fd)
                thread = threading.Thread(
                    target=self._serve, args=(fd,), name=f"fuse-reader-{index}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        except BaseException:
            self.unmount()
            raise

    def wait(self) -> None:
        """Return when the mount is gone (somebody unmounted it), or `stop` was called."""
        self._ended.get()

    def stop(self) -> None:
        """Have `wait` return. From any thread, or from a signal handler."""
        self._ended.put(None)

    def unmount(self) -> None:
        """Unmount, end the threads and the handler's session. Does nothing a second time.

        A mount that is in use is detached and its connection aborted: those inside get ENOTCONN.
        Not to be called from a thread that the handler's work depends on.
        """
        mount = self._mount
        if mount is None:
            return
        # Unmounting writes dirty pages back, for which the handler has to answer.
        watchdog = threading.Timer(UNMOUNT_TIMEOUT, self.abort)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._leave(mount)
        finally:
            watchdog.cancel()
            watchdog.join()
            with self._posting:
                self._posted = None
                self._posting.notify()
            # The number of a connection that has ended can be another's by now, so one that ends
            # by itself is not aborted.
            if not self._join(END_TIMEOUT):
                self.abort()
                self._join(UNMOUNT_TIMEOUT)
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        self._mount = None
        if stuck:
            # Descriptors stay open: a number given anew must not be read by a stuck thread.
            LOG.error("%s: still busy after the end: %s", self.mountpoint, ", ".join(stuck))
            return
        self._handler.reset()
        self._threads.clear()
        with self._late:
            self._closed = True
            for fd in (*self._clones, mount.fd):
                os.close(fd)
        self._clones.clear()
        self._spare.clear()

    def abort(self) -> None:
        """Cut the connection: no client waits any longer, and every later call fails."""
        if self._mount is not None and not abort(self._mount):
            LOG.error("%s: can't abort the connection", self.mountpoint)

    def send_notify(self, code: int, payload: bytes) -> None:
        """Send a notification, `code` of enum fuse_notify_code. From any thread.

        The kernel takes locks of the inode concerned, and a request that holds them may be
        waiting for us: neither the VFS lock nor a request in `handle` may be held up by this.

        Raises:
            OSError: ENOENT when the kernel does not know the node or name, ENODEV without a
                connection, EINVAL for a malformed payload.
        """
        header = _OUT_HEADER.pack(_OUT_HEADER.size + len(payload), code, 0)
        os.writev(self._attached().fd, (header, payload))

    def post_notify(self, code: int, payload: bytes) -> None:
        """Have `send_notify` called soon, by a thread that nobody waits for.

        From any thread, under any lock. A message that is still to be sent is not sent twice; one
        about what the kernel does not know, or when there is no connection, is dropped.
        """
        with self._posting:
            if self._posted is not None:
                self._posted[code, payload] = None
                self._posting.notify()

    def notify_poll(self, kh: int) -> None:
        """Wake those who poll the file whose POLL request carried `kh`."""
        self.send_notify(NOTIFY_POLL, _POLL_WAKEUP.pack(kh))

    def notify_inval_inode(self, nodeid: int, offset: int = 0, length: int = 0) -> None:
        """Drop cached attributes and `length` bytes of pages (0: to the end, <0 offset: none)."""
        self.send_notify(NOTIFY_INVAL_INODE, _INVAL_INODE.pack(nodeid, offset, length))

    def notify_inval_entry(self, parent: int, name: bytes) -> None:
        """Drop the cached name in directory `parent`."""
        payload = _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"
        self.send_notify(NOTIFY_INVAL_ENTRY, payload)

    def finish(self, slot: _Slot, length: int) -> None:
        """Send the first `length` bytes of a parked `slot`'s reply, and keep it for another."""
        with self._late:
            if self._closed:
                return
            if length:
                slot.send(length)
            if len(self._spare) < _SPARE_SLOTS:
                self._spare.append(slot)

    def _require_unmounted(self) -> None:
        if self._mount is not None:
            raise OSError(EBUSY, "mounted already", self.mountpoint)

    def _attached(self) -> HostMount:
        if self._mount is None:
            raise OSError(ENODEV, "not mounted", self.mountpoint)
        return self._mount

    def _clone(self, fd: int) -> int:
        clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._clones.append(clone)
        fcntl.ioctl(clone, _DEV_IOC_CLONE, struct.pack("I", fd))
        return clone

    def _leave(self, mount: HostMount) -> None:
        try:
            detach(mount)
        except OSError as error:
            LOG.debug("%s: %s, detaching it", mount.mountpoint, error.strerror)
            try:
                detach(mount, lazy=True)
            finally:
                self.abort()

    def _join(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self, fd: int) -> None:
        # Signals are for the main thread, which is in no system call that they would disturb.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        orderly = False
        try:
            self._read_requests(fd)
            orderly = True
        except Exception:
            LOG.exception("%s: a reader died, aborting the connection", self.mountpoint)
        finally:
            if not orderly:
                self.abort()
            self.stop()

    def _send_posted(self) -> None:
        """Send what is posted until the mount is gone.

        A thread of its own: the kernel makes us wait for the inode's lock, whose owner may wait for
        a reader.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._posting:
                while self._posted is not None and not self._posted:
                    self._posting.wait()
                if self._posted is None:
                    return
                message = next(iter(self._posted))
                del self._posted[message]
            try:
                self.send_notify(*message)
            except OSError as error:
                # What the kernel has never heard of, or has forgotten, need not be dropped.
                if error.errno not in (ENOENT, ENOTDIR, ENODEV, ENOTCONN, ECONNABORTED):
                    LOG.warning(
                        "%s: notification %d: %s", self.mountpoint, message[0], error.strerror
                    )

    def _read_requests(self, fd: int) -> None:
        """Serve requests until the connection ends."""
        handle = self._handler.handle
        readv = os.readv
        slot = _Slot(fd, self)
        while True:
            try:
                length = readv(fd, slot.request_views)
            except OSError as error:
                if error.errno in (ENODEV, ECONNABORTED):
                    return
                if error.errno == ENOENT:
                    # The client took the request back while we were reading it.
                    continue
                raise
            length = handle((slot.request[:length],), slot.reply_views, slot.complete)
            if length > 0:
                slot.send(length)
            elif length == PENDING:
                slot = self._next_slot(fd)

    def _next_slot(self, fd: int) -> _Slot:
        with self._late:
            slot = self._spare.pop() if self._spare else _Slot(fd, self)
        slot.fd = fd
        return slot
