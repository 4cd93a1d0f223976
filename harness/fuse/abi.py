"""The FUSE wire format: structures, flags and codes. Linux: include/uapi/linux/fuse.h.

Structures are precompiled and carry the header's names without ``fuse_``. Everything is little
endian: the protocol is the host's byte order, and virtio-fs fixes it to little endian. Numbers are
the whole content.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

KERNEL_VERSION: Final = 7
KERNEL_MINOR_VERSION: Final = 45
# 7.27 (Linux 4.20) is the oldest minor in which no structure needs a compatibility size.
MINIMUM_MINOR_VERSION: Final = 27
ROOT_ID: Final = 1
PAGE_SIZE: Final = 4096
MAX_WRITE: Final = 1 << 20
REQUEST_PAGES: Final = MAX_WRITE // PAGE_SIZE
# Without FUSE_MAX_PAGES a request carries this many (FUSE_DEFAULT_MAX_PAGES_PER_REQ).
DEFAULT_REQUEST_PAGES: Final = 32

IN_HEADER: Final = Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen pad
IN_HEADER_SIZE: Final = 40
OUT_HEADER: Final = Struct("<IiQ")  # len error unique
OUT_HEADER_SIZE: Final = 16
EXT_HEADER: Final = Struct("<II")  # size type

# ino size blocks atime mtime ctime, their nanoseconds, mode nlink uid gid rdev blksize flags.
# Seconds are unsigned in the header and signed in the kernel.
ATTR: Final = Struct("<QQQqqqIIIIIIIIII")
ATTR_SIZE: Final = 88
ENTRY_OUT: Final = Struct("<QQQQII88s")  # nodeid generation entry_s attr_s entry_ns attr_ns attr
ENTRY_OUT_SIZE: Final = 128
ATTR_OUT: Final = Struct("<QII88s")  # attr_s attr_ns dummy attr
ATTR_OUT_SIZE: Final = 104
KSTATFS: Final = Struct("<QQQQQIIII24x")  # blocks bfree bavail files ffree bsize namelen frsize pad
FILE_LOCK: Final = Struct("<QQII")  # start end type pid
DIRENT: Final = Struct("<QQII")  # ino off namelen type
DIRENT_SIZE: Final = 24
DIRENTPLUS_SIZE: Final = ENTRY_OUT_SIZE + DIRENT_SIZE

FORGET_IN: Final = Struct("<Q")  # nlookup
FORGET_ONE: Final = Struct("<QQ")  # nodeid nlookup
BATCH_FORGET_IN: Final = Struct("<II")  # count dummy
GETATTR_IN: Final = Struct("<IIQ")  # flags dummy fh
# valid pad fh size lock_owner atime mtime ctime, nanoseconds, mode unused uid gid unused
SETATTR_IN: Final = Struct("<IIQQQqqqIIIIIIII")
MKNOD_IN: Final = Struct("<IIII")  # mode rdev umask pad
MKDIR_IN: Final = Struct("<II")  # mode umask
RENAME_IN: Final = Struct("<Q")  # newdir
RENAME2_IN: Final = Struct("<QII")  # newdir flags pad
LINK_IN: Final = Struct("<Q")  # oldnodeid
OPEN_IN: Final = Struct("<II")  # flags open_flags
CREATE_IN: Final = Struct("<IIII")  # flags mode umask open_flags
OPEN_OUT: Final = Struct("<QII")  # fh open_flags backing_id
RELEASE_IN: Final = Struct("<QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN: Final = Struct("<QIIQ")  # fh unused pad lock_owner
READ_IN: Final = Struct("<QQIIQII")  # fh offset size read_flags lock_owner flags pad
WRITE_IN: Final = Struct("<QQIIQII")  # fh offset size write_flags lock_owner flags pad
WRITE_IN_SIZE: Final = 40
WRITE_OUT: Final = Struct("<II")  # size pad
FSYNC_IN: Final = Struct("<QII")  # fh fsync_flags pad
SETXATTR_IN: Final = Struct("<IIII")  # size flags setxattr_flags pad
SETXATTR_COMPAT_IN: Final = Struct("<II")  # size flags
SETXATTR_ACL_KILL_SGID: Final = 1  # the client has found that an ACL takes the bit away
GETXATTR_IN: Final = Struct("<II")  # size pad
GETXATTR_OUT: Final = Struct("<II")  # size pad
LK_IN: Final = Struct("<QQQQIIII")  # fh owner start end type pid lk_flags pad
ACCESS_IN: Final = Struct("<II")  # mask pad
INIT_IN: Final = Struct("<IIII")  # major minor max_readahead flags (flags2 follows with INIT_EXT)
INIT_EXT_IN: Final = Struct("<IIIII44x")  # ... flags2
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages
# map_alignment flags2 max_stack_depth request_timeout
INIT_OUT: Final = Struct("<IIIIHHIIHHIIH22x")
INTERRUPT_IN: Final = Struct("<Q")  # unique
BMAP_IN: Final = Struct("<QII")  # block blocksize pad
IOCTL_IN: Final = Struct("<QIIQII")  # fh flags cmd arg in_size out_size
IOCTL_OUT: Final = Struct("<iIII")  # result flags in_iovs out_iovs
POLL_IN: Final = Struct("<QQII")  # fh kh flags events
POLL_OUT: Final = Struct("<II")  # revents pad
FALLOCATE_IN: Final = Struct("<QQQII")  # fh offset length mode pad
LSEEK_IN: Final = Struct("<QQII")  # fh offset whence pad
LSEEK_OUT: Final = Struct("<Q")  # offset
COPY_FILE_RANGE_IN: Final = Struct("<QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
COPY_FILE_RANGE_OUT: Final = Struct("<Q")  # bytes_copied
SETUPMAPPING_IN: Final = Struct("<QQQQQ")  # fh foffset len flags moffset
REMOVEMAPPING_IN: Final = Struct("<I")  # count
SYNCFS_IN: Final = Struct("<Q")  # pad
STATX_IN: Final = Struct("<IIQII")  # getattr_flags reserved fh sx_flags sx_mask
# attr_s attr_ns flags spare[2] | mask blksize attributes nlink uid gid mode ino size blocks
# attributes_mask | atime btime ctime mtime as (s, ns) | rdev and dev as (major, minor)
STATX_OUT: Final = Struct("<QII16x IIQIIIHxxQQQQ qIxxxx qIxxxx qIxxxx qIxxxx IIII112x")
NOTIFY_POLL_WAKEUP_OUT: Final = Struct("<Q")  # kh
NOTIFY_INVAL_ENTRY_OUT: Final = Struct("<QII")  # parent namelen flags

# INIT flags; those from 32 up travel in flags2.
ASYNC_READ: Final = 1 << 0
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
EXPORT_SUPPORT: Final = 1 << 4
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
FLOCK_LOCKS: Final = 1 << 10
HAS_IOCTL_DIR: Final = 1 << 11
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
WRITEBACK_CACHE: Final = 1 << 16
NO_OPEN_SUPPORT: Final = 1 << 17
PARALLEL_DIROPS: Final = 1 << 18
HANDLE_KILLPRIV: Final = 1 << 19
POSIX_ACL: Final = 1 << 20
ABORT_ERROR: Final = 1 << 21
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
EXPLICIT_INVAL_DATA: Final = 1 << 25
MAP_ALIGNMENT: Final = 1 << 26
SUBMOUNTS: Final = 1 << 27
HANDLE_KILLPRIV_V2: Final = 1 << 28
SETXATTR_EXT: Final = 1 << 29
INIT_EXT: Final = 1 << 30
SECURITY_CTX: Final = 1 << 32
HAS_INODE_DAX: Final = 1 << 33
CREATE_SUPP_GROUP: Final = 1 << 34
HAS_EXPIRE_ONLY: Final = 1 << 35
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
PASSTHROUGH: Final = 1 << 37
NO_EXPORT_SUPPORT: Final = 1 << 38
HAS_RESEND: Final = 1 << 39
ALLOW_IDMAP: Final = 1 << 40
OVER_IO_URING: Final = 1 << 41
REQUEST_TIMEOUT: Final = 1 << 42

# The same by name, for printing.
INIT_FLAGS: Final = {
    "ASYNC_READ": ASYNC_READ,
    "POSIX_LOCKS": POSIX_LOCKS,
    "ATOMIC_O_TRUNC": ATOMIC_O_TRUNC,
    "EXPORT_SUPPORT": EXPORT_SUPPORT,
    "BIG_WRITES": BIG_WRITES,
    "DONT_MASK": DONT_MASK,
    "FLOCK_LOCKS": FLOCK_LOCKS,
    "HAS_IOCTL_DIR": HAS_IOCTL_DIR,
    "AUTO_INVAL_DATA": AUTO_INVAL_DATA,
    "DO_READDIRPLUS": DO_READDIRPLUS,
    "READDIRPLUS_AUTO": READDIRPLUS_AUTO,
    "ASYNC_DIO": ASYNC_DIO,
    "WRITEBACK_CACHE": WRITEBACK_CACHE,
    "NO_OPEN_SUPPORT": NO_OPEN_SUPPORT,
    "PARALLEL_DIROPS": PARALLEL_DIROPS,
    "HANDLE_KILLPRIV": HANDLE_KILLPRIV,
    "POSIX_ACL": POSIX_ACL,
    "ABORT_ERROR": ABORT_ERROR,
    "MAX_PAGES": MAX_PAGES,
    "CACHE_SYMLINKS": CACHE_SYMLINKS,
    "NO_OPENDIR_SUPPORT": NO_OPENDIR_SUPPORT,
    "EXPLICIT_INVAL_DATA": EXPLICIT_INVAL_DATA,
    "MAP_ALIGNMENT": MAP_ALIGNMENT,
    "SUBMOUNTS": SUBMOUNTS,
    "HANDLE_KILLPRIV_V2": HANDLE_KILLPRIV_V2,
    "SETXATTR_EXT": SETXATTR_EXT,
    "INIT_EXT": INIT_EXT,
    "SECURITY_CTX": SECURITY_CTX,
    "HAS_INODE_DAX": HAS_INODE_DAX,
    "CREATE_SUPP_GROUP": CREATE_SUPP_GROUP,
    "HAS_EXPIRE_ONLY": HAS_EXPIRE_ONLY,
    "DIRECT_IO_ALLOW_MMAP": DIRECT_IO_ALLOW_MMAP,
    "PASSTHROUGH": PASSTHROUGH,
    "NO_EXPORT_SUPPORT": NO_EXPORT_SUPPORT,
    "HAS_RESEND": HAS_RESEND,
    "ALLOW_IDMAP": ALLOW_IDMAP,
    "OVER_IO_URING": OVER_IO_URING,
    "REQUEST_TIMEOUT": REQUEST_TIMEOUT,
}

# Flags of the OPEN, CREATE and OPENDIR replies
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

ATTR_SUBMOUNT: Final = 1 << 0
GETATTR_FH: Final = 1 << 0
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0
RELEASE_FLUSH: Final = 1 << 0
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
LK_FLOCK: Final = 1 << 0
IOCTL_UNRESTRICTED: Final = 1 << 1
IOCTL_DIR: Final = 1 << 4
POLL_SCHEDULE_NOTIFY: Final = 1 << 0
EXT_GROUPS: Final = 32
MAX_NR_SECCTX: Final = 31  # an extension of a smaller type: so many labels
SECCTX: Final = Struct("<II")  # size padding; the name, with its NUL, and the label follow

NOTIFY_POLL: Final = 1
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_STORE: Final = 4
NOTIFY_RETRIEVE: Final = 5
NOTIFY_DELETE: Final = 6
NOTIFY_RESEND: Final = 7
NOTIFY_INC_EPOCH: Final = 8
NOTIFY_PRUNE: Final = 9
