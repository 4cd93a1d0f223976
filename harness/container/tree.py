"""What a command finds: the host's root, and fresh mounts where a container needs its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from harness.compose import Tree
from harness.container.errors import ContainerError
from harness.container.user_namespace import Identity
from harness.mountspec import MountSpec
from vfs import abi
from vfs.task import Task

DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
CONSOLE: Final = "console"

_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_SCRATCH: Final = (("/tmp", "1777"), ("/run", "755"), ("/var/tmp", "1777"))
_RESOLV_CONF: Final = "/etc/resolv.conf"


class TreeOptions(NamedTuple):
    """`root` is the host directory to start from, writable or not; `mounts` come on top.

    A mount at `/` takes the place of `root`, and one where a default one would be takes its place.
    `devices` are paths of the host's that are to appear at the same place.
    """

    root: str
    writable: bool
    mounts: tuple[MountSpec, ...]
    devices: tuple[str, ...]


def build_tree(options: TreeOptions, identity: Identity) -> Tree:
    """Make the tree; its mount points for the kernel's own mounts are there, and empty.

    A mount that is unmounted inside uncovers nothing of the host: /proc and /dev of the tree are
    its own.

    Raises:
        UsageError: a mount that can't be made.
    """
    given = {spec.destination for spec in options.mounts}
    specs = [spec for spec in _defaults(options, "/" in given) if spec.destination not in given]
    own_dev = "/dev" not in given
    tree = Tree(_owned([*specs, *options.mounts], identity))
    try:
        if own_dev:
            _populate_dev(tree.task)
        for path in options.devices:
            _make_place(tree.task, path)
    except BaseException:
        tree.close()
        raise
    return tree


def _defaults(options: TreeOptions, own_root: bool) -> list[MountSpec]:
    specs = []
    if not own_root:
        flags = 0 if options.writable else abi.MS_RDONLY
        text = f"type=passthrough,src={options.root},dst=/"
        specs.append(MountSpec(text, "passthrough", "/", options.root, flags))
    specs += [_tmpfs("/proc", "555"), _tmpfs("/dev", "755"), _tmpfs("/dev/shm", "1777")]
    if not own_root:
        places = [(path, mode) for path, mode in _SCRATCH if Path(options.root, path[1:]).is_dir()]
        specs += [_tmpfs(path, mode) for path, mode in places]
        specs += _name_service(options.root)
    return specs


def _name_service(root: str) -> list[MountSpec]:
    """Return the directory of the file that /etc/resolv.conf links to, if a tmpfs would hide it."""
    if os.path.realpath(root) != "/":
        return []
    directory = os.path.dirname(os.path.realpath(_RESOLV_CONF))
    if not directory.startswith("/run/") or not os.path.isdir(directory):
        return []
    text = f"type=passthrough,src={directory},dst={directory},ro"
    return [MountSpec(text, "passthrough", directory, directory, abi.MS_RDONLY)]


def _tmpfs(path: str, mode: str) -> MountSpec:
    text = f"type=tmpfs,dst={path},mode={mode}"
    return MountSpec(text, "tmpfs", path, options=(("mode", mode),))


def _owned(specs: Iterable[MountSpec], identity: Identity) -> list[MountSpec]:
    """Give each tmpfs to the command's user where there is no root: nobody could write to it."""
    if identity.every_id:
        return list(specs)
    owners = (("uid", str(identity.uid)), ("gid", str(identity.gid)))
    owned = []
    for spec in specs:
        if spec.type == "tmpfs":
            keys = {key for key, _ in spec.options}
            added = tuple(option for option in owners if option[0] not in keys)
            spec = spec._replace(options=(*spec.options, *added))
        owned.append(spec)
    return owned


def _populate_dev(task: Task) -> None:
    for name, target in _LINKS:
        task.symlink(target, f"/dev/{name}")
    task.mkdir("/dev/pts", 0o755)
    names = [name for name in DEVICES if os.path.exists(f"/dev/{name}")]
    if any(os.isatty(fd) for fd in (0, 1, 2)):
        names.append(CONSOLE)
    for name in names:
        _make_file(task, f"/dev/{name}")


def _make_place(task: Task, path: str) -> None:
    """Make an empty file for the kernel to mount a device on, and the directories above it."""
    try:
        for end in (index for index, char in enumerate(path) if char == "/" and index):
            try:
                task.mkdir(path[:end], 0o755)
            except FileExistsError:
                continue
        _make_file(task, path)
    except FileExistsError:
        return
    except OSError as error:
        raise ContainerError(f"--device {path}: no place for it: {error.strerror}") from None


def _make_file(task: Task, path: str) -> None:
    task.close(task.open(path, abi.O_WRONLY | abi.O_CREAT | abi.O_EXCL, 0o666))
