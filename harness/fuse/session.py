"""Opening and closing a session, and what manages requests and nodes rather than files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from harness.fuse import abi
from harness.fuse.request import NO_REPLY, answer

if TYPE_CHECKING:
    from harness.fuse.request import Header, Reply
    from harness.fuse.server import FuseServer

# Enough for a queue of any depth: the client's own limits come first.
MAX_BACKGROUND: Final = 65535
CONGESTION_THRESHOLD: Final = MAX_BACKGROUND * 3 // 4

ALWAYS_WANTED: Final = (
    abi.ASYNC_READ | abi.ATOMIC_O_TRUNC | abi.EXPORT_SUPPORT | abi.BIG_WRITES | abi.HAS_IOCTL_DIR
    | abi.AUTO_INVAL_DATA | abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO | abi.ASYNC_DIO
    | abi.PARALLEL_DIROPS | abi.MAX_PAGES | abi.HANDLE_KILLPRIV_V2 | abi.SETXATTR_EXT
    | abi.INIT_EXT | abi.CREATE_SUPP_GROUP | abi.DIRECT_IO_ALLOW_MMAP
)  # fmt: skip


def init(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_INIT. Linux: ``process_init_reply`` reads what is answered here.

    A major above ours is answered with ours, and the client tries again; one below, or a minor
    before 7.27, is EPROTO. A second INIT starts a new session: the client was replaced.
    """
    major, minor, max_readahead, offered = abi.INIT_IN.unpack_from(body)
    if major > abi.KERNEL_VERSION:
        return answer(reply, abi.INIT_OUT, abi.KERNEL_VERSION, abi.KERNEL_MINOR_VERSION, *(0,) * 11)
    if major < abi.KERNEL_VERSION or minor < abi.MINIMUM_MINOR_VERSION:
        return -errno.EPROTO
    if offered & abi.INIT_EXT:
        if len(body) < abi.INIT_EXT_IN.size:
            return -errno.EINVAL
        offered |= abi.INIT_EXT_IN.unpack_from(body)[4] << 32
    flags = offered & server.wanted_flags
    minor = min(minor, abi.KERNEL_MINOR_VERSION)
    max_pages = abi.REQUEST_PAGES if flags & abi.MAX_PAGES else abi.DEFAULT_REQUEST_PAGES
    server.start_session(minor, flags)
    return answer(
        reply, abi.INIT_OUT, abi.KERNEL_VERSION, minor, max_readahead, flags & 0xFFFFFFFF,
        MAX_BACKGROUND, CONGESTION_THRESHOLD, max_pages * abi.PAGE_SIZE, 1,
        max_pages if flags & abi.MAX_PAGES else 0, 0, flags >> 32, 0, 0,
    )  # fmt: skip


def destroy(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_DESTROY: the client unmounts."""
    server.reset()
    return 0


def forget(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    server.nodes.forget(header[3], abi.FORGET_IN.unpack_from(body)[0])
    return NO_REPLY


def batch_forget(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    count = abi.BATCH_FORGET_IN.unpack_from(body)[0]
    start = abi.BATCH_FORGET_IN.size
    fits = (len(body) - start) // abi.FORGET_ONE.size
    end = start + min(count, fits) * abi.FORGET_ONE.size
    nodes = server.nodes
    for nodeid, nlookup in abi.FORGET_ONE.iter_unpack(memoryview(body)[start:end]):
        nodes.forget(nodeid, nlookup)
    return NO_REPLY


def interrupt(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    server.parking.interrupt(abi.INTERRUPT_IN.unpack_from(body)[0])
    return NO_REPLY


def not_implemented(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """ENOSYS: most clients then never ask again."""
    return -errno.ENOSYS


def before_init(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """Any request outside of a session."""
    return -errno.EIO


def silence(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """What has no reply and means nothing here."""
    return NO_REPLY
