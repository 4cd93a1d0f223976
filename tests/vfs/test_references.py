"""Counted references, the dentry cache's bound, the virtual clock, and runs that repeat exactly."""

from __future__ import annotations

import errno

import pytest
from vfs_support import fails_with

from fsimpl.tmpfs import TmpfsType
from harness.testbed.vfs_target import VfsTarget
from vfs import Credentials, VirtualFilesystem, abi
from vfs.clock import VirtualClock
from vfs.dentry import Dentry
from vfs.errors import InvariantViolation
from vfs.fs_context import FilesystemContext, Parameter
from vfs.inode import Inode
from vfs.superblock import (
    DCACHE_REVALIDATE,
    DCACHE_VALID,
    FilesystemType,
    Superblock,
)
from vfs.task import Task

MAGIC = 0x6E756D62


class Numbers(Inode):
    """A directory without storage: every decimal number is a directory like itself."""

    __slots__ = ("asked",)

    def __init__(self, superblock: Superblock, mode: int) -> None:
        super().__init__(superblock, mode)
        self.asked: list[bytes] = []

    def lookup(self, name: bytes) -> Inode | None:
        self.asked.append(name)
        return Numbers(self.superblock, abi.S_IFDIR | 0o755) if name.isdigit() else None


class Vanishing(Numbers):
    """The same, where names behind a cached dentry can go away: those in ``gone`` did."""

    __slots__ = ("gone",)

    def __init__(self, superblock: Superblock, mode: int) -> None:
        super().__init__(superblock, mode)
        self.gone: set[bytes] = set()

    def revalidate(self, dentry: Dentry) -> bool:
        return dentry.name not in self.gone


class NumbersType(FilesystemType):
    """No Linux analogue: what a filesystem with a dentry cache needs, and nothing else."""

    name = "numbers"

    def parse_parameter(self, context: FilesystemContext, parameter: Parameter) -> bool:
        if parameter.key != "revalidate":
            return False
        context.fs_private = parameter
        return True

    def get_tree(self, context: FilesystemContext) -> Superblock:
        revalidates = context.fs_private is not None
        policy = DCACHE_REVALIDATE if revalidates else DCACHE_VALID
        superblock = Superblock(context, magic=MAGIC, dcache=policy)
        kind = Vanishing if revalidates else Numbers
        superblock.root = Dentry.make_root(superblock, kind(superblock, abi.S_IFDIR | 0o755))
        return superblock


def numbers(limit: int = 100, options: str = "") -> tuple[VirtualFilesystem, Task, Numbers]:
    """A filesystem of numbers, a task at its root, and the root's inode."""
    vfs = VirtualFilesystem(dcache_limit=limit, tracing=True)
    vfs.register(NumbersType())
    with vfs.create_namespace("numbers", options=options) as namespace:
        task = vfs.create_task(namespace)
    inode = task.fs.root.inode
    assert isinstance(inode, Numbers)
    return vfs, task, inode


def test_a_name_is_looked_up_once_while_it_is_cached() -> None:
    vfs, task, root = numbers()
    first = task.stat("/1")
    assert task.stat("/1") == first
    assert root.asked == [b"1"]
    vfs.shutdown()


def test_a_missing_name_is_remembered_as_missing() -> None:
    vfs, task, root = numbers()
    for _ in range(3):
        fails_with(errno.ENOENT, task.stat, "/x")
    assert root.asked == [b"x"]
    vfs.shutdown()


def test_unused_dentries_beyond_the_limit_leave_oldest_first() -> None:
    vfs, task, root = numbers(limit=3)
    for number in range(1, 6):
        task.stat(f"/{number}")
    assert [dentry.name for dentry in vfs.dcache.lru] == [b"3", b"4", b"5"]
    assert vfs.ledger.live["Numbers"] == 4
    task.stat("/3")
    assert [dentry.name for dentry in vfs.dcache.lru] == [b"4", b"5", b"3"]
    task.stat("/1")
    assert root.asked == [b"1", b"2", b"3", b"4", b"5", b"1"]
    vfs.check()
    vfs.shutdown()


def test_dentries_in_use_are_not_shrunk_and_hold_their_parents() -> None:
    vfs, task, _ = numbers(limit=0)
    fd = task.open("/1/2/3", abi.O_PATH)
    assert vfs.dcache.shrink(100) == 0
    assert vfs.ledger.live["Dentry"] == 5  # rootfs, "/", 1, 2, 3
    vfs.check()
    task.close(fd)
    assert vfs.ledger.live["Dentry"] == 2
    vfs.shutdown()


def test_shrinking_a_child_frees_its_parent_for_the_next_turn() -> None:
    vfs, task, _ = numbers()
    task.stat("/1/2/3")
    assert len(vfs.dcache.lru) == 1
    assert vfs.dcache.shrink(2) == 2
    assert [dentry.name for dentry in vfs.dcache.lru] == [b"1"]
    vfs.check()
    vfs.shutdown()


def test_a_revalidated_name_that_went_away_is_forgotten_with_its_mounts() -> None:
    vfs, task, root = numbers(options="revalidate")
    vfs.register(TmpfsType())
    assert isinstance(root, Vanishing)
    task.mount("none", "/1", "tmpfs")
    task.mkdir("/1/d")
    root.gone.add(b"1")
    fails_with(errno.ENOENT, task.stat, "/1/d")
    assert len(task.namespace.mounts) == 2
    assert root.asked == [b"1", b"1"]
    vfs.check()
    vfs.shutdown()


def test_a_forgotten_reference_is_reported_with_the_line_that_took_it() -> None:
    vfs, task, _ = numbers()
    found = task.fs.root
    found.get()
    with pytest.raises(InvariantViolation) as info:
        vfs.shutdown()
    message = str(info.value)
    assert "Dentry: 1 live" in message or "Dentry: 2 live" in message
    assert "test_references.py" in message
    found.put()
    vfs.shutdown()


def test_putting_once_too_often_raises() -> None:
    _, task, _ = numbers()
    dentry = task.fs.root.dentry
    count = dentry.count
    with pytest.raises(InvariantViolation):
        for _ in range(count + 1):
            dentry.put()


def test_shutdown_ends_tasks_with_open_files_in_mounts_below() -> None:
    with VfsTarget(tracing=True) as target:
        root = target.task()
        root.mkdir("mnt", 0o755)
        root.mount("none", "mnt", "tmpfs", 0, "")
        root.chdir("mnt")
        root.open("f", abi.O_CREAT | abi.O_RDWR, 0o644)
        root.clone("child", 0, 1000, 1000, ())
    assert not target.vfs.ledger.live


def test_a_deleted_open_file_keeps_its_lazily_unmounted_filesystem_until_it_is_closed() -> None:
    with VfsTarget(tracing=True) as target:
        root = target.task()
        root.mkdir("mnt", 0o755)
        root.mount("none", "mnt", "tmpfs", 0, "")
        fd = root.open("mnt/f", abi.O_CREAT | abi.O_RDWR, 0o644)
        root.unlink("mnt/f")
        root.umount2("mnt", abi.MNT_DETACH)
        before = target.vfs.ledger.live["TmpfsSuperblock"]
        root.write(fd, b"x")
        root.close(fd)
        assert target.vfs.ledger.live["TmpfsSuperblock"] == before - 1


# Runs that repeat


def test_the_virtual_clock_moves_only_when_told() -> None:
    clock = VirtualClock(5_000_000_000)
    with VfsTarget(clock=clock) as target:
        root = target.task()
        root.mkdir("a", 0o755)
        assert root.stat("a").st_mtime_ns == 5_000_000_000
        clock.advance_ns(7)
        root.mkdir("b", 0o755)
        assert root.stat("b").st_mtime_ns == 5_000_000_007
        assert root.stat("a").st_mtime_ns == 5_000_000_000


def test_a_ticking_virtual_clock_gives_every_event_a_time_of_its_own() -> None:
    with VfsTarget(clock=VirtualClock(tick_ns=1)) as target:
        root = target.task()
        times = []
        for name in ("a", "b", "c"):
            root.mkdir(name, 0o755)
            times.append(root.stat(name).st_ctime_ns)
        assert times[0] < times[1] < times[2]


def history(target: VfsTarget) -> list[object]:
    """What a run shows: every number that it gives out."""
    root = target.task()
    shown: list[object] = []
    for name in ("a", "b", "c"):
        root.mkdir(name, 0o755)
        root.mount("none", name, "tmpfs", 0, "")
        root.open(f"{name}/f", abi.O_CREAT | abi.O_RDWR, 0o644)
        shown += [root.stat(name), root.stat(f"{name}/f"), root.statx(-100, name, 0, 0x17FF)]
    root.umount2("b", abi.MNT_DETACH)
    shown += [root.getdents64(root.open("/", abi.O_RDONLY, 0), 10000)]
    return shown


def test_two_runs_give_the_same_inode_device_and_mount_numbers_and_times() -> None:
    with VfsTarget(clock=VirtualClock()) as one, VfsTarget(clock=VirtualClock()) as other:
        assert history(one) == history(other)


def test_the_lowest_free_device_number_is_given_again() -> None:
    with VfsTarget() as target:
        root = target.task()
        root.mkdir("mnt", 0o755)
        root.mount("none", "mnt", "tmpfs", 0, "")
        first = root.stat("mnt").st_dev
        root.umount2("mnt", 0)
        root.mount("none", "mnt", "tmpfs", 0, "")
        assert root.stat("mnt").st_dev == first


def test_two_virtual_filesystems_share_nothing() -> None:
    with VfsTarget() as one, VfsTarget() as other:
        one.task().mkdir("only_here", 0o755)
        fails_with(errno.ENOENT, other.task().stat, "only_here")
        assert one.task().stat("/").st_ino == other.task().stat("/").st_ino


def test_for_access_drops_a_users_raised_capabilities() -> None:
    raised = Credentials(1000, 1000, fsuid=0)
    assert raised.capable(1)
    assert not raised.for_access().capable(1)
