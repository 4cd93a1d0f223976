"""The vhost-user protocol, VMM side: negotiates, shares memory, and drives the rings itself."""

from __future__ import annotations

import mmap
import os
import socket
import time
from typing import Final

from harness.vhost_user import message as wire
from harness.vhost_user.connection import Connection, Message, ProtocolError
from harness.virtio.driver import GUEST_BASE, DriverMemory, DriverQueue
from harness.virtio.packed_driver import PackedDriverQueue

AnyDriverQueue = DriverQueue | PackedDriverQueue

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
        self.queues: dict[int, AnyDriverQueue] = {}
        self._timeout = timeout
        self._inflight: tuple[int, bytes] | None = None
        self._log: tuple[int, mmap.mmap] | None = None

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
        if self._inflight is not None:
            os.close(self._inflight[0])
            self._inflight = None
        if self._log is not None:
            fd, mapping = self._log
            mapping.close()
            os.close(fd)
            self._log = None
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
        self,
        *,
        indirect: bool = True,
        event_idx: bool = True,
        packed: bool = False,
        protocol_features: int = -1,
        extra: int = 0,
    ) -> None:
        """Acknowledge the features wanted of those offered.

        `protocol_features` limits those of the protocol, `extra` adds to what is wanted of them.
        """
        offered = self.ask_u64(wire.GET_FEATURES)
        wanted = wire.VIRTIO_F_VERSION_1 | wire.VHOST_USER_F_PROTOCOL_FEATURES
        if indirect:
            wanted |= wire.VIRTIO_RING_F_INDIRECT_DESC
        if event_idx:
            wanted |= wire.VIRTIO_RING_F_EVENT_IDX
        if packed:
            wanted |= wire.VIRTIO_F_RING_PACKED
        self.features = offered & wanted
        if self.features & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            offered = self.ask_u64(wire.GET_PROTOCOL_FEATURES)
            accepted = offered & (WANTED_PROTOCOL_FEATURES | extra) & protocol_features
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

    def start(self, index: int, size: int = 128, *, chain_limit: int = 8) -> AnyDriverQueue:
        """Set up queue `index` with `size` entries, in place of another, and enable it."""
        if index in self.queues:
            self.queues.pop(index).close()
        packed = self.features & wire.VIRTIO_F_RING_PACKED
        queue = (PackedDriverQueue if packed else DriverQueue)(
            self.memory,
            size,
            indirect=bool(self.features & wire.VIRTIO_RING_F_INDIRECT_DESC),
            event_idx=bool(self.features & wire.VIRTIO_RING_F_EVENT_IDX),
            chain_limit=chain_limit,
        )
        self.queues[index] = queue
        self.resume(index, queue.START_BASE)
        return queue

    def resume(self, index: int, base: int) -> None:
        """Start queue `index`, at entry `base` of its available ring."""
        queue = self.queues[index]
        self.tell(wire.SET_VRING_NUM, wire.VRING_STATE.pack(index, queue.size))
        self.tell(wire.SET_VRING_BASE, wire.VRING_STATE.pack(index, base))
        self.place(index)
        self.tell(wire.SET_VRING_CALL, wire.U64.pack(index), queue.call)
        self.tell(wire.SET_VRING_KICK, wire.U64.pack(index), queue.kick)
        if self.features & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            self.tell(wire.SET_VRING_ENABLE, wire.VRING_STATE.pack(index, 1))

    def place(self, index: int) -> None:
        """Say where queue `index` is, and whether what is written there is to be logged."""
        queue = self.queues[index]
        user = self.memory.user_address
        logged = bool(self.features & wire.VHOST_F_LOG_ALL)
        self.tell(
            wire.SET_VRING_ADDR,
            wire.VRING_ADDRESS.pack(
                index,
                wire.VRING_F_LOG if logged else 0,
                user(queue.descriptors),
                user(queue.used_ring),
                user(queue.avail_ring),
                queue.used_ring if logged else 0,
            ),
        )

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

    def reconnect(self, sock: socket.socket) -> None:
        """Go on with another backend on `sock` (taken over), where the one before has died.

        Features, memory and inflight memory are those of before, and queues go on behind what has
        been used of them.
        """
        self.attach(sock)
        if self._inflight is not None:
            self.tell(wire.SET_INFLIGHT_FD, self._inflight[1], self._inflight[0])
        for index, queue in self.queues.items():
            self.resume(index, queue.recovered_base())

    def attach(self, sock: socket.socket) -> None:
        """Leave the backend for another on `sock` (taken over), with the same features and memory.

        Queues are to be resumed.
        """
        self._connection.close()
        sock.settimeout(self._timeout)
        self._connection = Connection(sock)
        wanted, self.protocol_features = self.protocol_features, 0
        if self.features & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            self.ask_u64(wire.GET_PROTOCOL_FEATURES)
            self.send(wire.SET_PROTOCOL_FEATURES, wire.U64.pack(wanted))
            self.protocol_features = wanted
        self.tell(wire.SET_OWNER)
        self.tell(wire.SET_FEATURES, wire.U64.pack(self.features))
        self.share_memory()

    def track_inflight(self, num_queues: int, queue_size: int) -> None:
        """Get inflight memory for so many queues from the backend, and have it used."""
        payload = wire.INFLIGHT.pack(0, 0, num_queues, queue_size).ljust(24, b"\0")
        self.send(wire.GET_INFLIGHT_FD, payload)
        with self.receive() as reply:
            if reply.request != wire.GET_INFLIGHT_FD or (len(reply.payload), len(reply.fds)) != (
                24,
                1,
            ):
                raise ProtocolError("no inflight memory")
            (fd,) = reply.take_fds()
            self._inflight = fd, reply.payload
        self.tell(wire.SET_INFLIGHT_FD, self._inflight[1], fd)

    def start_log(self, *, spare: int = 0) -> None:
        """Have the backend note which pages it writes: `dirty_pages`."""
        if self._log is None:
            pages = (GUEST_BASE + self.memory.size >> 12) + spare
            size = pages + 7 >> 3
            fd = os.memfd_create("log", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            self._log = fd, mmap.mmap(fd, size)
            self.send(wire.SET_LOG_BASE, wire.LOG.pack(size, 0), fd)
            with self.receive() as reply:
                if reply.request != wire.SET_LOG_BASE:
                    raise ProtocolError("SET_LOG_BASE was not answered")
        self._set_logging(True)

    def stop_log(self) -> None:
        """Have the backend note nothing any more."""
        self._set_logging(False)

    def dirty_pages(self) -> set[int]:
        """The numbers of the guest's pages that are noted; they are taken out of the log.

        Not atomically: what the backend notes meanwhile can get lost.
        """
        assert self._log is not None
        mapping = self._log[1]
        found = set()
        for number, byte in enumerate(mapping[:]):
            if byte:
                found |= {8 * number + bit for bit in range(8) if byte >> bit & 1}
                mapping[number] = 0
        return found

    def _set_logging(self, on: bool) -> None:
        self.features &= ~wire.VHOST_F_LOG_ALL
        if on:
            self.features |= wire.VHOST_F_LOG_ALL
        self.tell(wire.SET_FEATURES, wire.U64.pack(self.features))
        for index in self.queues:
            self.place(index)

    def open_channel(self) -> Connection:
        """Give the backend a socket for requests of its own; ours is the caller's."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.tell(wire.SET_BACKEND_REQ_FD, b"", theirs.fileno())
        ours.settimeout(self._timeout)
        return Connection(ours)

    def transfer_state(self, direction: int) -> int:
        """Begin to save or load the device's state. Returns our end of the pipe, the caller's.

        Raises:
            ProtocolError: the backend refused.
        """
        reader, writer = os.pipe()
        ours, theirs = (reader, writer) if direction == wire.SAVE else (writer, reader)
        try:
            self.send(wire.SET_DEVICE_STATE_FD, wire.DEVICE_STATE.pack(direction, 0), theirs)
        finally:
            os.close(theirs)
        with self.receive() as reply:
            (answer,) = wire.U64.unpack(reply.payload)
        if answer != wire.STATE_NO_FD:
            os.close(ours)
            raise ProtocolError(f"the state cannot be transferred: {answer:#x}")
        return ours

    def check_state(self) -> bool:
        """Whether the transfer succeeded, once it is over."""
        return self.ask_u64(wire.CHECK_DEVICE_STATE) == 0
