"""The parser of `dentry` with its subcommands, and what becomes of their errors."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from harness.cli import demo, guest, mount, serve
from harness.cli.daemon import DaemonDied
from harness.cli.options import Parser, Terminated, one_line
from harness.errors import UsageError
from harness.fuse.host_mount import HostMountError
from harness.guest.errors import GuestError, GuestUnavailable

EXIT_USAGE: Final = 2
EXIT_GUEST: Final = 125
"""The guest or its daemon failed, and not the command. As container tools have it."""
_SIGNALLED: Final = 128
"""And the number of the signal: the status that a shell gives to what a signal ended."""


def run(argv: Sequence[str] | None) -> int:
    """Run `argv`, by default the process's own; return the exit status."""
    parser = Parser(prog="dentry", description="A Linux VFS in Python that real kernels mount.")
    parser.add_argument("--version", action="version", version=f"dentry {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (guest, mount, serve, demo):
        command.add_parser(subparsers)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (UsageError, HostMountError, GuestUnavailable) as error:
        print(f"dentry: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except (GuestError, DaemonDied) as error:
        print(f"dentry: {error}", file=sys.stderr)
        return EXIT_GUEST
    except Terminated as end:
        return _SIGNALLED + end.signal
    except BrokenPipeError:
        # Nobody reads our output any more; nor should the interpreter flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + signal.SIGPIPE


def _version() -> str:
    try:
        return importlib.metadata.version("dentry")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
