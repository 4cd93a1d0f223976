"""The seam between a FUSE server and the transports that carry requests to it.

A transport (virtio-fs, /dev/fuse) owns buffers and hands them to a `FuseHandler`; the handler
knows nothing of rings or descriptors. This module imports nothing of the package, so that both
sides can name the seam without naming each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, runtime_checkable

PENDING: Final = -1
"""What `FuseHandler.handle` returns for a request that it will complete later."""

WITHDRAWN: Final = -2
"""What a completion is called with for a request that is not answered, but to be sent again."""


class Recurring(list[memoryview]):
    """The segments of a request that may come again: this very object, with the same reply.

    `frame` is None at first, and the handler's to keep what it has found out about the two. It must
    not refer to this object: a cycle would keep guest memory mapped.
    """

    __slots__ = ("frame",)

    def __init__(self, segments: Sequence[memoryview]) -> None:
        super().__init__(segments)
        self.frame: Any = None


class FuseHandler(Protocol):
    """What the kernel's `struct fuse_dev` reads from and writes to: the server of one session."""

    def handle(
        self,
        request: Sequence[memoryview],
        reply: Sequence[memoryview],
        completion: Callable[[int], None],
    ) -> int:
        """Serve one request. A transport with a thread pool calls this from many threads at once.

        `request` is what the client wrote, a fuse_in_header and its arguments, cut into segments
        at arbitrary places; `reply` is the writable room, cut likewise. Both may be empty, and
        both are hostile: another CPU may change `request` while it is read.

        Returns the number of reply bytes written (0: answered without a reply, as FORGET is), or
        PENDING. After PENDING the handler calls `completion(length)` exactly once, from any
        thread; the buffers stay valid until then, even if the transport goes away first. After
        any other return value `completion` must not be called: the transport reuses it.
        """
        ...

    def drain(self) -> None:
        """Answer every pending request soon: one that waits for an event fails with EINTR.

        The transport is about to stop a queue and reports it stopped when nothing of it is
        pending. The session goes on.
        """
        ...

    def withdraw(self) -> None:
        """Give every request that waits for an event back: `completion(WITHDRAWN)`.

        Nothing has come of them. Whoever goes on with the session, this handler or another one,
        gets them once more.
        """
        ...

    def reset(self) -> None:
        """Forget the session: nodes, handles, locks, pending requests.

        The client is gone. Completions that still arrive are dropped by the transport.
        """
        ...


@runtime_checkable
class BurstHandler(FuseHandler, Protocol):
    """A handler that serves under one lock, which costs less if it is taken once for a burst."""

    lock: AbstractContextManager[object]

    def handle_locked(
        self,
        request: Sequence[memoryview],
        reply: Sequence[memoryview],
        completion: Callable[[int], None],
    ) -> int:
        """`handle`, for one who holds `lock`, and no more than once."""
        ...
