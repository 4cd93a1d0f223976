"""Devices written in Python, brought into a VFS of this process."""

from __future__ import annotations

import argparse
import runpy

from harness.control.kernel import LocalKernel
from harness.shell.command import Commands, Invocation, Usage, argument
from vfs import abi
from vfs.device import Device


def register(commands: Commands) -> None:
    """Put the family into the table."""

    @commands.add("device", argument("action", choices=["add", "remove"], help="add or remove"),
                  argument("what", metavar="HOST-FILE|NAME"))  # fmt: skip
    def device(invocation: Invocation, given: argparse.Namespace) -> None:
        """add the devices that a Python file of the host has classes for, or remove one"""
        kernel = invocation.session.kernel
        if not isinstance(kernel, LocalKernel):
            raise Usage("a daemon takes no code: only a shell with a VFS of its own does")
        with kernel.vfs.lock:
            if given.action == "remove":
                _remove(kernel, given.what)
                return
        for added in _load(given.what):
            with kernel.vfs.lock:
                kernel.vfs.devices.register(added)
            number = f"{abi.major(added.rdev)}:{abi.minor(added.rdev)}"
            invocation.print(f"{added.name} {number}")


def _load(path: str) -> list[Device]:
    """A device of each class in the file. Raises: Usage (what is wrong with it)."""
    try:
        names = runpy.run_path(path, run_name="dentry_device")
        found = [
            value()
            for value in names.values()
            if isinstance(value, type) and issubclass(value, Device) and value.name
            and value.__module__ == "dentry_device"
        ]  # fmt: skip
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"host: {path}") from None
    except Exception as error:
        # Somebody else's code: whatever it raises is about the file.
        raise Usage(f"host: {path}: {type(error).__name__}: {error}".replace("\n", " ")) from None
    if not found:
        raise Usage(f"host: {path}: there is no subclass of vfs.device.Device with a name in it")
    return found


def _remove(kernel: LocalKernel, name: str) -> None:
    found = kernel.vfs.devices.find(name)
    if found is None:
        raise Usage(f"{name}: there is no such device")
    kernel.vfs.devices.unregister(found)
