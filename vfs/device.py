"""Devices: drivers written in Python, and the registry that finds them by number.

Linux: drivers/base/core.c (device_add), fs/char_dev.c, block/genhd.c, drivers/char/misc.c.

Who calls whom: ``vfs.operations.vfs_open`` refuses a node on a MS_NODEV mount or superblock with
EACCES (Linux: ``may_open_dev``) and then calls ``DeviceRegistry.open``, which finds the ``Device``
by the node's (kind, major, minor) and makes a ``DeviceFile`` for it. The permission bits of the
*node* decide access; ``Device.mode`` is only what devtmpfs gives its node at first.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Protocol

from vfs import abi
from vfs.errors import oserror
from vfs.file import Buffers, FileDescription
from vfs.wait import WaitQueue

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.mount import Mount

MISC_MAJOR = 10
DYNAMIC_MAJOR = 0  # what register_chrdev(9) and register_blkdev(9) take for "any"
MAJOR_MAX = 511
MINOR_MAX = (1 << 20) - 1
# The order in which each kind's dynamic majors are tried: find_dynamic_major in fs/char_dev.c,
# __register_blkdev in block/genhd.c.
_DYNAMIC_MAJORS: dict[int, tuple[int, ...]] = {
    abi.S_IFCHR: (*range(254, 233, -1), *range(511, 383, -1)),
    abi.S_IFBLK: tuple(range(254, 0, -1)),
}
_MISC_DYNAMIC_MINOR = 255  # fixed misc minors lie below, dynamic ones above (drivers/char/misc.c)


def total_length(buffers: Buffers) -> int:
    """The number of bytes that ``buffers`` hold together. Linux: ``iov_iter_count``."""
    return sum(map(len, buffers))


def scatter(data: bytes | bytearray | memoryview, buffers: Buffers) -> int:
    """Copy ``data`` into ``buffers``, as far as they go; returns the bytes copied.

    Linux: ``copy_to_iter``.
    """
    view = memoryview(data)
    done = 0
    for buffer in buffers:
        part = view[done : done + len(buffer)]
        buffer[: len(part)] = part
        done += len(part)
        if done == len(view):
            break
    return done


class Device:
    """Linux: a ``cdev`` or ``gendisk``, its ``device`` and its ``file_operations`` in one object.

    A driver subclasses ``CharDevice`` or ``BlockDevice``, sets the class attributes and writes the
    operations it has; ``docs/devices.md`` shows how. Operations are called with the VFS lock held.

    name    the node's path below /dev ("hello", "bus/usb/001")
    major   a number, or DYNAMIC_MAJOR
    minor   a number; None: a dynamic misc minor (256, 257, ...) or the major's lowest free one
    mode, uid, gid   of the node that devtmpfs makes
    driver  the major's name in /proc/devices; default "misc" for major 10, else the name
    seekable   whether there is a file position; if not, lseek and pread fail with ESPIPE

    ``rdev`` is the number it got. ``present`` is True while registered. ``wait`` is the queue to
    raise ``WouldBlock`` with; whoever changes what ``poll`` answers calls ``wait.wake_all()``.
    """

    kind: ClassVar[int] = abi.S_IFCHR
    name: str = ""
    major: int = DYNAMIC_MAJOR
    minor: int | None = None
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    driver: str = ""
    seekable: bool = True

    def __init__(self) -> None:
        self.rdev = 0
        self.present = False
        self.wait = WaitQueue()

    def open(self, file: DeviceFile) -> None:
        """``file`` is being opened; ``file.private_data`` is the driver's to use.

        Raises: whatever refuses the open, EBUSY for instance; ``release`` is not called then.
        """

    def release(self, file: DeviceFile) -> None:
        """The last reference on ``file`` is gone. Called for a removed device too."""

    def read(self, size: int, offset: int) -> bytes:
        """At most ``size`` (> 0) bytes from ``offset``; ``b""`` is the end of file.

        A driver that wants the file or the caller's buffers overrides ``read_iter`` instead.

        Raises: EINVAL where a driver has none (Linux: FMODE_CAN_READ); WouldBlock.
        """
        raise oserror(errno.EINVAL)

    def write(self, data: bytes, offset: int) -> int:
        """Take ``data``, or its beginning; returns how many bytes.

        Raises: EINVAL where a driver has none (Linux: FMODE_CAN_WRITE); WouldBlock.
        """
        raise oserror(errno.EINVAL)

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        """``FileDescription.read`` of this device: fill ``buffers``, return the bytes."""
        size = total_length(buffers)
        if not size:
            return 0
        data = self.read(size, offset)
        if len(data) > size:
            raise oserror(errno.EIO)
        return scatter(data, buffers)

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        """``FileDescription.write`` of this device: take from ``buffers``, return the bytes."""
        data = bytes(buffers[0]) if len(buffers) == 1 else b"".join(buffers)
        written = self.write(data, offset)
        if not 0 <= written <= len(data):
            raise oserror(errno.EIO)
        return written

    def llseek(self, file: DeviceFile, offset: int, whence: int) -> int:
        """The new position, in bytes. Linux: ``fixed_size_llseek`` without a size.

        Raises: EINVAL for another ``whence`` than SEEK_SET and SEEK_CUR, or a negative result.
        """
        if whence == abi.SEEK_CUR:
            offset += file.position
        elif whence != abi.SEEK_SET:
            raise oserror(errno.EINVAL)
        if not 0 <= offset <= abi.MAX_LFS_FILESIZE:
            raise oserror(errno.EINVAL)
        return offset

    def ioctl(self, file: DeviceFile, command: int, argument: bytes | memoryview | int) -> bytes:
        """Raises: ENOTTY for a command it does not know. Returns what goes back to the caller."""
        raise oserror(errno.ENOTTY)

    def fsync(self, file: DeviceFile, datasync: bool) -> None:
        """Raises: EINVAL, as Linux does for a driver without it."""
        raise oserror(errno.EINVAL)

    def poll(self, file: DeviceFile) -> int:
        """The POLL* bits that hold now; without one always ready (Linux: DEFAULT_POLLMASK)."""
        return abi.POLLIN | abi.POLLOUT | abi.POLLRDNORM | abi.POLLWRNORM

    def poll_queue(self, file: DeviceFile) -> WaitQueue:
        """The queue that wakes when ``poll`` may answer differently."""
        return self.wait

    def removed(self) -> None:
        """The device was unregistered: wake whoever waits for it, so that they find out."""
        self.wait.wake_all()

    @property
    def driver_name(self) -> str:
        """What /proc/devices shows for the major."""
        if self.driver:
            return self.driver
        return "misc" if self.kind == abi.S_IFCHR and self.major == MISC_MAJOR else self.name

    def __repr__(self) -> str:
        letter = "c" if self.kind == abi.S_IFCHR else "b"
        number = f"{abi.major(self.rdev)}:{abi.minor(self.rdev)}" if self.present else "absent"
        return f"{type(self).__name__}({self.name!r} {letter} {number})"


class CharDevice(Device):
    """Linux: ``cdev``, or ``miscdevice`` as long as ``major`` stays at its default."""

    major = MISC_MAJOR


class BlockDevice(Device):
    """Linux: ``gendisk``. ``size`` is in bytes and bounds all I/O, which is at byte offsets here.

    There is no page cache between: each read and write reaches the driver.
    """

    kind = abi.S_IFBLK
    size: int = 0

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        """Reads end at ``size`` (Linux: ``blkdev_read_iter``)."""
        return super().read_iter(file, _clip(buffers, self.size - offset), offset, flags)

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        """Writes end at ``size`` (Linux: ``blkdev_write_iter``). Raises: ENOSPC at the end."""
        if not total_length(buffers):
            return 0
        if offset >= self.size:
            raise oserror(errno.ENOSPC)
        return super().write_iter(file, _clip(buffers, self.size - offset), offset, flags)

    def llseek(self, file: DeviceFile, offset: int, whence: int) -> int:
        """Linux: ``fixed_size_llseek``. Raises: EINVAL outside of 0..size."""
        if whence == abi.SEEK_CUR:
            offset += file.position
        elif whence == abi.SEEK_END:
            offset += self.size
        elif whence != abi.SEEK_SET:
            raise oserror(errno.EINVAL)
        if not 0 <= offset <= self.size:
            raise oserror(errno.EINVAL)
        return offset

    def fsync(self, file: DeviceFile, datasync: bool) -> None:
        """Nothing is held back."""


def _clip(buffers: Buffers, room: int) -> list[memoryview]:
    """The first ``room`` bytes of ``buffers``. Linux: ``iov_iter_truncate``."""
    clipped: list[memoryview] = []
    for buffer in buffers:
        if room <= 0:
            break
        clipped.append(buffer[:room])
        room -= len(buffer)
    return clipped


class DeviceFile(FileDescription):
    """Linux: ``struct file`` of a device. Holds the device; passes the operations on to it.

    Once the device is removed, read, write, lseek, ioctl and fsync fail with ENODEV and poll says
    POLLERR|POLLHUP, as Linux's evdev and USB drivers do; the file stays open until closed.
    """

    __slots__ = ("_opened", "device", "private_data")

    def __init__(
        self, device: Device, mount: Mount, dentry: Dentry, flags: int, cred: Credentials
    ) -> None:
        super().__init__(mount, dentry, flags, cred)
        self.device = device
        self.private_data: object = None
        self._opened = False

    @classmethod
    def open(
        cls, device: Device, mount: Mount, dentry: Dentry, flags: int, cred: Credentials
    ) -> DeviceFile:
        """A description that the driver accepted. Raises: what ``Device.open`` raises."""
        file = (cls if device.seekable else StreamDeviceFile)(device, mount, dentry, flags, cred)
        try:
            device.open(file)
        except BaseException:
            file.put()
            raise
        file._opened = True
        return file

    def _require_present(self) -> Device:
        device = self.device
        if not device.present:
            raise oserror(errno.ENODEV)
        return device

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Raises: ENODEV once the device is gone; WouldBlock; what the driver raises."""
        return self._require_present().read_iter(self, buffers, offset, flags)

    def write(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Raises: ENODEV once the device is gone; WouldBlock; what the driver raises."""
        return self._require_present().write_iter(self, buffers, offset, flags)

    def llseek(self, offset: int, whence: int) -> int:
        """Where a seek leads; the caller stores it. Raises: ENODEV; what the driver raises."""
        return self._require_present().llseek(self, offset, whence)

    def ioctl(self, command: int, argument: bytes | memoryview | int) -> bytes:
        """Raises: ENODEV; ENOTTY."""
        return self._require_present().ioctl(self, command, argument)

    def fsync(self, datasync: bool) -> None:
        """Raises: ENODEV; EINVAL where the driver has none."""
        self._require_present().fsync(self, datasync)

    def poll(self) -> int:
        device = self.device
        return device.poll(self) if device.present else abi.POLLERR | abi.POLLHUP

    def poll_queue(self) -> WaitQueue | None:
        return self.device.poll_queue(self)

    def release(self) -> None:
        if self._opened:
            self._opened = False
            self.device.release(self)
        super().release()


class StreamDeviceFile(DeviceFile):
    """A device without a position. Linux: ``stream_open``."""

    __slots__ = ()
    seekable = False

    def llseek(self, offset: int, whence: int) -> int:
        """Raises: ESPIPE."""
        raise oserror(errno.ESPIPE)


class DeviceListener(Protocol):
    """Who is told when devices come and go; called with the VFS lock held."""

    def device_added(self, device: Device) -> None:
        """``device`` has its number and can be opened already."""

    def device_removed(self, device: Device) -> None:
        """``device`` is about to go; it can still be opened."""


class DeviceRegistry:
    """Linux: ``cdev_map``, ``major_names`` and the devices behind them.

    ``lock`` is the VFS lock; ``register`` and ``unregister`` take it. A registry made without one
    has its own.
    """

    def __init__(self, lock: threading.RLock | None = None) -> None:
        self._lock = threading.RLock() if lock is None else lock
        self._by_number: dict[tuple[int, int, int], Device] = {}
        self._by_name: dict[str, Device] = {}
        self._majors: dict[tuple[int, int], str] = {}  # claimed by allocate_major
        self._listeners: list[DeviceListener] = []

    def allocate_major(self, kind: int, driver: str) -> int:
        """Claim a dynamic major for a driver of several devices. Linux: ``alloc_chrdev_region``.

        Raises: EBUSY when all are taken.
        """
        with self._lock:
            taken = {major for other, major in self._majors if other == kind}
            taken.update(major for other, major, _ in self._by_number if other == kind)
            for major in _DYNAMIC_MAJORS[kind]:
                if major not in taken:
                    self._majors[kind, major] = driver
                    return major
        raise oserror(errno.EBUSY)

    def free_major(self, kind: int, major: int) -> None:
        """Give back what ``allocate_major`` gave. Linux: ``unregister_chrdev_region``."""
        with self._lock:
            del self._majors[kind, major]

    def register(self, device: Device) -> None:
        """Give ``device`` its number, make it openable and tell the listeners.

        Linux: ``cdev_device_add``, ``misc_register``, ``device_add_disk``.

        Raises: EINVAL for a name that is no relative path or a number out of range; EEXIST if
        the name is taken; EBUSY if the number is, or no dynamic one is left.
        """
        parts = device.name.split("/")
        if any(not part or part in (".", "..") or "\0" in part for part in parts):
            raise oserror(errno.EINVAL)
        if not 0 <= device.major <= MAJOR_MAX:
            raise oserror(errno.EINVAL)
        with self._lock:
            if device.name in self._by_name or device.present:
                raise oserror(errno.EEXIST)
            major = device.major
            if major == DYNAMIC_MAJOR:
                major = self.allocate_major(device.kind, device.driver_name)
                del self._majors[device.kind, major]
            minor = self._choose_minor(device, major)
            device.rdev = abi.makedev(major, minor)
            device.present = True
            self._by_number[device.kind, major, minor] = device
            self._by_name[device.name] = device
            for listener in tuple(self._listeners):
                listener.device_added(device)

    def _choose_minor(self, device: Device, major: int) -> int:
        kind, minor = device.kind, device.minor
        misc = kind == abi.S_IFCHR and major == MISC_MAJOR
        if minor is not None:
            if not 0 <= minor <= MINOR_MAX or (misc and minor >= _MISC_DYNAMIC_MINOR):
                raise oserror(errno.EINVAL)
            if (kind, major, minor) in self._by_number:
                raise oserror(errno.EBUSY)
            return minor
        minor = _MISC_DYNAMIC_MINOR + 1 if misc else 0
        while (kind, major, minor) in self._by_number:
            minor += 1
        if minor > MINOR_MAX:
            raise oserror(errno.EBUSY)
        return minor

    def unregister(self, device: Device) -> None:
        """Take ``device`` away: its number opens nothing, its open files fail, waiters wake.

        Linux: ``cdev_device_del``, ``misc_deregister``, ``del_gendisk``.

        Raises: ENODEV if it is not registered here.
        """
        with self._lock:
            if self._by_name.get(device.name) is not device:
                raise oserror(errno.ENODEV)
            for listener in tuple(self._listeners):
                listener.device_removed(device)
            del self._by_name[device.name]
            del self._by_number[device.kind, abi.major(device.rdev), abi.minor(device.rdev)]
            device.present = False
            device.removed()

    def lookup(self, kind: int, major: int, minor: int) -> Device | None:
        """The device with that number; ``kind`` is S_IFCHR or S_IFBLK."""
        return self._by_number.get((kind, major, minor))

    def find(self, name: str) -> Device | None:
        """The device called ``name`` ("null")."""
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Device]:
        """Every device, in the order of registration."""
        return iter(tuple(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def add_listener(self, listener: DeviceListener) -> None:
        """Tell ``listener`` from now on; what is there already it finds by iterating."""
        self._listeners.append(listener)

    def remove_listener(self, listener: DeviceListener) -> None:
        self._listeners.remove(listener)

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        """A new description of the device that the node ``dentry`` names; the caller receives it.

        Permissions and MS_NODEV are checked by ``vfs_open`` before. Needs the VFS lock.

        Raises: ENXIO for a number nobody registered (ENODEV among the misc minors, whose major is
        always taken; Linux: ``misc_open``); what the driver's ``open`` raises.
        """
        inode = dentry.inode
        assert inode is not None
        kind = inode.mode & abi.S_IFMT
        major = abi.major(inode.rdev)
        device = self._by_number.get((kind, major, abi.minor(inode.rdev)))
        if device is None:
            misc = kind == abi.S_IFCHR and major == MISC_MAJOR
            raise oserror(errno.ENODEV if misc else errno.ENXIO)
        return DeviceFile.open(device, mount, dentry, flags, cred)

    def proc_devices(self) -> str:
        """The text of /proc/devices: the majors in use, by kind."""
        sections = []
        for kind, title in ((abi.S_IFCHR, "Character"), (abi.S_IFBLK, "Block")):
            lines = {
                (major, name) for (other, major), name in self._majors.items() if other == kind
            }
            for (other, major, _), device in self._by_number.items():
                if other == kind and (kind, major) not in self._majors:
                    lines.add((major, device.driver_name))
            body = "".join(f"{major:3d} {name}\n" for major, name in sorted(lines))
            sections.append(f"{title} devices:\n{body}")
        return "\n".join(sections)
