"""The socket on which the backend asks and the frontend answers."""

from __future__ import annotations

import logging
import socket

from harness.vhost_user import message as wire
from harness.vhost_user.connection import Connection, ProtocolError
from harness.vhost_user.loop import ServiceLoop

LOG = logging.getLogger(__name__)


class BackendChannel:
    """slave_channel of QEMU's struct vhost_user, our end of it.

    The frontend may hang up at any time; then there is nobody to tell anything, and that is all.
    All methods are called on the serving thread.
    """

    def __init__(self, fd: int, loop: ServiceLoop, *, acknowledged: bool) -> None:
        """Takes over `fd`. `acknowledged` (REPLY_ACK) has the frontend answer what it is told.

        Raises:
            OSError: `fd` is no socket.
        """
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self._connection = Connection(sock)
        self._loop = loop
        self._flags = wire.NEED_REPLY if acknowledged else 0
        self._closed = False
        loop.register(fd, self._readable)

    def config_changed(self) -> None:
        """Have the driver read the configuration space, and the status, again."""
        if self._closed:
            return
        try:
            self._connection.send(wire.BACKEND_CONFIG_CHANGE, flags=self._flags)
        except (ProtocolError, OSError) as error:
            LOG.warning("the frontend could not be told of a change: %s", str(error))
            self.close()

    def close(self) -> None:
        """Hang up. May be repeated."""
        if not self._closed:
            self._closed = True
            self._loop.unregister(self._connection.fileno())
            self._connection.close()

    def _readable(self) -> None:
        try:
            while (message := self._connection.receive()) is not None:
                with message:
                    if message.payload != wire.U64.pack(0):
                        # QEMU's vhost-user-fs does nothing about a change, and says so.
                        LOG.info("the frontend did not take request %d", message.request)
        except EOFError:
            self.close()
        except (ProtocolError, OSError) as error:
            LOG.warning("the backend's channel is closed: %s", str(error))
            self.close()
