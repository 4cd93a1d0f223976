"""fsopen, fsconfig, fspick: a mount or a remount put together step by step."""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import Final

from vfs import abi
from vfs.credentials import Credentials
from vfs.errors import oserror
from vfs.file import Buffers, FileDescription
from vfs.fs_context import (
    CREATE_PARAMS,
    LOG_LENGTH,
    RECONFIGURE_PARAMS,
    VALUE_BLOB,
    VALUE_FILE,
    VALUE_FLAG,
    VALUE_PATH,
    VALUE_STRING,
    FilesystemContext,
    Parameter,
)
from vfs.mount import VirtualDentry
from vfs.namei import EMPTY, FOLLOW, get_name
from vfs.syscalls.base import Path
from vfs.syscalls.mount_base import MountBase

_KEY_LIMIT: Final = 256  # bytes of a key or a string value, with the NUL
_BLOB_LIMIT: Final = 1 << 20
_PATH_COMMANDS: Final = (abi.FSCONFIG_SET_PATH, abi.FSCONFIG_SET_PATH_EMPTY)


class FsContextFile(FileDescription):
    """Linux: ``struct file`` with ``fscontext_fops``. Owns its context."""

    __slots__ = ("context",)
    seekable = False

    def __init__(self, where: VirtualDentry, context: FilesystemContext, cred: Credentials) -> None:
        """Takes over ``context``."""
        super().__init__(where.mount, where.dentry, abi.O_RDWR, cred)
        self.context = context

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        """The oldest message of the context's log, whole; one for each buffer.

        Raises: ENODATA (no more messages), EMSGSIZE (it is longer than the buffer, and stays).
        """
        log = self.context.log
        assert log is not None
        done = 0
        for buffer in buffers:
            if not log or len(log[0]) > len(buffer):
                if done:
                    break
                raise oserror(errno.EMSGSIZE if log else errno.ENODATA)
            message = log.popleft()
            buffer[: len(message)] = message
            done += len(message)
            if len(message) < len(buffer):
                break
        return done

    def release(self) -> None:
        self.context.put()
        super().release()


def context_of(file: FileDescription) -> FilesystemContext | None:
    """The context behind a descriptor of fsopen's or fspick's, borrowed; None for any other."""
    return file.context if isinstance(file, FsContextFile) else None


class FsContextSyscalls(MountBase):
    """Linux: fs/fsopen.c."""

    def fsopen(self, fstype: str | bytes, flags: int = 0) -> int:
        """fsopen(2): a descriptor of a context for a new ``fstype``.

        Raises: EPERM (no CAP_SYS_ADMIN over the mount namespace), EINVAL (flags; too long a name),
        ENODEV (no such type), EMFILE.
        """
        with self.lock:
            self._require_may_mount()
            if flags & ~abi.FSOPEN_CLOEXEC:
                raise oserror(errno.EINVAL)
            name = os.fsencode(fstype)
            if len(name) >= abi.PATH_MAX:
                raise oserror(errno.EINVAL)
            kind = self.vfs.filesystem_type(os.fsdecode(name))
            context = FilesystemContext(self.vfs, kind, self.cred)
            return self._install_context(context, bool(flags & abi.FSOPEN_CLOEXEC))

    def fspick(self, dirfd: int, path: Path, flags: int = 0) -> int:
        """fspick(2): a descriptor of a context that reconfigures what is mounted at ``path``.

        Raises: EPERM (no CAP_SYS_ADMIN over the mount namespace), EINVAL (flags), as ``Walk``,
        EINVAL (no mount's root), EMFILE.
        """
        with self.lock:
            self._require_may_mount()
            known = (
                abi.FSPICK_CLOEXEC
                | abi.FSPICK_SYMLINK_NOFOLLOW
                | abi.FSPICK_NO_AUTOMOUNT
                | abi.FSPICK_EMPTY_PATH
            )
            if flags & ~known:
                raise oserror(errno.EINVAL)
            lookup = 0 if flags & abi.FSPICK_SYMLINK_NOFOLLOW else FOLLOW
            if flags & abi.FSPICK_EMPTY_PATH:
                lookup |= EMPTY
            with self._lookup(dirfd, path, lookup) as where:
                if where.dentry is not where.mount.root:
                    raise oserror(errno.EINVAL)
                context = FilesystemContext.for_reconfigure(where.mount.superblock, self.cred)
            return self._install_context(context, bool(flags & abi.FSPICK_CLOEXEC))

    def _install_context(self, context: FilesystemContext, cloexec: bool) -> int:
        """Linux: ``fscontext_create_fd``. Takes over ``context``. Raises: EMFILE."""
        context.log = deque(maxlen=LOG_LENGTH)
        try:
            self.files.unused()
        except OSError:
            context.put()
            raise
        with self.vfs.anon_inodes.make_path(b"[fscontext]") as where:
            file = FsContextFile(where, context, self.cred)
        return self.files.install(file, cloexec)

    def fsconfig(
        self,
        fd: int,
        command: int,
        key: str | bytes | None = None,
        value: Path | None = None,
        aux: int = 0,
    ) -> None:
        """fsconfig(2): give the context a parameter (FSCONFIG_SET_*), or have done what was asked
        for (FSCONFIG_CMD_*). ``value`` of FSCONFIG_SET_BINARY is ``aux`` bytes.

        Raises: EINVAL (a negative fd; arguments that the command does not take, or lacks),
        EOPNOTSUPP (an unknown command), EBADF, EINVAL (no context; too long a key or value), ENOENT
        and ENAMETOOLONG (a path), EBADF (``aux``), EBUSY (not the time for it), EPERM (no
        CAP_SYS_ADMIN for FSCONFIG_CMD_*); as the context's ``parse``, ``create``, ``reconfigure``.
        """
        _check_arguments(fd, command, key is not None, value is not None, aux)
        with self.lock:
            context = context_of(self._file(fd))
            if context is None:
                raise oserror(errno.EINVAL)
            parameter = self._parameter(command, key, value, aux)
            context.finish_clean()
            if command in (abi.FSCONFIG_CMD_CREATE, abi.FSCONFIG_CMD_CREATE_EXCL):
                context.create(self.cred, command == abi.FSCONFIG_CMD_CREATE_EXCL)
            elif command == abi.FSCONFIG_CMD_RECONFIGURE:
                context.command_reconfigure(self.cred)
            elif context.phase in (CREATE_PARAMS, RECONFIGURE_PARAMS):
                context.parse(parameter)
            else:
                raise oserror(errno.EBUSY)

    def _parameter(
        self, command: int, key: str | bytes | None, value: Path | None, aux: int
    ) -> Parameter:
        """What the arguments of FSCONFIG_SET_* say; meaningless for FSCONFIG_CMD_*."""
        name = os.fsdecode(key or b"")
        data = b"" if value is None else os.fsencode(value)
        if len(os.fsencode(name)) >= _KEY_LIMIT:
            raise oserror(errno.EINVAL)
        if command == abi.FSCONFIG_SET_STRING:
            if len(data) >= _KEY_LIMIT:
                raise oserror(errno.EINVAL)
            return Parameter(name, VALUE_STRING, os.fsdecode(data))
        if command == abi.FSCONFIG_SET_BINARY:
            if len(data) < aux:
                raise oserror(errno.EFAULT)
            return Parameter(name, VALUE_BLOB, data[:aux])
        if command in _PATH_COMMANDS:
            get_name(data, EMPTY if command == abi.FSCONFIG_SET_PATH_EMPTY else 0)
            return Parameter(name, VALUE_PATH, data, aux)
        if command == abi.FSCONFIG_SET_FD:
            return Parameter(name, VALUE_FILE, self.files.get_file(aux), aux)
        return Parameter(name, VALUE_FLAG)


def _check_arguments(fd: int, command: int, has_key: bool, has_value: bool, aux: int) -> None:
    """What fsconfig(2) looks at before the descriptor. Raises: EINVAL, EOPNOTSUPP."""
    if fd < 0:
        raise oserror(errno.EINVAL)
    if command == abi.FSCONFIG_SET_FLAG:
        valid = has_key and not has_value and not aux
    elif command == abi.FSCONFIG_SET_STRING:
        valid = has_key and has_value and not aux
    elif command == abi.FSCONFIG_SET_BINARY:
        valid = has_key and has_value and 0 < aux <= _BLOB_LIMIT
    elif command in _PATH_COMMANDS:
        valid = has_key and has_value and (aux == abi.AT_FDCWD or aux >= 0)
    elif command == abi.FSCONFIG_SET_FD:
        valid = has_key and not has_value and aux >= 0
    elif command in (
        abi.FSCONFIG_CMD_CREATE,
        abi.FSCONFIG_CMD_CREATE_EXCL,
        abi.FSCONFIG_CMD_RECONFIGURE,
    ):
        valid = not has_key and not has_value and not aux
    else:
        raise oserror(errno.EOPNOTSUPP)
    if not valid:
        raise oserror(errno.EINVAL)
