"""proc's mount options, and what they hide."""

from __future__ import annotations

import errno

import pytest
from proc_support import contents, fails_with, names, numbers, pid_of, register_proc

from fsimpl.tmpfs import TmpfsType
from harness.testbed.target import Target, TargetTask
from vfs import VirtualFilesystem, abi
from vfs.abi import MS_REMOUNT, O_PATH
from vfs.task import Task


def remount(root: TargetTask, options: str) -> None:
    root.mount("proc", "/proc", None, MS_REMOUNT, options)


def shown(root: TargetTask) -> str:
    line = next(line for line in root.mountinfo().splitlines() if b" /proc " in line)
    text: str = line.split(b" - ")[1].decode()
    return text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("hidepid=0", ""),
        ("hidepid=off", ""),
        ("hidepid=1", ",hidepid=noaccess"),
        ("hidepid=0x2", ",hidepid=invisible"),
        ("hidepid=04", ",hidepid=ptraceable"),
        ("hidepid=invisible", ",hidepid=invisible"),
        ("gid=0", ""),
        ("gid=010", ",gid=8"),
        ("subset=pid", ",subset=pid"),
        ("subset=pid,hidepid=2,gid=7", ",gid=7,hidepid=invisible,subset=pid"),
    ],
)
def test_options_are_shown(root: TargetTask, options: str, text: str) -> None:
    root.umount2("/proc", 0)
    root.mount("proc", "/proc", "proc", 0, options)
    assert shown(root) == "proc proc rw" + text


@pytest.mark.parametrize(
    "options",
    [
        "hidepid=3", "hidepid=x", "hidepid", "hidepid=", "gid=x", "gid=-1", "gid=", "gid",
        "subset=x", "subset=", "subset", "subset=pid+pid", "x=1", "x",
    ],
)  # fmt: skip
def test_bad_options_are_einval(root: TargetTask, options: str) -> None:
    fails_with(errno.EINVAL, root.mount, "proc", "/proc", "proc", 0, options)


def test_a_remount_changes_what_it_names(root: TargetTask) -> None:
    remount(root, "hidepid=2,gid=7")
    remount(root, "hidepid=1")
    assert shown(root) == "proc proc rw,gid=7,hidepid=noaccess"


def test_subset_pid_leaves_the_tasks(root: TargetTask) -> None:
    root.umount2("/proc", 0)
    root.mount("proc", "/proc", "proc", 0, "subset=pid")
    left = [name for name in names(root, "/proc") if not name.isdigit()]
    assert left == ["self", "thread-self"]
    for name in ("mounts", "filesystems", "sys"):
        fails_with(errno.ENOENT, root.lstat, f"/proc/{name}")
    assert contents(root, "/proc/self/mounts")


def test_hidepid_hides_other_users_tasks(root: TargetTask, alice: TargetTask) -> None:
    mine, other = pid_of(alice), pid_of(root)
    place = f"/proc/{other}"
    remount(root, "hidepid=1")
    assert {mine, other} <= set(numbers(alice, "/proc"))
    assert alice.lstat(place).st_uid == 0
    fails_with(errno.EPERM, alice.lstat, f"{place}/status")
    fails_with(errno.EPERM, names, alice, place)
    remount(root, "hidepid=2")
    assert numbers(alice, "/proc") == [mine]
    fails_with(errno.ENOENT, alice.lstat, place)
    fails_with(errno.ENOENT, alice.lstat, f"{place}/status")
    assert {mine, other} <= set(numbers(root, "/proc"))
    assert contents(alice, "/proc/self/status")
    remount(root, "gid=100")
    assert {mine, other} <= set(numbers(alice, "/proc"))
    assert contents(alice, f"{place}/status")


def test_hidepid_ptraceable_hides_from_the_group_too(root: TargetTask, alice: TargetTask) -> None:
    root.umount2("/proc", 0)
    root.mount("proc", "/proc", "proc", 0, "hidepid=4,gid=100")
    place = f"/proc/{pid_of(root)}"
    alices = root.clone("third", 0, 1000, 1000, (100,))
    fails_with(errno.ENOENT, alice.open, f"/proc/{pid_of(root) + 99}", O_PATH)
    assert pid_of(root) not in numbers(alice, "/proc")
    fails_with(errno.ENOENT, alice.lstat, place)
    assert pid_of(alices) in numbers(alices, "/proc")


def test_filesystems_lists_the_types_in_the_order_of_registration(
    vfs: VirtualFilesystem, task: Task
) -> None:
    class Disk(TmpfsType):
        name = "disk"
        requires_device = True

    register_proc(vfs)
    vfs.register(Disk())
    task.mkdir("/proc", 0o755)
    task.mount("proc", "/proc", "proc")
    fd = task.open("/proc/filesystems", abi.O_RDONLY)
    lines = task.read(fd, 4096).decode().splitlines()
    assert lines[0] == "nodev\ttmpfs"
    assert "nodev\tproc" in lines
    assert lines[-1] == "\tdisk"


def test_statfs_says_proc(target: Target, root: TargetTask) -> None:
    figures = root.statfs("/proc")
    assert (figures.f_type, figures.f_bsize, figures.f_blocks) == (0x9FA0, 4096, 0)
    assert root.stat("/proc").st_nlink > 4
