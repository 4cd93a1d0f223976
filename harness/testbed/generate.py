"""Sequences of system calls on files at random.

The alphabet is small, so that names collide, and half of the paths are ones that earlier steps have
named, so that calls succeed. Nothing here can block (every open has O_NONBLOCK), and nothing
depends on what two systems may do differently: a directory is always listed whole and from its
start, because the order of names and the values of cookies are each filesystem's own.
"""

from __future__ import annotations

from typing import Any

from harness.testbed.choices import Choices
from harness.testbed.step import NAMES, Step, make_step
from vfs import abi

_TASKS = ("root", "alice", "bob")
_OTHER_TASKS = (("alice", 1000, 1000, (100,)), ("bob", 1001, 1001, (100, 1000)))
_IDS = (0, 100, 1000, 1001)
_NAMES = (b"a", b"b", b"c", b"d")
_ODD_NAMES = (b".", b"..", b"n" * 255, b"n" * 256, b"\xff\xfe", b"a b", b"...")
_MODES = (
    0o777, 0o755, 0o700, 0o644, 0o666, 0o600, 0o000, 0o1777, 0o2775, 0o2777, 0o4755, 0o6777,
    0o2711, 0o2644, 0o1770, 0o3777, 0o070, 0o007, 0o444, 0o222, 0o111,
)  # fmt: skip
_OFFSETS = (
    0, 1, 10, 4095, 4096, 4097, 8192, 10000, 65536, 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 40,
    (1 << 63) - 1, (1 << 63) - (1 << 20), -1,
)  # fmt: skip
_LENGTHS = (0, 1, 10, 100, 4095, 4096, 4097, 8192, 20000)
_XATTRS = (
    b"user.a", b"user.b", b"trusted.a", b"security.a", b"system.a", b"user.", b"a", b"user",
    b"user." + b"n" * 251,
)  # fmt: skip
_OPEN_FLAGS = (
    abi.O_CREAT, abi.O_CREAT, abi.O_CREAT | abi.O_EXCL, abi.O_TRUNC, abi.O_APPEND, abi.O_DIRECTORY,
    abi.O_NOFOLLOW, abi.O_PATH, abi.O_NOATIME, abi.O_CLOEXEC, abi.O_SYNC, abi.O_DSYNC,
)  # fmt: skip
_ACCESS_MODES = (abi.O_RDONLY, abi.O_WRONLY, abi.O_RDWR, abi.O_RDWR, abi.O_ACCMODE)
_RESOLVE = (
    abi.RESOLVE_NO_XDEV, abi.RESOLVE_NO_MAGICLINKS, abi.RESOLVE_NO_SYMLINKS, abi.RESOLVE_BENEATH,
    abi.RESOLVE_IN_ROOT, 0x40,
)  # fmt: skip
_FALLOCATE = (
    0, abi.FALLOC_FL_KEEP_SIZE, abi.FALLOC_FL_PUNCH_HOLE | abi.FALLOC_FL_KEEP_SIZE,
    abi.FALLOC_FL_PUNCH_HOLE, abi.FALLOC_FL_ZERO_RANGE, abi.FALLOC_FL_COLLAPSE_RANGE,
    abi.FALLOC_FL_INSERT_RANGE, abi.FALLOC_FL_UNSHARE_RANGE, 0x400,
)  # fmt: skip
_RENAME = (
    0, 0, abi.RENAME_NOREPLACE, abi.RENAME_EXCHANGE, abi.RENAME_EXCHANGE, abi.RENAME_WHITEOUT,
    abi.RENAME_EXCHANGE | abi.RENAME_NOREPLACE, abi.RENAME_NOREPLACE | abi.RENAME_WHITEOUT, 8,
)  # fmt: skip
_TYPES = (abi.S_IFREG, 0, abi.S_IFIFO, abi.S_IFSOCK, abi.S_IFCHR, abi.S_IFBLK, abi.S_IFDIR, 0o30000)
_TIMES = (
    (0, abi.UTIME_NOW), (0, abi.UTIME_OMIT), (1, 0), (1 << 31, 999_999_999), (-1, 5), (0, 10**9),
    (5, -1),
)  # fmt: skip
_RWF = (
    abi.RWF_APPEND, abi.RWF_NOAPPEND, abi.RWF_DSYNC, abi.RWF_SYNC, abi.RWF_HIPRI, abi.RWF_NOWAIT,
    abi.RWF_ATOMIC, abi.RWF_DONTCACHE, 0x400, abi.RWF_APPEND | abi.RWF_NOAPPEND,
)  # fmt: skip
_FCNTL = (abi.F_GETFD, abi.F_SETFD, abi.F_GETFL, abi.F_SETFL, abi.F_DUPFD, abi.F_DUPFD_CLOEXEC)


class _Sequence:
    """A sequence being made: what was named so far, and the steps."""

    def __init__(self, choices: Choices) -> None:
        self.one_of = choices.one_of
        self.chance = choices.chance
        self.integer = choices.integer
        self.steps: list[Step] = []
        self.paths: list[bytes] = [b"a", b"b", b"a/b", b"/", b"."]
        self.task = "root"
        # By task, how many opens there were, and which of the descriptors may be directories.
        self.opened: dict[str, int] = {}
        self.directories: dict[str, list[int]] = {}

    def add(self, call: str, *args: Any) -> None:
        self.steps.append(make_step(self.task, call, *args))

    def fd(self) -> int:
        return self.integer(-1, min(self.opened.get(self.task, 0), 6))

    def dirfd(self) -> int:
        if not self.chance(20):
            return abi.AT_FDCWD
        directories = self.directories.get(self.task)
        return int(self.one_of(directories)) if directories and self.chance(80) else self.fd()

    def opens(self, directory: bool) -> None:
        """The next step opens a file."""
        fd = self.opened.get(self.task, 0)
        self.opened[self.task] = fd + 1
        if directory:
            self.directories.setdefault(self.task, []).append(fd)

    def known(self) -> bytes:
        """A path, most often one that was named before."""
        path: bytes = self.one_of(self.paths) if not self.chance(25) else self.new()
        return self._decorated(path)

    def new(self) -> bytes:
        """A path that may not be there yet, and is known from now on."""
        names = [self.one_of(_NAMES)]
        if self.chance(10):
            names[0] = self.one_of(_ODD_NAMES)
        if self.chance(60):
            names.insert(0, self.one_of(self.paths))
        path = b"/".join(names)
        if len(path) < 600:
            self.paths.append(path)
        return path

    def _decorated(self, path: bytes) -> bytes:
        if not self.chance(12):
            return path
        prefix, suffix = self.one_of(
            [(b"", b"/"), (b"/", b""), (b"", b"/."), (b"", b"/.."), (b"../", b""), (b"./", b""),
             (b"//", b"//"), (b"a/../", b""), (b"./../", b"/")]
        )  # fmt: skip
        return bytes(prefix + path + suffix) if self.chance(95) else b""

    def mode(self) -> int:
        return int(self.one_of(_MODES))

    def at(self, *flags: int) -> int:
        """Some of ``flags``, rarely one that no call knows."""
        chosen = 0
        for flag in flags:
            if self.chance(25):
                chosen |= flag
        return chosen | (0x8000 if self.chance(2) else 0)

    def data(self) -> bytes:
        return bytes(self.one_of((b"x", b"y", b"0123456789abcdef"))) * int(self.one_of(_LENGTHS))


def _step_open(s: _Sequence) -> None:
    flags = s.one_of(_ACCESS_MODES) | abi.O_NONBLOCK
    for _ in range(s.integer(0, 3)):
        flags |= s.one_of(_OPEN_FLAGS)
    if s.chance(8):
        flags |= abi.O_TMPFILE
    path = s.new() if flags & abi.O_CREAT and s.chance(50) else s.known()
    s.opens(False)
    s.add("openat", s.dirfd(), path, flags, s.mode())


def _step_open_directory(s: _Sequence) -> None:
    flags = s.one_of((abi.O_DIRECTORY, abi.O_DIRECTORY, abi.O_PATH, abi.O_PATH | abi.O_DIRECTORY))
    s.opens(True)
    s.add("openat", s.dirfd(), s.known(), flags | abi.O_NONBLOCK, 0)


def _step_openat2(s: _Sequence) -> None:
    flags = s.one_of(_ACCESS_MODES) | abi.O_NONBLOCK
    for _ in range(s.integer(0, 2)):
        flags |= s.one_of(_OPEN_FLAGS)
    resolve = 0
    for _ in range(s.integer(1, 2)):
        resolve |= s.one_of(_RESOLVE)
    mode = s.mode() if flags & abi.O_CREAT or s.chance(5) else 0
    if flags & abi.O_PATH and not s.chance(10):
        flags &= abi.O_PATH | abi.O_DIRECTORY | abi.O_NOFOLLOW | abi.O_CLOEXEC
    dirfd, path = s.dirfd(), s.known()
    s.opens(False)
    s.add("openat2", dirfd, path, flags, mode, resolve)


def _step_mkdir(s: _Sequence) -> None:
    s.add("mkdirat", s.dirfd(), s.new() if not s.chance(20) else s.known(), s.mode())


def _step_mknod(s: _Sequence) -> None:
    kind = s.one_of(_TYPES)
    s.add("mknodat", s.dirfd(), s.new(), kind | s.mode(), 0)


def _step_symlink(s: _Sequence) -> None:
    target = s.known() if s.chance(80) else s.one_of((b"", b"/", b"x" * 4095, b"x" * 4096, b".."))
    s.add("symlinkat", target, s.dirfd(), s.new())


def _step_link(s: _Sequence) -> None:
    flags = s.at(abi.AT_SYMLINK_FOLLOW, abi.AT_EMPTY_PATH)
    if s.chance(15):
        s.add("linkat", s.fd(), b"", s.dirfd(), s.new(), flags | abi.AT_EMPTY_PATH)
    else:
        s.add("linkat", s.dirfd(), s.known(), s.dirfd(), s.new(), flags)


def _step_rename(s: _Sequence) -> None:
    new = s.new() if s.chance(50) else s.known()
    s.add("renameat2", s.dirfd(), s.known(), s.dirfd(), new, s.one_of(_RENAME))


def _step_unlink(s: _Sequence) -> None:
    s.add("unlinkat", s.dirfd(), s.known(), s.at(abi.AT_REMOVEDIR))


def _step_rmdir(s: _Sequence) -> None:
    s.add("rmdir", s.known())


def _step_chmod(s: _Sequence) -> None:
    if s.chance(20):
        s.add("fchmod", s.fd(), s.mode())
    else:
        flags = s.at(abi.AT_SYMLINK_NOFOLLOW, abi.AT_EMPTY_PATH) if s.chance(30) else 0
        s.add("fchmodat2", s.dirfd(), s.known(), s.mode(), flags)


def _step_chown(s: _Sequence) -> None:
    uid, gid = s.one_of((-1, *_IDS)), s.one_of((-1, *_IDS))
    if s.chance(20):
        s.add("fchown", s.fd(), uid, gid)
    else:
        flags = s.at(abi.AT_SYMLINK_NOFOLLOW, abi.AT_EMPTY_PATH)
        s.add("fchownat", s.dirfd(), s.known(), uid, gid, flags)


def _step_utimensat(s: _Sequence) -> None:
    times = None if s.chance(25) else (s.one_of(_TIMES), s.one_of(_TIMES))
    flags = s.at(abi.AT_SYMLINK_NOFOLLOW, abi.AT_EMPTY_PATH)
    if s.chance(15):
        s.add("utimensat", s.fd(), None, times, flags if s.chance(10) else 0)
    else:
        s.add("utimensat", s.dirfd(), s.known(), times, flags)


def _step_access(s: _Sequence) -> None:
    flags = s.at(abi.AT_EACCESS, abi.AT_SYMLINK_NOFOLLOW, abi.AT_EMPTY_PATH)
    s.add("faccessat2", s.dirfd(), s.known(), s.integer(0, 8), flags)


def _step_stat(s: _Sequence) -> None:
    flags = s.at(abi.AT_SYMLINK_NOFOLLOW, abi.AT_EMPTY_PATH)
    if s.chance(50):
        s.add("newfstatat", s.dirfd(), s.known(), flags)
    elif s.chance(50):
        s.add("statx", s.dirfd(), s.known(), flags, abi.STATX_BASIC_STATS)
    else:
        s.add("fstat", s.fd())


def _step_readlink(s: _Sequence) -> None:
    s.add("readlinkat", s.dirfd(), s.known())


def _step_xattr(s: _Sequence) -> None:
    name, prefix = s.one_of(_XATTRS), s.one_of(("", "l", "f"))
    what = s.fd() if prefix == "f" else s.known()
    operation = s.one_of(("set", "set", "get", "list", "remove"))
    if operation == "set":
        flags = s.at(abi.XATTR_CREATE, abi.XATTR_REPLACE) & 0xFF
        s.add(f"{prefix}setxattr", what, name, s.data()[:100], flags)
    elif operation == "list":
        s.add(f"{prefix}listxattr", what)
    else:
        s.add(f"{prefix}{operation}xattr", what, name)


def _step_write(s: _Sequence) -> None:
    if s.chance(60):
        s.add("write", s.fd(), s.data())
    elif s.chance(60):
        s.add("pwrite64", s.fd(), s.data(), s.one_of(_OFFSETS))
    else:
        data = tuple(s.data() for _ in range(s.integer(0, 3)))
        flags = s.one_of((0, 0, *_RWF))
        s.add("pwritev2", s.fd(), data, s.one_of(_OFFSETS), flags)


def _step_read(s: _Sequence) -> None:
    count = s.one_of((*_LENGTHS, 100_000))
    if s.chance(60):
        s.add("read", s.fd(), count)
    elif s.chance(60):
        s.add("pread64", s.fd(), count, s.one_of(_OFFSETS))
    else:
        s.add("preadv2", s.fd(), (count, 1, 4096), s.one_of(_OFFSETS), s.one_of((0, *_RWF)))


def _step_lseek(s: _Sequence) -> None:
    s.add("lseek", s.fd(), s.one_of(_OFFSETS), s.integer(0, 5))


def _step_truncate(s: _Sequence) -> None:
    if s.chance(50):
        s.add("ftruncate", s.fd(), s.one_of(_OFFSETS))
    else:
        s.add("truncate", s.known(), s.one_of(_OFFSETS))


def _step_fallocate(s: _Sequence) -> None:
    s.add("fallocate", s.fd(), s.one_of(_FALLOCATE), s.one_of(_OFFSETS), s.one_of(_OFFSETS))


def _step_copy(s: _Sequence) -> None:
    offsets = [s.one_of((None, *_OFFSETS)) for _ in range(2)]
    s.add(
        "copy_file_range",
        s.fd(),
        offsets[0],
        s.fd(),
        offsets[1],
        s.one_of((*_LENGTHS, (1 << 63) - 1)),
        s.one_of((0, 0, 0, 1)),
    )


def _step_descriptor(s: _Sequence) -> None:
    call = s.one_of(("close", "dup", "dup2", "dup3", "fcntl", "close_range", "fsync"))
    if call in ("close", "dup", "fsync"):
        s.add(call, s.fd())
    elif call == "dup2":
        s.add(call, s.fd(), s.fd())
    elif call == "dup3":
        s.add(call, s.fd(), s.fd(), s.one_of((0, abi.O_CLOEXEC, abi.O_APPEND)))
    elif call == "close_range":
        s.add(call, s.integer(0, 6), s.integer(0, 6), s.one_of((0, 0, 2, 4, 8)))
    else:
        s.add(call, s.fd(), s.one_of(_FCNTL), s.one_of((0, 1, 5, abi.O_APPEND, abi.O_NOATIME)))


def _step_directory(s: _Sequence) -> None:
    call = s.one_of(("chdir", "chdir", "chdir", "fchdir", "getcwd", "getcwd", "chroot"))
    if call == "getcwd":
        s.add(call)
    elif call == "fchdir":
        s.add(call, s.fd())
    else:
        s.add(call, s.known())


def _step_list(s: _Sequence) -> None:
    fd = s.fd()
    s.add("lseek", fd, 0, abi.SEEK_SET)
    s.add("getdents64", fd, 65536)
    s.add("lseek", fd, 0, abi.SEEK_SET)


def _step_umask(s: _Sequence) -> None:
    s.add("umask", s.one_of((0, 0o022, 0o077, 0o777, 0o002)))


_STEPS = (
    *[_step_open] * 5, _step_open_directory, _step_openat2, *[_step_mkdir] * 3, _step_mknod,
    _step_symlink, _step_link,
    *[_step_rename] * 2, *[_step_unlink] * 2, _step_rmdir, _step_chmod, _step_chown,
    _step_utimensat, _step_access, _step_stat, _step_readlink, *[_step_xattr] * 2,
    *[_step_write] * 3, *[_step_read] * 2, _step_lseek, _step_truncate, _step_fallocate,
    _step_copy, *[_step_descriptor] * 2, _step_directory, _step_list, _step_umask,
)  # fmt: skip


def _step_mount(s: _Sequence) -> None:
    call = s.one_of(("tmpfs", "tmpfs", "bind", "bind", "remount", "move", "umount", "umount"))
    if call == "tmpfs":
        flags = s.one_of((0, 0, abi.MS_RDONLY, abi.MS_NODEV, abi.MS_NOSYMFOLLOW))
        s.add("mount", "none", s.known(), "tmpfs", flags, "mode=777,size=1m")
    elif call == "bind":
        s.add("mount", s.known(), s.known(), None, abi.MS_BIND | s.one_of((0, abi.MS_REC)), None)
    elif call == "remount":
        flags = abi.MS_REMOUNT | s.one_of((0, abi.MS_BIND, abi.MS_BIND))
        flags |= s.one_of((0, abi.MS_RDONLY, abi.MS_NOATIME, abi.MS_NOEXEC))
        s.add("mount", None, s.known(), None, flags, None)
    elif call == "move":
        s.add("mount", s.known(), s.known(), None, abi.MS_MOVE, None)
    else:
        flags = s.one_of((0, 0, abi.MNT_DETACH, abi.MNT_EXPIRE, abi.UMOUNT_NOFOLLOW, 64))
        s.add("umount2", s.known(), flags)


def _step_namespace(s: _Sequence) -> None:
    if s.chance(50):
        s.add("unshare", s.one_of((NAMES["CLONE_NEWNS"], NAMES["CLONE_FS"])))
    else:
        s.add("pivot_root", s.known(), s.known())


_MOUNT_STEPS = (*[_step_mount] * 3, _step_namespace, _step_mkdir, _step_directory, *_STEPS[::2])


def file_sequence(choices: Choices, max_steps: int, mounts: bool = False) -> list[Step]:
    """A sequence by root, alice (1000) and bob (1001), in a tree that they all may write to.

    With ``mounts`` a third of the steps change the mount tree, and root makes most of them.
    """
    s = _Sequence(choices)
    s.add("chmod", b"/", s.one_of((0o777, 0o1777, 0o2777, 0o755)))
    for _ in range(s.integer(0, 5)):
        s.one_of(_STEPS)(s)
    for name, uid, gid, groups in _OTHER_TASKS:
        flags = s.one_of((0, 0, 0, NAMES["CLONE_FS"], NAMES["CLONE_FILES"]))
        s.add("clone", name, flags, uid, gid, groups)
        s.opened[name] = s.opened.get("root", 0)
        s.directories[name] = list(s.directories.get("root", ()))
    for _ in range(s.integer(1, max_steps)):
        s.task = "root" if mounts and s.chance(60) else s.one_of(_TASKS)
        s.one_of(_MOUNT_STEPS if mounts else _STEPS)(s)
    return s.steps
