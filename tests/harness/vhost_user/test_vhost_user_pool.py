"""Several request queues, and threads for requests that block."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from errno import EIO
from pathlib import Path

import pytest
from vhost_user_support import ECHO, PARK, RAISE, EchoServer, Serving, serve_device

from harness.compose import Tree
from harness.fuse.server import FuseServer
from harness.mountspec import parse_mount_spec
from harness.vhost_user import message as wire
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ROOT, FuseClient
from harness.vhost_user.pool import WorkerPool
from harness.virtiofs import VirtioFsDevice

BLOCK = 2000
LAYOUTS = pytest.mark.parametrize("packed", [False, True])


class BlockingServer(EchoServer):
    """An EchoServer whose BLOCK is a host call that returns when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.inside = threading.Semaphore(0)
        self.threads: set[int] = set()
        self.lock = threading.Lock()

    def handle(
        self,
        request: Sequence[memoryview],
        reply: Sequence[memoryview],
        completion: Callable[[int], None],
    ) -> int:
        opcode = int.from_bytes(request[0][4:8], "little")
        if opcode == BLOCK:
            with self.lock:
                self.threads.add(threading.get_ident())
            self.inside.release()
            assert self.gate.acquire(timeout=60)
            unique = int.from_bytes(request[0][8:16], "little")
            return self.answer(unique, reply, 0)
        return super().handle(request, reply, completion)


@pytest.fixture
def serving() -> Iterator[Serving]:
    server = BlockingServer()
    with serve_device(threads=3, pooled={BLOCK, RAISE, PARK}, server=server) as serving:
        yield serving
        server.gate.release(100)


def connect(serving: Serving, packed: bool = False) -> tuple[Frontend, FuseClient]:
    frontend = serving.frontend()
    frontend.negotiate(packed=packed)
    frontend.share_memory()
    return frontend, FuseClient(frontend, depth=8, timeout=60)


def submit(client: FuseClient, number: int, opcode: int, payload: bytes = b"") -> int:
    slot = client._slots[number]
    client._submit(slot, (opcode, 1, payload), len(payload))
    client.queue.publish()
    return slot.head


@LAYOUTS
def test_requests_that_block_are_overtaken_and_run_side_by_side(
    serving: Serving, packed: bool
) -> None:
    server = serving.server
    assert isinstance(server, BlockingServer)
    frontend, client = connect(serving, packed)
    with frontend:
        heads = {submit(client, number, BLOCK) for number in range(3)}
        for _ in heads:
            assert server.inside.acquire(timeout=60)
        assert len(server.threads) == 3
        slot = client._slots[5]
        for number in range(50):
            client._submit(slot, (ECHO, 1, b"%04d" % number), 4)
            client.queue.publish()
            client._wait()
            head, length = client.queue.reap()
            assert head == slot.head
            assert slot.result(length) == (0, b"%04d" % number)
        server.gate.release(3)
        found = set()
        while len(found) < 3:
            client._wait()
            while client.queue.has_used():
                found.add(client.queue.reap()[0])
        assert found == heads
        client.close()


def test_more_blocking_requests_than_threads_are_all_answered(serving: Serving) -> None:
    server = serving.server
    assert isinstance(server, BlockingServer)
    frontend, client = connect(serving)
    with frontend:
        server.gate.release(600)
        requests = [(BLOCK if number % 3 else ECHO, 1, b"") for number in range(900)]
        assert list(client.batch(requests, 0)) == [(0, b"")] * 900
        client.close()


def test_exception_in_a_worker_costs_its_request_eio(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    frontend, client = connect(serving)
    with frontend:
        assert client.request(RAISE, 1, b"x", 8) == (EIO, b"")
        assert "ZeroDivisionError" in caplog.text
        client.close()


def test_request_that_a_worker_parks_is_answered_later(serving: Serving) -> None:
    frontend, client = connect(serving)
    with frontend:
        submit(client, 0, PARK)
        assert serving.server.arrived.wait(60)
        serving.server.answer_parked(0)
        client._wait()
        assert client._slots[0].result(client.queue.reap()[1]) == (0, b"")
        client.close()


@LAYOUTS
def test_stopping_a_queue_waits_for_its_blocked_requests(serving: Serving, packed: bool) -> None:
    server = serving.server
    assert isinstance(server, BlockingServer)
    frontend, client = connect(serving, packed)
    with frontend:
        submit(client, 0, BLOCK)
        assert server.inside.acquire(timeout=60)
        timer = threading.Timer(0.1, server.gate.release)
        timer.start()
        base = frontend.stop(1)
        timer.join()
        assert client.queue.has_used()
        client.queue.reap()
        frontend.resume(1, base)
        assert client.request(ECHO, 1, b"on", 2) == (0, b"on")
        client.close()


def test_reset_waits_for_what_runs_and_drops_what_has_not_begun(serving: Serving) -> None:
    server = serving.server
    assert isinstance(server, BlockingServer)
    frontend, client = connect(serving)
    with frontend:
        for number in range(5):
            submit(client, number, BLOCK)
        for _ in range(3):
            assert server.inside.acquire(timeout=60)
        timer = threading.Timer(0.1, server.gate.release, (3,))
        timer.start()
        frontend.tell(wire.RESET_DEVICE)
        timer.join()
        assert server.resets == 1
        assert not client.queue.has_used()
        assert not server.inside.acquire(blocking=False)
        client.close()


def test_session_is_reset_after_its_last_request_has_returned(tmp_path: Path) -> None:
    server = BlockingServer()
    order: list[str] = []
    reset = server.reset
    server.reset = lambda: (order.append("reset"), reset())[1]  # type: ignore[method-assign]
    path = str(tmp_path / "sock")
    with serve_device(path, threads=1, pooled={BLOCK}, server=server) as serving:
        frontend, client = connect(serving)
        # One runs when the frontend goes; the other may begin before the device has noticed.
        submit(client, 0, BLOCK)
        submit(client, 1, BLOCK)
        assert server.inside.acquire(timeout=60)
        client.close()
        frontend.close()
        order.append("returned")
        server.gate.release(2)
        frontend, client = connect(serving)
        assert client.request(ECHO, 1, b"new", 3) == (0, b"new")
        assert order == ["returned", "reset"]
        client.close()
        frontend.close()


def test_queues_are_served_side_by_side_and_each_has_its_own_replies() -> None:
    with (
        serve_device(queues=4, tag="many", threads=2, pooled={ECHO}) as serving,
        serving.frontend() as frontend,
    ):
        frontend.negotiate()
        frontend.share_memory()
        assert frontend.config()[36:] == b"\4\0\0\0"
        assert frontend.ask_u64(wire.GET_QUEUE_NUM) == 5
        clients = [
            FuseClient(
                frontend,
                depth=4,
                queue=frontend.start(index, 16, chain_limit=4),
                buffer_size=4096,
                timeout=60,
            )
            for index in range(1, 5)
        ]
        sources = [
            client.batch([(ECHO, 1, b"%d:%05d" % (i, n)) for n in range(300)], 7)
            for i, client in enumerate(clients)
        ]
        for n in range(300):
            for i, source in enumerate(sources):
                assert next(source) == (0, b"%d:%05d" % (i, n))
        for source in sources:
            assert next(source, None) is None
        for client in clients:
            client.close()


@LAYOUTS
def test_pool_log_and_inflight_memory_work_together(packed: bool) -> None:
    with serve_device(threads=2, pooled={BLOCK, ECHO}) as serving:
        frontend = serving.frontend()
        with frontend:
            frontend.negotiate(packed=packed, extra=wire.F_LOG_SHMFD | wire.F_INFLIGHT_SHMFD)
            frontend.share_memory()
            if not packed:
                frontend.track_inflight(2, 256)
            client = FuseClient(frontend, depth=8, timeout=60)
            frontend.start_log()
            server, over = serving.server, threading.Event()

            def answer() -> None:
                while not over.is_set():
                    if server.arrived.wait(0.01):
                        server.arrived.clear()
                        server.answer_parked(0)

            thread = threading.Thread(target=answer)
            thread.start()
            requests = [(PARK if n % 5 == 0 else ECHO, 1, b"%05d" % n) for n in range(1500)]
            replies = list(client.batch(requests, 5))
            over.set()
            thread.join()
            assert replies == [(0, b"" if op == PARK else data) for op, _, data in requests]
            base = frontend.stop(1)
            pages = {slot._addresses[3] // 4096 for slot in client._slots}
            assert pages <= frontend.dirty_pages()
            frontend.resume(1, base)
            assert client.request(ECHO, 1, b"on", 2) == (0, b"on")
            client.close()


def test_files_are_written_and_read_by_workers(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with Tree([parse_mount_spec(f"type=passthrough,src={tmp_path / 'tree'},dst=/")]) as tree:
        server = FuseServer(tree.vfs, tree.root)
        with serve_device(threads=2, server=server) as serving:
            frontend, client = connect(serving)
            with frontend:
                client.init()
                entry, handle = client.create(ROOT, b"file")
                blocks = [os.urandom(4000) for _ in range(64)]
                for number, block in enumerate(blocks):
                    assert client.write(entry.nodeid, handle, 4000 * number, block) == 4000
                for number, block in enumerate(blocks):
                    assert client.read(entry.nodeid, handle, 4000 * number, 4000) == block
                client.release(entry.nodeid, handle)
                client.forget(entry.nodeid, 1)
                client.close()
        server.check()
        assert (tmp_path / "tree/file").read_bytes() == b"".join(blocks)


def test_pool_that_finds_no_threads_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    start = threading.Thread.start
    started = []

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        WorkerPool(4)
    assert threading.active_count() == before


def test_device_without_threads_starts_none() -> None:
    before = threading.active_count()
    with VirtioFsDevice(EchoServer()):
        assert threading.active_count() == before
