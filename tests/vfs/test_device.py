"""Devices written in Python: numbers, opening, what removal does to open files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vfs import abi
from vfs.credentials import Credentials
from vfs.dentry import Dentry
from vfs.device import (
    DYNAMIC_MAJOR,
    BlockDevice,
    CharDevice,
    Device,
    DeviceFile,
    DeviceRegistry,
)
from vfs.errors import WouldBlock
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode
from vfs.mount import Mount
from vfs.operations import vfs_open, vfs_read, vfs_write
from vfs.superblock import DCACHE_PINNED, FilesystemType, Superblock
from vfs.virtual_filesystem import VirtualFilesystem

S_IFCHR, S_IFBLK = abi.S_IFCHR, abi.S_IFBLK


class BareType(FilesystemType):
    """A file system of one empty directory, for nodes without names."""

    name = "bare"

    def get_tree(self, context: FilesystemContext) -> Superblock:
        superblock = Superblock(context, magic=0x62617265, dcache=DCACHE_PINNED)
        superblock.root = Dentry.make_root(superblock, Inode(superblock, abi.S_IFDIR | 0o755))
        return superblock


class Bench:
    """A VFS, a mount, and nodes on it."""

    def __init__(self) -> None:
        self.vfs = VirtualFilesystem(tracing=True)
        self.vfs.register(BareType())
        self.namespace = self.vfs.create_namespace("bare")
        self.superblock = next(s for s in self.vfs.superblocks if s.type.name == "bare")
        self.mount = Mount(self.superblock, b"bare")
        self.held: list[Dentry | DeviceFile] = []

    def open(self, mode: int, rdev: int, flags: int = abi.O_RDWR) -> DeviceFile:
        """Make a node, open it."""
        inode = Inode(self.superblock, mode, rdev=rdev)
        dentry = self.vfs.dcache.disconnected(self.superblock, b"node", inode)
        self.held.append(dentry)
        with self.vfs.lock:
            file = vfs_open(self.mount, dentry, flags, Credentials.root())
        assert isinstance(file, DeviceFile)
        self.held.append(file)
        return file

    def open_device(self, device: Device) -> DeviceFile:
        return self.open(device.kind | 0o600, device.rdev)

    def shutdown(self) -> None:
        with self.vfs.lock:
            for obj in reversed(self.held):
                obj.put()
            self.mount.put()
            self.namespace.put()
        self.vfs.shutdown()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.shutdown()


def read(file: DeviceFile, size: int, offset: int = 0) -> bytes:
    buffer = bytearray(size)
    count = vfs_read(file, [memoryview(buffer)], offset)
    return bytes(buffer[:count])


def write(file: DeviceFile, data: bytes, offset: int = 0) -> int:
    return vfs_write(file, [memoryview(data)], offset)


def fails_with(number: int) -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(f"[Errno {number}]"))


class Scratch(CharDevice):
    """Remembers what was written."""

    name = "scratch"

    def __init__(self, name: str = "scratch") -> None:
        super().__init__()
        self.name = name
        self.content = b""

    def read(self, size: int, offset: int) -> bytes:
        return self.content[offset : offset + size]

    def write(self, data: bytes, offset: int) -> int:
        self.content = self.content[:offset] + data
        return len(data)


class Numbered(CharDevice):
    def __init__(self, name: str, major: int, minor: int | None = None) -> None:
        super().__init__()
        self.name, self.major, self.minor = name, major, minor


class Disk(BlockDevice):
    name = "disk"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.content = bytearray(size)

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def write(self, data: bytes, offset: int) -> int:
        self.content[offset : offset + len(data)] = data
        return len(data)


# Numbers


def test_a_device_without_numbers_is_a_misc_device_from_minor_256_up() -> None:
    registry = DeviceRegistry()
    devices = [Scratch("a"), Scratch("b")]
    for device in devices:
        registry.register(device)
    assert [device.rdev for device in devices] == [os.makedev(10, 256), os.makedev(10, 257)]
    registry.unregister(devices[0])
    registry.register(third := Scratch("c"))
    assert third.rdev == os.makedev(10, 256), "the lowest free minor is taken again"


def test_dynamic_char_majors_go_down_from_254_to_234_then_from_511() -> None:
    registry = DeviceRegistry()
    majors = []
    for index in range(22):
        registry.register(device := Numbered(f"d{index}", DYNAMIC_MAJOR))
        majors.append(os.major(device.rdev))
    assert majors == [*range(254, 233, -1), 511]


def test_when_the_dynamic_majors_are_used_up_the_next_gets_ebusy() -> None:
    registry = DeviceRegistry()
    for index in range(21 + 128):
        registry.register(Numbered(f"d{index}", DYNAMIC_MAJOR))
    with fails_with(errno.EBUSY):
        registry.register(Numbered("one-more", DYNAMIC_MAJOR))


def test_an_allocated_major_serves_several_devices_and_nobody_else() -> None:
    registry = DeviceRegistry()
    major = registry.allocate_major(S_IFCHR, "driver")
    registry.register(first := Numbered("x0", major))
    registry.register(second := Numbered("x1", major))
    registry.register(other := Numbered("y", DYNAMIC_MAJOR))
    assert (first.rdev, second.rdev) == (os.makedev(major, 0), os.makedev(major, 1))
    assert os.major(other.rdev) != major


def test_char_and_block_numbers_do_not_collide() -> None:
    registry = DeviceRegistry()
    char, block = Numbered("c", 7, 0), Disk(512)
    block.major, block.minor = 7, 0
    registry.register(char)
    registry.register(block)
    assert registry.lookup(S_IFCHR, 7, 0) is char
    assert registry.lookup(S_IFBLK, 7, 0) is block


@pytest.mark.parametrize("name", ["", "/abs", "a//b", "a/", ".", "..", "a/../b", "nul\0"])
def test_a_name_that_is_no_relative_path_is_einval(name: str) -> None:
    with fails_with(errno.EINVAL):
        DeviceRegistry().register(Scratch(name))


@pytest.mark.parametrize(("major", "minor"), [(-1, 0), (512, 0), (1, -1), (1, 1 << 20), (10, 255)])
def test_a_number_out_of_range_is_einval(major: int, minor: int) -> None:
    with fails_with(errno.EINVAL):
        DeviceRegistry().register(Numbered("x", major, minor))


def test_a_taken_name_is_eexist_and_a_taken_number_ebusy() -> None:
    registry = DeviceRegistry()
    registry.register(Numbered("x", 1, 3))
    with fails_with(errno.EEXIST):
        registry.register(Numbered("x", 1, 4))
    with fails_with(errno.EBUSY):
        registry.register(Numbered("y", 1, 3))
    assert [device.name for device in registry] == ["x"]


def test_unregistering_what_is_not_registered_is_enodev() -> None:
    registry = DeviceRegistry()
    registry.register(Scratch())
    with fails_with(errno.ENODEV):
        registry.unregister(Scratch())


def test_proc_devices_lists_each_major_once_in_the_format_of_the_kernel() -> None:
    registry = DeviceRegistry()
    for name, minor in (("null", 3), ("zero", 5)):
        registry.register(device := Numbered(name, 1, minor))
        device.driver = "mem"
    registry.register(Scratch())
    registry.register(Disk(512))
    assert registry.proc_devices() == (
        "Character devices:\n  1 mem\n 10 misc\n\nBlock devices:\n254 disk\n"
    )
    host = Path("/proc/devices").read_text()
    assert host.startswith("Character devices:\n  1 mem\n")
    assert "\n 10 misc\n" in host
    assert "\n\nBlock devices:\n" in host


# Opening


def test_an_unregistered_number_is_enxio(bench: Bench, tmp_path: Path) -> None:
    for kind in (S_IFCHR, S_IFBLK):
        rdev = os.makedev(250, 77)
        with fails_with(errno.ENXIO):
            bench.open(kind | 0o600, rdev)
        if os.geteuid() == 0:
            os.mknod(path := tmp_path / str(kind), kind | 0o600, rdev)
            with fails_with(errno.ENXIO):
                os.open(path, os.O_RDONLY)


def test_an_unregistered_misc_minor_is_enodev(bench: Bench, tmp_path: Path) -> None:
    rdev = os.makedev(10, 70_000)
    with fails_with(errno.ENODEV):
        bench.open(S_IFCHR | 0o600, rdev)
    if os.geteuid() == 0:
        os.mknod(path := tmp_path / "misc", S_IFCHR | 0o600, rdev)
        with fails_with(errno.ENODEV):
            os.open(path, os.O_RDONLY)


def test_a_node_on_a_nodev_mount_opens_nothing(bench: Bench) -> None:
    bench.vfs.devices.register(device := Scratch())
    bench.mount.flags |= abi.MS_NODEV
    with fails_with(errno.EACCES):
        bench.open_device(device)


def test_reads_and_writes_reach_the_driver_with_size_and_offset(bench: Bench) -> None:
    bench.vfs.devices.register(device := Scratch())
    file = bench.open_device(device)
    assert write(file, b"hello") == 5
    assert write(file, b"p!", 3) == 2
    assert read(file, 2) == b"he"
    assert read(file, 9, 2) == b"lp!"
    assert read(file, 9, 5) == b""


def test_a_vector_is_filled_across_its_buffers(bench: Bench) -> None:
    bench.vfs.devices.register(device := Scratch())
    file = bench.open_device(device)
    assert vfs_write(file, [memoryview(b"abc"), memoryview(b""), memoryview(b"de")], 0) == 5
    first, second = bytearray(2), bytearray(9)
    assert vfs_read(file, [memoryview(first), memoryview(second)], 0) == 5
    assert (bytes(first), bytes(second[:3])) == (b"ab", b"cde")


def test_what_a_driver_leaves_out_answers_as_linux_does(bench: Bench) -> None:
    class Silent(CharDevice):
        name = "silent"

    bench.vfs.devices.register(device := Silent())
    file = bench.open_device(device)
    with fails_with(errno.EINVAL):
        read(file, 1)
    with fails_with(errno.EINVAL):
        write(file, b"x")
    with fails_with(errno.ENOTTY):
        file.ioctl(0x12345, 0)
    with fails_with(errno.EINVAL):
        file.fsync(False)
    assert file.poll() == abi.POLLIN | abi.POLLOUT | abi.POLLRDNORM | abi.POLLWRNORM


def test_a_driver_that_answers_with_too_much_is_an_io_error(bench: Bench) -> None:
    class Liar(CharDevice):
        name = "liar"

        def read(self, size: int, offset: int) -> bytes:
            return b"x" * (size + 1)

        def write(self, data: bytes, offset: int) -> int:
            return len(data) + 1

    bench.vfs.devices.register(device := Liar())
    file = bench.open_device(device)
    with fails_with(errno.EIO):
        read(file, 4)
    with fails_with(errno.EIO):
        write(file, b"four")


def test_open_can_refuse_and_release_follows_only_a_successful_open(bench: Bench) -> None:
    class Exclusive(CharDevice):
        name = "exclusive"
        users: list[DeviceFile] = []

        def open(self, file: DeviceFile) -> None:
            if self.users:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            self.users.append(file)

        def release(self, file: DeviceFile) -> None:
            self.users.remove(file)

    bench.vfs.devices.register(device := Exclusive())
    first = bench.open_device(device)
    with fails_with(errno.EBUSY):
        bench.open_device(device)
    assert device.users == [first]
    bench.held.remove(first)
    first.put()
    bench.open_device(device)


def test_each_open_file_has_its_own_private_data(bench: Bench) -> None:
    class Counter(CharDevice):
        name = "counter"

        def open(self, file: DeviceFile) -> None:
            file.private_data = iter(range(9))

        def read_iter(self, file, buffers, offset, flags):  # type: ignore[no-untyped-def]
            buffers[0][:1] = b"%d" % next(file.private_data)
            return 1

    bench.vfs.devices.register(device := Counter())
    first, second = bench.open_device(device), bench.open_device(device)
    assert [read(first, 1), read(first, 1), read(second, 1)] == [b"0", b"1", b"0"]


def test_seeking_is_relative_to_start_and_position(bench: Bench) -> None:
    bench.vfs.devices.register(device := Scratch())
    file = bench.open_device(device)
    assert file.llseek(5, abi.SEEK_SET) == 5
    file.position = 5
    assert file.llseek(-2, abi.SEEK_CUR) == 3
    for offset, whence in ((-1, abi.SEEK_SET), (0, abi.SEEK_END), (1 << 63, abi.SEEK_SET)):
        with fails_with(errno.EINVAL):
            file.llseek(offset, whence)


def test_a_device_without_a_position_cannot_seek(bench: Bench) -> None:
    device = Scratch()
    device.seekable = False
    bench.vfs.devices.register(device)
    file = bench.open_device(device)
    assert not file.seekable
    with fails_with(errno.ESPIPE):
        file.llseek(0, abi.SEEK_SET)


# Block devices


def test_a_block_device_ends_at_its_size(bench: Bench) -> None:
    bench.vfs.devices.register(device := Disk(1024))
    file = bench.open_device(device)
    assert write(file, b"x" * 100, 1000) == 24
    assert read(file, 100, 1000) == b"x" * 24
    assert read(file, 100, 1024) == b""
    assert write(file, b"", 1024) == 0
    with fails_with(errno.ENOSPC):
        write(file, b"x", 1024)
    assert file.llseek(0, abi.SEEK_END) == 1024
    with fails_with(errno.EINVAL):
        file.llseek(1, abi.SEEK_END)
    file.fsync(False)


# Removal


def test_a_removed_device_fails_open_files_with_enodev_and_new_opens_with_enxio(
    bench: Bench,
) -> None:
    device = Numbered("x", 240, 0)
    bench.vfs.devices.register(device)
    file = bench.open_device(device)
    bench.vfs.devices.unregister(device)
    for operation in (
        lambda: read(file, 1),
        lambda: write(file, b"x"),
        lambda: file.llseek(0, abi.SEEK_SET),
        lambda: file.ioctl(1, 0),
        lambda: file.fsync(False),
    ):
        with fails_with(errno.ENODEV):
            operation()
    assert file.poll() == abi.POLLERR | abi.POLLHUP
    with fails_with(errno.ENXIO):
        bench.open_device(device)


def test_who_waits_for_a_device_is_woken_by_its_removal(bench: Bench) -> None:
    class Never(CharDevice):
        name = "never"

        def read(self, size: int, offset: int) -> bytes:
            raise WouldBlock(self.wait)

    bench.vfs.devices.register(device := Never())
    file = bench.open_device(device)
    with pytest.raises(WouldBlock) as blocked:
        read(file, 1)
    woken: list[bool] = []
    blocked.value.queue.add(lambda: woken.append(True))
    bench.vfs.devices.unregister(device)
    assert woken
    with fails_with(errno.ENODEV):
        read(file, 1)


def test_a_device_can_come_back(bench: Bench) -> None:
    device = Scratch()
    for _ in range(2):
        bench.vfs.devices.register(device)
        write(bench.open_device(device), b"again")
        bench.vfs.devices.unregister(device)
    assert device.content == b"again"


def test_listeners_hear_of_arrivals_after_and_of_departures_before() -> None:
    registry = DeviceRegistry()
    heard: list[tuple[str, bool]] = []

    class Listener:
        def device_added(self, device: Device) -> None:
            heard.append(("added", registry.find(device.name) is device))

        def device_removed(self, device: Device) -> None:
            heard.append(("removed", registry.find(device.name) is device))

    registry.add_listener(listener := Listener())
    registry.register(device := Scratch())
    registry.unregister(device)
    registry.remove_listener(listener)
    registry.register(device)
    assert heard == [("added", True), ("removed", True)]
