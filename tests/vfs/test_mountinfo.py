"""What /proc/PID/mountinfo, mounts and mountstats say, byte by byte, on the VFS and on Linux."""

from __future__ import annotations

import re

import pytest
from vfs_support import make_file

from harness.testbed.target import Target, TargetTask
from vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWNS,
    MNT_DETACH,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_BIND,
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_MANDLOCK,
    MS_MOVE,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
    OPEN_TREE_CLONE,
)
from vfs.mountinfo import show_mountinfo
from vfs.task import Task

ODD = b"s p\tt\nn\\b#h\x01\xff"
ESCAPED = rb"s\040p\011t\012n\134b#h" + b"\x01\xff"


def tmpfs(
    task: TargetTask, path: str | bytes, source: str | bytes = "none", flags: int = 0
) -> None:
    task.mount(source, path, "tmpfs", flags, None)


def bind(task: TargetTask, source: str | bytes, path: str | bytes) -> None:
    task.mount(source, path, None, MS_BIND, None)


def change(task: TargetTask, path: str, propagation: int) -> None:
    task.mount(None, path, None, propagation, None)


def mountinfo(task: TargetTask) -> list[bytes]:
    """The lines behind the root's: mount ids, devices and peer groups become the numbers of their
    first appearance in a line's own place; a parent that is not in the table is 0.
    """
    lines = [line.split(b" ", 3) for line in task.mountinfo().splitlines()]
    ids = {line[0]: number for number, line in enumerate(lines)}
    devices: dict[bytes, int] = {}
    groups: dict[bytes, int] = {}

    def group(match: re.Match[bytes]) -> bytes:
        return b"%s:%d" % (match[1], groups.setdefault(match[2], len(groups) + 1))

    renamed = []
    for mount, parent, device, rest in lines:
        number = devices.setdefault(device, len(devices))
        rest = re.sub(rb"\b(shared|master|propagate_from):(\d+)", group, rest)
        renamed.append(b"%d %d %d %s" % (ids[mount], ids.get(parent, 0), number, rest))
    return renamed[1:]


@pytest.fixture
def root(target: Target) -> TargetTask:
    task = target.task()
    for name in "abcd":
        task.mkdir(name, 0o755)
    return task


def tags(task: TargetTask) -> list[bytes]:
    """The optional fields of each line, as they are."""
    return [b" ".join(line.split(b" - ")[0].split()[6:]) for line in task.mountinfo().splitlines()]


# Fields


def test_a_mount_is_one_line_in_each_table(root: TargetTask) -> None:
    root.mount("src", "a", "tmpfs", 0, "size=1m,mode=700")
    assert mountinfo(root) == [b"1 0 1 / /a rw,relatime - tmpfs src rw,size=1024k,mode=700"]
    assert root.mounts().splitlines()[1:] == [b"src /a tmpfs rw,relatime,size=1024k,mode=700 0 0"]
    assert root.mountstats().splitlines()[1:] == [b"device src mounted on /a with fstype tmpfs"]


def test_options_of_the_mount_and_of_the_superblock_stand_in_the_order_of_linux(
    root: TargetTask,
) -> None:
    mount_flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_NOSYMFOLLOW
    superblock_flags = MS_SYNCHRONOUS | MS_DIRSYNC | MS_MANDLOCK | MS_LAZYTIME
    tmpfs(root, "a", "x", MS_RDONLY | mount_flags | superblock_flags)
    assert mountinfo(root) == [
        b"1 0 1 / /a ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"
        b" - tmpfs x ro,sync,dirsync,mand,lazytime"
    ]
    assert root.mounts().splitlines()[1:] == [
        b"x /a tmpfs ro,sync,dirsync,mand,lazytime"
        b",nosuid,nodev,noexec,noatime,nodiratime,nosymfollow 0 0"
    ]


def test_strictatime_has_no_name(root: TargetTask) -> None:
    tmpfs(root, "a", "x", MS_STRICTATIME)
    assert mountinfo(root) == [b"1 0 1 / /a rw - tmpfs x rw"]


def test_a_read_only_mount_and_a_read_only_superblock_are_told_apart_in_mountinfo_only(
    root: TargetTask,
) -> None:
    tmpfs(root, "a", "one")
    bind(root, "a", "b")
    root.mount(None, "b", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
    tmpfs(root, "c", "two", MS_RDONLY)
    root.mount(None, "c", None, MS_REMOUNT | MS_BIND, None)
    assert mountinfo(root) == [
        b"1 0 1 / /a rw,relatime - tmpfs one rw",
        b"2 0 1 / /b ro,relatime - tmpfs one rw",
        b"3 0 2 / /c rw,relatime - tmpfs two ro",
    ]
    assert root.mounts().splitlines()[1:] == [
        b"one /a tmpfs rw,relatime 0 0",
        b"one /b tmpfs ro,relatime 0 0",
        b"two /c tmpfs ro,relatime 0 0",
    ]


def test_white_space_and_backslashes_are_octal_and_in_sources_hashes_too(root: TargetTask) -> None:
    root.mkdir(ODD, 0o755)
    tmpfs(root, ODD, ODD[:-1])
    root.mkdir(ODD + b"/" + ODD, 0o755)
    bind(root, ODD + b"/" + ODD, "b")
    source = ESCAPED[:-1].replace(b"#", rb"\043")
    assert mountinfo(root) == [
        b"1 0 1 / /" + ESCAPED + b" rw,relatime - tmpfs " + source + b" rw",
        b"2 0 1 /" + ESCAPED + b" /b rw,relatime - tmpfs " + source + b" rw",
    ]
    assert root.mounts().splitlines()[1] == (source + b" /" + ESCAPED + b" tmpfs rw,relatime 0 0")
    assert root.mountstats().splitlines()[1] == (
        b"device " + source + b" mounted on /" + ESCAPED + b" with fstype tmpfs"
    )


def test_without_a_source_it_is_none_and_an_empty_one_stays_empty(root: TargetTask) -> None:
    root.mount(None, "a", "tmpfs", 0, None)
    tmpfs(root, "b", "")
    assert mountinfo(root) == [
        b"1 0 1 / /a rw,relatime - tmpfs none rw",
        b"2 0 2 / /b rw,relatime - tmpfs  rw",
    ]
    assert root.mounts().splitlines()[2] == b" /b tmpfs rw,relatime 0 0"
    assert root.mountstats().splitlines()[2] == b"device  mounted on /b with fstype tmpfs"


# Roots


def test_a_bind_mount_shows_which_part_of_the_filesystem_it_is(root: TargetTask) -> None:
    tmpfs(root, "a")
    root.mkdir("a/d", 0o755)
    make_file(root, "a/d/f")
    make_file(root, "b/f")
    bind(root, "a/d", "c")
    bind(root, "a/d/f", "b/f")
    assert mountinfo(root)[1:] == [
        b"2 0 1 /d /c rw,relatime - tmpfs none rw",
        b"3 0 1 /d/f /b/f rw,relatime - tmpfs none rw",
    ]


def test_a_root_that_lost_its_name_is_marked_as_deleted(root: TargetTask) -> None:
    tmpfs(root, "a")
    root.mkdir("a/d", 0o755)
    root.mkdir("a/d/e", 0o755)
    make_file(root, "a/f")
    make_file(root, "b/f")
    bind(root, "a/d/e", "c")
    bind(root, "a/f", "b/f")
    root.rmdir("a/d/e")
    root.rmdir("a/d")
    root.unlink("a/f")
    assert mountinfo(root)[1:] == [
        b"2 0 1 /d/e//deleted /c rw,relatime - tmpfs none rw",
        b"3 0 1 /f//deleted /b/f rw,relatime - tmpfs none rw",
    ]


def test_paths_follow_renames(root: TargetTask) -> None:
    tmpfs(root, "a")
    root.mkdir("a/d", 0o755)
    bind(root, "a/d", "b")
    root.rename("a/d", "a/e")
    root.mkdir("c/m", 0o755)
    tmpfs(root, "c/m")
    root.rename("c", "n")
    assert mountinfo(root)[1:] == [
        b"2 0 1 /e /b rw,relatime - tmpfs none rw",
        b"3 0 2 / /n/m rw,relatime - tmpfs none rw",
    ]


def test_the_mount_of_a_namespaces_file_shows_the_namespace(root: TargetTask) -> None:
    make_file(root, "f")
    fd = root.nsfd("root", "user")
    number = root.fstat(fd).st_ino
    tree = root.open_tree(fd, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
    root.move_mount(tree, "", AT_FDCWD, "f", MOVE_MOUNT_F_EMPTY_PATH)
    assert mountinfo(root) == [b"1 0 1 user:[%d] /f rw - nsfs nsfs rw" % number]
    assert root.mounts().splitlines()[1:] == [b"nsfs /f nsfs rw 0 0"]
    root.close(tree)
    root.close(fd)


# Places


def test_mounts_stand_in_the_order_in_which_they_were_made(root: TargetTask) -> None:
    tmpfs(root, "b", "1")
    tmpfs(root, "a", "2")
    root.mkdir("a/d", 0o755)
    tmpfs(root, "a/d", "3")
    tmpfs(root, "c", "4")
    root.mkdir("c/m", 0o755)
    root.mount("b", "c/m", None, MS_MOVE, None)
    assert mountinfo(root) == [
        b"1 4 1 / /c/m rw,relatime - tmpfs 1 rw",
        b"2 0 2 / /a rw,relatime - tmpfs 2 rw",
        b"3 2 3 / /a/d rw,relatime - tmpfs 3 rw",
        b"4 0 4 / /c rw,relatime - tmpfs 4 rw",
    ]


def test_stacked_mounts_share_a_path(root: TargetTask) -> None:
    tmpfs(root, "a", "lower")
    tmpfs(root, "a", "upper")
    tmpfs(root, "/", "over")
    assert mountinfo(root) == [
        b"1 0 1 / /a rw,relatime - tmpfs lower rw",
        b"2 1 2 / /a rw,relatime - tmpfs upper rw",
        b"3 0 3 / / rw,relatime - tmpfs over rw",
    ]


def test_a_task_with_another_root_sees_what_is_below_it_from_there(root: TargetTask) -> None:
    tmpfs(root, "a", "outside")
    root.mkdir("a/jail", 0o755)
    root.mkdir("a/jail/m", 0o755)
    root.mkdir("a/n", 0o755)
    tmpfs(root, "a/n", "beside")
    tmpfs(root, "a/jail/m", "inside")
    root.mkdir("a/jail/m/k", 0o755)
    tmpfs(root, "a/jail/m/k", "deeper")
    child = root.clone("child")
    child.chroot("a/jail")
    lines = [line.split(b" ", 3)[3] for line in child.mountinfo().splitlines()]
    assert lines == [
        b"/ /m rw,relatime - tmpfs inside rw",
        b"/ /m/k rw,relatime - tmpfs deeper rw",
    ]
    assert child.mounts() == (
        b"inside /m tmpfs rw,relatime 0 0\ndeeper /m/k tmpfs rw,relatime 0 0\n"
    )
    assert child.mountstats() == (
        b"device inside mounted on /m with fstype tmpfs\n"
        b"device deeper mounted on /m/k with fstype tmpfs\n"
    )
    child.chroot("/m")
    assert child.mounts() == (b"inside / tmpfs rw,relatime 0 0\ndeeper /k tmpfs rw,relatime 0 0\n")


def test_a_task_whose_root_was_unmounted_sees_nothing(root: TargetTask) -> None:
    tmpfs(root, "a")
    child = root.clone("child")
    child.chroot("a")
    root.umount2("a", MNT_DETACH)
    assert (child.mountinfo(), child.mounts(), child.mountstats()) == (b"", b"", b"")


def test_another_namespace_has_a_table_of_its_own(root: TargetTask) -> None:
    tmpfs(root, "a", "both")
    child = root.clone("child", CLONE_NEWNS)
    tmpfs(root, "b", "root's")
    tmpfs(child, "c", "child's")
    assert [line.split()[0] for line in root.mounts().splitlines()[1:]] == [b"both", b"root's"]
    assert [line.split()[0] for line in child.mounts().splitlines()[1:]] == [b"both", b"child's"]


def test_a_mount_goes_with_its_mount_point_that_another_namespace_removes(root: TargetTask) -> None:
    child = root.clone("child", CLONE_NEWNS)
    tmpfs(child, "a")
    root.rmdir("a")
    assert mountinfo(child) == []


def test_a_mount_that_was_carried_out_of_its_bind_mount_is_left_out(root: TargetTask) -> None:
    for path in ("a/d", "a/d/p", "a/d/p/m"):
        root.mkdir(path, 0o755)
    bind(root, "a/d", "b")
    tmpfs(root, "b/p/m", "lost")
    assert len(mountinfo(root)) == 2
    root.rename("a/d/p", "a/p")
    assert [line.split()[4] for line in mountinfo(root)] == [b"/b"]
    root.rename("a/p", "a/d/q")
    assert [line.split()[4] for line in mountinfo(root)] == [b"/b", b"/b/q/m"]


# Propagation


def test_peer_groups_masters_and_unbindable_mounts_are_tagged(root: TargetTask) -> None:
    tmpfs(root, "a")
    change(root, "a", MS_SHARED)
    bind(root, "a", "b")
    change(root, "b", MS_SLAVE)
    bind(root, "b", "c")
    change(root, "c", MS_SHARED)
    tmpfs(root, "d")
    change(root, "d", MS_UNBINDABLE)
    assert mountinfo(root) == [
        b"1 0 1 / /a rw,relatime shared:1 - tmpfs none rw",
        b"2 0 1 / /b rw,relatime master:1 - tmpfs none rw",
        b"3 0 1 / /c rw,relatime shared:2 master:1 - tmpfs none rw",
        b"4 0 2 / /d rw,relatime unbindable - tmpfs none rw",
    ]
    change(root, "/", MS_PRIVATE | MS_REC)
    assert tags(root)[1:] == [b""] * 4


def test_the_closest_peer_group_in_view_is_named_if_the_master_is_not_in_view(
    root: TargetTask,
) -> None:
    tmpfs(root, "a")
    change(root, "a", MS_SHARED)
    for source, path in (("a", "b"), ("b", "c"), ("c", "d")):
        bind(root, source, path)
        change(root, path, MS_SLAVE)
        change(root, path, MS_SHARED)
    root.mkdir("jail", 0o755)
    for name in "abcd":
        root.mkdir("jail/" + name, 0o755)
    groups = {
        name: int(tag.split()[0].removeprefix(b"shared:"))
        for name, tag in zip("abcd", tags(root)[1:], strict=True)
    }
    bind(root, "d", "jail/d")
    child = root.clone("child")
    child.chroot("jail")
    assert b"propagate_from" not in root.mountinfo() + child.mountinfo()
    bind(root, "a", "jail/a")
    assert tags(child) == [
        b"shared:%d master:%d propagate_from:%d" % (groups["d"], groups["c"], groups["a"]),
        b"shared:%d" % groups["a"],
    ]
    bind(root, "b", "jail/b")
    assert tags(child)[0] == (
        b"shared:%d master:%d propagate_from:%d" % (groups["d"], groups["c"], groups["b"])
    )
    bind(root, "c", "jail/c")
    assert tags(child)[0] == b"shared:%d master:%d" % (groups["d"], groups["c"])
    assert b"propagate_from" not in root.mountinfo()


def test_peers_in_another_namespace_are_not_in_view(root: TargetTask) -> None:
    tmpfs(root, "a")
    change(root, "a", MS_SHARED)
    bind(root, "a", "b")
    change(root, "b", MS_SLAVE)
    change(root, "b", MS_SHARED)
    child = root.clone("child", CLONE_NEWNS)
    change(child, "b", MS_SLAVE)
    before = mountinfo(child)
    assert before == [
        b"1 0 1 / /a rw,relatime shared:1 - tmpfs none rw",
        b"2 0 1 / /b rw,relatime master:2 propagate_from:1 - tmpfs none rw",
    ]
    child.umount2("a", 0)
    assert mountinfo(child) == [b"1 0 1 / /b rw,relatime master:1 - tmpfs none rw"]


# Without Linux


def test_the_table_of_a_high_stack_of_mounts_is_printed(task: Task) -> None:
    for _ in range(1100):
        task.mount(b"none", "/", "tmpfs")
    lines = show_mountinfo(task.namespace, task.fs.root).splitlines()
    assert len(lines) == 1101
    assert {line.split()[4] for line in lines} == {b"/"}
