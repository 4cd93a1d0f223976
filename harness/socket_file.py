"""A Unix socket at a path, as users name it for a daemon."""

from __future__ import annotations

import grp
import os
import socket
import stat
from contextlib import suppress
from errno import EADDRINUSE, ENOENT

from harness.errors import UsageError
from harness.virtiofs import listen


class SocketFile:
    """A Unix socket that listens at a path, for its owner, or for the members of a group, too.

    Closing it leaves the file, for the process that serves may not see it; `remove` does not.
    """

    def __init__(
        self,
        path: str,
        group: str | None = None,
        *,
        option: str = "--socket-path",
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        """Raises: UsageError if the path or the group can't be had."""
        if not path:
            # To bind(2) this is a request for a name of the kernel's choice.
            raise UsageError(f"{option} '': name a path")
        gid = None if group is None else _group(group)
        self.path = os.path.abspath(path)
        try:
            self.listener = listen(path, kind)
        except OSError as error:
            raise UsageError(f"{option} {path}: {_explained(path, error)}") from None
        found = os.stat(path)
        self._identity = (found.st_dev, found.st_ino)
        if gid is not None:
            try:
                os.chown(path, -1, gid)
                # Not before: to the group that it had, the socket was never open.
                os.chmod(path, 0o770)
            except OSError as error:
                self.remove()
                self.listener.close()
                raise UsageError(f"--socket-group {group}: {error.strerror}") from None

    def remove(self) -> None:
        """Unlink the file, unless it is another daemon's by now, or out of reach."""
        with suppress(OSError):
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise UsageError(f"--socket-group {name}: there is no group of that name") from None


def _explained(path: str, error: OSError) -> str:
    if error.errno == EADDRINUSE:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            return "a daemon listens there: end it first, or choose another path"
        return "something that is no socket is there: choose another path"
    if error.errno == ENOENT:
        return "No such directory: make it first"
    # Python has words of its own, and no number, for a path that is too long.
    return error.strerror or str(error)
