"""What a system call does once its paths are resolved. Linux: the ``vfs_*`` functions.

Both the syscalls and the FUSE server end here, so a rule stands once: who may, in which order the
errors come, what happens to the dentry cache and to mounts, set-id bits and times. Every function
needs the VFS lock, except ``vfs_read``, ``vfs_write``, ``vfs_fsync`` and ``vfs_copy_file_range``,
which take it themselves where the file wants it; who has it already saves 0.1 us a call with
``read_locked`` and ``write_locked``. Names are single components. Dentries that are returned are
held.

``names`` makes, renames and removes; ``attributes`` changes and asks; ``opening`` makes a file
description; ``data`` moves bytes through it. (Extended attributes are ``vfs.xattr``'s.)
"""

from vfs.operations.attributes import vfs_access, vfs_readlink, vfs_setattr, vfs_statfs
from vfs.operations.data import (
    read_locked,
    verify_area,
    vfs_copy_file_range,
    vfs_fallocate,
    vfs_fsync,
    vfs_iterate,
    vfs_llseek,
    vfs_read,
    vfs_write,
    write_locked,
)
from vfs.operations.names import (
    instantiate,
    may_mknod,
    vfs_create,
    vfs_link,
    vfs_mkdir,
    vfs_mknod,
    vfs_rename,
    vfs_rmdir,
    vfs_symlink,
    vfs_tmpfile,
    vfs_unlink,
)
from vfs.operations.opening import vfs_open

__all__ = [
    "instantiate", "may_mknod", "read_locked", "verify_area", "vfs_access", "vfs_copy_file_range",
    "vfs_create", "vfs_fallocate", "vfs_fsync", "vfs_iterate", "vfs_link", "vfs_llseek",
    "vfs_mkdir", "vfs_mknod", "vfs_open", "vfs_read", "vfs_readlink", "vfs_rename", "vfs_rmdir",
    "vfs_setattr", "vfs_statfs", "vfs_symlink", "vfs_tmpfile", "vfs_unlink", "vfs_write",
    "write_locked",
]  # fmt: skip
