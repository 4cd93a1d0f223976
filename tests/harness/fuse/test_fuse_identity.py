from __future__ import annotations

import os
import struct
import tracemalloc
from errno import EACCES, EINVAL, ENOENT
from stat import S_IMODE

from fuse_session import ROOT, Session, expect

from harness.fuse import abi
from harness.fuse.cache import ALWAYS


def test_what_is_created_belongs_to_the_caller() -> None:
    with Session() as session:
        session.uid, session.gid = 1000, 2000
        for entry in (
            session.create(ROOT, b"file")[0],
            session.mkdir(ROOT, b"dir"),
            session.symlink(ROOT, b"link", b"target"),
            session.mknod(ROOT, b"fifo", 0o010644),
        ):
            assert (entry.attr.uid, entry.attr.gid) == (1000, 2000)


def test_a_setgid_directory_gives_its_group() -> None:
    with Session() as session:
        shared = session.mkdir(ROOT, b"shared")
        session.setattr(shared.nodeid, abi.FATTR_GID, gid=50)
        session.setattr(shared.nodeid, abi.FATTR_MODE, mode=0o2777)
        session.uid, session.gid = 1000, 1000
        assert session.create(shared.nodeid, b"file")[0].attr.gid == 50
        below = session.mkdir(shared.nodeid, b"below")
        assert below.attr.gid == 50
        assert S_IMODE(below.attr.mode) & 0o2000


def test_the_clients_kernel_checks_permissions_by_default() -> None:
    with Session() as session:
        private = session.mkdir(ROOT, b"private", 0o700)
        session.uid = session.gid = 1000
        assert session.create(private.nodeid, b"file")[0].attr.uid == 1000


def test_supplementary_groups_travel_as_an_extension() -> None:
    with Session() as session:
        session.extensions = abi.EXT_HEADER.pack(16, abi.EXT_GROUPS) + bytes(
            [1, 0, 0, 0, 50, 0, 0, 0]
        )
        session.mkdir(ROOT, b"dir")
        session.create(ROOT, b"file")
        session.symlink(ROOT, b"link", b"target")
        session.extensions = abi.EXT_HEADER.pack(4, abi.EXT_GROUPS) + bytes(8)
        expect(EINVAL, session.mkdir, ROOT, b"broken")
        session.extensions = abi.EXT_HEADER.pack(16, abi.EXT_GROUPS) + b"\xff" * 8
        expect(EINVAL, session.mkdir, ROOT, b"broken")
        session.extensions = b""


def test_without_default_permissions_the_checks_are_ours() -> None:
    with Session(default_permissions=False) as session:
        session.pid = os.getpid()
        private = session.mkdir(ROOT, b"private", 0o700)
        session.create(private.nodeid, b"file")
        session.uid = session.gid = 1000
        session.pid = 0  # nobody: ids alone count
        expect(EACCES, session.lookup, private.nodeid, b"file")
        expect(EACCES, session.create, private.nodeid, b"other")
        expect(EACCES, session.opendir, private.nodeid)
        expect(EACCES, session.call, "ACCESS", private.nodeid, abi.ACCESS_IN.pack(4, 0), 0)


def test_long_lists_of_groups_are_not_kept() -> None:
    """Thousands of identities are remembered; with 60000 groups each they would be gigabytes."""
    with Session() as session:
        tracemalloc.start()
        try:
            for index in range(5):
                groups = struct.pack("<I60000I", 60000, *range(index, 60000 + index))
                extension = abi.EXT_HEADER.pack(8 + len(groups), abi.EXT_GROUPS) + groups
                session.extensions = extension + bytes(-len(extension) % 8)
                session.mkdir(ROOT, b"%d" % index)
            session.extensions = b""
            del groups, extension
            assert tracemalloc.get_traced_memory()[0] < 1 << 20
        finally:
            tracemalloc.stop()


def test_without_default_permissions_the_client_may_not_keep_names() -> None:
    """Its cache would take a user who may not search a directory to what another found there."""
    with Session(default_permissions=False, cache=ALWAYS._replace(negative_ns=10**9)) as session:
        session.pid = os.getpid()
        private = session.mkdir(ROOT, b"private", 0o700)
        session.create(private.nodeid, b"file")
        found = session.lookup(private.nodeid, b"file")
        assert (private.entry_s, found.entry_s) == (0, 0)
        assert found.attr_s
        expect(ENOENT, session.lookup, private.nodeid, b"none")
    with Session() as session:
        assert session.mkdir(ROOT, b"dir").entry_s == 1
