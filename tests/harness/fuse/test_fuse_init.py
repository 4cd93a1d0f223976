from __future__ import annotations

from errno import EIO, EPROTO

import pytest
from fuse_session import ALL_FLAGS, OP, ROOT, FuseError, Session, expect

from harness.fuse import abi


def test_init_agrees_on_the_lower_minor_version() -> None:
    with Session(init=False) as session:
        assert session.init(minor=38)[:2] == (7, 38)
    with Session(init=False) as session:
        assert session.init(minor=99)[:2] == (7, abi.KERNEL_MINOR_VERSION)


def test_init_of_a_newer_major_is_answered_with_ours_and_tried_again() -> None:
    with Session(init=False) as session:
        assert session.init(major=8)[:4] == (7, abi.KERNEL_MINOR_VERSION, 0, 0)
        expect(EIO, session.getattr, ROOT)
        session.init()
        assert session.getattr(ROOT).nlink == 2


@pytest.mark.parametrize(("major", "minor"), [(6, 45), (7, 26)])
def test_init_of_an_older_protocol_fails_with_eproto(major: int, minor: int) -> None:
    with Session(init=False) as session:
        expect(EPROTO, session.init, major=major, minor=minor)


def test_init_accepts_only_what_the_client_offers() -> None:
    offered = abi.ASYNC_READ | abi.WRITEBACK_CACHE | abi.INIT_EXT | abi.HAS_INODE_DAX
    with Session(init=False) as session:
        reply = session.init(flags=offered)
        assert reply[3] == abi.ASYNC_READ | abi.INIT_EXT
        assert reply[10] == 0


def test_init_without_max_pages_limits_writes_to_32_pages() -> None:
    with Session(init=False) as session:
        reply = session.init(flags=ALL_FLAGS & ~abi.MAX_PAGES)
        assert (reply[6], reply[8]) == (32 * 4096, 0)
    with Session(init=False) as session:
        reply = session.init()
        assert (reply[6], reply[8]) == (1 << 20, 256)


def test_init_of_a_client_without_flags2_gets_none() -> None:
    with Session(init=False) as session:
        assert session.init(flags=ALL_FLAGS & ~abi.INIT_EXT)[10] == 0


def test_locks_are_asked_for_unless_they_are_left_to_the_client() -> None:
    both = abi.POSIX_LOCKS | abi.FLOCK_LOCKS
    with Session(init=False) as session:
        assert session.init()[3] & both == both
    with Session(init=False, local_locks=True) as session:
        assert not session.init()[3] & both


def test_requests_before_init_fail_with_eio() -> None:
    with Session(init=False) as session:
        expect(EIO, session.getattr, ROOT)
        assert session.call("FORGET", 5, abi.FORGET_IN.pack(1), 0) == b""


def test_destroy_is_answered_and_ends_the_session() -> None:
    with Session() as session:
        session.create(ROOT, b"file")
        assert session.call("DESTROY", 0, b"", 0) == b""
        session.server.check()
        assert not session.server.nodes.by_id
        expect(EIO, session.getattr, ROOT)


def test_a_second_init_starts_over() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.init()
        with pytest.raises(FuseError):
            session.read(opened.fh, 0, 1)
        found = session.lookup(ROOT, b"file")
        assert (found.nodeid, found.generation) != (entry.nodeid, entry.generation)


def test_requests_are_counted_by_kind() -> None:
    with Session() as session:
        session.getattr(ROOT)
        session.getattr(ROOT)
        assert session.server.counts[OP["GETATTR"]] == 2
        assert session.server.statistics() == {"GETATTR": 2, "INIT": 1}
