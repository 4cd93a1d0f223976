"""An image that a process of ours builds: waiting for it, its mappings, and its end."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Self

from fsimpl.ext2.builder import BLOCK_SIZE, BuildOptions, ImageError
from harness.fuse.host_mount import MountOptions, attach, detach
from harness.pmem import wire
from harness.pmem.builder import run_builder
from harness.pmem.filesystem import IMAGE, rounded
from harness.sandbox import SandboxError
from vfs.errors import oserror

_END_SECONDS: Final = 10.0
"""What the process may take to end when nobody needs it, before it is killed."""


class Mapping(NamedTuple):
    """``length`` bytes at ``offset`` of the image are those of file number ``file`` at
    ``file_offset``. All but ``file`` are multiples of 4096.
    """

    offset: int
    length: int
    file_offset: int
    file: int


class BuilderDied(Exception):
    """The process was killed, or ended by a bug of ours; the message is one line."""


def launch(
    source: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    one_file_system: bool = False,
    as_file: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> PmemImage:
    """Start to build an image of the host directory ``source``; return at once.

    A process does it that has given up everything but reading ``source`` (docs/ext2.md). With
    ``as_file`` the image is for ``PmemImage.open``, else for ``mappings`` and ``metadata``.
    ``progress`` is called by ``poll`` and ``wait``, as ``fsimpl.ext2.builder.Progress`` says.

    Raises:
        OSError: as stat(2) of ``source``, ENOTDIR; as fork(2) and socketpair(2).
        HostMountError: this host mounts nothing over /dev/fuse (``as_file``).
    """
    path = os.path.abspath(source)
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.close(fd)
    options = options or BuildOptions()
    root, fuse = _attach() if as_file else (-1, -1)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What is buffered here would be written by the child, too.
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            run_builder(path, options, one_file_system, theirs, fuse)
        theirs.close()
    except BaseException:
        if root >= 0:
            os.close(root)
        raise
    finally:
        if fuse >= 0:
            os.close(fuse)
    return PmemImage(pid, ours, root, options, progress)


def _attach() -> tuple[int, int]:
    """(the root of a FUSE mount that nobody can find, O_PATH; its device's descriptor).

    The mount is gone with the last descriptor of it, so that it outlives nobody.
    """
    place = tempfile.mkdtemp(prefix="dentry-pmem-")
    try:
        mount = attach(place, MountOptions(read_only=True))
        try:
            root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            os.close(mount.fd)
            raise
        finally:
            detach(mount, lazy=True)
    finally:
        with suppress(OSError):
            os.rmdir(place)
    return root, mount.fd


class PmemImage:
    """Our end of a builder. To be closed, which ends the process; of one thread.

    When the image is there: ``size`` in bytes, ``uuid``, and without ``as_file`` ``mappings``, in
    the image's order, and ``metadata``, a sealed memfd (owned by this object) of that size, of
    which everything holds that no mapping names.
    """

    def __init__(
        self,
        pid: int,
        sock: socket.socket,
        root: int,
        options: BuildOptions,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        """Takes over ``sock`` and ``root``."""
        self.pid = pid
        """Of the process that waits outside of the jail; it ends as the builder does."""
        self.size = options.size or 0
        self.uuid = options.uuid
        self.mappings: Sequence[Mapping] = ()
        self.metadata = -1
        self.files = 0
        self.ready = False
        self._sock = sock
        self._root = root
        self._progress = progress
        self._error: Exception | None = None
        self._status: int | None = None
        self._detached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For a selector: readable when ``poll`` has something to take in."""
        return self._sock.fileno()

    def poll(self) -> bool:
        """Take in what has arrived, and tell if the image is there.

        Raises:
            ImageError: the tree can't become such an image.
            OSError: as reading the source does, by name.
            SandboxError: the jail could not be made.
            BuilderDied: the process was killed, also after the image was there.
        """
        while self._error is None:
            try:
                data, fds = wire.receive(self._sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return self.ready
            except ConnectionResetError:
                data, fds = b"", []
            self._take(data, fds)
        raise self._error

    def wait(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds for the image. Raises: TimeoutError; as ``poll``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.poll():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._wait_for_data(left):
                raise TimeoutError("the image is not there yet")

    def open(self, *, at_once: bool = False) -> tuple[int, int]:
        """A descriptor of the image as a file, to be mapped, and its size, in whole ALIGNMENTs.

        Its reads wait until the image is there; what can't be built or read is zeros. With
        ``at_once`` and a size that was asked for, this does not wait either.

        Raises: as ``wait``.
        """
        assert self._root >= 0, "launched without as_file"
        if not (at_once and self.size):
            self.wait()
        return os.open(IMAGE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root), rounded(self.size)

    def descriptors(self, files: Iterable[int]) -> list[int | None]:
        """Descriptors of the files of those numbers, the caller's to close; None for what is not
        any more what it was when the image was made: its bytes are to be zeros.

        The builder opens them, for it can't be led out of the source. One at a time, or all: no
        more are open than are asked for here, and RLIMIT_NOFILE is the caller's to mind.

        Raises: EMFILE; BuilderDied.
        """
        numbers = list(files)
        found: list[int | None] = []
        try:
            for start in range(0, len(numbers), wire.DESCRIPTORS_MAX):
                found += self._ask(numbers[start : start + wire.DESCRIPTORS_MAX])
        except BaseException:
            for fd in found:
                if fd is not None:
                    os.close(fd)
            raise
        return found

    def detach(self) -> socket.socket:
        """Our end of the socket, for one who speaks as ``wire`` says; this object is done with it.

        To be called before ``poll``: then the image goes to the other as a whole. The builder ends
        when the other closes it, or by our ``close``.
        """
        self._detached = True
        sock, self._sock = self._sock, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return sock

    def cancel(self) -> None:
        """End the builder, however far it is. The same as ``close``."""
        self.close()

    def close(self) -> None:
        """Have the builder end, reap it, and close everything. May be repeated."""
        self._sock.close()
        for fd in (self.metadata, self._root):
            if fd >= 0:
                os.close(fd)
        self.metadata = self._root = -1
        self.mappings = ()
        if self._detached and self._status is None:
            os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _wait_for_data(self, seconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def _take(self, data: bytes, fds: list[int]) -> None:
        """One message; one that is not to be expected ends the conversation."""
        kind = wire.KIND.unpack_from(data)[0] if len(data) >= wire.KIND.size else 0
        if kind == wire.PROGRESS and len(data) == wire.PROGRESS_RECORD.size and not fds:
            _, what, done, total = wire.PROGRESS_RECORD.unpack(data)
            if self._progress is not None and what < len(wire.WHAT):
                self._progress(wire.WHAT[what], done, total)
        elif kind == wire.READY and len(data) == wire.READY_RECORD.size and not self.ready:
            _, _, self.size, identity, count, self.files = wire.READY_RECORD.unpack(data)
            self.uuid = uuid.UUID(bytes=identity)
            self._take_content(count, fds)
        elif kind == wire.FAILED and len(data) >= wire.FAILED_RECORD.size and not fds:
            _, why = wire.FAILED_RECORD.unpack_from(data)
            self._error = _failure(why, data[wire.FAILED_RECORD.size :])
        else:
            for fd in fds:
                os.close(fd)
            self._error = BuilderDied(self._post_mortem())

    def _take_content(self, count: int, fds: list[int]) -> None:
        if len(fds) == 2:
            self.metadata, table = fds
            with os.fdopen(table, "rb") as rows:
                rows.seek(0)
                data = rows.read(count * wire.MAPPING.size)
            whole = data[: len(data) // wire.MAPPING.size * wire.MAPPING.size]
            self.mappings = [Mapping(*row) for row in wire.MAPPING.iter_unpack(whole)]
            if len(self.mappings) != count or not all(map(self._is_inside, self.mappings)):
                self._error = BuilderDied("the builder of the image made mappings outside of it")
                return
        self.ready = True

    def _is_inside(self, mapping: Mapping) -> bool:
        """Whether a monitor can map it blindly."""
        offset, length, start, file = mapping
        aligned = not (offset | length | start) % BLOCK_SIZE
        return aligned and offset + length <= self.size and file < self.files

    def _ask(self, numbers: list[int]) -> list[int | None]:
        try:
            self._sock.send(b"".join(map(wire.KIND.pack, (wire.OPEN, *numbers))))
            data, fds = wire.receive(self._sock)
        except (BrokenPipeError, ConnectionResetError):
            data, fds = b"", []
        words = memoryview(data[: len(data) // 4 * 4]).cast("I").tolist() or [0]
        errors = words[1:]
        if words[0] != wire.OPENED or len(errors) != len(numbers):
            for fd in fds:
                os.close(fd)
            self._error = BuilderDied(self._post_mortem())
            raise self._error
        if len(fds) != errors.count(0):
            # The kernel passes as many as there is room for, and drops the others.
            for fd in fds:
                os.close(fd)
            raise oserror(errno.EMFILE)
        ordered = iter(fds)
        return [None if error else next(ordered) for error in errors]

    def _post_mortem(self) -> str:
        self._sock.close()
        status = os.waitstatus_to_exitcode(self._reap())
        if status < 0:
            return f"the builder of the image was killed by {signal.Signals(-status).name}"
        return f"the builder of the image ended with status {status}; its log tells why"

    def _reap(self) -> int:
        if self._status is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if not poll.poll(_END_SECONDS * 1000):
                    os.kill(self.pid, signal.SIGKILL)
                _, self._status = os.waitpid(self.pid, 0)
            finally:
                os.close(pidfd)
        return self._status


def _failure(why: int, data: bytes) -> Exception:
    text = data.decode(errors="surrogateescape")
    if why == wire.FAILED_IMAGE:
        return ImageError(text)
    if why == wire.FAILED_SANDBOX:
        return SandboxError(text)
    return OSError(why, os.strerror(why), text or None)
