"""Whatever a client sends, ``handle`` answers and its tables stay sound."""

from __future__ import annotations

import random
from errno import EINVAL, EIO, ENOSYS
from itertools import pairwise

import pytest
from fuse_requests import Requests, state
from fuse_session import OP, ROOT, FuseError, Session, expect, parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsimpl.tmpfs import TmpfsType
from harness.fuse import abi
from harness.fuse.opcodes import OPCODES
from harness.wire import PENDING
from vfs.virtual_filesystem import VirtualFilesystem

ANY_U32 = st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1))
ANY_U64 = st.one_of(st.integers(0, 8), st.integers(0, 2**64 - 1))
NAMES = st.one_of(
    st.sampled_from([b"a\0", b"b\0", b"a\0b\0", b".\0", b"..\0", b"/\0", b"a/b\0", b"\0", b""]),
    st.binary(max_size=300),
)


def quiet_session() -> Session:
    vfs = VirtualFilesystem()
    vfs.register(TmpfsType())
    session = Session(vfs=vfs)
    session.create(ROOT, b"a")
    session.mkdir(ROOT, b"b")
    session.opendir(ROOT)
    return session


def cut(data: bytearray, points: list[int]) -> list[memoryview]:
    """``data`` as segments, cut at ``points``."""
    view = memoryview(data)
    edges = sorted({min(point, len(data)) for point in points} | {0, len(data)})
    return [view[a:b] for a, b in pairwise(edges)] or [view]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that looks right from afar."""
    row = draw(st.sampled_from(OPCODES))
    body = b""
    arguments = abi.WRITE_IN if row.name == "WRITE" else row.arguments
    if arguments is not None:
        size = arguments.size
        words = draw(st.lists(ANY_U32, min_size=size // 4, max_size=size // 4))
        body = b"".join(word.to_bytes(4, "little") for word in words)
    body += draw(NAMES)
    length = 40 + len(body) + draw(st.sampled_from([0, 0, 0, -1, 1, 1000]))
    header = abi.IN_HEADER.pack(
        max(length, 0), row.number, draw(ANY_U64), draw(ANY_U64), draw(ANY_U32), draw(ANY_U32),
        draw(ANY_U32), draw(st.sampled_from([0, 0, 1, 3, 65535])), 0,
    )  # fmt: skip
    return header + body


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.one_of(requests(), requests(), st.binary(max_size=200)),
            st.lists(st.integers(0, 200), max_size=4),
            st.integers(0, 300),
            st.lists(st.integers(0, 300), max_size=3),
        ),
        max_size=12,
    )
)
def test_random_requests_never_raise_and_break_no_invariant(
    sent: list[tuple[bytes, list[int], int, list[int]]],
) -> None:
    with quiet_session() as session:
        session.init()
        for request, points, room, back in sent:
            reply = bytearray(room)
            segments = cut(reply, back) if room else []
            length = session.server.handle(
                cut(bytearray(request), points), segments, lambda length: None
            )
            assert length == PENDING or 0 <= length <= room
            if length > 0:
                assert abi.OUT_HEADER.unpack_from(reply)[0] == length
            session.server.check()
            session.vfs.check()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 140), max_size=5), st.lists(st.integers(0, 200), max_size=5))
def test_any_split_of_request_and_reply_gives_the_same_answer(
    points: list[int], back: list[int]
) -> None:
    data = random.Random(1).randbytes(90)
    with quiet_session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"-" * 100)
        fh = session.opendir(ROOT)
        bodies = {
            "WRITE": (abi.WRITE_IN.pack(opened.fh, 3, 90, 0, 0, 0, 0) + data, 8),
            "READ": (abi.READ_IN.pack(opened.fh, 0, 100, 0, 0, 0, 0), 100),
            "LOOKUP": (b"file\0", 128),
            "GETATTR": (abi.GETATTR_IN.pack(0, 0, 0), 104),
            "READDIR": (abi.READ_IN.pack(fh, 0, 150, 0, 0, 0, 0), 150),
            "STATFS": (b"", 80),
        }
        for name, (body, room) in bodies.items():
            nodeid = entry.nodeid if name == "GETATTR" else ROOT
            expected = session.call(name, nodeid, body, room)
            request = bytearray(session.request(OP[name], nodeid, body))
            reply = bytearray(16 + room)
            length = session.server.handle(
                cut(request, points), cut(reply, back), lambda length: None
            )
            assert parse(bytes(reply[:length]), session.unique) == expected, name
        assert session.read(opened.fh, 3, 90) == data


def test_unknown_opcodes_are_not_implemented() -> None:
    with Session() as session:
        for opcode in (0, 7, 63, 64, 4096, 2**32 - 1):
            request = bytearray(session.request(opcode, ROOT))
            reply = bytearray(16)
            session.server.handle([memoryview(request)], [memoryview(reply)], lambda length: None)
            assert abi.OUT_HEADER.unpack(reply) == (16, -ENOSYS, session.unique)


def test_a_reply_without_room_fails_before_anything_happens() -> None:
    with Session() as session:
        expect(EIO, session.call, "MKDIR", ROOT, abi.MKDIR_IN.pack(0o755, 0) + b"dir\0", 100)
        assert not session.root.dentry.children
        request = memoryview(bytearray(session.request(OP["GETATTR"], ROOT, bytes(16))))
        assert session.server.handle([request], [memoryview(bytearray(15))], lambda _: None) == 0
        assert session.server.handle([request], [], lambda _: None) == 0
        assert session.server.handle([], [], lambda _: None) == 0


def test_a_length_that_lies_is_refused() -> None:
    with Session() as session:
        request = bytearray(session.request(OP["LOOKUP"], ROOT, b"name\0"))
        for lie in (0, 39, 44, 46, 2**32 - 1):
            request[:4] = lie.to_bytes(4, "little")
            reply = bytearray(144)
            session.server.handle([memoryview(request)], [memoryview(reply)], lambda _: None)
            error = abi.OUT_HEADER.unpack_from(reply)[1]
            assert error == -EINVAL, lie


def test_a_bug_of_ours_costs_one_request_and_leaves_a_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session() as session:
        entry = session.mkdir(ROOT, b"dir")

        def broken() -> None:
            raise ZeroDivisionError

        inode = session.server.nodes.by_id[entry.nodeid].inode
        monkeypatch.setattr(type(inode), "refresh", lambda self: broken())
        expect(EIO, session.getattr, entry.nodeid)
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        assert session.getattr(entry.nodeid).nlink == 2


def test_a_bug_that_a_client_repeats_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session() as session:

        def broken(self: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(type(session.root.inode), "refresh", broken)
        for _ in range(200):
            expect(EIO, session.getattr, ROOT)
        monkeypatch.undo()
        assert 1 <= caplog.text.count("Traceback") <= 20


def test_an_exception_in_a_filesystem_leaves_neither_references_nor_the_lock(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "open")
    with Session() as session:
        requests = Requests(session)
        directory = type(session.root.inode)
        file = type(session.server.nodes.by_id[requests.file].inode)
        before = state(session)

        def broken(*arguments: object) -> None:
            raise RuntimeError("a bug")

        for method in methods:
            monkeypatch.setattr(directory, method, broken)
            monkeypatch.setattr(file, method, broken)
        for method in ("setattr", "getxattr", "setxattr", "removexattr", "listxattr", "tmpfile"):
            monkeypatch.setattr(directory, method, broken)
            monkeypatch.setattr(file, method, broken)
        failed = []
        for name, (nodeid, body) in requests.by_name.items():
            if name in ("INIT", "DESTROY"):
                continue
            try:
                session.call(name, nodeid, body)
            except FuseError as error:
                if error.errno == EIO:
                    failed.append(name)
                    assert not session.vfs.lock._is_owned()
        assert {"CREATE", "MKDIR", "UNLINK", "RENAME", "OPEN", "SETATTR", "TMPFILE"} <= set(failed)
        monkeypatch.undo()
        after = state(session)
        assert after[2] == before[2]
        session.vfs.check()
