from __future__ import annotations

from errno import EBADF, EINVAL, ENOENT, ENOTDIR, ENOTEMPTY
from stat import S_IFDIR, S_IFREG

from fuse_session import ROOT, Session, expect


def test_a_large_directory_is_listed_whole_with_any_buffer() -> None:
    with Session() as session:
        names = {b"name-%04d" % number for number in range(500)}
        for name in names:
            session.mknod(ROOT, name, S_IFREG | 0o644)
        fh = session.opendir(ROOT)
        for size in (200, 4096, 65536):
            for plus in (False, True):
                listed = [name for name, _ in session.list(fh, size, plus)]
                assert len(listed) == 502
                assert set(listed) == names | {b".", b".."}
        session.releasedir(fh)


def test_readdirplus_counts_a_lookup_for_each_name_but_the_dots() -> None:
    with Session() as session:
        entry = session.mkdir(ROOT, b"dir")
        session.forget(entry.nodeid)
        fh = session.opendir(ROOT)
        listed = dict(session.list(fh, plus=True))
        assert (listed[b"."], listed[b".."]) == (0, 0)
        nodeid = listed[b"dir"]
        assert session.lookup(ROOT, b"dir").nodeid == nodeid
        session.forget(nodeid, 2)
        assert nodeid not in session.server.nodes.by_id
        session.releasedir(fh)


def test_an_entry_that_does_not_fit_is_not_looked_up() -> None:
    with Session() as session:
        nodes = [session.mkdir(ROOT, b"dir%d" % number).nodeid for number in range(4)]
        for nodeid in nodes:
            session.forget(nodeid)
        fh = session.opendir(ROOT)
        batch = session.readdir(fh, 0, 160 * 4 - 1, plus=True)
        assert [name for name, *_ in batch] == [b".", b"..", b"dir0"]
        assert len(session.server.nodes.by_id) == 2
        session.releasedir(fh)


def test_a_buffer_too_small_for_one_entry_fails_with_einval() -> None:
    with Session() as session:
        fh = session.opendir(ROOT)
        expect(EINVAL, session.readdir, fh, 0, 31)
        expect(EINVAL, session.readdir, fh, 0, 159, plus=True)
        assert session.readdir(fh, 0, 32)[0][0] == b"."
        session.releasedir(fh)


def test_a_listing_survives_names_that_come_and_go() -> None:
    with Session() as session:
        for number in range(100):
            session.mknod(ROOT, b"stays-%02d" % number, S_IFREG)
        fh = session.opendir(ROOT)
        seen: list[bytes] = []
        offset = 0
        step = 0
        while batch := session.readdir(fh, offset, 300, plus=True):
            seen.extend(name for name, *_ in batch)
            offset = batch[-1][3]
            if step < 50:
                session.mknod(ROOT, b"new-%d" % step, S_IFREG)
            if 0 < step <= 50:
                session.call("UNLINK", ROOT, b"new-%d\0" % (step - 1), 0)
            step += 1
        stays = [name for name in seen if name.startswith(b"stays")]
        assert sorted(stays) == [b"stays-%02d" % number for number in range(100)]
        session.releasedir(fh)


def test_seekdir_returns_to_a_cookie() -> None:
    with Session() as session:
        for number in range(20):
            session.mknod(ROOT, b"%d" % number, S_IFREG)
        fh = session.opendir(ROOT)
        first = session.readdir(fh, 0, 4096)
        again = session.readdir(fh, first[5][3], 4096)
        assert again == first[6:]
        assert session.readdir(fh, 0, 4096) == first
        session.releasedir(fh)


def test_types_are_told() -> None:
    with Session() as session:
        session.mkdir(ROOT, b"dir")
        session.mknod(ROOT, b"file", S_IFREG)
        fh = session.opendir(ROOT)
        kinds = {name: kind for name, _, kind, *_ in session.readdir(fh)}
        assert kinds[b"dir"] == S_IFDIR >> 12
        assert kinds[b"file"] == S_IFREG >> 12
        session.releasedir(fh)


def test_directory_handles_are_directory_handles() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        expect(ENOTDIR, session.opendir, entry.nodeid)
        expect(EBADF, session.readdir, opened.fh)
        expect(EBADF, session.releasedir, 99)


def test_a_removed_directory_lists_nothing() -> None:
    with Session() as session:
        entry = session.mkdir(ROOT, b"dir")
        fh = session.opendir(entry.nodeid)
        session.create(entry.nodeid, b"file")
        expect(ENOTEMPTY, session.call, "RMDIR", ROOT, b"dir\0", 0)
        session.call("UNLINK", entry.nodeid, b"file\0", 0)
        session.call("RMDIR", ROOT, b"dir\0", 0)
        expect(ENOENT, session.readdir, fh)
        session.releasedir(fh)
