"""``python -m benchmarks [--rounds N] [--requests N] [--only TEXT]``: the table."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.daemons import Daemon, all_daemons
from benchmarks.virtiofs import ROWS, Row, Session

DEPTHS = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per row (default: 5)")
    parser.add_argument("--requests", type=int, default=4000, help="requests per round")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    arguments = parser.parse_args()
    console = Console(width=160)
    # /dev/shm is the kernel's tmpfs, so that the peers store where dentry's tmpfs does: in memory.
    with (
        tempfile.TemporaryDirectory(prefix="dentry-bench-", dir="/dev/shm") as directory,
        all_daemons(Path(directory)) as daemons,
    ):
        table = Table(title="requests per second and daemon CPU time, one client, one run")
        table.add_column("request", no_wrap=True)
        table.add_column("depth", justify="right")
        for daemon in daemons:
            table.add_column(daemon.name.replace(" ", "\n"), justify="right")
            table.add_column("µs\nCPU", justify="right")
        ours = [daemon for daemon in daemons if daemon.name.startswith("dentry ")]
        pairs = [(mine, peer) for peer in daemons if peer not in ours for mine in ours]
        for mine, peer in pairs:
            heading = f"{mine.name.removeprefix('dentry ')}\nto {peer.name.split()[0]}"
            table.add_column(heading, justify="right", style="bold")
        bulk: list[tuple[str, int, list[float]]] = []
        sessions = {daemon: Session(daemon.client) for daemon in daemons}
        for row in ROWS:
            if arguments.only.lower() in row.name.lower():
                for depth in DEPTHS:
                    spent = _measure(
                        row, depth, daemons, sessions, pairs, arguments, table, console
                    )
                    if row.size >= 1 << 20:
                        bulk.append((f"{row.name}, depth {depth}", row.size, spent))
        console.print(table)
        for name, size, spent in bulk:
            rates = ", ".join(f"{cpu * 1000 / size:.3f}" for cpu in spent)
            console.print(f"{name}: {rates} ns CPU a byte, in the order of the columns")
        if not pairs:
            console.print(
                "No virtiofsd here (Debian: qemu-system-common; make newer), so no ratios."
            )


def _measure(
    row: Row,
    depth: int,
    daemons: list[Daemon],
    sessions: dict[Daemon, Session],
    pairs: list[tuple[Daemon, Daemon]],
    arguments: argparse.Namespace,
    table: Table,
    console: Console,
) -> list[float]:
    """Add the row to the table; returns the microseconds of CPU that each daemon spent."""
    rates: dict[Daemon, list[float]] = {daemon: [] for daemon in daemons}
    cpu: dict[Daemon, list[float]] = {daemon: [] for daemon in daemons}
    count = max(64, arguments.requests // row.weight) // depth * depth
    for number in range(arguments.rounds + 1):
        for daemon in daemons:
            before = daemon.cpu_ns()
            sent, seconds = row.run(sessions[daemon], count, depth)
            if number:  # the first round warms up
                rates[daemon].append(sent / seconds)
                cpu[daemon].append((daemon.cpu_ns() - before) / sent / 1000)
    cells = [row.name, str(depth)]
    spent = [statistics.median(cpu[daemon]) for daemon in daemons]
    for daemon, microseconds in zip(daemons, spent, strict=True):
        cells.append(f"{statistics.median(rates[daemon]):,.0f}")
        cells.append(f"{microseconds:.1f}")
    for mine, peer in pairs:
        ratios = map(float.__truediv__, rates[mine], rates[peer])
        cells.append(f"{statistics.median(ratios):.2f}")
    table.add_row(*cells)
    console.print(" ".join(cells), style="dim")
    return spent


if __name__ == "__main__":
    main()
