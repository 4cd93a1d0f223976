"""A daemon in a process of its own, as its users start it, and a client of it."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ENTRY_SIZE, INIT, LOOKUP, ROOT, FuseClient

COMMAND = (sys.executable, "-m", "harness.cli")
OPEN = ("--sandbox", "none", "--seccomp", "none")


class Daemon:
    """A daemon that runs; `stderr` is there after its end."""

    def __init__(self, process: subprocess.Popen[str], socket_path: Path) -> None:
        self.process = process
        self.socket_path = socket_path
        self.stderr = ""

    def end(self) -> int:
        """Wait for the end; return the status."""
        _, self.stderr = self.process.communicate(timeout=60)
        return self.process.returncode


@contextmanager
def running(
    *words: str | Path,
    socket_path: Path = Path(),
    pass_fds: tuple[int, ...] = (),
    command: Sequence[str | Path] = COMMAND,
    **keywords: Any,
) -> Iterator[Daemon]:
    """Start a daemon with these words; kill it at the end, if it has not ended."""
    process = subprocess.Popen(
        [*command, *words], stderr=subprocess.PIPE, text=True, pass_fds=pass_fds, **keywords
    )
    daemon = Daemon(process, socket_path)
    try:
        yield daemon
    finally:
        if process.poll() is None:
            process.kill()
        if not daemon.stderr:
            process.communicate(timeout=60)


@contextmanager
def virtiofsd(directory: Path, *words: str, sandbox: tuple[str, ...] = OPEN) -> Iterator[Daemon]:
    """A virtiofsd for `directory/share` that listens at `directory/sock`."""
    path = directory / "sock"
    share = directory / "share"
    base = ("virtiofsd", "--socket-path", path, "--shared-dir", share, *sandbox)
    with running(*base, *words, socket_path=path) as daemon:
        yield daemon


@contextmanager
def client_of(place: Path | socket.socket) -> Iterator[FuseClient]:
    """A session with a daemon, which sees the frontend go at the end."""
    frontend = Frontend(place, timeout=60) if isinstance(place, socket.socket) else None
    with frontend or Frontend.connect(place) as frontend:  # type: ignore[arg-type]
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, depth=4, timeout=60)
        client.init()
        yield client
        client.close()


def granted(client: FuseClient) -> int:
    """The INIT flags that a new session gets, of all that there are."""
    offered = (1 << 42) - 1
    words = struct.pack("<IIIII44x", 7, 38, 1 << 20, offered & 0xFFFFFFFF, offered >> 32)
    error, reply = client.request(INIT, 0, words, 64)
    assert error == 0
    low, high = struct.unpack_from("<12xI16xI", reply)
    return int(low | high << 32)


def content(client: FuseClient, name: bytes) -> bytes:
    """What a file in the root holds."""
    entry = client.lookup(ROOT, name)
    handle = client.open(entry.nodeid)
    data = client.read(entry.nodeid, handle, 0, 4096)
    client.release(entry.nodeid, handle)
    return data


def timeouts(client: FuseClient, name: bytes) -> tuple[int, int]:
    """Seconds that the name and its attributes may be kept."""
    error, reply = client.request(LOOKUP, ROOT, name + b"\0", ENTRY_SIZE)
    assert error == 0
    _, _, entry, attr, _, _ = struct.unpack_from("<QQQQII", reply)
    return entry, attr


def refusal(*words: str | Path, **keywords: Any) -> str:
    """What a command says that ends at once with status 2, on one line."""
    result = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL, **keywords,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def as_service(listener: socket.socket, *words: str | Path) -> list[str]:
    """A command that passes `listener`, which it inherits, on as systemd does."""
    script = (
        f"import os, sys; os.dup2({listener.fileno()}, 3); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", script, *COMMAND, *map(str, words)]
