"""The vhost-user protocol, device side: one connection's state machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from harness.vhost_user import message as wire
from harness.vhost_user.channel import BackendChannel
from harness.vhost_user.connection import Connection, Message, ProtocolError
from harness.vhost_user.loop import ServiceLoop
from harness.vhost_user.pool import WorkerPool
from harness.vhost_user.state import DeviceState, StateTransfer
from harness.vhost_user.vring import Vring
from harness.virtio import inflight
from harness.virtio.dirty_log import DirtyLog
from harness.virtio.inflight import InflightQueue, InflightRegion
from harness.virtio.memory import GuestError, GuestMemory, MemoryRegion
from harness.virtio.packed import PackedQueue
from harness.virtio.packed_inflight import PackedInflightQueue
from harness.virtio.queue import MAX_SIZE, SplitQueue
from harness.wire import FuseHandler

LOG = logging.getLogger(__name__)

RING_FEATURES: Final = (
    wire.VIRTIO_RING_F_INDIRECT_DESC | wire.VIRTIO_RING_F_EVENT_IDX | wire.VIRTIO_F_RING_PACKED
)
FEATURES: Final = (
    wire.VIRTIO_F_VERSION_1
    | wire.VHOST_USER_F_PROTOCOL_FEATURES
    | wire.VHOST_F_LOG_ALL
    | RING_FEATURES
)

PROTOCOL_FEATURES: Final = (
    wire.F_MQ
    | wire.F_LOG_SHMFD
    | wire.F_REPLY_ACK
    | wire.F_BACKEND_REQ
    | wire.F_BACKEND_SEND_FD
    | wire.F_INFLIGHT_SHMFD
    | wire.F_RESET_DEVICE
    | wire.F_CONFIGURE_MEM_SLOTS
    | wire.F_STATUS
)
"""CONFIG comes with a tag and DEVICE_STATE with a state. Never INBAND_NOTIFICATIONS: QEMU
acknowledges it without using it."""

DRAIN_LIMIT_NS: Final = 10_000_000_000
"""How long GET_VRING_BASE waits for requests that don't complete."""
END_LIMIT_NS: Final = 2_000_000_000
"""How long the end of the daemon does."""


class Refused(Exception):
    """A well-framed request that can't be granted. It is answered if it asks for an answer."""


class Reply(NamedTuple):
    """A reply with a descriptor, which is closed when it is sent."""

    payload: bytes
    fd: int


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
        pool: WorkerPool | None = None,
        state: DeviceState | None = None,
    ) -> None:
        """Serve `connection` (taken over) on `loop`, with the session of `handler`.

        `config` is the device's configuration space; None offers no CONFIG. `on_closed` is
        called once, when the frontend is gone and everything of it is released. `pool` and
        `state`, borrowed, are for requests that block and for migration.
        """
        self._connection = connection
        self._handler = handler
        self._loop = loop
        self._config = config
        self._on_closed = on_closed
        self._pool = pool
        self._state = state
        self._closed = False
        self._deferred = False
        self._checking = False
        self._features = 0
        self._protocol_features = 0
        self._offered = PROTOCOL_FEATURES
        if config is not None:
            self._offered |= wire.F_CONFIG
        if state is not None:
            self._offered |= wire.F_DEVICE_STATE
        self._status = 0
        self._memory = GuestMemory()
        self._log: DirtyLog | None = None
        self._log_call = -1
        self._inflight: InflightRegion | None = None
        self._channel: BackendChannel | None = None
        self._transfer: StateTransfer | None = None
        self._loading = False
        self._vrings = [
            Vring(index, handler, loop.complete, pool=pool, on_failed=self._ring_failed)
            for index in range(num_queues)
        ]
        self._requests: dict[int, Callable[[Message], bytes | Reply | None]] = {
            number: getattr(self, f"_{row.name}") for number, row in wire.REQUESTS.items()
        }
        loop.register(connection.fileno(), self._readable)

    def drain(self) -> None:
        """After the loop: answer what is pending, before `close`. What waits fails with EINTR."""
        if self._closed or not any(vring.parked for vring in self._vrings):
            return
        self._loop.cancel_timer()
        self._loop.unregister(self._connection.fileno())
        try:
            self._handler.drain()
        except Exception:
            LOG.exception("the server could not be drained")
        self._loop.settle(self._vrings, END_LIMIT_NS)

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
        self._transfer = None
        if self._state is not None and self._features & wire.VHOST_F_LOG_ALL:
            self._state.cancel()
        self._reset_session()
        if self._channel is not None:
            self._channel.close()
        self._drop_log()
        self._drop_inflight()
        self._memory.clear()
        self._connection.close()
        self._on_closed()

    def depth(self) -> int:
        """How many chains wait in the rings. From any thread: an estimate."""
        return sum(vring.depth() for vring in self._vrings)

    def config_changed(self, config: bytes) -> None:
        """The configuration space is another now; the driver is told, if it can be."""
        self._config = config
        if self._channel is not None:
            self._channel.config_changed()

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
        if isinstance(reply, Reply):
            try:
                self._connection.send(message.request, reply.payload, fds=[reply.fd])
            finally:
                os.close(reply.fd)
        elif reply is not None:
            self._connection.send(message.request, reply)
        elif need_reply and not self._deferred:
            self._connection.send(message.request, wire.U64.pack(0))

    def _defer(self) -> None:
        """Take no more requests until `_answer`; rings go on."""
        self._deferred = True
        self._loop.unregister(self._connection.fileno())

    def _answer(self, request: int, payload: bytes) -> None:
        """Answer the request that was deferred."""
        self._deferred = False
        self._loop.register(self._connection.fileno(), self._readable)
        try:
            self._connection.send(request, payload)
        except (ProtocolError, OSError) as error:
            LOG.warning("the frontend is disconnected: %s", str(error))
            self.close()

    def _serve(self, message: Message) -> bytes | Reply | None:
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
        changed = features ^ self._features
        if changed & RING_FEATURES and any(v.queue is not None for v in self._vrings if v.started):
            raise Refused("the layout of rings cannot change while they are started")
        self._features = features
        if changed & wire.VIRTIO_F_RING_PACKED:
            # It is for rings of the other layout.
            self._drop_inflight()
        self._log_dirty()
        if self._state is not None and changed & wire.VHOST_F_LOG_ALL:
            if features & wire.VHOST_F_LOG_ALL:
                self._state.prepare()
            else:
                self._state.cancel()
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
        self._log_dirty()

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
        self._reset_rings()
        for vring in self._vrings:
            vring.held = []
        self._reset_session()

    def _set_status(self, message: Message) -> None:
        (status,) = wire.U64.unpack(message.payload)
        if status > 0xFF:
            raise Refused(f"device status {status:#x}")
        self._status = status
        if not status:
            # QEMU 8.0 sends this for a virtual machine that is only paused, whose guest goes on
            # with its mount afterwards: the session ends with INIT or RESET_DEVICE. Nothing is
            # written to guest memory any more when this is answered.
            self._drain()
            self._reset_rings()

    def _get_status(self, message: Message) -> bytes:
        needs_reset = self._status and any(vring.broken for vring in self._vrings)
        return wire.U64.pack(self._status | (wire.STATUS_NEEDS_RESET if needs_reset else 0))

    def _set_backend_req_fd(self, message: Message) -> None:
        if not message.fds:
            raise Refused("a channel without a descriptor")
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        # A number that is no socket stays the message's, which closes it.
        fd = message.fds[0]
        acknowledged = bool(self._protocol_features & wire.F_REPLY_ACK)
        self._channel = BackendChannel(fd, self._loop, acknowledged=acknowledged)
        message.take_fds()

    def _set_log_base(self, message: Message) -> bytes:
        if not message.fds:
            raise Refused("a log without a descriptor")
        size, offset = wire.LOG.unpack(message.payload)
        log = DirtyLog(message.fds[0], size, offset)
        log.call = self._log_call
        old, self._log = self._log, log
        self._log_dirty()
        if old is not None:
            old.close()
        return wire.U64.pack(0)

    def _set_log_fd(self, message: Message) -> None:
        if self._log_call >= 0:
            os.close(self._log_call)
        (self._log_call,) = message.take_fds() or [-1]
        if self._log_call >= 0:
            os.set_blocking(self._log_call, False)
        if self._log is not None:
            self._log.call = self._log_call

    def _get_inflight_fd(self, message: Message) -> Reply:
        _, _, num_queues, queue_size = wire.INFLIGHT.unpack_from(message.payload)
        self._check_inflight(num_queues, queue_size)
        layout = self._inflight_layout
        fd, size = inflight.create(num_queues, queue_size, self._features, layout)
        reply = wire.INFLIGHT.pack(size, 0, num_queues, queue_size)
        # QEMU takes none of another size than it sent.
        return Reply(reply.ljust(len(message.payload), b"\0"), fd)

    def _set_inflight_fd(self, message: Message) -> None:
        if not message.fds:
            raise Refused("inflight memory without a descriptor")
        size, offset, num_queues, queue_size = wire.INFLIGHT.unpack_from(message.payload)
        self._check_inflight(num_queues, queue_size)
        layout = self._inflight_layout
        region = InflightRegion(message.fds[0], size, offset, num_queues, queue_size, layout)
        self._drop_inflight()
        self._inflight = region

    def _check_inflight(self, num_queues: int, queue_size: int) -> None:
        if not 0 < num_queues <= len(self._vrings) or not 0 < queue_size <= MAX_SIZE:
            raise Refused(f"inflight memory for {num_queues} queues of {queue_size}")

    def _set_device_state_fd(self, message: Message) -> bytes:
        direction, phase = wire.DEVICE_STATE.unpack(message.payload)
        assert self._state is not None
        try:
            if phase or not message.fds:
                raise Refused(f"phase {phase}, {len(message.fds)} descriptors")
            if any(vring.started for vring in self._vrings):
                raise Refused("a ring is started")
            if self._transfer is not None and not self._transfer.done:
                raise Refused("another transfer is under way")
            works = {wire.SAVE: self._state.save, wire.LOAD: self._state.load}
            if direction not in works:
                raise Refused(f"direction {direction}")
            if direction == wire.SAVE:
                self._state.held = {v.index: v.held for v in self._vrings if v.held}
            else:
                self._state.held = {}
            self._loading = direction == wire.LOAD
            self._transfer = StateTransfer(
                works[direction], message.take_fds()[0], lambda: self._loop.post(self._transferred)
            )
        except (Refused, RuntimeError) as error:
            # This request has its own way to say no.
            LOG.warning("the state can't be transferred: %s", str(error))
            return wire.U64.pack(wire.STATE_NO_FD | wire.STATE_ERROR)
        return wire.U64.pack(wire.STATE_NO_FD)

    def _check_device_state(self, message: Message) -> bytes | None:
        transfer = self._transfer
        if transfer is not None and not transfer.done:
            # The end of the pipe can be seen before the thread has come to its own.
            self._checking = True
            self._defer()
            return None
        return wire.U64.pack(self._end_transfer())

    def _transferred(self) -> None:
        # Only a deferred CHECK_DEVICE_STATE waits for this; GET_VRING_BASE may be deferred too.
        transfer = self._transfer
        if self._checking and transfer is not None and transfer.done:
            self._checking = False
            self._answer(wire.CHECK_DEVICE_STATE, wire.U64.pack(self._end_transfer()))

    def _end_transfer(self) -> int:
        """What CHECK_DEVICE_STATE answers; what was loaded for the rings is theirs."""
        transfer, self._transfer = self._transfer, None
        if transfer is None or transfer.failed:
            return wire.STATE_ERROR
        if self._loading and self._state is not None:
            for vring in self._vrings:
                vring.held = self._state.held.get(vring.index, [])
        return 0

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
        self._layout.check_size(size)
        vring.size = size

    def _set_vring_addr(self, message: Message) -> None:
        index, flags, descriptors, used, avail, log = wire.VRING_ADDRESS.unpack(message.payload)
        vring = self._vring(index)
        vring.addresses = (descriptors, avail, used)
        vring.log_address = log if flags & wire.VRING_F_LOG else None
        if vring.started:
            self._start(vring)

    def _set_vring_base(self, message: Message) -> None:
        vring, base = self._vring_state(message, stopped=True)
        if base > 0xFFFF and self._layout is SplitQueue:
            raise Refused(f"ring base {base}")
        vring.base = base

    def _get_vring_base(self, message: Message) -> bytes | None:
        vring, _ = self._vring_state(message)
        self._loop.unregister(vring.kick)
        base = vring.stop()
        queue = vring.queue
        if queue is None or not vring.parked:
            vring.abandon()
            return wire.VRING_STATE.pack(vring.index, base)

        # The reply, and with it the next request, waits for what is pending on this ring; other
        # rings go on, for what it waits for may come from there.
        def finish() -> None:
            if vring.parked:
                LOG.warning("ring %d stops with %d requests pending", vring.index, vring.parked)
            vring.abandon()
            self._loop.cancel_timer()
            # Now, for on a packed ring it also says what has been used.
            self._answer(wire.GET_VRING_BASE, wire.VRING_STATE.pack(vring.index, queue.base))

        vring.on_drained = finish
        self._defer()
        self._loop.set_timer(DRAIN_LIMIT_NS, finish)
        # Who migrates carries on what waits: nobody would be helped by an error. On a packed ring
        # what has been used may lie over what has not.
        if self._protocol_features & wire.F_DEVICE_STATE and self._layout is SplitQueue:
            self._withdraw()
        else:
            self._drain()
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

    @property
    def _layout(self) -> type[SplitQueue] | type[PackedQueue]:
        return PackedQueue if self._features & wire.VIRTIO_F_RING_PACKED else SplitQueue

    @property
    def _inflight_layout(self) -> type[InflightQueue] | type[PackedInflightQueue]:
        return PackedInflightQueue if self._layout is PackedQueue else InflightQueue

    def _start(self, vring: Vring) -> None:
        vring.map(
            self._memory,
            self._layout,
            indirect=bool(self._features & wire.VIRTIO_RING_F_INDIRECT_DESC),
            event_idx=bool(self._features & wire.VIRTIO_RING_F_EVENT_IDX),
            inflight=None if self._inflight is None else self._inflight.queue(vring.index),
        )
        self._loop.heat(vring)

    def _drain(self) -> None:
        try:
            self._handler.drain()
        except Exception:
            LOG.exception("the server could not be drained")

    def _withdraw(self) -> None:
        try:
            self._handler.withdraw()
        except Exception:
            LOG.exception("requests that wait could not be withdrawn")
        for vring in self._vrings:
            if vring.started:
                self._loop.heat(vring)

    def _reset_rings(self) -> None:
        if self._pool is not None:
            self._pool.quiesce()
        for vring in self._vrings:
            self._loop.unregister(vring.kick)
            vring.reset()
        self._drop_inflight()
        self._status = 0

    def _reset_session(self) -> None:
        if self._pool is not None:
            self._pool.quiesce()
        try:
            self._handler.reset()
        except Exception:
            LOG.exception("the server could not be reset")

    def _ring_failed(self) -> None:
        # Section 2.1.2: a driver that runs is told that the device needs a reset.
        if self._channel is not None and self._status & wire.STATUS_DRIVER_OK:
            self._channel.config_changed()

    def _log_dirty(self) -> None:
        log = self._log if self._features & wire.VHOST_F_LOG_ALL else None
        prepared = bool(self._protocol_features & wire.F_LOG_SHMFD)
        for vring in self._vrings:
            vring.keep_log(log, prepared=prepared)

    def _drop_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._log_call >= 0:
            os.close(self._log_call)
            self._log_call = -1

    def _drop_inflight(self) -> None:
        if self._inflight is not None:
            self._inflight.close()
            self._inflight = None

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
