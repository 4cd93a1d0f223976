from __future__ import annotations

import os
from errno import E2BIG, EEXIST, EINVAL, ENODATA, ENOTDIR, ERANGE, EXDEV
from stat import S_IFBLK, S_IMODE

from fuse_session import ROOT, Session, expect, mount_tmpfs

from harness.fuse import abi
from vfs.abi import RENAME_EXCHANGE, RENAME_NOREPLACE, makedev


def test_setattr_changes_what_it_names_and_nothing_else() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"file", 0o644)
        attr = session.setattr(entry.nodeid, abi.FATTR_MODE, mode=0o600, uid=5, size=9)
        assert (S_IMODE(attr.mode), attr.uid, attr.size) == (0o600, 0, 0)
        attr = session.setattr(entry.nodeid, abi.FATTR_UID | abi.FATTR_GID, uid=5, gid=6)
        assert (attr.uid, attr.gid) == (5, 6)


def test_setattr_sets_times_with_nanoseconds_and_before_the_epoch() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"file")
        valid = abi.FATTR_ATIME | abi.FATTR_MTIME
        attr = session.setattr(
            entry.nodeid, valid, atime=-5, atime_ns=7, mtime=9, mtime_ns=999999999
        )
        assert (attr.atime, attr.atime_ns, attr.mtime, attr.mtime_ns) == (-5, 7, 9, 999999999)
        expect(EINVAL, session.setattr, entry.nodeid, abi.FATTR_ATIME, atime_ns=10**9)


def test_setattr_of_now_asks_our_clock() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"file")
        session.setattr(entry.nodeid, abi.FATTR_MTIME, mtime=1)
        before = session.vfs.clock.now_ns()
        attr = session.setattr(entry.nodeid, abi.FATTR_MTIME | abi.FATTR_MTIME_NOW)
        assert attr.mtime * 10**9 + attr.mtime_ns >= before


def test_truncate_through_a_handle_and_without() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"0123456789")
        valid = abi.FATTR_SIZE | abi.FATTR_FH
        assert session.setattr(entry.nodeid, valid, size=4, fh=opened.fh).size == 4
        assert session.setattr(entry.nodeid, abi.FATTR_SIZE, size=8).size == 8
        assert session.read(opened.fh, 0, 100) == b"0123\0\0\0\0"


def test_chown_drops_set_id_bits() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"file", 0o6755)
        attr = session.setattr(entry.nodeid, abi.FATTR_UID, uid=1000)
        assert S_IMODE(attr.mode) == 0o755


def test_a_setattr_of_nothing_drops_set_id_bits_and_says_so() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"file", 0o6755)
        assert S_IMODE(session.setattr(entry.nodeid, 0).mode) == 0o755
        assert S_IMODE(session.setattr(ROOT, 0).mode) == S_IMODE(session.getattr(ROOT).mode)
    with Session(flags=abi.INIT_EXT) as session:
        entry, _ = session.create(ROOT, b"file", 0o6755)
        assert S_IMODE(session.setattr(entry.nodeid, 0).mode) == 0o6755


def test_statx_adds_the_time_of_birth() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"x")
        fields = abi.STATX_OUT.unpack(
            session.call("STATX", entry.nodeid, abi.STATX_IN.pack(0, 0, 0, 0, 0xFFF), 288)
        )
        attr = session.getattr(entry.nodeid)
        assert fields[3] & 0x800
        assert (fields[9], fields[10], fields[11]) == (attr.mode, attr.ino, attr.size)
        born = fields[16] * 10**9 + fields[17]
        assert 0 < born < attr.mtime * 10**9 + attr.mtime_ns


def test_device_numbers_survive_the_wire() -> None:
    with Session() as session:
        rdev = makedev(259, 70000)
        node = session.mknod(ROOT, b"disk", S_IFBLK | 0o600, rdev)
        assert node.attr.rdev == rdev


def test_symlinks_are_read_whole() -> None:
    with Session() as session:
        entry = session.symlink(ROOT, b"link", b"t" * 4000)
        assert session.call("READLINK", entry.nodeid) == b"t" * 4000
        expect(EINVAL, session.call, "READLINK", ROOT)


def test_extended_attributes_keep_to_the_size_asked_for() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"file")

        def get(name: bytes, size: int) -> bytes:
            body = abi.GETXATTR_IN.pack(size, 0) + name + b"\0"
            return session.call("GETXATTR", entry.nodeid, body, size or 8)

        def put(name: bytes, value: bytes, flags: int = 0) -> None:
            body = abi.SETXATTR_IN.pack(len(value), flags, 0, 0) + name + b"\0" + value
            session.call("SETXATTR", entry.nodeid, body, 0)

        put(b"user.a", b"value\0with nul")
        assert get(b"user.a", 0) == abi.GETXATTR_OUT.pack(14, 0)
        assert get(b"user.a", 14) == b"value\0with nul"
        expect(ERANGE, get, b"user.a", 13)
        expect(ENODATA, get, b"user.b", 10)
        expect(EEXIST, put, b"user.a", b"", 1)
        expect(E2BIG, put, b"user.a", bytes(65537))
        listed = session.call("LISTXATTR", entry.nodeid, abi.GETXATTR_IN.pack(100, 0), 100)
        assert listed == b"user.a\0"
        expect(ERANGE, session.call, "LISTXATTR", entry.nodeid, abi.GETXATTR_IN.pack(6, 0), 100)
        session.call("REMOVEXATTR", entry.nodeid, b"user.a\0", 0)
        expect(ENODATA, get, b"user.a", 10)


def test_an_extended_attribute_whose_size_lies_is_refused() -> None:
    with Session() as session:
        body = abi.SETXATTR_IN.pack(100, 0, 0, 0) + b"user.a\0value"
        expect(EINVAL, session.call, "SETXATTR", ROOT, body, 0)
        expect(EINVAL, session.call, "SETXATTR", ROOT, body[:20], 0)


def test_a_client_without_setxattr_ext_sends_the_short_structure() -> None:
    with Session(flags=abi.INIT_EXT) as session:
        body = abi.SETXATTR_COMPAT_IN.pack(5, 0) + b"user.a\0value"
        session.call("SETXATTR", ROOT, body, 0)
        body = abi.GETXATTR_IN.pack(5, 0) + b"user.a\0"
        assert session.call("GETXATTR", ROOT, body, 5) == b"value"


def test_statfs_tells_the_figures_of_the_filesystem() -> None:
    with Session() as session:
        figures = abi.KSTATFS.unpack(session.call("STATFS", ROOT, b"", 80))
        assert figures[5:8] == (4096, 255, 4096)


def test_rename_exchanges_and_refuses_to_replace() -> None:
    with Session() as session:
        file, _ = session.create(ROOT, b"file")
        directory = session.mkdir(ROOT, b"dir")

        def rename(flags: int, old: bytes, new: bytes) -> None:
            body = abi.RENAME2_IN.pack(ROOT, flags, 0) + old + b"\0" + new + b"\0"
            session.call("RENAME2", ROOT, body, 0)

        expect(EEXIST, rename, RENAME_NOREPLACE, b"file", b"dir")
        rename(RENAME_EXCHANGE, b"file", b"dir")
        assert session.lookup(ROOT, b"dir").nodeid == file.nodeid
        assert session.lookup(ROOT, b"file").nodeid == directory.nodeid
        body = abi.RENAME_IN.pack(directory.nodeid) + b"dir\0moved\0"
        session.call("RENAME", ROOT, body, 0)
        assert session.lookup(directory.nodeid, b"moved").nodeid == file.nodeid
        expect(
            ENOTDIR, session.call, "RENAME", ROOT, abi.RENAME_IN.pack(file.nodeid) + b"file\0x\0"
        )
        expect(EINVAL, session.call, "RENAME", ROOT, abi.RENAME_IN.pack(ROOT) + b"only one\0")


def test_rename_and_link_across_mounts_fail_with_exdev() -> None:
    with Session() as session:
        mount_tmpfs(session, session.mkdir(ROOT, b"mnt").nodeid)
        above = session.lookup(ROOT, b"mnt")
        file, _ = session.create(ROOT, b"file")
        body = abi.RENAME_IN.pack(above.nodeid) + b"file\0file\0"
        expect(EXDEV, session.call, "RENAME", ROOT, body, 0)
        expect(EXDEV, session.link, file.nodeid, above.nodeid, b"link")


def test_truncating_through_a_handle_needs_one_that_is_open_for_writing() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"data")
        reader = session.open(entry.nodeid, os.O_RDONLY)
        size = abi.FATTR_SIZE | abi.FATTR_FH
        expect(EINVAL, session.setattr, entry.nodeid, size, fh=reader.fh, size=0)
        assert session.getattr(entry.nodeid).size == 4
        assert session.setattr(entry.nodeid, size, fh=opened.fh, size=1).size == 1
