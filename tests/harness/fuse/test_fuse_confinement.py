"""A guest that means harm, over a passthrough: it stays inside, and opens nothing but files."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from errno import EEXIST, EINVAL, EISDIR, ENAMETOOLONG, ENOTDIR, ENXIO, ESTALE
from itertools import product
from pathlib import Path

import pytest
from fuse_requests import Requests
from fuse_session import ROOT, FuseError, Session, expect, mount_tmpfs

from harness.fuse import abi
from vfs.abi import MS_NODEV, makedev

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")
NAMES = (b"..", b".", b"a/b", b"/", b"/etc", b"../secret", b"", b"x" * 256, b"a\0b", b"..\0x")
BAD = (EINVAL, EEXIST, EISDIR, ENAMETOOLONG, errno.EBUSY, errno.ENOTEMPTY)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    return directory


@pytest.fixture
def session(shared: Path) -> Iterator[Session]:
    with Session(source=shared) as session:
        yield session


def fails(session: Session, name: str, nodeid: int, body: bytes) -> int:
    with pytest.raises(FuseError) as caught:
        session.call(name, nodeid, body)
    return caught.value.errno


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name_makes_takes_and_moves_nothing(
    session: Session, shared: Path, name: bytes
) -> None:
    entry, _ = session.create(ROOT, b"file")
    session.mkdir(ROOT, b"dir")
    word = name + b"\0"
    bodies = {
        "MKDIR": abi.MKDIR_IN.pack(0o755, 0) + word,
        "MKNOD": abi.MKNOD_IN.pack(0o100644, 0, 0, 0) + word,
        "SYMLINK": word + b"target\0",
        "CREATE": abi.CREATE_IN.pack(2, 0o100644, 0, 0) + word,
        "LINK": abi.LINK_IN.pack(entry.nodeid) + word,
        "UNLINK": word,
        "RMDIR": word,
        "RENAME": abi.RENAME_IN.pack(ROOT) + b"file\0" + word,
        "RENAME2": abi.RENAME2_IN.pack(ROOT, 2, 0) + word + b"dir\0",
    }
    for opcode, body in bodies.items():
        assert fails(session, opcode, ROOT, body) in BAD, opcode
    if name not in (b".", b".."):
        assert fails(session, "LOOKUP", ROOT, word) in BAD
    assert sorted(os.listdir(shared)) == ["dir", "file"]
    assert sorted(os.listdir(shared.parent)) == ["secret", "shared"]


def test_dotdot_stops_at_the_root_and_leads_from_a_mount_to_its_parent(session: Session) -> None:
    assert session.lookup(ROOT, b"..").nodeid == ROOT
    point = session.mkdir(ROOT, b"point")
    mount_tmpfs(session, point.nodeid)
    top = session.lookup(ROOT, b"point").nodeid
    assert top != point.nodeid
    assert session.lookup(top, b"..").nodeid == ROOT
    assert session.lookup(top, b".").nodeid == top
    assert session.lookup(point.nodeid, b"..").nodeid == ROOT
    file = session.create(ROOT, b"file")[0]
    expect(ENOTDIR, session.lookup, file.nodeid, b"..")


def test_invented_nodes_and_handles_are_refused_by_every_opcode(session: Session) -> None:
    requests = Requests(session)
    for nodeid in (0, 999, 2**63, 2**64 - 1):
        for name in ("LOOKUP", "GETATTR", "SETATTR", "OPEN", "OPENDIR", "MKDIR", "UNLINK", "STATX"):
            assert fails(session, name, nodeid, requests.by_name[name].body) == ESTALE, name
        linked = abi.LINK_IN.pack(nodeid) + b"new\0"
        assert fails(session, "LINK", ROOT, linked) == ESTALE
        moved = abi.RENAME_IN.pack(nodeid) + b"file\0new\0"
        assert fails(session, "RENAME", ROOT, moved) == ESTALE
    by_handle = ("READ", "WRITE", "RELEASE", "FLUSH", "FSYNC", "FALLOCATE", "LSEEK", "READDIR")
    for handle in (0, 999, 2**64 - 1):
        for name in (*by_handle, "READDIRPLUS", "RELEASEDIR", "FSYNCDIR", "IOCTL", "SETLK"):
            nodeid, body = requests.by_name[name]
            assert fails(session, name, nodeid, handle.to_bytes(8, "little") + body[8:]) == (
                errno.EBADF
            ), name
    # A directory's handle is no file's.
    directory = session.opendir(ROOT)
    read = abi.READ_IN.pack(directory, 0, 10, 0, 0, 0, 0)
    assert fails(session, "READ", ROOT, read) == errno.EBADF


@needs_root
@pytest.mark.parametrize(
    ("mode", "device"),
    [(0o060600, makedev(254, 0)), (0o020666, makedev(1, 3)), (0o010666, 0), (0o140666, 0)],
)
def test_devices_fifos_and_sockets_are_never_opened_on_the_host(
    session: Session, shared: Path, mode: int, device: int
) -> None:
    entry = session.mknod(ROOT, b"node", mode, device)
    before = sorted(os.listdir("/proc/self/fd"))
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_NONBLOCK, os.O_TRUNC | os.O_RDWR):
        expect(ENXIO, session.open, entry.nodeid, flags)
        expect(EEXIST, session.create, ROOT, b"node", 0o644, flags)
    expect(EINVAL, session.setattr, entry.nodeid, abi.FATTR_SIZE, size=0)
    expect(ENOTDIR, session.opendir, entry.nodeid)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert session.getattr(entry.nodeid).mode == mode


@needs_root
def test_emulated_devices_are_ours_and_respect_nodev(shared: Path) -> None:
    with Session(source=shared, devices="emulate") as session:
        entry = session.mknod(ROOT, b"null", 0o020666, makedev(1, 3))
        # No driver is registered here: it stays a node, which is not the host's either.
        expect(ENXIO, session.open, entry.nodeid)
        session.root.mount.flags |= MS_NODEV
        expect(ENXIO, session.open, entry.nodeid)


def test_a_socket_that_listens_is_not_connected_to(session: Session, shared: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(shared / "socket"))
        listener.listen()
        listener.setblocking(False)
        expect(ENXIO, session.open, session.lookup(ROOT, b"socket").nodeid)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_symlink_out_is_text_for_every_opcode(session: Session, shared: Path) -> None:
    (shared / "out").symlink_to(shared.parent)
    (shared / "secret").symlink_to("../secret")
    out, secret = (session.lookup(ROOT, name).nodeid for name in (b"out", b"secret"))
    assert session.call("READLINK", out) == os.fsencode(shared.parent)
    expect(ENOTDIR, session.lookup, out, b"secret")
    expect(ENOTDIR, session.mkdir, out, b"new")
    expect(ENOTDIR, session.opendir, out)
    expect(ENXIO, session.open, secret)
    expect(EINVAL, session.setattr, secret, abi.FATTR_SIZE, size=0)
    session.link(secret, ROOT, b"another")
    assert os.path.islink(shared / "another")
    assert os.readlink(shared / "another") == "../secret"
    assert os.stat(shared.parent / "secret").st_nlink == 1


def test_magic_links_are_only_read() -> None:
    with Session(source="/proc") as session:
        process = session.lookup(ROOT, b"%d" % os.getpid()).nodeid
        for name in (b"root", b"cwd", b"exe"):
            link = session.lookup(process, name)
            assert link.attr.mode & 0o170000 == 0o120000
            assert session.call("READLINK", link.nodeid) == os.fsencode(
                os.readlink(b"/proc/self/" + name)
            )
            expect(ENOTDIR, session.lookup, link.nodeid, b"etc")
            expect(ENXIO, session.open, link.nodeid)
            expect(ENOTDIR, session.opendir, link.nodeid)


@needs_root
def test_a_regular_file_that_would_wait_does_not_hold_up_the_server() -> None:
    """/proc/kmsg is a regular file by its mode, and its reader waits for the next message."""
    with Session(source="/proc") as session:
        kmsg = session.lookup(ROOT, b"kmsg").nodeid
        try:
            handle = session.open(kmsg, os.O_RDONLY).fh
        except FuseError as error:
            pytest.skip(f"/proc/kmsg: {error}")
        end = time.monotonic() + 60
        with pytest.raises(FuseError) as caught:
            while time.monotonic() < end:
                session.read(handle, 0, 65536)
        assert caught.value.errno == errno.EAGAIN


def test_nobody_gets_out_while_the_host_swaps_names_under_the_requests(
    session: Session, shared: Path
) -> None:
    """Every name is, by turns, a directory, a file, a way out, or nothing."""
    stop = threading.Event()
    outside = shared.parent
    failures: list[BaseException] = []

    def swap() -> None:
        dice = random.Random(1)
        try:
            while not stop.is_set():
                name = shared / f"n{dice.randrange(3)}"
                fresh = shared / "fresh"
                kind = dice.randrange(4)
                if kind == 0:
                    fresh.mkdir()
                elif kind == 1:
                    fresh.symlink_to(outside)
                elif kind == 2:
                    fresh.write_bytes(b"inside")
                if name.is_symlink() or name.exists():
                    name.rename(shared / "old")
                if kind < 3:
                    fresh.rename(name)
                rest = shared / "old"
                if rest.is_symlink() or rest.is_file():
                    rest.unlink()
                while rest.exists():
                    # A request that still has it may make a file in it until it is gone.
                    shutil.rmtree(rest, ignore_errors=True)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=swap)
    thread.start()
    dice = random.Random(2)
    seen = set()
    deadline = time.monotonic() + 60
    rounds = 0
    try:
        while rounds < 1000 or (len(seen) < 3 and time.monotonic() < deadline):
            rounds += 1
            name = b"n%d" % dice.randrange(3)
            try:
                entry = session.lookup(ROOT, name)
                kind = entry.attr.mode & 0o170000
                seen.add(kind)
                if kind == 0o040000:
                    made = session.create(entry.nodeid, b"new")
                    session.release(made[1].fh)
                    session.call("RENAME", entry.nodeid, abi.RENAME_IN.pack(ROOT) + b"new\0kept\0")
                    session.call("UNLINK", ROOT, b"kept\0")
                elif kind == 0o100000:
                    opened = session.open(entry.nodeid, os.O_RDONLY)
                    assert session.read(opened.fh, 0, 100) in (b"inside", b"")
                    session.release(opened.fh)
                else:
                    expect(ENOTDIR, session.lookup, entry.nodeid, b"secret")
                session.forget(entry.nodeid)
            except FuseError as error:
                assert error.errno not in (errno.EIO, errno.EBADF), error
            assert not {"new", "kept"} & set(os.listdir(outside))
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert len(seen) == 3
    assert (outside / "secret").read_bytes() == b"secret"
    session.server.check()
    session.vfs.check()


def test_a_directory_that_the_host_moved_stays_usable_for_those_inside(
    session: Session, shared: Path
) -> None:
    """As a process's working directory does, whose name was changed by somebody else."""
    old = session.mkdir(ROOT, b"old").nodeid
    session.mkdir(old, b"known")
    (shared / "old").rename(shared / "new")
    (shared / "new" / "later").mkdir()
    expect(errno.ENOENT, session.lookup, ROOT, b"old")
    for name in (b"known", b"later"):
        session.lookup(old, name)
    session.mkdir(old, b"made")
    listing = session.opendir(old)
    assert {name for name, _ in session.list(listing)} == {b".", b"..", b"known", b"later", b"made"}
    session.call("RENAME", old, abi.RENAME_IN.pack(ROOT) + b"made\0out\0")
    session.call("RMDIR", old, b"later\0")
    assert sorted(os.listdir(shared)) == ["new", "out"]
    (shared / "new" / "known").rmdir()
    (shared / "new").rmdir()
    expect(errno.ENOENT, session.mkdir, old, b"too late")
    expect(errno.ENOENT, session.lookup, old, b"later")
    session.vfs.check()


@needs_root
def test_groups_and_ids_of_a_request_do_not_reach_the_next_one(
    session: Session, shared: Path
) -> None:
    ids = [(1000, 1000), (0, 0), (2000, 3000), (0, 7), (5, 0)]
    for index, ((uid, gid), fails_in_between) in enumerate(product(ids, (False, True))):
        session.uid, session.gid = uid, gid
        session.mkdir(ROOT, b"%d" % index)
        if fails_in_between:
            session.uid = 0xFFFFFFFF
            with pytest.raises(FuseError):
                session.mkdir(ROOT, b"nobody's")
        stat = os.stat(shared / str(index))
        assert (stat.st_uid, stat.st_gid) == (uid, gid)
        made = shared / f"host{index}"
        made.mkdir()
        assert (made.stat().st_uid, made.stat().st_gid) == (os.getuid(), os.getgid())
    assert not (shared / "nobody's").exists()
