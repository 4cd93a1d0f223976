"""What a daemon does, in numbers: as data, and in the text format of Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from harness.fuse.request import Header
from harness.inspect.objects import statistics
from harness.wire import PENDING
from vfs.dpath import prepend_path
from vfs.task import Task

if TYPE_CHECKING:
    from harness.fuse.server import FuseServer

BUCKETS: Final = 25
"""Of a histogram: the i-th counts what took less than 2**i microseconds, the last one all else."""
LEASE_SECONDS: Final = 60
_PATHS_SHOWN: Final = 20
_NODES_MAX: Final = 4096


class Meter:
    """Latencies by opcode, and how often each node was named; measured from the first question on,
    until nobody has asked for `LEASE_SECONDS`. A GETATTR of 1.5 to 2.2 µs then takes 1.4 µs more.
    """

    def __init__(self, server: FuseServer) -> None:
        """Borrows `server`."""
        # A shell on a VFS of its own has no server, and need not wait for this.
        from harness.fuse.opcodes import NAMES

        self._server = server
        self._opcodes = NAMES
        self._until = 0.0
        self._watching = False
        self._session = -1
        self.histograms: dict[int, list[int]] = {}
        self.sums: dict[int, int] = {}
        self.nodes: dict[int, int] = {}

    def ask(self) -> None:
        """Measure on. Needs the VFS lock."""
        self._until = time.monotonic() + LEASE_SECONDS
        if not self._watching:
            self._watching = True
            self._server.observe(self._on_request)

    def close(self) -> None:
        """Measure no more."""
        with self._server.lock:
            if self._watching:
                self._watching = False
                self._server.unobserve(self._on_request)

    def _on_request(
        self, server: FuseServer, header: Header, body: bytes, result: int, took: int
    ) -> None:
        if result == PENDING:
            return
        opcode = header[1] if header[1] in self._opcodes else 0
        histogram = self.histograms.get(opcode)
        if histogram is None:
            histogram = self.histograms[opcode] = [0] * BUCKETS
            self.sums[opcode] = 0
        histogram[min((took // 1000).bit_length(), BUCKETS - 1)] += 1
        self.sums[opcode] += took
        nodes, nodeid = self.nodes, header[3]
        count = nodes.get(nodeid)
        if count is None:
            self._make_room()
            nodes[nodeid] = 1
        else:
            nodes[nodeid] = count + 1
        if time.monotonic() > self._until:
            self.close()

    def _make_room(self) -> None:
        if len(self.nodes) >= _NODES_MAX:
            busiest = sorted(self.nodes.items(), key=lambda item: -item[1])
            self.nodes.clear()
            self.nodes.update(busiest[: _NODES_MAX // 2])

    def latencies(self) -> dict[str, dict[str, Any]]:
        """Histograms and sums of seconds, by opcode. Needs the VFS lock."""
        return {
            self._opcodes.get(opcode, "unknown"): {
                "buckets": list(buckets),
                "seconds": self.sums[opcode] / 1e9,
            }
            for opcode, buckets in self.histograms.items()
        }

    def paths(self) -> list[dict[str, Any]]:
        """The paths that requests named most since measuring began. Needs the VFS lock."""
        table = self._server.nodes
        if table.generation != self._session:
            # Another session, in which the numbers mean something else.
            self._session = table.generation
            self.nodes = {nodeid: n for nodeid, n in self.nodes.items() if nodeid in table.by_id}
        rows: list[dict[str, Any]] = []
        for nodeid, count in sorted(self.nodes.items(), key=lambda item: -item[1]):
            node = table.by_id.get(nodeid)
            if node is not None and table.root is not None:
                path, _ = prepend_path(node, table.root)
                rows.append({"path": os.fsdecode(path), "requests": count})
                if len(rows) == _PATHS_SHOWN:
                    break
        return rows


class Metrics:
    """The numbers of one VFS, and of its server if it has one."""

    def __init__(
        self,
        first: Task,
        server: FuseServer | None = None,
        depth: Callable[[], int | None] | None = None,
    ) -> None:
        """All are borrowed. `depth` tells how many requests wait for the server's thread."""
        self._first = first
        self._server = server
        self._depth = depth
        self._meter = None if server is None else Meter(server)

    def close(self) -> None:
        """Measure no more."""
        if self._meter is not None:
            self._meter.close()

    def measure(self) -> dict[str, Any]:
        """The numbers as data; latencies are measured from the first call on."""
        vfs = self._first.vfs
        depth = None if self._depth is None else self._depth()
        with self._first.lock:
            # Tasks may share a table.
            tables = {id(task.files): len(task.files.numbers()) for task in vfs.tasks}
            found: dict[str, Any] = {
                "time": time.monotonic(),
                "requests": {},
                "latency": {},
                "depth": depth,
                "parked": 0,
                "open": {"tasks": sum(tables.values()), "clients": 0},
                "nodes": 0,
                "paths": [],
                "statistics": statistics(self._first),
            }
            server, meter = self._server, self._meter
            if server is not None and meter is not None:
                meter.ask()
                found["requests"] = server.statistics()
                found["parked"] = len(server.parking)
                found["open"]["clients"] = len(server.handles.files) + len(
                    server.handles.directories
                )
                found["nodes"] = len(server.nodes.by_id)
                found["paths"] = meter.paths()
                found["latency"] = meter.latencies()
        return found


def percentile(buckets: Sequence[int], share: float) -> float | None:
    """Seconds in which this share of what a histogram counts was done; None of an empty one.

    Within a bucket of 2**(i-1) to 2**i microseconds what it counts is taken to be even.
    """
    wanted = share * sum(buckets)
    if not wanted:
        return None
    seen = 0
    for index, count in enumerate(buckets):
        if count and seen + count >= wanted:
            low = (1 << index) / 2 if index else 0.0
            return (low + ((1 << index) - low) * (wanted - seen) / count) / 1e6
        seen += count
    raise AssertionError("a share of more than all")


def prometheus(found: dict[str, Any]) -> str:
    """`Metrics.measure` in the text format of Prometheus, version 0.0.4."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield from _family("requests_total", "counter", "FUSE requests that were served.",
                       "opcode", found["requests"])  # fmt: skip
    name = "dentry_request_seconds"
    yield f"# HELP {name} Time in a request's handler, while somebody asks for metrics."
    yield f"# TYPE {name} histogram"
    for opcode, row in found["latency"].items():
        total = 0
        for index, count in enumerate(row["buckets"]):
            total += count
            bound = "+Inf" if index == BUCKETS - 1 else f"{(1 << index) / 1e6:g}"
            yield f'{name}_bucket{{opcode="{opcode}",le="{bound}"}} {total}'
        yield f'{name}_sum{{opcode="{opcode}"}} {row["seconds"]:.9f}'
        yield f'{name}_count{{opcode="{opcode}"}} {total}'
    if found["depth"] is not None:
        yield from _gauge("queue_depth", "Requests that the transport has for us.", found["depth"])
    yield from _gauge("parked_requests", "Requests that wait for an event.", found["parked"])
    yield from _gauge("nodes", "Inodes that the client knows.", found["nodes"])
    yield from _family("open_files", "gauge", "Open files, by whose they are.",
                       "owner", found["open"])  # fmt: skip
    statistics = found["statistics"]
    yield from _family("live_objects", "gauge", "Counted objects that live.",
                       "kind", statistics["live"])  # fmt: skip
    for key, text in _GAUGES.items():
        yield from _gauge(key, text, statistics[key])


_GAUGES: Final = {
    "dentries_unused": "Cached dentries that nobody uses.",
    "dentries_unused_limit": "How many of those are kept.",
    "locked_inodes": "Inodes with advisory locks.",
    "superblocks": "Mounted filesystems.",
    "mount_namespaces": "Mount namespaces.",
    "mounts": "Mounts in all namespaces.",
    "tasks": "Tasks.",
    "devices": "Devices with a driver here.",
}


def _gauge(name: str, text: str, value: int) -> Iterator[str]:
    yield f"# HELP dentry_{name} {text}"
    yield f"# TYPE dentry_{name} gauge"
    yield f"dentry_{name} {value}"


def _family(name: str, kind: str, text: str, label: str, values: dict[str, int]) -> Iterator[str]:
    yield f"# HELP dentry_{name} {text}"
    yield f"# TYPE dentry_{name} {kind}"
    for key, value in values.items():
        yield f'dentry_{name}{{{label}="{key}"}} {value}'
