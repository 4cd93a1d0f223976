"""A daemon of our own for one guest: the tree, its FUSE server and the device, in a process."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Self, TextIO

from harness.cli.options import prepare_daemon
from harness.compose import Tree
from harness.control.server import controlled
from harness.errors import CommandError, UsageError
from harness.fuse.server import FuseServer
from harness.guest.errors import GuestUnavailable
from harness.virtiofs import VirtioFsDevice

LOG = logging.getLogger(__name__)


class DaemonDied(CommandError):
    """The daemon ended by a bug; it has logged a traceback."""

    exit_status = 125


class ForkedDaemon:
    """A child process that serves one vhost-user connection, and ends with it.

    A process and not a thread, so that neither holds the other's interpreter lock: the relay of a
    chatty console and the file system behind it. (Under an emulated CPU both take the same time,
    because the guest is what they wait for.) To be started before this process has threads, and
    used in a `with`.

    `socket` is the frontend's end of the connection, owned by us until somebody closes it.
    """

    def __init__(self, build: Callable[[], Tree], control: str | None = None) -> None:
        """Have the child `build` the tree, and return when it serves; `control` is the path of its
        control socket.

        Raises:
            UsageError, GuestUnavailable: the child's, from `build`.
            DaemonDied: by a bug of ours.
        """
        self.socket, theirs = socket.socketpair()
        report, child_report = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(report)
            self.socket.close()
            _run_child(build, control, theirs, child_report)
        theirs.close()
        os.close(child_report)
        self._report = os.fdopen(report)
        self._status: int | None = None
        ready = self._receive()
        if "ready" not in ready:
            self.close()
            if "unavailable" in ready:
                raise GuestUnavailable(str(ready["unavailable"]))
            if "error" in ready:
                raise UsageError(str(ready["error"]))
            raise DaemonDied("the daemon died before it served anything; its log is above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def finish(self) -> dict[str, int]:
        """Disconnect, and return how many requests of which kind were served."""
        self.socket.close()
        requests = self._receive().get("requests", {})
        self.close()
        assert isinstance(requests, dict)
        return requests

    def close(self) -> None:
        """Disconnect and wait for the child's end. May be repeated."""
        self.socket.close()
        self._report.close()
        if self._status is None:
            _, self._status = os.waitpid(self._pid, 0)

    def _receive(self) -> dict[str, object]:
        line = self._report.readline()
        message: dict[str, object] = json.loads(line) if line else {}
        return message


def _serve(tree: Tree, control: str | None, sock: socket.socket, parent: TextIO) -> None:
    with tree:
        prepare_daemon(tree)
        server = FuseServer(tree.vfs, tree.root)
        with VirtioFsDevice(server) as device, controlled(control, tree.task, server, device.depth):
            parent.write(json.dumps({"ready": True}) + "\n")
            device.serve_connection(sock)
        parent.write(json.dumps({"requests": server.statistics()}) + "\n")


def _run_child(
    build: Callable[[], Tree], control: str | None, sock: socket.socket, report: int
) -> None:
    """Never returns."""
    status = 1
    try:
        # What ends a whole process group is for the parent, whose end takes the connection and us
        # with it, after the guest's last write.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with os.fdopen(report, "w", buffering=1) as parent:
            try:
                _serve(build(), control, sock, parent)
            except UsageError as error:
                parent.write(json.dumps({"error": str(error)}) + "\n")
            except GuestUnavailable as error:
                parent.write(json.dumps({"unavailable": str(error)}) + "\n")
        status = 0
    except BrokenPipeError:
        # The parent is gone, and with it whoever could want to know.
        status = 0
    except BaseException:
        LOG.exception("the daemon died")
    finally:
        # The rest of the interpreter, handlers and buffers alike, is the parent's.
        sys.stderr.flush()
        os._exit(status)
