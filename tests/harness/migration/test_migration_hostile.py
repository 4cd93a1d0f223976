"""A state that somebody made up, or that was damaged, is an error, and nothing of it stays."""

from __future__ import annotations

import functools
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from fuse_session import ROOT, Session
from hypothesis import given, settings
from hypothesis import strategies as st
from migration_support import (
    GUEST_ERRORS,
    HEADER,
    SECTION,
    assembled,
    follow,
    load,
    resealed,
    save,
    sections,
)

from fsimpl.tmpfs import TmpfsSuperblock
from harness.fuse import abi
from harness.fuse.server import FuseServer
from harness.migration.stream import MAGIC, SECTION_MAX, VERSION

ALPHABET = [0, 1, 2, 3, 0x7F, 0x80, 0xFE, 0xFF]


@functools.cache
def honest() -> bytes:
    """The state of a session that has something of everything, and whose tree has two mounts."""
    with two_mounts() as source:
        source.init()
        directory = source.mkdir(ROOT, b"d")
        entry, opened = source.create(directory.nodeid, b"f")
        source.write(opened.fh, 0, b"a" * 5000)
        source.write(opened.fh, 1 << 30, b"b")
        source.call(
            "FALLOCATE", entry.nodeid, abi.FALLOCATE_IN.pack(opened.fh, 1 << 31, 9999, 1, 0), 0
        )
        source.link(entry.nodeid, ROOT, b"hard")
        source.symlink(ROOT, b"soft", b"target")
        source.mknod(ROOT, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        value = abi.SETXATTR_IN.pack(3, 0, 0, 0) + b"user.x\0abc"
        source.call("SETXATTR", entry.nodeid, value, 0)
        _, gone = source.create(ROOT, b"gone")
        source.write(gone.fh, 0, b"gone")
        source.call("UNLINK", ROOT, b"gone\0", 0)
        source.readdir(source.opendir(ROOT), 0, 100)
        source.call("SETLK", entry.nodeid, abi.LK_IN.pack(opened.fh, 1, 0, 9, 1, 7, 0, 0), 0)
        below = source.lookup(ROOT, b"below")
        source.create(below.nodeid, b"on the other")
        return save(source.server)


def two_mounts() -> Session:
    """A server without a session, on a tmpfs with another at /below."""
    session = Session(init=False)
    task = session.vfs.create_task(session.namespace)
    task.mkdir("/below")
    task.mount("none", "/below", "tmpfs", 0, "size=1m")
    return session


def content_of(server: FuseServer) -> list[int]:
    return [
        len(superblock.inodes)
        for superblock in server.vfs.superblocks
        if isinstance(superblock, TmpfsSuperblock)
    ]


def attempt(target: Session, state: bytes) -> bool:
    """Load it; whether that went well. Whatever happens, all that must hold does."""
    try:
        load(target.server, state, GUEST_ERRORS)
    except OSError:
        loaded = False
    else:
        loaded = True
    target.vfs.check()
    target.server.check()
    if not loaded:
        assert target.server.nodes.root is None
        assert not target.server.nodes.by_id and not target.server.handles.descriptions()
        assert not len(target.vfs.locks)
    return loaded


def test_the_sections_put_together_again_are_the_state() -> None:
    parts = list(sections(honest()))[:-1]
    assert assembled(parts) == honest()
    with two_mounts() as target:
        assert attempt(target, honest())
        assert attempt(target, honest())


def test_a_state_cut_anywhere_is_an_error() -> None:
    state = honest()
    with two_mounts() as target:
        before = content_of(target.server)
        for size in {*range(0, len(state), 7), *range(200), *range(len(state) - 60, len(state))}:
            assert not attempt(target, state[:size])
        assert content_of(target.server) == before


def test_one_wrong_bit_anywhere_is_an_error() -> None:
    state = honest()
    choose = random.Random(7)
    with two_mounts() as target:
        for at in {*range(300), *choose.sample(range(len(state)), 700)}:
            wrong = bytearray(state)
            wrong[at] ^= 1 << choose.randrange(8)
            assert not attempt(target, bytes(wrong))


def structure() -> list[int]:
    """Where the state has other things than the bytes of files."""
    found = []
    at = HEADER.size
    for tag, content in sections(honest()):
        size = min(len(content), 20) if tag == b"data" else len(content)
        if tag != b"end ":
            found += range(at + SECTION.size, at + SECTION.size + size)
        at += SECTION.size + len(content)
    return found


PLACES = st.deferred(lambda: st.sampled_from(structure()))


@settings(deadline=None, max_examples=1000)
@given(st.lists(st.tuples(PLACES, st.sampled_from(ALPHABET) | st.integers(0, 255)), min_size=1,
                max_size=4))  # fmt: skip
def test_a_forged_state_is_loaded_or_refused_and_leaves_the_server_whole(
    changes: list[tuple[int, int]],
) -> None:
    forged = bytearray(honest())
    for at, value in changes:
        forged[at] = value
    with two_mounts() as target:
        attempt(target, resealed(bytes(forged)))
        # And then the honest one.
        assert attempt(target, honest())


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_records_left_out_doubled_or_in_another_order_are_no_harm(data: st.DataObject) -> None:
    parts = list(sections(honest()))[:-1]
    for _ in range(data.draw(st.integers(1, 3))):
        at, to = (data.draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        kind = data.draw(st.sampled_from(["drop", "double", "swap", "cut", "retag"]))
        if kind == "drop" and len(parts) > 1:
            del parts[at]
        elif kind == "double":
            parts.insert(to, parts[at])
        elif kind == "swap":
            parts[at], parts[to] = parts[to], parts[at]
        elif kind == "cut":
            tag, content = parts[at]
            parts[at] = tag, content[: data.draw(st.integers(0, len(content)))]
        else:
            parts[at] = parts[to][0], parts[at][1]
    with two_mounts() as target:
        attempt(target, assembled(parts))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_refused(garbage: bytes, with_header: bool) -> None:
    state = (HEADER.pack(MAGIC, VERSION) if with_header else b"") + garbage
    with two_mounts() as target:
        assert not attempt(target, state)


def test_another_version_is_refused_by_name() -> None:
    state = resealed(HEADER.pack(MAGIC, VERSION + 1) + honest()[HEADER.size :])
    with two_mounts() as target, pytest.raises(OSError, match=f"version {VERSION + 1}, and only"):
        load(target.server, state)


def test_a_section_longer_than_any_is_refused_before_it_is_read() -> None:
    state = HEADER.pack(MAGIC, VERSION) + SECTION.pack(b"name", 0xFFFFFFFF)
    with two_mounts() as target, pytest.raises(OSError, match=f"{SECTION_MAX} are the most"):
        load(target.server, state)


def test_more_than_a_tmpfs_may_hold_is_refused_while_it_is_read() -> None:
    """However much comes: pages, promised pages, inodes, names and attributes."""
    parts = list(sections(honest()))[:-1]
    number = 1  # the one of a megabyte
    (ino,) = {
        struct.unpack_from("<IQ", content)[1] for tag, content in parts
        if tag == b"inod" and struct.unpack_from("<I", content)[0] == number
    }  # fmt: skip
    root = struct.pack("<IQ", number, ino)

    def file(ino: int) -> bytes:
        times = struct.pack("<qIqIqIqI", *[0] * 8)
        fixed = struct.pack("<IQIIIIIIBQ", number, ino, 0o100644, 0, 0, 0, 0, 0, 0, 0)
        return fixed + times + struct.pack("<IQ", 0, 3)

    floods: list[Callable[[int], tuple[bytes, bytes]]] = [
        lambda n: (b"data", struct.pack("<IQQ", number, 99, n << 18) + bytes(1 << 18)),
        lambda n: (b"prom", struct.pack("<IQQQB", number, 99, n << 30, (n + 1) << 30, 0)),
    ]
    for flood in floods:
        extra = [(b"inod", file(99)), *(flood(n) for n in range(8))]
        with two_mounts() as target, pytest.raises(OSError, match="too small here"):
            load(target.server, assembled([*parts, *extra]))
    small = "nr_inodes=20"
    for make in (
        lambda n: (b"inod", file(1000 + n)),
        lambda n: (b"name", root + struct.pack("<I4sQQ", 4, b"%04d" % n, ino, 100 + n)),
        lambda n: (b"xatt", root + struct.pack("<I9sI4096s", 9, b"user.%04d" % n, 4096, b"")),
    ):
        extra = [make(n) for n in range(30)]
        with Session(init=False) as target:
            task = target.vfs.create_task(target.namespace)
            task.mkdir("/below")
            task.mount("none", "/below", "tmpfs", 0, small)
            with pytest.raises(OSError, match="too small here"):
                load(target.server, assembled([*parts, *extra]))


def test_files_of_the_host_are_opened_below_the_shared_directory_only(tmp_path: Path) -> None:
    """Names with slashes, dots, and symbolic links lead nowhere."""
    share = tmp_path / "share"
    (share / "dirs").mkdir(parents=True)
    (share / "dirs" / "file").write_bytes(b"inside")
    (tmp_path / "file").write_bytes(b"outside")
    with Session(source=share) as source:
        directory = source.lookup(ROOT, b"dirs")
        entry = source.lookup(directory.nodeid, b"file")
        opened = source.open(entry.nodeid)
        state = save(source.server)
    os.symlink("..", share / "link")
    for name in (b"..\0\0", b"../x", b"/tmp", b".\0\0\0", b"link", b"\0\0\0\0"):
        forged = resealed(state.replace(b"dirs", name))
        with Session(init=False, source=share) as target:
            try:
                load(target.server, forged, GUEST_ERRORS)
            except OSError:
                continue
            follow(source, target)
            assert opened.fh not in target.server.handles.files
            assert entry.nodeid in target.server.nodes.stale


def test_a_read_only_mount_has_nothing_open_for_writing(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with Session(source=tmp_path) as source:
        opened = source.open(source.lookup(ROOT, b"f").nodeid, os.O_RDWR)
        state = save(source.server)
    with Session(source=tmp_path, init=False) as target:
        target.root.mount.flags |= 1
        with pytest.raises(OSError, match="ro"):
            load(target.server, state)
        # What says that it was read-only there has no writers either.
        at = state.index(b"passthrough") + len(b"passthrough") + 4
        forged = resealed(state[:at] + struct.pack("<I", target.root.mount.flags) + state[at + 4 :])
        load(target.server, forged, GUEST_ERRORS)
        assert opened.fh not in target.server.handles.files
