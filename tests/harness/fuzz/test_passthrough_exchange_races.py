"""A host that exchanges names for the way out, atomically and all the time, while a guest works."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsimpl.passthrough import PassthroughType
from fsimpl.passthrough.oslib import renameat2
from harness.compose import Tree
from harness.fuse import abi
from harness.fuse.opcodes import OPCODES
from harness.fuse.server import FuseServer
from harness.fuzz.fuse import Playground
from harness.mountspec import MountSpec
from vfs.abi import AT_FDCWD, RENAME_EXCHANGE

OP = {row.name: row.number for row in OPCODES}
SECRET = b"CANARY"
ROUNDS = 400


class Guest:
    """Asks, and takes what it gets: a payload, or None for an error."""

    def __init__(self, server: FuseServer) -> None:
        self._server = server
        self._unique = 0
        self.seen: set[str] = set()
        self.ask("INIT", 0, abi.INIT_EXT_IN.pack(7, 45, 0, 0xFFFFFFFF, 0xFFF), 64)

    def ask(self, name: str, nodeid: int, body: bytes = b"", room: int = 4096) -> bytes | None:
        self._unique += 2
        header = abi.IN_HEADER.pack(
            40 + len(body), OP[name], self._unique, nodeid, 0, 0, 0, 0, 0
        )  # fmt: skip
        reply = bytearray(16 + room)
        length = self._server.handle(
            [memoryview(bytearray(header + body))], [memoryview(reply)], lambda _: None
        )
        if not length:
            return b""
        assert SECRET not in reply, name
        error = -abi.OUT_HEADER.unpack_from(reply)[1]
        if error:
            self.seen.add(errno.errorcode[error])
            assert error not in (errno.EIO, errno.EBADF), name
            return None
        self.seen.add(name)
        return bytes(reply[16:length])

    def node(self, parent: int, name: bytes) -> int:
        """0: there is no such name."""
        entry = self.ask("LOOKUP", parent, name + b"\0", 128)
        return int.from_bytes(entry[:8], "little") if entry else 0

    def handle(self, opcode: str, nodeid: int, flags: int) -> int:
        opened = self.ask(opcode, nodeid, abi.OPEN_IN.pack(flags, 0), 16)
        return int.from_bytes(opened[:8], "little") if opened else 0


@pytest.fixture
def playground(tmp_path: Path) -> Playground:
    top = tmp_path / "top"
    top.mkdir()
    return Playground(top)


@pytest.fixture
def guest(playground: Playground) -> Iterator[Guest]:
    shared = str(playground.shared)
    with Tree([MountSpec("host", PassthroughType.name, "/", source=shared)]) as tree:
        server = FuseServer(tree.vfs, tree.root)
        yield Guest(server)
        server.check()
        tree.vfs.check()
        server.reset()


@pytest.fixture
def exchanging() -> Iterator[Callable[[Path, Path], None]]:
    """Exchanges two names over and over until the test ends."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(one: Path, other: Path) -> None:
        first, second = os.fsencode(one), os.fsencode(other)

        def run() -> None:
            while not stop.is_set():
                try:
                    renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE)
                except FileNotFoundError:
                    # The guest has taken one away for a moment.
                    pass

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_a_directory_exchanged_for_the_way_out_leads_nobody_there(
    playground: Playground, guest: Guest, exchanging: Callable[[Path, Path], None]
) -> None:
    """Outside has the very names that the guest uses below the directory."""
    shared = playground.shared
    (shared / "n" / "inner").mkdir(parents=True)
    (shared / "n" / "secret").write_bytes(b"inside")
    (playground.limbo / "trap").symlink_to(playground.outside)
    exchanging(shared / "n", playground.limbo / "trap")
    setattr_in = abi.SETATTR_IN.pack(abi.FATTR_MODE | abi.FATTR_SIZE, *(0,) * 10, 0o777, 0, 0, 0, 0)
    for number in range(ROUNDS):
        node = guest.node(1, b"n")
        if not node:
            continue
        child = guest.node(node, b"secret")
        inner = guest.node(node, b"inner")
        new = b"new%d\0" % number
        guest.ask("CREATE", node, abi.CREATE_IN.pack(2, 0o100644, 0, 0) + new)
        guest.ask("RENAME", node, abi.RENAME_IN.pack(1) + new + b"kept\0")
        guest.ask("RENAME2", 1, abi.RENAME2_IN.pack(node, 0, 0) + b"kept\0" + new)
        guest.ask("UNLINK", node, new)
        guest.ask("MKDIR", node, abi.MKDIR_IN.pack(0o755, 0) + new)
        guest.ask("RMDIR", node, new)
        guest.ask("SYMLINK", node, new + b"target\0")
        guest.ask("UNLINK", node, new)
        guest.ask("SETXATTR", node, abi.SETXATTR_COMPAT_IN.pack(1, 0) + b"user.a\0v")
        if child:
            guest.ask("SETATTR", child, setattr_in)
            guest.ask("LINK", node, abi.LINK_IN.pack(child) + new)
            guest.ask("UNLINK", node, new)
            handle = guest.handle("OPEN", child, os.O_RDWR | os.O_TRUNC)
            if handle:
                guest.ask("READ", child, abi.READ_IN.pack(handle, 0, 100, 0, 0, 0, 0))
                guest.ask("WRITE", child, abi.WRITE_IN.pack(handle, 0, 4, 0, 0, 0, 0) + b"data")
                guest.ask("RELEASE", child, abi.RELEASE_IN.pack(handle, 0, 0, 0))
        if inner:
            guest.node(inner, b"..")
            guest.node(inner, b"secret")
        listing = guest.handle("OPENDIR", node, 0)
        if listing:
            guest.ask("READDIRPLUS", node, abi.READ_IN.pack(listing, 0, 4096, 0, 0, 0, 0))
            guest.ask("RELEASEDIR", node, abi.RELEASE_IN.pack(listing, 0, 0, 0))
        for known in (node, child, inner):
            guest.ask("FORGET", known, abi.FORGET_IN.pack(1))
        playground.check()
    assert {"CREATE", "RENAME", "WRITE", "LINK", "READDIRPLUS", "ENOTDIR"} <= guest.seen


def test_a_file_exchanged_for_a_fifo_or_the_way_out_is_never_waited_for_nor_read(
    playground: Playground, guest: Guest, exchanging: Callable[[Path, Path], None]
) -> None:
    shared, limbo = playground.shared, playground.limbo
    (shared / "n").write_bytes(b"inside")
    os.mkfifo(limbo / "fifo")
    (limbo / "trap").symlink_to(playground.outside / "secret")
    exchanging(shared / "n", limbo / "fifo")
    exchanging(shared / "n", limbo / "trap")
    for _ in range(ROUNDS):
        node = guest.node(1, b"n")
        if node:
            for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
                handle = guest.handle("OPEN", node, flags)
                if handle:
                    guest.ask("READ", node, abi.READ_IN.pack(handle, 0, 100, 0, 0, 0, 0))
                    guest.ask("RELEASE", node, abi.RELEASE_IN.pack(handle, 0, 0, 0))
            guest.ask("READLINK", node)
            guest.ask("FORGET", node, abi.FORGET_IN.pack(1))
        guest.ask("CREATE", 1, abi.CREATE_IN.pack(os.O_RDWR | os.O_TRUNC, 0o100644, 0, 0) + b"n\0")
        playground.check()
    assert {"LOOKUP", "OPEN", "READLINK", "ENXIO"} <= guest.seen
