"""Hostile guests: how they lay out requests in their memory, and offer them on a ring."""

from __future__ import annotations

from collections import deque
from struct import pack, pack_into
from typing import Final

from harness.fuzz.case import Deed, Request, Scribble, Step
from harness.fuzz.fuse import Client
from harness.fuzz.requests import RequestMaker
from harness.testbed.choices import Choices
from harness.virtio.chain import DESCRIPTOR, INDIRECT, NEXT, WRITE
from harness.virtio.packed import AVAIL as PACKED_AVAIL
from harness.virtio.packed import USED as PACKED_USED
from harness.virtio.packed import WRAP, PackedQueue

SIZE: Final = 3 * 0x18000
"""Of the memory, at ``GUEST``. The ring of descriptors is at its beginning."""
GUEST: Final = 0x4000_0000
DRIVER: Final = 0x1000
"""The available ring; of a packed ring, the driver event area."""
DEVICE: Final = 0x2000
"""The used ring; of a packed ring, the device event area."""
TABLES: Final = 0x4000
BUFFERS: Final = 0x8000
SLOT: Final = 0x3000
SLOTS: Final = (SIZE - BUFFERS) // SLOT
CHAIN_MAX: Final = 8
"""Descriptors of a chain."""
_ODD_ADDRESSES: Final = (0, GUEST - 1, GUEST + SIZE - 1, GUEST + SIZE, 1 << 32, (1 << 64) - 1)
_ODD_LENGTHS: Final = (0, 1, 15, SIZE, 1 << 31, (1 << 32) - 1)

Entries = list[tuple[int, int, int]]
"""Address, length and flags of each descriptor of a chain, NEXT left out."""


class Chain:
    """A chain as it was meant: the request in it, and where its reply goes."""

    __slots__ = ("place", "request", "room")

    def __init__(self, request: Request, place: int, room: int) -> None:
        self.request = request
        self.place = place
        self.room = room


class GuestMaker:
    """The guest: lays out requests and offers them. Whatever it does is bytes in memory.

    This one has a split ring.
    """

    def __init__(self, choices: Choices, size: int, indirect: bool, client: Client) -> None:
        self._choices = choices
        self._size = size
        self._indirect = indirect
        self._client = client
        self.requests = RequestMaker(choices)
        self._avail_idx = 0
        self._ready: deque[Step] = deque()
        self.honest: dict[int, Chain] = {}
        self.number = 0

    def next(self) -> Step:
        """What the guest does next."""
        if not self._ready:
            self._burst()
        return self._ready.popleft()

    def follow(self, base: int) -> None:
        """The device has served what was offered, and goes on at ``base``."""

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
        most = min(self._size // (1 if self._indirect else CHAIN_MAX), SLOTS, 4)
        for slot in range(choices.integer(1, most)):
            self._chain(slot)
        if choices.chance(6):
            self._vandalize()
        self._publish()
        self._do("scribbled" if choices.chance(15) else "serve")

    def _publish(self) -> None:
        """Have the device see what was offered."""
        choices = self._choices
        if choices.chance(3):
            self._avail_idx += choices.one_of((1, self._size, self._size + 1, 0x7FFF, 0xFFFF))
        self._avail_idx &= 0xFFFF
        self._add(DRIVER + 2, pack("<H", self._avail_idx))

    def _chain(self, slot: int) -> None:
        choices = self._choices
        step = self.requests.next()
        while not isinstance(step, Request):
            step = self.requests.next()
        data = self._client.assemble(step)[: SLOT // 2]
        room = min(sum(step.reply), SLOT // 2)
        place = BUFFERS + slot * SLOT
        answer = place + SLOT // 2
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
            self.honest[slot] = Chain(step, answer, room)
        else:
            entries = self._spoiled(entries)
        self._offer(slot, entries, honest)

    def _offer(self, slot: int, entries: Entries, honest: bool) -> None:
        """Lay out a chain, and put it into the ring for the next ``_publish``."""
        choices = self._choices
        head = slot if self._indirect else slot * CHAIN_MAX
        table = b"".join(
            DESCRIPTOR.pack(
                address, length, flags | (NEXT if index + 1 < len(entries) else 0), index + 1
            )
            for index, (address, length, flags) in enumerate(entries)
        )
        if self._indirect:
            self._add(16 * head, DESCRIPTOR.pack(*self._table(slot, table, honest), INDIRECT, 0))
        else:
            moved = bytearray(table)
            for index in range(len(entries)):
                following = (head + index + 1) % self._size
                pack_into("<H", moved, 16 * index + 14, following)
            self._add(16 * head, bytes(moved[: 16 * (self._size - head)]))
        if not honest and choices.chance(20):
            head = choices.one_of((self._size, 0xFFFF, choices.integer(0, self._size - 1)))
            self.honest.clear()
        self._add(DRIVER + 4 + 2 * (self._avail_idx % self._size), pack("<H", head))
        self._avail_idx += 1

    def _table(self, slot: int, table: bytes, honest: bool) -> tuple[int, int]:
        """Write the table of an indirect descriptor; its address, and its length as is said."""
        choices = self._choices
        at = TABLES + 16 * CHAIN_MAX * slot
        self._add(at, table)
        length = len(table)
        if not honest and choices.chance(30):
            length = choices.one_of((0, 8, 16, 24, 16 * self._size + 16, 1 << 31))
        return GUEST + at, length

    def _spoiled(self, entries: Entries) -> Entries:
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
            place = choices.one_of((0, DRIVER, DEVICE, TABLES, BUFFERS))
            place += choices.integer(0, 130)
            self._add(place, bytes(choices.integer(0, 255) for _ in range(choices.integer(1, 16))))


class PackedGuestMaker(GuestMaker):
    """A guest with a packed ring."""

    def __init__(self, choices: Choices, size: int, indirect: bool, client: Client) -> None:
        super().__init__(choices, size, indirect, client)
        self.follow(PackedQueue.FIRST_BASE)

    def follow(self, base: int) -> None:
        """See ``GuestMaker``. One that went astray in the ring comes back."""
        self._at, self._wrap = base & ~WRAP & 0xFFFF, base >> 15 & 1

    def restart(self) -> None:
        self.follow(PackedQueue.FIRST_BASE)
        self.honest.clear()

    def _publish(self) -> None:
        choices = self._choices
        if choices.chance(3):
            # As if the last few, or all but them, had been used already.
            self._at = choices.integer(0, self._size - 1)
            self._wrap = choices.integer(0, 1)
        if choices.chance(30):
            event = choices.one_of((0, self._at, self._size, self._at | WRAP, 0x7FFF, 0xFFFF))
            self._add(DRIVER, pack("<HH", event, choices.one_of((0, 1, 2, 3, 0xFFFF))))

    def _offer(self, slot: int, entries: Entries, honest: bool) -> None:
        choices = self._choices
        buffer_id = slot
        if not honest and choices.chance(20):
            buffer_id = choices.one_of((self._size, 0x7FFF, 0xFFFF, choices.integer(0, 0xFFFF)))
        if self._indirect:
            # In a table only WRITE counts, and ids are of no meaning.
            noise = 0 if honest else choices.integer(0, 0xFFFF)
            table = b"".join(
                DESCRIPTOR.pack(address, length, noise, flags | noise & NEXT)
                for address, length, flags in entries
            )
            entries = [(*self._table(slot, table, honest), INDIRECT)]
            if not honest and choices.chance(10):
                # An indirect descriptor as a part of a chain.
                entries.append(entries[0])
        for index, (address, length, flags) in enumerate(entries):
            if index + 1 < len(entries):
                flags |= NEXT
            elif not honest and choices.chance(10):
                # It goes on with what is not available, or not there at all.
                flags |= NEXT
            flags |= PACKED_AVAIL if self._wrap else PACKED_USED
            if not honest and choices.chance(5):
                flags ^= choices.one_of((PACKED_AVAIL, PACKED_USED, PACKED_AVAIL | PACKED_USED))
            self._add(16 * self._at, DESCRIPTOR.pack(address, length, buffer_id, flags))
            self._at += 1
            if self._at == self._size:
                self._at = 0
                self._wrap ^= 1
