"""Trees to make images of, processes to look for, and a monitor that maps an image."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fsimpl.ext2.builder import BuildOptions, HostSource, build
from harness.pmem import Mapping

UUID = uuid.UUID("6b1cb16a-3d4f-4f0b-9d4b-0b1f3a9d7c11")
OPTIONS = BuildOptions(uuid=UUID, label=b"pmem")
DEADLINE = 60.0

_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)


def make_tree(top: Path, files: int = 5) -> Path:
    """A tree with whole pages and tails, a hole, links and owners; returns `top`."""
    top.mkdir()
    for number in range(files):
        path = top / f"file{number}"
        path.write_bytes(bytes([number % 250 + 1]) * (4096 * (number % 3) + 100 * (number % 2 + 1)))
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number))
    big = top / "big"
    with big.open("wb") as file:
        file.write(os.urandom(300_000))
        file.seek(1 << 20)
        file.write(b"behind the hole")
    (top / "directory").mkdir(mode=0o750)
    os.link(big, top / "directory" / "link")
    (top / "symlink").symlink_to("directory/link")
    # Reading a symlink changes an access time that is not later than its other times.
    times = (time.time_ns() + 3600 * 10**9, 10**18)
    os.utime(top / "symlink", ns=times, follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o600)
    os.setxattr(big, "user.note", b"of an attribute")
    if os.geteuid() == 0:
        os.chown(big, 1234, 65533)
    return top


def plain_image(source: Path) -> bytes:
    """What the image of `source` is to be, made without any jail."""
    with build(HostSource(source), OPTIONS) as plan:
        return plan.read(0, plan.size)


class Region:
    """A monitor's memory region: metadata, with files mapped over it."""

    def __init__(
        self, metadata: int, size: int, mappings: Sequence[Mapping], fds: Sequence[int | None]
    ) -> None:
        self._memory = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.size = size
        self._map(0, size, metadata, 0)
        for mapping in mappings:
            fd = fds[mapping.file]
            if fd is not None:
                self._map(mapping.offset, mapping.length, fd, mapping.file_offset)

    def _map(self, offset: int, length: int, fd: int, start: int) -> None:
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        found = _libc.mmap(self.address + offset, length, mmap.PROT_READ, flags, fd, start)
        assert found == self.address + offset, os.strerror(ctypes.get_errno())

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def status(pid: int, key: str) -> str:
    """A line of /proc/PID/status, "" if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith(key + ":")), "")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def builder_of(pid: int) -> int:
    """The jailed process behind the waiter `pid`, once it is in its jail."""
    found: list[int] = []

    def jailed() -> bool:
        found[:] = [child for child in children(pid) if status(child, "Seccomp") == "2"]
        return bool(found)

    until(jailed, "no builder in a jail")
    return found[0]


def gone(pid: int) -> bool:
    return status(pid, "State")[:1] in ("", "Z")


def traces() -> list[str]:
    """Mounts and directories that a builder could have left behind."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line for line in lines if "dentry-pmem-" in line]
    return found + [str(path) for path in Path("/tmp").glob("dentry-pmem-*")]


@contextmanager
def closing(fds: Sequence[int | None]) -> Iterator[Sequence[int | None]]:
    try:
        yield fds
    finally:
        for fd in fds:
            if fd is not None:
                os.close(fd)
