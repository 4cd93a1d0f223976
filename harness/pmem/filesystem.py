"""An image as the one file of a filesystem, for who can map nothing but a file."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, ClassVar, Final

from fsimpl.ext2.builder import ImagePlan
from fsimpl.pseudo import PseudoDirectory, PseudoInode, PseudoSuperblock, Row
from vfs import abi
from vfs.file import Buffers, FileDescription
from vfs.superblock import DCACHE_VALID, FilesystemType, Superblock

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.fs_context import FilesystemContext
    from vfs.mount import Mount

LOG = logging.getLogger(__name__)

IMAGE: Final = b"image"
ALIGNMENT: Final = 2 << 20
"""Bytes: what Linux asks of the size of persistent memory (a subsection of its memory map)."""

_MAGIC: Final = 0x70657832


def rounded(size: int) -> int:
    """``size`` in bytes as a device's."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Content:
    """The bytes of an image that is perhaps not there yet. ``size``: bytes, of the file."""

    __slots__ = ("_plan", "_settled", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._plan: ImagePlan | None = None
        self._settled = threading.Event()

    def settle(self, plan: ImagePlan | None) -> None:
        """Let readers go on: with ``plan`` (borrowed), or without any, with zeros."""
        self._plan = plan
        self._settled.set()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` once the image is there.

        An error would be a SIGBUS to who has mapped the file, so what can't be read is zeros.
        """
        self._settled.wait()
        try:
            if self._plan is not None:
                self._plan.read_into(offset, buffer)
                return
        except OSError as error:
            LOG.error("%d bytes at %d of the image are zeros: %s", len(buffer), offset, error)
        buffer[:] = bytes(len(buffer))


class ImageFile(FileDescription):
    """Reads without the VFS lock, for it waits."""

    __slots__ = ()
    unlocked_io: ClassVar[bool] = True
    inode: ImageInode

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        done = 0
        for buffer in buffers:
            part = buffer[: max(0, self.inode.content.size - offset - done)]
            self.inode.content.read_into(offset + done, part)
            done += len(part)
        return done


class ImageInode(PseudoInode):
    """The file."""

    __slots__ = ("content",)

    def __init__(self, above: PseudoDirectory, content: Content) -> None:
        self.content = content
        super().__init__(above, abi.S_IFREG | 0o400)

    def update(self) -> None:
        super().update()
        if self.size != self.content.size:
            self.size = self.content.size
            self.changed()

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return ImageFile(mount, dentry, flags, cred)


class ImageType(FilesystemType):
    """A filesystem whose root has the one name ``IMAGE``."""

    name = "dentryimage"

    def __init__(self, content: Content) -> None:
        self._content = content

    def get_tree(self, context: FilesystemContext) -> Superblock:
        content = self._content
        row = Row(abi.S_IFREG, lambda above: ImageInode(above, content))
        return PseudoSuperblock(
            context,
            lambda superblock: PseudoDirectory(superblock, {IMAGE: row}, 0o500),
            magic=_MAGIC,
            dcache=DCACHE_VALID,
        )
