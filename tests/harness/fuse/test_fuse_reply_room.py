"""A reply that does not fit: nothing has happened, and nothing is counted."""

from __future__ import annotations

import tracemalloc
from errno import EINVAL, EIO
from pathlib import Path

import pytest
from fuse_requests import Requests, state
from fuse_session import ROOT, Session

from harness.fuse import abi
from harness.fuse.opcodes import BY_NUMBER, OPCODES, SILENT, Opcode

# Their replies vary; what they answer in too small a room is tested one by one.
VARIABLE = ("READLINK", "READ", "GETXATTR", "LISTXATTR", "READDIR", "READDIRPLUS")


@pytest.fixture(params=["tmpfs", "passthrough"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Session:
    return Session(source=tmp_path if request.param == "passthrough" else None)


def ask(session: Session, row: Opcode, requests: Requests, room: int, cut: int) -> tuple[int, int]:
    """The reply's length and error, with ``room`` for it in segments of ``cut`` bytes."""
    nodeid, body = requests.by_name[row.name]
    request = memoryview(bytearray(session.request(row.number, nodeid, body)))
    back = bytearray(room)
    view = memoryview(back)
    reply = [view[at : at + cut] for at in range(0, room, cut)]
    late: list[int] = []
    length = session.server.handle([request], reply, late.append)
    assert not late
    if not length:
        return 0, 0
    told, error, unique = abi.OUT_HEADER.unpack_from(back)
    assert (told, unique) == (length, session.unique)
    assert 16 <= length <= room
    assert length == 16 or not error
    return length, -error


@pytest.mark.parametrize("cut", [7, 16, 1 << 20])
@pytest.mark.parametrize("room", [0, 15, 16, 17, 100])
def test_a_reply_without_room_leaves_everything_as_it_was(
    session: Session, room: int, cut: int
) -> None:
    with session:
        requests = Requests(session)
        assert set(requests.by_name) == {row.name for row in OPCODES}
        for row in OPCODES:
            if row.name in ("INIT", "DESTROY"):
                continue
            before = state(session)
            length, error = ask(session, row, requests, room, cut)
            if row.kind == SILENT or room < 16:
                assert length == 0, row.name
            if room < 16 + row.result:
                assert state(session) == before, row.name
                assert room < 16 or row.kind == SILENT or error == EIO, row.name
            elif row.name not in VARIABLE and row.kind != SILENT:
                assert error != EIO, row.name
            session.server.check()
            session.vfs.check()


@pytest.mark.parametrize("name", ["INIT", "DESTROY"])
def test_a_session_neither_starts_nor_ends_by_a_request_that_cannot_be_answered(name: str) -> None:
    row = next(row for row in BY_NUMBER.values() if row.name == name)
    with Session() as session:
        requests = Requests(session)
        before = state(session)
        for room in (0, 15, 16 + row.result - 1):
            ask(session, row, requests, room, 1 << 20)
            assert state(session) == before


@pytest.mark.parametrize("room", [16, 17, 65])
def test_variable_replies_that_do_not_fit_are_errors_or_short(session: Session, room: int) -> None:
    with session:
        requests = Requests(session)
        before = state(session)
        rows = {row.name: row for row in OPCODES}
        for name in VARIABLE:
            length, error = ask(session, rows[name], requests, room, 1 << 20)
            if name == "READ":
                assert (length, error) == (room, 0)
            elif name in ("READDIR", "READDIRPLUS") and room < 48:
                assert (length, error) == (16, EINVAL)
            elif name not in ("READDIR", "LISTXATTR"):
                assert error, name
            assert state(session) == before, name


def test_readdirplus_counts_only_the_names_that_it_told(session: Session) -> None:
    with session:
        for index in range(20):
            session.mkdir(ROOT, b"%02d" % index)
        for nodeid in list(session.server.nodes.by_id)[1:]:
            session.forget(nodeid)
        fh = session.opendir(ROOT)
        told = session.readdir(fh, 0, 1000, plus=True)
        assert 0 < len(told) < 20
        nodes = session.server.nodes.by_id
        assert {nodeid for *_, nodeid in told} - {0} == set(nodes) - {ROOT}
        assert all(node.nlookup == 1 for node in nodes.values())


def test_a_listing_is_never_longer_than_a_listing_may_be() -> None:
    with Session() as session:
        for index in range(100):
            session.mkdir(ROOT, b"%0200d" % index)
        fh = session.opendir(ROOT)
        body = abi.READ_IN.pack(fh, 0, 1 << 31, 0, 0, 0, 0)
        request = memoryview(bytearray(session.request(28, ROOT, body)))
        # As a chain whose descriptors all name one page claims: room for 2 GiB, of which the server
        # must not make a buffer.
        page = memoryview(bytearray(1 << 20))
        tracemalloc.start()
        try:
            length = session.server.handle([request], [page[:16], *[page] * 2048], lambda _: None)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert 16 < length < 1 << 20
        assert peak < 4 << 20
