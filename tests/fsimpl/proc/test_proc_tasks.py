"""The directories of tasks: who is there, who may look, what their files and links say."""

from __future__ import annotations

import errno
import stat

import pytest
from proc_support import (
    contents,
    descriptors,
    fails_with,
    fields,
    names,
    numbers,
    pid_of,
    register_proc,
)

from harness.testbed.target import Target, TargetTask
from vfs import Credentials, VirtualFilesystem, abi
from vfs.abi import AT_EMPTY_PATH, AT_FDCWD, O_CREAT, O_NOFOLLOW, O_PATH, O_RDONLY, O_RDWR, O_WRONLY
from vfs.namei import step
from vfs.operations import vfs_readlink
from vfs.task import Task

_READS = 10_000


def test_self_is_whoever_asks(root: TargetTask, alice: TargetTask) -> None:
    assert pid_of(root) != pid_of(alice)
    for task in (root, alice):
        pid = pid_of(task)
        assert task.stat("/proc/self").st_ino == root.stat(f"/proc/{pid}").st_ino
        assert task.readlink("/proc/thread-self") == b"%d/task/%d" % (pid, pid)
        assert fields(contents(task, "/proc/thread-self/status"))["Pid"] == str(pid)


def test_every_live_task_has_a_directory(root: TargetTask, alice: TargetTask) -> None:
    pids = numbers(root, "/proc")
    assert pids == sorted(pids)
    assert {pid_of(root), pid_of(alice)} <= set(pids)
    assert names(root, "/proc").index("self") < names(root, "/proc").index(str(pids[0]))


def test_the_directory_of_a_task_goes_with_it(root: TargetTask, alice: TargetTask) -> None:
    gone = pid_of(alice)
    root.stat(f"/proc/{gone}/fd")
    alice.exit()
    assert gone not in numbers(root, "/proc")
    fails_with(errno.ENOENT, root.stat, f"/proc/{gone}")
    fails_with(errno.ENOENT, root.stat, f"/proc/{gone}/status")


def test_files_that_are_open_when_the_task_exits(root: TargetTask, alice: TargetTask) -> None:
    alice.open("/", O_RDONLY)
    here = f"/proc/{pid_of(alice)}"
    opened = {
        name: root.open(f"{here}/{name}", O_RDONLY)
        for name in ("status", "fdinfo/0", "mountinfo", "uid_map")
    }
    directory, fds = root.open(here, O_RDONLY), root.open(f"{here}/fd", O_RDONLY)
    links = {
        name: root.open(f"{here}/{name}", O_PATH | O_NOFOLLOW) for name in ("cwd", "fd/0", "ns/mnt")
    }
    table = contents(root, f"{here}/mountinfo")
    alice.exit()
    fails_with(errno.ESRCH, root.read, opened["status"], 10)
    fails_with(errno.ENOENT, root.read, opened["fdinfo/0"], 10)
    assert root.read(opened["mountinfo"], 1 << 16) == table
    assert root.read(opened["uid_map"], 100)
    fails_with(errno.ENOENT, root.getdents64, directory, 1000)
    fails_with(errno.ENOENT, root.getdents64, fds, 1000)
    fails_with(errno.ESRCH, root.newfstatat, directory, "status", 0)
    fails_with(errno.ENOENT, root.newfstatat, fds, "0", 0)
    fails_with(errno.ENOENT, root.readlinkat, links["cwd"], "")
    fails_with(errno.ENOENT, root.readlinkat, links["fd/0"], "")
    fails_with(errno.EACCES, root.readlinkat, links["ns/mnt"], "")
    assert root.fstat(directory).st_uid == 0
    fails_with(errno.ENOENT, root.fstat, fds)


@pytest.mark.parametrize("name", ["x", "0", "01", "-1", "99999999", "99999999999999", "self2"])
def test_a_name_that_is_no_task_is_not_there(root: TargetTask, name: str) -> None:
    fails_with(errno.ENOENT, root.lstat, f"/proc/{name}")


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        (".", stat.S_IFDIR | 0o555, 0),
        ("mountinfo", stat.S_IFREG | 0o444, 0),
        ("mounts", stat.S_IFREG | 0o444, 0),
        ("mountstats", stat.S_IFREG | 0o400, 0),
        ("root", stat.S_IFLNK | 0o777, 0),
        ("cwd", stat.S_IFLNK | 0o777, 0),
        ("exe", stat.S_IFLNK | 0o777, 0),
        ("fd", stat.S_IFDIR | 0o500, None),
        ("fdinfo", stat.S_IFDIR | 0o555, 0),
        ("ns", stat.S_IFDIR | 0o511, 0),
        ("ns/mnt", stat.S_IFLNK | 0o777, 0),
        ("ns/user", stat.S_IFLNK | 0o777, 0),
        ("status", stat.S_IFREG | 0o444, 0),
        ("uid_map", stat.S_IFREG | 0o644, 0),
        ("gid_map", stat.S_IFREG | 0o644, 0),
        ("task", stat.S_IFDIR | 0o555, 0),
        ("../mounts", stat.S_IFLNK | 0o777, 11),
        ("../filesystems", stat.S_IFREG | 0o444, 0),
        ("../sys/fs", stat.S_IFDIR | 0o555, 0),
    ],
)
def test_attributes(
    target: Target,
    root: TargetTask,
    alice: TargetTask,
    name: str,
    mode: int,
    size: int | None,
) -> None:
    seen = root.lstat(f"/proc/{pid_of(alice)}/{name}")
    assert stat.filemode(seen.st_mode) == stat.filemode(mode)
    # A process that has changed its uid is not dumpable, which makes most of its files root's.
    if target.name == "vfs" or mode == stat.S_IFDIR | 0o555:
        owner = 0 if name.startswith("..") else 1000
        assert (seen.st_uid, seen.st_gid) == (owner, owner)
    assert size is None or seen.st_size == size
    assert (seen.st_blksize, seen.st_blocks) == (1024, 0)


def test_nothing_can_be_made_renamed_or_removed(root: TargetTask) -> None:
    for place in ("/proc", "/proc/self", "/proc/self/fd", "/proc/sys/fs"):
        fails_with(errno.ENOENT, root.mkdir, f"{place}/x", 0o755)
        fails_with(errno.ENOENT, root.open, f"{place}/x", O_CREAT | O_RDWR, 0o644)
        fails_with(errno.ENOENT, root.symlink, "a", f"{place}/x")
    fails_with(errno.EPERM, root.unlink, "/proc/self/status")
    fails_with(errno.EPERM, root.unlink, "/proc/filesystems")
    fails_with(errno.EPERM, root.rmdir, "/proc/self/fd")
    fails_with(errno.EACCES, root.unlink, "/proc/sys/fs/mount-max")
    fails_with(errno.EPERM, root.fchmodat2, AT_FDCWD, "/proc/self/status", 0o400, 0)
    fails_with(errno.EPERM, root.fchmodat2, AT_FDCWD, "/proc/sys/fs/mount-max", 0o600, 0)


def test_status_says_who_the_task_is(target: Target, root: TargetTask, alice: TargetTask) -> None:
    alice.umask(0o27)
    own = fields(contents(alice, "/proc/self/status"))
    seen = fields(contents(root, f"/proc/{pid_of(alice)}/status"))
    assert own["State"] == "R (running)"
    # A process of Linux's may still be on its way to sleep.
    if target.name == "vfs":
        assert seen["State"] == "S (sleeping)"
    for said in (own, seen):
        assert said["Umask"] == "0027"
        assert said["Pid"] == said["Tgid"] == str(pid_of(alice))
        assert said["Uid"] == said["Gid"] == "1000\t1000\t1000\t1000"
        assert said["Groups"] == "7 100 "
        assert said["CapPrm"] == said["CapEff"] == "0" * 16
    about_root = fields(contents(root, "/proc/self/status"))
    assert about_root["Groups"] == " "
    assert len(about_root["CapEff"]) == 16
    assert int(about_root["CapEff"], 16) & 1 << 21


def test_ids_map_to_themselves(root: TargetTask) -> None:
    for name in ("uid_map", "gid_map"):
        assert contents(root, f"/proc/self/{name}") == b"         0          0 4294967295\n"
        fd = root.open(f"/proc/self/{name}", O_WRONLY)
        fails_with(errno.EPERM, root.write, fd, b"0 0 1")


# Links


def test_root_and_cwd_lead_where_the_task_is(root: TargetTask, alice: TargetTask) -> None:
    root.mkdir("/jail", 0o755)
    root.mkdir("/jail/cell", 0o755)
    child = root.clone("child")
    child.chdir("/jail/cell")
    child.chroot("/jail")
    here = f"/proc/{pid_of(alice)}"
    assert root.readlink(f"{here}/cwd") == b"/"
    there = str(max(numbers(root, "/proc")))
    assert root.readlink(f"/proc/{there}/root") == b"/jail"
    assert root.readlink(f"/proc/{there}/cwd") == b"/jail/cell"
    assert names(root, f"/proc/{there}/root") == ["cell"]
    assert root.stat(f"/proc/{there}/cwd/..").st_ino == root.stat("/jail").st_ino


def test_the_links_of_others_are_closed(root: TargetTask, alice: TargetTask) -> None:
    root.open("/", O_RDONLY)
    here = f"/proc/{pid_of(root)}"
    for name in ("root", "cwd", "exe", "ns/mnt", "fd/0"):
        fails_with(errno.EACCES, alice.readlink, f"{here}/{name}")
        fails_with(errno.EACCES, alice.stat, f"{here}/{name}")
    for name in ("fd", "fdinfo", "ns"):
        fails_with(errno.EACCES, names, alice, f"{here}/{name}")
    fails_with(errno.EACCES, alice.open, f"{here}/fdinfo/0", O_RDONLY)
    fails_with(errno.EACCES, alice.open, f"{here}/mountstats", O_RDONLY)
    assert contents(alice, f"{here}/mountinfo")
    assert contents(alice, f"{here}/status")
    assert alice.readlink("/proc/self/cwd") == b"/"
    assert root.readlink(f"/proc/{pid_of(alice)}/cwd") == b"/"


def test_fd_has_a_link_for_each_descriptor(root: TargetTask) -> None:
    root.open("/a", O_CREAT | O_RDONLY, 0o644)
    root.open("/a", O_WRONLY)
    root.open("/a", O_RDWR)
    root.open("/", O_PATH)
    # One more is open while the directory is read.
    assert descriptors(root, "/proc/self/fd") == {0, 1, 2, 3, 4}
    modes = [stat.filemode(root.lstat(f"/proc/self/fd/{fd}").st_mode) for fd in range(4)]
    assert modes == ["lr-x------", "l-wx------", "lrwx------", "l---------"]
    assert root.lstat("/proc/self/fd/0").st_size == 64
    assert root.readlink("/proc/self/fd/2") == b"/a"
    root.close(1)
    fails_with(errno.ENOENT, root.readlink, "/proc/self/fd/1")
    assert root.dup2(3, 2) == 2
    assert stat.filemode(root.lstat("/proc/self/fd/2").st_mode) == "l---------"
    assert root.readlink("/proc/self/fd/2") == b"/"
    for name in ("00", "x", "77", "99999999999"):
        fails_with(errno.ENOENT, root.lstat, f"/proc/self/fd/{name}")


def test_fd_opens_the_same_file_again_though_it_is_deleted(root: TargetTask) -> None:
    fd = root.open("/gone", O_CREAT | O_RDWR, 0o600)
    root.write(fd, b"still here")
    root.unlink("/gone")
    assert root.readlink(f"/proc/self/fd/{fd}") == b"/gone (deleted)"
    again = root.open(f"/proc/self/fd/{fd}", O_RDONLY)
    assert root.read(again, 20) == b"still here"
    assert root.fstat(again).st_ino == root.fstat(fd).st_ino
    creating = root.open(f"/proc/self/fd/{fd}", O_CREAT | O_RDWR, 0o600)
    assert root.fstat(creating).st_ino == root.fstat(fd).st_ino
    fails_with(errno.ELOOP, root.open, f"/proc/self/fd/{fd}", O_RDONLY | O_NOFOLLOW)
    fails_with(
        errno.ELOOP,
        root.openat2, AT_FDCWD, f"/proc/self/fd/{fd}", O_RDONLY, 0, abi.RESOLVE_NO_MAGICLINKS,
    )  # fmt: skip


def test_a_directory_s_link_is_a_way_in(root: TargetTask) -> None:
    root.mkdir("/d", 0o755)
    root.mkdir("/d/e", 0o755)
    fd = root.open("/d", O_PATH)
    assert root.stat(f"/proc/self/fd/{fd}/e").st_ino == root.stat("/d/e").st_ino
    assert root.stat(f"/proc/self/fd/{fd}/..").st_ino == root.stat("/").st_ino


def test_fdinfo_tells_offset_flags_mount_and_inode(root: TargetTask) -> None:
    fd = root.open("/a", O_CREAT | O_RDWR | abi.O_APPEND | abi.O_CLOEXEC, 0o644)
    root.write(fd, b"12345")
    mount_id = root.statx(fd, "", AT_EMPTY_PATH).stx_mnt_id
    said = fields(contents(root, f"/proc/self/fdinfo/{fd}"))
    assert said == {
        "pos": "5",
        "flags": "02102002",
        "mnt_id": str(mount_id),
        "ino": str(root.fstat(fd).st_ino),
    }
    path = root.open("/", O_PATH)
    assert fields(contents(root, f"/proc/self/fdinfo/{path}"))["flags"] == "010000000"


def test_ns_links_are_the_same_file_for_who_shares_the_namespace(
    root: TargetTask, alice: TargetTask
) -> None:
    there = pid_of(alice)
    other = root.clone("other")
    other.unshare(abi.CLONE_NEWNS)
    apart = pid_of(other)
    for kind in ("mnt", "user"):
        mine = root.stat(f"/proc/self/ns/{kind}")
        theirs = root.stat(f"/proc/{there}/ns/{kind}")
        assert (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)
        assert root.readlink(f"/proc/self/ns/{kind}") == f"{kind}:[{mine.st_ino}]".encode()
    assert root.stat(f"/proc/{apart}/ns/mnt").st_ino != root.stat("/proc/self/ns/mnt").st_ino
    assert root.stat(f"/proc/{apart}/ns/user").st_ino == root.stat("/proc/self/ns/user").st_ino
    assert {"mnt", "user"} <= set(names(root, "/proc/self/ns"))


def test_a_namespace_is_entered_through_its_link(root: TargetTask) -> None:
    other = root.clone("other")
    other.unshare(abi.CLONE_NEWNS)
    fd = root.open(f"/proc/{pid_of(other)}/ns/mnt", O_RDONLY)
    root.setns(fd, abi.CLONE_NEWNS)
    mine, theirs = root.stat("/proc/self/ns/mnt"), other.stat("/proc/self/ns/mnt")
    assert mine.st_ino == theirs.st_ino


def test_a_mount_on_a_task_s_file_goes_with_the_task(root: TargetTask) -> None:
    child = root.clone("child")
    here = f"/proc/{pid_of(child)}"
    root.open("/a", O_CREAT | O_RDWR, 0o644)
    root.mount("/a", f"{here}/status", None, abi.MS_BIND, None)
    assert here.encode() in contents(root, "/proc/self/mountinfo")
    child.exit()
    fails_with(errno.ENOENT, root.lstat, here)
    # Linux flushes what a process leaves in /proc when it is reaped, on another processor.
    for _ in range(_READS):
        if here.encode() not in contents(root, "/proc/self/mountinfo"):
            return
    pytest.fail("the mount is still there")


def test_a_proc_mounted_on_a_task_s_directory_goes_with_the_task(
    vfs: VirtualFilesystem, task: Task
) -> None:
    register_proc(vfs)
    task.mkdir("/proc", 0o755)
    task.mount("proc", "/proc", "proc")
    with task.clone() as child:
        task.mount("proc", f"/proc/{child.pid}/fd", "proc")
        task.stat(f"/proc/{child.pid}/fd/{child.pid}/status")
    assert [mount.superblock.type.name for mount in task.namespace.mounts.values()].count(
        "proc"
    ) == 1


def test_listing_by_small_pieces_misses_and_repeats_nothing(root: TargetTask) -> None:
    fds = [root.open("/", O_RDONLY) for _ in range(30)]
    directory = root.open("/proc/self/fd", O_RDONLY)
    seen: list[bytes] = []
    while entries := root.getdents64(directory, 96):
        seen += [entry.d_name for entry in entries]
        if fds:
            root.close(fds.pop())
    listed = [int(name) for name in seen if name.isdigit()]
    assert len(set(listed)) == len(listed)
    assert set(fds) <= set(listed)


def test_where_no_task_asks_self_leads_nowhere_and_links_are_closed(
    vfs: VirtualFilesystem, task: Task
) -> None:
    register_proc(vfs)
    task.mkdir("/proc", 0o755)
    task.mount("proc", "/proc", "proc")
    fd = task.open("/proc/self", abi.O_PATH)
    cred = Credentials.root()
    with vfs.lock:
        file = task.files.get_file(fd)
        for parent, name, number in (
            (file.mount.root, b"self", errno.ENOENT),
            (file.mount.root, b"thread-self", errno.ENOENT),
            (file.dentry, b"cwd", errno.EACCES),
        ):
            link = step(parent, name)
            assert link is not None
            with link:
                fails_with(number, vfs_readlink, file.mount, link, cred)
