"""The network of a container that has none of the host's."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import Final

_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sh22x")


def raise_loopback() -> None:
    """Bring `lo` up, which gives it 127.0.0.1 and ::1. Needs CAP_NET_ADMIN in the namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))
