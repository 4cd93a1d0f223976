"""Listening to a VFS: what is told, to whom, and that nobody waits for a listener."""

from __future__ import annotations

import errno
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.control.client import RemoteKernel
from harness.control.kernel import Kernel, LocalKernel, Watch
from harness.control.metrics import Meter, percentile
from harness.control.server import ControlServer
from harness.control.trace import QUEUE_BYTES, Listening, Trace
from harness.fuse import abi as fuse_abi
from harness.fuse.server import FuseServer
from harness.virtiofs import listen
from vfs import VirtualFilesystem, abi
from vfs.mount import VirtualDentry
from vfs.task import Task

LOOKUP, GETATTR, INIT = 1, 3, 26


class Mounted:
    """A FuseServer with a session, to which requests are handed as a transport would."""

    def __init__(self, vfs: VirtualFilesystem, task: Task) -> None:
        with vfs.lock:
            self.root = VirtualDentry(task.fs.root.mount, task.fs.root.dentry).get()
        self.server = FuseServer(vfs, self.root)
        self._unique = 0
        self.request(INIT, 0, struct.pack("<IIII48x", 7, 38, 1 << 20, 0))

    def request(self, opcode: int, node: int, body: bytes = b"") -> int:
        """Returns the reply's error."""
        self._unique += 1
        size = fuse_abi.IN_HEADER_SIZE + len(body)
        head = fuse_abi.IN_HEADER.pack(size, opcode, self._unique, node, 0, 0, 77, 0, 0)
        reply = memoryview(bytearray(4096))
        self.server.handle([memoryview(head + body)], [reply], lambda _: None)
        return -struct.unpack_from("<Ii", reply)[1]

    def close(self) -> None:
        self.server.reset()
        with self.server.lock:
            self.root.put()


@pytest.fixture
def mounted(vfs: VirtualFilesystem, task: Task) -> Iterator[Mounted]:
    found = Mounted(vfs, task)
    yield found
    found.close()


@pytest.fixture
def path(tmp_path: Path, task: Task, mounted: Mounted) -> Iterator[str]:
    place = str(tmp_path / "control")
    watch = Watch(task, mounted.server, lambda: 3)
    with ControlServer(listen(place), lambda: LocalKernel(task.vfs, task, watch)):
        yield place
    watch.close()


@pytest.fixture(params=["local", "remote"])
def kernel(
    request: pytest.FixtureRequest, path: str, task: Task, mounted: Mounted
) -> Iterator[Kernel]:
    if request.param == "remote":
        with RemoteKernel(path) as remote:
            yield remote
        return
    watch = Watch(task, mounted.server, lambda: 3)
    with LocalKernel(task.vfs, task, watch) as local:
        yield local
    watch.close()


def next_of(listening: Listening) -> dict[str, Any]:
    event = listening.get(60)
    assert event is not None
    return event


def test_system_calls_are_told_with_arguments_and_results(kernel: Kernel) -> None:
    mine = kernel.create_task()
    with kernel.subscribe(["syscalls"]) as listening:
        fd = kernel.call(mine, "open", "/f", abi.O_RDWR | abi.O_CREAT, 0o600)
        kernel.call(mine, "write", fd, b"\0data")
        with pytest.raises(FileNotFoundError):
            kernel.call(mine, "stat", b"/missing")
        opened, written, failed = (next_of(listening) for _ in range(3))
    assert (opened["name"], opened["pid"], opened["result"]) == ("open", mine, str(fd))
    assert opened["arguments"] == ["/f", abi.O_RDWR | abi.O_CREAT, 0o600]
    assert written["arguments"] == [fd, b"\0data"] and written["seconds"] > 0
    assert (failed["errno"], failed["arguments"]) == (errno.ENOENT, [b"/missing"])
    assert failed["result"] == "-1 ENOENT (No such file or directory)"


def test_requests_are_told_while_somebody_listens(kernel: Kernel, mounted: Mounted) -> None:
    kernel.call(kernel.create_task(), "mkdir", "/d", 0o755)
    mounted.request(GETATTR, 1, bytes(16))
    with kernel.subscribe(["fuse"]) as listening:
        assert mounted.request(LOOKUP, 1, b"d\0") == 0
        assert mounted.request(LOOKUP, 1, b"none\0") in (0, errno.ENOENT)
        assert mounted.request(GETATTR, 4711, bytes(16)) == errno.ESTALE
        found = [next_of(listening) for _ in range(3)]
    assert [event["name"] for event in found] == ["LOOKUP", "LOOKUP", "GETATTR"]
    assert 'node=1 "d" uid=0' in found[0]["text"] and found[0]["result"].startswith("ok ")
    assert (found[2]["errno"], found[2]["node"], found[2]["pid"]) == (errno.ESTALE, 4711, 77)
    assert mounted.request(GETATTR, 1, bytes(16)) == 0
    assert listening.get(0) is None


def test_a_new_session_is_watched_as_the_old_one_was(kernel: Kernel, mounted: Mounted) -> None:
    with kernel.subscribe(["fuse"]) as listening:
        mounted.server.reset()
        assert mounted.request(GETATTR, 1, bytes(16)) != 0
        assert mounted.request(INIT, 0, struct.pack("<IIII48x", 7, 38, 1 << 20, 0)) == 0
        assert mounted.request(GETATTR, 1, bytes(16)) == 0
        names = [next_of(listening)["name"] for _ in range(3)]
    assert names == ["GETATTR", "INIT", "GETATTR"]


def test_a_server_that_nobody_watches_has_its_plain_rows(vfs: VirtualFilesystem, task: Task,
                                                         mounted: Mounted) -> None:  # fmt: skip
    plain = list(mounted.server._rows)
    trace = Trace(vfs, mounted.server)
    with trace.subscribe(["fuse"]), trace.subscribe(["fuse", "vfs"]):
        assert mounted.server._rows != plain
    assert mounted.server._rows == plain
    assert not vfs._mount_watchers and not vfs._exit_watchers


def test_mounts_and_ends_of_tasks_are_told(kernel: Kernel) -> None:
    mine, other = kernel.create_task(), kernel.create_task()
    kernel.call(mine, "mkdir", "/m", 0o755)
    with kernel.subscribe(["vfs"]) as listening:
        kernel.call(mine, "mount", "none", "/m", "tmpfs", 0, None)
        kernel.call(mine, "umount2", "/m", 0)
        kernel.exit_task(other)
        made, gone, ended = (next_of(listening) for _ in range(3))
    assert (made["name"], made["path"], made["type"], made["pid"]) == ("mount", "/m", "tmpfs", mine)
    assert (gone["name"], gone["path"]) == ("umount", "/m")
    assert (ended["name"], ended["pid"]) == ("exit", other)


def test_a_filter_lets_through_what_it_names(kernel: Kernel) -> None:
    mine, other = kernel.create_task(), kernel.create_task()
    with (
        kernel.subscribe(["syscalls"], names=["mk*", "rmdir"]) as by_name,
        kernel.subscribe(["syscalls"], pid=other) as by_pid,
        kernel.subscribe(failed=True) as failures,
    ):
        for task in (mine, other):
            kernel.call(task, "getcwd")
            kernel.call(task, "mkdir", f"/{task}", 0o755)
        with pytest.raises(FileExistsError):
            kernel.call(mine, "mkdir", f"/{mine}", 0o755)
        kernel.call(mine, "rmdir", f"/{mine}")
    listened = [[], [], []]  # type: list[list[tuple[str, int]]]
    for found, listening in zip(listened, (by_name, by_pid, failures), strict=True):
        while event := listening.get(0):
            found.append((event["name"], event["pid"]))
    assert listened[0] == [("mkdir", mine), ("mkdir", other), ("mkdir", mine), ("rmdir", mine)]
    assert listened[1] == [("getcwd", other), ("mkdir", other)]
    assert listened[2] == [("mkdir", mine)]
    with pytest.raises(OSError) as caught:
        kernel.subscribe(["nothing"])
    assert caught.value.errno == errno.EINVAL


def test_clients_see_what_others_do(path: str) -> None:
    with RemoteKernel(path) as one, RemoteKernel(path) as two:
        task = two.create_task()
        with one.subscribe(["syscalls"]) as listening:
            two.call(task, "getcwd")
            assert next_of(listening)["pid"] == task


def test_what_does_not_fit_is_counted_and_told_in_its_place(task: Task) -> None:
    with LocalKernel(task.vfs, task) as kernel:
        mine = kernel.create_task()
        fd = kernel.call(mine, "open", "/f", abi.O_RDWR | abi.O_CREAT, 0o600)
        with kernel.subscribe(["syscalls"]) as listening:
            size = QUEUE_BYTES // 4
            for _ in range(8):
                kernel.call(mine, "pwrite64", fd, bytes(size), 0)
            kept = [next_of(listening)]
            kernel.call(mine, "getcwd")
        while event := listening.get(0):
            kept.append(event)
    names = [event.get("lost", event.get("name")) for event in kept]
    assert names == ["pwrite64"] * 3 + [5, "getcwd"]


def test_a_listener_that_does_not_read_slows_nobody_and_learns_what_it_missed(
    path: str, mounted: Mounted
) -> None:
    with socket.socket(socket.AF_UNIX) as lazy, RemoteKernel(path) as kernel:
        lazy.settimeout(60)
        lazy.connect(path)
        lines = lazy.makefile("rb")
        lines.readline()
        lazy.sendall(b'{"id": 1, "op": "subscribe", "topics": ["fuse"]}\n')
        number = json.loads(lines.readline())["value"]
        for _ in range(QUEUE_BYTES // 512 + 8000):
            assert mounted.request(GETATTR, 1, bytes(16)) == 0
        assert kernel.call(kernel.create_task(), "getcwd") == b"/"
        seen = lost = 0
        while not lost:
            event = json.loads(lines.readline())
            assert event["event"] == number
            lost = event.get("lost", 0)
            seen += 1
            if seen > QUEUE_BYTES // 512 + 8000:
                raise AssertionError("nothing was lost")
        lines.close()


def test_a_listener_that_dies_is_forgotten(path: str, vfs: VirtualFilesystem) -> None:
    kernel = RemoteKernel(path)
    kernel.subscribe(["vfs"])
    assert vfs._mount_watchers
    kernel.close()
    with RemoteKernel(path) as other:
        task = other.create_task()
        for _ in range(10_000):
            if not vfs._mount_watchers:
                break
            other.call(task, "getcwd")
        assert not vfs._mount_watchers


def test_requests_and_listening_share_a_connection(path: str) -> None:
    def work() -> None:
        for _ in range(50):
            kernel.call(task, "getcwd")

    with RemoteKernel(path) as kernel:
        task = kernel.create_task()
        with kernel.subscribe(["syscalls"]) as listening:
            thread = threading.Thread(target=work)
            thread.start()
            assert [next_of(listening)["name"] for _ in range(50)] == ["getcwd"] * 50
            thread.join()


# Metrics


def test_metrics_count_requests_files_and_objects(kernel: Kernel, mounted: Mounted) -> None:
    mine = kernel.create_task()
    kernel.call(mine, "mkdir", "/d", 0o755)
    fd = kernel.call(mine, "open", "/d/f", abi.O_RDWR | abi.O_CREAT, 0o600)
    before = kernel.measure()
    mounted.request(LOOKUP, 1, b"d\0")
    for _ in range(9):
        mounted.request(GETATTR, 2, bytes(16))
    found = kernel.measure()
    assert found["requests"]["GETATTR"] - before["requests"].get("GETATTR", 0) == 9
    assert sum(found["latency"]["GETATTR"]["buckets"]) == 9
    assert found["latency"]["GETATTR"]["seconds"] > 0
    assert found["paths"][0] == {"path": "/d", "requests": 9}
    assert (found["depth"], found["parked"], found["nodes"]) == (3, 0, 2)
    assert found["open"]["tasks"] == 1
    kernel.call(mine, "close", fd)
    assert kernel.measure()["open"]["tasks"] == 0
    assert found["statistics"]["live"]["Dentry"] >= 3


def test_metrics_are_in_prometheus_text_format(kernel: Kernel, mounted: Mounted) -> None:
    kernel.measure()
    mounted.request(GETATTR, 1, bytes(16))
    lines = kernel.metrics().splitlines()
    kinds = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    samples = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
            family = name.partition("{")[0]
            for suffix in ("_bucket", "_sum", "_count"):
                family = family.removesuffix(suffix) if family not in kinds else family
            assert family in kinds, line
    assert samples['dentry_requests_total{opcode="GETATTR"}'] == 1
    assert samples['dentry_request_seconds_bucket{opcode="GETATTR",le="+Inf"}'] == 1
    assert samples['dentry_request_seconds_count{opcode="GETATTR"}'] == 1
    assert kinds["dentry_request_seconds"] == "histogram" and samples["dentry_queue_depth"] == 3


def test_what_nobody_asks_for_is_not_measured_for_long(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.control.metrics.LEASE_SECONDS", -1)
    plain = list(mounted.server._rows)
    meter = Meter(mounted.server)
    with mounted.server.lock:
        meter.ask()
    assert mounted.server._rows != plain
    mounted.request(GETATTR, 1, bytes(16))
    assert mounted.server._rows == plain
    assert sum(meter.histograms[GETATTR]) == 1


@pytest.mark.parametrize(
    ("buckets", "share", "low", "high"),
    [
        ([10, 0, 0], 0.5, 0.4e-6, 0.6e-6),
        ([0, 10, 0], 1.0, 2e-6, 2e-6),
        ([50, 0, 0, 50], 0.99, 4e-6, 8e-6),
        ([1] * 25, 1.0, 10, 17),
    ],
)
def test_percentiles_lie_in_their_bucket(
    buckets: list[int], share: float, low: float, high: float
) -> None:
    found = percentile(buckets, share)
    assert found is not None and low <= found <= high
    assert percentile([0, 0], share) is None
