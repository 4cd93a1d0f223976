"""The jailed process that builds an image."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from typing import Final, NoReturn

from fsimpl.ext2.builder import BuildOptions, HostSource, ImageError, ImagePlan, build
from fsimpl.ext2.builder.files import SourceFile
from harness.container.server import NamespaceMount
from harness.fuse.cache import ALWAYS
from harness.fuse.host_mount import HostMount
from harness.fuse.server import FuseServer
from harness.pmem import wire
from harness.pmem.filesystem import Content, ImageType, rounded
from harness.pmem.jail import POLICY, jail
from harness.sandbox import SandboxError, enter
from harness.sandbox.seccomp import install
from vfs.mount import VirtualDentry
from vfs.virtual_filesystem import VirtualFilesystem

LOG = logging.getLogger(__name__)

_LATE_MODULES: Final = (hashlib,)
"""What uuid5() imports when it is called: in the jail it is out of reach."""
_ROOT: Final = "/"
_NOWHERE: Final = -1
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def run_builder(
    source: str, options: BuildOptions, one_file_system: bool, sock: socket.socket, fuse: int
) -> NoReturn:
    """Build an image of ``source``, and serve its user on ``sock`` until that is closed.

    With a descriptor of an attached, unserved FUSE mount (``fuse``, else -1) the image is the one
    file of that, and nothing is copied.
    """
    status = 1
    try:
        # The user's interrupt is for the user, whose end is ours.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        keep = [sock.fileno()] if fuse < 0 else [sock.fileno(), fuse]
        try:
            enter(jail(source, keep))
            _Builder(options, one_file_system, sock, fuse).run()
            status = 0
        except SandboxError as error:
            _fail(sock, wire.FAILED_SANDBOX, str(error))
    except (BrokenPipeError, ConnectionResetError):
        # The user is gone, perhaps with messages that it has not read.
        status = 0
    except BaseException:
        LOG.exception("the builder of an image died")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _fail(sock: socket.socket, why: int, text: str) -> None:
    data = text.encode(errors="surrogateescape")[: wire.MESSAGE_MAX // 2]
    sock.send(wire.FAILED_RECORD.pack(wire.FAILED, why) + data)


class _Builder:
    """In the jail."""

    def __init__(
        self, options: BuildOptions, one_file_system: bool, sock: socket.socket, fuse: int
    ) -> None:
        self._options = options
        self._one_file_system = one_file_system
        self._sock = sock
        self._fuse = fuse
        self._content = Content(rounded(options.size or 0))
        self._told = 0

    def run(self) -> None:
        threading.Thread(target=_end_with, args=(self._sock,), daemon=True).start()
        if self._fuse >= 0:
            _serve(self._content, self._fuse)
        install(POLICY, "kill")
        try:
            source = HostSource(_ROOT, one_file_system=self._one_file_system)
            plan = build(source, self._options, self._report)
            self._content.size = rounded(plan.size)
            self._content.settle(plan)
            files = self._hand_over(plan)
        except (ImageError, OSError) as error:
            try:
                self._tell_failure(error)
            finally:
                # Nobody may wait for ever for what will not come.
                self._content.settle(None)
            if self._fuse >= 0:
                self._sock.recv(1)
            return
        while self._answer(files):
            pass

    def _tell_failure(self, error: ImageError | OSError) -> None:
        if isinstance(error, (BrokenPipeError, ConnectionResetError)):
            raise error
        if isinstance(error, OSError):
            name = "" if error.filename is None else os.fsdecode(error.filename)
            _fail(self._sock, error.errno or errno.EIO, name)
        else:
            _fail(self._sock, wire.FAILED_IMAGE, str(error))

    def _report(self, what: str, done: int, total: int) -> None:
        record = wire.PROGRESS_RECORD.pack(wire.PROGRESS, wire.WHAT.index(what), done, total)
        try:
            self._sock.send(record, socket.MSG_DONTWAIT)
        except BlockingIOError:
            # Who does not listen misses some.
            pass

    def _hand_over(self, plan: ImagePlan) -> list[SourceFile]:
        """Tell that the image is there; return the files whose descriptors may be asked for."""
        files: dict[SourceFile, int] = {}
        fds: list[int] = []
        if self._fuse < 0:
            metadata = os.memfd_create("dentry-ext2", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(metadata, plan.size)
            plan.write_metadata(metadata)
            self._report("copy", 0, plan.copied_bytes)
            plan.write_copies(metadata)
            self._report("copy", plan.copied_bytes, plan.copied_bytes)
            table = os.memfd_create("dentry-mappings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            with os.fdopen(os.dup(table), "wb") as rows:
                for offset, length, file, start in plan.mappings:
                    number = files.setdefault(file, len(files))
                    rows.write(wire.MAPPING.pack(offset, length, start, number))
            fds = [metadata, table]
            for fd in fds:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        mappings = len(plan.mappings) if fds else 0
        ready = wire.READY_RECORD.pack(
            wire.READY, 0, plan.size, plan.uuid.bytes, mappings, len(files)
        )
        socket.send_fds(self._sock, [ready], fds)
        for fd in fds:
            os.close(fd)
        return list(files)

    def _answer(self, files: list[SourceFile]) -> bool:
        """Open what the user asks for; False when it is gone."""
        data = self._sock.recv(wire.MESSAGE_MAX)
        if not data:
            return False
        kind, *numbers = memoryview(data[: len(data) // 4 * 4]).cast("I") or (0,)
        if kind != wire.OPEN or len(numbers) > wire.DESCRIPTORS_MAX:
            return False
        fds: list[int] = []
        errors = []
        for number in numbers:
            try:
                if number >= len(files):
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                fds.append(files[number].open())
                errors.append(0)
            except OSError as error:
                errors.append(error.errno or errno.EIO)
        answer = b"".join(map(wire.KIND.pack, (wire.OPENED, *errors)))
        try:
            socket.send_fds(self._sock, [answer], fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True


def _serve(content: Content, fuse: int) -> None:
    """Have a thread answer the kernel's requests; it may wait for ``content``."""
    vfs = VirtualFilesystem()
    vfs.register(ImageType(content))
    task = vfs.create_task(vfs.create_namespace(ImageType.name))
    with vfs.lock:
        top = task.fs.root
        root = VirtualDentry(top.mount, top.dentry).get()
    # Without our locks there is nothing to flush, and close(2) works when we are dead, too.
    mount = NamespaceMount(_ROOT, FuseServer(vfs, root, cache=ALWAYS, local_locks=True))
    mount.serve(HostMount(fuse, _ROOT, _NOWHERE, _NOWHERE))


def _end_with(sock: socket.socket) -> None:
    """End the process when the other end is closed, whatever it does then."""
    poll = select.poll()
    poll.register(sock, 0)
    poll.poll()
    os._exit(0)
