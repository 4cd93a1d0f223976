"""The running kernel's tmpfs, to ask it. A detached mount per object: nothing is attached anywhere,
and it is gone when it is closed. Linux: fsopen(2), fsconfig(2), fsmount(2), which need root.
"""

from __future__ import annotations

import ctypes
import os

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    wrapped = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *wrapped))


class KernelTmpfs:
    """A tmpfs with the methods of ``os`` that the tests use, on paths below its root."""

    def __init__(self, **options: str) -> None:
        context = _syscall(_SYS_FSOPEN, b"tmpfs", 1)
        try:
            for key, value in options.items():
                _syscall(
                    _SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), value.encode(), 0
                )
            _syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            self.root = _syscall(_SYS_FSMOUNT, context, 1, 0)
        finally:
            os.close(context)

    def close(self) -> None:
        os.close(self.root)

    def path(self, path: str) -> str:
        return f"/proc/self/fd/{self.root}/{path.lstrip('/')}"

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        return os.open(self.path(path), flags | os.O_CLOEXEC, mode)

    def lstat(self, path: str) -> os.stat_result:
        return os.lstat(self.path(path))

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(self.path(path), mode)

    def mknod(self, path: str, mode: int, dev: int = 0) -> None:
        os.mknod(self.path(path), mode, dev)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.path(path))

    def link(self, old: str, new: str) -> None:
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(self.path(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self.path(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        old_path, new_path = self.path(old).encode(), self.path(new).encode()
        _check(_libc.renameat2(-100, old_path, -100, new_path, flags))

    def listdir(self, path: str) -> list[str]:
        return os.listdir(self.path(path))

    def truncate(self, path: str, length: int) -> None:
        os.truncate(self.path(path), length)

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        os.setxattr(self.path(path), name, value, flags, follow_symlinks=False)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self.path(path), name, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.path(path), name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return os.listxattr(self.path(path), follow_symlinks=False)

    def usage(self) -> tuple[int, int, int, int]:
        """Blocks, free blocks, files, free files."""
        figures = os.fstatvfs(self.root)
        return figures.f_blocks, figures.f_bfree, figures.f_files, figures.f_ffree


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))
