"""A Linux guest in QEMU on `dentry virtiofsd` in its default sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from virtiofsd_support import running

from harness.guest import Guest, GuestConfig, GuestUnavailable
from harness.guest.initramfs import find_busybox
from harness.guest.kernel import find_kernel
from harness.guest.qemu import find_qemu

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for the sandbox and for owners"),
]


def root_directory(path: Path, busybox: Path) -> Path:
    """What a guest's root needs."""
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "tmp"):
        (path / name).mkdir(parents=True)
    shutil.copy(busybox, path / "bin" / "busybox")
    listing = subprocess.run([busybox, "--list-full"], capture_output=True, check=True, text=True)
    for applet in listing.stdout.split():
        if not (path / applet).exists():
            (path / applet).symlink_to("/bin/busybox")
    return path


def test_a_guest_lives_on_a_directory_of_the_host_in_the_default_sandbox(tmp_path: Path) -> None:
    try:
        find_qemu(), find_kernel(), find_busybox()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    share = root_directory(tmp_path / "share", find_busybox())
    words = ("--socket-path", tmp_path / "sock", "--shared-dir", share, "--xattr")
    with running("virtiofsd", *words, "--inode-file-handles=mandatory") as daemon:
        assert daemon.process.stderr is not None
        while "waiting" not in daemon.process.stderr.readline():
            assert daemon.process.poll() is None
        with Guest(GuestConfig(tmp_path / "sock")) as guest:
            done = guest.run(
                "mkdir /tmp/d && echo content > /tmp/d/f && chown 5:6 /tmp/d/f && "
                "ln /tmp/d/f /tmp/g && mv /tmp/d/f /tmp/d/h && cat /tmp/g"
            )
            assert (done.status, done.stderr) == (0, b"")
            assert done.stdout == b"content\n"
        assert daemon.end() == 0, daemon.stderr
    found = (share / "tmp/d/h").stat()
    assert (found.st_uid, found.st_gid, found.st_nlink) == (5, 6, 2)
    assert (share / "tmp/g").read_bytes() == b"content\n"
