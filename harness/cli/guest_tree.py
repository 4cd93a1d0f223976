"""The trees that a guest can be booted from without describing one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from harness.compose import Tree
from harness.errors import UsageError
from harness.guest.initramfs import find_busybox
from harness.mountspec import MountSpec
from vfs import abi
from vfs.task import Task

_DIRECTORIES: Final = (
    ("/bin", 0o755), ("/sbin", 0o755), ("/usr", 0o755), ("/usr/bin", 0o755), ("/usr/sbin", 0o755),
    ("/etc", 0o755), ("/proc", 0o555), ("/sys", 0o555), ("/dev", 0o755), ("/run", 0o755),
    ("/root", 0o700), ("/mnt", 0o755), ("/var", 0o755), ("/tmp", 0o1777), ("/var/tmp", 0o1777),
)  # fmt: skip
_FILES: Final = (
    ("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("/etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("/etc/hostname", b"dentry\n"),
)
_SCRATCH: Final = ("/tmp", "/run", "/var/tmp")
_CHUNK: Final = 1 << 20

DEVTMPFS: Final = MountSpec("type=devtmpfs,dst=/dev", "devtmpfs", "/dev")


def busybox_tree(mounts: list[MountSpec]) -> Tree:
    """Return a tree with busybox on a tmpfs, /dev, and the working directory at /host, read-only.

    `mounts` come on top. One at `/` replaces the tmpfs, and then nothing is put into it; one at
    /dev or /host replaces ours.

    Raises:
        UsageError: a mount that can't be made.
        GuestUnavailable: there is no busybox.
    """
    if any(spec.destination == "/" for spec in mounts):
        return Tree(mounts)
    given = {spec.destination for spec in mounts}
    defaults = [DEVTMPFS, host_directory(os.getcwd(), "/host")]
    busybox = find_busybox()
    tree = Tree([*(spec for spec in defaults if spec.destination not in given), *mounts])
    try:
        _install(tree.task, busybox)
    except BaseException:
        tree.close()
        raise
    return tree


def host_tree(directory: str, mounts: list[MountSpec]) -> Tree:
    """Return a tree with a host `directory` as its root, read-only, and `mounts` on top.

    /tmp, /run and /var/tmp are tmpfs and /dev is a devtmpfs, as far as `directory` has them.

    Raises:
        UsageError: a mount that can't be made, or no place for the guest's own /proc and /sys.
    """
    if not os.path.isdir(directory):
        raise UsageError(f"--root {directory or repr(directory)}: no such directory")
    for name in ("proc", "sys"):
        if not Path(directory, name).is_dir():
            raise UsageError(
                f"--root {directory}: make an empty directory '{name}' in it for the guest"
            )
    given = {spec.destination for spec in mounts}
    defaults = [host_directory(directory, "/"), DEVTMPFS]
    defaults += [
        MountSpec(f"type=tmpfs,dst={path}", "tmpfs", path, options=(("mode", mode),))
        for path, mode in zip(_SCRATCH, ("1777", "755", "1777"), strict=True)
    ]
    wanted = [
        spec
        for spec in defaults
        if spec.destination not in given and Path(directory, spec.destination[1:]).is_dir()
    ]
    return Tree([*wanted, *mounts])


def host_directory(directory: str, destination: str) -> MountSpec:
    """Return a read-only passthrough of host `directory`."""
    text = f"type=passthrough,src={directory},dst={destination},ro"
    return MountSpec(text, "passthrough", destination, directory, abi.MS_RDONLY)


def _install(task: Task, busybox: Path) -> None:
    """Lay out the few directories and files that a shell expects, and busybox with its applets."""
    for path, mode in _DIRECTORIES:
        try:
            task.mkdir(path, mode)
        except FileExistsError:
            continue
        task.chmod(path, mode)
    for path, data in _FILES:
        _write_file(task, path, data, 0o644)
    _write_file(task, "/bin/busybox", busybox.read_bytes(), 0o755)
    listing = subprocess.run([busybox, "--list-full"], capture_output=True, check=True, text=True)
    for applet in listing.stdout.split():
        try:
            task.symlink("/bin/busybox", "/" + applet)
        except (FileExistsError, FileNotFoundError):
            # /bin/busybox itself, and places that this small tree does not have.
            continue


def _write_file(task: Task, path: str, data: bytes, mode: int) -> None:
    fd = task.open(path, abi.O_WRONLY | abi.O_CREAT | abi.O_EXCL, mode)
    try:
        for offset in range(0, len(data), _CHUNK):
            task.write(fd, data[offset : offset + _CHUNK])
    finally:
        task.close(fd)
