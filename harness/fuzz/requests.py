"""Random FUSE requests by a client that knows the protocol, and what it was given so far."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from struct import Struct, pack
from typing import Final

from harness.fuse import abi
from harness.fuse.opcodes import BY_NUMBER, DATA_IN, OPCODES, SILENT
from harness.fuzz import words
from harness.fuzz.case import HANDLE, NODE, Deed, Message, Part, Ref, Request
from harness.testbed.choices import Choices

OP: Final = {row.name: row.number for row in OPCODES}
ALL_FLAGS: Final = (1 << 45) - 1
_EOF: Final = (1 << 63) - 1
_Q: Final = Struct("<Q")
_KEPT: Final = 48
"""As many nodes and handles are remembered, so that later requests meet."""

Body = tuple[Part, ...]
Made = tuple[int | Ref, Body, int]
"""The node asked about, the body, and the room that the reply needs after its header."""

DEEDS: Final = (
    ("swap", 1), ("unlink", 1), ("write", 1), ("truncate", 1), ("mkdir", 1), ("leave", 1),
    ("come", 1), ("chmod", 1), ("mount", 1), ("umount", 1), ("remount", 0), ("task_unlink", 1),
    ("task_rename", 2),
)  # fmt: skip
"""What others may do in between, each with the number of names it takes."""

_WEIGHTS: Final = (
    ("LOOKUP", 14), ("FORGET", 4), ("GETATTR", 4), ("SETATTR", 8), ("READLINK", 2), ("SYMLINK", 3),
    ("MKNOD", 4), ("MKDIR", 5), ("UNLINK", 4), ("RMDIR", 3), ("RENAME", 3), ("LINK", 4),
    ("OPEN", 9), ("READ", 8), ("WRITE", 8), ("STATFS", 1), ("RELEASE", 4), ("FSYNC", 1),
    ("SETXATTR", 4), ("GETXATTR", 3), ("LISTXATTR", 2), ("REMOVEXATTR", 2), ("FLUSH", 2),
    ("OPENDIR", 5), ("READDIR", 5), ("RELEASEDIR", 2), ("FSYNCDIR", 1), ("GETLK", 2), ("SETLK", 3),
    ("SETLKW", 3), ("ACCESS", 1), ("CREATE", 8), ("INTERRUPT", 3), ("BMAP", 1), ("IOCTL", 2),
    ("POLL", 2), ("NOTIFY_REPLY", 1), ("BATCH_FORGET", 2), ("FALLOCATE", 3), ("READDIRPLUS", 5),
    ("RENAME2", 4), ("LSEEK", 2), ("COPY_FILE_RANGE", 2), ("SETUPMAPPING", 1),
    ("REMOVEMAPPING", 1), ("SYNCFS", 1), ("TMPFILE", 2), ("STATX", 1), ("COPY_FILE_RANGE_64", 1),
)  # fmt: skip
ENTRY_REPLIES: Final = frozenset(
    ("LOOKUP", "SYMLINK", "MKNOD", "MKDIR", "LINK", "CREATE", "TMPFILE")
)
"""What is answered with a node; with 144 bytes, with a handle too."""
_BIRTH_AND_DEATH: Final = (OP["INIT"], OP["INIT"], OP["DESTROY"])
_DECK: Final = tuple(OP[name] for name, weight in _WEIGHTS for _ in range(weight))


def nodes_listed(payload: bytes, plus: bool = True) -> list[tuple[int, int]]:
    """Node id and mode of each entry of a READDIRPLUS reply that has them; of READDIR's none.

    Raises: ValueError for records that are none.
    """
    found = []
    fixed = abi.DIRENTPLUS_SIZE if plus else abi.DIRENT_SIZE
    at = 0
    while at < len(payload):
        if len(payload) - at < fixed:
            raise ValueError(f"half a record at {at} of {len(payload)}")
        if plus and (nodeid := int.from_bytes(payload[at : at + 8], "little")):
            found.append((nodeid, int.from_bytes(payload[at + 100 : at + 104], "little")))
        length = int.from_bytes(payload[at + fixed - 8 : at + fixed - 4], "little")
        name = payload[at + fixed : at + fixed + length]
        if not name or b"/" in name or b"\0" in name:
            raise ValueError(f"a record at {at} of {len(payload)} with the name {name!r}")
        at += fixed + (length + 7 & ~7)
    if at != len(payload):
        raise ValueError(f"the last record ends at {at} of {len(payload)}")
    return found


class RequestMaker:
    """The client: what to send next follows from ``choices`` and from the replies to what it sent.

    Most requests are right, so that the tree gets deep and full; a part are wrong in one way.
    """

    def __init__(self, choices: Choices, births: int = 3) -> None:
        """``births`` of 1000 requests begin or end a session."""
        self._choices = choices
        self._births = births
        self.number = 0
        self._started = False
        self._directories: list[int | Ref] = []
        self._files: list[int | Ref] = []
        self._others: list[int | Ref] = []
        self._forgotten: list[int | Ref] = []
        self._opened: list[Ref] = []
        self._listed: list[Ref] = []
        self._closed: list[Ref] = []
        self._uniques: list[int] = []
        names = ("INIT", "DESTROY", *(name for name, _ in _WEIGHTS))
        self._makers: dict[int, Callable[[], Made]] = {
            OP[name]: getattr(self, f"_{name.lower()}") for name in names
        }
        self._restart()

    def _restart(self) -> None:
        for known in (self._files, self._others, self._forgotten):
            known.clear()
        self._directories[:] = [abi.ROOT_ID]
        for opened in (self._opened, self._listed, self._closed):
            opened.clear()

    # What a test of the server does: next(), then learn() from its reply.

    def next(self) -> Request | Deed | Message:
        """What happens next."""
        choices = self._choices
        self.number += 1
        roll = choices.integer(0, 999)
        if roll < 8:
            return self._deed()
        if roll < 12:
            return self._noise()
        lives = self._started or choices.chance(20)
        opcode = choices.one_of(_DECK if lives and roll >= 12 + self._births else _BIRTH_AND_DEATH)
        if self.number == 1 and choices.integer(0, 49):
            opcode = OP["INIT"]
        nodeid, body, room = self._makers[opcode]()
        number = self.number
        row = BY_NUMBER[opcode]
        reply = () if row.kind == SILENT else (16, room) if room else (16,)
        request = Request(number, opcode, nodeid, body, 2 * number, reply)
        if row.kind == DATA_IN:
            request = request._replace(cuts=(40, 80))
        elif not body:
            request = request._replace(cuts=())
        if roll < 800:
            return request
        if roll < 880:
            return request._replace(
                ids=(choices.one_of(words.IDS), choices.one_of(words.IDS), number, 0)
            )
        return self._spoiled(request, room)

    def learn(self, request: Request, payload: bytes) -> None:
        """``request`` succeeded, with ``payload`` after the reply's header."""
        row = BY_NUMBER.get(request.opcode)
        name = row.name if row is not None else ""
        number = request.number
        if name in ENTRY_REPLIES and len(payload) >= 128 and payload[:8] != bytes(8):
            self._meet(Ref(NODE, number), int.from_bytes(payload[100:104], "little"))
            if len(payload) >= 144:
                self._remember(self._opened, Ref(HANDLE, number))
        elif name == "OPEN":
            self._remember(self._opened, Ref(HANDLE, number))
        elif name == "OPENDIR":
            self._remember(self._listed, Ref(HANDLE, number))
        elif name == "READDIRPLUS":
            for index, (_, mode) in enumerate(nodes_listed(payload)):
                self._meet(Ref(NODE, number, index), mode)
        elif name in ("INIT", "DESTROY"):
            self._restart()
            # An INIT that is answered with our own version only is not the last.
            self._started = name == "INIT" and payload[8:12] != bytes(4)

    def waits(self, request: Request) -> None:
        """``request`` is not answered yet."""
        self._uniques.append(request.unique)
        del self._uniques[:-8]

    def _meet(self, ref: Ref, mode: int) -> None:
        kind = stat.S_IFMT(mode)
        known = {stat.S_IFDIR: self._directories, stat.S_IFREG: self._files}
        self._remember(known.get(kind, self._others), ref)

    def _remember(self, known: list[Ref] | list[int | Ref], ref: Ref) -> None:
        if len(known) >= _KEPT:
            # The oldest fall off, but for the root: never forgotten, never released.
            del known[1]
        known.append(ref)

    # What is wrong

    def _spoiled(self, request: Request, room: int) -> Request:
        choices = self._choices
        kind = choices.integer(0, 11)
        size = 8 * len(request.body) + 8
        if kind == 0:
            return request._replace(nodeid=self._bad_node())
        if kind == 1:
            return request._replace(
                length=choices.one_of((-1, 1, 8, -8, 40, -40, 4096, 1 << 20, 1 << 31, -(1 << 31)))
            )
        if kind == 2:
            cuts = tuple(sorted(choices.integer(0, 120) for _ in range(choices.integer(0, 4))))
            return request._replace(cuts=cuts)
        if kind == 3:
            return request._replace(reply=self._odd_room(room))
        if kind == 4:
            return request._replace(ids=(1000, 1000, 1, choices.one_of((1, 2, 3, 65535))))
        if kind == 5:
            groups = [choices.one_of(words.IDS) for _ in range(choices.integer(0, 3))]
            data = pack(f"<I{len(groups)}I", len(groups), *groups)
            lied = choices.one_of((0, 0, 0, 1, -1, 1 << 20))
            data = pack("<II", 8 + len(data) + lied, abi.EXT_GROUPS) + data
            data += bytes(-len(data) % 8)
            ids = (1000, 1000, 1, len(data) // 8)
            return request._replace(body=(*request.body, data), ids=ids)
        if kind == 6:
            start = choices.integer(0, size)
            return request._replace(edits=((start, 1 << 30, b""),))
        if kind == 7:
            data = self._bytes(choices.integer(1, 40))
            return request._replace(body=(*request.body, data))
        if kind == 8 and self._uniques:
            return request._replace(unique=choices.one_of(self._uniques))
        if kind == 9:
            return request._replace(opcode=choices.one_of((0, 7, 19, 48, 49, 54, 63, 64, 4096)))
        start = 8 * choices.integer(0, 7)
        value = choices.one_of(words.ODD_64)
        if kind == 10:
            return request._replace(edits=((start, start + 8, _Q.pack(value)),))
        start += choices.one_of((0, 4))
        value32 = choices.one_of(words.ODD_32)
        return request._replace(edits=((start, start + 4, pack("<I", value32)),))

    def _odd_room(self, room: int) -> tuple[int, ...]:
        choices = self._choices
        kind = choices.integer(0, 5)
        if kind == 0:
            return choices.one_of(((), (15,), (16,), (1,), (8, 8)))
        if kind == 1:
            return (16 + room,)
        if kind == 2:
            return tuple(choices.integer(1, 40) for _ in range(choices.integer(1, 8)))
        if kind == 3:
            return (16, max(room - choices.integer(1, 8), 1))
        if kind == 4:
            return (7, 9, *(1,) * 8, room + 1)
        return (16, 4096, 4096, room + 1)

    def _noise(self) -> Message:
        """What is no request at all."""
        return Message(self.number, self._bytes(self._choices.integer(0, 120)))

    def _deed(self) -> Deed:
        choices = self._choices
        name, count = choices.one_of(DEEDS)
        args = tuple(choices.one_of(words.NAMES).decode() for _ in range(count))
        return Deed(self.number, name, args)

    def _bytes(self, size: int) -> bytes:
        return bytes(self._choices.integer(0, 255) for _ in range(size))

    def _bad_node(self) -> int | Ref:
        choices = self._choices
        kind = choices.integer(0, 3)
        if kind == 0 and self._forgotten:
            return choices.one_of(self._forgotten)
        if kind == 1 and self._opened:
            return choices.one_of(self._opened)
        if kind == 2:
            return choices.integer(1, 200)
        return choices.one_of(words.ODD_64)

    # What requests are made of

    def _directory(self) -> int | Ref:
        choices = self._choices
        if choices.chance(4):
            return self._any_node()
        return choices.one_of(self._directories)

    def _file(self) -> int | Ref:
        if self._files and not self._choices.chance(6):
            return self._choices.one_of(self._files)
        return self._any_node()

    def _any_node(self) -> int | Ref:
        return self._choices.one_of(self._files + self._others + self._directories)

    def _handle(self) -> int | Ref:
        choices = self._choices
        if self._opened and not choices.chance(4):
            return choices.one_of(self._opened)
        return self._bad_handle()

    def _directory_handle(self) -> int | Ref:
        choices = self._choices
        if self._listed and not choices.chance(4):
            return choices.one_of(self._listed)
        return self._bad_handle()

    def _bad_handle(self) -> int | Ref:
        choices = self._choices
        known = self._closed + self._opened + self._listed
        if known and choices.chance(70):
            return choices.one_of(known)
        return choices.one_of(words.ODD_64)

    @staticmethod
    def _number(value: int | Ref) -> Part:
        return value if isinstance(value, Ref) else _Q.pack(value & (1 << 64) - 1)

    def _name(self) -> bytes:
        choices = self._choices
        if choices.chance(6):
            end = b"" if choices.chance(20) else b"\0"
            return choices.one_of(words.ODD_NAMES) + end
        if choices.chance(15):
            return choices.one_of((b"host\0", b"dev\0", b"null\0", b"zero\0", b"out\0", b"proc\0"))
        return choices.one_of(words.NAMES) + b"\0"

    def _size(self) -> int:
        choices = self._choices
        if choices.chance(3):
            return choices.one_of((1 << 17, (1 << 17) + 1, 1 << 20, (1 << 20) + 1, 1 << 31))
        return choices.one_of(words.SIZES)

    def _offset(self) -> int:
        choices = self._choices
        return choices.one_of(words.ODD_64) if choices.chance(5) else choices.one_of(words.OFFSETS)

    # One for each opcode: (node, body, room for the reply after its header)

    def _init(self) -> Made:
        choices = self._choices
        flags = ALL_FLAGS
        minor = 45
        if choices.chance(50):
            minor = choices.integer(26, 46)
            flags = choices.integer(0, ALL_FLAGS) | choices.one_of((0, abi.INIT_EXT))
        major = choices.one_of((7, 7, 7, 7, 7, 7, 8, 6, 0xFFFFFFFF))
        if self.number == 1:
            major, minor = 7, max(minor, 27)
        low = flags & 0xFFFFFFFF
        return 0, (abi.INIT_EXT_IN.pack(major, minor, 1 << 17, low, flags >> 32),), 64

    def _destroy(self) -> Made:
        return 0, (), 0

    def _lookup(self) -> Made:
        return self._directory(), (self._name(),), 128

    def _forget(self) -> Made:
        node = self._forgettable()
        return node, (_Q.pack(self._choices.one_of((1, 1, 1, 1, 2, 0, 1 << 40, (1 << 64) - 1))),), 0

    def _forgettable(self) -> int | Ref:
        """A node that the client gives up; mostly its only lookup."""
        choices = self._choices
        known = choices.one_of((self._files, self._others, self._directories))
        if len(known) < 2 or choices.chance(5):
            return self._bad_node()
        node = known.pop(choices.integer(1, len(known) - 1))
        self._forgotten.append(node)
        del self._forgotten[:-8]
        return node

    def _batch_forget(self) -> Made:
        choices = self._choices
        count = choices.integer(0, 6)
        said = choices.one_of((count, count, count, count + 1, 0, 0xFFFFFFFF))
        parts: list[Part] = [abi.BATCH_FORGET_IN.pack(said, 0)]
        for _ in range(count):
            parts += [self._number(self._forgettable()), _Q.pack(choices.one_of((1, 1, 1, 0, 9)))]
        return 0, tuple(parts), 0

    def _interrupt(self) -> Made:
        choices = self._choices
        uniques = (*self._uniques, 2 * self.number + 2, 2 * choices.integer(0, 500))
        return 0, (_Q.pack(choices.one_of(uniques)),), 0

    def _notify_reply(self) -> Made:
        return self._any_node(), (bytes(40),), 0

    def _getattr(self) -> Made:
        return self._any_node(), (abi.GETATTR_IN.pack(0, 0, 0),), 104

    def _setattr(self) -> Made:
        choices = self._choices
        valid = 0
        for _ in range(choices.integer(0, 3)):
            valid |= 1 << choices.integer(0, 11)
        size = choices.one_of((0, 1, 4096, 5000, 100000, *((1 << 63) - 1, 1 << 63, 1 << 40)))
        seconds = choices.one_of((0, 1, -1, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)))
        nanoseconds = choices.one_of((0, 999_999_999, 1_000_000_000, 0x3FFFFFFF, 0x3FFFFFFE))
        tail = pack(
            "<QQqqqIIIIIIII", size, 0, seconds, seconds, 0, nanoseconds, nanoseconds, 0,
            choices.one_of(words.MODES), 0, choices.one_of(words.IDS), choices.one_of(words.IDS), 0,
        )  # fmt: skip
        return self._file(), (pack("<II", valid, 0), self._number(self._handle()), tail), 104

    def _readlink(self) -> Made:
        nodes = self._others or self._files
        return self._choices.one_of(nodes) if nodes else 1, (), 4096

    def _symlink(self) -> Made:
        target = self._choices.one_of(words.TARGETS)
        return self._directory(), (self._name() + target + b"\0",), 128

    def _mknod(self) -> Made:
        choices = self._choices
        mode = choices.one_of(words.KINDS) | choices.one_of(words.MODES)
        arguments = abi.MKNOD_IN.pack(mode, choices.one_of(words.RDEVS), 0o22, 0)
        return self._directory(), (arguments + self._name(),), 128

    def _mkdir(self) -> Made:
        arguments = abi.MKDIR_IN.pack(self._choices.one_of(words.MODES), 0o22)
        return self._directory(), (arguments + self._name(),), 128

    def _unlink(self) -> Made:
        return self._directory(), (self._name(),), 0

    _rmdir = _unlink

    def _rename(self) -> Made:
        names = self._name() + self._name()
        return self._directory(), (self._number(self._directory()), names), 0

    def _rename2(self) -> Made:
        flags = self._choices.one_of((0, 1, 2, 4, 3, 5, 6, 7, 8, 0xFFFFFFFF))
        names = self._name() + self._name()
        return self._directory(), (self._number(self._directory()), pack("<II", flags, 0), names), 0

    def _link(self) -> Made:
        return self._directory(), (self._number(self._file()), self._name()), 128

    def _opening(self) -> int:
        return self._choices.one_of(words.OPEN_FLAGS)

    def _open(self) -> Made:
        flags = self._choices.one_of((0, 0, 1, 0xFFFFFFFF))
        return self._file(), (abi.OPEN_IN.pack(self._opening(), flags),), 16

    def _opendir(self) -> Made:
        return self._directory(), (abi.OPEN_IN.pack(self._opening(), 0),), 16

    def _create(self) -> Made:
        choices = self._choices
        mode = choices.one_of(words.KINDS) | choices.one_of(words.MODES)
        arguments = abi.CREATE_IN.pack(self._opening(), mode, 0o22, choices.one_of((0, 0, 1)))
        return self._directory(), (arguments + self._name(),), 144

    _tmpfile = _create

    def _read(self) -> Made:
        size = self._size()
        flags = self._choices.one_of((0, 0, os.O_NONBLOCK, 0xFFFFFFFF))
        tail = pack("<QIIQII", self._offset(), size, 0, 0, flags, 0)
        return self._file(), (self._number(self._handle()), tail), min(size, 1 << 20)

    def _write(self) -> Made:
        choices = self._choices
        size = min(self._size(), 1 << 20)
        said = size + choices.one_of((0, 0, 0, 0, 0, 0, 0, 0, 1, -1))
        how = choices.one_of((0, 0, 0, 1, 4, 5, 0xFFFFFFFF))
        flags = choices.one_of((0, 0, os.O_APPEND, os.O_NONBLOCK))
        tail = pack("<QIIQII", self._offset(), said & 0xFFFFFFFF, how, 0, flags, 0)
        return self._file(), (self._number(self._handle()), tail, b"w" * size), 8

    def _readdir(self) -> Made:
        size = self._size()
        offset = self._choices.integer(0, 12) if self._choices.chance(60) else self._offset()
        tail = pack("<QIIQII", offset, size, 0, 0, 0, 0)
        return 1, (self._number(self._directory_handle()), tail), min(size, 1 << 20)

    _readdirplus = _readdir

    def _release(self) -> Made:
        return 1, (self._given_up(self._opened, self._handle), bytes(16)), 0

    def _releasedir(self) -> Made:
        return 1, (self._given_up(self._listed, self._directory_handle), bytes(16)), 0

    def _given_up(self, opened: list[Ref], otherwise: Callable[[], int | Ref]) -> Part:
        if not opened or self._choices.chance(10):
            return self._number(otherwise())
        handle = opened.pop(self._choices.integer(0, len(opened) - 1))
        self._closed.append(handle)
        del self._closed[:-8]
        return handle

    def _flush(self) -> Made:
        tail = pack("<IIQ", 0, 0, self._choices.integer(0, 3))
        return self._file(), (self._number(self._handle()), tail), 0

    def _fsync(self) -> Made:
        return 1, (self._number(self._handle()), pack("<II", self._choices.integer(0, 2), 0)), 0

    def _fsyncdir(self) -> Made:
        return 1, (self._number(self._directory_handle()), bytes(8)), 0

    def _statfs(self) -> Made:
        return self._any_node(), (), 80

    def _syncfs(self) -> Made:
        return self._any_node(), (bytes(8),), 0

    def _access(self) -> Made:
        return self._any_node(), (pack("<II", self._choices.integer(0, 9), 0),), 0

    def _setxattr(self) -> Made:
        choices = self._choices
        size = choices.one_of((0, 1, 20, 28, 44, 4096, 65536, 65537))
        said = size if choices.chance(90) else choices.one_of(words.ODD_32)
        head = abi.SETXATTR_COMPAT_IN if choices.chance(20) else abi.SETXATTR_IN
        flags = choices.one_of((0, 0, 1, 2, 3, 0xFFFFFFFF))
        fields = (said, flags, 0, 0)[: head.size // 4]
        name = choices.one_of(words.ATTRIBUTES)
        value = (b"\2\0\0\0" + b"v" * size)[:size]
        return self._any_node(), (head.pack(*fields) + name + b"\0" + value,), 0

    def _getxattr(self) -> Made:
        size = self._choices.one_of((0, 1, 100, 4096, 65536, 65537, 0xFFFFFFFF))
        name = self._choices.one_of(words.ATTRIBUTES)
        body = abi.GETXATTR_IN.pack(size, 0) + name + b"\0"
        return self._any_node(), (body,), min(size or 8, 65536)

    def _listxattr(self) -> Made:
        size = self._choices.one_of((0, 1, 100, 4096, 65536, 0xFFFFFFFF))
        return self._any_node(), (abi.GETXATTR_IN.pack(size, 0),), min(size or 8, 65536)

    def _removexattr(self) -> Made:
        return self._any_node(), (self._choices.one_of(words.ATTRIBUTES) + b"\0",), 0

    def _lock(self) -> Made:
        choices = self._choices
        start = choices.one_of(words.ODD_64) if choices.chance(10) else choices.one_of((0, 5, 10))
        end = choices.one_of(words.ODD_64) if choices.chance(10) else choices.one_of((7, 20, _EOF))
        handle = self._directory_handle() if choices.chance(5) else self._handle()
        tail = pack(
            "<QQQIIII", choices.integer(0, 3), start, end, choices.one_of((0, 1, 1, 1, 2, 3)),
            choices.integer(0, 3), choices.one_of((0, 0, 0, 1, 3)), 0,
        )  # fmt: skip
        return self._file(), (self._number(handle), tail), 24

    _getlk = _setlk = _setlkw = _lock

    def _bmap(self) -> Made:
        return self._file(), (bytes(16),), 8

    def _ioctl(self) -> Made:
        choices = self._choices
        command = choices.one_of((0x5401, 0x541B, 0x80086601, 0x40086602, 0x801C581F, 0x5413, 0))
        out = choices.one_of((0, 4, 8, 28, 4096, 0xFFFFFFFF))
        data = self._bytes(choices.one_of((0, 4, 8, 28)))
        said = len(data) + choices.one_of((0, 0, 0, 1, 4096))
        flags = choices.one_of((0, 0, 0, 1, 2, 16, 0xFFFFFFFF))
        handle = self._directory_handle() if flags & abi.IOCTL_DIR else self._handle()
        tail = pack("<IIQII", flags, command, choices.one_of(words.ODD_64), said, out) + data
        return self._file(), (self._number(handle), tail), 16 + min(out, 4096)

    def _poll(self) -> Made:
        tail = pack("<QII", self._choices.integer(0, 5), self._choices.integer(0, 1), 0xFFFFFFFF)
        return self._file(), (self._number(self._handle()), tail), 8

    def _fallocate(self) -> Made:
        choices = self._choices
        length = choices.one_of((0, 1, 4096, 10000, 1 << 40, (1 << 63) - 1, 1 << 63))
        mode = choices.one_of((0, 1, 2, 3, 8, 16, 17, 32, 64, 0xFFFFFFFF))
        tail = pack("<QQII", self._offset(), length, mode, 0)
        return self._file(), (self._number(self._handle()), tail), 0

    def _lseek(self) -> Made:
        tail = pack("<QII", self._offset(), self._choices.integer(0, 6), 0)
        return self._file(), (self._number(self._handle()), tail), 8

    def _copy_file_range(self) -> Made:
        choices = self._choices
        length = choices.one_of((0, 1, 4096, 100000, 1 << 40, (1 << 64) - 1))
        flags = 0 if choices.chance(95) else choices.one_of(words.ODD_64)
        body = (
            self._number(self._handle()), _Q.pack(self._offset()), _Q.pack(1),
            self._number(self._handle()), _Q.pack(self._offset()), pack("<QQ", length, flags),
        )  # fmt: skip
        return self._file(), body, 8

    _copy_file_range_64 = _copy_file_range

    def _setupmapping(self) -> Made:
        return self._file(), (self._number(self._handle()), bytes(32)), 0

    def _removemapping(self) -> Made:
        return self._file(), (pack("<I", self._choices.one_of(words.ODD_32)), bytes(16)), 0

    def _statx(self) -> Made:
        return self._any_node(), (abi.STATX_IN.pack(0, 0, 0, 0, 0xFFF),), 288
