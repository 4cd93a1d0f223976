"""Open regular files of the host: a description of ours over a descriptor of the host's."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, ClassVar

from fsimpl.passthrough import oslib
from fsimpl.passthrough.ioctls import host_ioctl
from vfs import abi
from vfs.credentials import CAP_FSETID
from vfs.errors import oserror
from vfs.file import Buffers, FileDescription

if TYPE_CHECKING:
    from fsimpl.passthrough.identity import Assumed, Own
    from fsimpl.passthrough.inode import PassthroughInode
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.mount import Mount

# vfs_write syncs after the write, once for O_SYNC, O_DSYNC and these.
_NOT_PASSED = abi.RWF_SYNC | abi.RWF_DSYNC
# What copy_file_range(2) says where it cannot, so that copying by hand may.
_NO_SHORT_CUT = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class PassthroughFile(FileDescription):
    """A regular file. Bytes go between the caller's buffers and the host's page cache, no copy
    between; without the VFS lock.

    ``fd`` is the host's descriptor, opened with the access mode of ``flags`` and no O_APPEND.
    """

    __slots__ = ("fd", "keeps_set_id")
    unlocked_io: ClassVar[bool] = True
    inode: PassthroughInode

    def __init__(
        self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials, fd: int
    ) -> None:
        """Takes over ``fd``."""
        super().__init__(mount, dentry, flags, cred)
        self.fd = fd
        # The host drops set-id bits unless the writing thread has CAP_FSETID, as we may.
        identity = self.inode.superblock.identity
        self.keeps_set_id = cred.capable(CAP_FSETID) or not identity.capable(CAP_FSETID)

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        # preadv2(2) takes -1 for the position of the host's descriptor.
        if offset < 0:
            raise oserror(errno.EINVAL)
        try:
            return os.preadv(self.fd, buffers, offset, flags)
        except OverflowError:
            raise oserror(errno.EINVAL) from None
        except OSError:
            if len(buffers) <= abi.IOV_MAX:
                raise
        return os.preadv(self.fd, buffers[: abi.IOV_MAX], offset, flags)

    def write(self, buffers: Buffers, offset: int, flags: int) -> int:
        if offset < 0:
            raise oserror(errno.EINVAL)
        if len(buffers) > abi.IOV_MAX:
            buffers = buffers[: abi.IOV_MAX]
        flags &= ~_NOT_PASSED
        try:
            if self.keeps_set_id:
                count = os.pwritev(self.fd, buffers, offset, flags)
            else:
                with self._as_writer():
                    count = os.pwritev(self.fd, buffers, offset, flags)
        except OverflowError:
            raise oserror(errno.EINVAL) from None
        if self.inode.superblock.xattrs.capability is not None:
            self._drop_capability()
        if flags & abi.RWF_APPEND:
            self.inode.grown(os.fstat(self.fd).st_size)
        else:
            self.inode.grown(offset + count)
        return count

    def seek_data(self, offset: int) -> int:
        return os.lseek(self.fd, offset, abi.SEEK_DATA)

    def seek_hole(self, offset: int) -> int:
        return os.lseek(self.fd, offset, abi.SEEK_HOLE)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        with self._as_writer():
            oslib.fallocate(self.fd, mode, offset, length)
        self._drop_capability()
        self.inode.refresh()

    def fsync(self, datasync: bool) -> None:
        if datasync:
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def flush(self) -> None:
        """What closing a descriptor does on the host: a network file system writes back there, and
        tells of errors.
        """
        if self.writable:
            os.close(os.dup(self.fd))

    def copy_range(
        self, offset: int, target: FileDescription, target_offset: int, length: int
    ) -> int | None:
        if not isinstance(target, PassthroughFile):
            return None
        try:
            with target._as_writer():
                count = os.copy_file_range(self.fd, target.fd, length, offset, target_offset)
        except OSError as error:
            if error.errno in _NO_SHORT_CUT:
                return None
            raise
        # Files without a size, as in /proc, copy as nothing; reading them may tell otherwise.
        if not count:
            return None
        target._drop_capability()
        target.inode.refresh()
        return count

    def _as_writer(self) -> Own | Assumed:
        """For ``with``: the identity that decides about set-id bits when content changes."""
        superblock = self.inode.superblock
        return superblock.identity.own if self.keeps_set_id else superblock.assume(self.cred)

    def _drop_capability(self) -> None:
        """As ``PassthroughInode.drop_capability``, without the VFS lock."""
        name = self.inode.superblock.xattrs.capability
        if name is not None:
            try:
                os.removexattr(self.fd, name)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise

    def ioctl(self, command: int, argument: bytes | memoryview | int) -> bytes:
        return host_ioctl(self, command, argument)

    def release(self) -> None:
        try:
            os.close(self.fd)
        finally:
            super().release()
