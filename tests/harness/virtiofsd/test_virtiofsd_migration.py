"""A guest's session goes from one daemon to another, each a process of its own."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from virtiofsd_support import OPEN, Daemon, running, virtiofsd

from harness.vhost_user import message as wire
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ROOT, FuseClient

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
LINK, SETLK, SETLKW = 13, 32, 33
LOCK_FLAGS = 1 << 1 | 1 << 10  # FUSE_POSIX_LOCKS, FUSE_FLOCK_LOCKS
ENTRY = 128
EAGAIN, EBADF, ESTALE = 11, 9, 116

Start = Callable[..., Daemon]


class Guest:
    """A guest of whom only the memory counts: it keeps its node ids and handles."""

    def __init__(self, daemon: Daemon) -> None:
        self.frontend = connect(daemon)
        self.client = FuseClient(self.frontend, depth=4, timeout=120)
        self.client.init(flags=LOCK_FLAGS)

    def stop(self) -> list[int]:
        return [self.frontend.stop(index) for index in (0, 1)]

    def save(self) -> tuple[bytes, bool]:
        """The state, and whether all of it could be saved. The rings are stopped before."""
        with os.fdopen(self.frontend.transfer_state(wire.SAVE), "rb") as file:
            state = file.read()
        return state, self.frontend.check_state()

    def go_on(self, daemon: Daemon, state: bytes, bases: list[int]) -> None:
        """With the same memory, and the rings in it, on another daemon."""
        self.frontend.attach(dial(daemon))
        assert load(self.frontend, state)
        for index, base in enumerate(bases):
            self.frontend.resume(index, base)

    def close(self) -> None:
        self.client.close()
        self.frontend.close()


def dial(daemon: Daemon) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + 120
    while sock.connect_ex(str(daemon.socket_path)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return sock


def connect(daemon: Daemon) -> Frontend:
    frontend = Frontend(dial(daemon), timeout=120)
    frontend.negotiate(extra=wire.F_DEVICE_STATE | wire.F_LOG_SHMFD)
    frontend.share_memory()
    return frontend


def load(frontend: Frontend, state: bytes) -> bool:
    try:
        with os.fdopen(frontend.transfer_state(wire.LOAD), "wb") as file:
            file.write(state)
    except BrokenPipeError:
        pass
    return frontend.check_state()


def migrate(guest: Guest, target: Daemon) -> None:
    """As a VMM does: log, stop, save, load, go on; the source is left."""
    guest.frontend.start_log()
    bases = guest.stop()
    state, saved = guest.save()
    assert saved
    guest.frontend.stop_log()
    guest.go_on(target, state, bases)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons on the same directory, under different sockets."""
    (tmp_path / "share").mkdir()
    with ExitStack() as stack:
        count = 0

        def begin(*words: str, sandbox: tuple[str, ...] = OPEN) -> Daemon:
            nonlocal count
            count += 1
            place = tmp_path / f"side{count}"
            place.mkdir()
            (place / "share").symlink_to(tmp_path / "share")
            return stack.enter_context(virtiofsd(place, *words, sandbox=sandbox))

        yield begin


@pytest.fixture
def share(tmp_path: Path) -> Path:
    return tmp_path / "share"


MODES = [
    (),
    ("--migration-verify-handles", "--migration-confirm-paths"),
    ("--migration-mode=file-handles",),
]


@ROOT_ONLY
@pytest.mark.parametrize("words", MODES)
def test_a_guest_goes_on_with_another_daemon_and_then_a_third(
    start: Start, share: Path, words: tuple[str, ...]
) -> None:
    content = os.urandom(300_000)
    for number in range(300):
        (share / f"many{number}").touch()
    source, target, third = start(*words), start(*words), start(*words)
    guest = Guest(source)
    client = guest.client
    entry, handle = client.create(ROOT, b"file")
    for offset in range(0, len(content), 50_000):
        client.write(entry.nodeid, handle, offset, content[offset : offset + 50_000])
    listing = client.opendir(ROOT)
    first = client.readdirplus(ROOT, listing, 0, 16384)
    assert 10 < len(first) < 300
    seen, offset = [one.name for one in first], first[-1].offset
    (share / "file").rename(share / "renamed")
    for daemon in (target, third):
        migrate(guest, daemon)
        client = guest.client
        assert client.getattr(entry.nodeid).size == len(content)
        data = b"".join(
            client.read(entry.nodeid, handle, at, 50_000) for at in range(0, len(content), 50_000)
        )
        assert hashlib.sha256(data).digest() == hashlib.sha256(content).digest()
        assert client.lookup(ROOT, b"renamed").nodeid == entry.nodeid
        client.write(entry.nodeid, handle, 0, content[:10])
    assert source.end() == target.end() == 0
    while more := client.readdirplus(ROOT, listing, offset, 16384):
        seen += [one.name for one in more]
        offset = more[-1].offset
    assert sorted(set(seen)) == sorted(seen)
    assert {name for name in seen if name.startswith(b"many")} == {
        b"many%d" % number for number in range(300)
    }
    client.forget(entry.nodeid, 3)
    client.release(entry.nodeid, handle)
    guest.close()
    assert third.end() == 0


@ROOT_ONLY
@pytest.mark.parametrize("sandbox", ["namespace", "chroot"])
@pytest.mark.parametrize("words", MODES)
def test_in_a_sandbox_with_its_filter_the_same_goes_on(
    start: Start, share: Path, sandbox: str, words: tuple[str, ...]
) -> None:
    inside = ("--sandbox", sandbox, "--seccomp", "kill")
    (share / "d").mkdir()
    (share / "d" / "f").write_bytes(b"content")
    (share / "linked").hardlink_to(share / "d" / "f")
    source, target = start(*words, sandbox=inside), start(*words, sandbox=inside)
    guest = Guest(source)
    directory = guest.client.lookup(ROOT, b"d")
    file = guest.client.lookup(directory.nodeid, b"f")
    handle = guest.client.open(file.nodeid, os.O_RDWR)
    (share / "d" / "f").unlink()
    (share / "d").rename(share / "e")
    migrate(guest, target)
    assert guest.client.read(file.nodeid, handle, 0, 100) == b"content"
    assert guest.client.lookup(ROOT, b"e").nodeid == directory.nodeid
    guest.close()
    assert source.end() == target.end() == 0


def test_a_deleted_file_aborts_and_the_source_serves_on_or_the_guest_gets_errors(
    start: Start, share: Path
) -> None:
    (share / "kept").write_bytes(b"kept")
    strict, lenient, target = (
        start(),
        start("--migration-on-error=guest-error"),
        start("--migration-on-error=guest-error"),
    )
    for daemon, expected in ((strict, False), (lenient, True)):
        guest = Guest(daemon)
        client = guest.client
        kept = client.lookup(ROOT, b"kept")
        entry, handle = client.create(ROOT, b"file")
        client.write(entry.nodeid, handle, 0, b"gone")
        client.unlink(ROOT, b"file")
        guest.frontend.start_log()
        bases = guest.stop()
        state, saved = guest.save()
        assert saved == expected
        if not saved:
            # The VMM goes back: the guest lives on here, where the file still is.
            guest.frontend.stop_log()
            for index, base in enumerate(bases):
                guest.frontend.resume(index, base)
            assert client.read(entry.nodeid, handle, 0, 10) == b"gone"
            guest.close()
            assert daemon.end() == 0
            assert "/file: it has no name any more" in daemon.stderr
            continue
        guest.frontend.stop_log()
        guest.go_on(target, state, bases)
        assert guest.client.getattr(kept.nodeid).size == 4
        with pytest.raises(OSError) as caught:
            guest.client.getattr(entry.nodeid)
        assert caught.value.errno == ESTALE
        with pytest.raises(OSError) as caught:
            guest.client.read(entry.nodeid, handle, 0, 10)
        assert caught.value.errno == EBADF
        guest.close()


def test_a_migration_that_is_given_up_leaves_the_source_as_it_was(
    start: Start, share: Path
) -> None:
    guest = Guest(start())
    entry, handle = guest.client.create(ROOT, b"file")
    for _ in range(2):
        guest.frontend.start_log()
        guest.client.write(entry.nodeid, handle, 0, b"logged")
        guest.frontend.stop_log()
    # So does one whose reader goes away in the middle: of more than a pipe holds.
    for number in range(600):
        guest.client.create(ROOT, b"%0200d" % number)
    bases = guest.stop()
    os.close(guest.frontend.transfer_state(wire.SAVE))
    assert not guest.frontend.check_state()
    for index, base in enumerate(bases):
        guest.frontend.resume(index, base)
    assert guest.client.read(entry.nodeid, handle, 0, 100) == b"logged"
    guest.close()


def test_a_state_that_is_damaged_or_of_another_version_is_refused_and_the_daemon_lives(
    start: Start, share: Path
) -> None:
    guest = Guest(start())
    entry, _ = guest.client.create(ROOT, b"file")
    bases = guest.stop()
    state, saved = guest.save()
    assert saved
    damaged, target = start(), start()
    frontend = connect(damaged)
    older = state[:8] + struct.pack("<I", 0) + state[12:]
    for bad in (b"", b"nonsense" * 100, state[:-1], state[:100], state + b"x", older,
                state[:60] + bytes([state[60] ^ 1]) + state[61:]):  # fmt: skip
        assert not load(frontend, bad)
    assert load(frontend, state)
    frontend.close()
    assert damaged.end() == 0
    assert "of version 0, and only 1 is known" in damaged.stderr
    assert "Traceback" not in damaged.stderr
    guest.go_on(target, state, bases)
    assert guest.client.getattr(entry.nodeid).size == 0
    guest.close()


@contextmanager
def composed(directory: Path, *specs: str) -> Iterator[Daemon]:
    path = directory / "sock"
    words = [word for spec in specs for word in ("--mount", spec)]
    with running("serve", "--socket-path", path, *words, socket_path=path) as daemon:
        yield daemon


def test_a_composed_tree_moves_with_the_content_of_its_tmpfses(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two", "three")]
    for place in places:
        place.mkdir()
    specs = ("type=tmpfs,dst=/tmp,size=64m", "type=devtmpfs,dst=/dev")
    content = os.urandom(200_000)
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(composed(p, *specs)) for p in places)
        guest = Guest(first)
        client = guest.client
        tmp = client.lookup(ROOT, b"tmp").nodeid
        entry, handle = client.create(tmp, b"file")
        for offset in range(0, len(content), 50_000):
            client.write(entry.nodeid, handle, offset, content[offset : offset + 50_000])
        link = struct.pack("<Q", entry.nodeid) + b"link\0"
        assert client.request(LINK, tmp, link, ENTRY)[0] == 0
        gone, gone_handle = client.create(tmp, b"gone")
        client.write(gone.nodeid, gone_handle, 0, b"deleted, but open")
        client.unlink(tmp, b"gone")
        other = client.open(entry.nodeid, os.O_RDWR)

        def lock(fh: int, owner: int) -> int:
            words = struct.pack("<QQQQIIII", fh, owner, 0, 9, 1, 5, 0, 0)
            return guest.client.request(SETLK, entry.nodeid, words)[0]

        assert lock(handle, 1) == 0
        for target in (second, third):
            migrate(guest, target)
            client = guest.client
            data = b"".join(client.read(entry.nodeid, handle, at, 50_000)
                            for at in range(0, len(content), 50_000))  # fmt: skip
            assert hashlib.sha256(data).digest() == hashlib.sha256(content).digest()
            assert client.lookup(tmp, b"link").nodeid == entry.nodeid
            assert client.getattr(entry.nodeid).nlink == 2
            assert client.read(gone.nodeid, gone_handle, 0, 100) == b"deleted, but open"
            assert lock(other, 2) == EAGAIN
        client.release(entry.nodeid, handle)
        assert lock(other, 2) == 0
        guest.close()


def test_a_lock_that_is_waited_for_is_waited_for_on_the_other_side(tmp_path: Path) -> None:
    with ExitStack() as stack:
        daemons = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            daemons.append(stack.enter_context(composed(tmp_path / name, "type=tmpfs,dst=/tmp")))
        guest = Guest(daemons[0])
        client = guest.client
        entry, mine = client.create(ROOT, b"file")
        theirs = client.open(entry.nodeid, os.O_RDWR)

        def words(fh: int, owner: int, kind: int = 1) -> bytes:
            return struct.pack("<QQQQIIII", fh, owner, 0, 9, kind, 5, 0, 0)

        assert client.request(SETLK, entry.nodeid, words(mine, 1))[0] == 0
        waiting = client._slots[3]
        client._submit(waiting, (SETLKW, entry.nodeid, words(theirs, 2)), 0)
        client.queue.publish()
        # What comes behind it on the ring is answered.
        assert client.getattr(entry.nodeid).size == 0
        migrate(guest, daemons[1])
        assert client.request(SETLK, entry.nodeid, words(theirs, 3))[0] == EAGAIN
        assert waiting.length < 0
        client.release(entry.nodeid, mine)
        while waiting.length < 0:
            client._wait()
            client._reap_all()
        assert waiting.result(waiting.length) == (0, b"")
        guest.close()


def test_trees_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        composed(tmp_path / "one", "type=tmpfs,dst=/tmp") as source,
        composed(tmp_path / "two", "type=tmpfs,dst=/var") as target,
    ):
        guest = Guest(source)
        guest.stop()
        state, saved = guest.save()
        assert saved
        frontend = connect(target)
        assert not load(frontend, state)
        frontend.close()
        guest.close()
        target.process.terminate()
        target.end()
        assert "dst=/tmp" in target.stderr and "the same --mount" in target.stderr
