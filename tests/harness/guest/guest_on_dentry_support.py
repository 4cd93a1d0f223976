"""A guest on trees of ours: how one is booted, and what its tests do in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness.cli.daemon import ForkedDaemon
from harness.cli.guest_tree import busybox_tree, host_directory
from harness.guest import Guest, GuestConfig
from harness.mountspec import parse_mount_spec

SHARED = "/tmp/passthrough"
TMPFS = "/tmp/tmpfs"
SOURCE = "/tmp/source"
SMALL = "/tmp/small"
SMALL_SIZE = 1 << 20

SOURCES = Path(unittest.__file__).parent
"""A source tree that nobody works on while it is compared."""

_USERLAND = "/host"
"""Where the host's root is, for programs that busybox lacks; /tmp and /dev in it are ours."""

_PYTHON = os.path.realpath(sys.executable)

_PREPARE = f"""
# A walk mounts what is mounted there in the tree, and only then a recursive bind has it.
ls -d /tmp/*/. >/dev/null &&
mount -o rbind /tmp {_USERLAND}/tmp &&
mount -o rbind /dev {_USERLAND}/dev &&
mount -t proc proc {_USERLAND}/proc
"""


class Place(NamedTuple):
    """A directory in a guest. `host` is the same directory as the host has it, if it does."""

    guest: Guest
    path: str
    host: Path | None

    def sh(self, script: str, *, status: int = 0, timeout: float = 60) -> str:
        """Run `script` in the directory by busybox, check its exit status, return its output."""
        return check(self.guest, script, cwd=self.path, status=status, timeout=timeout)

    def userland(self, script: str, *, status: int = 0, timeout: float = 60) -> str:
        """As `sh`, with the host's programs."""
        words = ("chroot", _USERLAND, "/bin/sh", "-c", f"cd {self.path} && {{\n{script}\n}}")
        return check(self.guest, words, status=status, timeout=timeout)

    def python(self, program: str, *, timeout: float = 60) -> str:
        """Run `program` in the directory with this Python, in the guest; return its output."""
        text = f"import os\nos.chdir({self.path!r})\n{program}"
        words = ("chroot", _USERLAND, _PYTHON, "-I", "-S", "-c", text)
        return check(self.guest, words, timeout=timeout)


def check(
    guest: Guest,
    command: str | tuple[str, ...],
    *,
    cwd: str = "/",
    status: int = 0,
    timeout: float = 60,
) -> str:
    """Run `command`, and return its output if it exits with `status` and, if that is 0, quietly."""
    done = guest.run(command, cwd=cwd, timeout=timeout)
    message = f"{command}: status {done.status}\n{done.stderr.decode()}\n{done.stdout.decode()}"
    assert done.status == status, message
    assert status or not done.stderr, message
    return done.stdout.decode()


@contextmanager
def booted(shared: Path, source: Path) -> Iterator[Guest]:
    """Boot a guest with busybox on a tmpfs, host directory `shared`, and `source` read-only."""
    specs = [
        host_directory("/", _USERLAND),
        parse_mount_spec("type=tmpfs,dst=/tmp,mode=1777"),
        parse_mount_spec(f"type=tmpfs,dst={TMPFS}"),
        parse_mount_spec(f"type=tmpfs,dst={SMALL},size={SMALL_SIZE}"),
        parse_mount_spec(f"type=passthrough,src={shared},dst={SHARED}"),
        host_directory(str(source), SOURCE),
    ]
    with (
        ForkedDaemon(partial(busybox_tree, specs)) as daemon,
        Guest(GuestConfig(daemon.socket)) as guest,
    ):
        check(guest, _PREPARE)
        yield guest


@contextmanager
def serving(path: Path, *mounts: str, queues: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Run `dentry serve` at socket `path`, and check that it ends well and had nothing to say."""
    words = [sys.executable, "-m", "harness.cli", "serve", "--socket-path", str(path)]
    words += ("--num-queues", str(queues))
    for spec in mounts:
        words += ("--mount", spec)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            _wait_for(path)
            yield daemon
        finally:
            daemon.terminate()
            _, messages = daemon.communicate(timeout=60)
    assert (daemon.returncode, messages) == (0, "")


def _wait_for(path: Path) -> None:
    """Return when something listens at `path`: a frontend that has nothing to say tries it."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket(socket.AF_UNIX) as frontend:
            if frontend.connect_ex(str(path)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens at {path}"
        time.sleep(0.02)


def make_source_tree(directory: Path) -> Path:
    """Make a tree of everything that `cp -a` has to preserve."""
    subprocess.run(["cp", "-a", SOURCES, directory], check=True)
    (directory / "absolute").symlink_to("/nonexistent/target")
    (directory / "relative").symlink_to("case.py")
    (directory / "relative2").hardlink_to(directory / "case.py")
    (directory / "empty").mkdir()
    (directory / "closed").mkdir(0o700)
    (directory / "closed/setuid").touch()
    os.chown(directory / "closed/setuid", 1000, 1001)
    os.chmod(directory / "closed/setuid", 0o4755)
    (directory / "a name\nof two lines \u00e4").write_bytes(bytes(range(256)))
    os.mkfifo(directory / "fifo")
    os.utime(directory / "empty", ns=(1, 10**18 + 123456789))
    with open(directory / "sparse", "wb") as file:
        file.seek(16 << 20)
        file.write(b"end")
    return directory
