"""The process that serves a container's tree."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Final, NoReturn

from harness import linux
from harness.cli.options import prepare_daemon
from harness.container.errors import EXIT_OURS, tell
from harness.container.init import MOUNTED, READY
from harness.container.tree import TreeOptions, build_tree
from harness.container.user_namespace import Identity, drop_capabilities
from harness.control.server import controlled
from harness.errors import UsageError
from harness.fuse.dev_fuse import UNMOUNT_TIMEOUT, FuseMount
from harness.fuse.host_mount import HostMount
from harness.fuse.server import FuseServer
from harness.socket_file import SocketFile

LOG = logging.getLogger(__name__)

_NOWHERE: Final = -1
EXIT_SERVER: Final = 1


class NamespaceMount(FuseMount):
    """A FuseMount in a mount namespace that is not ours, and ends with it.

    This process can't reach the mount, so its own end is how it aborts the connection.
    """

    def abort(self) -> None:
        sys.stderr.flush()
        os._exit(EXIT_SERVER)

    def _leave(self, mount: HostMount) -> None:
        pass


def run_server(
    options: TreeOptions,
    identity: Identity,
    fuse: int,
    lifeline: int,
    init: socket.socket,
    parent: int,
    mask: frozenset[int],
    control: SocketFile | None,
) -> NoReturn:
    """Serve on descriptor `fuse` until the connection ends; then the status is 0.

    `init` is pid 1's socket, `control` the control socket, if there is one. The end of `lifeline`
    says that pid 1 is dead; its mount may still be held by somebody outside, whom nobody waits for
    longer than `UNMOUNT_TIMEOUT`.
    """
    status = EXIT_SERVER
    try:
        linux.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(status)
        # A session of our own: a stopped or interrupted foreground job must not take us with it.
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.umask(0)
        if not identity.every_id:
            drop_capabilities()
        status = _serve(options, identity, fuse, lifeline, init, control)
    except UsageError as error:
        status = EXIT_OURS
        tell(str(error))
    except BrokenPipeError:
        # Pid 1 could not mount, and has said why.
        status = 0
    except BaseException:
        LOG.exception("the server died")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(
    options: TreeOptions,
    identity: Identity,
    fuse: int,
    lifeline: int,
    init: socket.socket,
    control: SocketFile | None,
) -> int:
    with build_tree(options, identity) as tree:
        prepare_daemon(tree)
        server = FuseServer(tree.vfs, tree.root)
        mount = NamespaceMount("/", server)
        server.notify = mount.post_notify
        with init:
            init.send(READY)
            if init.recv(1) != MOUNTED:
                os.close(fuse)
                return 0
        mount.serve(HostMount(fuse, "/", _NOWHERE, _NOWHERE))
        threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
        with controlled(control, tree.task, server):
            mount.wait()
        mount.unmount()
    return 0


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    time.sleep(UNMOUNT_TIMEOUT)
    os._exit(0)
