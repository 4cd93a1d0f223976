"""Numbers of the Linux user-space ABI that Python's ``os``, ``stat`` and ``errno`` do not carry,
and those they do, in one place and as plain ints: an IntFlag test costs forty times as much.

Source: the kernel's include/uapi headers for x86-64. Numbers are the whole content.
"""

from __future__ import annotations

from typing import Final

NAME_MAX: Final = 255
PATH_MAX: Final = 4096
MAXSYMLINKS: Final = 40
XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65536
XATTR_LIST_MAX: Final = 65536
IOV_MAX: Final = 1024
MAX_LFS_FILESIZE: Final = (1 << 63) - 1
MAX_RW_COUNT: Final = 0x7FFFF000
PAGE_SIZE: Final = 4096

# File types and mode bits (linux/stat.h)
S_IFMT: Final = 0o170000
S_IFSOCK: Final = 0o140000
S_IFLNK: Final = 0o120000
S_IFREG: Final = 0o100000
S_IFBLK: Final = 0o060000
S_IFDIR: Final = 0o040000
S_IFCHR: Final = 0o020000
S_IFIFO: Final = 0o010000
S_ISUID: Final = 0o4000
S_ISGID: Final = 0o2000
S_ISVTX: Final = 0o1000
S_IXGRP: Final = 0o0010
S_IRWXU: Final = 0o0700
S_IRWXG: Final = 0o0070
S_IRWXO: Final = 0o0007
S_IALLUGO: Final = 0o7777
S_IRWXUGO: Final = 0o777

# open(2) (asm-generic/fcntl.h)
O_ACCMODE: Final = 0o3
O_RDONLY: Final = 0
O_WRONLY: Final = 1
O_RDWR: Final = 2
O_CREAT: Final = 0o100
O_EXCL: Final = 0o200
O_NOCTTY: Final = 0o400
O_TRUNC: Final = 0o1000
O_APPEND: Final = 0o2000
O_NONBLOCK: Final = 0o4000
O_DSYNC: Final = 0o10000
FASYNC: Final = 0o20000
O_DIRECT: Final = 0o40000
O_LARGEFILE: Final = 0o100000
O_DIRECTORY: Final = 0o200000
O_NOFOLLOW: Final = 0o400000
O_NOATIME: Final = 0o1000000
O_CLOEXEC: Final = 0o2000000
O_SYNC: Final = 0o4010000
O_PATH: Final = 0o10000000
O_TMPFILE_BIT: Final = 0o20000000
O_TMPFILE: Final = O_TMPFILE_BIT | O_DIRECTORY
VALID_OPEN_FLAGS: Final = (
    O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND | O_NONBLOCK | O_SYNC | O_DSYNC
    | FASYNC | O_DIRECT | O_LARGEFILE | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC | O_PATH
    | O_TMPFILE_BIT
)  # fmt: skip

# *at(2) (linux/fcntl.h)
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_REMOVEDIR: Final = 0x200
AT_EACCESS: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_FORCE_SYNC: Final = 0x2000
AT_STATX_DONT_SYNC: Final = 0x4000
AT_STATX_SYNC_TYPE: Final = 0x6000
AT_RECURSIVE: Final = 0x8000

# openat2(2) (linux/openat2.h)
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20
VALID_RESOLVE_FLAGS: Final = 0x3F

# access(2)
F_OK: Final = 0
X_OK: Final = 1
W_OK: Final = 2
R_OK: Final = 4

# lseek(2), fallocate(2), renameat2(2) (linux/fs.h, linux/falloc.h)
SEEK_SET: Final = 0
SEEK_CUR: Final = 1
SEEK_END: Final = 2
SEEK_DATA: Final = 3
SEEK_HOLE: Final = 4
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20
FALLOC_FL_UNSHARE_RANGE: Final = 0x40
FALLOC_FL_WRITE_ZEROES: Final = 0x80
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

# preadv2(2) (linux/fs.h)
RWF_HIPRI: Final = 0x01
RWF_DSYNC: Final = 0x02
RWF_SYNC: Final = 0x04
RWF_NOWAIT: Final = 0x08
RWF_APPEND: Final = 0x10
RWF_NOAPPEND: Final = 0x20
RWF_ATOMIC: Final = 0x40
RWF_DONTCACHE: Final = 0x80
RWF_SUPPORTED: Final = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT | RWF_APPEND | RWF_NOAPPEND

# statx(2) (linux/stat.h)
STATX_TYPE: Final = 0x0001
STATX_MODE: Final = 0x0002
STATX_NLINK: Final = 0x0004
STATX_UID: Final = 0x0008
STATX_GID: Final = 0x0010
STATX_ATIME: Final = 0x0020
STATX_MTIME: Final = 0x0040
STATX_CTIME: Final = 0x0080
STATX_INO: Final = 0x0100
STATX_SIZE: Final = 0x0200
STATX_BLOCKS: Final = 0x0400
STATX_BASIC_STATS: Final = 0x07FF
STATX_BTIME: Final = 0x0800
STATX_MNT_ID: Final = 0x1000
STATX_DIOALIGN: Final = 0x2000
STATX_MNT_ID_UNIQUE: Final = 0x4000
STATX_SUBVOL: Final = 0x8000
STATX__RESERVED: Final = 0x80000000
STATX_ATTR_COMPRESSED: Final = 0x0004
STATX_ATTR_IMMUTABLE: Final = 0x0010
STATX_ATTR_APPEND: Final = 0x0020
STATX_ATTR_NODUMP: Final = 0x0040
STATX_ATTR_AUTOMOUNT: Final = 0x1000
STATX_ATTR_MOUNT_ROOT: Final = 0x2000
STATX_ATTR_DAX: Final = 0x00200000

# mount(2) and umount2(2) (linux/mount.h)
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SILENT: Final = 32768
MS_POSIXACL: Final = 1 << 16
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25
MS_NOUSER: Final = 1 << 31
MS_MGC_VAL: Final = 0xC0ED0000
MS_MGC_MSK: Final = 0xFFFF0000
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
MNT_EXPIRE: Final = 4
UMOUNT_NOFOLLOW: Final = 8

# The descriptor-based mount calls (linux/mount.h)
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = O_CLOEXEC
MOVE_MOUNT_F_SYMLINKS: Final = 0x001
MOVE_MOUNT_F_AUTOMOUNTS: Final = 0x002
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x004
MOVE_MOUNT_T_SYMLINKS: Final = 0x010
MOVE_MOUNT_T_AUTOMOUNTS: Final = 0x020
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x040
MOVE_MOUNT_SET_GROUP: Final = 0x100
MOVE_MOUNT_BENEATH: Final = 0x200
FSOPEN_CLOEXEC: Final = 1
FSPICK_CLOEXEC: Final = 1
FSPICK_SYMLINK_NOFOLLOW: Final = 2
FSPICK_NO_AUTOMOUNT: Final = 4
FSPICK_EMPTY_PATH: Final = 8
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_BINARY: Final = 2
FSCONFIG_SET_PATH: Final = 3
FSCONFIG_SET_PATH_EMPTY: Final = 4
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7
FSCONFIG_CMD_CREATE_EXCL: Final = 8
FSMOUNT_CLOEXEC: Final = 1
MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_RELATIME: Final = 0x00
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
STATMOUNT_SB_BASIC: Final = 0x0001
STATMOUNT_MNT_BASIC: Final = 0x0002
STATMOUNT_PROPAGATE_FROM: Final = 0x0004
STATMOUNT_MNT_ROOT: Final = 0x0008
STATMOUNT_MNT_POINT: Final = 0x0010
STATMOUNT_FS_TYPE: Final = 0x0020
STATMOUNT_MNT_NS_ID: Final = 0x0040
STATMOUNT_MNT_OPTS: Final = 0x0080
STATMOUNT_FS_SUBTYPE: Final = 0x0100
STATMOUNT_SB_SOURCE: Final = 0x0200
STATMOUNT_OPT_ARRAY: Final = 0x0400
STATMOUNT_OPT_SEC_ARRAY: Final = 0x0800
STATMOUNT_SUPPORTED_MASK: Final = 0x1000
STATMOUNT_MNT_UIDMAP: Final = 0x2000
STATMOUNT_MNT_GIDMAP: Final = 0x4000
LSMT_ROOT: Final = 0xFFFFFFFFFFFFFFFF
LISTMOUNT_REVERSE: Final = 1

# clone(2), unshare(2), setns(2) (linux/sched.h)
CLONE_FS: Final = 0x00000200
CLONE_FILES: Final = 0x00000400
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# statfs(2) f_flags (linux/statfs.h)
ST_RDONLY: Final = 0x0001
ST_NOSUID: Final = 0x0002
ST_NODEV: Final = 0x0004
ST_NOEXEC: Final = 0x0008
ST_SYNCHRONOUS: Final = 0x0010
ST_VALID: Final = 0x0020
ST_MANDLOCK: Final = 0x0040
ST_NOATIME: Final = 0x0400
ST_NODIRATIME: Final = 0x0800
ST_RELATIME: Final = 0x1000
ST_NOSYMFOLLOW: Final = 0x2000

# fcntl(2)
F_DUPFD: Final = 0
F_GETFD: Final = 1
F_SETFD: Final = 2
F_GETFL: Final = 3
F_SETFL: Final = 4
F_DUPFD_CLOEXEC: Final = 1030
FD_CLOEXEC: Final = 1
CLOSE_RANGE_UNSHARE: Final = 2
CLOSE_RANGE_CLOEXEC: Final = 4

# Superblock magics (linux/magic.h)
TMPFS_MAGIC: Final = 0x01021994
FUSE_SUPER_MAGIC: Final = 0x65735546
PROC_SUPER_MAGIC: Final = 0x9FA0
NSFS_MAGIC: Final = 0x6E736673

# Inode flags (FS_*_FL of linux/fs.h, as ioctl(FS_IOC_GETFLAGS) gives them)
FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20
FS_NODUMP_FL: Final = 0x40
FS_NOATIME_FL: Final = 0x80

# poll(2)
POLLIN: Final = 0x001
POLLPRI: Final = 0x002
POLLOUT: Final = 0x004
POLLERR: Final = 0x008
POLLHUP: Final = 0x010
POLLRDNORM: Final = 0x040
POLLWRNORM: Final = 0x100


def makedev(major: int, minor: int) -> int:
    """glibc's ``makedev``: the 64-bit device number that stat(2) shows."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32


def major(dev: int) -> int:
    """The major half of a 64-bit device number."""
    return dev >> 8 & 0xFFF | dev >> 32 & ~0xFFF


def minor(dev: int) -> int:
    """The minor half of a 64-bit device number."""
    return dev & 0xFF | dev >> 12 & 0xFFFFFF00
