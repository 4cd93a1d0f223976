"""Files of the host are found again by the other side, or the guest is told that they are not."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from pathlib import Path

import pytest
from fuse_session import ROOT, Session, expect
from migration_support import GUEST_ERRORS, load, move, resealed, save, sides

from fsimpl.passthrough import oslib
from harness.migration import MigrationOptions, ServerState
from harness.migration.options import FILE_HANDLES

NEEDS_HANDLES = pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at needs root")
BY_PATH = MigrationOptions()
BY_HANDLE = MigrationOptions(mode=FILE_HANDLES)
VERIFIED = MigrationOptions(verify_handles=True)
CONFIRMED = MigrationOptions(confirm_paths=True)
WAYS = [
    pytest.param(BY_PATH, id="find-paths"),
    pytest.param(VERIFIED, id="verify-handles"),
    pytest.param(CONFIRMED, id="confirm-paths"),
    pytest.param(BY_HANDLE, id="file-handles", marks=NEEDS_HANDLES),
]


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    (path / "d" / "e").mkdir(parents=True)
    (path / "d" / "e" / "f").write_bytes(b"content")
    (path / "g").write_bytes(b"other")
    (tmp_path / "outside").write_bytes(b"secret")
    return path


def walk(client: Session, *names: bytes) -> list[int]:
    """The nodes on the way."""
    nodes = [ROOT]
    for name in names:
        nodes.append(client.lookup(nodes[-1], name).nodeid)
    return nodes[1:]


@pytest.mark.parametrize("options", WAYS)
def test_nodes_and_handles_go_on(share: Path, options: MigrationOptions) -> None:
    with sides(source=share) as (source, target):
        d, e, f = walk(source, b"d", b"e", b"f")
        opened = source.open(f)
        listing = source.opendir(e)
        link = source.symlink(e, b"link", b"../../outside").nodeid
        fifo = source.mknod(e, b"fifo", 0o010644).nodeid
        before = [source.getattr(node) for node in (d, e, f, link, fifo)]
        move(source, target, options)
        assert [target.getattr(node) for node in (d, e, f, link, fifo)] == before
        assert walk(target, b"d", b"e", b"f") == [d, e, f]
        assert target.read(opened.fh, 0, 100) == b"content"
        assert target.write(opened.fh, 0, b"CON") == 3
        assert (share / "d/e/f").read_bytes() == b"CONtent"
        assert {name for name, _ in target.list(listing)} == {b".", b"..", b"f", b"link", b"fifo"}
        assert target.call("READLINK", link) == b"../../outside"
        for node, count in ((f, 2), (e, 2), (d, 2), (link, 1), (fifo, 1)):
            target.forget(node, count)
        target.release(opened.fh)
        target.releasedir(listing)
        assert set(target.server.nodes.by_id) == {ROOT}


@pytest.mark.parametrize("options", WAYS)
def test_what_the_host_renamed_is_found(share: Path, options: MigrationOptions) -> None:
    with sides(source=share) as (source, target):
        d, e, f = walk(source, b"d", b"e", b"f")
        opened = source.open(f)
        (share / "d").rename(share / "D")
        (share / "D" / "e" / "f").rename(share / "F")
        (share / "D" / "e" / "f").write_bytes(b"another by that name")
        move(source, target, options)
        assert target.read(opened.fh, 0, 100) == b"content"
        assert target.lookup(ROOT, b"F").nodeid == f
        assert target.lookup(ROOT, b"D").nodeid == d
        assert target.lookup(d, b"e").nodeid == e
        assert target.lookup(e, b"f").nodeid not in (d, e, f)
        assert target.getattr(f).size == 7


@pytest.mark.parametrize("options", WAYS)
def test_a_directory_known_by_two_nodes_after_a_rename_keeps_both(
    share: Path, options: MigrationOptions
) -> None:
    with sides(source=share) as (source, target):
        old = source.lookup(ROOT, b"d").nodeid
        (share / "d").rename(share / "D")
        new = source.lookup(ROOT, b"D").nodeid
        assert old != new
        move(source, target, options)
        assert target.getattr(old).ino == target.getattr(new).ino
        assert target.lookup(ROOT, b"D").nodeid in (old, new)
        assert target.lookup(old, b"e").attr.ino == target.lookup(new, b"e").attr.ino
        target.forget(old)
        target.forget(new, 2)


def test_a_file_whose_known_name_went_is_found_by_another(share: Path) -> None:
    with sides(source=share) as (source, target):
        (share / "d" / "other").hardlink_to(share / "g")
        (g,) = walk(source, b"g")
        opened = source.open(g)
        (share / "g").unlink()
        move(source, target)
        assert target.read(opened.fh, 0, 100) == b"other"
        assert walk(target, b"d", b"other")[1] == g


def test_a_deleted_file_ends_the_migration_and_the_source_serves_on(share: Path) -> None:
    with Session(source=share) as source:
        (g,) = walk(source, b"g")
        opened = source.open(g)
        source.call("UNLINK", ROOT, b"g\0", 0)
        with pytest.raises(OSError, match="/g: it has no name any more"):
            save(source.server)
        assert source.read(opened.fh, 0, 100) == b"other"


def test_a_deleted_file_is_an_error_to_the_guest_if_that_was_asked_for(share: Path) -> None:
    with sides(source=share) as (source, target):
        (g,) = walk(source, b"g")
        _, _, f = walk(source, b"d", b"e", b"f")
        opened, kept = source.open(g), source.open(f)
        (share / "g").unlink()
        move(source, target, GUEST_ERRORS)
        expect(errno.ESTALE, target.getattr, g)
        expect(errno.ESTALE, target.open, g)
        expect(errno.EBADF, target.read, opened.fh, 0, 10)
        assert target.read(kept.fh, 0, 100) == b"content"
        target.call("FORGET", g, (1).to_bytes(8, "little"), 0)
        assert not target.server.nodes.stale


@NEEDS_HANDLES
def test_a_deleted_file_is_found_by_its_handle_while_it_is_open_somewhere(share: Path) -> None:
    with sides(source=share) as (source, target):
        (g,) = walk(source, b"g")
        opened = source.open(g)
        source.call("UNLINK", ROOT, b"g\0", 0)
        load(target.server, save(source.server, BY_HANDLE), BY_HANDLE)
        target.unique = source.unique
        assert target.read(opened.fh, 0, 100) == b"other"
        assert target.getattr(g).nlink == 0


def test_what_is_not_there_on_the_target_is_told_as_asked(share: Path) -> None:
    with sides(source=share) as (source, target):
        d, e, f = walk(source, b"d", b"e", b"f")
        (g,) = walk(source, b"g")
        state = save(source.server)
        (share / "d" / "e").rename(share / "elsewhere")
        with pytest.raises(OSError, match="/d/e: there is no such file"):
            load(target.server, state)
        expect(errno.EIO, target.getattr, ROOT)
        load(target.server, state, GUEST_ERRORS)
        target.unique = source.unique
        assert target.getattr(d)
        for node in (e, f):
            expect(errno.ESTALE, target.getattr, node)
        assert target.getattr(g)


def test_another_file_by_the_same_name_is_noticed_if_handles_are_verified(share: Path) -> None:
    with sides(source=share) as (source, target):
        (g,) = walk(source, b"g")
        plain, verified = save(source.server), save(source.server, VERIFIED)
        (share / "new").write_bytes(b"not that one")
        (share / "new").rename(share / "g")
        with pytest.raises(OSError, match="/g: it is another file than there"):
            load(target.server, verified)
        load(target.server, verified, GUEST_ERRORS)
        expect(errno.ESTALE, target.getattr, g)
        load(target.server, plain)
        assert target.getattr(g).size == len(b"not that one")


def test_a_directory_where_a_file_was_is_not_taken_for_it(share: Path) -> None:
    with sides(source=share) as (source, target):
        (g,) = walk(source, b"g")
        state = save(source.server)
        (share / "g").unlink()
        (share / "g").mkdir()
        with pytest.raises(OSError, match="/g: it is a directory on one side only"):
            load(target.server, state)
        load(target.server, state, GUEST_ERRORS)
        expect(errno.ESTALE, target.getattr, g)


def test_a_file_moved_out_of_the_directory_is_lost(share: Path) -> None:
    with sides(source=share) as (source, target):
        d, e, f = walk(source, b"d", b"e", b"f")
        (share / "d" / "e").rename(share.parent / "e")
        for options in (BY_PATH, CONFIRMED):
            with pytest.raises(OSError, match="/d/e"):
                save(source.server, options)
        move(source, target, GUEST_ERRORS)
        assert target.getattr(d)
        for node in (e, f):
            expect(errno.ESTALE, target.getattr, node)


@NEEDS_HANDLES
def test_a_handle_of_a_file_outside_is_refused(share: Path) -> None:
    """A forged state names whatever is on the file system; what is shared is the limit."""
    with sides(source=share) as (source, target):
        (g,) = walk(source, b"g")
        state = save(source.server, BY_HANDLE)
        mine = oslib.name_to_handle_at(-100, os.fsencode(share / "g"))
        for victim in (share.parent / "outside", share.parent, Path("/")):
            other = oslib.name_to_handle_at(-100, os.fsencode(victim))
            if len(other) != len(mine):
                continue
            forged = resealed(state.replace(mine, other))
            assert forged != state
            with pytest.raises(OSError):
                load(target.server, forged)
            load(target.server, forged, GUEST_ERRORS)
            expect(errno.ESTALE, target.getattr, g)


def test_what_cannot_be_written_back_ends_the_migration_and_not_its_preparation(
    share: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    synced: list[str] = []

    def fdatasync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Session(source=share) as source:
        walk(source, b"g")
        (g,) = walk(source, b"g")
        opened = source.open(g)
        source.open(g, os.O_RDONLY)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        state = ServerState(source.server, MigrationOptions())
        state.prepare()
        deadline = time.monotonic() + 60
        while "could not be written back yet" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        state.cancel()
        assert synced == [str(share / "g")]
        with pytest.raises(OSError, match="Input/output error"):
            save(source.server)
        monkeypatch.undo()
        assert save(source.server)
        assert source.write(opened.fh, 0, b"on") == 2


@NEEDS_HANDLES
def test_descriptors_are_no_limit_to_how_many_nodes_are_carried(share: Path) -> None:
    for number in range(600):
        (share / f"n{number}").touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(256, used + 128), hard))
    try:
        with sides(source=share) as (source, target):
            nodes = [source.lookup(ROOT, b"n%d" % number).nodeid for number in range(600)]
            move(source, target)
            assert all(target.getattr(node).nlink == 1 for node in nodes)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_mount_of_the_host_below_is_crossed(share: Path) -> None:
    """Every option finds what is on another file system of the host."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(share / "d" / "e")
    if libc.mount(b"none", place, b"tmpfs", 0, None):
        pytest.skip("mount(2) is not permitted here")
    try:
        (share / "d/e/inner").write_bytes(b"inside")
        for options in (BY_PATH, VERIFIED, CONFIRMED, BY_HANDLE):
            with sides(source=share) as (source, target):
                _, e, inner = walk(source, b"d", b"e", b"inner")
                opened = source.open(inner)
                move(source, target, options)
                assert target.read(opened.fh, 0, 10) == b"inside"
                assert target.lookup(e, b"inner").nodeid == inner
    finally:
        libc.umount2(place, 2)
