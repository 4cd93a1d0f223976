"""devtmpfs: nodes follow devices, and only those that it made itself."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from devtmpfs import DevtmpfsType
from vfs import abi
from vfs.credentials import Credentials
from vfs.device import BlockDevice, CharDevice
from vfs.task import Task

if TYPE_CHECKING:
    from tests.devtmpfs.conftest import Machine


def fails_with(number: int) -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(f"[Errno {number}]"))


class Hello(CharDevice):
    name = "hello"
    mode = 0o640
    uid = 7
    gid = 8

    def read(self, size: int, offset: int) -> bytes:
        return b"hello\n"[offset : offset + size]


class Bus(CharDevice):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def names(task: Task, path: str) -> set[str]:
    fd = task.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = {os.fsdecode(entry.d_name) for entry in task.getdents64(fd)}
    finally:
        task.close(fd)
    return found - {".", ".."}


def test_a_fresh_dev_has_the_standard_nodes_links_and_directories(task: Task) -> None:
    assert names(task, "/dev") == {
        "null", "zero", "full", "random", "urandom", "kmsg", "tty", "console",
        "fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm",
    }  # fmt: skip
    links = {name: task.readlink(f"/dev/{name}") for name in ("fd", "stdin", "stdout", "stderr")}
    assert {name: os.fsdecode(target) for name, target in links.items()} == {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
    }
    assert os.fsdecode(task.readlink("/dev/ptmx")) == "pts/ptmx"
    assert task.stat("/dev/pts").st_mode == stat.S_IFDIR | 0o755
    assert task.stat("/dev/shm").st_mode == stat.S_IFDIR | 0o1777
    assert task.stat("/dev").st_mode == stat.S_IFDIR | 0o755


def test_a_node_comes_and_goes_with_its_device(machine: Machine, task: Task) -> None:
    machine.vfs.devices.register(device := Hello())
    found = task.stat("/dev/hello")
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFCHR | 0o640, 7, 8)
    assert found.st_rdev == device.rdev == os.makedev(10, 256)
    machine.vfs.devices.unregister(device)
    with fails_with(errno.ENOENT):
        task.stat("/dev/hello")


def test_a_block_device_gets_a_block_node(machine: Machine, task: Task) -> None:
    class Disk(BlockDevice):
        name = "disk0"

    machine.vfs.devices.register(device := Disk())
    found = task.stat("/dev/disk0")
    assert found.st_mode == stat.S_IFBLK | 0o600
    assert found.st_rdev == device.rdev


def test_directories_above_a_node_are_made_and_removed_with_the_last(
    machine: Machine, task: Task
) -> None:
    devices = machine.vfs.devices
    devices.register(first := Bus("bus/usb/001"))
    devices.register(second := Bus("bus/usb/002"))
    assert task.stat("/dev/bus").st_mode == stat.S_IFDIR | 0o755
    assert names(task, "/dev/bus/usb") == {"001", "002"}
    devices.unregister(first)
    assert names(task, "/dev/bus/usb") == {"002"}
    devices.unregister(second)
    assert "bus" not in names(task, "/dev")


def test_a_directory_that_a_user_made_or_filled_stays(machine: Machine, task: Task) -> None:
    devices = machine.vfs.devices
    task.mkdir("/dev/bus")
    devices.register(first := Bus("bus/usb/001"))
    devices.unregister(first)
    assert names(task, "/dev/bus") == set(), "usb was ours, bus was not"
    devices.register(second := Bus("net/tun"))
    task.mkdir("/dev/net/mine")
    devices.unregister(second)
    assert names(task, "/dev/net") == {"mine"}


def test_a_node_that_a_user_made_is_neither_replaced_nor_removed(
    machine: Machine, task: Task
) -> None:
    task.mknod("/dev/hello", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    machine.vfs.devices.register(device := Hello())
    assert task.stat("/dev/hello").st_rdev == os.makedev(1, 3)
    machine.vfs.devices.unregister(device)
    assert task.stat("/dev/hello").st_rdev == os.makedev(1, 3)


def test_a_node_that_a_user_put_in_place_of_ours_stays(machine: Machine, task: Task) -> None:
    machine.vfs.devices.register(device := Hello())
    task.unlink("/dev/hello")
    task.mknod("/dev/hello", stat.S_IFCHR | 0o666, device.rdev)
    machine.vfs.devices.unregister(device)
    assert task.stat("/dev/hello").st_mode == stat.S_IFCHR | 0o644, "the task's, by its umask"


def test_a_renamed_node_stays_but_opens_nothing(machine: Machine, task: Task) -> None:
    machine.vfs.devices.register(device := Hello())
    task.rename("/dev/hello", "/dev/hi")
    machine.vfs.devices.unregister(device)
    with fails_with(errno.ENODEV):
        task.open("/dev/hi", os.O_RDONLY)


def test_a_hard_link_loses_its_permissions_when_the_device_goes(
    machine: Machine, task: Task
) -> None:
    machine.vfs.devices.register(device := Hello())
    task.link("/dev/hello", "/dev/kept")
    machine.vfs.devices.unregister(device)
    found = task.stat("/dev/kept")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0, 0, 0)


def test_a_node_can_be_removed_while_it_is_open(machine: Machine, task: Task) -> None:
    machine.vfs.devices.register(device := Hello())
    fd = task.open("/dev/hello", os.O_RDONLY)
    machine.vfs.devices.unregister(device)
    with fails_with(errno.ENODEV):
        task.read(fd, 9)
    task.close(fd)


def test_a_device_whose_node_cannot_be_made_works_and_the_log_tells(
    machine: Machine, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        machine.vfs.devices.register(device := Bus("null/below"))
    assert "null/below" in caplog.text
    task.mknod("/dev/by-hand", stat.S_IFCHR | 0o600, device.rdev)
    task.close(task.open("/dev/by-hand", os.O_RDONLY))
    machine.vfs.devices.unregister(device)


def test_all_mounts_show_one_tree_and_only_the_first_options_hold(task: Task) -> None:
    task.mkdir("/second")
    task.mount("x", "/second", "devtmpfs", 0, "mode=700")
    task.mkdir("/dev/made-here")
    assert "made-here" in names(task, "/second")
    assert stat.S_IMODE(task.stat("/second").st_mode) == 0o755
    assert task.stat("/second").st_dev == task.stat("/dev").st_dev
    task.umount2("/second", 0)


def test_a_read_only_mount_leaves_the_other_writable(task: Task) -> None:
    task.mkdir("/second")
    task.mount("x", "/second", "devtmpfs", abi.MS_RDONLY)
    with fails_with(errno.EROFS):
        task.mkdir("/second/d")
    task.mkdir("/dev/d")
    fd = task.open("/second/null", os.O_WRONLY)
    assert task.write(fd, b"a device can be written through it") == 34
    task.close(fd)
    task.umount2("/second", 0)


@pytest.mark.parametrize("options", ["bogus=1", "mode=9", "size"])
def test_a_bad_option_is_einval_even_for_a_later_mount(task: Task, options: str) -> None:
    task.mkdir("/second")
    with fails_with(errno.EINVAL):
        task.mount("x", "/second", "devtmpfs", 0, options)


def test_everybody_gets_the_one_superblock_even_exclusively(machine: Machine, task: Task) -> None:
    before = machine.vfs.ledger.live["DevtmpfsSuperblock"]
    fd = task.fsopen("devtmpfs")
    task.fsconfig(fd, abi.FSCONFIG_SET_FLAG, "ro")
    task.fsconfig(fd, abi.FSCONFIG_CMD_CREATE_EXCL)
    assert machine.vfs.ledger.live["DevtmpfsSuperblock"] == before == 1
    task.mkdir("/dev/still_writable")


def test_a_user_namespaces_root_may_not_mount_it(task: Task) -> None:
    child = task.clone()
    child.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
    fd = child.fsopen("devtmpfs")
    with fails_with(errno.EPERM):
        child.fsconfig(fd, abi.FSCONFIG_CMD_CREATE)
    child.mkdir("/mnt")
    with fails_with(errno.EPERM):
        child.mount("devtmpfs", "/mnt", "devtmpfs")
    child.exit()


def test_the_first_mount_chooses_mode_and_devices_follow_from_the_registry(
    machine: Machine, task: Task
) -> None:
    task.umount2("/dev", 0)
    machine.vfs.devices.register(Hello())
    task.mount("devtmpfs", "/dev", "devtmpfs", 0, "mode=711")
    assert stat.S_IMODE(task.stat("/dev").st_mode) == 0o711
    assert "hello" in names(task, "/dev")


def test_no_room_for_the_links_fails_the_mount_and_leaves_nothing(
    machine: Machine, task: Task
) -> None:
    task.umount2("/dev", 0)
    before = list(machine.vfs.superblocks)
    with fails_with(errno.ENOSPC):
        task.mount("devtmpfs", "/dev", "devtmpfs", 0, "nr_inodes=3")
    assert machine.vfs.superblocks == before
    machine.vfs.devices.register(Hello())
    task.mount("devtmpfs", "/dev", "devtmpfs")


def test_nodev_keeps_devices_shut(task: Task) -> None:
    task.mkdir("/second")
    task.mount("x", "/second", "devtmpfs", abi.MS_NODEV)
    with fails_with(errno.EACCES):
        task.open("/second/null", os.O_RDONLY)
    task.umount2("/second", 0)


def test_a_node_on_tmpfs_is_the_same_device(task: Task) -> None:
    task.mknod("/zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    fd = task.open("/zero", os.O_RDONLY)
    assert task.read(fd, 3) == b"\0\0\0"
    task.close(fd)


def test_who_is_not_allowed_by_the_node_cannot_open(machine: Machine, task: Task) -> None:
    machine.vfs.devices.register(Hello())
    user = task.clone(cred=Credentials(1000, 1000))
    with fails_with(errno.EACCES):
        user.open("/dev/hello", os.O_RDONLY)
    user.exit()
    member = task.clone(cred=Credentials(1000, 8))
    member.close(member.open("/dev/hello", os.O_RDONLY))
    member.exit()


def test_two_filesystems_of_one_type_object_do_not_meet(machine: Machine) -> None:
    """The type keeps nothing: what belongs to a VirtualFilesystem is found in it."""
    from vfs.virtual_filesystem import VirtualFilesystem

    other = VirtualFilesystem(tracing=True)
    fstype = machine.vfs.filesystem_type("devtmpfs")
    assert isinstance(fstype, DevtmpfsType)
    other.register(fstype)
    namespace = other.create_namespace("devtmpfs")
    with other.create_task(namespace) as task:
        assert "null" not in names(task, "/")
    with other.lock:
        namespace.put()
    other.shutdown()
