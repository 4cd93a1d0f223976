"""The frontend and the FUSE client against the C virtiofsd that QEMU ships: a daemon not ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from errno import ENOENT
from pathlib import Path

import pytest

from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ATTR_SIZE, ENTRY_SIZE, GETATTR, LOOKUP, ROOT, FuseClient

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"


@pytest.fixture(
    params=[(True, True), (True, False), (False, True), (False, False)],
    ids=["indirect-event_idx", "indirect", "event_idx", "plain"],
)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FuseClient]:
    if not os.access(VIRTIOFSD, os.X_OK):
        pytest.skip(f"{VIRTIOFSD} is missing (Debian: qemu-system-common)")
    if os.geteuid() != 0:
        pytest.skip("the C virtiofsd runs as root only")
    indirect, event_idx = request.param
    source = tmp_path / "source"
    source.mkdir()
    (source / "greeting").write_bytes(b"hello")
    path = tmp_path / "sock"
    daemon = subprocess.Popen(
        [VIRTIOFSD, f"--socket-path={path}", "-o", f"source={source}", "-o", "cache=auto"],
        stderr=subprocess.PIPE,
    )
    try:
        with Frontend.connect(path, memory_size=32 << 20) as frontend:
            frontend.negotiate(indirect=indirect, event_idx=event_idx)
            frontend.share_memory()
            client = FuseClient(frontend, depth=16, timeout=60)
            assert client.init().major == 7
            yield client
            client.close()
    except (FileNotFoundError, ConnectionRefusedError, EOFError):
        daemon.kill()
        pytest.skip(f"virtiofsd does not run here: {daemon.communicate()[1].decode()[-300:]}")
    finally:
        daemon.kill()
        daemon.communicate()


def test_client_does_what_a_guest_does(client: FuseClient) -> None:
    entry = client.lookup(ROOT, b"greeting")
    assert client.getattr(entry.nodeid).size == 5
    handle = client.open(entry.nodeid)
    assert client.read(entry.nodeid, handle, 1, 100) == b"ello"
    client.release(entry.nodeid, handle)

    created, handle = client.create(ROOT, b"new")
    assert client.write(created.nodeid, handle, 3, b"x" * 40_000) == 40_000
    assert client.read(created.nodeid, handle, 0, 5) == b"\0\0\0xx"
    client.release(created.nodeid, handle)

    directory = client.opendir(ROOT)
    names = {entry.name for entry in client.readdirplus(ROOT, directory, 0, 4096)}
    assert names == {b".", b"..", b"greeting", b"new"}
    client.releasedir(ROOT, directory)

    client.unlink(ROOT, b"new")
    with pytest.raises(OSError) as caught:
        client.lookup(ROOT, b"new")
    assert caught.value.errno == ENOENT
    client.forget(entry.nodeid, 1)


def test_many_requests_in_flight_are_all_answered(client: FuseClient) -> None:
    requests = [(GETATTR, ROOT, bytes(16))] * 3000
    replies = list(client.batch(requests, ATTR_SIZE))
    assert len(replies) == 3000
    assert {error for error, _ in replies} == {0}
    assert client.repeat(requests[:1], ATTR_SIZE, 3000, 16) > 0
    together: list[bytes] = []
    assert client.exchange(requests[:16], ATTR_SIZE, together) > 0
    assert [len(reply) for reply in together] == [ATTR_SIZE] * 16


def test_repeat_and_exchange_raise_the_errno_of_a_reply(client: FuseClient) -> None:
    miss = [(LOOKUP, ROOT, b"missing\0")]
    with pytest.raises(FileNotFoundError):
        client.repeat(miss, ENTRY_SIZE, 10, 1)
    assert client.repeat(miss, ENTRY_SIZE, 10, 2, ENOENT) > 0
    with pytest.raises(FileNotFoundError):
        client.exchange(miss, ENTRY_SIZE, [])


def test_queue_stops_at_its_base_and_resumes(client: FuseClient) -> None:
    client.getattr(ROOT)
    base = client.frontend.stop(1)
    assert base == client.queue.avail_idx
    client.frontend.resume(1, base)
    assert client.getattr(ROOT).nlink >= 1
