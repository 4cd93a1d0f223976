"""What a serving daemon may call, and what needs it.

Found with ``collect`` under the tests of the daemon (docs/sandbox.md tells how), then judged: what
only the tests or the starting process called is not here. Names that an architecture lacks stand
for its own way of doing the same.
"""

from __future__ import annotations

from errno import EACCES, ENOSYS
from typing import Final

from harness.sandbox.seccomp import Check, Policy

NEEDED: Final = {
    "reading, writing and changing files for guests": """
        close copy_file_range faccessat2 fallocate fchmodat fchmodat2 fchownat fdatasync fstat
        fstatfs fsync ftruncate getdents64 linkat lseek mkdirat mknodat newfstatat openat openat2
        pread64 preadv preadv2 pwrite64 pwritev pwritev2 readlinkat renameat renameat2 statx
        symlinkat syncfs unlinkat utimensat
    """,
    "extended attributes": """
        fremovexattr getxattrat listxattrat removexattrat setxattrat
    """,
    "extended attributes before Linux 6.13": """
        fchdir getxattr listxattr removexattr setxattr
    """,
    "inodes kept as file handles": "name_to_handle_at open_by_handle_at",
    "acting as the caller of a request": """
        capget capset getegid geteuid getgid getgroups getuid setfsgid setfsuid setgroups
    """,
    "the connection to the virtual machine's monitor": """
        accept4 getsockname getsockopt recvfrom recvmsg sendmsg sendto
    """,
    "waiting": """
        clock_nanosleep epoll_create1 epoll_ctl epoll_pwait epoll_wait poll ppoll read write
    """,
    "memory shared for requests in flight": "memfd_create",
    # Only where there is no waiter outside to do it; no more can be unlinked than by unlinkat.
    "removing the socket and the pid file": "unlink",
    "Python and the C library": """
        brk clock_gettime exit exit_group futex getcwd getpid getrandom gettid
        gettimeofday madvise mremap munmap restart_syscall rseq rt_sigaction rt_sigprocmask
        rt_sigreturn sched_getaffinity sched_yield set_robust_list sigaltstack sysinfo
    """,
}

_PROT_EXEC: Final = 4
# CLONE_VM, CLONE_SIGHAND, CLONE_THREAD
_THREAD: Final = 0x100 | 0x800 | 0x10000
# CLONE_NEWNS, CLONE_NEWCGROUP, ..., CLONE_NEWNET
_NAMESPACES: Final = 0x00020000 | 0x7E000000

CHECKS: Final = {
    # Threads, but no processes.
    "clone": (Check(0, (_THREAD,), _THREAD | _NAMESPACES),),
    "fcntl": (
        Check(
            1,
            (
                1, 2, 3, 4,  # F_GETFD, F_SETFD, F_GETFL, F_SETFL
                5, 6, 7, 36, 37, 38,  # record locks, and those of open file descriptions
                1030, 1033, 1034,  # F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS
            ),
        ),
    ),
    "ioctl": (
        Check(
            1,
            (
                0x5401, 0x5421, 0x5451,  # TCGETS (isatty), FIONBIO, FIOCLEX
                0x80086601, 0x40086602, 0x80046601, 0x40046602,  # FS_IOC_[GS]ETFLAGS, 64 and 32
                0x801C581F, 0x401C5820,  # FS_IOC_FS[GS]ETXATTR
                0x40806685, 0xC0046686,  # FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY
                0xC0096616,  # FS_IOC_GET_ENCRYPTION_POLICY_EX
            ),
        ),
    ),
    # Everything that is ever to run was loaded before.
    "mmap": (Check(2, (0,), _PROT_EXEC),),
    "mprotect": (Check(2, (0,), _PROT_EXEC),),
    # PR_GET_SECUREBITS, PR_SET_NAME, PR_SET_VMA
    "prctl": (Check(0, (27, 15, 0x53564D41)),),
    # One's own limits, not another process's.
    "prlimit64": (Check(0, (0,)),),
}  # fmt: skip

REFUSED: Final = {
    # Its flags are in memory, where no filter can look; the C library goes on to clone.
    "clone3": ENOSYS,
    # A log handler that wants to connect again goes without.
    "socket": EACCES,
}

POLICY: Final = Policy(
    frozenset(name for names in NEEDED.values() for name in names.split()), CHECKS, REFUSED
)
