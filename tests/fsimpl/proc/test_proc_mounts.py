"""mountinfo, mounts and mountstats as files: what they show, reading in pieces, poll."""

from __future__ import annotations

import errno
import threading

import pytest
from proc_support import contents, fails_with, pid_of, register_proc

from harness.testbed.target import TargetTask
from vfs import VirtualFilesystem, abi
from vfs.abi import (
    O_RDONLY,
    POLLERR,
    POLLIN,
    POLLOUT,
    POLLPRI,
    POLLRDNORM,
    POLLWRNORM,
    SEEK_CUR,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    SEEK_SET,
)
from vfs.task import Task

READABLE = POLLIN | POLLRDNORM
ALWAYS_READY = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM
ALL_EVENTS = ALWAYS_READY | POLLPRI


def mount(task: TargetTask, path: str, source: str = "none") -> None:
    task.mkdir(path, 0o755)
    task.mount(source, path, "tmpfs", 0, "")


def test_the_files_say_what_the_calls_say(root: TargetTask, alice: TargetTask) -> None:
    mount(root, "/m")
    for name in ("mountinfo", "mounts", "mountstats"):
        assert contents(root, f"/proc/self/{name}") == getattr(root, name)()
        assert contents(root, f"/proc/{pid_of(alice)}/{name}") == getattr(root, name)()
    assert contents(root, "/proc/mounts") == root.mounts()
    assert root.readlink("/proc/mounts") == b"self/mounts"


def test_odd_characters_are_octal(root: TargetTask) -> None:
    mount(root, "/a b\tc\nd\\e#f", "#x y")
    for name, line in (
        ("mounts", b"\\043x\\040y /a\\040b\\011c\\012d\\134e#f tmpfs rw"),
        ("mountstats", b"device \\043x\\040y mounted on /a\\040b\\011c\\012d\\134e#f with fstype"),
    ):
        assert line in contents(root, f"/proc/self/{name}")
    assert b" / /a\\040b\\011c\\012d\\134e#f rw" in contents(root, "/proc/self/mountinfo")


def test_mounts_are_seen_from_the_task_s_root(root: TargetTask) -> None:
    mount(root, "/jail")
    mount(root, "/jail/inner")
    child = root.clone("child")
    pid = int(child.readlink("/proc/self"))
    child.chroot("/jail")
    lines = contents(root, f"/proc/{pid}/mounts").splitlines()
    assert [line.split()[1] for line in lines] == [b"/", b"/inner"]


def test_an_open_file_keeps_to_the_namespace_and_root_it_was_opened_with(root: TargetTask) -> None:
    before = contents(root, "/proc/self/mountinfo")
    fd = root.open("/proc/self/mountinfo", O_RDONLY)
    root.unshare(abi.CLONE_NEWNS)
    mount(root, "/new")
    root.chroot("/new")
    assert root.read(fd, 1 << 16) == before
    assert root.poll(fd, ALL_EVENTS) == READABLE


def test_reading_in_pieces_gives_the_text_once(root: TargetTask) -> None:
    for index in range(40):
        mount(root, f"/directory-number-{index}")
    whole = root.mountinfo()
    fd = root.open("/proc/self/mountinfo", O_RDONLY)
    pieces = b""
    while piece := root.read(fd, 7):
        assert len(piece) <= 7
        pieces += piece
    assert pieces == whole
    assert root.read(fd, 7) == b""
    assert root.lseek(fd, 0, SEEK_SET) == 0
    assert root.read(fd, 100) == whole[:100]
    assert root.pread64(fd, 50, 20) == whole[20:70]
    assert root.read(fd, 100) == whole[100:200]


def test_the_text_is_new_after_a_rewind(root: TargetTask) -> None:
    fd = root.open("/proc/self/mountinfo", O_RDONLY)
    first = root.read(fd, 1 << 16)
    mount(root, "/later")
    assert root.read(fd, 1 << 16) in (b"", root.mountinfo()[len(first) :])
    root.lseek(fd, 0, SEEK_SET)
    assert root.read(fd, 1 << 16) == root.mountinfo() != first


def test_one_text_holds_while_status_is_read_in_pieces(root: TargetTask) -> None:
    fd = root.open("/proc/self/status", O_RDONLY)
    start = root.read(fd, 12)
    root.umask(0o777)
    assert b"Umask:\t0022\n" in start + root.read(fd, 4096)
    root.lseek(fd, 0, SEEK_SET)
    assert b"Umask:\t0777\n" in root.read(fd, 4096)


@pytest.mark.parametrize("name", ["mountinfo", "status", "mountstats"])
def test_seeking_is_a_seq_file_s(root: TargetTask, name: str) -> None:
    fd = root.open(f"/proc/self/{name}", O_RDONLY)
    assert root.lseek(fd, 5, SEEK_SET) == 5
    assert root.lseek(fd, 4, SEEK_CUR) == 9
    assert root.lseek(fd, -9, SEEK_CUR) == 0
    assert root.lseek(fd, 1 << 40, SEEK_SET) == 1 << 40
    assert root.read(fd, 10) == b""
    fails_with(errno.EINVAL, root.lseek, fd, -1, SEEK_SET)
    for whence in (SEEK_END, SEEK_DATA, SEEK_HOLE):
        fails_with(errno.EINVAL, root.lseek, fd, 0, whence)
    root.lseek(fd, 3, SEEK_SET)
    assert root.read(fd, 10) == contents(root, f"/proc/self/{name}")[3:13]


def test_poll_tells_of_a_change_once_to_each_open_file(root: TargetTask) -> None:
    info, mounts, stats, status = (
        root.open(f"/proc/self/{name}", O_RDONLY)
        for name in ("mountinfo", "mounts", "mountstats", "status")
    )
    assert root.poll(info, ALL_EVENTS) == root.poll(mounts, ALL_EVENTS) == READABLE
    mount(root, "/m")
    for fd in (info, mounts):
        assert root.poll(fd, ALL_EVENTS) == READABLE | POLLERR | POLLPRI
        assert root.poll(fd, ALL_EVENTS) == READABLE
    root.umount2("/m", 0)
    root.read(info, 10)
    assert root.poll(info, 0) == POLLERR
    assert root.poll(root.open("/proc/self/mounts", O_RDONLY), ALL_EVENTS) == READABLE
    assert root.poll(stats, ALL_EVENTS) == root.poll(status, ALL_EVENTS) == ALWAYS_READY


def test_another_namespace_s_changes_are_not_told(root: TargetTask) -> None:
    fd = root.open("/proc/self/mounts", O_RDONLY)
    other = root.clone("other")
    other.unshare(abi.CLONE_NEWNS)
    mount(other, "/m")
    assert root.poll(fd, ALL_EVENTS) == READABLE


def test_a_task_that_waits_in_poll_is_woken_by_a_mount(vfs: VirtualFilesystem, task: Task) -> None:
    register_proc(vfs)
    for path in ("/proc", "/m"):
        task.mkdir(path, 0o755)
    task.mount("proc", "/proc", "proc")
    fd = task.open("/proc/self/mounts", O_RDONLY)
    told: list[int] = []
    waiter = threading.Thread(target=lambda: told.append(task.poll(fd, POLLPRI)))
    waiter.start()
    while waiter.is_alive() and not len(task.namespace.poll_queue):
        pass
    task.mount("none", "/m", "tmpfs")
    waiter.join()
    assert told == [POLLERR | POLLPRI]
