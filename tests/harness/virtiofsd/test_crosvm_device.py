"""crosvm's device fs at work: what its options do to files of the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from virtiofsd_support import Daemon, client_of, content, refusal, running

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
        assert ended(daemon) == 0, daemon.stderr


def ended(daemon: Daemon) -> int:
    return daemon.end()


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
