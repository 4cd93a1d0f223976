"""States in memory: saved by one server, loaded by another, in this process."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fuse_session import Session

from harness.fuse.server import FuseServer
from harness.migration import MigrationOptions, ServerState
from harness.migration.options import GUEST_ERROR
from harness.migration.stream import MAGIC, VERSION

HEADER = struct.Struct("<8sI")
SECTION = struct.Struct("<4sI")
DEFAULT = MigrationOptions()
GUEST_ERRORS = MigrationOptions(on_error=GUEST_ERROR)


def save(server: FuseServer, options: MigrationOptions = DEFAULT) -> bytes:
    """The state of ``server``. Raises: OSError if it cannot be saved."""
    reader, writer = os.pipe()
    pieces: list[bytes] = []

    def collect() -> None:
        with os.fdopen(reader, "rb") as file:
            pieces.append(file.read())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        ServerState(server, options).save(writer)
    finally:
        os.close(writer)
        thread.join()
    return pieces[0]


def load(server: FuseServer, state: bytes, options: MigrationOptions = DEFAULT) -> None:
    """Raises: OSError if it cannot be loaded."""
    fd = os.memfd_create("state")
    try:
        os.write(fd, state)
        os.lseek(fd, 0, os.SEEK_SET)
        ServerState(server, options).load(fd)
    finally:
        os.close(fd)


def resealed(state: bytes) -> bytes:
    """With the checksum that belongs to it."""
    body = state[:-40]
    return body + state[-40:-32] + hashlib.sha256(body).digest()


def sections(state: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = HEADER.size
    while at < len(state):
        tag, size = SECTION.unpack_from(state, at)
        at += SECTION.size
        yield tag, state[at : at + size]
        at += size


def assembled(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A state of these sections, with its checksum."""
    body = HEADER.pack(MAGIC, VERSION)
    body += b"".join(SECTION.pack(tag, len(content)) + content for tag, content in parts)
    return resealed(body + SECTION.pack(b"end ", 32) + bytes(32))


def follow(client: Session, server: Session) -> None:
    """Have the client's side of ``client`` talk to the server of ``server``."""
    server.unique = client.unique
    server.uid, server.gid = client.uid, client.gid


@contextmanager
def sides(**options: Any) -> Iterator[tuple[Session, Session]]:
    """A session, and a server without one that could take it over; checked at the end, with every
    reference back.
    """
    with Session(**options) as source, Session(init=False, **options) as target:
        yield source, target
        target.vfs.check()


def move(source: Session, target: Session, options: MigrationOptions = DEFAULT) -> None:
    """Migrate, and let the source end as it would."""
    load(target.server, save(source.server, options), options)
    source.server.reset()
    follow(source, target)
