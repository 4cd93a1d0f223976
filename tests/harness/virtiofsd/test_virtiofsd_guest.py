"""A Linux guest in QEMU on `dentry virtiofsd` in its default sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from virtiofsd_guest_support import guest_on, need_guest, root_directory, sh

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for the sandbox and for owners"),
]


def test_a_guest_lives_on_a_directory_of_the_host_in_the_default_sandbox(tmp_path: Path) -> None:
    need_guest()
    share = root_directory(tmp_path / "share")
    with guest_on(tmp_path, "--xattr", "--inode-file-handles=mandatory") as guest:
        script = (
            "mkdir /tmp/d && echo content > /tmp/d/f && chown 5:6 /tmp/d/f && "
            "ln /tmp/d/f /tmp/g && mv /tmp/d/f /tmp/d/h && cat /tmp/g"
        )
        assert sh(guest, script) == "content\n"
    found = (share / "tmp/d/h").stat()
    assert (found.st_uid, found.st_gid, found.st_nlink) == (5, 6, 2)
    assert (share / "tmp/g").read_bytes() == b"content\n"
