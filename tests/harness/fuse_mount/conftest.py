"""Daemons that mount trees on this host; and a FUSE server small enough to be wrong in known ways.

A tree is served by another process, `dentry mount`: a test that is client and server in one would
wait for itself in every system call that Python makes without giving up the interpreter.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness.wire import PENDING

_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHIII4x16x")

LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE = 1, 2, 3, 14, 15, 16
RELEASE, FLUSH, INIT, OPENDIR, INTERRUPT, BATCH_FORGET = 18, 25, 26, 27, 36, 42
ENOENT, ENOSYS = 2, 38

Completion = Callable[[int], None]


class OneFileServer:
    """A `FuseHandler` of a directory with one file, `file`, of which every byte is "x".

    A READ at offset `PARK` waits for `complete_parked`. A lookup of `die` raises in the thread
    that reads, of `garbage` is answered by what the kernel refuses, of `block` waits for `gate`.
    """

    PARK = 1 << 20
    SIZE = 1 << 30

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.resets = 0
        self.parked: list[tuple[int, Sequence[memoryview], Completion]] = []
        self.gate = threading.Event()
        self.blocked = threading.Event()
        self.written = bytearray()

    def handle(
        self, request: Sequence[memoryview], reply: Sequence[memoryview], completion: Completion
    ) -> int:
        (data,) = request
        (out,) = reply
        length, opcode, unique, node, *_ = _IN_HEADER.unpack_from(data)
        assert length == len(data)
        self.requests[opcode] += 1
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            return 0
        if opcode == READ:
            offset: int
            size: int
            _, offset, size = struct.unpack_from("<QQI", data, 40)
            if offset == self.PARK:
                self.parked.append((unique, reply, completion))
                return PENDING
            out[16 : 16 + size] = b"x" * size
            _OUT_HEADER.pack_into(out, 0, 16 + size, 0, unique)
            return 16 + size
        error, body = self._answer(opcode, node, data)
        _OUT_HEADER.pack_into(out, 0, 16 + len(body), -error, unique)
        out[16 : 16 + len(body)] = body
        return 16 + len(body)

    def complete_parked(self, data: bytes) -> None:
        unique, (out,), completion = self.parked.pop()
        _OUT_HEADER.pack_into(out, 0, 16 + len(data), 0, unique)
        out[16 : 16 + len(data)] = data
        completion(16 + len(data))

    def drain(self) -> None:
        pass

    def reset(self) -> None:
        self.resets += 1

    def _answer(self, opcode: int, node: int, data: memoryview) -> tuple[int, bytes]:
        if opcode == INIT:
            flags = 0x29  # ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES
            flags |= 1 << 22  # MAX_PAGES
            return 0, _INIT_OUT.pack(7, 38, 1 << 20, flags, 16, 12, 1 << 20, 1, 256, 0, 0, 0, 0)
        if opcode == GETATTR:
            return 0, struct.pack("<QII", 0, 0, 0) + self._attr(node)
        if opcode == LOOKUP:
            return self._lookup(bytes(data[40:-1]))
        if opcode in (OPEN, OPENDIR):
            return 0, struct.pack("<QII", 1, 1, 0)  # FOPEN_DIRECT_IO
        if opcode == WRITE:
            (size,) = struct.unpack_from("<I", data, 56)
            self.written += data[80:]
            return 0, struct.pack("<II", size, 0)
        if opcode in (FLUSH, RELEASE):
            return 0, b""
        return ENOSYS, b""

    def _lookup(self, name: bytes) -> tuple[int, bytes]:
        if name == b"file":
            return 0, struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + self._attr(2)
        if name == b"die":
            raise ValueError("a bug of the server")
        if name == b"garbage":
            return -12345, b""
        if name == b"block":
            self.blocked.set()
            self.gate.wait(60)
        return ENOENT, b""

    def _attr(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o666
        size = 0 if node == 1 else self.SIZE
        owner = os.getuid(), os.getgid()
        return _ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, *owner, 0, 4096, 0)


class MountDaemon:
    """A `dentry mount` process, and the mount that it serves. To be used in a `with`.

    What goes wrong in between, the mount is gone afterwards and nobody hangs.
    """

    def __init__(self, mountpoint: Path, *arguments: str | Path) -> None:
        self.mountpoint = mountpoint
        # pytest's own standard error need not be a file.
        with tempfile.TemporaryFile() as log:
            self._log = os.dup(log.fileno())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", "mount", *arguments, mountpoint],
            stderr=self._log,
        )

    def __enter__(self) -> MountDaemon:
        while not self.mount_fields():
            if self.process.poll() is not None:
                raise AssertionError(f"no mount: {self.log()}")
            time.sleep(0.01)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None and self.process.poll() is None:
                assert self.stop() == 0, self.log()
        finally:
            self.process.kill()
            self.process.wait()
            if self.mount_fields():
                subprocess.run(["umount", "-l", self.mountpoint], check=False)
            os.close(self._log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the daemon by a signal and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def mount_fields(self) -> list[str]:
        """The fields of our line of mountinfo, or nothing."""
        return mount_fields(self.mountpoint)

    def log(self) -> str:
        """What the daemon has written to standard error."""
        return os.pread(self._log, 1 << 20, 0).decode()


def mount_fields(mountpoint: Path) -> list[str]:
    """The fields of the topmost mount at `mountpoint` in mountinfo, or nothing."""
    found: list[str] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mountpoint):
            found = fields
    return found


@pytest.fixture
def mount_daemon() -> type[MountDaemon]:
    return MountDaemon


@pytest.fixture(scope="module", params=["tmpfs", "passthrough"])
def tree_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A mount of a tmpfs, and one of a passthrough, with devices, suid and other users let in."""
    # Below directories that every user may pass, which pytest's own are not.
    mountpoint = Path(tempfile.mkdtemp(prefix="dentry-mount-"))
    options = ["-o", "dev,suid,allow_other,default_permissions"]
    if request.param == "tmpfs":
        options += ["--mount", "type=tmpfs,dst=/,size=8g"]
    else:
        shared = tmp_path_factory.mktemp("shared")
        shared.chmod(0o755)
        options += ["--shared-dir", str(shared)]
    with MountDaemon(mountpoint, *options):
        yield mountpoint
    mountpoint.rmdir()


@pytest.fixture
def place(tree_mount: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh directory in the mount."""
    directory = tree_mount / tmp_path.name
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def one_file() -> OneFileServer:
    return OneFileServer()
