"""Mounts of the host inside of the directory that a guest is given by `dentry virtiofsd`."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtiofsd_guest_support import guest_on, need_guest, root_directory, sh

from harness.guest import Guest

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount on the host"),
]

DEADLINE = 60.0


class Share:
    """The directory, itself a shared mount, so that later mounts reach into sandboxes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in "below", "late":
            (path / name).mkdir()
            (path / name / "file").write_text("below\n")
        self.run("mount", "--bind", path, path)
        self.run("mount", "--make-shared", path)

    def run(self, *words: str | Path) -> None:
        subprocess.run(words, check=True)

    def cover(self, name: str, text: str) -> None:
        """Mount a tmpfs with a `file` of `text` on directory `name`."""
        self.run("mount", "-t", "tmpfs", "tmpfs", self.path / name)
        (self.path / name / "file").write_text(text)


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    need_guest()
    share = Share(root_directory(tmp_path / "share"))
    try:
        yield share
    finally:
        share.run("umount", "-R", "-l", share.path)


def device(guest: Guest, path: str) -> int:
    return int(sh(guest, f"stat -c %d {path}"))


def mounts(guest: Guest) -> list[str]:
    """Where the guest has mounts of its root's file system."""
    lines = [line.split() for line in sh(guest, "cat /proc/self/mountinfo").splitlines()]
    return sorted(line[4] for line in lines if line[-3] == "virtiofs")


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds. The guest believes what it was told for a second."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)


def test_a_mount_of_the_hosts_is_another_device_and_a_mount_to_the_guest(share: Share) -> None:
    share.cover("below", "above\n")
    # The same inode number as that of `file` above: only the device tells them apart.
    share.cover("late", "another\n")
    inodes = {(share.path / name / "file").stat().st_ino for name in ("below", "late")}
    assert len(inodes) == 1
    with guest_on(share.path.parent) as guest:
        assert sh(guest, "cat /below/file /late/file") == "above\nanother\n"
        assert len({device(guest, path) for path in ("/", "/below", "/late")}) == 3
        assert mounts(guest) == ["/", "/below", "/late"]
        assert sh(guest, "find / -xdev -name file") == ""
        sh(guest, "echo guest >/below/new; mv /below/new /below/renamed")
        assert (share.path / "below/renamed").read_text() == "guest\n"
        moved = guest.run("ln /below/renamed /late/hard")
        assert moved.status and b"Invalid cross-device link" in moved.stderr


def test_where_mounts_are_not_announced_there_is_one_device(share: Share) -> None:
    share.cover("below", "above\n")
    share.cover("late", "another\n")
    with guest_on(share.path.parent, "--no-announce-submounts") as guest:
        assert sh(guest, "cat /below/file /late/file") == "above\nanother\n"
        assert len({device(guest, path) for path in ("/", "/below", "/late")}) == 1
        assert mounts(guest) == ["/"]


@pytest.mark.parametrize("sandbox", ["namespace", "none"])
def test_mounts_of_the_hosts_come_and_go_while_the_guest_runs(share: Share, sandbox: str) -> None:
    with guest_on(share.path.parent, f"--sandbox={sandbox}") as guest:
        assert sh(guest, "cat /late/file") == "below\n"
        below = device(guest, "/late")
        for text in "first\n", "second, and longer\n":
            share.cover("late", text)
            eventually(lambda text=text: sh(guest, "cat /late/file") == text)
            assert device(guest, "/late") != below
            assert mounts(guest) == ["/", "/late"]
            share.run("umount", "-l", share.path / "late")
            eventually(lambda: sh(guest, "cat /late/file") == "below\n")
            assert device(guest, "/late") == below
            eventually(lambda: mounts(guest) == ["/"])
