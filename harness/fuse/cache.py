"""What a client may keep of what we told it, and for how long."""

from __future__ import annotations

from typing import Final, NamedTuple

from harness.fuse import abi

_SECOND_NS: Final = 10**9


class CachePolicy(NamedTuple):
    """How a client may cache one filesystem type. libfuse: ``entry_timeout`` and its relatives.

    Timeouts are nanoseconds; ``negative_ns`` is for names that do not exist, 0 for not at all.
    ``file_flags`` and ``directory_flags`` are FOPEN_* given with every open. ``keep_unchanged``
    adds FOPEN_KEEP_CACHE where the client's attributes are provably current, which needs a
    filesystem that changes through our VFS alone.
    """

    entry_ns: int
    attr_ns: int
    negative_ns: int
    file_flags: int
    directory_flags: int
    keep_unchanged: bool


_DAY_NS: Final = 86400 * _SECOND_NS
_KEEP_DIRECTORY: Final = abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR

NEVER: Final = CachePolicy(0, 0, 0, abi.FOPEN_DIRECT_IO, 0, False)
METADATA: Final = CachePolicy(_DAY_NS, _DAY_NS, 0, abi.FOPEN_DIRECT_IO, _KEEP_DIRECTORY, False)
# Others (a shell, a second mount, the host) may change what the client caches, for a second.
AUTO: Final = CachePolicy(_SECOND_NS, _SECOND_NS, 0, 0, 0, True)
ALWAYS: Final = CachePolicy(_DAY_NS, _DAY_NS, 0, abi.FOPEN_KEEP_CACHE, _KEEP_DIRECTORY, False)

POLICIES: Final = {"never": NEVER, "metadata": METADATA, "auto": AUTO, "always": ALWAYS}
