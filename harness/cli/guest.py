"""`dentry guest`: a Linux guest that lives on a tree."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Final

from harness.cli.daemon import ForkedDaemon
from harness.cli.guest_tree import busybox_tree, host_tree
from harness.cli.options import (
    add_control,
    add_logging,
    add_mounts,
    configure_logging,
    parse_mounts,
    parse_size,
    terminable,
)
from harness.cli.pmem import HELP, PmemImages, parse_pmem_specs
from harness.errors import UsageError
from harness.guest.errors import GuestError
from harness.guest.guest import Guest, GuestConfig, run_guest
from harness.virtiofs import TAG_MAX

_SHELL: Final = ("/bin/sh",)
_CPUS_MAX: Final = 255
_BOOT_SECONDS: Final = 90.0
_PMEM_BOOT_SECONDS: Final = 3600.0
"""A guest that boots meanwhile waits for its image, for which a large tree may take its time."""
_MEMORY_MIN: Final = 96 << 20
"""What Debian's kernel needs to unpack the initramfs and run a shell; it fails with 64m."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "guest",
        help="boot a Linux guest in QEMU that has a tree as its root",
        usage="%(prog)s [OPTION ...] [-- COMMAND ...]",
        description="Boot a Linux guest whose root is a tree, and run COMMAND in it (default: "
        "/bin/sh), on this terminal if there is one; its exit status is ours, and 125 is a guest "
        "that failed. With nothing asked the root is a tmpfs with busybox, /dev a devtmpfs, and "
        "/host the current directory, read-only. On a terminal, Ctrl-A x ends the guest.",
    )
    add_mounts(parser)
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="a host directory as the root, read-only, with tmpfs on /tmp, /run and /var/tmp",
    )
    parser.add_argument(
        "--pmem-ext2",
        action="append",
        default=[],
        metavar="DIR[,dst=PATH][,size=SIZE][,label=NAME][,dax]",
        help=HELP,
    )
    parser.add_argument("--kernel", type=Path, metavar="K", help="an image like /boot/vmlinuz-*")
    parser.add_argument("--memory", default="1g", metavar="M", help="bytes, as 512m (default: 1g)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="(default: 2)")
    parser.add_argument(
        "--transport", choices=("vhost-user",), default="vhost-user", help="of the file system"
    )
    parser.add_argument("--tag", default="dentry", metavar="T", help="(default: dentry)")
    parser.add_argument("--console-log", type=Path, metavar="F", help="the guest kernel's console")
    add_control(parser)
    add_logging(parser)
    parser.add_argument("command", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command in a guest and return its status."""
    configure_logging(arguments.log_level)
    mounts = parse_mounts(arguments.mounts)
    if not 1 <= arguments.cpus <= _CPUS_MAX:
        raise UsageError(f"--cpus {arguments.cpus}: a guest has 1 to {_CPUS_MAX}")
    if not 0 < len(os.fsencode(arguments.tag)) <= TAG_MAX:
        raise UsageError(f"--tag '{arguments.tag}': a tag has 1 to {TAG_MAX} bytes")
    memory = _parse_memory(arguments.memory)
    command = tuple(arguments.command) or _SHELL
    build = partial(busybox_tree, mounts)
    if arguments.root is not None:
        build = partial(host_tree, arguments.root, mounts)
    pmem = parse_pmem_specs(arguments.pmem_ext2)
    interactive = all(os.isatty(fd) for fd in (0, 1, 2))
    control = arguments.control
    with (
        terminable(),
        PmemImages(pmem) as images,
        ForkedDaemon(build, control) as daemon,
    ):
        config = GuestConfig(
            filesystem=daemon.socket,
            tag=arguments.tag,
            kernel=arguments.kernel,
            memory=memory,
            cpus=arguments.cpus,
            console_log=arguments.console_log,
            terminal=interactive,
            pmem=images.devices(),
            boot_timeout=_PMEM_BOOT_SECONDS if any(image.size for image in pmem) else _BOOT_SECONDS,
        )
        try:
            if not interactive:
                return run_guest(config, command, stdin=0)
            with Guest(config) as guest:
                return guest.interact(command)
        except GuestError:
            # A guest without its image may say less about it than the image's builder.
            images.check()
            raise


def _parse_memory(text: str) -> int:
    """Return whole pages of memory that can boot, and that this machine has."""
    page = os.sysconf("SC_PAGE_SIZE")
    installed = page * os.sysconf("SC_PHYS_PAGES")
    size = parse_size(text)
    if size < _MEMORY_MIN:
        raise UsageError(f"--memory {text}: a guest needs {_MEMORY_MIN >> 20}m at least")
    if size > installed:
        raise UsageError(f"--memory {text}: this machine has {installed >> 20}m")
    return size // page * page
