"""The parser of `dentry` with its subcommands, and what becomes of their errors."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from harness.cli.options import Parser, Terminated, one_line, version
from harness.errors import CommandError

COMMANDS: Final = (
    "guest", "mount", "do", "serve", "virtiofsd", "device", "shell", "top", "mkext2", "demo",
    "test",
)  # fmt: skip
"""Modules beside this one, in the order of `dentry --help`."""
EXIT_USAGE: Final = 2
_SIGNALLED: Final = 128
"""And the number of the signal: the status that a shell gives to what a signal ended."""


class _Version(argparse.Action):
    """It takes an import to find out, so it is only when somebody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"dentry {version()}")
        parser.exit()


def run(argv: Sequence[str] | None) -> int:
    """Run `argv`, by default the process's own; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and os.path.basename(sys.argv[0]) == "virtiofsd":
        # Started as `virtiofsd`, through a link, by something that knows virtiofsd only.
        words.insert(0, "virtiofsd")
    parser = Parser(prog="dentry", description="A Linux VFS in Python that real kernels mount.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show it, and end")
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
    except CommandError as error:
        text = str(error)
        if error.exit_status == EXIT_USAGE:
            text = one_line(text)
        print(f"dentry: {text}", file=sys.stderr)
        return error.exit_status
    except Terminated as end:
        return _SIGNALLED + end.signal
    except BrokenPipeError:
        # Nobody reads our output any more; nor should the interpreter flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + signal.SIGPIPE
