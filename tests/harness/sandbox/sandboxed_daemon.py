"""A daemon in a sandbox, as a command: FD DIRECTORY MODE SECCOMP DATA, the mount's. It serves one
connection. With WITHOUT_XATTRAT in the environment it takes the kernel for one before 6.13.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading

from fsimpl.passthrough import PassthroughType, oslib
from harness.fuse.server import FuseServer
from harness.sandbox import Sandboxed, SandboxOptions, enter
from harness.virtiofs import VirtioFsDevice
from vfs.mount import VirtualDentry
from vfs.namei import traverse_mounts
from vfs.virtual_filesystem import VirtualFilesystem


def serve(sandboxed: Sandboxed, fd: int, data: str = "") -> None:
    """Until the frontend at the other end of ``fd`` goes."""
    vfs = VirtualFilesystem()
    vfs.register(PassthroughType(sandboxed.proc_self_fd))
    namespace = vfs.create_namespace("passthrough", os.fsencode(sandboxed.root), 0, data)
    root = VirtualDentry(*traverse_mounts(namespace.root, namespace.root.root))
    with VirtioFsDevice(FuseServer(vfs, root)) as device:
        signal.signal(signal.SIGTERM, lambda *_: device.stop())
        sandboxed.apply_seccomp()
        # A daemon may start its workers late.
        worker = threading.Thread(target=logging.warning, args=("serving",))
        worker.start()
        worker.join()
        device.serve_connection(socket.socket(fileno=fd))


def main(fd: int, directory: str, mode: str, seccomp: str, data: str) -> None:
    logging.basicConfig()
    if "WITHOUT_XATTRAT" in os.environ:
        oslib.HAS_XATTRAT = False  # type: ignore[misc]
    options = SandboxOptions(
        shared_dir=directory,
        mode=mode,
        seccomp=seccomp,
        keep_fds=(fd,),
        keep_dac_read_search="mandatory" in data,
    )
    serve(enter(options), fd, data)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
