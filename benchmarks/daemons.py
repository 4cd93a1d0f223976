"""The daemons that are compared: dentry, and both virtiofsds where they can be had."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.rust_virtiofsd import rust_virtiofsd
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient

C_VIRTIOFSD = next(
    filter(os.path.exists, ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")), None
)


DEPTH = 32
# What Linux 6.1 offers in FUSE_INIT (flags, flags2); daemons grant large requests only on asking.
_LINUX_6_1_FLAGS = (0x7BFFFFFB, 0xB)
_MEMORY = 2 * DEPTH * ((1 << 20) + 4096) + (16 << 20)


def two_cpus() -> tuple[int, int]:
    """One CPU for the client, one for the daemons: where the scheduler puts both on the same one,
    it is the scheduler that is measured. The same one twice where there is only one.
    """
    cpus = sorted(_CPUS)
    return cpus[0], cpus[-1]


_CPUS = os.sched_getaffinity(0)


class Daemon:
    """One daemon with one connected client. ``cpu_ns`` is what all its threads have run for."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], client: FuseClient) -> None:
        self.name = name
        self.process = process
        self.client = client

    def cpu_ns(self) -> int:
        """``run_time`` of the daemon."""
        return run_time(self.process.pid)


def run_time(pid: int) -> int:
    """CPU time of a process and of the children it made, in nanoseconds."""
    return sum(_run_time(pid) for pid in _family(pid))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _run_time(pid: int) -> int:
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


@contextmanager
def running(name: str, command: Sequence[str], path: str) -> Iterator[Daemon]:
    """``command`` serving on the socket at ``path``, with a client on it that has sent INIT."""
    client_cpu, daemon_cpu = two_cpus()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {daemon_cpu}),
    )
    with ExitStack() as stack:
        stack.callback(stop, process)
        os.sched_setaffinity(0, {client_cpu})
        try:
            frontend = Frontend.connect(path, memory_size=_MEMORY)
        except OSError:
            process.kill()
            error = process.communicate()[1].decode(errors="replace").strip()
            raise RuntimeError(f"{' '.join(command)} does not serve: {error}") from None
        stack.enter_context(frontend)
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, depth=DEPTH, buffer_size=(1 << 20) + 4096)
        stack.callback(client.close)
        client.init(*_LINUX_6_1_FLAGS)
        yield Daemon(name, process, client)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, by SIGTERM first, and reap it."""
    process.terminate()
    try:
        process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@contextmanager
def all_daemons(directory: Path) -> Iterator[list[Daemon]]:
    """dentry on a tmpfs of its own, dentry passing a directory below ``directory`` through, and the
    virtiofsds on others there, each with a client.
    """
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dentry-bench-")))
        ours, theirs = directory / "dentry", directory / "virtiofsd"
        ours.mkdir()
        theirs.mkdir()
        dentry = [sys.executable, "-m", "harness.cli", "serve", "--socket-path"]
        places = [
            ("dentry tmpfs", [*dentry, "PATH", "--mount", "type=tmpfs,dst=/"]),
            ("dentry passthrough", [*dentry, "PATH", "--shared-dir", str(ours)]),
        ]
        if C_VIRTIOFSD is not None:
            peer = [C_VIRTIOFSD, "--socket-path=PATH", "-o", f"source={theirs}"]
            places.append(("C virtiofsd", [*peer, "-o", "cache=auto,sandbox=chroot"]))
        places += rust_virtiofsd(directory / "rust")
        daemons = []
        for number, (name, command) in enumerate(places):
            path = str(sockets / str(number))
            words = [word.replace("PATH", path) for word in command]
            daemons.append(stack.enter_context(running(name, words, path)))
        yield daemons
