"""What is on a tmpfs comes along, with the session that uses it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat

import pytest
from fuse_session import ROOT, FuseError, Session, expect
from migration_support import load, move, save, sides

from harness.fuse import abi

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
FLOCK = 1


def setlk(
    client: Session, nodeid: int, fh: int, owner: int, kind: int, start: int = 0, end: int = 9
) -> None:
    client.call("SETLK", nodeid, abi.LK_IN.pack(fh, owner, start, end, kind, 7, 0, 0), 0)


def flock(client: Session, nodeid: int, fh: int, owner: int, kind: int) -> None:
    end = (1 << 63) - 1
    client.call("SETLK", nodeid, abi.LK_IN.pack(fh, owner, 0, end, kind, 7, FLOCK, 0), 0)


def test_open_files_are_read_and_written_on_under_the_same_numbers() -> None:
    with sides() as (source, target):
        directory = source.mkdir(ROOT, b"d")
        entry, opened = source.create(directory.nodeid, b"f")
        content = random.Random(1).randbytes(700_001)
        source.write(opened.fh, 0, content)
        before = source.getattr(entry.nodeid)
        move(source, target)
        assert target.getattr(entry.nodeid) == before
        assert target.read(opened.fh, 0, 1 << 20) == content
        assert target.write(opened.fh, 5, b"new") == 3
        again = target.lookup(directory.nodeid, b"f")
        assert (again.nodeid, again.generation) == (entry.nodeid, entry.generation)
        # What the source never gave out is still not given out twice.
        assert target.mkdir(ROOT, b"e").nodeid > entry.nodeid
        assert target.open(entry.nodeid).fh > opened.fh


def test_every_kind_of_file_with_its_attributes_comes_along() -> None:
    with sides() as (source, target):
        nodes = {
            b"file": source.create(ROOT, b"file", 0o4751)[0].nodeid,
            b"dir": source.mkdir(ROOT, b"dir", 0o1777).nodeid,
            b"short": source.symlink(ROOT, b"short", b"target").nodeid,
            b"long": source.symlink(ROOT, b"long", b"t" * 3000).nodeid,
            b"null": source.mknod(ROOT, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3)).nodeid,
            b"disk": source.mknod(ROOT, b"disk", stat.S_IFBLK | 0o660, os.makedev(8, 1)).nodeid,
            b"fifo": source.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600).nodeid,
            b"sock": source.mknod(ROOT, b"sock", stat.S_IFSOCK | 0o755).nodeid,
        }
        values = {b"user.a": b"1", b"trusted.b": bytes(60000), b"security.c": b""}
        for name, value in values.items():
            body = abi.SETXATTR_IN.pack(len(value), 0, 0, 0) + name + b"\0" + value
            source.call("SETXATTR", nodes[b"dir"], body, 0)
        # The second one is beyond what 64 bits of nanoseconds can say.
        fields = {"atime": 1, "atime_ns": 2, "mtime": 1 << 62, "mtime_ns": 4}
        source.setattr(nodes[b"dir"], abi.FATTR_ATIME | abi.FATTR_MTIME, **fields)
        before = {name: source.getattr(nodeid) for name, nodeid in nodes.items()}
        statfs = source.call("STATFS", ROOT, b"", 80)
        move(source, target)
        assert {name: target.getattr(nodeid) for name, nodeid in nodes.items()} == before
        assert target.call("STATFS", ROOT, b"", 80) == statfs
        assert target.call("READLINK", nodes[b"long"]) == b"t" * 3000
        assert target.call("READLINK", nodes[b"short"]) == b"target"
        for name, value in values.items():
            body = abi.GETXATTR_IN.pack(65536, 0) + name + b"\0"
            assert target.call("GETXATTR", nodes[b"dir"], body, 65536) == value


def test_sparse_files_keep_their_holes_and_their_promised_pages() -> None:
    with sides() as (source, target):
        entry, opened = source.create(ROOT, b"f")
        random_ = random.Random(2)
        for _ in range(40):
            source.write(opened.fh, random_.randrange(1 << 34), random_.randbytes(5000))
        for offset, length, mode in ((1 << 35, 1 << 20, 1), (1 << 35, 8192, 1), (4096, 4096, 0)):
            body = abi.FALLOCATE_IN.pack(opened.fh, offset, length, mode, 0)
            source.call("FALLOCATE", entry.nodeid, body, 0)

        def map_of(client: Session) -> list[int]:
            found = []
            at = 0
            for whence in (3, 4) * 100:
                body = abi.LSEEK_IN.pack(opened.fh, at, whence, 0)
                try:
                    at = abi.LSEEK_OUT.unpack(client.call("LSEEK", entry.nodeid, body, 8))[0]
                except FuseError:
                    break
                found.append(at)
            return found

        holes = map_of(source)
        digest = [
            hashlib.sha256(source.read(opened.fh, at & ~4095, 1 << 16)).digest() for at in holes
        ]
        before = source.getattr(entry.nodeid)
        move(source, target)
        assert target.getattr(entry.nodeid) == before
        assert map_of(target) == holes
        assert digest == [
            hashlib.sha256(target.read(opened.fh, at & ~4095, 1 << 16)).digest() for at in holes
        ]


def test_hard_links_are_one_file_and_counted() -> None:
    with sides() as (source, target):
        entry, opened = source.create(ROOT, b"a")
        for name in (b"b", b"c"):
            source.link(entry.nodeid, ROOT, name)
        move(source, target)
        assert target.lookup(ROOT, b"c").nodeid == entry.nodeid
        target.write(opened.fh, 0, b"all")
        for name, left in ((b"a", 2), (b"b", 1)):
            target.call("UNLINK", ROOT, name + b"\0", 0)
            assert target.getattr(entry.nodeid).nlink == left
        other = target.open(target.lookup(ROOT, b"c").nodeid)
        assert target.read(other.fh, 0, 10) == b"all"


def test_deleted_files_and_directories_that_are_open_live_on() -> None:
    with sides() as (source, target):
        entry, opened = source.create(ROOT, b"f")
        source.write(opened.fh, 0, b"content")
        source.call("UNLINK", ROOT, b"f\0", 0)
        directory = source.mkdir(ROOT, b"d")
        listing = source.opendir(directory.nodeid)
        source.call("RMDIR", ROOT, b"d\0", 0)
        body = abi.CREATE_IN.pack(os.O_RDWR, stat.S_IFREG | 0o600, 0, 0) + b"\0"
        payload = source.call("TMPFILE", ROOT, body, 144)
        unnamed = abi.OPEN_OUT.unpack_from(payload, 128)[0]
        source.write(unnamed, 0, b"no name")
        used = len(source.server.vfs.superblocks)
        move(source, target)
        assert target.read(opened.fh, 0, 100) == b"content"
        assert target.read(unnamed, 0, 100) == b"no name"
        assert target.getattr(entry.nodeid).nlink == 0
        assert target.getattr(directory.nodeid).nlink == 0
        expect(errno.ENOENT, target.lookup, directory.nodeid, b"x")
        expect(errno.ENOENT, target.readdir, listing)
        # An O_TMPFILE can still be given a name.
        nodeid = abi.ENTRY_OUT.unpack_from(payload)[0]
        target.link(nodeid, ROOT, b"named")
        assert target.lookup(ROOT, b"named").nodeid == nodeid
        for fh in (opened.fh, unnamed):
            target.release(fh)
        target.releasedir(listing)
        assert used == len(target.server.vfs.superblocks)


def test_a_listing_goes_on_where_it_was() -> None:
    with sides() as (source, target):
        names = [b"%03d" % number for number in range(200)]
        for name in names:
            source.create(ROOT, name)
        source.call("UNLINK", ROOT, b"005\0", 0)
        fh = source.opendir(ROOT)
        seen = source.readdir(fh, 0, 1024)
        source.create(ROOT, b"later")
        move(source, target)
        found = [name for name, *_ in seen]
        offset = seen[-1][3]
        while batch := target.readdir(fh, offset, 1024):
            found += [name for name, *_ in batch]
            offset = batch[-1][3]
        # As on one machine: what came after the listing had begun is not in it.
        assert found == [b".", b"..", *(name for name in names if name != b"005")]


def test_locks_still_exclude_others_and_end_with_their_holders() -> None:
    with sides() as (source, target):
        entry, one = source.create(ROOT, b"f")
        two = source.open(entry.nodeid)
        setlk(source, entry.nodeid, one.fh, 11, F_WRLCK, 0, 9)
        setlk(source, entry.nodeid, one.fh, 11, F_RDLCK, 20, 29)
        flock(source, entry.nodeid, two.fh, 22, F_RDLCK)
        move(source, target)
        nodeid = entry.nodeid
        expect(errno.EAGAIN, setlk, target, nodeid, two.fh, 33, F_RDLCK)
        body = abi.LK_IN.pack(two.fh, 33, 0, 100, F_WRLCK, 0, 0, 0)
        assert abi.FILE_LOCK.unpack(target.call("GETLK", nodeid, body)) == (0, 9, F_WRLCK, 7)
        setlk(target, nodeid, two.fh, 33, F_RDLCK, 20, 29)
        setlk(target, nodeid, one.fh, 11, F_UNLCK)
        setlk(target, nodeid, two.fh, 33, F_WRLCK)
        expect(errno.EAGAIN, flock, target, nodeid, one.fh, 44, F_WRLCK)
        target.release(two.fh)
        flock(target, nodeid, one.fh, 44, F_WRLCK)
        target.release(one.fh)
        assert not len(target.vfs.locks)


def test_lookups_are_counted_on_and_forgotten_to_the_last() -> None:
    with sides() as (source, target):
        live = sum(target.vfs.ledger.live.values())
        entry, opened = source.create(ROOT, b"f")
        for _ in range(4):
            source.lookup(ROOT, b"f")
        source.call("UNLINK", ROOT, b"f\0", 0)
        move(source, target)
        source_nodes = target.server.nodes
        target.release(opened.fh)
        target.forget(entry.nodeid, 4)
        assert entry.nodeid in source_nodes.by_id
        target.forget(entry.nodeid, 1)
        assert entry.nodeid not in source_nodes.by_id
        assert set(source_nodes.by_id) == {ROOT}
        assert sum(target.vfs.ledger.live.values()) == live


def test_the_target_can_be_migrated_in_its_turn() -> None:
    with sides() as (source, target), Session(init=False) as third:
        entry, opened = source.create(ROOT, b"f")
        source.write(opened.fh, 0, b"one")
        setlk(source, entry.nodeid, opened.fh, 1, F_WRLCK)
        source.call("UNLINK", ROOT, b"f\0", 0)
        move(source, target)
        target.write(opened.fh, 3, b" two")
        other, _ = target.create(ROOT, b"g")
        move(target, third)
        assert third.read(opened.fh, 0, 100) == b"one two"
        assert third.lookup(ROOT, b"g").nodeid == other.nodeid
        expect(errno.EAGAIN, setlk, third, entry.nodeid, opened.fh, 2, F_RDLCK)
        third.vfs.check()


def test_saving_changes_nothing_and_the_source_serves_on() -> None:
    with Session() as source:
        entry, opened = source.create(ROOT, b"f")
        source.write(opened.fh, 0, b"here")
        first = save(source.server)
        assert save(source.server) == first
        assert source.read(opened.fh, 0, 10) == b"here"
        assert source.lookup(ROOT, b"f").nodeid == entry.nodeid


def test_what_was_on_the_target_before_is_gone() -> None:
    with sides() as (source, target):
        target.init()
        target.create(target.mkdir(ROOT, b"old").nodeid, b"file")
        target.mkdir(ROOT, b"both")
        source.mkdir(ROOT, b"both", 0o700)
        move(source, target)
        assert [name for name, _ in target.list(target.opendir(ROOT))] == [b".", b"..", b"both"]
        assert target.getattr(target.lookup(ROOT, b"both").nodeid).mode & 0o777 == 0o700


def test_a_session_that_has_ended_leaves_the_files() -> None:
    with sides() as (source, target):
        source.create(ROOT, b"f")
        source.call("DESTROY", 0, b"", 0)
        move(source, target)
        expect(errno.EIO, target.lookup, ROOT, b"f")
        target.init()
        assert target.lookup(ROOT, b"f")


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"announce_submounts": False}, "SUBMOUNTS"), ({"local_locks": True}, "POSIX_LOCKS")],
)
def test_flags_that_the_target_does_not_grant_are_refused(
    options: dict[str, bool], flag: str
) -> None:
    with Session() as source, Session(init=False, **options) as target:
        with pytest.raises(OSError, match=flag):
            load(target.server, save(source.server))
        # Nothing of it is left, and a guest that begins anew is served.
        target.init()
        assert target.list(target.opendir(ROOT)) == [(b".", 0), (b"..", 0)]
