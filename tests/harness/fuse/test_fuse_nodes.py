from __future__ import annotations

from errno import EINVAL, ENAMETOOLONG, ENOENT, ESTALE
from stat import S_ISDIR

import pytest
from fuse_session import ALL_FLAGS, ROOT, Session, expect, mount_tmpfs

from harness.fuse import abi
from vfs.mount import VirtualDentry


def test_lookup_of_a_missing_name_fails_with_enoent() -> None:
    with Session() as session:
        expect(ENOENT, session.lookup, ROOT, b"missing")


def test_names_that_cannot_be_are_refused() -> None:
    with Session() as session:
        expect(EINVAL, session.lookup, ROOT, b"")
        expect(EINVAL, session.lookup, ROOT, b"a/b")
        expect(EINVAL, session.lookup, ROOT, b"a\0b")
        expect(EINVAL, session.call, "LOOKUP", ROOT, b"unterminated", 128)
        expect(ENAMETOOLONG, session.lookup, ROOT, b"n" * 256)
        expect(ENAMETOOLONG, session.mkdir, ROOT, b"n" * 256)
        expect(EINVAL, session.mkdir, ROOT, b"a/b")


def test_a_node_lives_until_its_last_lookup_is_forgotten() -> None:
    with Session() as session:
        entry = session.mkdir(ROOT, b"dir")
        assert session.lookup(ROOT, b"dir").nodeid == entry.nodeid
        session.forget(entry.nodeid)
        assert S_ISDIR(session.getattr(entry.nodeid).mode)
        session.forget(entry.nodeid)
        expect(ESTALE, session.getattr, entry.nodeid)
        session.server.check()


def test_batch_forget_forgets_each() -> None:
    with Session() as session:
        a, b = session.mkdir(ROOT, b"a"), session.mkdir(ROOT, b"b")
        body = abi.BATCH_FORGET_IN.pack(2, 0)
        body += abi.FORGET_ONE.pack(a.nodeid, 1) + abi.FORGET_ONE.pack(b.nodeid, 1)
        assert session.call("BATCH_FORGET", 0, body, 0) == b""
        expect(ESTALE, session.getattr, a.nodeid)
        expect(ESTALE, session.getattr, b.nodeid)


def test_forgetting_more_than_was_looked_up_takes_no_more_than_there_was() -> None:
    with Session() as session:
        session.mkdir(ROOT, b"dir")
        entry = session.lookup(ROOT, b"dir")
        session.forget(entry.nodeid, 1000)
        session.forget(entry.nodeid, 1)
        session.forget(ROOT, 1 << 63)
        session.server.check()
        assert S_ISDIR(session.getattr(ROOT).mode)


def test_hard_links_share_a_node() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"one")
        linked = session.link(entry.nodeid, ROOT, b"two")
        assert linked.nodeid == entry.nodeid
        assert linked.attr.nlink == 2
        assert session.lookup(ROOT, b"two").nodeid == entry.nodeid


def test_a_node_outlives_the_name_it_was_found_by() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"one")
        session.link(entry.nodeid, ROOT, b"two")
        session.call("UNLINK", ROOT, b"one\0", 0)
        assert session.lookup(ROOT, b"two").nodeid == entry.nodeid
        session.call("UNLINK", ROOT, b"two\0", 0)
        assert session.getattr(entry.nodeid).nlink == 0
        assert session.write(opened.fh, 0, b"still here") == 10
        session.release(opened.fh)
        session.forget(entry.nodeid, 3)
        expect(ESTALE, session.getattr, entry.nodeid)


def test_dot_and_dotdot_are_looked_up_for_file_handles() -> None:
    with Session() as session:
        a = session.mkdir(ROOT, b"a")
        b = session.mkdir(a.nodeid, b"b")
        assert session.lookup(b.nodeid, b"..").nodeid == a.nodeid
        assert session.lookup(b.nodeid, b".").nodeid == b.nodeid
        assert session.lookup(ROOT, b"..").nodeid == ROOT


def test_a_mount_point_is_crossed_and_announced() -> None:
    with Session() as session:
        below = session.mkdir(ROOT, b"mnt")
        mount_tmpfs(session, below.nodeid)
        above = session.lookup(ROOT, b"mnt")
        assert above.nodeid != below.nodeid
        assert above.attr.flags & abi.ATTR_SUBMOUNT
        assert not below.attr.flags & abi.ATTR_SUBMOUNT
        assert above.attr.ino == 1
        session.create(above.nodeid, b"inside")
        assert session.lookup(above.nodeid, b"..").nodeid == ROOT


def test_without_submounts_inode_numbers_of_two_filesystems_differ() -> None:
    with Session(flags=ALL_FLAGS & ~abi.SUBMOUNTS) as session:
        below = session.mkdir(ROOT, b"mnt")
        mount_tmpfs(session, below.nodeid)
        above = session.lookup(ROOT, b"mnt")
        assert not above.attr.flags & abi.ATTR_SUBMOUNT
        assert above.attr.ino != session.getattr(ROOT).ino
        fh = session.opendir(above.nodeid)
        listed = {name: ino for name, ino, *_ in session.readdir(fh)}
        assert listed[b"."] == above.attr.ino
        session.releasedir(fh)


def test_readdirplus_crosses_mount_points() -> None:
    with Session() as session:
        below = session.mkdir(ROOT, b"mnt")
        mount_tmpfs(session, below.nodeid)
        above = session.lookup(ROOT, b"mnt")
        fh = session.opendir(ROOT)
        assert (b"mnt", above.nodeid) in session.list(fh, plus=True)
        session.releasedir(fh)


def test_reset_gives_every_reference_back() -> None:
    with Session() as session:
        before = dict(session.vfs.ledger.live)
        entry, _ = session.create(ROOT, b"open")
        session.opendir(session.mkdir(ROOT, b"dir").nodeid)
        session.link(entry.nodeid, ROOT, b"link")
        session.server.reset()
        live = dict(session.vfs.ledger.live)
        # Two more inodes and three more names exist; nobody holds descriptions of them.
        assert sum(live.values()) - sum(before.values()) == 5
        root = VirtualDentry(session.root.mount, session.root.dentry)
        assert root.dentry.children is not None
        for child in root.dentry.children.values():
            assert child.count == 1


@pytest.mark.parametrize("name", [b"LOOKUP", b"GETATTR"])
def test_an_unknown_node_fails_with_estale(name: bytes) -> None:
    with Session() as session:
        expect(ESTALE, session.call, name.decode(), 99, b"name\0" * 5, 128)


def test_a_lookup_that_fails_beyond_a_mount_point_counts_and_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Session() as session:
        point = session.mkdir(ROOT, b"point")
        mount_tmpfs(session, point.nodeid)
        top = session.lookup(ROOT, b"point")
        node = session.server.nodes.by_id[top.nodeid]
        held = node.dentry.count, node.nlookup, session.root.dentry.count

        def stale(self: object) -> None:
            raise OSError(ESTALE, "stale")

        monkeypatch.setattr(type(node.inode), "refresh", stale)
        expect(ESTALE, session.lookup, ROOT, b"point")
        expect(ESTALE, session.lookup, top.nodeid, b".")
        expect(ESTALE, session.lookup, top.nodeid, b"..")
        monkeypatch.undo()
        assert (node.dentry.count, node.nlookup, session.root.dentry.count) == held
