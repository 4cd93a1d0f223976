"""Rings of a hostile guest: descriptors, indices and requests that nobody vouches for, in memory
that another process scribbles into while they are served.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import random
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from struct import pack, pack_into
from typing import Any, Final

from harness.compose import Tree
from harness.fuse import abi
from harness.fuse.server import FuseServer
from harness.fuzz.case import Case, Deed, Outcome, Request, Scribble, Step
from harness.fuzz.fuse import Broken, Client, Collector
from harness.fuzz.isolation import fork
from harness.fuzz.requests import RequestMaker
from harness.mountspec import MountSpec
from harness.testbed.choices import Choices
from harness.virtio.chain import DESCRIPTOR, INDIRECT, NEXT, WRITE
from harness.virtio.memory import GuestError, GuestMemory, MemoryRegion
from harness.virtio.queue import SplitQueue
from harness.wire import PENDING

SIZE: Final = 3 * 0x18000
GUEST: Final = 0x4000_0000
USER: Final = 0x7F00_0000_0000
GAP: Final = 1 << 32
"""Between the regions, for the VMM; to the guest they are one piece."""
_AVAIL: Final = 0x1000
_USED: Final = 0x2000
_TABLES: Final = 0x4000
_BUFFERS: Final = 0x8000
_SLOT: Final = 0x3000
_SLOTS: Final = (SIZE - _BUFFERS) // _SLOT
_MOST: Final = 8
"""Descriptors of a chain."""
_WANTED: Final = 0
_BUSY: Final = 1
_ODD_ADDRESSES: Final = (0, GUEST - 1, GUEST + SIZE - 1, GUEST + SIZE, 1 << 32, (1 << 64) - 1)
_ODD_LENGTHS: Final = (0, 1, 15, SIZE, 1 << 31, (1 << 32) - 1)


class Scribbler:
    """A process that shares the memory and writes into it at random, while it is told to.

    Linux: another CPU of the guest. What it does cannot be repeated.
    """

    def __init__(self, view: memoryview) -> None:
        self._control = mmap.mmap(-1, mmap.PAGESIZE)
        parent = os.getpid()
        self._child = fork()
        if not self._child:
            try:
                if os.getppid() == parent:
                    self._run(view)
            finally:
                os._exit(0)

    def _run(self, view: memoryview) -> None:
        dice = random.Random(1)
        control = self._control
        words = view.cast("H")
        while True:
            control[_BUSY] = True
            # A system call orders what both sides store before what they read.
            time.sleep(0)
            if not control[_WANTED]:
                control[_BUSY] = False
                time.sleep(0.0002)
                continue
            for _ in range(100):
                kind = dice.randrange(4)
                if kind == 0:
                    place = dice.randrange(16 * 64)
                elif kind == 1:
                    place = _AVAIL + dice.randrange(2 * 70)
                elif kind == 2:
                    place = _TABLES + dice.randrange(16 * _MOST * _SLOTS)
                else:
                    place = _BUFFERS + _SLOT * dice.randrange(_SLOTS) + dice.randrange(120)
                words[place >> 1] = dice.choice((0, 1, 2, 3, 8, 40, 0x4000, 0xFFFF))

    def scribble(self, on: bool) -> None:
        """Begin, or end: returns when it has."""
        self._control[_WANTED] = on
        time.sleep(0)
        while bool(self._control[_BUSY]) != on:
            time.sleep(0)

    def close(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._control.close()


class _Chain:
    """A chain as it was meant: the request in it, and where its reply goes."""

    __slots__ = ("head", "place", "request", "room")

    def __init__(self, request: Request, head: int, place: int, room: int) -> None:
        self.request = request
        self.head = head
        self.place = place
        self.room = room


class GuestMaker:
    """The guest: lays out requests and offers them. Whatever it does is bytes in memory."""

    def __init__(self, choices: Choices, size: int, indirect: bool, client: Client) -> None:
        self._choices = choices
        self._size = size
        self._indirect = indirect
        self._client = client
        self.requests = RequestMaker(choices)
        self._avail_idx = 0
        self._ready: deque[Step] = deque()
        self.honest: dict[int, _Chain] = {}
        self.number = 0

    def next(self) -> Step:
        """What the guest does next."""
        if not self._ready:
            self._burst()
        return self._ready.popleft()

    def restart(self) -> None:
        """The rings were set up anew, empty."""
        self._avail_idx = 0
        self.honest.clear()

    def _add(self, place: int, data: bytes) -> None:
        self.number += 1
        self._ready.append(Scribble(self.number, place, data))

    def _do(self, name: str) -> None:
        self.number += 1
        self._ready.append(Deed(self.number, name))

    def _burst(self) -> None:
        """A few chains; the device is told; now and then all of it is wrong."""
        choices = self._choices
        self.honest.clear()
        per_chain = 1 if self._indirect else _MOST
        most = min(self._size // per_chain, _SLOTS, 4)
        for slot in range(choices.integer(1, most)):
            self._chain(slot, slot * per_chain)
        if choices.chance(6):
            self._vandalize()
        if choices.chance(3):
            self._avail_idx += choices.one_of((1, self._size, self._size + 1, 0x7FFF, 0xFFFF))
        self._avail_idx &= 0xFFFF
        self._add(_AVAIL + 2, pack("<H", self._avail_idx))
        self._do("scribbled" if choices.chance(15) else "serve")

    def _chain(self, slot: int, head: int) -> None:
        choices = self._choices
        step = self.requests.next()
        while not isinstance(step, Request):
            step = self.requests.next()
        data = self._client.assemble(step)[: _SLOT // 2]
        room = min(sum(step.reply), _SLOT // 2)
        place = _BUFFERS + slot * _SLOT
        answer = place + _SLOT // 2
        self._add(place, data)
        buffers = [(place, 0, data[:40]), (place + 40, 0, data[40:])]
        entries = [(GUEST + at, len(piece), flags) for at, flags, piece in buffers if piece]
        if choices.chance(20):
            entries = [(GUEST + place, len(data), 0)]
        if room:
            front = min(room, 16)
            entries.append((GUEST + answer, front, WRITE))
            if room > front:
                entries.append((GUEST + answer + front, room - front, WRITE))
        honest = not choices.chance(12)
        if honest:
            self.honest[slot] = _Chain(step, head, answer, room)
        else:
            entries = self._spoiled(entries)
        table = b"".join(
            DESCRIPTOR.pack(
                address, length, flags | (NEXT if index + 1 < len(entries) else 0), index + 1
            )
            for index, (address, length, flags) in enumerate(entries)
        )
        if self._indirect:
            at = _TABLES + 16 * _MOST * slot
            self._add(at, table)
            length = len(table)
            if not honest and choices.chance(30):
                length = choices.one_of((0, 8, 16, 24, 16 * self._size + 16, 1 << 31))
            self._add(16 * head, DESCRIPTOR.pack(GUEST + at, length, INDIRECT, 0))
        else:
            moved = bytearray(table)
            for index in range(len(entries)):
                following = (head + index + 1) % self._size
                pack_into("<H", moved, 16 * index + 14, following)
            self._add(16 * head, bytes(moved[: 16 * (self._size - head)]))
        if not honest and choices.chance(20):
            head = choices.one_of((self._size, 0xFFFF, choices.integer(0, self._size - 1)))
            self.honest.clear()
        self._add(_AVAIL + 4 + 2 * (self._avail_idx % self._size), pack("<H", head))
        self._avail_idx += 1

    def _spoiled(self, entries: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        choices = self._choices
        kind = choices.integer(0, 5)
        index = choices.integer(0, len(entries) - 1)
        address, length, flags = entries[index]
        if kind == 0:
            entries[index] = (choices.one_of(_ODD_ADDRESSES), length, flags)
        elif kind == 1:
            entries[index] = (address, choices.one_of(_ODD_LENGTHS), flags)
        elif kind == 2:
            entries[index] = (address, length, choices.integer(0, 7))
        elif kind == 3:
            # Across a border of regions.
            entries[index] = (GUEST + SIZE // 3 - 8, max(length, 16), flags)
        elif kind == 4:
            # Request and reply in the same place.
            entries = [(entries[0][0], size, flags) for _, size, flags in entries]
        else:
            entries = entries[index:] or entries
        return entries

    def _vandalize(self) -> None:
        choices = self._choices
        self.honest.clear()
        for _ in range(choices.integer(1, 6)):
            place = choices.one_of((0, _AVAIL, _USED, _TABLES, _BUFFERS))
            place += choices.integer(0, 130)
            self._add(place, bytes(choices.integer(0, 255) for _ in range(choices.integer(1, 16))))


class VirtioFuzzer:
    """Cases of a guest on one split ring, with a FuseServer behind it."""

    target: Final = "virtio"

    def __init__(self, scratch: Path | None = None) -> None:
        """``scratch`` is not needed: guests here see a tmpfs."""
        self._fd = os.memfd_create("fuzzed-guest", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, SIZE)
        self._mapping = mmap.mmap(self._fd, SIZE)
        self.view = memoryview(self._mapping)
        self._scribbler = Scribbler(self.view)
        self._log = Collector()
        self._logger = logging.getLogger()
        self._logger.addHandler(self._log)

    def close(self) -> None:
        self._logger.removeHandler(self._log)
        self._scribbler.close()
        self.view.release()
        self._mapping.close()
        os.close(self._fd)

    def run(self, choices: Choices, inputs: int) -> Outcome:
        """See ``Fuzzer``."""
        settings = {
            "size": 1 << choices.integer(3, 6),
            "indirect": choices.chance(60),
            "event_idx": choices.chance(50),
            "regions": choices.one_of((1, 1, 3)),
        }

        def make(client: Client) -> GuestMaker:
            return GuestMaker(choices, settings["size"], bool(settings["indirect"]), client)

        return self._run(settings, None, inputs, make)

    def replay(self, case: Case) -> Outcome:
        """See ``Fuzzer``."""
        return self._run(case.settings, case.steps, len(case.steps), None)

    def _run(
        self,
        settings: Mapping[str, Any],
        given: Sequence[Step] | None,
        inputs: int,
        make: Callable[[Client], GuestMaker] | None,
    ) -> Outcome:
        steps: list[Step] = []
        answers: Counter[tuple[str, str]] = Counter()
        failure = ""
        self._log.take()
        self.view[:] = bytes(SIZE)
        before = len(os.listdir("/proc/self/fd"))
        tmpfs = MountSpec("root", "tmpfs", "/", options=(("size", "4m"), ("nr_inodes", "1000")))
        try:
            with Tree([tmpfs]) as tree:
                server = FuseServer(tree.vfs, tree.root)
                client = Client(server, self._log)
                device = _Device(self, settings, server, answers)
                maker = make(client) if make is not None else None
                try:
                    following = iter(given) if given is not None else None
                    while device.chains < inputs:
                        step = next(following, None) if following is not None else None
                        if maker is not None:
                            step = maker.next()
                        if step is None:
                            break
                        steps.append(step)
                        if isinstance(step, Scribble):
                            self.view[step.place : step.place + len(step.data)] = step.data
                        elif isinstance(step, Deed):
                            self._serve(step.name, device, maker)
                            client.check()
                    server.reset()
                    client.finish()
                finally:
                    server.reset()
                    device.close()
            if len(os.listdir("/proc/self/fd")) != before:
                raise Broken("descriptors were left open")
        except Broken as error:
            failure = f"Broken: {error}"
        except Exception:
            failure = traceback.format_exc()
        return Outcome(Case(self.target, settings, tuple(steps)), device.chains, answers, failure)

    def _serve(self, name: str, device: _Device, maker: GuestMaker | None) -> None:
        scribbled = name == "scribbled"
        if scribbled:
            self._scribbler.scribble(True)
        try:
            intact = device.serve(judged=not scribbled)
        finally:
            if scribbled:
                self._scribbler.scribble(False)
        if self._log.texts:
            raise Broken(f"logged:\n{self._log.take()}")
        if maker is None:
            return
        if intact and not scribbled:
            for chain in maker.honest.values():
                _learn(chain, maker, bytes(self.view[chain.place : chain.place + chain.room]))
        if scribbled or not intact:
            device.set_up()
            maker.restart()


def _learn(chain: _Chain, maker: GuestMaker, reply: bytes) -> None:
    """An honest chain was served: its own reply is in its buffers, or it waits."""
    if len(reply) < 16:
        return
    length, error, unique = abi.OUT_HEADER.unpack_from(reply)
    if unique == chain.request.unique and not error and 16 <= length <= len(reply):
        maker.requests.learn(chain.request, reply[16:length])


class _Device:
    """What a vhost-user backend does with one ring, and a record of what it may write to."""

    def __init__(
        self,
        fuzzer: VirtioFuzzer,
        settings: Mapping[str, Any],
        server: FuseServer,
        answers: Counter[tuple[str, str]],
    ) -> None:
        self._view = fuzzer.view
        self._settings = settings
        self._server = server
        self._answers = answers
        self.chains = 0
        self._completed: deque[tuple[int, int]] = deque()
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(fuzzer.view))
        self._memory = GuestMemory()
        step = SIZE // settings["regions"]
        for index in range(settings["regions"]):
            start = index * step
            region = MemoryRegion(fuzzer._fd, GUEST + start, step, USER + index * GAP, start)
            self._memory.add(region)
        self.set_up()

    def close(self) -> None:
        del self._queue
        self._memory.clear()

    def set_up(self) -> None:
        """The frontend starts the ring, empty."""
        size = self._settings["size"]
        self._view[_AVAIL : _AVAIL + 6 + 2 * size] = bytes(6 + 2 * size)
        self._view[_USED : _USED + 6 + 8 * size] = bytes(6 + 8 * size)
        self._completed.clear()
        self._queue = SplitQueue(
            self._memory, size, (USER, USER + _AVAIL, USER + _USED), 0,
            indirect=self._settings["indirect"], event_idx=self._settings["event_idx"],
        )  # fmt: skip

    def serve(self, judged: bool) -> bool:
        """Serve what is available. Returns whether the ring is still good.

        ``judged``: nobody else writes meanwhile, so all that changes was written by us.
        """
        queue = self._queue
        before = bytearray(self._view) if judged else bytearray()
        allowed: list[tuple[int, int]] = [(_USED, 6 + 8 * self._settings["size"])]
        intact = True

        def handle(
            request: Sequence[memoryview], reply: Sequence[memoryview], completion: _Completion
        ) -> int:
            self.chains += 1
            room = sum(map(len, reply))
            length = self._server.handle(request, reply, completion)
            self._answers["chain", "waits" if length == PENDING else ""] += 1
            if length != PENDING and not 0 <= length <= room:
                raise Broken(f"{length} bytes written to a chain with room for {room}")
            if judged:
                allowed.extend((self._place(view), len(view)) for view in reply if len(view))
            return length

        try:
            left = queue.pending()
            while left:
                left -= queue.serve(handle, _Completion(self._completed), left)[0]
        except GuestError as error:
            self._answers["chain", type(error).__name__] += 1
            intact = False
        while self._completed and intact:
            queue.push(*self._completed.popleft())
        queue.must_signal()
        queue.enable_kicks()
        if judged:
            for start, size in allowed:
                before[start : start + size] = self._view[start : start + size]
            if before != self._view:
                place = next(at for at in range(SIZE) if before[at] != self._view[at])
                raise Broken(f"the device wrote to {place:#x}, which nobody gave it to write to")
        return intact

    def _place(self, view: memoryview) -> int:
        # A view of the device's own mapping of the same memory.
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        for region in self._memory.regions:
            start = address - ctypes.addressof(ctypes.c_char.from_buffer(region.view))
            if 0 <= start < region.size:
                return start + region.guest_address - GUEST
        raise Broken("a segment lies outside of memory")


class _Completion:
    """Queues a request that waited, for the thread that owns the ring."""

    __slots__ = ("_completed", "head")

    def __init__(self, completed: deque[tuple[int, int]]) -> None:
        self._completed = completed
        self.head = 0

    def __call__(self, length: int) -> None:
        self._completed.append((self.head, length))
