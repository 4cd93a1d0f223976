"""/dev: the devices that every system has, and the filesystem on which nodes follow devices.

What a device is stands in ``vfs/device.py``, and how to write one in ``docs/devices.md``. Here read
``memory_devices.py`` (null, zero, full, random, urandom: a device at its simplest), ``kmsg.py``
(each open file with a place of its own), ``tty.py`` (console and tty, whose readers wait), then
``filesystem.py`` (devtmpfs on tmpfs). ``install`` gives a VirtualFilesystem all of it.
"""

from __future__ import annotations

from typing import NamedTuple

from devtmpfs.filesystem import DevtmpfsType
from devtmpfs.kmsg import Kmsg
from devtmpfs.memory_devices import memory_devices
from devtmpfs.tty import Console, Terminal, Tty
from vfs.virtual_filesystem import VirtualFilesystem

__all__ = ["Console", "DevtmpfsType", "Kmsg", "StandardDevices", "Terminal", "Tty", "install"]


class StandardDevices(NamedTuple):
    """The standard devices that a host has something to do with."""

    kmsg: Kmsg  # kmsg.handler is a logging.Handler
    tty: Tty  # tty.terminal may be set to a Terminal
    console: Console  # and console.terminal


def install(vfs: VirtualFilesystem) -> StandardDevices:
    """Register null, zero, full, random, urandom, kmsg, tty and console, and the type devtmpfs
    unless it is registered already.

    Raises: EEXIST or EBUSY if one of the devices is there already.
    """
    if DevtmpfsType.name not in vfs.filesystem_types:
        vfs.register(DevtmpfsType())
    standard = StandardDevices(Kmsg(vfs.clock), Tty(), Console())
    for device in (*memory_devices(), *standard):
        vfs.devices.register(device)
    return standard
