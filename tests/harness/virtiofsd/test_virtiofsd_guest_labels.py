"""Security labels between a guest with SELinux and the files of `dentry virtiofsd`.

Debian's kernel has SELinux without a policy. It then labels what it creates as `unlabeled`, and
passes other labels on as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from virtiofsd_guest_support import guest_on, need_guest, root_directory, sh, tool

from harness.guest import Guest

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for the sandbox and for labels"),
]

LABEL = "security.selinux"
KINDS = {
    "file": "echo >/file",
    "dir": "mkdir /dir",
    "link": "ln -s x /link",
    "fifo": "mkfifo /fifo",
}


def labels(share: Path, name: str = LABEL) -> dict[str, bytes | None]:
    """What the host has as labels of the files that the guest creates."""
    return {
        kind: os.getxattr(path, name, follow_symlinks=False)
        if name in os.listxattr(path, follow_symlinks=False)
        else None
        for kind, path in ((kind, share / kind) for kind in KINDS)
    }


def create(guest: Guest) -> None:
    assert sh(guest, "cat /proc/self/attr/current") == "kernel\0"
    sh(guest, " && ".join(KINDS.values()))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    need_guest()
    root_directory(tmp_path / "share")
    yield tmp_path


def guest_with_labels(place: Path, *words: str) -> AbstractContextManager[Guest]:
    return guest_on(place, *words, tools=("stat", "chcon"), kernel_arguments=("security=selinux",))


def test_files_are_created_with_the_guests_label_and_keep_those_they_get(place: Path) -> None:
    share = place / "share"
    (share / "hosts").touch()
    os.setxattr(share / "hosts", LABEL, b"system_u:object_r:hosts_t:s0\0")
    with guest_with_labels(place, "--security-label", "--modcaps=+sys_admin") as guest:
        create(guest)
        assert labels(share) == dict.fromkeys(KINDS, b"unlabeled\0")
        found = tool(guest, "stat", "-c", "%C", "/proc/1/cwd/./hosts")
        assert found == "system_u:object_r:hosts_t:s0\n"
        tool(guest, "chcon", "system_u:object_r:guests_t:s0", "/proc/1/cwd/./file")
        assert labels(share)["file"] == b"system_u:object_r:guests_t:s0\0"
        found = tool(guest, "stat", "-c", "%C", "/proc/1/cwd/./file")
        assert found == "system_u:object_r:guests_t:s0\n"


def test_labels_are_stored_under_the_name_that_the_map_gives_them(place: Path) -> None:
    words = ("--security-label", "--modcaps=+sys_admin", "--xattrmap=:map::trusted.virtiofs.:")
    with guest_with_labels(place, *words) as guest:
        create(guest)
        tool(guest, "chcon", "a:b:c", "/proc/1/cwd/./file")
        assert tool(guest, "stat", "-c", "%C", "/proc/1/cwd/./file") == "a:b:c\n"
    share = place / "share"
    assert labels(share) == dict.fromkeys(KINDS)
    stored = labels(share, f"trusted.virtiofs.{LABEL}")
    assert stored == dict.fromkeys(KINDS, b"unlabeled\0") | {"file": b"a:b:c\0"}


def test_without_the_option_files_have_no_label(place: Path) -> None:
    with guest_with_labels(place, "--xattr", "--modcaps=+sys_admin") as guest:
        create(guest)
    assert labels(place / "share") == dict.fromkeys(KINDS)
