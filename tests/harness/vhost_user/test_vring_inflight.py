"""A ring whose server dies between any two steps, and the one that takes it over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from vhost_user_support import ECHO, EchoServer

from harness.vhost_user.vring import Completion, Vring
from harness.virtio import inflight
from harness.virtio.driver import DriverMemory, DriverQueue
from harness.virtio.inflight import InflightQueue, InflightRegion
from harness.virtio.memory import GuestMemory, MemoryRegion
from harness.virtio.packed import PackedQueue
from harness.virtio.packed_driver import PackedDriverQueue
from harness.virtio.packed_inflight import PackedInflightQueue
from harness.virtio.queue import SplitQueue

SIZE = 8
TOTAL = 30


class Killed(BaseException):
    """SIGKILL, for as much as the objects at hand can tell."""


class Deadly:
    """Passes calls on, and dies before or after one of them."""

    def __init__(self, target: Any, name: str, number: int, after: bool) -> None:
        self._call = getattr(target, name)
        self._left = number
        self._after = after

    def __call__(self, *args: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        result = self._call(*args)
        if self._left == 0:
            raise Killed
        return result


class DeadlySplitQueue(SplitQueue):
    """A queue whose methods can be replaced."""


class DeadlyPackedQueue(PackedQueue):
    """Likewise."""


class DeadlyInflight(InflightQueue):
    """Likewise."""


class DeadlyPackedInflight(PackedInflightQueue):
    """Likewise."""


class Guest:
    """A driver that keeps its ring full of ECHOs, and counts what comes back."""

    def __init__(self, packed: bool, indirect: bool) -> None:
        self.packed = packed
        self.indirect = indirect
        self.memory = DriverMemory(1 << 16)
        self.guest = GuestMemory()
        for address, size, user, offset in self.memory.regions():
            self.guest.add(MemoryRegion(self.memory.fd, address, size, user, offset))
        kind = PackedDriverQueue if packed else DriverQueue
        # An odd size, so that chains reach around its end.
        ring = SIZE + 1 if packed else SIZE
        self.ring = ring
        self.queue = kind(self.memory, ring, chain_limit=2, indirect=indirect)
        self.layout = DeadlyPackedInflight if packed else DeadlyInflight
        fd, size = inflight.create(1, ring, 0, self.layout)
        self.region = InflightRegion(fd, size, 0, 1, ring, self.layout)
        os.close(fd)
        self.slots = min(SIZE, self.queue.slots)
        self.buffers = [self.memory.allocate(128) for _ in range(self.slots)]
        self.free = list(range(self.slots))
        self.heads: dict[int, int] = {}
        self.sent = 0
        self.answers: list[int] = []
        self.prepared: list[Any] = []

    def offer(self) -> None:
        while self.free and self.sent < TOTAL:
            slot = self.free.pop()
            at = self.buffers[slot]
            header = (44).to_bytes(4, "little") + ECHO.to_bytes(4, "little") + bytes(32)
            self.memory.at(at, 44)[:] = header + self.sent.to_bytes(4, "little")
            head = self.queue.lay_out(slot, [(at, 44)], [(at + 64, 20)])
            self.heads[head] = slot
            self.queue.offer(head)
            self.sent += 1
        self.queue.publish()

    def reap(self) -> None:
        while self.queue.has_used():
            head, length = self.queue.reap()
            assert length == 20
            slot = self.heads.pop(head)
            reply = self.memory.at(self.buffers[slot] + 64, 20)
            self.answers.append(int.from_bytes(reply[16:], "little"))
            self.free.append(slot)

    def server(self, prepare: Callable[[Any, Any], None]) -> Vring:
        def complete(completion: Completion, length: int) -> None:
            raise AssertionError("nothing waits here")

        vring = Vring(0, EchoServer(), complete)
        vring.size = self.ring
        # A VMM does not know better than where the driver has got to.
        vring.base = self.queue.recovered_base()
        user = self.memory.user_address
        vring.addresses = (
            user(self.queue.descriptors),
            user(self.queue.avail_ring),
            user(self.queue.used_ring),
        )
        vring.started = vring.enabled = True
        vring.call = os.dup(self.queue.call)
        notes = self.layout(self.region._view, self.ring)
        make = DeadlyPackedQueue if self.packed else DeadlySplitQueue
        vring.map(self.guest, make, indirect=self.indirect, event_idx=True, inflight=notes)
        assert vring.queue is not None
        prepare(vring.queue, notes)
        self.prepared += [vring.queue, notes]
        return vring

    def close(self) -> None:
        for target in self.prepared:
            # A cycle, which would keep guest memory for the collector.
            vars(target).clear()
        self.prepared.clear()
        target = None
        self.region.close()
        self.queue.close()
        self.guest.clear()
        self.memory.close()


@pytest.fixture(
    params=[(False, True), (True, True), (True, False)], ids=["split", "packed", "packed-direct"]
)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    guest = Guest(*request.param)
    yield guest
    guest.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["pop", "take", "give", "push", "given"])
@pytest.mark.parametrize("deaths", [[1], [5], [8], [3, 1, 7, 2, 8, 1, 1]])
def test_every_request_is_answered_once_wherever_its_server_dies(
    guest: Guest, name: str, after: bool, deaths: list[int]
) -> None:
    for number in (*deaths, 0):

        def prepare(queue: Any, notes: Any, number: int = number) -> None:
            target = notes if name in ("take", "give", "given") else queue
            setattr(target, name, Deadly(target, name, number, after))

        vring = guest.server(prepare)
        guest.offer()
        try:
            while guest.sent < TOTAL or len(guest.free) < guest.slots:
                assert vring.serve()
                guest.reap()
                guest.offer()
        except Killed:
            pass
        vring.close()
        # What was used is seen, whether or not the dead one came to say so.
        guest.reap()
    assert sorted(guest.answers) == list(range(TOTAL))


def test_what_was_used_without_a_signal_is_signalled_by_the_next_server(guest: Guest) -> None:
    def prepare(queue: Any, notes: Any) -> None:
        notes.given = Deadly(notes, "given", 1, True)

    guest.queue.enable_interrupts()
    vring = guest.server(prepare)
    os.eventfd_read(guest.queue.call)
    guest.offer()
    with pytest.raises(Killed):
        vring.serve()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(guest.queue.call)
    vring.close()
    heir = guest.server(lambda queue, notes: None)
    assert os.eventfd_read(guest.queue.call)
    heir.close()
