"""`dentry shell`: a shell over a VFS of its own, or over a running daemon's."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import Final

from harness.cli.options import add_mounts, parse_mounts
from harness.compose import Tree
from harness.control.client import Disconnected, RemoteKernel
from harness.control.kernel import Kernel, LocalKernel
from harness.errors import UsageError
from harness.shell.commands import all_commands
from harness.shell.session import EXIT_INTERRUPTED, Exit, Session
from harness.shell.streams import HostReader, HostWriter

EXIT_DISCONNECTED: Final = 125


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "shell",
        help="look at a live VFS, and work on it",
        description="A shell over a tree of its own, or over that of a running daemon. Commands "
        "come from -c, from a file, or from the standard input; on a terminal, from a prompt.",
    )
    parser.add_argument("--connect", metavar="SOCKET", help="the control socket of a daemon")
    parser.add_argument("-c", dest="commands", metavar="COMMANDS", help="run these, and end")
    parser.add_argument("file", nargs="?", metavar="FILE", help="run what is in it, and end")
    add_mounts(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the commands; the status is that of the last one."""
    if arguments.connect is not None and arguments.mounts:
        raise UsageError("--mount: the daemon has its mounts; use the command `mount`")
    try:
        with ExitStack() as stack:
            return _run(arguments, stack)
    except Disconnected as error:
        print(f"dentry shell: {error}", file=sys.stderr)
        return EXIT_DISCONNECTED


def _run(arguments: argparse.Namespace, stack: ExitStack) -> int:
    kernel = _kernel(arguments, stack)
    stdin = HostReader(sys.stdin.buffer)
    outputs = HostWriter(sys.stdout.buffer), HostWriter(sys.stderr.buffer)
    session = stack.enter_context(Session(kernel, all_commands(), stdin, *outputs))
    stdin.interrupted = session.interrupted
    try:
        if _is_interactive(arguments):
            from harness.shell.interactive import interact

            return interact(session)
        return session.run(_script(arguments))
    except Exit as end:
        return end.status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _kernel(arguments: argparse.Namespace, stack: ExitStack) -> Kernel:
    if arguments.connect is not None:
        return stack.enter_context(RemoteKernel(arguments.connect))
    tree = stack.enter_context(Tree(parse_mounts(arguments.mounts)))
    return stack.enter_context(LocalKernel(tree.vfs, tree.task))


def _is_interactive(arguments: argparse.Namespace) -> bool:
    given = arguments.commands is not None or arguments.file is not None
    return not given and sys.stdin.isatty() and sys.stdout.isatty()


def _script(arguments: argparse.Namespace) -> str:
    if arguments.commands is not None:
        return str(arguments.commands)
    if arguments.file is None:
        return os.fsdecode(sys.stdin.buffer.read())
    try:
        with open(arguments.file, "rb") as file:
            return os.fsdecode(file.read())
    except OSError as error:
        raise UsageError(f"{arguments.file}: {error.strerror}") from None
