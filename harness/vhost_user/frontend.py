"""The vhost-user protocol, VMM side: negotiates, shares memory, and drives the rings itself."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from harness.vhost_user import message as wire
from harness.vhost_user.connection import Connection, Message, ProtocolError
from harness.virtio.driver import DriverMemory, DriverQueue

WANTED_PROTOCOL_FEATURES: Final = (
    wire.F_MQ | wire.F_REPLY_ACK | wire.F_CONFIG | wire.F_RESET_DEVICE | wire.F_CONFIGURE_MEM_SLOTS
)


class Frontend:
    """struct vhost_dev of a VMM without a guest: the other end of any vhost-user device.

    `negotiate`, `share_memory`, then `start` a queue. Requests that have no reply of their own
    are acknowledged when the backend has REPLY_ACK. Single-threaded.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        memory_size: int = 16 << 20,
        regions: int = 1,
        timeout: float = 30,
    ) -> None:
        """Takes over `sock`, connected. A reply that takes more than `timeout` s is an error."""
        sock.settimeout(timeout)
        self._connection = Connection(sock)
        self.memory = DriverMemory(memory_size, regions)
        self.features = 0
        self.protocol_features = 0
        self.queues: dict[int, DriverQueue] = {}

    @classmethod
    def connect(
        cls, path: str | os.PathLike[str], *, memory_size: int = 16 << 20, wait: float = 10
    ) -> Frontend:
        """Connect to a backend at `path`, which has `wait` seconds to appear there."""
        deadline = time.monotonic() + wait
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(os.fspath(path))
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return cls(sock, memory_size=memory_size)

    def __enter__(self) -> Frontend:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect and release everything."""
        self._connection.close()
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()
        self.memory.close()

    def send(self, request: int, payload: bytes = b"", *fds: int, flags: int = 0) -> None:
        """Send one message as it is, right or wrong; `fds` are borrowed."""
        self._connection.send(request, payload, flags=flags, fds=fds)

    def receive(self) -> Message:
        """The next message of the backend.

        Raises:
            EOFError: it disconnected.
            TimeoutError: none came in time.
        """
        message = self._connection.receive()
        if message is None:
            raise TimeoutError("the backend did not answer")
        return message

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        """Send a request that has a reply, and return the reply's payload.

        Raises:
            ProtocolError: the reply is to something else.
        """
        self.send(request, payload)
        with self.receive() as reply:
            if reply.request != request or not reply.flags & wire.REPLY:
                raise ProtocolError(f"request {reply.request} instead of a reply to {request}")
            return reply.payload

    def ask_u64(self, request: int) -> int:
        """`ask` for a number."""
        (value,) = wire.U64.unpack(self.ask(request))
        return int(value)

    def tell(self, request: int, payload: bytes = b"", *fds: int) -> None:
        """Send a request that has no reply, and have it acknowledged if that was negotiated.

        Raises:
            ProtocolError: the backend refused.
        """
        if not self.protocol_features & wire.F_REPLY_ACK:
            self.send(request, payload, *fds)
            return
        self.send(request, payload, *fds, flags=wire.NEED_REPLY)
        with self.receive() as reply:
            if reply.request != request or wire.U64.unpack(reply.payload) != (0,):
                raise ProtocolError(f"request {request} was refused")

    def negotiate(
        self, *, indirect: bool = True, event_idx: bool = True, protocol_features: int = -1
    ) -> None:
        """Acknowledge the features wanted of those offered.

        `protocol_features` limits those of the protocol.
        """
        offered = self.ask_u64(wire.GET_FEATURES)
        wanted = wire.VIRTIO_F_VERSION_1 | wire.VHOST_USER_F_PROTOCOL_FEATURES
        if indirect:
            wanted |= wire.VIRTIO_RING_F_INDIRECT_DESC
        if event_idx:
            wanted |= wire.VIRTIO_RING_F_EVENT_IDX
        self.features = offered & wanted
        if self.features & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            offered = self.ask_u64(wire.GET_PROTOCOL_FEATURES)
            accepted = offered & WANTED_PROTOCOL_FEATURES & protocol_features
            self.send(wire.SET_PROTOCOL_FEATURES, wire.U64.pack(accepted))
            self.protocol_features = accepted
        self.tell(wire.SET_OWNER)
        self.tell(wire.SET_FEATURES, wire.U64.pack(self.features))

    def share_memory(self) -> None:
        """Hand over all of `memory`, by the means that were negotiated."""
        regions = self.memory.regions()
        if self.protocol_features & wire.F_CONFIGURE_MEM_SLOTS:
            for region in regions:
                self.tell(wire.ADD_MEM_REG, wire.SINGLE_REGION.pack(0, *region), self.memory.fd)
            return
        table = wire.MEMORY_TABLE.pack(len(regions), 0)
        table += b"".join(wire.MEMORY_REGION.pack(*region) for region in regions)
        self.tell(wire.SET_MEM_TABLE, table, *(self.memory.fd for _ in regions))

    def start(self, index: int, size: int = 128, *, chain_limit: int = 8) -> DriverQueue:
        """Set up queue `index` with `size` entries, and enable it."""
        queue = DriverQueue(
            self.memory,
            size,
            indirect=bool(self.features & wire.VIRTIO_RING_F_INDIRECT_DESC),
            event_idx=bool(self.features & wire.VIRTIO_RING_F_EVENT_IDX),
            chain_limit=chain_limit,
        )
        self.queues[index] = queue
        self.resume(index, 0)
        return queue

    def resume(self, index: int, base: int) -> None:
        """Start queue `index`, at entry `base` of its available ring."""
        queue = self.queues[index]
        user = self.memory.user_address
        self.tell(wire.SET_VRING_NUM, wire.VRING_STATE.pack(index, queue.size))
        self.tell(wire.SET_VRING_BASE, wire.VRING_STATE.pack(index, base))
        self.tell(
            wire.SET_VRING_ADDR,
            wire.VRING_ADDRESS.pack(
                index,
                0,
                user(queue.descriptors),
                user(queue.used_ring),
                user(queue.avail_ring),
                0,
            ),
        )
        self.tell(wire.SET_VRING_CALL, wire.U64.pack(index), queue.call)
        self.tell(wire.SET_VRING_KICK, wire.U64.pack(index), queue.kick)
        if self.features & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            self.tell(wire.SET_VRING_ENABLE, wire.VRING_STATE.pack(index, 1))

    def stop(self, index: int) -> int:
        """Stop queue `index`. Returns its base: the entry at which it can be resumed."""
        reply = self.ask(wire.GET_VRING_BASE, wire.VRING_STATE.pack(index, 0))
        return int(wire.VRING_STATE.unpack(reply)[1])

    def config(self, size: int = 40) -> bytes:
        """`size` bytes of the device's configuration space.

        Raises:
            ProtocolError: the backend refused.
        """
        reply = self.ask(wire.GET_CONFIG, wire.CONFIG.pack(0, size, 0) + bytes(size))
        if len(reply) != wire.CONFIG.size + size:
            raise ProtocolError("the configuration space could not be read")
        return reply[wire.CONFIG.size :]
