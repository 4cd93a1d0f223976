"""Which extended attributes a client may see and touch, and under which names."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vfs.errors import oserror

if TYPE_CHECKING:
    from fsimpl.passthrough.handle import HostHandle
    from fsimpl.passthrough.idmap import IdMap
    from fsimpl.passthrough.options import PassthroughOptions
    from fsimpl.passthrough.xattrmap import XattrMap

_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_CAPABILITY: Final = b"security.capability"


class XattrPolicy:
    """What stands between a client's attributes and the host's, as the mount's options say.

    ``capability`` is the host's name of the client's security.capability if it is not the host's
    own, so that the host does not take it away when a file changes; else None.
    """

    __slots__ = ("_acl_refused", "_enabled", "_idmap", "_names", "capability")

    def __init__(self, options: PassthroughOptions, idmap: IdMap | None) -> None:
        self._enabled = options.xattr is not False
        self._acl_refused = options.acl_refused
        self._names: XattrMap | None = options.name_map
        self._idmap = idmap
        self.capability = self._names.capability if self._names is not None else None

    def _host_name(self, name: bytes) -> bytes:
        if not self._enabled or (self._acl_refused and name in _ACLS):
            raise oserror(errno.EOPNOTSUPP)
        return name if self._names is None else self._names.client(name)

    def get(self, handle: HostHandle, name: bytes) -> bytes:
        """Raises: EOPNOTSUPP, ENODATA; the host's."""
        try:
            host_name = self._host_name(name)
        except PermissionError:
            # Linux has no EPERM for reading an attribute: what one may not see is not there.
            raise oserror(errno.ENODATA) from None
        value = handle.getxattr(host_name)
        idmap = self._idmap
        if idmap is not None:
            if name in _ACLS:
                return idmap.acl_to_guest(value)
            if name == _CAPABILITY:
                return idmap.capability_to_guest(value)
        return value

    def set(self, handle: HostHandle, name: bytes, value: bytes, flags: int) -> None:
        """Raises: EOPNOTSUPP, EPERM; EINVAL for an ACL of an id without counterpart; the host's."""
        host_name = self._host_name(name)
        idmap = self._idmap
        if idmap is not None:
            if name in _ACLS:
                value = idmap.acl_to_host(value)
            elif name == _CAPABILITY:
                value = idmap.capability_to_host(value)
        handle.setxattr(host_name, value, flags)

    def remove(self, handle: HostHandle, name: bytes) -> None:
        """Raises: EOPNOTSUPP, EPERM; the host's."""
        handle.removexattr(self._host_name(name))

    def list(self, handle: HostHandle) -> list[bytes]:
        """Raises: EOPNOTSUPP; the host's."""
        if not self._enabled:
            raise oserror(errno.EOPNOTSUPP)
        names = handle.listxattr()
        if self._names is not None:
            told = map(self._names.server, names)
            names = [name for name in told if name is not None]
        if self._acl_refused:
            names = [name for name in names if name not in _ACLS]
        return names
