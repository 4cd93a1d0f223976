"""What a transport may let its client do and keep, as the mount was asked. Data only."""

from __future__ import annotations

from typing import Final, NamedTuple

SECOND_NS: Final = 10**9
_DAY_NS: Final = 86400 * SECOND_NS


class ExportPolicy(NamedTuple):
    """How a passthrough wants to be exported; None leaves a choice to the transport.

    ``cache`` is virtiofsd's word, which the following fields spell out: timeouts in nanoseconds
    (``negative_ns`` for names that do not exist; 0: not to be kept), whether data bypasses the
    client's page cache (``direct_io``), and whether what it keeps of file and directory content
    outlives an open.

    ``writeback`` has the client collect writes; ``allow_mmap`` lets files that bypass the page
    cache be mapped nevertheless; ``readdirplus`` has listings carry attributes; ``killpriv_v2`` has
    the client ask for set-id bits to be dropped; ``xattr`` False says that there are no extended
    attributes; ``announce_submounts`` tells the client where
    another file system begins; ``posix_acl`` has the client check ACLs and ``security_label`` send
    labels for new files.
    """

    xattr: bool = True
    cache: str | None = None
    entry_ns: int | None = None
    attr_ns: int | None = None
    negative_ns: int = 0
    direct_io: bool = False
    keep_files: bool = False
    keep_directories: bool = False
    readdirplus: bool | None = None
    writeback: bool = False
    allow_direct_io: bool = False
    allow_mmap: bool | None = None
    killpriv_v2: bool | None = None
    announce_submounts: bool | None = None
    posix_acl: bool | None = None
    security_label: bool = False


# By virtiofsd's word: timeout, direct_io, keep_files, keep_directories, readdirplus.
_CACHE: Final = {
    "never": (0, True, False, False, False),
    "metadata": (_DAY_NS, True, False, True, True),
    "auto": (SECOND_NS, False, False, False, True),
    "always": (_DAY_NS, False, True, True, True),
}
CACHE_WORDS: Final = tuple(_CACHE)


def policy_of(
    cache: str | None, timeout_ns: int | None, negative_ns: int, readdirplus: bool | None
) -> ExportPolicy:
    """What ``cache`` means; ``timeout_ns`` is in place of its own, ``readdirplus`` too."""
    if cache is None:
        return ExportPolicy(
            entry_ns=timeout_ns,
            attr_ns=timeout_ns,
            negative_ns=negative_ns,
            readdirplus=readdirplus,
        )
    own_ns, direct_io, keep_files, keep_directories, plus = _CACHE[cache]
    kept_ns = own_ns if timeout_ns is None else timeout_ns
    return ExportPolicy(
        cache=cache,
        entry_ns=kept_ns,
        attr_ns=kept_ns,
        negative_ns=negative_ns,
        direct_io=direct_io,
        keep_files=keep_files,
        keep_directories=keep_directories,
        readdirplus=plus if readdirplus is None else readdirplus,
    )
