"""What requests are made of: numbers and names at which programs break, and some that are right."""

from __future__ import annotations

import os
import stat
from typing import Final

ODD_32: Final = (0, 1, 2, 7, 0xFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
ODD_64: Final = (
    0, 1, 2, 0xFFF, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 4096, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 4096, (1 << 64) - 1,
)  # fmt: skip
NAMES: Final = (b"a", b"b", b"c", b"d", b"e", b"f")
"""Few, so that they meet."""
ODD_NAMES: Final = (
    b"", b".", b"..", b"/", b"a/b", b"../secret", b"/etc/passwd", b"x" * 255, b"x" * 256,
    b"y" * 5000, b"\xff\xfe", b"a\0b", b"..\0", b"\x01", b"a" * 4096, b"...", b"a ", b"\n",
)  # fmt: skip
TARGETS: Final = (
    b"a", b"../secret", b"../../outside/secret", b"/", b".", b"", b"x" * 4095, b"x" * 4096, b"a\0b"
)  # fmt: skip
ATTRIBUTES: Final = (
    b"user.a", b"user.b", b"trusted.a", b"security.a", b"security.capability", b"user.",
    b"system.posix_acl_access", b"system.posix_acl_default", b"nonsense", b"",
    b"user." + b"x" * 300,
)  # fmt: skip
RDEVS: Final = (0x103, 0x105, 0x501, 0, 0xFFFFFFFF)
MODES: Final = (0o644, 0o755, 0o4755, 0o2775, 0, 0o777, 0o1777, 0o7777)
KINDS: Final = (
    stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, 0,
    stat.S_IFDIR, stat.S_IFLNK, 0o170000,
)  # fmt: skip
OPEN_FLAGS: Final = (
    os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_NONBLOCK, os.O_RDWR | os.O_SYNC, os.O_RDONLY | os.O_DIRECTORY, 3,
    os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_PATH, os.O_RDWR | os.O_NOATIME,
    os.O_RDWR | os.O_DIRECT, os.O_TMPFILE | os.O_RDWR, 0x7FFFFFFF,
)  # fmt: skip
SIZES: Final = (0, 1, 7, 24, 100, 512, 4095, 4096, 4097, 16384)
OFFSETS: Final = (0, 0, 1, 100, 4095, 4096, 65536, 1 << 20)
IDS: Final = (0, 0, 0, 1000, 1001, 65534, 0x7FFFFFFF, 0xFFFFFFFF)
