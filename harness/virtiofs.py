"""The virtio-fs device: configuration space, listening socket, and the loop that serves it."""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Collection
from errno import EADDRINUSE, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from types import TracebackType
from typing import Final

from harness.vhost_user.backend import Backend
from harness.vhost_user.connection import Connection
from harness.vhost_user.loop import ServiceLoop
from harness.vhost_user.pool import BLOCKING, WorkerPool
from harness.vhost_user.state import DeviceState
from harness.wire import FuseHandler

LOG = logging.getLogger(__name__)

TAG_MAX: Final = 36
MAX_REQUEST_QUEUES: Final = 127
POLL_LIMIT_NS: Final = 50_000
ACCEPT_PAUSE_NS: Final = 500_000_000
"""How long after a failure for want of descriptors or memory a frontend is accepted again."""

_CONFIG: Final = struct.Struct("<36sI")
"""struct virtio_fs_config: tag, number of request queues (section 5.11.4)."""


def listen(
    path: str | os.PathLike[str], kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A Unix socket of the type `kind` listening at `path`, accessible to its owner only.

    A socket file that nobody listens on any more is replaced.

    Raises:
        OSError: EADDRINUSE when something listens there, or the path is no socket; from
            bind(2) and listen(2) otherwise.
    """
    path = os.fspath(path)
    listener = socket.socket(socket.AF_UNIX, kind)
    umask = os.umask(0o077)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != EADDRINUSE or not _is_stale(path, kind):
                raise
            os.unlink(path)
            listener.bind(path)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _is_stale(path: str, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        # A daemon with a full backlog would have us wait, and is as alive as one that answers.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            # connect(2) says the same of a file that is no socket.
            return stat.S_ISSOCK(os.lstat(path).st_mode)
        except OSError:
            return False
    return False


def _config(tag: str, num_request_queues: int) -> bytes:
    name = os.fsencode(tag)
    if not 0 < len(name) <= TAG_MAX:
        raise OSError(EINVAL, f"a tag has 1 to {TAG_MAX} bytes", tag)
    if not 1 <= num_request_queues <= MAX_REQUEST_QUEUES:
        raise OSError(EINVAL, f"a device has 1 to {MAX_REQUEST_QUEUES} request queues")
    return _CONFIG.pack(name, num_request_queues)


class VirtioFsDevice:
    """struct virtio_fs, the device's side: a tag, a high-priority queue and request queues.

    One frontend at a time; when it goes, the session of `handler` is reset and the next one is
    accepted. Frontends that come while another is served wait in the socket's backlog.
    """

    def __init__(
        self,
        handler: FuseHandler,
        tag: str | None = None,
        num_request_queues: int = 1,
        *,
        poll_limit_ns: int = POLL_LIMIT_NS,
        threads: int = 0,
        pooled: Collection[int] = BLOCKING,
        state: DeviceState | None = None,
    ) -> None:
        """Without `tag` the frontend names the device, and no configuration space is offered.

        `poll_limit_ns` bounds how long an empty ring is watched before the thread sleeps.
        `threads` serve requests of the opcodes `pooled`, so that `handler` is called by several
        threads at once; 0 has the one thread of `serve` do all. `state` (borrowed) lets the device
        be migrated.

        Raises:
            OSError: EINVAL for a tag that is empty or longer than 36 bytes, or a number of
                request queues outside 1 to 127.
            RuntimeError: so many threads can't be had.
        """
        config = None if tag is None else _config(tag, num_request_queues)
        if not 1 <= num_request_queues <= MAX_REQUEST_QUEUES:
            raise OSError(EINVAL, f"a device has 1 to {MAX_REQUEST_QUEUES} request queues")
        self._handler = handler
        self._config = config
        self._num_queues = 1 + num_request_queues
        self._state = state
        self._pool = WorkerPool(threads, pooled) if threads else None
        self._loop = ServiceLoop(poll_limit_ns)
        self._backend: Backend | None = None
        self._listener: socket.socket | None = None

    def __enter__(self) -> VirtioFsDevice:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def serve(self, listener: socket.socket) -> None:
        """Serve one frontend after another, until `stop`. `listener` is borrowed."""
        self._listener = listener
        listener.setblocking(False)
        self._loop.register(listener.fileno(), self._accept)
        try:
            self._loop.run()
        finally:
            self._drop()
            self._loop.unregister(listener.fileno())

    def serve_path(self, path: str | os.PathLike[str]) -> None:
        """`listen` at `path`, `serve`, and unlink the socket at the end.

        Raises:
            OSError: as `listen`.
        """
        with listen(path) as listener:
            inode = os.stat(path).st_ino
            try:
                self.serve(listener)
            finally:
                try:
                    if os.stat(path).st_ino == inode:
                        os.unlink(path)
                except FileNotFoundError:
                    pass

    def serve_connection(self, sock: socket.socket) -> None:
        """Serve the frontend at the other end of `sock` (taken over), until it goes or `stop`."""
        self._attach(sock, self._loop.stop)
        try:
            self._loop.run()
        finally:
            self._drop()

    def stop(self) -> None:
        """Have `serve` return soon. From any thread, or from a signal handler."""
        self._loop.stop()

    def rename(self, tag: str) -> None:
        """Change the tag, and tell the driver, if it can be told. From any thread.

        Raises:
            OSError: EINVAL for a tag that is empty or longer than 36 bytes, or where the frontend
                names the device.
        """
        if self._config is None:
            raise OSError(EINVAL, "the frontend names this device", tag)
        config = self._config = _config(tag, self._num_queues - 1)

        def tell() -> None:
            if self._backend is not None:
                self._backend.config_changed(config)

        self._loop.post(tell)

    def depth(self) -> int:
        """How many requests the driver has ready that no thread has taken yet. From any thread."""
        backend = self._backend
        return 0 if backend is None else backend.depth()

    def close(self) -> None:
        """Release the descriptors of the loop and the threads, after `serve` has returned."""
        if self._pool is not None:
            self._pool.close()
        self._loop.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            LOG.debug("accept: %s", error)
            if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                # The listener stays readable, and would keep us busy with nothing else.
                LOG.warning("no frontend can be accepted: %s", error.strerror)
                self._loop.unregister(self._listener.fileno())
                self._loop.set_timer(ACCEPT_PAUSE_NS, self._accept_again)
            return
        self._loop.unregister(self._listener.fileno())
        self._attach(sock, self._accept_again)

    def _accept_again(self) -> None:
        assert self._listener is not None
        self._backend = None
        self._loop.register(self._listener.fileno(), self._accept)

    def _attach(self, sock: socket.socket, on_closed: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._backend = Backend(
            Connection(sock),
            self._handler,
            self._loop,
            num_queues=self._num_queues,
            config=self._config,
            on_closed=on_closed,
            pool=self._pool,
            state=self._state,
        )

    def _drop(self) -> None:
        if self._backend is not None:
            self._backend.drain()
            self._backend.close()
            self._backend = None
