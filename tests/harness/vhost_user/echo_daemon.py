"""A daemon to kill: an EchoServer at the socket path of its argument."""

from __future__ import annotations

import sys

from vhost_user_support import EchoServer

from harness.virtiofs import VirtioFsDevice

if __name__ == "__main__":
    with VirtioFsDevice(EchoServer(), num_request_queues=2, poll_limit_ns=0) as device:
        device.serve_path(sys.argv[1])
