"""`dentry mount`: the tree on a directory of this host, through /dev/fuse."""

from __future__ import annotations

import argparse
import os
import re
import signal
from typing import Any, Final

from harness.cli.options import (
    add_control,
    add_logging,
    add_mounts,
    configure_logging,
    parse_mounts,
    prepare_daemon,
    shared_directory,
)
from harness.compose import Tree
from harness.control.server import controlled
from harness.errors import UsageError
from harness.fuse.dev_fuse import DEFAULT_READERS, FuseMount
from harness.fuse.host_mount import HELPER, MountOptions
from harness.fuse.server import FuseServer
from harness.mountspec import MountSpec

_OPTIONS: Final = {
    "allow_other": ("allow_other", True),
    "default_permissions": ("default_permissions", True),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "exec": ("noexec", False),
    "noexec": ("noexec", True),
    "atime": ("noatime", False),
    "noatime": ("noatime", True),
    "ro": ("read_only", True),
    "rw": ("read_only", False),
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "mount",
        help="mount a tree on this host",
        description="Mount a tree on directory MOUNTPOINT and serve it until it is unmounted, "
        "or SIGINT or SIGTERM comes. Root mounts by itself, an ordinary user through fusermount3.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    add_mounts(parser)
    parser.add_argument("--shared-dir", metavar="D", help="a host directory as the root")
    parser.add_argument(
        "-o",
        action="append",
        default=[],
        metavar="OPTION,...",
        dest="options",
        help="options of the mount: " + ", ".join(_OPTIONS) + ", fsname=NAME",
    )
    parser.add_argument(
        "--readers",
        type=int,
        default=DEFAULT_READERS,
        metavar="N",
        help=f"threads that read requests (default: {DEFAULT_READERS})",
    )
    add_control(parser)
    add_logging(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve MOUNTPOINT until the end of the mount."""
    configure_logging(arguments.log_level)
    options = parse_options(arguments.options)
    specs = parse_mounts(arguments.mounts)
    if arguments.shared_dir is not None:
        specs.insert(0, shared_directory(arguments.shared_dir))
    if arguments.readers < 1:
        raise UsageError(f"--readers {arguments.readers}: one thread is needed at least")
    if os.geteuid() != 0 and not any(spec.destination == "/" for spec in specs):
        specs.insert(0, _own_root())
    _check_mountpoint(arguments.mountpoint)
    _refuse_recursion(specs, arguments.mountpoint)
    with Tree(specs) as tree:
        prepare_daemon(tree)
        permissions = options.default_permissions
        server = FuseServer(tree.vfs, tree.root, default_permissions=permissions)
        mount = FuseMount(arguments.mountpoint, server, options=options, readers=arguments.readers)
        server.notify = mount.post_notify
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: mount.stop())
        with mount, controlled(arguments.control, tree.task, server, mount.depth):
            mount.wait()
    return 0


def _own_root() -> MountSpec:
    """Return a tmpfs that the mounting user may write: that of compose is root's."""
    options = (("mode", "755"), ("uid", str(os.geteuid())), ("gid", str(os.getegid())))
    text = ",".join(["type=tmpfs", "dst=/", *(f"{key}={value}" for key, value in options)])
    return MountSpec(text, "tmpfs", "/", options=options)


def _check_mountpoint(mountpoint: str) -> None:
    """The kernel lets a mount cover another; a second of ours is most likely a mistake."""
    if not mountpoint:
        raise UsageError("MOUNTPOINT is empty: name a directory")
    try:
        place = os.path.realpath(mountpoint, strict=True)
        os.stat(place)
    except OSError:
        # Whoever is to mount explains this, a dead server of a mount above all.
        return
    if _mounted_type(place).startswith("fuse.dentry"):
        raise UsageError(
            f"{mountpoint}: a dentry mount is there already: unmount it first (umount, or as a "
            f"user {HELPER} -u)"
        )


def _mounted_type(place: str) -> str:
    """Return the filesystem type of the topmost mount at `place`, or "". See proc(5), mountinfo."""
    kind = ""
    with open("/proc/self/mountinfo", "rb") as mountinfo:
        for line in mountinfo:
            mount, _, filesystem = line.partition(b" - ")
            escaped = mount.split(b" ")[4]
            path = re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), escaped)
            if os.fsdecode(path) == place:
                kind = filesystem.split(b" ", 1)[0].decode()
    return kind


def _refuse_recursion(specs: list[MountSpec], mountpoint: str) -> None:
    """A server that walks into its own mount waits for itself."""
    place = os.path.realpath(mountpoint)
    for spec in specs:
        if spec.type != "passthrough" or spec.source is None:
            continue
        source = os.path.realpath(spec.source)
        if os.path.commonpath((source, place)) == source:
            raise spec.error(f"{mountpoint} lies in it, so the tree would hold itself")


def parse_options(texts: list[str]) -> MountOptions:
    """Parse the words of all `-o`; a later one overrides an earlier one.

    Raises:
        UsageError: an option that there is not.
    """
    fields: dict[str, Any] = {}
    for word in ",".join(texts).split(","):
        key, _, value = word.partition("=")
        if key == "fsname" and value:
            fields["fsname"] = value
        elif word in _OPTIONS:
            field, given = _OPTIONS[word]
            fields[field] = given
        elif word:
            raise UsageError(
                f"-o {word}: no such option; there are {', '.join(_OPTIONS)} and fsname=NAME"
            )
    return MountOptions(**fields)
