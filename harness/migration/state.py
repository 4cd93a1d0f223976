"""The state of a FUSE server and of what it serves, saved to a descriptor and loaded from one."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from errno import EINVAL
from typing import Final, TypeVar

from fsimpl.passthrough.file import PassthroughFile
from fsimpl.tmpfs import TmpfsSuperblock
from fsimpl.tmpfs.image import TmpfsImage
from fsimpl.tmpfs.inode import TmpfsInode
from harness.fuse.server import FuseServer
from harness.migration import memory
from harness.migration.dentries import DENTRIES_MAX, DentryReader, DentryRecord, DentryWriter
from harness.migration.mounts import MOUNTS_MAX, MountRecord, MountTable
from harness.migration.options import MigrationOptions
from harness.migration.session import (
    HandleRecord,
    HeldRecord,
    LockRecord,
    NodeRecord,
    SessionReader,
    SessionRecord,
    SessionWriter,
)
from harness.migration.stream import StateError, StateReader, StateWriter, Unpacker
from harness.vhost_user.state import DeviceState

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

HELD_MAX: Final = 1 << 16
RECORDS_MAX: Final = 1 << 24
"""How many of a kind there may be."""


class ServerState(DeviceState):
    """The session of ``server``, and what is on the tmpfses that it serves.

    Files of the host stay where they are: both sides are to have the same directory. Their data is
    written back when a migration begins and again at its end, so that the other side finds it where
    the directory is shared by a network file system.
    """

    def __init__(self, server: FuseServer, options: MigrationOptions) -> None:
        """``server`` is borrowed."""
        super().__init__()
        self._server = server
        self._options = options
        self._cancelled = threading.Event()

    def prepare(self) -> None:
        """Begin to write back what is open for writing, so that less is left when the guest stands
        still.
        """
        self._cancelled = cancelled = threading.Event()

        def run() -> None:
            try:
                self._write_back(cancelled)
            except OSError as error:
                # It is tried again, with consequences, by ``save``.
                LOG.warning("open files could not be written back yet: %s", error)

        threading.Thread(target=run, name="write-back", daemon=True).start()

    def cancel(self) -> None:
        self._cancelled.set()

    def _write_back(self, cancelled: threading.Event) -> None:
        """Raises: OSError, the host's."""
        server = self._server
        with server.vfs.lock:
            handles = list(server.handles.files)
        for fh in handles:
            if cancelled.is_set():
                return
            with server.vfs.lock:
                file = server.handles.files.get(fh)
                if not isinstance(file, PassthroughFile) or not file.writable:
                    continue
                # Not the file: the session may end, and the daemon with it, while this waits.
                fd = os.dup(file.fd)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    # Saving

    def save(self, fd: int) -> None:
        try:
            saving = _Saving(self._server, self._options, StateWriter(fd), self.held)
            saving.run(self._write_back)
        except StateError as error:
            raise OSError(EINVAL, str(error)) from None

    # Loading

    def load(self, fd: int) -> None:
        """A session that there was ends. After an error there is none, and on the tmpfses is only
        what both sides had; or, where the stream itself is wrong, all is as it was.
        """
        try:
            self.held = _Loading(self._server, self._options).run(StateReader(fd))
        except (StateError, ValueError) as error:
            raise OSError(EINVAL, str(error)) from None


class _Saving:
    """One ``save``. Everything but the bytes of files is put down under the VFS lock, so that it
    fits together, and written without: the reader may be slow, or gone. No reference is held then.
    """

    def __init__(
        self,
        server: FuseServer,
        options: MigrationOptions,
        writer: StateWriter,
        held: dict[int, list[int]],
    ) -> None:
        self._held = [(ring, head) for ring, heads in held.items() for head in heads]
        self._server = server
        self._options = options
        self._writer = writer
        self._images: dict[int, TmpfsImage] = {}
        self._plans: dict[int, memory.Plan] = {}

    def run(self, write_back: Callable[[threading.Event], None]) -> None:
        write_back(threading.Event())
        with self._server.vfs.lock:
            mounts = MountTable(self._server.root.mount)
            dentries = DentryWriter(mounts.superblocks, self._options)
            try:
                session = SessionWriter(self._server, mounts, dentries, self._options)
            finally:
                dentries.close()
            table = list(mounts.records())
            for superblock, number in mounts.superblocks.items():
                if isinstance(superblock, TmpfsSuperblock):
                    image = self._images[number] = TmpfsImage.take(superblock)
                    self._plans[number] = memory.plan_data(image)
        self._write(session, dentries, table)

    def _write(
        self, session: SessionWriter, dentries: DentryWriter, mounts: list[MountRecord]
    ) -> None:
        writer, images = self._writer, self._images.items()
        writer.section(b"sess", session.session.pack().data)
        writer.table(b"mnts", (record.pack() for record in mounts))
        for number, image in images:
            writer.section(b"tmpf", memory.superblock_record(number, image).data)
        for number, image in images:
            writer.table(b"inod", memory.inode_records(number, image))
            writer.table(b"name", memory.name_records(number, image))
            writer.table(b"xatt", memory.xattr_records(number, image))
            writer.table(b"prom", memory.promise_records(number, image))
        writer.table(b"dent", (record.pack() for record in dentries.records))
        writer.table(b"node", (record.pack() for record in session.nodes))
        writer.table(b"file", (record.pack() for record in session.handles))
        writer.table(b"lock", (record.pack() for record in session.locks))
        writer.table(b"held", (HeldRecord(*pair).pack() for pair in self._held))
        for number, plan in self._plans.items():
            for piece in memory.data_pieces(plan):
                with self._server.vfs.lock:
                    record = memory.data_record(number, *piece)
                writer.section(b"data", record.data)
        writer.finish()


class _Loading:
    """One ``load``. The whole stream is read and judged first, then taken up, under the lock."""

    def __init__(self, server: FuseServer, options: MigrationOptions) -> None:
        self._server = server
        self._options = options
        self._session: SessionRecord | None = None
        self._mounts: list[MountRecord] = []
        self._dentries: list[DentryRecord] = []
        self._nodes: list[NodeRecord] = []
        self._handles: list[HandleRecord] = []
        self._locks: list[LockRecord] = []
        self._held: list[HeldRecord] = []
        self._tmpfs = memory.ImageReader()
        self._tables: dict[bytes, Callable[[Unpacker], None]] = {
            b"mnts": self._appender(self._mounts, MountRecord.unpack, MOUNTS_MAX),
            b"tmpf": self._add_superblock,
            b"inod": self._tmpfs.add_inode,
            b"name": self._tmpfs.add_name,
            b"xatt": self._tmpfs.add_xattr,
            b"prom": self._tmpfs.add_promise,
            b"dent": self._appender(self._dentries, DentryRecord.unpack, DENTRIES_MAX),
            b"node": self._appender(self._nodes, NodeRecord.unpack, RECORDS_MAX),
            b"file": self._appender(self._handles, HandleRecord.unpack, RECORDS_MAX),
            b"held": self._appender(self._held, HeldRecord.unpack, HELD_MAX),
            b"lock": self._appender(self._locks, LockRecord.unpack, RECORDS_MAX),
        }

    @staticmethod
    def _appender(
        records: list[_T], unpack: Callable[[Unpacker], _T], limit: int
    ) -> Callable[[Unpacker], None]:
        def add(data: Unpacker) -> None:
            if len(records) >= limit:
                raise StateError(f"more than {limit} records of a kind")
            records.append(unpack(data))

        return add

    def run(self, reader: StateReader) -> dict[int, list[int]]:
        """Returns the requests that wait on each ring."""
        for tag, content in reader.sections():
            self._take(tag, Unpacker(content))
        if self._session is None:
            raise StateError("the state has no session")
        self._tmpfs.check()
        with self._server.vfs.lock:
            self._take_up(self._session)
        held: dict[int, list[int]] = {}
        for record in self._held:
            held.setdefault(record.ring, []).append(record.head)
        return held

    def _take(self, tag: bytes, data: Unpacker) -> None:
        if tag == b"data":
            self._tmpfs.add_data(data.u32(), data)
        elif tag == b"sess":
            if self._session is not None:
                raise StateError("there are two sessions")
            self._session = SessionRecord.unpack(data)
            data.end()
        else:
            add = self._tables.get(tag)
            if add is None:
                raise StateError(f"an unknown section {tag!r}")
            while data:
                add(data)

    def _add_superblock(self, data: Unpacker) -> None:
        number = data.u32()
        with self._server.vfs.lock:
            _, superblocks = MountTable(self._server.root.mount).match(self._mounts)
            superblock = superblocks[number] if number < len(superblocks) else None
            if not isinstance(superblock, TmpfsSuperblock):
                raise StateError(f"superblock {number} is no tmpfs")
            self._tmpfs.add_superblock(number, data, superblock)

    def _take_up(self, record: SessionRecord) -> None:
        """Needs the VFS lock."""
        server, images = self._server, self._tmpfs.images
        mounts, superblocks = MountTable(server.root.mount).match(self._mounts)
        filled = {
            number: superblock
            for number, superblock in enumerate(superblocks)
            if isinstance(superblock, TmpfsSuperblock)
        }
        if filled.keys() != images.keys():
            raise StateError("the content of a tmpfs is missing")
        server.reset()
        inodes = {}
        try:
            for number, image in images.items():
                inodes[number] = image.put(filled[number])
            dentries = DentryReader(superblocks, inodes, self._options)
            session = SessionReader(server, mounts, dentries, self._options)
            try:
                self._resume(record, dentries, session)
            finally:
                session.close()
                dentries.close()
        except BaseException:
            _put_all(inodes)
            for number, image in images.items():
                image.undo(filled[number])
            raise
        _put_all(inodes)

    def _resume(
        self, record: SessionRecord, dentries: DentryReader, session: SessionReader
    ) -> None:
        for dentry in self._dentries:
            dentries.add(dentry)
        session.begin(record)
        for node in self._nodes:
            session.add_node(node)
        for handle in self._handles:
            session.add_handle(handle)
        for lock in self._locks:
            session.add_lock(lock)
        session.resume()


def _put_all(inodes: dict[int, dict[int, TmpfsInode]]) -> None:
    for made in inodes.values():
        for inode in made.values():
            inode.put()
    inodes.clear()
