"""Boots Linux guests in QEMU whose root is a virtio-fs tag.

To be read in this order. `errors` tells what can go wrong. `kernel` finds a kernel and its
modules, `cpio` writes archives, and `agent` is the program that runs in the guest, with the
protocol it speaks; `initramfs` packs these into what the kernel unpacks. `kvm` chooses the
accelerator and `qemu` makes the command line and runs it. `stream`, `writer` and `terminal` are
the host's ends of the guest's ports; `guest` puts all of it together. `newer` finds another
QEMU and kernel.

    with Guest(GuestConfig(Path("/run/dentry.sock"), tag="dentry")) as guest:
        status, stdout, stderr = guest.run("ls -l /")

A daemon must listen on the socket before the guest is made.
"""

from harness.guest.errors import (
    GuestError,
    GuestFailed,
    GuestPanicked,
    GuestQuit,
    GuestStopped,
    GuestTimeout,
    GuestUnavailable,
    QemuDied,
)
from harness.guest.guest import ENVIRONMENT, Completed, Guest, GuestConfig, run_guest

__all__ = [
    "ENVIRONMENT",
    "Completed",
    "Guest",
    "GuestConfig",
    "GuestError",
    "GuestFailed",
    "GuestPanicked",
    "GuestQuit",
    "GuestStopped",
    "GuestTimeout",
    "GuestUnavailable",
    "QemuDied",
    "run_guest",
]
