"""The parser of `dentry` with its subcommands, and what becomes of their errors."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from harness.cli.daemon import DaemonDied
from harness.cli.options import Parser, Terminated, one_line, version
from harness.errors import UsageError
from harness.fuse.host_mount import HostMountError
from harness.guest.errors import GuestError, GuestUnavailable

COMMANDS: Final = (
    "guest", "mount", "do", "serve", "virtiofsd", "device", "shell", "top", "mkext2", "demo",
    "test",
)  # fmt: skip
"""Modules beside this one, in the order of `dentry --help`."""
EXIT_USAGE: Final = 2
EXIT_GUEST: Final = 125
"""The guest or its daemon failed, and not the command. As container tools have it."""
_SIGNALLED: Final = 128
"""And the number of the signal: the status that a shell gives to what a signal ended."""


def run(argv: Sequence[str] | None) -> int:
    """Run `argv`, by default the process's own; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and os.path.basename(sys.argv[0]) == "virtiofsd":
        # Started as `virtiofsd`, through a link, by something that knows virtiofsd only.
        words.insert(0, "virtiofsd")
    parser = Parser(prog="dentry", description="A Linux VFS in Python that real kernels mount.")
    parser.add_argument("--version", action="version", version=f"dentry {version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    # Imports are most of what a short command takes, so only those of the one that is wanted.
    for name in words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS:
        importlib.import_module(f"harness.cli.{name}").add_parser(subparsers)
    for subparser in subparsers.choices.values():
        subparser.set_defaults(parser=subparser)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
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
