"""`dentry serve`: the vhost-user daemon of a virtio-fs device."""

from __future__ import annotations

import argparse
import signal
import socket
from typing import Final

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
from harness.fuse.server import FuseServer
from harness.migration import MigrationOptions, ServerState
from harness.socket_file import SocketFile
from harness.virtiofs import VirtioFsDevice

_FD_MAX: Final = (1 << 31) - 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a tree to virtual machines over vhost-user",
        description="Serve a tree as a virtio-fs device, to one virtual machine after another, "
        "until SIGINT or SIGTERM comes. With --fd of a connected socket, to that one only.",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket-path", metavar="S", help="listen at this path")
    place.add_argument("--fd", type=int, metavar="N", help="an inherited socket")
    parser.add_argument(
        "--tag",
        metavar="T",
        help="offer the tag ourselves; else the virtual machine's command line has it "
        "(QEMU before 8.1 can crash on ours)",
    )
    add_mounts(parser)
    parser.add_argument("--shared-dir", metavar="D", help="a host directory as the root")
    parser.add_argument(
        "--num-queues",
        type=int,
        default=1,
        metavar="N",
        help="request queues offered (default: 1); a guest before Linux 6.11 uses one",
    )
    add_control(parser)
    add_logging(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal, or the end of an inherited connection."""
    configure_logging(arguments.log_level)
    specs = parse_mounts(arguments.mounts)
    if arguments.shared_dir is not None:
        specs.insert(0, shared_directory(arguments.shared_dir))
    with Tree(specs) as tree:
        prepare_daemon(tree)
        server = FuseServer(tree.vfs, tree.root)
        try:
            state = ServerState(server, MigrationOptions())
            device = VirtioFsDevice(server, arguments.tag, arguments.num_queues, state=state)
        except OSError as error:
            raise UsageError(error.strerror) from None
        with device, controlled(arguments.control, tree.task, server, device.depth):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda *_: device.stop())
            if arguments.fd is not None:
                _serve_fd(device, arguments.fd)
            else:
                _serve_path(device, arguments.socket_path)
    return 0


def _serve_path(device: VirtioFsDevice, path: str) -> None:
    place = SocketFile(path)
    with place.listener:
        try:
            device.serve(place.listener)
        finally:
            place.remove()


def _serve_fd(device: VirtioFsDevice, fd: int) -> None:
    if not 0 <= fd <= _FD_MAX:
        raise UsageError(f"--fd {fd}: no descriptor has this number")
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(
            f"--fd {fd}: {error.strerror}: a Unix stream socket has to be inherited at this number"
        ) from None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise UsageError(f"--fd {fd}: this is no Unix stream socket: inherit one")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        with sock:
            device.serve(sock)
    else:
        device.serve_connection(sock)
