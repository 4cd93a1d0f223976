"""One ring of a vhost-user device: its configuration, its eventfds, and the serving of it."""

from __future__ import annotations

import logging
import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from errno import EIO
from traceback import format_exc
from typing import Final

from harness.vhost_user.pool import WorkerPool
from harness.virtio.dirty_log import DirtyLog
from harness.virtio.inflight import InflightQueue
from harness.virtio.memory import GuestError, GuestMemory
from harness.virtio.packed import PackedQueue
from harness.virtio.packed_inflight import PackedInflightQueue
from harness.virtio.queue import BadRing, SplitQueue, fence
from harness.wire import WITHDRAWN, BurstHandler, FuseHandler

LOG = logging.getLogger(__name__)

Queue = SplitQueue | PackedQueue
Inflight = InflightQueue | PackedInflightQueue
Ranges = Sequence[tuple[int, int]]
"""Guest-physical addresses and lengths."""

SIGNAL_EVERY: Final = 8
"""Chains of a burst after which the driver is told, so that it works while we do."""

BURSTS: Final = 16
"""How many such bursts at most, before other rings and the sockets get their turn."""

_FUSE_OUT_HEADER: Final = struct.Struct("<IiQ")
_UNIQUE: Final = slice(8, 16)
"""Where fuse_in_header.unique lies."""


class Completion:
    """struct virtio_fs_req, the device's side: the answer to one chain, callable from any thread.

    A ring uses one object again and again, until the handler keeps it by returning PENDING.
    `ranges` is where in guest memory the answer goes, if it may have to be logged.
    """

    __slots__ = ("_complete", "head", "parked", "queue", "ranges", "vring")

    def __init__(
        self, vring: Vring, queue: Queue, complete: Callable[[Completion, int], None]
    ) -> None:
        self.vring = vring
        self.queue = queue
        self.head = 0
        self.parked = False
        self.ranges: Ranges = ()
        self._complete = complete

    def __call__(self, length: int) -> None:
        """Hand the request back, with `length` bytes of reply in its buffers."""
        self._complete(self, length)


class Vring:
    """struct vhost_virtqueue of a backend: what SET_VRING_* configured, and the queue it made.

    The ring runs while it is started (a kick descriptor was given), enabled, its memory is there,
    and it is not broken. All methods are called on the serving thread. Owns `kick`, `call` and
    `err` (-1: none).

    `held` are the heads of chains that were taken and given up unanswered (WITHDRAWN): whoever goes
    on with the ring at the same place serves them first.

    What was not negotiated costs a request nothing: logging, inflight memory, packed rings and the
    thread pool have a loop of their own, which is chosen once for a burst.
    """

    __slots__ = (
        "_complete",
        "_completion",
        "_handle",
        "_handler",
        "_inflight",
        "_keeps_ranges",
        "_lock",
        "_log",
        "_memory",
        "_on_failed",
        "_pool",
        "_resubmitted",
        "addresses",
        "base",
        "broken",
        "call",
        "detached",
        "enabled",
        "err",
        "held",
        "index",
        "kick",
        "log_address",
        "on_drained",
        "parked",
        "queue",
        "size",
        "started",
    )

    def __init__(
        self,
        index: int,
        handler: FuseHandler,
        complete: Callable[[Completion, int], None],
        *,
        pool: WorkerPool | None = None,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """`complete` takes a completion from any thread and has `finish` called on ours."""
        self.index = index
        self._handler = handler
        self._complete = complete
        # Taking the lock for each request, and not once for those of a burst, costs 0.2 us.
        self._handle = handler.handle
        self._lock: AbstractContextManager[object] = nullcontext()
        if isinstance(handler, BurstHandler):
            self._handle, self._lock = handler.handle_locked, handler.lock
        self._pool = pool
        self._on_failed = on_failed
        self.kick = self.call = self.err = -1
        self.on_drained: Callable[[], None] | None = None
        self.queue: Queue | None = None
        self._completion: Completion | None = None
        self._memory: GuestMemory | None = None
        self._inflight: Inflight | None = None
        self._log: DirtyLog | None = None
        self._keeps_ranges = False
        self._resubmitted: deque[int] = deque()
        self.held: list[int] = []
        self.broken = False
        self.detached = False
        self.reset()

    def reset(self) -> None:
        """Back to the state before any SET_VRING_*, except that `call` and `err` stay."""
        self.abandon()
        self.close_fd("kick")
        self.size = 0
        self.base: int | None = None
        self.addresses: tuple[int, int, int] | None = None
        self.log_address: int | None = None
        self.started = False
        self.enabled = False

    def close(self) -> None:
        """`reset`, and close all descriptors."""
        self.reset()
        self.close_fd("call")
        self.close_fd("err")

    def close_fd(self, name: str) -> None:
        """Close `kick`, `call` or `err`, if there is one."""
        fd: int = getattr(self, name)
        setattr(self, name, -1)
        if fd >= 0:
            os.close(fd)

    @property
    def runs(self) -> bool:
        """Whether chains may be taken from the ring."""
        return (
            self.started
            and self.enabled
            and self.queue is not None
            and not (self.broken or self.detached)
        )

    def depth(self) -> int:
        """How many chains wait in the ring, as far as another thread can tell."""
        queue = self.queue
        if queue is None or not self.runs:
            return 0
        try:
            return queue.pending()
        except (BadRing, ValueError):
            # The driver broke it, or our own thread has just let go of the memory.
            return 0

    def map(
        self,
        memory: GuestMemory,
        make: type[SplitQueue] | type[PackedQueue],
        *,
        indirect: bool,
        event_idx: bool,
        inflight: Inflight | None = None,
    ) -> None:
        """Make the queue with `make`, or make it anew at its position when memory has changed.

        Nothing happens while size or addresses are not known yet. A ring that is not in memory is
        broken; one that was is detached and waits for its memory to come back, for a VMM takes
        away regions before it adds others in their place. With `inflight` the queue begins with
        what was taken and not given back by a backend before us; it is of the same layout.
        """
        if self.addresses is None or not self.size or self.broken:
            return
        self._memory = memory
        old = self.queue
        if old is not None:
            base: int = old.base
        elif self.base is None:
            base = make.FIRST_BASE
        else:
            base = self.base
        try:
            queue = make(
                memory, self.size, self.addresses, base, indirect=indirect, event_idx=event_idx
            )
            if old is not None:
                # Completions that handlers hold name the old object: it becomes the new one.
                old.adopt(queue)
            else:
                if inflight is not None:
                    self._resubmitted.extend(inflight.resume(queue))  # type: ignore[arg-type]
                elif self.held and isinstance(queue, SplitQueue):
                    # What was taken and is not used: otherwise it is another driver's ring by now.
                    if (base - queue.used_idx) & 0xFFFF == len(self.held):
                        self._resubmitted.extend(self.held)
                    self.held = []
                self._inflight = inflight
                self._completion = Completion(self, queue, self._complete)
                self.queue = queue
            self._set_log_addresses()
        except GuestError as error:
            if old is None:
                self.fail(error)
            else:
                LOG.info("ring %d waits for its memory: %s", self.index, str(error))
                self.detached = True
            return
        self.detached = False
        if old is None:
            self.disable_kicks()
            if inflight is not None:
                # Who died may have used something without telling the driver.
                self.signal()

    def keep_log(self, log: DirtyLog | None, *, prepared: bool) -> None:
        """Note in `log` what is written to guest memory from now on, or nowhere (None).

        `prepared` says that a log may come while requests are pending, whose buffers are then to
        be noted too.
        """
        self._log = log
        self._keeps_ranges = prepared
        try:
            self._set_log_addresses()
        except GuestError as error:
            self.fail(error)

    def _set_log_addresses(self) -> None:
        if self._log is None or self.queue is None or self._memory is None:
            return
        assert self.addresses is not None
        address = self.log_address
        if address is None:
            address = self._memory.guest_address(self.addresses[2])
        self.queue.set_log(self._memory, self.addresses, address)

    def stop(self) -> int:
        """Take no more chains. Returns where the next one is (GET_VRING_BASE)."""
        self.started = False
        self.close_fd("kick")
        if self.queue is not None:
            self.base = self.queue.base
        return self.base or 0

    def abandon(self) -> None:
        """Let go of the queue; what is pending will be dropped when it completes."""
        self.queue = None
        self._completion = None
        self._inflight = None
        self._resubmitted.clear()
        self.broken = False
        self.detached = False
        self.parked = 0
        self.on_drained = None

    def has_work(self) -> bool:
        """Whether a chain is available."""
        return self.queue is not None and (self.queue.has_avail() or bool(self._resubmitted))

    def disable_kicks(self) -> None:
        """Ask the driver not to kick, for the ring is being watched."""
        assert self.queue is not None
        self.queue.disable_kicks()
        if self._log is not None:
            self._mark(self.queue.event_ranges())

    def enable_kicks(self) -> bool:
        """Ask the driver to kick again; True if there is work that it may not kick for."""
        assert self.queue is not None
        missed = self.queue.enable_kicks()
        if self._log is not None:
            self._mark(self.queue.event_ranges())
        return missed

    def serve(self) -> bool:
        """Serve the chains that are available now. Returns whether there were any."""
        queue = self.queue
        completion = self._completion
        if queue is None or completion is None or not self.runs:
            return False
        if (
            self._pool is not None
            or self._log is not None
            or self._inflight is not None
            or self._resubmitted
            or queue.__class__ is not SplitQueue
        ):
            return self._serve_with_care(queue)
        handle, lock = self._handle, self._lock
        served = False
        try:
            for _ in range(BURSTS if queue.has_avail() else 0):
                taken = SIGNAL_EVERY
                try:
                    with lock:
                        taken, reply = queue.serve(handle, completion, SIGNAL_EVERY)
                    if reply is not None:
                        completion = self._park(queue, completion, reply)
                        taken = SIGNAL_EVERY
                except GuestError:
                    raise
                except Exception:
                    completion = self._raised(queue, completion)
                served = served or taken > 0
                if queue.must_signal():
                    self.signal()
                if taken < SIGNAL_EVERY or not queue.has_avail():
                    break
        except GuestError as error:
            self.fail(error)
            if queue.must_signal():
                self.signal()
        return served

    def _raised(self, queue: Queue, completion: Completion) -> Completion:
        """Answer the request of `completion`, whose handler raised; returns the next one's."""
        # Formatted at once: a kept traceback would hold on to guest memory.
        LOG.error("ring %d: a request raised\n%s", self.index, format_exc())
        head, request, reply = queue.retake(completion.head)
        queue.push(head, _error_reply(request, reply))
        completion = self._completion = Completion(self, queue, self._complete)
        return completion

    def _serve_with_care(self, queue: Queue) -> bool:
        """`serve` with a thread pool, inflight memory, a dirty log, or a packed ring."""
        inflight = self._inflight
        served = 0
        try:
            while self._resubmitted:
                served += 1
                self._serve_one(queue, *queue.retake(self._resubmitted.popleft()))
            for _ in range(queue.pending()):
                served += 1
                head, request, reply = queue.pop()
                if inflight is not None:
                    inflight.take(head)
                self._serve_one(queue, head, request, reply)
                if not served % SIGNAL_EVERY and queue.must_signal():
                    self.signal()
        except GuestError as error:
            self.fail(error)
        if queue.must_signal():
            self.signal()
        return served > 0

    def _serve_one(
        self,
        queue: Queue,
        head: int,
        request: Sequence[memoryview],
        reply: Sequence[memoryview],
    ) -> None:
        completion = self._completion
        assert completion is not None
        completion.head = head
        pool = self._pool
        if pool is not None and pool.wants(request):
            self._park(queue, completion, reply)
            pool.submit(self._handler, request, reply, completion, _error_reply)
            return
        try:
            length = self._handler.handle(request, reply, completion)
        except Exception:
            LOG.error("ring %d: a request raised\n%s", self.index, format_exc())
            length = _error_reply(request, reply)
            self._completion = Completion(self, queue, self._complete)
        if length < 0:
            self._park(queue, completion, reply)
            return
        ranges: Ranges = ()
        if self._log is not None and self._memory is not None:
            ranges = self._memory.guest_ranges(reply)
        self._give(queue, head, length, ranges)

    def _park(
        self, queue: Queue, completion: Completion, reply: Sequence[memoryview]
    ) -> Completion:
        """Leave `completion` to who will call it; returns the one for the next request."""
        completion.parked = True
        if self._keeps_ranges and self._memory is not None:
            completion.ranges = self._memory.guest_ranges(reply)
        self.parked += 1
        completion = self._completion = Completion(self, queue, self._complete)
        return completion

    def _give(self, queue: Queue, head: int, length: int, ranges: Ranges) -> None:
        inflight = self._inflight
        if inflight is None:
            queue.push(head, length)
        else:
            inflight.give(head)
            queue.push(head, length)
            inflight.given(head, queue.used_idx)
        if self._log is not None:
            self._mark((*written(ranges, length), *queue.push_ranges()))

    def _mark(self, ranges: Ranges) -> None:
        assert self._log is not None
        # The log takes a bit that it sees set for one that the VMM has not taken away yet.
        fence()
        try:
            self._log.mark(ranges)
        except GuestError as error:
            self.fail(error)

    def finish(self, completion: Completion, length: int) -> None:
        """Give back the chain of a request that was pending, on the serving thread."""
        if not completion.parked or completion.queue is not self.queue:
            return
        completion.parked = False
        self.parked -= 1
        if length == WITHDRAWN:
            # It was another ring that stops: this one's request is served again.
            (self._resubmitted if self.started else self.held).append(completion.head)
        else:
            self._give(completion.queue, completion.head, length, completion.ranges)
            if completion.queue.must_signal():
                self.signal()
        if not self.parked and self.on_drained is not None:
            drained, self.on_drained = self.on_drained, None
            drained()

    def signal(self) -> None:
        """Interrupt the driver, if it gave us something to do so with."""
        if self.call >= 0:
            _notify(self.call)

    def fail(self, error: Exception) -> None:
        """Stop serving the ring until it is set up anew, and tell the frontend."""
        self.broken = True
        # The words only: the exception's traceback would hold on to guest memory.
        LOG.error("ring %d is broken: %s", self.index, str(error))
        if self.err >= 0:
            _notify(self.err)
        self._on_failed()


def written(ranges: Ranges, length: int) -> Ranges:
    """What of the `ranges` of a reply's buffers has been written by a reply of `length` bytes.

    An error's reply is shorter than what a READ that failed halfway has left behind it.
    """
    if length <= _FUSE_OUT_HEADER.size:
        return ranges
    found = []
    for address, size in ranges:
        found.append((address, min(size, length)))
        length -= size
        if length <= 0:
            break
    return found


def _notify(fd: int) -> None:
    try:
        os.eventfd_write(fd, 1)
    except OSError as error:
        # EAGAIN: the counter is full, so the peer has been told. Anything else is its loss.
        LOG.debug("eventfd %d: %s", fd, error.strerror)


def _error_reply(request: Sequence[memoryview], reply: Sequence[memoryview]) -> int:
    size = _FUSE_OUT_HEADER.size
    # No segment is empty; the whole request can be claimed to be gigabytes long.
    front = b"".join([segment[:16] for segment in request[:16]])
    unique = front[_UNIQUE]
    if len(unique) < 8 or sum(map(len, reply)) < size:
        return 0
    header = _FUSE_OUT_HEADER.pack(size, -EIO, int.from_bytes(unique, "little"))
    for segment in reply:
        count = min(len(segment), len(header))
        segment[:count] = header[:count]
        header = header[count:]
    return size
