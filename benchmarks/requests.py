"""``python -m benchmarks.requests [--only TEXT]``: what a request costs us, and nobody else.

The driver's half of the rings and the device's stand in one thread, and only the device's work is
timed, by the thread's CPU time; the lowest of many rounds counts. So it repeats within a few
percent even where other processes keep the machine busy. What it leaves out is what two CPUs cost
each other, and sleeping and waking.
"""

from __future__ import annotations

import argparse
import os
import time

from benchmarks.virtiofs import ROWS, Session
from harness.cli.options import parse_mounts, prepare_daemon
from harness.compose import Tree
from harness.fuse.server import FuseServer
from harness.vhost_user.fuse_client import FuseClient
from harness.vhost_user.vring import Completion, Vring
from harness.virtio.driver import DriverMemory, DriverQueue
from harness.virtio.memory import GuestMemory, MemoryRegion
from harness.virtio.queue import SplitQueue

DEPTHS = (1, 8, 32)
_BUFFER = (1 << 20) + 4096
_MEMORY = 2 * max(DEPTHS) * (_BUFFER + 4096) + (16 << 20)
# What Linux 6.1 offers in FUSE_INIT.
_FLAGS = (0x7BFFFFFB, 0xB)


class ServedQueue(DriverQueue):
    """A driver's queue whose device serves it whenever something is published.

    ``spent_ns`` is the CPU time of the serving, ``served`` the number of chains.
    """

    def __init__(
        self, memory: DriverMemory, guest: GuestMemory, server: FuseServer, size: int, limit: int
    ) -> None:
        super().__init__(memory, size, chain_limit=limit)
        self.spent_ns = 0
        self.served = 0
        address = memory.user_address
        self.vring = Vring(0, server, self._finish)
        self.vring.size = size
        self.vring.addresses = (
            address(self.descriptors),
            address(self.avail_ring),
            address(self.used_ring),
        )
        self.vring.started = self.vring.enabled = True
        self.vring.map(guest, SplitQueue, indirect=True, event_idx=True)

    def publish(self) -> None:
        """Make what was offered available, and have it served."""
        self.served += (self.avail_idx - self._published) & 0xFFFF
        super().publish()
        start = time.thread_time_ns()
        self.vring.serve()
        self.spent_ns += time.thread_time_ns() - start

    def _finish(self, completion: Completion, length: int) -> None:
        self.vring.finish(completion, length)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds per row (default: 15)")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    arguments = parser.parse_args()
    memory = DriverMemory(_MEMORY)
    guest = GuestMemory()
    for address, size, user, offset in memory.regions():
        guest.add(MemoryRegion(memory.fd, address, size, user, offset))
    tree = Tree(parse_mounts(["type=tmpfs,dst=/"]))
    prepare_daemon(tree)
    server = FuseServer(tree.vfs, tree.root)
    queue = ServedQueue(memory, guest, server, 512, 260)
    hiprio = ServedQueue(memory, guest, server, 128, 8)
    client = FuseClient(None, depth=max(DEPTHS), buffer_size=_BUFFER, queue=queue, hiprio=hiprio)
    client.init(*_FLAGS)
    session = Session(client)
    print("request, and µs of CPU at " + ", ".join(f"depth {depth}" for depth in DEPTHS))
    for row in ROWS:
        if arguments.only.lower() in row.name.lower():
            costs = []
            for depth in DEPTHS:
                count = max(64, 2048 // row.weight) // depth * depth
                spent = []
                for _ in range(arguments.rounds):
                    queue.spent_ns = queue.served = 0
                    row.run(session, count, depth)
                    spent.append(queue.spent_ns / queue.served / 1000)
                costs.append(min(spent))
            print(f"{row.name:14}" + "".join(f"{cost:8.2f}" for cost in costs), flush=True)
    # The session's references are the process's to give back.
    os._exit(0)


if __name__ == "__main__":
    main()
