"""What happens in a VFS, as events, to those who listen.

An event is a dictionary: its ``topic``, its ``name`` (of the call, the opcode, or what happened),
the ``time`` of its end in seconds since the epoch, who did it (``pid``), and, where something took
time, ``seconds`` and ``result`` in strace(1)'s words, with ``errno`` where it failed. The rest is
the topic's:

``syscalls`` of the tasks of control clients and shells: ``arguments``, as scripts have them;
``fuse`` requests of the client that has the VFS mounted: ``text``, ``node``, and ``pid`` is the
    client's;
``vfs``: ``mount`` and ``umount`` with ``path``, ``type`` and ``mount``; ``exit`` of a task.

Nobody waits for a listener: what does not fit into its queue is counted, and told in its place as
``{"topic": "lost", "lost": n}``.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from harness.fuse import abi as fuse_abi
from harness.fuse.request import NO_REPLY, Header
from harness.testbed.step import format_bytes
from harness.wire import PENDING
from vfs.dentry import Dentry
from vfs.dpath import prepend_path
from vfs.mount import Mount, VirtualDentry
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

if TYPE_CHECKING:
    from harness.fuse.server import FuseServer

Event = dict[str, Any]

TOPICS: Final = ("syscalls", "fuse", "vfs")
QUEUE_BYTES: Final = 4 << 20
"""What waits for one listener at most; an event counts as `_EVENT_BYTES` and its data."""
_EVENT_BYTES: Final = 512
_SHOWN: Final = 32


class Listening(Protocol):
    """What `Kernel.subscribe` returns. To be closed, by `with` or `close`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None if there is none for `timeout` seconds, or it is closed."""
        ...

    def close(self) -> None:
        """No more is wanted; what has come can still be had by `get`."""
        ...


class Subscription:
    """A listener's queue. Events are put by any thread, which never waits."""

    def __init__(
        self,
        trace: Trace,
        topics: frozenset[str],
        names: Sequence[str],
        pid: int | None,
        failed: bool,
        wake: Callable[[], None] | None,
    ) -> None:
        self.topics = topics
        self._trace = trace
        self._names = tuple(name.lower() for name in names)
        self._pid = pid
        self._failed = failed
        self._wake = wake
        self._queue: deque[tuple[int, Event]] = deque()
        self._waiting = 0
        self._lost = 0
        self._changed = threading.Condition(threading.Lock())
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """See `Listening.close`. May be repeated."""
        self._trace.remove(self)
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def wants(self, name: str, pid: int | None, failed: bool) -> bool:
        """Whether an event of one of its topics passes the filter."""
        if self._failed and not failed:
            return False
        if self._pid is not None and pid != self._pid:
            return False
        if not self._names:
            return True
        name = name.lower()
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._names)

    def put(self, event: Event, data: int = 0) -> None:
        """Queue an event with so many bytes of data, or count it as lost."""
        size = _EVENT_BYTES + data
        with self._changed:
            if self._waiting + size > QUEUE_BYTES:
                self._lost += 1
                return
            was_empty = not self._queue
            self._queue_lost()
            self._queue.append((size, event))
            self._waiting += size
            self._changed.notify()
        if was_empty and self._wake is not None:
            self._wake()

    def _queue_lost(self) -> None:
        if self._lost:
            self._queue.append((0, {"topic": "lost", "lost": self._lost}))
            self._lost = 0

    def get(self, timeout: float | None = None) -> Event | None:
        """See `Listening.get`."""
        with self._changed:
            if not self._queue:
                self._queue_lost()
            self._changed.wait_for(lambda: self._queue or self.closed, timeout)
            if not self._queue:
                return None
            size, event = self._queue.popleft()
            self._waiting -= size
            return event

    def __bool__(self) -> bool:
        """Whether something waits to be had."""
        return bool(self._queue or self._lost)


class Trace:
    """The listeners of one VFS. What nobody listens to is not watched, and costs nothing."""

    def __init__(self, vfs: VirtualFilesystem, server: FuseServer | None = None) -> None:
        """`server` is whose requests are told. Both are borrowed."""
        self._vfs = vfs
        self._server = server
        # Replaced, never changed, so that events need no lock to find their listeners.
        self._listeners: dict[str, tuple[Subscription, ...]] = dict.fromkeys(TOPICS, ())

    def subscribe(
        self,
        topics: Sequence[str] = (),
        names: Sequence[str] = (),
        pid: int | None = None,
        failed: bool = False,
        wake: Callable[[], None] | None = None,
    ) -> Subscription:
        """Listen to `topics` (all, if there are none), with `names` as patterns of fnmatch(3), of
        one `pid`, or only to what `failed`. `wake` is called when something comes into an empty
        queue.

        Raises: EINVAL (no such topic).
        """
        if not set(topics) <= set(TOPICS):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        chosen = frozenset(topics or TOPICS)
        subscription = Subscription(self, chosen, names, pid, failed, wake)
        with self._vfs.lock:
            for topic in chosen:
                self._set(topic, (*self._listeners[topic], subscription))
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """The subscription is not told of anything any more. May be repeated."""
        with self._vfs.lock:
            for topic in subscription.topics:
                left = tuple(s for s in self._listeners[topic] if s is not subscription)
                self._set(topic, left)

    def _set(self, topic: str, listeners: tuple[Subscription, ...]) -> None:
        before, self._listeners[topic] = self._listeners[topic], listeners
        if bool(before) == bool(listeners):
            return
        if topic == "vfs":
            (self._vfs.watch_mounts if listeners else self._vfs.unwatch_mounts)(self._on_mount)
            (self._vfs.watch_exits if listeners else self._vfs.unwatch_exits)(self._on_exit)
        elif topic == "fuse" and self._server is not None:
            (self._server.observe if listeners else self._server.unobserve)(self._on_request)

    def _tell(
        self, topic: str, name: str, pid: int | None, failed: bool, make: Callable[[], Event],
        data: int = 0,
    ) -> None:  # fmt: skip
        event: Event | None = None
        for listener in self._listeners[topic]:
            if listener.wants(name, pid, failed):
                if event is None:
                    event = {"topic": topic, "name": name, "time": time.time(), "pid": pid}
                    event.update(make())
                listener.put(event, data)

    def call(self, task: int, name: str, arguments: Sequence[Any], call: Callable[[], Any]) -> Any:
        """Do `call()`, which is the system call `name` of `task`, and tell of it."""
        if not self._listeners["syscalls"]:
            return call()
        error: OSError | None = None
        value = None
        begun = time.perf_counter_ns()
        try:
            value = call()
            return value
        except OSError as raised:
            error = raised
            raise
        finally:
            took = time.perf_counter_ns() - begun

            def make() -> Event:
                event: Event = {"arguments": list(arguments), "seconds": took / 1e9}
                event["result"] = _shown(value) if error is None else _error(error.errno or 0)
                if error is not None:
                    event["errno"] = error.errno
                return event

            data = sum(len(a) for a in arguments if isinstance(a, bytes | str | list | tuple))
            self._tell("syscalls", name, task, error is not None, make, data)

    def _on_request(
        self, server: FuseServer, header: Header, body: bytes, result: int, took: int
    ) -> None:
        # A shell on a VFS of its own has no server, and need not wait for these.
        from harness.fuse.opcodes import NAMES
        from harness.fuse.trace import describe_request

        failed = result < 0 and result not in (PENDING, NO_REPLY)

        def make() -> Event:
            segments = memoryview(fuse_abi.IN_HEADER.pack(*header)), memoryview(body)
            event: Event = {"text": describe_request(segments), "node": header[3]}
            event["seconds"] = took / 1e9
            if failed:
                event["errno"] = -result
                event["result"] = _error(-result)
            elif result == PENDING:
                event["result"] = "(waits)"
            else:
                event["result"] = "(no reply)" if result == NO_REPLY else f"ok {result}"
            return event

        self._tell("fuse", NAMES.get(header[1], "unknown"), header[6], failed, make)

    def _on_mount(self, parent: Mount, mountpoint: Dentry) -> None:
        mount = parent.children.get(mountpoint)
        current = self._vfs.current
        pid = current.pid if isinstance(current, Task) else None

        def make() -> Event:
            assert parent.namespace is not None
            top = parent.namespace.root
            root = VirtualDentry(top, top.root)
            path, _ = prepend_path(VirtualDentry(parent, mountpoint), root)
            event: Event = {"path": os.fsdecode(path), "namespace": parent.namespace.id}
            if mount is not None:
                event["mount"] = mount.id
                event["type"] = mount.superblock.type.name
            return event

        self._tell("vfs", "umount" if mount is None else "mount", pid, False, make)

    def _on_exit(self, task: Task) -> None:
        self._tell("vfs", "exit", task.pid, False, lambda: {"comm": os.fsdecode(task.comm)})

    def task_made(self, pid: int, like: int | None, who: dict[str, Any]) -> None:
        """A client has cloned one of its tasks, or the daemon's own (`like` is None)."""
        self._tell("syscalls", "clone", pid, False, lambda: {"like": like, "who": dict(who)})


def _error(number: int) -> str:
    return f"-1 {errno.errorcode.get(number, str(number))} ({os.strerror(number)})"


def _shown(value: Any) -> str:
    """A call's value as strace(1) shows it, cut short."""
    if value is None:
        return "0"
    if isinstance(value, bytes):
        more = f"... ({len(value)} bytes)" if len(value) > _SHOWN else ""
        return format_bytes(value[:_SHOWN], as_text=True) + more
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value).__name__
    if isinstance(value, list):
        return f"{len(value)} entries"
    return str(value)


def events_of(listening: Listening, seconds: float | None, count: int | None) -> Iterator[Event]:
    """Its events for so many seconds, or so many of them, whichever ends first."""
    end = None if seconds is None else time.monotonic() + seconds
    while count is None or count > 0:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return
        event = listening.get(1.0 if left is None else min(left, 1.0))
        if event is not None:
            yield event
            if count is not None:
                count -= 1
