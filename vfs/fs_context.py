"""What a mount or a remount asks for, collected before it is done. Linux: fs/fs_context.c.

``FilesystemContext`` takes parameters one by one and hands each to the filesystem's type at once,
so that a wrong one is refused where it is given; what was wrong stands in the context's log.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from vfs import abi
from vfs.credentials import CAP_SYS_ADMIN
from vfs.errors import oserror
from vfs.superblock import SB_FLAGS, FilesystemType, Superblock
from vfs.user_namespace import INITIAL_USER_NAMESPACE

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.file import FileDescription
    from vfs.virtual_filesystem import VirtualFilesystem

_logger = logging.getLogger(__name__)

# What a parameter's value is. Linux: enum fs_value_type.
VALUE_FLAG: Final = 0  # None: there is only a key
VALUE_STRING: Final = 1  # str
VALUE_BLOB: Final = 2  # bytes
VALUE_PATH: Final = 3  # bytes, a path that starts at ``dirfd``
VALUE_FILE: Final = 4  # FileDescription, borrowed

# What a context is for. Linux: enum fs_context_purpose.
FOR_MOUNT: Final = 0
FOR_RECONFIGURE: Final = 1

# How far a context is. Linux: enum fs_context_phase.
CREATE_PARAMS: Final = 0  # takes parameters for a new superblock
CREATING: Final = 1
AWAITING_MOUNT: Final = 2  # the superblock is there, to be mounted once
AWAITING_RECONFIGURE: Final = 3  # mounted; the next parameter starts a reconfiguration
RECONFIGURE_PARAMS: Final = 4  # takes parameters for a superblock that exists
RECONFIGURING: Final = 5
FAILED: Final = 6  # good for nothing more

# The superblock flags that a remount may touch. Linux: MS_RMT_MASK, without SB_I_VERSION.
REMOUNT_FLAGS: Final = (
    abi.MS_RDONLY | abi.MS_SYNCHRONOUS | abi.MS_MANDLOCK | abi.MS_LAZYTIME
)  # fmt: skip

LOG_LENGTH: Final = 8  # messages that a log keeps; the oldest makes room

# Keys that every filesystem takes, as (flags set, flags cleared), whatever value they come with.
_FLAG_KEYS: Final = {
    "dirsync": (abi.MS_DIRSYNC, 0),
    "lazytime": (abi.MS_LAZYTIME, 0),
    "mand": (abi.MS_MANDLOCK, 0),
    "ro": (abi.MS_RDONLY, 0),
    "sync": (abi.MS_SYNCHRONOUS, 0),
    "async": (0, abi.MS_SYNCHRONOUS),
    "nolazytime": (0, abi.MS_LAZYTIME),
    "nomand": (0, abi.MS_MANDLOCK),
    "rw": (0, abi.MS_RDONLY),
}


class Parameter(NamedTuple):
    """Linux: ``struct fs_parameter``. ``kind`` is a VALUE_*, which says what ``value`` is."""

    key: str
    kind: int = VALUE_FLAG
    value: str | bytes | FileDescription | None = None
    dirfd: int = abi.AT_FDCWD


class FilesystemContext:
    """Linux: ``struct fs_context``. Used in ``with``, or ended by ``put``.

    Holds a reference on ``superblock`` once there is one. ``flags`` are SB_*, and ``flags_mask``
    says which of them were spoken of, which is what a reconfiguration changes. ``fs_private``
    belongs to the type. ``user_ns`` will be the superblock's. ``exclusive`` forbids to share a
    superblock that exists. ``log`` keeps messages for the reader of fsopen's descriptor; without
    one they go to ``logging``. ``old_api`` says that mount(2) made it.
    """

    __slots__ = (
        "_source", "cred", "exclusive", "flags", "flags_mask", "fs_private", "log", "old_api",
        "phase", "purpose", "superblock", "type", "user_ns", "vfs",
    )  # fmt: skip

    def __init__(
        self,
        vfs: VirtualFilesystem,
        fstype: FilesystemType,
        cred: Credentials,
        flags: int = 0,
        *,
        flags_mask: int = 0,
        superblock: Superblock | None = None,
    ) -> None:
        """For a new mount. Linux: ``fs_context_for_mount``. ``superblock`` is not for callers."""
        self.vfs = vfs
        self.type = fstype
        self.cred = cred
        self.user_ns = cred.user_ns
        self.superblock = superblock
        self.flags = flags & SB_FLAGS
        self.flags_mask = flags_mask
        self.purpose = FOR_MOUNT
        self.phase = CREATE_PARAMS
        self.fs_private: object = None
        self.exclusive = False
        self.old_api = False
        self.log: deque[bytes] | None = None
        self._source: bytes | None = None
        if superblock is not None:
            self.user_ns = superblock.user_ns
            self.purpose = FOR_RECONFIGURE
            self.phase = RECONFIGURE_PARAMS
        fstype.init_context(self)
        if superblock is not None:
            superblock.get()

    @classmethod
    def for_reconfigure(
        cls, superblock: Superblock, cred: Credentials, flags: int = 0, flags_mask: int = 0
    ) -> Self:
        """For a remount of ``superblock``, of which it takes a reference. Linux:
        ``fs_context_for_reconfigure``.
        """
        return cls(
            superblock.vfs, superblock.type, cred, flags,
            flags_mask=flags_mask, superblock=superblock,
        )  # fmt: skip

    def put(self) -> None:
        """Linux: ``put_fs_context``. The context must not be used afterwards."""
        self._free()
        superblock, self.superblock = self.superblock, None
        if superblock is not None:
            superblock.put()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.put()

    def _free(self) -> None:
        if self.fs_private is not None:
            self.type.free_context(self)
            self.fs_private = None

    @property
    def source(self) -> bytes:
        """What is mounted, as mountinfo shows it; "none" as long as nobody has said."""
        return b"none" if self._source is None else self._source

    def require_source(self) -> bytes:
        """``source``, for types that cannot do without. Raises: EINVAL."""
        if self._source is None:
            raise self.invalf("No source specified")
        return self._source

    # Messages

    def errorf(self, message: str) -> None:
        """Linux: ``errorf``."""
        self._write("e", message)

    def warnfc(self, message: str) -> None:
        """Linux: ``warnfc``: with the type's name before it."""
        self._write("w", f"{self.type.name}: {message}")

    def invalf(self, message: str) -> OSError:
        """Linux: ``invalf``: logs ``message``; returns EINVAL, to be raised."""
        self._write("e", message)
        return oserror(errno.EINVAL)

    def invalfc(self, message: str) -> OSError:
        """Linux: ``invalfc``: the same, with the type's name before it."""
        return self.invalf(f"{self.type.name}: {message}")

    def _write(self, level: str, message: str) -> None:
        if self.log is None:
            _logger.debug("%s", message)
        else:
            self.log.append(os.fsencode(f"{level} {message}\n"))

    # Parameters

    def parse(self, parameter: Parameter) -> None:
        """Linux: ``vfs_parse_fs_param``: a superblock flag, one of the type's, or the source.

        Raises: EINVAL (unknown, or what the type says of its value); what the type adds.
        """
        key = parameter.key
        if key in _FLAG_KEYS:
            set_bits, clear_bits = _FLAG_KEYS[key]
            self.flags = self.flags & ~clear_bits | set_bits
            self.flags_mask |= set_bits | clear_bits
        elif not self.type.parse_parameter(self, parameter) and not self._parse_source(parameter):
            raise self.invalfc(f"Unknown parameter '{key}'")

    def _parse_source(self, parameter: Parameter) -> bool:
        """Linux: ``vfs_parse_fs_param_source``."""
        if parameter.key != "source":
            return False
        if parameter.kind != VALUE_STRING:
            raise self.invalf("Non-string source")
        if self._source is not None:
            raise self.invalf("Multiple sources")
        assert isinstance(parameter.value, str)
        self._source = os.fsencode(parameter.value)
        return True

    def parse_string(self, key: str, value: str | bytes | None) -> None:
        """Linux: ``vfs_parse_fs_string``. None is a flag, "" is a value. Raises: as ``parse``."""
        if value is None:
            self.parse(Parameter(key))
        else:
            self.parse(Parameter(key, VALUE_STRING, os.fsdecode(value)))

    def parse_monolithic(self, data: str | bytes | None) -> None:
        """mount(2)'s data, ``"size=1m,mode=755"``. Linux: ``generic_parse_monolithic``.

        What has no key, as in ``",,"`` or ``"=x"``, is passed over. Raises: as ``parse``.
        """
        for item in self.type.split_options(os.fsdecode(data or "")):
            key, equals, value = item.partition("=")
            if key:
                self.parse_string(key, value if equals else None)

    # What is done with them

    def mount_capable(self, cred: Credentials | None = None) -> bool:
        """Linux: ``mount_capable``: whether ``cred`` (default: the context's) may mount it."""
        user_ns = self.user_ns if self.type.userns_mount else INITIAL_USER_NAMESPACE
        return (cred or self.cred).ns_capable(user_ns, CAP_SYS_ADMIN)

    def get_tree(self) -> Superblock:
        """Make the superblock, or find it; the caller receives a reference of its own.
        Linux: ``vfs_get_tree``.

        Raises: EBUSY if there is one already; the type's.
        """
        if self.superblock is not None:
            raise oserror(errno.EBUSY)
        self.superblock = self.type.get_tree(self)
        return self.superblock.get()

    def reuse(self, superblock: Superblock) -> Superblock:
        """For a type's ``get_tree``: share ``superblock``, of which it returns a new reference.
        Linux: the second half of ``sget_fc``.

        Raises: EBUSY (FSCONFIG_CMD_CREATE_EXCL; another user namespace's).
        """
        if self.exclusive:
            self.warnfc("reusing existing filesystem not allowed")
            raise oserror(errno.EBUSY)
        if superblock.user_ns is not self.user_ns:
            self.warnfc("reusing existing filesystem in another namespace not allowed")
            raise oserror(errno.EBUSY)
        return superblock.get()

    def create(self, cred: Credentials, exclusive: bool = False) -> None:
        """Linux: ``vfs_cmd_create``: the superblock now waits in the context to be mounted.

        Raises: EBUSY (not the time for it), EPERM (``cred`` may not mount it); as ``get_tree``,
        after which the context is good for nothing.
        """
        if self.phase != CREATE_PARAMS:
            raise oserror(errno.EBUSY)
        if not self.mount_capable(cred):
            raise oserror(errno.EPERM)
        self.phase = CREATING
        self.exclusive = exclusive
        try:
            self.get_tree().put()
        except BaseException:
            self.phase = FAILED
            raise
        self.phase = AWAITING_MOUNT

    def reconfigure(self, cred: Credentials | None = None) -> None:
        """Linux: ``reconfigure_super``: what was asked for holds, all of it or nothing.

        Raises: EPERM (``cred``, default: who made the context, has no CAP_SYS_ADMIN over the
        superblock), EINVAL (a flag that no remount changes), EBUSY (read-only, while there are
        writers); the filesystem's.
        """
        superblock = self.superblock
        assert superblock is not None
        (cred or self.cred).ns_require(superblock.user_ns, CAP_SYS_ADMIN)
        mask = self.flags_mask
        if mask & ~REMOUNT_FLAGS:
            raise oserror(errno.EINVAL)
        if self.flags & mask & ~superblock.flags & abi.MS_RDONLY:
            superblock.require_no_writers()
        superblock.reconfigure(self)
        superblock.flags = superblock.flags & ~mask | self.flags & mask

    def command_reconfigure(self, cred: Credentials) -> None:
        """Linux: ``vfs_cmd_reconfigure``: ``reconfigure``, once; then the context is clean.

        Raises: EBUSY (not the time for it); as ``reconfigure``, after which the context is good for
        nothing.
        """
        if self.phase != RECONFIGURE_PARAMS:
            raise oserror(errno.EBUSY)
        self.phase = RECONFIGURING
        try:
            self.reconfigure(cred)
        except BaseException:
            self.phase = FAILED
            raise
        self.clean()

    def clean(self) -> None:
        """Linux: ``vfs_clean_context``: forget the parameters; the next ones reconfigure the
        superblock. ``flags_mask`` stays, so that a flag once spoken of is cleared if it is not
        spoken of again; so it is on Linux.
        """
        self._free()
        self.flags = 0
        self._source = None
        self.exclusive = False
        self.purpose = FOR_RECONFIGURE
        self.phase = AWAITING_RECONFIGURE

    def finish_clean(self) -> None:
        """Linux: ``finish_clean_context``: make a clean context ready for parameters."""
        if self.phase == AWAITING_RECONFIGURE:
            self.type.init_context(self)
            self.phase = RECONFIGURE_PARAMS
