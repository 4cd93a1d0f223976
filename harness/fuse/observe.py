"""Who watches a server's requests: told of each, when its handler is done. Linux: a tracepoint.

The rows of the opcode table are replaced while somebody watches, as ftrace patches its calls in;
a server that nobody watches pays nothing.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.fuse.request import Handler, Header, Reply
from harness.wire import PENDING
from vfs.errors import WouldBlock

if TYPE_CHECKING:
    from harness.fuse.server import FuseServer

Observer = Callable[["FuseServer", Header, bytes, int, int], None]
"""``observer(server, header, body, result, nanoseconds)``, under the VFS lock. It must not raise.

`body` is what follows the header, without a WRITE's data. `result` is what the handler returned:
bytes, NO_REPLY or a negative errno; PENDING is a request that waits, and comes once more for every
time that it is tried again. The time is the handler's: not that of the transport, nor of the
waiting for the lock before it.
"""


def observed(handler: Handler, observers: tuple[Observer, ...]) -> Handler:
    """`handler`, telling `observers`."""

    def tell(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
        result = -errno.EIO
        begun = time.perf_counter_ns()
        try:
            result = handler(server, header, body, reply)
            return result
        except WouldBlock:
            result = PENDING
            raise
        except OSError as error:
            result = -(error.errno or errno.EIO)
            raise
        finally:
            took = time.perf_counter_ns() - begun
            for observer in observers:
                observer(server, header, body, result, took)

    return tell
