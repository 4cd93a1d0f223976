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


class DeadlyQueue(SplitQueue):
    """A queue whose methods can be replaced."""


class DeadlyInflight(InflightQueue):
    """Likewise."""


class Guest:
    """A driver that keeps its ring full of ECHOs, and counts what comes back."""

    def __init__(self) -> None:
        self.memory = DriverMemory(1 << 16)
        self.guest = GuestMemory()
        for address, size, user, offset in self.memory.regions():
            self.guest.add(MemoryRegion(self.memory.fd, address, size, user, offset))
        self.queue = DriverQueue(self.memory, SIZE, chain_limit=2)
        fd, size = inflight.create(1, SIZE, 0)
        self.region = InflightRegion(fd, size, 0, 1, SIZE)
        os.close(fd)
        self.buffers = [self.memory.allocate(128) for _ in range(SIZE)]
        self.free = list(range(SIZE))
        self.sent = 0
        self.answers: list[int] = []
        self.prepared: list[Any] = []

    def offer(self) -> None:
        while self.free and self.sent < TOTAL:
            slot = self.free.pop()
            at = self.buffers[slot]
            header = (44).to_bytes(4, "little") + ECHO.to_bytes(4, "little") + bytes(32)
            self.memory.at(at, 44)[:] = header + self.sent.to_bytes(4, "little")
            self.queue.offer(self.queue.lay_out(slot, [(at, 44)], [(at + 64, 20)]))
            self.sent += 1
        self.queue.publish()

    def reap(self) -> None:
        while self.queue.has_used():
            head, length = self.queue.reap()
            assert length == 20
            assert head not in self.free
            reply = self.memory.at(self.buffers[head] + 64, 20)
            self.answers.append(int.from_bytes(reply[16:], "little"))
            self.free.append(head)

    def server(self, prepare: Callable[[SplitQueue, InflightQueue], None]) -> Vring:
        def complete(completion: Completion, length: int) -> None:
            raise AssertionError("nothing waits here")

        vring = Vring(0, EchoServer(), complete)
        vring.size = SIZE
        user = self.memory.user_address
        vring.addresses = (
            user(self.queue.descriptors),
            user(self.queue.avail_ring),
            user(self.queue.used_ring),
        )
        vring.started = vring.enabled = True
        vring.call = os.dup(self.queue.call)
        notes = DeadlyInflight(self.region._view, SIZE)
        vring.map(self.guest, DeadlyQueue, indirect=True, event_idx=True, inflight=notes)
        assert vring.queue is not None
        prepare(vring.queue, notes)  # type: ignore[arg-type]
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


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["pop", "take", "give", "push", "given"])
@pytest.mark.parametrize("deaths", [[1], [5], [8], [3, 1, 7, 2, 8, 1, 1]])
def test_every_request_is_answered_once_wherever_its_server_dies(
    guest: Guest, name: str, after: bool, deaths: list[int]
) -> None:
    for number in (*deaths, 0):

        def prepare(queue: SplitQueue, notes: InflightQueue, number: int = number) -> None:
            target = notes if name in ("take", "give", "given") else queue
            setattr(target, name, Deadly(target, name, number, after))

        vring = guest.server(prepare)
        guest.offer()
        try:
            while guest.sent < TOTAL or len(guest.free) < SIZE:
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
    def prepare(queue: SplitQueue, notes: InflightQueue) -> None:
        notes.given = Deadly(notes, "given", 1, True)  # type: ignore[method-assign]

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
