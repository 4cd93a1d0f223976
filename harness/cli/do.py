"""`dentry do`: a command of this host in a container whose root is a tree."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from harness.cli.options import (
    add_control,
    add_logging,
    add_mounts,
    configure_logging,
    parse_mounts,
)
from harness.container.command import Command
from harness.container.errors import EXIT_OURS, tell
from harness.container.init import InitOptions
from harness.container.monitor import ContainerOptions, run_container
from harness.container.tree import TreeOptions
from harness.container.user_namespace import choose_identity
from harness.errors import UsageError

_SHELL: Final = ("/bin/sh",)
_ID_MAX: Final = (1 << 32) - 2
_HOSTNAME_MAX: Final = 64


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "do",
        help="run a command of this host in a container that has a tree as its root",
        usage="%(prog)s [OPTION ...] [--] [COMMAND ...]",
        description="Run COMMAND (default: /bin/sh) in user, mount, pid, IPC and UTS namespaces of "
        "its own, on a tree over /dev/fuse: by default this host's root, read-only, with fresh "
        "/dev, /proc, /tmp, /run and /var/tmp. Root is not needed. The exit status is COMMAND's, "
        "128+N if signal N ended it; 127 if it is not found, 126 if it can't be executed, and 125 "
        "is an error of ours.",
    )
    add_mounts(parser)
    parser.add_argument(
        "--root", default="/", metavar="DIR", help="the host directory to start from"
    )
    parser.add_argument(
        "--rw", action="store_true", help="with --root, which is / by default, writable"
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="PATH",
        dest="devices",
        help="let in one more device of the host, as /dev/kvm",
    )
    parser.add_argument("--uid", type=int, metavar="N", help="the user inside (default: the same)")
    parser.add_argument(
        "--gid", type=int, metavar="N", help="the group inside (default: the user's)"
    )
    parser.add_argument("--no-net", action="store_true", help="a network of its own: loopback only")
    parser.add_argument("--hostname", metavar="NAME")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable, or keep one that --clearenv would drop",
    )
    parser.add_argument("--clearenv", action="store_true", help="start with no variables but PWD")
    parser.add_argument(
        "--chdir", metavar="DIR", help="start there (default: here if the tree has it, else in /)"
    )
    parser.add_argument("--new-session", action="store_true", help="without a controlling terminal")
    add_control(parser)
    add_logging(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, usage_status=EXIT_OURS)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its status."""
    configure_logging(arguments.log_level)
    try:
        return run_container(_options(arguments))
    except UsageError as error:
        tell(str(error))
        return EXIT_OURS


def _options(arguments: argparse.Namespace) -> ContainerOptions:
    for name in ("uid", "gid"):
        number = getattr(arguments, name)
        if number is not None and not 0 <= number <= _ID_MAX:
            raise UsageError(f"--{name} {number}: an id is 0 to {_ID_MAX}")
    hostname = arguments.hostname
    if hostname is not None and not 0 < len(os.fsencode(hostname)) <= _HOSTNAME_MAX:
        raise UsageError(f"--hostname '{hostname}': a name has 1 to {_HOSTNAME_MAX} bytes")
    mounts = parse_mounts(arguments.mounts)
    devices = tuple(_device(path) for path in arguments.devices)
    words = tuple(arguments.command[arguments.command[:1] == ["--"] :]) or _SHELL
    if not os.path.isdir(arguments.root):
        raise UsageError(f"--root {arguments.root or repr('')}: no such directory")
    return ContainerOptions(
        tree=TreeOptions(arguments.root, arguments.rw, tuple(mounts), devices),
        init=InitOptions(
            devices=devices,
            hostname=hostname,
            network=not arguments.no_net,
            proc=not any(spec.destination == "/proc" for spec in mounts),
        ),
        identity=choose_identity(arguments.uid, arguments.gid),
        command=Command(
            words=words,
            environment=_environment(arguments.env, clear=arguments.clearenv),
            directory=arguments.chdir,
            fallback=_working_directory(),
            new_session=arguments.new_session,
        ),
        control=arguments.control,
    )


def _device(path: str) -> str:
    normal = os.path.normpath(path)
    if not normal.startswith("/dev/") or not os.path.exists(normal):
        raise UsageError(f"--device {path}: no such device: name one below /dev")
    return normal


def _environment(changes: list[str], *, clear: bool) -> dict[str, str]:
    environment = {} if clear else _initial_environment()
    for change in changes:
        name, equals, value = change.partition("=")
        if not name:
            raise UsageError(f"--env {change or repr('')}: write NAME=VALUE, or NAME")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment


def _initial_environment() -> dict[str, str]:
    """Return our variables without what Python has added: in the C locale, LC_CTYPE (PEP 538)."""
    environment = dict(os.environ)
    with suppress(OSError):
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
        if not any(variable.startswith(b"LC_CTYPE=") for variable in given):
            environment.pop("LC_CTYPE", None)
    return environment


def _working_directory() -> str:
    """Return where we are, by the name that the user's shell has for it."""
    try:
        here = os.getcwd()
    except OSError:
        return "/"
    named = os.environ.get("PWD", "")
    if named.startswith("/") and os.path.realpath(named) == here:
        return named
    return here
