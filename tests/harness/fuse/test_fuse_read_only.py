"""A read-only mount, or a read-only superblock, refuses every request that changes something."""

from __future__ import annotations

import os
from errno import EBADF, EROFS
from pathlib import Path

import pytest
from fuse_requests import Requests, state
from fuse_session import ROOT, FuseError, Session, expect, mount_tmpfs

from harness.fuse import abi
from harness.fuse.opcodes import OPCODES
from vfs.abi import MS_RDONLY, O_RDONLY, O_TRUNC

# What works on an open file needs one that is open for writing, which there is none of.
BY_HANDLE = ("WRITE", "FALLOCATE", "COPY_FILE_RANGE", "COPY_FILE_RANGE_64")
# No file here knows an ioctl.
NONE_KNOWN = ("IOCTL",)


def on_disk(directory: Path) -> list[tuple[object, ...]]:
    found = []
    for name in sorted(os.listdir(directory)):
        stat = os.lstat(directory / name)
        content = (directory / name).read_bytes() if (directory / name).is_file() else b""
        xattrs = os.listxattr(directory / name, follow_symlinks=False)
        found.append(
            (name, stat.st_mode, stat.st_nlink, stat.st_mtime_ns, stat.st_ctime_ns, content, xattrs)
        )
    return found


def make_read_only(session: Session, place: str) -> None:
    if place == "mount":
        session.root.mount.flags |= MS_RDONLY
    else:
        session.root.mount.superblock.flags |= MS_RDONLY


@pytest.mark.parametrize("place", ["mount", "superblock"])
@pytest.mark.parametrize("kind", ["tmpfs", "passthrough"])
def test_every_mutating_opcode_fails_with_erofs(place: str, kind: str, tmp_path: Path) -> None:
    with Session(source=tmp_path if kind == "passthrough" else None) as session:
        requests = Requests(session, O_RDONLY)
        make_read_only(session, place)
        before, disk = state(session), on_disk(tmp_path)
        for row in OPCODES:
            if not row.mutating or row.name in NONE_KNOWN:
                continue
            number = EBADF if row.name in BY_HANDLE else EROFS
            try:
                expect(number, session.call, row.name, *requests.by_name[row.name])
            except AssertionError as error:
                raise AssertionError(f"{row.name}: {error}") from None
            assert (state(session), on_disk(tmp_path)) == (before, disk), row.name


@pytest.mark.parametrize("place", ["mount", "superblock"])
@pytest.mark.parametrize("kind", ["tmpfs", "passthrough"])
def test_every_other_opcode_changes_nothing_on_a_read_only_mount(
    place: str, kind: str, tmp_path: Path
) -> None:
    with Session(source=tmp_path if kind == "passthrough" else None) as session:
        requests = Requests(session, O_RDONLY)
        make_read_only(session, place)
        disk = on_disk(tmp_path)
        nodes = state(session)[0]
        for row in OPCODES:
            if row.mutating or row.name in ("INIT", "DESTROY", "LOOKUP", "READDIRPLUS"):
                continue
            try:
                session.call(row.name, *requests.by_name[row.name])
            except FuseError as error:
                assert error.errno != EROFS, row.name
            assert (state(session)[0], on_disk(tmp_path)) == (nodes, disk), row.name


@pytest.mark.parametrize("place", ["mount", "superblock"])
def test_reading_and_truncating_by_open_is_told_apart(place: str) -> None:
    with Session() as session:
        file = Requests(session, O_RDONLY).file
        make_read_only(session, place)
        assert session.read(session.open(file, O_RDONLY).fh, 0, 4) == b"data"
        expect(EROFS, session.open, file, O_RDONLY | O_TRUNC)


def test_a_setattr_of_nothing_keeps_capabilities_on_a_read_only_mount() -> None:
    capability = b"\x01\0\0\x02" + bytes(16)
    with Session() as session:
        file = Requests(session, O_RDONLY).file
        name = b"security.capability\0"
        session.call("SETXATTR", file, abi.SETXATTR_IN.pack(20, 0, 0, 0) + name + capability)
        make_read_only(session, "mount")
        expect(EROFS, session.setattr, file, 0)
        assert session.call("GETXATTR", file, abi.GETXATTR_IN.pack(64, 0) + name) == capability


def test_the_root_of_another_mount_keeps_its_own_flags() -> None:
    with Session() as session:
        point = session.mkdir(ROOT, b"point")
        mount_tmpfs(session, point.nodeid)
        top = session.lookup(ROOT, b"point").nodeid
        session.mkdir(top, b"before")
        make_read_only(session, "mount")
        expect(EROFS, session.mkdir, ROOT, b"no")
        session.mkdir(top, b"after")
        session.root.mount.flags &= ~MS_RDONLY
        session.server.nodes.by_id[top].mount.flags |= MS_RDONLY
        session.mkdir(ROOT, b"yes")
        expect(EROFS, session.mkdir, top, b"no")
