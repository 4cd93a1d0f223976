"""The mount options as a whole: how they are shown, and which of them a remount changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsimpl.passthrough import PassthroughSuperblock
from vfs import abi
from vfs.task import Task

MountWith = Callable[..., Task]


def superblock_of(task: Task) -> PassthroughSuperblock:
    superblock = task.fs.root.dentry.superblock
    assert isinstance(superblock, PassthroughSuperblock)
    return superblock


def errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def remount(task: Task, data: str) -> int | None:
    return errno_of(lambda: task.mount(None, "/", None, abi.MS_REMOUNT, data))


@pytest.mark.parametrize(
    "options",
    [
        "",
        "noxattr",
        "cache=always,writeback,timeout=1.5",
        "translate_uid=map:0:1000:1,translate_uid=guest:5:6:7",
        "uidmap=0 1000 1\\,1 2000 1",
        "xattrmap=:map::user.virtiofs.:,inode_file_handles=never",
    ],
)
def test_options_are_shown_as_they_can_be_given_again(mount_with: MountWith, options: str) -> None:
    shown = superblock_of(mount_with(options)).show_options()
    assert shown == (options and f",{options}")
    assert superblock_of(mount_with(shown)).show_options() == shown


def test_the_last_word_counts(mount_with: MountWith) -> None:
    superblock = superblock_of(mount_with("noxattr,cache=never,xattr,cache=auto"))
    assert superblock.policy.cache == "auto"
    assert superblock.show_options() == ",cache=auto,xattr"


def test_a_remount_changes_what_concerns_opens_to_come_and_nothing_else(
    mount_with: MountWith, shared: Path
) -> None:
    task = mount_with("cache=always,allow_mmap")
    for options in ("cache=auto", "noxattr", "ascii_casefold", "translate_uid=map:1:2:3"):
        assert remount(task, options) == errno.EINVAL
    # As mount(8) does, which repeats what is there.
    assert remount(task, "cache=always,allow_mmap,nopreserve_noatime") is None
    assert superblock_of(task).show_options() == ",cache=always,allow_mmap,nopreserve_noatime"
    (shared / "file").touch()
    fd = task.open("file", os.O_RDONLY | os.O_NOATIME)
    host = task.files.get_file(fd)
    lines = Path(f"/proc/self/fdinfo/{host.fd}").read_text()  # type: ignore[attr-defined]
    flags = int(lines.split("flags:")[1].split()[0], 8)
    assert not flags & os.O_NOATIME


@pytest.mark.parametrize(
    "options",
    [
        "cache=sometimes", "cache", "writeback=1", "allow_mmap=x", "max_dynamic_perm=x",
        "max_dynamic_xattr=x", "privileged_quota_uids=a", "negative_timeout=", "nonsense",
        "nocache",
    ],
)  # fmt: skip
def test_a_bad_option_is_refused(mount_with: MountWith, options: str) -> None:
    assert errno_of(lambda: mount_with(options)) == errno.EINVAL


def test_what_was_wrong_is_said_to_who_reads_the_log(vfs: object, mount_with: MountWith) -> None:
    task = mount_with()
    fd = task.fsopen("passthrough", 0)
    set_string = abi.FSCONFIG_SET_STRING
    for key, value, message in (
        ("xattrmap", ":bad:nobody:::", "xattrmap: rule 1: no scope 'nobody'"),
        ("translate_uid", "map:1:2", "translate_uid: 'map:1:2': map takes 3 numbers"),
        ("uidmap", "0 1", "uidmap: '0 1': an extent is 'INSIDE OUTSIDE COUNT'"),
    ):
        assert (
            errno_of(lambda k=key, v=value: task.fsconfig(fd, set_string, k, v.encode(), 0))
            == errno.EINVAL
        )
        assert message in task.read(fd, 1000).decode()
