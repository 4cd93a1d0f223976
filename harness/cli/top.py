"""`dentry top`: what a daemon does, as it does it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from harness.control.client import Disconnected, RemoteKernel
from harness.control.metrics import percentile
from harness.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

EXIT_DISCONNECTED: Final = 125
_SHARES: Final = (0.5, 0.9, 0.99)
_PATHS: Final = 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "top",
        help="watch the work of a daemon",
        description="Show the requests of a daemon's client by kind and second, how long they "
        "take, what waits, and what is kept; on a terminal in place, until Ctrl-C.",
    )
    parser.add_argument("--connect", metavar="SOCKET", required=True, help="its control socket")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="(default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="one interval, and end")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, a line an interval")
    form.add_argument(
        "--prometheus", action="store_true", help="in Prometheus' text format, at once, and end"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it until the user or the daemon ends it."""
    if not 0 < arguments.interval <= 3600:
        raise UsageError(f"--interval {arguments.interval:g}: 0.001 to 3600 seconds")
    with RemoteKernel(arguments.connect) as kernel:
        try:
            if arguments.prometheus:
                sys.stdout.write(kernel.metrics())
            elif arguments.json or arguments.once or not sys.stdout.isatty():
                _print(kernel, arguments)
            else:
                _live(kernel, arguments.interval)
        except Disconnected as error:
            print(f"dentry top: {error}", file=sys.stderr)
            return EXIT_DISCONNECTED
    return 0


def _intervals(kernel: RemoteKernel, seconds: float) -> Iterator[dict[str, Any]]:
    """What happened in each interval."""
    before = kernel.measure()
    while True:
        time.sleep(seconds)
        after = kernel.measure()
        yield difference(before, after)
        before = after


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Rates and latencies between two measurements, and how things stand at the second.

    Latencies are seconds; of a kind that was not measured there are none.
    """
    seconds = max(after["time"] - before["time"], 1e-9)
    requests = {}
    for opcode, total in after["requests"].items():
        count = total - before["requests"].get(opcode, 0)
        row: dict[str, Any] = {"total": total, "per_second": count / seconds}
        histogram = after["latency"].get(opcode)
        if histogram is not None:
            old = before["latency"].get(opcode, {"buckets": [0] * len(histogram["buckets"])})
            pairs = zip(histogram["buckets"], old["buckets"], strict=True)
            buckets = [new - earlier for new, earlier in pairs]
            for share in _SHARES:
                row[f"p{share * 100:g}"] = percentile(buckets, share)
        requests[opcode] = row
    earlier_paths = {row["path"]: row["requests"] for row in before["paths"]}
    paths = [
        {
            "path": row["path"],
            "per_second": max(row["requests"] - earlier_paths.get(row["path"], 0), 0) / seconds,
        }
        for row in after["paths"]
    ]
    order = sorted(requests.items(), key=lambda item: (-item[1]["per_second"], -item[1]["total"]))
    return {
        "seconds": seconds,
        "requests": dict(order),
        "paths": sorted(paths, key=lambda row: -row["per_second"]),
        **{key: after[key] for key in ("depth", "parked", "open", "nodes", "statistics")},
    }


def _print(kernel: RemoteKernel, arguments: argparse.Namespace) -> None:
    for found in _intervals(kernel, arguments.interval):
        print(json.dumps(found) if arguments.json else "\n".join(lines(found)), flush=True)
        if arguments.once:
            return


def _summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    statistics = found["statistics"]
    total = sum(row["per_second"] for row in found["requests"].values())
    depth = "unknown" if found["depth"] is None else str(found["depth"])
    unused, limit = statistics["dentries_unused"], statistics["dentries_unused_limit"]
    live = ", ".join(f"{count} {kind}" for kind, count in statistics["live"].items())
    return [
        ("requests", f"{total:.0f}/s, {depth} in the queue, {found['parked']} wait for an event"),
        ("open files", f"{found['open']['clients']} of clients, {found['open']['tasks']} of tasks"),
        ("caches", f"{found['nodes']} nodes, {unused} unused dentries of {limit} at most"),
        ("mounts", f"{statistics['mounts']} in {statistics['mount_namespaces']} namespaces, "
                   f"{statistics['superblocks']} superblocks, {statistics['tasks']} tasks"),
        ("live", live),
    ]  # fmt: skip


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [("REQUEST", "/S", "TOTAL", *(f"P{share * 100:g}" for share in _SHARES))]
    for opcode, row in found["requests"].items():
        times = [row.get(f"p{share * 100:g}") for share in _SHARES]
        shown = ("-" if t is None else _duration(t) for t in times)
        rows.append((opcode, f"{row['per_second']:.0f}", str(row["total"]), *shown))
    return rows


def _paths(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [("PATH", "/S")]
    rows += [(row["path"], f"{row['per_second']:.0f}") for row in found["paths"][:_PATHS]]
    # A name may hold what steers a terminal.
    return [(path if path.isprintable() else ascii(path)[1:-1], rate) for path, rate in rows]


def _duration(seconds: float) -> str:
    microseconds = seconds * 1e6
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1e3:.1f} ms" if microseconds < 1e6 else f"{seconds:.1f} s"


def lines(found: dict[str, Any]) -> list[str]:
    """An interval as text."""
    shown = [f"{name:10}  {text}" for name, text in _summary(found)]
    for rows in (_rows(found), _paths(found)):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        shown.append("")
        for first, *rest in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
            shown.append("  ".join([f"{first:{widths[0]}}", *cells]))
    return shown


def _live(kernel: RemoteKernel, seconds: float) -> None:
    # Only here: they take a third of a second to import.
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        before = kernel.measure()
        live.update(picture(difference(before, before)), refresh=True)
        for found in _intervals(kernel, seconds):
            live.update(picture(found), refresh=True)


def picture(found: dict[str, Any]) -> RenderableType:
    """An interval as rich draws it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary = Table.grid(padding=(0, 2))
    for name, text in _summary(found):
        summary.add_row(Text(name, style="bold cyan"), Text(text))
    tables = []
    for heading, *rows in (_rows(found), _paths(found)):
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for number, title in enumerate(heading):
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            busy = row[1] != "0"
            table.add_row(*map(Text, row), style="" if busy else "dim")
        tables.append(table)
    return Group(summary, Text(), *tables)
