"""The vhost-user protocol, device side: one connection's state machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

from harness.vhost_user import message as wire
from harness.vhost_user.connection import Connection, Message, ProtocolError
from harness.vhost_user.loop import ServiceLoop
from harness.vhost_user.vring import Vring
from harness.virtio.memory import GuestError, GuestMemory, MemoryRegion
from harness.virtio.queue import MAX_SIZE
from harness.wire import FuseHandler

LOG = logging.getLogger(__name__)

FEATURES: Final = (
    wire.VIRTIO_F_VERSION_1
    | wire.VIRTIO_RING_F_INDIRECT_DESC
    | wire.VIRTIO_RING_F_EVENT_IDX
    | wire.VHOST_USER_F_PROTOCOL_FEATURES
)

PROTOCOL_FEATURES: Final = (
    wire.F_MQ | wire.F_REPLY_ACK | wire.F_RESET_DEVICE | wire.F_CONFIGURE_MEM_SLOTS
)
"""Without CONFIG, and never INBAND_NOTIFICATIONS: QEMU acknowledges it without using it."""

DRAIN_LIMIT_NS: Final = 10_000_000_000
"""How long GET_VRING_BASE waits for requests that don't complete."""


class Refused(Exception):
    """A well-framed request that can't be granted. It is answered if it asks for an answer."""


class Backend:
    """struct vhost_dev, the backend's side: features, memory and rings of one frontend.

    A request that is refused and does not ask for a reply, or one that breaks the protocol, ends
    the connection: the frontend would go on in a state that we don't share.
    """

    def __init__(
        self,
        connection: Connection,
        handler: FuseHandler,
        loop: ServiceLoop,
        *,
        num_queues: int,
        config: bytes | None,
        on_closed: Callable[[], None],
    ) -> None:
        """Serve `connection` (taken over) on `loop`, with the session of `handler`.

        `config` is the device's configuration space; None offers no CONFIG. `on_closed` is
        called once, when the frontend is gone and everything of it is released.
        """
        self._connection = connection
        self._handler = handler
        self._loop = loop
        self._config = config
        self._on_closed = on_closed
        self._closed = False
        self._features = 0
        self._protocol_features = 0
        self._offered = PROTOCOL_FEATURES | (0 if config is None else wire.F_CONFIG)
        self._memory = GuestMemory()
        self._vrings = [Vring(index, handler, loop.complete) for index in range(num_queues)]
        self._requests: dict[int, Callable[[Message], bytes | None]] = {
            number: getattr(self, f"_{row.name}") for number, row in wire.REQUESTS.items()
        }
        loop.register(connection.fileno(), self._readable)

    def close(self) -> None:
        """Drop the frontend: rings, memory, descriptors, and the FUSE session."""
        if self._closed:
            return
        self._closed = True
        self._loop.cancel_timer()
        self._loop.unregister(self._connection.fileno())
        for vring in self._vrings:
            self._loop.unregister(vring.kick)
            vring.close()
        self._reset_session()
        self._memory.clear()
        self._connection.close()
        self._on_closed()

    def _readable(self) -> None:
        try:
            while not self._closed:
                message = self._connection.receive()
                if message is None:
                    return
                with message:
                    self._dispatch(message)
                if self._deferred:
                    return
        except EOFError:
            LOG.info("the frontend disconnected")
        except (ProtocolError, Refused, GuestError, OSError) as error:
            LOG.warning("the frontend is disconnected: %s", str(error))
        self.close()

    @property
    def _deferred(self) -> bool:
        return any(vring.on_drained is not None for vring in self._vrings)

    def _dispatch(self, message: Message) -> None:
        need_reply = message.need_reply and self._protocol_features & wire.F_REPLY_ACK
        try:
            reply = self._serve(message)
        except (Refused, GuestError, OSError) as error:
            if not need_reply:
                raise
            LOG.warning("request %d refused: %s", message.request, str(error))
            self._connection.send(message.request, wire.U64.pack(1))
            return
        if reply is not None:
            self._connection.send(message.request, reply)
        elif need_reply and not self._deferred:
            self._connection.send(message.request, wire.U64.pack(0))

    def _serve(self, message: Message) -> bytes | None:
        row = wire.REQUESTS.get(message.request)
        if row is None or message.flags & wire.REPLY:
            raise Refused(f"unknown request {message.request}, flags {message.flags:#x}")
        if row.feature & ~self._protocol_features:
            raise Refused(f"{row.name} was not negotiated")
        size = len(message.payload)
        if size < row.size or (size > row.size and not row.variable):
            raise Refused(f"{row.name} with {size} bytes")
        if len(message.fds) > row.fds:
            raise Refused(f"{row.name} with {len(message.fds)} descriptors")
        return self._requests[message.request](message)

    # Each _name serves the request `name` of the table. It returns the payload of the reply that
    # the request always has, or None; it raises Refused, GuestError or OSError to refuse it.

    def _get_features(self, message: Message) -> bytes:
        return wire.U64.pack(FEATURES)

    def _set_features(self, message: Message) -> None:
        (features,) = wire.U64.unpack(message.payload)
        if features & ~FEATURES:
            raise Refused(f"features {features:#x} were not offered")
        self._features = features
        if not features & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            for vring in self._vrings:
                vring.enabled = True
                self._loop.heat(vring)

    def _get_protocol_features(self, message: Message) -> bytes:
        return wire.U64.pack(self._offered)

    def _set_protocol_features(self, message: Message) -> None:
        (features,) = wire.U64.unpack(message.payload)
        if features & ~self._offered:
            raise Refused(f"protocol features {features:#x} were not offered")
        self._protocol_features = features

    def _set_owner(self, message: Message) -> None:
        pass

    def _reset_owner(self, message: Message) -> None:
        # Deprecated; the specification lets a backend take it for "disable all rings".
        for vring in self._vrings:
            vring.enabled = False

    def _get_queue_num(self, message: Message) -> bytes:
        return wire.U64.pack(len(self._vrings))

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = wire.CONFIG.unpack_from(message.payload)
        config = self._config or b""
        if size > wire.CONFIG_MAX or offset + size > len(config):
            return b""
        return wire.CONFIG.pack(offset, size, flags) + config[offset : offset + size]

    def _set_config(self, message: Message) -> None:
        raise Refused("the configuration space of a virtio-fs device is read-only")

    def _reset_device(self, message: Message) -> None:
        for vring in self._vrings:
            self._loop.unregister(vring.kick)
            vring.reset()
        self._reset_session()

    def _set_mem_table(self, message: Message) -> None:
        count, _ = wire.MEMORY_TABLE.unpack_from(message.payload)
        expected = wire.MEMORY_TABLE.size + count * wire.MEMORY_REGION.size
        if count != len(message.fds) or len(message.payload) != expected:
            raise Refused(f"{count} regions in {len(message.payload)} bytes")
        regions = wire.MEMORY_REGION.iter_unpack(message.payload[wire.MEMORY_TABLE.size :])
        # All are mapped before any is dropped: a table that can't be had changes nothing.
        mapped: list[MemoryRegion] = []
        memory = GuestMemory()
        try:
            for fd, (guest, size, user, offset) in zip(message.fds, regions, strict=True):
                mapped.append(MemoryRegion(fd, guest, size, user, offset))
                memory.add(mapped[-1])
        except GuestError:
            for region in mapped:
                region.close()
            raise
        self._memory.clear()
        for region in mapped:
            self._memory.add(region)
        self._remap()

    def _get_max_mem_slots(self, message: Message) -> bytes:
        return wire.U64.pack(wire.MAX_MEMORY_SLOTS)

    def _add_mem_reg(self, message: Message) -> None:
        if len(message.fds) != 1:
            raise Refused("a memory region without a descriptor")
        if len(self._memory.regions) >= wire.MAX_MEMORY_SLOTS:
            raise Refused("no memory slot is free")
        _, guest, size, user, offset = wire.SINGLE_REGION.unpack(message.payload)
        region = MemoryRegion(message.fds[0], guest, size, user, offset)
        try:
            self._memory.add(region)
        except GuestError:
            region.close()
            raise
        self._remap()

    def _rem_mem_reg(self, message: Message) -> None:
        _, guest, size, user, _ = wire.SINGLE_REGION.unpack(message.payload)
        self._memory.remove(guest, size, user)
        self._remap()

    def _set_vring_num(self, message: Message) -> None:
        vring, size = self._vring_state(message, stopped=True)
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise Refused(f"a queue of {size}")
        vring.size = size

    def _set_vring_addr(self, message: Message) -> None:
        index, _, descriptors, used, avail, _ = wire.VRING_ADDRESS.unpack(message.payload)
        vring = self._vring(index)
        vring.addresses = (descriptors, avail, used)
        if vring.started:
            self._start(vring)

    def _set_vring_base(self, message: Message) -> None:
        vring, base = self._vring_state(message, stopped=True)
        if base > 0xFFFF:
            raise Refused(f"ring base {base}")
        vring.base = base

    def _get_vring_base(self, message: Message) -> bytes | None:
        vring, _ = self._vring_state(message)
        self._loop.unregister(vring.kick)
        base = vring.stop()
        reply = wire.VRING_STATE.pack(vring.index, base)
        if not vring.parked:
            vring.abandon()
            return reply

        # The reply, and with it the next request, waits for what is pending on this ring; other
        # rings go on, for what it waits for may come from there.
        def finish() -> None:
            if vring.parked:
                LOG.warning("ring %d stops with %d requests pending", vring.index, vring.parked)
            vring.abandon()
            self._loop.cancel_timer()
            self._loop.register(self._connection.fileno(), self._readable)
            try:
                self._connection.send(wire.GET_VRING_BASE, reply)
            except (ProtocolError, OSError) as error:
                LOG.warning("the frontend is disconnected: %s", str(error))
                self.close()

        vring.on_drained = finish
        self._loop.unregister(self._connection.fileno())
        self._loop.set_timer(DRAIN_LIMIT_NS, finish)
        try:
            self._handler.drain()
        except Exception:
            LOG.exception("the server could not be drained")
        return None

    def _set_vring_kick(self, message: Message) -> None:
        vring = self._vring_of_fd(message)
        if not message.fds:
            raise Refused("a ring without a kick descriptor would have to be polled")
        (fd,) = message.take_fds()
        self._loop.unregister(vring.kick)
        vring.close_fd("kick")
        vring.kick = fd
        self._loop.register(fd, lambda: self._loop.heat(vring), edge=True)
        vring.started = True
        self._start(vring)

    def _set_vring_call(self, message: Message) -> None:
        vring = self._vring_of_fd(message)
        self._take_eventfd(vring, "call", message.take_fds())
        if vring.runs:
            # What was used while no descriptor was there has not been signalled.
            vring.signal()

    def _set_vring_err(self, message: Message) -> None:
        self._take_eventfd(self._vring_of_fd(message), "err", message.take_fds())

    def _set_vring_enable(self, message: Message) -> None:
        vring, enable = self._vring_state(message)
        vring.enabled = bool(enable)
        self._loop.heat(vring)

    def _start(self, vring: Vring) -> None:
        vring.map(
            self._memory,
            indirect=bool(self._features & wire.VIRTIO_RING_F_INDIRECT_DESC),
            event_idx=bool(self._features & wire.VIRTIO_RING_F_EVENT_IDX),
        )
        self._loop.heat(vring)

    def _reset_session(self) -> None:
        try:
            self._handler.reset()
        except Exception:
            LOG.exception("the server could not be reset")

    def _remap(self) -> None:
        for vring in self._vrings:
            if vring.queue is not None:
                self._start(vring)

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise Refused(f"ring {index} of {len(self._vrings)}")
        return self._vrings[index]

    def _vring_state(self, message: Message, *, stopped: bool = False) -> tuple[Vring, int]:
        index, number = wire.VRING_STATE.unpack(message.payload)
        vring = self._vring(index)
        if stopped and vring.started:
            raise Refused(f"ring {index} is started")
        return vring, number

    def _vring_of_fd(self, message: Message) -> Vring:
        (value,) = wire.U64.unpack(message.payload)
        if bool(value & wire.NO_FD) == bool(message.fds):
            raise Refused(f"ring descriptor {value:#x} with {len(message.fds)} descriptors")
        return self._vring(value & wire.RING_INDEX_MASK)

    @staticmethod
    def _take_eventfd(vring: Vring, name: str, fds: Sequence[int]) -> None:
        vring.close_fd(name)
        for fd in fds:
            setattr(vring, name, fd)
            # A peer that never reads must not be able to stop us in write(2).
            os.set_blocking(fd, False)
