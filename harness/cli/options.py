"""What the subcommands share: the words that describe a tree, and how errors of use look."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NoReturn

from harness.compose import Tree
from harness.errors import UsageError
from harness.mountspec import MountSpec, parse_mount_spec
from vfs import abi

LOG_LEVELS: Final = ("error", "warning", "info", "debug")

MOUNT_HELP: Final = """\
SPEC is a list of fields joined by commas:
  type=tmpfs,dst=/tmp,size=64m              options of tmpfs(5): size, nr_inodes, mode, uid, gid
  type=passthrough,src=/srv,dst=/srv,ro     a host directory
  type=ext2,src=disk.img,dst=/disk          an image of ext2, ext3 or ext4 on the host, read-only
  type=devtmpfs,dst=/dev                    device nodes of the daemon
  type=bind,src=/srv,dst=/mnt               a place of the tree itself, once more
and of flags: ro, nosuid, nodev, noexec, noatime, nodiratime, nosymfollow. A field that holds a
comma is quoted as a whole: "src=/a,b". Without a mount at dst=/ the root is a tmpfs.
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line: what is wrong, and where to look.

    Their status is 2, or the default `usage_status` of a subcommand whose 2 is somebody else's.
    """

    def error(self, message: str) -> NoReturn:
        status = self.get_default("usage_status") or 2
        self.exit(status, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: what SIGINT's KeyboardInterrupt is, so that every `with` is left."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def one_line(message: str) -> str:
    """Return `message` with what would break the line, which the user's own words may hold."""
    return message.replace("\n", "\\n").replace("\r", "\\r")


def version() -> str:
    """Return dentry's version, as far as it is installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("dentry")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@contextmanager
def terminable() -> Generator[None]:
    """Have SIGTERM and SIGHUP raise `Terminated` inside of a `with`, the first of them only.

    One that was ignored, as nohup(1) does, stays so.
    """
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]

    def terminate(number: int, _: object) -> NoReturn:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Terminated(number)

    before = {number: signal.signal(number, terminate) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_mounts(parser: argparse.ArgumentParser) -> None:
    """Add `--mount SPEC`, which may be given several times."""
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="SPEC",
        dest="mounts",
        help="add a mount to the tree, in this order; see below",
    )
    parser.epilog = MOUNT_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def add_logging(parser: argparse.ArgumentParser) -> None:
    """Add `--log-level`."""
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="warning", help="of stderr (default: warning)"
    )


def add_control(parser: argparse.ArgumentParser) -> None:
    """Add `--control`."""
    parser.add_argument(
        "--control", metavar="SOCKET", help="let `dentry shell --connect SOCKET` in, at this path"
    )


def configure_logging(level: str) -> None:
    """Send the log from `level` on to stderr."""
    logging.basicConfig(level=level.upper(), format="dentry: %(levelname)s: %(name)s: %(message)s")


def prepare_daemon(tree: Tree, *, raise_limit: bool = True) -> None:
    """Let this process hold as many descriptors as it may, unless its limit has been set already,
    and /dev/kmsg of `tree` have its log.

    The process has no umask from now on: a client's is in what it asks for, and what ours took the
    passthrough would have to give back, file by file (18 of a CREATE's 54 µs).

    A passthrough needs a descriptor for every inode that a client knows. The cycle collector is to
    look rarely, and never at what exists already: dentries and inodes are freed by their counts,
    but a full collection walks them all. Creating 200 000 files took 9.5 s with pauses of up to
    0.6 s with Python's thresholds, 6.7 s and 0.04 s with these, 6.2 s without a collector.
    """
    if raise_limit:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)
    logging.getLogger().addHandler(tree.devices.kmsg.handler)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def parse_mounts(texts: list[str]) -> list[MountSpec]:
    """Parse the words of all `--mount`.

    Raises:
        UsageError: the first one that is malformed.
    """
    return [parse_mount_spec(text) for text in texts]


def shared_directory(directory: str, *, read_only: bool = False) -> MountSpec:
    """Return what `--shared-dir DIRECTORY` stands for: that host directory as the root.

    Raises:
        UsageError: no name at all.
    """
    if not directory:
        raise UsageError("--shared-dir '': name a directory, as . for this one")
    flags = abi.MS_RDONLY if read_only else 0
    return MountSpec(
        f"type=passthrough,src={directory},dst=/", "passthrough", "/", directory, flags
    )


def parse_size(text: str) -> int:
    """Parse a number of bytes with suffix k, m, g or t, in either case; a bare one is bytes.

    Raises:
        UsageError: something else.
    """
    digits, shift = text, 0
    if text and text[-1].lower() in "kmgt":
        digits, shift = text[:-1], 10 * ("kmgt".index(text[-1].lower()) + 1)
    if not digits.isascii() or not digits.isdigit() or int(digits) == 0:
        raise UsageError(f"'{text}' is no size: write a number of bytes, or like 512m or 2g")
    return int(digits) << shift
