"""The content of a tmpfs as sections of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsimpl.tmpfs import TmpfsSuperblock
from fsimpl.tmpfs.image import InodeImage, TmpfsImage
from fsimpl.tmpfs.limits import Limit
from fsimpl.tmpfs.options import INODE_SPACE
from fsimpl.tmpfs.store import PAGE_MASK, PAGE_SHIFT, PageStore
from fsimpl.tmpfs.xattrs import xattr_space
from harness.migration.stream import Packer, StateError, Unpacker
from vfs import abi

_DATA_SIZE: Final = 256 << 10
_NO_LIMIT_SAID: Final = (1 << 64) - 1
_PAGE_END: Final = 1 << 63 - PAGE_SHIFT

Plan = list[tuple[int, PageStore, list[tuple[int, int]]]]
"""Files by inode number, with the runs of their pages that have bytes."""


def superblock_record(number: int, image: TmpfsImage) -> Packer:
    out = Packer()
    out.u32(number)
    out.u64(image.root)
    out.u64(image.next_ino)
    for limit in (image.blocks, image.ispace):
        out.u64(_NO_LIMIT_SAID if limit is None else limit)
    return out


def inode_records(number: int, image: TmpfsImage) -> Iterator[Packer]:
    for inode in image.inodes.values():
        out = Packer()
        out.u32(number)
        out.u64(inode.ino)
        for value in (inode.mode, inode.uid, inode.gid, inode.rdev, inode.flags, inode.generation):
            out.u32(value)
        out.u8(inode.linkable)
        out.u64(inode.size)
        for time_ns in (inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns):
            out.time(time_ns)
        out.blob(inode.target)
        out.u64(inode.next_cookie)
        yield out


def name_records(number: int, image: TmpfsImage) -> Iterator[Packer]:
    for inode in image.inodes.values():
        for name, ino, cookie in inode.names:
            out = Packer()
            out.u32(number)
            out.u64(inode.ino)
            out.blob(name)
            out.u64(ino)
            out.u64(cookie)
            yield out


def xattr_records(number: int, image: TmpfsImage) -> Iterator[Packer]:
    for inode in image.inodes.values():
        for name, value in inode.xattrs.items():
            out = Packer()
            out.u32(number)
            out.u64(inode.ino)
            out.blob(name)
            out.blob(value)
            yield out


def promise_records(number: int, image: TmpfsImage) -> Iterator[Packer]:
    for inode in image.inodes.values():
        for first, end, cleared in inode.store.promised_runs():
            out = Packer()
            out.u32(number)
            out.u64(inode.ino)
            out.u64(first)
            out.u64(end)
            out.u8(cleared)
            yield out


def plan_data(image: TmpfsImage) -> Plan:
    """What ``data_records`` will read. Needs the VFS lock."""
    return [
        (inode.ino, inode.store, list(inode.store.stored_runs()))
        for inode in image.inodes.values()
        if inode.store.pages
    ]


def data_pieces(plan: Plan) -> Iterator[tuple[int, PageStore, int, int]]:
    """(inode number, store, offset, length) of each section to be."""
    for ino, store, runs in plan:
        for first, end in runs:
            for offset in range(first << PAGE_SHIFT, end << PAGE_SHIFT, _DATA_SIZE):
                yield ino, store, offset, min(_DATA_SIZE, (end << PAGE_SHIFT) - offset)


def data_record(number: int, ino: int, store: PageStore, offset: int, length: int) -> Packer:
    """Needs the VFS lock."""
    out = Packer()
    out.u32(number)
    out.u64(ino)
    out.u64(offset)
    start = len(out.data)
    out.data += bytes(length)
    with memoryview(out.data) as view:
        store.read(view[start:], offset)
    return out


class ImageReader:
    """Puts images together from records, whose order is that of the functions above."""

    def __init__(self) -> None:
        self.images: dict[int, TmpfsImage] = {}
        self._space: dict[TmpfsImage, Limit] = {}
        self._names: dict[TmpfsImage, Limit] = {}
        self._promise_end: tuple[InodeImage | None, int] = (None, 0)
        self._data_end = (0, 0, 0)

    def add_superblock(self, number: int, data: Unpacker, superblock: TmpfsSuperblock) -> None:
        """``number`` was the record's first field. What is to be on ``superblock`` may take no more
        than that may have, while it is read already.
        """
        if number in self.images:
            raise StateError(f"superblock {number} comes twice")
        image = self.images[number] = TmpfsImage(superblock.blocks.maximum)
        self._space[image] = Limit(superblock.ispace.maximum)
        self._names[image] = Limit(superblock.ispace.maximum)
        image.root, image.next_ino = data.u64(), data.u64()
        blocks, ispace = data.u64(), data.u64()
        image.blocks = None if blocks == _NO_LIMIT_SAID else blocks
        image.ispace = None if ispace == _NO_LIMIT_SAID else ispace

    def _image(self, data: Unpacker) -> TmpfsImage:
        image = self.images.get(data.u32())
        if image is None:
            raise StateError("an inode of no tmpfs")
        return image

    def _inode(self, data: Unpacker) -> tuple[TmpfsImage, InodeImage]:
        image, ino = self._image(data), data.u64()
        inode = image.inodes.get(ino)
        if inode is None:
            raise StateError(f"there is no inode {ino}")
        return image, inode

    def add_inode(self, data: Unpacker) -> None:
        image, ino = self._image(data), data.u64()
        _take(self._space[image], INODE_SPACE)
        inode = image.add(ino, data.u32())
        inode.uid, inode.gid, inode.rdev = data.u32(), data.u32(), data.u32()
        inode.flags, inode.generation = data.u32(), data.u32()
        inode.linkable = bool(data.u8())
        inode.size = data.u64()
        inode.atime_ns, inode.mtime_ns = data.time(), data.time()
        inode.ctime_ns, inode.btime_ns = data.time(), data.time()
        inode.target = data.blob(abi.PATH_MAX)
        inode.next_cookie = data.u64()

    def add_name(self, data: Unpacker) -> None:
        image, inode = self._inode(data)
        # Only the first name of an inode is free, and inodes are counted alike.
        _take(self._names[image], INODE_SPACE)
        inode.names.append((data.blob(abi.NAME_MAX), data.u64(), data.u64()))

    def add_xattr(self, data: Unpacker) -> None:
        image, inode = self._inode(data)
        name, value = data.blob(abi.XATTR_NAME_MAX), data.blob(abi.XATTR_SIZE_MAX)
        if name in inode.xattrs:
            raise StateError(f"inode {inode.ino}: attribute {name!r} comes twice")
        _take(self._space[image], xattr_space(name, value))
        inode.xattrs[name] = value

    def add_promise(self, data: Unpacker) -> None:
        _, inode = self._inode(data)
        first, end, cleared = data.u64(), data.u64(), data.u8()
        known, last = self._promise_end
        if not (last if known is inode else 0) <= first < end <= _PAGE_END:
            raise StateError(f"inode {inode.ino}: the pages {first} to {end} are promised")
        self._promise_end = inode, end
        try:
            inode.store.promise(first, end, bool(cleared))
        except OSError:
            raise _too_small() from None

    def add_data(self, number: int, data: Unpacker) -> None:
        """``number`` was the record's first field."""
        image = self.images.get(number)
        ino, offset, content = data.u64(), data.u64(), data.rest()
        inode = None if image is None else image.inodes.get(ino)
        if inode is None:
            raise StateError(f"data of inode {ino}, which is not there")
        where = number, ino, offset
        if where < self._data_end or offset >> PAGE_SHIFT >= _PAGE_END:
            raise StateError(f"inode {ino}: data out of order")
        if offset & PAGE_MASK or len(content) & PAGE_MASK or len(content) > _DATA_SIZE:
            raise StateError(f"inode {ino}: data that are no pages")
        self._data_end = number, ino, offset + len(content)
        if inode.store.write(memoryview(content), offset) < len(content):
            raise _too_small()

    def check(self) -> None:
        """Raises: StateError unless all are file systems."""
        for image in self.images.values():
            try:
                image.check()
            except ValueError as error:
                raise StateError(str(error)) from None


def _take(limit: Limit, amount: int) -> None:
    if not limit.take(amount):
        raise _too_small()


def _too_small() -> StateError:
    return StateError("a tmpfs is too small here for what is on it there")
