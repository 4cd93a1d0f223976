"""crosvm's device fs at work: what its options do to files of the host."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from virtiofsd_support import client_of, content, refusal, running

from harness.fuse import abi
from harness.vhost_user.fuse_client import ROOT, FuseClient

# A daemon for each test.
pytestmark = pytest.mark.slow

FREE = ("--disable-sandbox", "--skip-pivot-root=true")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def share(tmp_path: Path) -> Path:
    share = tmp_path / "share"
    share.mkdir()
    (share / "greeting").write_bytes(b"hello")
    return share


@contextmanager
def device(share: Path, *words: str | Path, free: bool = True) -> Iterator[FuseClient]:
    """A client of the device, which ends well at the end."""
    path = share.parent / "sock"
    base = ("device", "fs", "--socket-path", path, "--tag", "t", "--shared-dir", share)
    with running(*base, *words, *(FREE if free else ()), socket_path=path) as daemon:
        with client_of(path) as client:
            yield client
        assert daemon.end() == 0, daemon.stderr


@ROOT_ONLY
def test_the_device_is_who_it_is_told_in_its_user_namespace(share: Path) -> None:
    os.chown(share, 2000, 2000)
    maps = ("--uid-map", "5000 2000 1", "--gid-map", "5000 2000 1")
    with device(share, *maps, "--uid", "5000", "--gid", "5000", free=False) as client:
        client.credentials = (5000, 5000, 1)
        client.create(ROOT, b"made")
        assert content(client, b"greeting") == b"hello"
    made = os.stat(share / "made")
    assert (made.st_uid, made.st_gid) == (2000, 2000)


def test_an_id_that_the_maps_lack_is_refused(share: Path) -> None:
    words = ("--socket-path", share.parent / "s", "--tag=t", "--shared-dir", share)
    assert "no such id" in refusal("device", "fs", *words, "--uid", "4999")


def entry_owner(client: FuseClient, name: bytes) -> tuple[int, int, int]:
    """uid, gid and mode that a LOOKUP in the root tells."""
    error, reply = client.request(1, ROOT, name + b"\0", 128)
    assert error == 0
    mode, _, uid, gid = struct.unpack_from("<IIII", reply, 40 + 60)
    return uid, gid, mode & 0o7777


@ROOT_ONLY
def test_owners_are_mapped_by_path(share: Path) -> None:
    with device(share, "--cfg", "ugid_map='0 0 2000 2001 7 /'") as client:
        assert entry_owner(client, b"greeting") == (0, 0, 0o770)
        client.create(ROOT, b"made")
        assert entry_owner(client, b"made") == (0, 0, 0o770)
    made = os.stat(share / "made")
    assert (made.st_uid, made.st_gid) == (2000, 2001)


@ROOT_ONLY
def test_the_guest_sets_owners_and_attributes_of_paths(share: Path) -> None:
    cfg = "--cfg=timeout=0,max_dynamic_perm=1,max_dynamic_xattr=1,security_ctx=false"
    with device(share, cfg) as client:
        handle = client.opendir(ROOT)
        flags = abi.IOCTL_DIR
        rule = struct.pack("<5I4x128s", 10, 11, 2000, 2001, 63, b"/greeting")
        body = abi.IOCTL_IN.pack(handle, flags, 0x40986601, 0, len(rule), 0) + rule
        assert client.request(39, ROOT, body, 64)[0] == 0
        assert client.request(39, ROOT, body, 64)[0] == 1  # EPERM: one is the limit
        assert entry_owner(client, b"greeting") == (10, 11, 0o700)
        row = struct.pack("<128s128s128s", b"/", b"user.a", b"told")
        body = abi.IOCTL_IN.pack(handle, flags, 0x41806601, 0, len(row), 0) + row
        assert client.request(39, ROOT, body, 64)[0] == 0
        asked = abi.GETXATTR_IN.pack(100, 0) + b"user.a\0"
        assert client.request(22, client.lookup(ROOT, b"greeting").nodeid, asked, 100) == (
            0,
            b"told",
        )
        client.releasedir(ROOT, handle)


@pytest.fixture
def control(share: Path) -> Iterator[socket.socket]:
    """To be connected to `allow` beside the directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(60)
        yield sock


def told(sock: socket.socket, message: object) -> object:
    """What the device answers."""
    sock.send(message if isinstance(message, bytes) else json.dumps(message).encode())
    return json.loads(sock.recv(1 << 16))


def names(client: FuseClient, nodeid: int) -> set[bytes]:
    handle = client.opendir(nodeid)
    found = {entry.name for entry in client.readdirplus(nodeid, handle, 0, 4096)}
    client.releasedir(nodeid, handle)
    return found - {b".", b".."}


@ROOT_ONLY
@pytest.mark.parametrize("free", [True, False])
def test_paths_come_and_go_as_the_allowlist_socket_is_told(
    share: Path, control: socket.socket, free: bool
) -> None:
    for name in ("allowed", "blocked"):
        (share / name).mkdir()
        (share / name / "file").write_text(name)
    path = share.parent / "allow"
    words = ("--allowlist-socket-path", path, "--cfg", "timeout=0")
    with device(share, *words, free=free) as client:
        control.connect(os.fspath(path))
        assert os.stat(path).st_mode & 0o777 == 0o700
        assert names(client, ROOT) == set()
        assert told(control, {"AddPaths": {"paths": ["/allowed"]}}) == "Ok"
        assert names(client, ROOT) == {b"allowed"}
        allowed = client.lookup(ROOT, b"allowed").nodeid
        client.create(allowed, b"new")
        error, _ = client.request(1, ROOT, b"blocked\0", 128)
        assert error == 2
        assert client.request(9, ROOT, abi.MKDIR_IN.pack(0o777, 0) + b"x\0", 128)[0] == 13
        # A second client is heard beside the first.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.settimeout(60)
            other.connect(os.fspath(path))
            assert told(other, {"RemovePaths": {"paths": ["/allowed"]}}) == "Ok"
        assert client.request(1, ROOT, b"allowed\0", 128)[0] == 2
        for bad in (
            {"AddPaths": {"paths": ["/ok", "/allowed/../../.."]}},
            {"RemovePaths": {"paths": ["/never"]}},
            {"Paths": {"paths": []}}, {"AddPaths": {}}, {"AddPaths": {"paths": [1]}}, [], 7,
            b"no json", b"[" * 60000, b"\xff",
            {"AddPaths": {"paths": ["\ud800"]}},
        ):  # fmt: skip
            answer = told(control, bad)
            assert isinstance(answer, dict) and list(answer) == ["Err"], bad
        assert names(client, ROOT) == set()
        assert told(control, {"AddPaths": {"paths": ["/"]}}) == "Ok"
        assert names(client, ROOT) == {b"allowed", b"blocked", b"greeting"}
    assert (share / "allowed" / "new").exists()
    deadline = time.monotonic() + 60
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_allowlist_socket_that_cannot_be_had_is_refused(share: Path) -> None:
    words = ("--socket-path", share.parent / "s", "--tag=t", "--shared-dir", share)
    place = share / "greeting"
    said = refusal("device", "fs", *words, *FREE, "--allowlist-socket-path", place)
    assert f"--allowlist-socket-path {place}" in said
    assert not (share.parent / "s").exists()
