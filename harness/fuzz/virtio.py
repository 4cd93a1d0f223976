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
from typing import Any, Final

from harness.compose import Tree
from harness.fuse import abi
from harness.fuse.opcodes import BY_NUMBER
from harness.fuse.server import FuseServer
from harness.fuzz.case import Case, Deed, Outcome, Scribble, Step
from harness.fuzz.fuse import Broken, Client, Collector
from harness.fuzz.isolation import fork
from harness.fuzz.rings import (
    BUFFERS,
    CHAIN_MAX,
    DEVICE,
    DRIVER,
    GUEST,
    SIZE,
    SLOT,
    SLOTS,
    TABLES,
    Chain,
    GuestMaker,
    PackedGuestMaker,
)
from harness.mountspec import MountSpec
from harness.testbed.choices import Choices
from harness.virtio.memory import GuestError, GuestMemory, MemoryRegion
from harness.virtio.packed import PackedQueue
from harness.virtio.queue import SplitQueue
from harness.wire import PENDING

USER: Final = 0x7F00_0000_0000
GAP: Final = 1 << 32
"""Between the regions, for the VMM; to the guest they are one piece."""
_WANTED: Final = 0
_BUSY: Final = 1


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
                    place = DRIVER + dice.randrange(2 * 70)
                elif kind == 2:
                    place = TABLES + dice.randrange(16 * CHAIN_MAX * SLOTS)
                else:
                    place = BUFFERS + SLOT * dice.randrange(SLOTS) + dice.randrange(120)
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


class VirtioFuzzer:
    """Cases of a guest on one ring, split or packed, with a FuseServer behind it."""

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
        packed = choices.chance(50)
        settings = {
            "packed": packed,
            "size": choices.integer(8, 64) if packed else 1 << choices.integer(3, 6),
            "indirect": choices.chance(60),
            "event_idx": choices.chance(50),
            "regions": choices.one_of((1, 1, 3)),
        }

        def make(client: Client) -> GuestMaker:
            kind = PackedGuestMaker if packed else GuestMaker
            return kind(choices, settings["size"], bool(settings["indirect"]), client)

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
        else:
            maker.follow(device.base)


def _learn(chain: Chain, maker: GuestMaker, reply: bytes) -> None:
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
        settings = self._settings
        size = settings["size"]
        ring = (0, 16 * size)
        if settings["packed"]:
            self._written = [ring, (DEVICE, 4)]
            areas = [*self._written, (DRIVER, 4)]
        else:
            self._written = [(DEVICE, 6 + 8 * size)]
            areas = [*self._written, (DRIVER, 6 + 2 * size)]
        for start, length in areas:
            self._view[start : start + length] = bytes(length)
        # What still waits belongs to the old ring.
        self._completed: deque[tuple[int, int]] = deque()
        kind = PackedQueue if settings["packed"] else SplitQueue
        self._queue: PackedQueue | SplitQueue = kind(
            self._memory, size, (USER, USER + DRIVER, USER + DEVICE), kind.FIRST_BASE,
            indirect=settings["indirect"], event_idx=settings["event_idx"],
        )  # fmt: skip

    @property
    def base(self) -> int:
        """Where the device goes on in the ring."""
        return self._queue.base

    def serve(self, judged: bool) -> bool:
        """Serve what is available. Returns whether the ring is still good.

        ``judged``: nobody else writes meanwhile, so all that changes was written by us.
        """
        queue = self._queue
        before = bytearray(self._view) if judged else bytearray()
        allowed = list(self._written)
        intact = True

        def handle(
            request: Sequence[memoryview], reply: Sequence[memoryview], completion: _Completion
        ) -> int:
            self.chains += 1
            room = sum(map(len, reply))
            length = self._server.handle(request, reply, completion)
            name = _name_of(request)
            how = "" if judged else " scribbled"
            self._answers[name + how, "waits" if length == PENDING else ""] += 1
            if length != PENDING and not 0 <= length <= room:
                raise Broken(f"{length} bytes written to a chain with room for {room}")
            if judged:
                allowed.extend((self._place(view), len(view)) for view in reply if len(view))
            return length

        try:
            left = queue.pending()
            while left:
                completion = _Completion(self._completed)
                if isinstance(queue, SplitQueue):
                    left -= queue.serve(handle, completion, left)[0]
                    continue
                completion.head, request, reply = queue.pop()
                length = handle(request, reply, completion)
                if length != PENDING:
                    queue.push(completion.head, length)
                left -= 1
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


def _name_of(request: Sequence[memoryview]) -> str:
    row = BY_NUMBER.get(int.from_bytes(b"".join(request)[4:8], "little"))
    return row.name if row is not None else "unknown"


class _Completion:
    """Queues a request that waited, for the thread that owns the ring."""

    __slots__ = ("_completed", "head")

    def __init__(self, completed: deque[tuple[int, int]]) -> None:
        self._completed = completed
        self.head = 0

    def __call__(self, length: int) -> None:
        self._completed.append((self.head, length))
