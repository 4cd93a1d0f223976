"""One ring of a vhost-user device: its configuration, its eventfds, and the serving of it."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Sequence
from errno import EIO
from traceback import format_exc
from typing import Final

from harness.virtio.memory import GuestError, GuestMemory
from harness.virtio.queue import SplitQueue
from harness.wire import FuseHandler

LOG = logging.getLogger(__name__)

SIGNAL_EVERY: Final = 8
"""Chains of a burst after which the driver is told, so that it works while we do."""

_FUSE_OUT_HEADER: Final = struct.Struct("<IiQ")
_UNIQUE: Final = slice(8, 16)
"""Where fuse_in_header.unique lies."""


class Completion:
    """struct virtio_fs_req, the device's side: the answer to one chain, callable from any thread.

    A ring uses one object again and again, until the handler keeps it by returning PENDING.
    """

    __slots__ = ("_complete", "head", "parked", "queue", "vring")

    def __init__(
        self, vring: Vring, queue: SplitQueue, complete: Callable[[Completion, int], None]
    ) -> None:
        self.vring = vring
        self.queue = queue
        self.head = 0
        self.parked = False
        self._complete = complete

    def __call__(self, length: int) -> None:
        """Hand the request back, with `length` bytes of reply in its buffers."""
        self._complete(self, length)


class Vring:
    """struct vhost_virtqueue of a backend: what SET_VRING_* configured, and the queue it made.

    The ring runs while it is started (a kick descriptor was given), enabled, and not broken.
    All methods are called on the serving thread. Owns `kick`, `call` and `err` (-1: none).
    """

    __slots__ = (
        "_complete",
        "_completion",
        "_handler",
        "addresses",
        "base",
        "broken",
        "call",
        "enabled",
        "err",
        "index",
        "kick",
        "on_drained",
        "parked",
        "queue",
        "size",
        "started",
    )

    def __init__(
        self, index: int, handler: FuseHandler, complete: Callable[[Completion, int], None]
    ) -> None:
        """`complete` takes a completion from any thread and has `finish` called on ours."""
        self.index = index
        self._handler = handler
        self._complete = complete
        self.kick = self.call = self.err = -1
        self.on_drained: Callable[[], None] | None = None
        self.queue: SplitQueue | None = None
        self._completion: Completion | None = None
        self.broken = False
        self.reset()

    def reset(self) -> None:
        """Back to the state before any SET_VRING_*, except that `call` and `err` stay."""
        self.abandon()
        self.close_fd("kick")
        self.size = 0
        self.base = 0
        self.addresses: tuple[int, int, int] | None = None
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
        return self.started and self.enabled and self.queue is not None and not self.broken

    def map(self, memory: GuestMemory, *, indirect: bool, event_idx: bool) -> None:
        """Make the queue, or make it anew at its present position when memory has changed.

        Nothing happens while size or addresses are not known yet. Failure breaks the ring.
        """
        if self.addresses is None or not self.size or self.broken:
            return
        old = self.queue
        base = self.base if old is None else old.next_avail
        try:
            queue = SplitQueue(
                memory, self.size, self.addresses, base, indirect=indirect, event_idx=event_idx
            )
        except GuestError as error:
            self.fail(error)
            return
        if old is None:
            self.parked = 0
            self._completion = Completion(self, queue, self._complete)
            self.queue = queue
            queue.disable_kicks()
        else:
            # Completions that handlers hold name the old object: it becomes the new one.
            old.adopt(queue)

    def stop(self) -> int:
        """Take no more chains. Returns the index of the next one (GET_VRING_BASE)."""
        self.started = False
        self.close_fd("kick")
        if self.queue is not None:
            self.base = self.queue.next_avail
        return self.base

    def abandon(self) -> None:
        """Let go of the queue; what is pending will be dropped when it completes."""
        self.queue = None
        self._completion = None
        self.broken = False
        self.parked = 0
        self.on_drained = None

    def has_work(self) -> bool:
        """Whether a chain is available."""
        return self.queue is not None and self.queue.has_avail()

    def serve(self) -> bool:
        """Serve the chains that are available now. Returns whether there were any."""
        queue = self.queue
        completion = self._completion
        if queue is None or completion is None or not self.runs:
            return False
        handle = self._handler.handle
        pop = queue.pop
        push = queue.push
        served = 0
        try:
            for served in range(1, queue.pending() + 1):
                head, request, reply = pop()
                completion.head = head
                try:
                    length = handle(request, reply, completion)
                except Exception:
                    # Formatted at once: a kept traceback would hold on to guest memory.
                    LOG.error("ring %d: a request raised\n%s", self.index, format_exc())
                    length = _error_reply(request, reply)
                    completion = self._completion = Completion(self, queue, self._complete)
                if length >= 0:
                    push(head, length)
                else:
                    completion.parked = True
                    self.parked += 1
                    completion = self._completion = Completion(self, queue, self._complete)
                if not served % SIGNAL_EVERY and queue.must_signal():
                    self.signal()
        except GuestError as error:
            self.fail(error)
        if queue.must_signal():
            self.signal()
        return served > 0

    def finish(self, completion: Completion, length: int) -> None:
        """Give back the chain of a request that was pending, on the serving thread."""
        if not completion.parked or completion.queue is not self.queue:
            return
        completion.parked = False
        self.parked -= 1
        completion.queue.push(completion.head, length)
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
