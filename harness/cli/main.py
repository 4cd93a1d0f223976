"""The `dentry` command."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Final

from harness.cli import demo, guest, mount, serve
from harness.cli.daemon import DaemonDied
from harness.cli.options import Parser
from harness.errors import UsageError
from harness.fuse.host_mount import HostMountError
from harness.guest.errors import GuestError, GuestUnavailable

EXIT_USAGE: Final = 2
EXIT_GUEST: Final = 125
"""The guest or its daemon failed, and not the command. As container tools have it."""


def main(argv: Sequence[str] | None = None) -> int:
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
        print(f"dentry: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (GuestError, DaemonDied) as error:
        print(f"dentry: {error}", file=sys.stderr)
        return EXIT_GUEST
    except KeyboardInterrupt:
        return 130


def _version() -> str:
    try:
        return importlib.metadata.version("dentry")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
