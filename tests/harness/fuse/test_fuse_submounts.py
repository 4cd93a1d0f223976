"""Mounts that come and go in the tree while a client knows places of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBUSY, EROFS, ESTALE
from pathlib import Path
from typing import Any

import pytest
from fuse_session import ALL_FLAGS, ROOT, Session, expect

from harness.fuse import abi
from harness.fuse.server import FuseServer
from vfs.abi import (
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    MS_MOVE,
    MS_RDONLY,
    MS_REMOUNT,
    O_CREAT,
    O_RDONLY,
    O_WRONLY,
)
from vfs.mount import VirtualDentry
from vfs.namei import traverse_mounts
from vfs.task import Task

WITHOUT_SUBMOUNTS = ALL_FLAGS & ~abi.SUBMOUNTS


@contextmanager
def served(**options: Any) -> Iterator[tuple[Session, Task]]:
    """A session and a task of root's in the same namespace, which ends with what it checks."""
    with Session(**options) as session:
        yield session, session.vfs.create_task(session.namespace)


@contextmanager
def told(**options: Any) -> Iterator[tuple[Session, Task, list[tuple[int, bytes]]]]:
    """As `served`; also the names that the client is told to drop, with their directory's node."""
    names: list[tuple[int, bytes]] = []

    def notify(code: int, payload: bytes) -> None:
        assert code == abi.NOTIFY_INVAL_ENTRY
        nodeid, length, flags = struct.unpack_from("<QII", payload)
        assert (flags, payload[16 + length :]) == (0, b"\0")
        names.append((nodeid, payload[16 : 16 + length]))

    with served(notify=notify, **options) as (session, task):
        yield session, task, names


def write(task: Task, path: str, data: bytes) -> None:
    fd = task.open(path, O_WRONLY | O_CREAT, 0o644)
    task.write(fd, data)
    task.close(fd)


def content(session: Session, parent: int, name: bytes) -> bytes:
    """What a client reads that looks ``name`` up, reads it and forgets it."""
    nodeid = session.lookup(parent, name).nodeid
    fh = session.open(nodeid, O_RDONLY).fh
    data = session.read(fh, 0, 4096)
    session.release(fh)
    session.forget(nodeid)
    return data


def expect_errno(number: int, function: Any, *args: Any) -> None:
    with pytest.raises(OSError) as caught:
        function(*args)
    assert caught.value.errno == number


@pytest.mark.parametrize("flags", [ALL_FLAGS, WITHOUT_SUBMOUNTS])
def test_a_mount_covers_the_directory_and_an_unmount_uncovers_it(flags: int) -> None:
    with served(flags=flags) as (session, task):
        task.mkdir("/mnt")
        write(task, "/mnt/file", b"below")
        below = session.lookup(ROOT, b"mnt")
        assert content(session, below.nodeid, b"file") == b"below"
        task.mount("none", "/mnt", "tmpfs")
        write(task, "/mnt/file", b"above, and longer")
        above = session.lookup(ROOT, b"mnt")
        assert above.nodeid != below.nodeid
        assert content(session, above.nodeid, b"file") == b"above, and longer"
        task.umount2("/mnt")
        assert session.lookup(ROOT, b"mnt").nodeid == below.nodeid
        assert content(session, below.nodeid, b"file") == b"below"


def test_known_nodes_keep_no_mount_busy_and_are_stale_afterwards() -> None:
    with served() as (session, task):
        task.mkdir("/mnt")
        task.mount("none", "/mnt", "tmpfs")
        top = session.lookup(ROOT, b"mnt").nodeid
        directory = session.mkdir(top, b"dir").nodeid
        file, opened = session.create(directory, b"file")
        session.release(opened.fh)
        session.server.check()
        task.umount2("/mnt")
        session.server.check()
        for nodeid in (top, directory, file.nodeid):
            expect(ESTALE, session.getattr, nodeid)
            expect(ESTALE, session.lookup, nodeid, b".")
            expect(ESTALE, session.lookup, nodeid, b"..")
            expect(ESTALE, session.lookup, nodeid, b"dir")
        expect(ESTALE, session.open, file.nodeid)
        expect(ESTALE, session.opendir, directory)
        expect(ESTALE, session.mkdir, directory, b"new")
        expect(ESTALE, session.link, file.nodeid, ROOT, b"new")


def test_an_unmounted_filesystem_is_gone_though_a_client_knows_thousands_of_its_nodes() -> None:
    with served() as (session, task):
        task.mkdir("/mnt")
        before = dict(session.vfs.ledger.live)
        task.mount("none", "/mnt", "tmpfs")
        top = session.lookup(ROOT, b"mnt").nodeid
        known = [session.mkdir(top, b"%d" % index).nodeid for index in range(3000)]
        task.umount2("/mnt")
        assert session.vfs.ledger.live == before
        session.server.check()
        for nodeid in (top, *known):
            session.forget(nodeid)
        assert not session.server.nodes.stale
        assert set(session.server.nodes.by_id) == {ROOT}


def test_stale_nodes_are_forgotten_by_count_and_their_ids_are_not_given_again() -> None:
    with served() as (session, task):
        task.mkdir("/mnt")
        seen = set()
        for _ in range(3):
            task.mount("none", "/mnt", "tmpfs")
            nodeid = session.lookup(ROOT, b"mnt").nodeid
            assert nodeid not in seen
            seen.add(nodeid)
            session.lookup(ROOT, b"mnt")
            task.umount2("/mnt")
            session.forget(nodeid)
            assert session.server.nodes.stale == {nodeid: 1}
            session.forget(nodeid, 5)
            assert not session.server.nodes.stale
            session.forget(nodeid)
            session.server.check()


def test_an_open_file_keeps_its_mount_busy() -> None:
    with served() as (session, task):
        task.mkdir("/mnt")
        task.mount("none", "/mnt", "tmpfs")
        top = session.lookup(ROOT, b"mnt").nodeid
        file, opened = session.create(top, b"file")
        expect_errno(EBUSY, task.umount2, "/mnt")
        session.release(opened.fh)
        fh = session.opendir(top)
        expect_errno(EBUSY, task.umount2, "/mnt")
        session.releasedir(fh)
        task.umount2("/mnt")
        expect(ESTALE, session.getattr, file.nodeid)


def test_a_lazily_unmounted_tree_works_until_its_last_file_is_closed() -> None:
    with served() as (session, task):
        task.mkdir("/mnt")
        before = dict(session.vfs.ledger.live)
        task.mount("none", "/mnt", "tmpfs")
        top = session.lookup(ROOT, b"mnt").nodeid
        file, opened = session.create(top, b"file")
        task.umount2("/mnt", MNT_DETACH)
        assert session.lookup(ROOT, b"mnt").nodeid != top
        assert session.write(opened.fh, 0, b"still here") == 10
        assert session.read(opened.fh, 0, 100) == b"still here"
        # Who stands inside goes on walking, and finds no way out.
        assert session.lookup(top, b"file").attr.size == 10
        assert session.lookup(top, b"..").nodeid == top
        session.server.check()
        session.release(opened.fh)
        expect(ESTALE, session.getattr, file.nodeid)
        session.forget(session.lookup(ROOT, b"mnt").nodeid, 2)
        assert session.vfs.ledger.live == before


def test_the_root_of_a_session_keeps_its_mount_busy_as_a_tasks_does() -> None:
    with Session(init=False) as session:
        task = session.vfs.create_task(session.namespace)
        task.mkdir("/export")
        before = dict(session.vfs.ledger.live)
        task.mount("none", "/export", "tmpfs")
        children = session.root.dentry.children
        assert children is not None
        export = VirtualDentry(*traverse_mounts(session.root.mount, children[b"export"]))
        session.server = FuseServer(session.vfs, export)
        session.init()
        expect_errno(EBUSY, task.umount2, "/export")
        task.umount2("/export", MNT_DETACH)
        session.mkdir(ROOT, b"dir")
        session.server.check()
        session.server.reset()
        assert session.vfs.ledger.live == before


def test_the_end_of_a_session_gives_pinned_mounts_back() -> None:
    with served() as (session, task):
        task.mkdir("/mnt")
        task.mount("none", "/mnt", "tmpfs")
        top = session.lookup(ROOT, b"mnt").nodeid
        session.mkdir(top, b"dir")
        session.server.reset()
        session.server.check()
        task.umount2("/mnt")
        session.init()
        assert session.lookup(ROOT, b"mnt").generation == 1


def test_readdirplus_gives_the_node_that_is_there_now() -> None:
    with served() as (session, task):
        task.mkdir("/mnt")
        fh = session.opendir(ROOT)
        below = dict(session.list(fh, plus=True))[b"mnt"]
        task.mount("none", "/mnt", "tmpfs")
        above = dict(session.list(fh, plus=True))[b"mnt"]
        task.umount2("/mnt")
        assert dict(session.list(fh, plus=True))[b"mnt"] == below
        assert above != below
        expect(ESTALE, session.getattr, above)
        session.releasedir(fh)


def test_a_directory_bound_onto_itself_is_a_mount_of_its_own() -> None:
    with served() as (session, task):
        task.mkdir("/dir")
        task.mkdir("/dir/inner")
        below = session.lookup(ROOT, b"dir").nodeid
        task.mount("/dir", "/dir", None, MS_BIND)
        task.mount(None, "/dir", None, MS_REMOUNT | MS_BIND | MS_RDONLY)
        bound = session.lookup(ROOT, b"dir")
        assert bound.nodeid != below
        assert bound.attr.flags & abi.ATTR_SUBMOUNT
        expect(EROFS, session.mkdir, bound.nodeid, b"new")
        task.mount("none", "/dir/inner", "tmpfs")
        assert session.lookup(bound.nodeid, b"inner").attr.flags & abi.ATTR_SUBMOUNT
        assert not session.lookup(below, b"inner").attr.flags & abi.ATTR_SUBMOUNT


def test_inode_numbers_stay_apart_however_many_mounts_came_and_went() -> None:
    with served(flags=WITHOUT_SUBMOUNTS) as (session, task):
        task.mkdir("/a")
        task.mkdir("/b")
        for _ in range(5):
            task.mount("none", "/a", "tmpfs")
            task.mount("none", "/b", "tmpfs")
            a, b = session.lookup(ROOT, b"a"), session.lookup(ROOT, b"b")
            numbers = {a.attr.ino, b.attr.ino, session.getattr(ROOT).ino}
            assert len(numbers) == 3
            task.umount2("/a")
            task.umount2("/b")


def test_the_client_is_told_the_name_that_is_mounted_on_and_unmounted() -> None:
    with told() as (session, task, names):
        task.mkdir("/dir")
        task.mkdir("/dir/mnt")
        task.mount("none", "/dir/mnt", "tmpfs")
        # A directory that the client does not know has no names for it.
        assert names == []
        directory = session.lookup(ROOT, b"dir").nodeid
        task.umount2("/dir/mnt")
        assert names == [(directory, b"mnt")]
        write(task, "/file", b"x")
        write(task, "/other", b"y")
        task.mount("/other", "/file", None, MS_BIND)
        assert names[1:] == [(ROOT, b"file")]


def test_what_is_mounted_on_a_mount_is_told_by_the_name_that_shows_both() -> None:
    with told() as (session, task, names):
        task.mkdir("/mnt")
        task.mount("none", "/mnt", "tmpfs")
        task.mount("none", "/mnt", "tmpfs")
        assert names == [(ROOT, b"mnt")] * 2
        top = session.lookup(ROOT, b"mnt").nodeid
        task.mkdir("/mnt/inner")
        task.mount("none", "/mnt/inner", "tmpfs")
        task.umount2("/mnt", MNT_DETACH)
        assert names[2] == (top, b"inner")
        assert (ROOT, b"mnt") in names[3:]
        session.server.check()


def test_a_move_is_told_at_both_ends() -> None:
    with told() as (session, task, names):
        task.mkdir("/old")
        task.mkdir("/new")
        task.mount("none", "/old", "tmpfs")
        task.mkdir("/old/inside")
        top = session.lookup(ROOT, b"old").nodeid
        names.clear()
        task.mount("/old", "/new", None, MS_MOVE)
        assert set(names) == {(ROOT, b"old"), (ROOT, b"new")}
        assert session.lookup(ROOT, b"new").nodeid == top
        assert session.lookup(ROOT, b"old").nodeid != top
        session.lookup(top, b"inside")


def test_a_mount_over_the_root_of_the_session_changes_nothing_for_the_client() -> None:
    with told() as (session, task, names):
        session.mkdir(ROOT, b"dir")
        task.mount("none", "/", "tmpfs")
        assert names == []
        session.lookup(ROOT, b"dir")
        task.umount2("/")


def test_nobody_is_told_after_the_end_of_the_session() -> None:
    with told() as (session, task, names):
        task.mkdir("/mnt")
        session.call("DESTROY", 0, b"", 0)
        task.mount("none", "/mnt", "tmpfs")
        assert names == []
        session.init()
        task.umount2("/mnt")
        assert names == [(ROOT, b"mnt")]


def test_a_name_that_is_mounted_on_elsewhere_only_is_still_created_over() -> None:
    """Another namespace's mounts are nobody's business here."""
    with served() as (session, task):
        write(task, "/file", b"old")
        write(task, "/other", b"x")
        elsewhere = task.clone(CLONE_NEWNS)
        elsewhere.mount("/other", "/file", None, MS_BIND)
        entry, opened = session.create(ROOT, b"file")
        assert entry.attr.size == 3
        session.release(opened.fh)


def test_a_mount_that_ends_by_a_lookup_through_itself_answers_and_is_stale(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    with Session(source=tmp_path) as session:
        task = session.vfs.create_task(session.namespace)
        task.mount("none", "/dir", "tmpfs")
        task.mkdir("/dir/again")
        task.mount("/", "/dir/again", None, MS_BIND)
        top = session.lookup(ROOT, b"dir").nodeid
        again = session.lookup(top, b"again").nodeid
        os.rmdir(tmp_path / "dir")
        (tmp_path / "dir").write_text("a file now")
        # The bind shows the directory whose name, it turns out, is gone, and the bind with it.
        session.lookup(again, b"dir")
        expect(ESTALE, session.getattr, again)
        expect(ESTALE, session.getattr, top)
        session.server.check()
        session.vfs.check()
