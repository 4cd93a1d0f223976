"""``python -m benchmarks.guest``: what guests get from dentry, and from its peers.

Every daemon has a guest of its own, all at the same time, and a row alternates between them, so
that what else the machine does meets all alike. The programs and the source tree are in the
initramfs; the daemons only serve what is measured. fio reads and writes with O_DIRECT: what it asks
for, a daemon is asked for. Before find and tar the guest forgets what it knows.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.daemons import C_VIRTIOFSD, run_time, stop, two_cpus
from benchmarks.guest_rows import ROWS, Row, Session, guest_files, source_tree
from harness.guest import Guest, GuestConfig, GuestError, GuestUnavailable
from harness.guest.newer import Newer, find_newer

_MEMORY = 512 << 20
_START_SECONDS = 60.0
_DENTRY = (sys.executable, "-m", "harness.cli")
# As dentry and both virtiofsds spell them.
_OPTIONS = ("--shared-dir", "SHARE", "--cache", "auto", "--sandbox", "chroot")


class Served:
    """A daemon and the guest on it. ``rates`` are per second, ``costs`` µs of CPU, for a unit."""

    def __init__(self, name: str, pid: int, session: Session) -> None:
        self.name = name
        self._pid = pid
        self._session = session
        self.rates: list[float] = []
        self.costs: list[float] = []

    def measure(self, row: Row, seconds: int) -> None:
        """Run ``row`` for so long, and add what it came to."""
        before = run_time(self._pid)
        work = row.run(self._session, seconds)
        self.rates.append(work.amount / work.seconds)
        self.costs.append((run_time(self._pid) - before) / work.amount / 1000)


def commands(newer: Newer | None) -> dict[str, Sequence[str]]:
    """The daemons that can be had here, by name, dentry's first; SHARE stands for a directory."""
    found: dict[str, Sequence[str]] = {
        "dentry passthrough": (*_DENTRY, "virtiofsd", *_OPTIONS),
        "dentry tmpfs": (*_DENTRY, "serve", "--mount", "type=tmpfs,dst=/"),
    }
    if C_VIRTIOFSD is not None:
        found["C virtiofsd"] = (C_VIRTIOFSD, "-o", "source=SHARE,cache=auto,sandbox=chroot")
    if newer is not None:
        found["Rust virtiofsd"] = (str(newer.virtiofsd), *_OPTIONS)
    return found


@contextmanager
def serving(command: Sequence[str], path: Path) -> Iterator[tuple[int, socket.socket]]:
    """``command`` on a socket at ``path``: its process id, and a connection for a guest to own."""
    _, daemon_cpu = two_cpus()
    process = subprocess.Popen(
        [*command, f"--socket-path={path}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {daemon_cpu}),
    )
    with ExitStack() as stack:
        stack.callback(stop, process)
        yield process.pid, _connect(path, process)


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + _START_SECONDS
    connection = socket.socket(socket.AF_UNIX)
    while connection.connect_ex(str(path)):
        if process.poll() is not None or time.monotonic() > deadline:
            connection.close()
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip()
            raise RuntimeError(f"{process.args!r} does not serve: {said}")
        time.sleep(0.02)
    return connection


@contextmanager
def all_served(newer: Newer | None, guests: Newer | None) -> Iterator[list[Served]]:
    """All daemons, each with a booted guest that is QEMU and kernel of ``guests``, or the host's.

    Raises: GuestUnavailable; GuestError.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dentry-bench-")))
        # The kernel's tmpfs, so that all daemons store in memory.
        shares = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="dentry-bench-", dir="/dev/shm")
        )
        tree = source_tree(directory)
        files = guest_files(tree)
        client_cpu, daemon_cpu = two_cpus()
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {daemon_cpu} or {client_cpu})
        found = []
        for number, (name, words) in enumerate(commands(newer).items()):
            share = Path(shares, str(number))
            share.mkdir()
            command = [word.replace("SHARE", str(share)) for word in words]
            pid, connection = stack.enter_context(serving(command, directory / str(number)))
            config = GuestConfig(
                connection,
                memory=_MEMORY,
                cpus=min(4, len(os.sched_getaffinity(0))),
                qemu=guests.qemu if guests else None,
                kernel=guests.kernel if guests else None,
                files=files,
            )
            guest = stack.enter_context(Guest(config))
            found.append(Served(name, pid, Session(guest, tree)))
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guest", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds per row (default: 3)")
    parser.add_argument("--seconds", type=int, default=2, help="of fio in a round (default: 2)")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument(
        "--newer", action="store_true", help="guests of make newer's QEMU and kernel"
    )
    arguments = parser.parse_args()
    console = Console(width=150)
    try:
        newer = find_newer()
    except GuestUnavailable as error:
        if arguments.newer:
            sys.exit(str(error))
        newer = None
        console.print(f"without the Rust virtiofsd: {error}")
    try:
        with all_served(newer, newer if arguments.newer else None) as daemons:
            _print(daemons, arguments, console)
    except (GuestUnavailable, GuestError, RuntimeError) as error:
        sys.exit(str(error))


def _print(daemons: list[Served], arguments: argparse.Namespace, console: Console) -> None:
    ours = [daemon for daemon in daemons if daemon.name.startswith("dentry ")]
    peers = [daemon for daemon in daemons if daemon not in ours]
    table = Table(title="in a guest: units per second, and µs of the daemon's CPU time for each")
    for heading in "work", "jobs", "unit":
        table.add_column(heading, no_wrap=True)
    for daemon in daemons:
        table.add_column(daemon.name.replace(" ", "\n"), justify="right")
        table.add_column("µs\nCPU", justify="right")
    pairs = [(mine, theirs) for theirs in peers for mine in ours]
    for mine, theirs in pairs:
        heading = f"{mine.name.removeprefix('dentry ')}\nto {theirs.name.split()[0]}"
        table.add_column(heading, justify="right", style="bold")
    for row in ROWS:
        if arguments.only.lower() not in row.name:
            continue
        for daemon in daemons:
            daemon.rates, daemon.costs = [], []
        for _ in range(arguments.rounds):
            for daemon in daemons:
                daemon.measure(row, arguments.seconds)
        cells = [row.name, str(row.jobs), row.unit]
        for daemon in daemons:
            cells.append(f"{statistics.median(daemon.rates):,.0f}")
            cells.append(f"{statistics.median(daemon.costs):,.1f}")
        for mine, theirs in pairs:
            ratios = map(float.__truediv__, mine.rates, theirs.rates)
            cells.append(f"{statistics.median(ratios):.2f}")
        table.add_row(*cells)
        console.print(*cells, style="dim")
    console.print(table)


if __name__ == "__main__":
    main()
