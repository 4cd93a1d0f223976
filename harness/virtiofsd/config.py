"""What a command line comes to, and the checks that both of them make."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fsimpl.passthrough.idmap import IdTable
from fsimpl.passthrough.xattrmap import XattrMap
from harness.errors import UsageError
from harness.virtiofs import TAG_MAX

CACHE_WORDS: Final = ("auto", "always", "never", "metadata")
FD_MAX: Final = (1 << 31) - 1
SECONDS_MAX: Final = 999_999_999
U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1

IdMap = tuple[tuple[int, int, int], ...]
"""Extents of a user namespace: (inside, outside, count)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A daemon to run. The defaults are virtiofsd's; a socket that is named by neither
    ``socket_path`` nor ``fd`` is systemd's.
    """

    program: str = "virtiofsd"
    """As messages and the system log call it."""

    # The socket.
    socket_path: str | None = None
    socket_group: str | None = None
    fd: int | None = None
    pid_file: bool = True
    """Whether a locked ``<socket_path>.pid`` keeps others away."""
    tag: str | None = None
    """1 to 36 bytes; None leaves the name to the virtual machine's command line."""
    thread_pool_size: int = 0
    """Threads that serve requests; 0: the one that reads the rings does."""

    # The shared directory, as the guest sees it.
    shared_dir: str
    readonly: bool = False
    announce_submounts: bool = True
    inode_file_handles: str = "prefer"
    xattr: bool = False
    posix_acl: bool = False
    security_label: bool = False
    xattrmap: str | None = None
    translate_uid: tuple[str, ...] = ()
    translate_gid: tuple[str, ...] = ()
    cache: str = "auto"
    timeout: int | None = None
    """Seconds that names and attributes are kept; None: what ``cache`` says."""
    negative_timeout: int = 0
    """Seconds that a name is known not to exist."""
    readdirplus: bool = True
    writeback: bool = False
    allow_direct_io: bool = False
    allow_mmap: bool = False
    preserve_noatime: bool = False
    killpriv_v2: bool = False
    rewrite_security_xattrs: bool = False
    ascii_casefold: bool = False
    privileged_quota_uids: tuple[int, ...] = ()
    max_dynamic_perm: int = 0
    max_dynamic_xattr: int = 0
    ugid_map: tuple[str, ...] = ()
    allowlist_socket_path: str | None = None

    # The sandbox.
    sandbox: str = "namespace"
    seccomp: str = "kill"
    modcaps: str = ""
    rlimit_nofile: int | None = None
    """Descriptors; 0 keeps the limit, None is as many as virtiofsd would take."""
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    uid: int = 0
    gid: int = 0
    """Who the daemon is inside of its user namespace."""
    skip_pivot_root: bool = False

    # Migration.
    migration_mode: str = "find-paths"
    migration_on_error: str = "abort"
    migration_verify_handles: bool = False
    migration_confirm_paths: bool = False

    # The process.
    log_level: str = "info"
    syslog: bool = False
    daemonize: bool = False
    deprecated: tuple[str, ...] = ()
    """What to say of spellings that are no longer recommended."""


def check_path(option: str, path: str) -> str:
    """Return ``path``. Raises: UsageError for what no system call takes as a path."""
    if not path:
        raise UsageError(f"{option} '': name a path")
    if "\0" in path:
        raise UsageError(f"{option} {path!r}: a path has no NUL")
    return path


def check_tag(tag: str) -> str:
    """Return ``tag``. Raises: UsageError."""
    size = len(os.fsencode(tag))
    if not 0 < size <= TAG_MAX or "\0" in tag:
        raise UsageError(f"--tag {tag!r}: a tag has 1 to {TAG_MAX} bytes, and this {size}")
    return tag


def check_number(option: str, text: str, high: int) -> int:
    """Return the number that ``text`` is. Raises: UsageError if it is none from 0 to ``high``."""
    digits = text.removeprefix("+")
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else -1
    if not 0 <= number <= high:
        raise UsageError(f"{option} {text}: write a number from 0 to {high}")
    return number


def check_choice(option: str, word: str, choices: Sequence[str]) -> str:
    """Return ``word``. Raises: UsageError if it is not one of ``choices``."""
    if word not in choices:
        raise UsageError(f"{option} {word}: choose one of {', '.join(choices)}")
    return word


def check_extents(option: str, extents: IdMap) -> IdMap:
    """Return ``extents``. Raises: UsageError for what the kernel refuses: none, beyond 2^32, or
    an id in two of them, on either side.
    """
    for side in (0, 1):
        end = 0
        for extent in sorted(extents, key=lambda extent: extent[side]):
            first, count = extent[side], extent[2]
            if not count or first + count > U32_MAX:
                raise UsageError(f"{option}: {first} and {count} from there are no range of ids")
            if first < end:
                where = ("inside", "outside")[side]
                raise UsageError(f"{option}: the id {first} {where} is mapped twice")
            end = first + count
    return extents


def check_xattrmap(option: str, text: str) -> str:
    """Return ``text``. Raises: UsageError if it is no map of extended attributes."""
    try:
        XattrMap.parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from None
    return text


def check_translation(option: str, rules: Sequence[str]) -> tuple[str, ...]:
    """Return ``rules``. Raises: UsageError for one that is malformed, or overlaps another."""
    table = IdTable()
    for rule in rules:
        try:
            table.translate(rule)
        except ValueError as error:
            raise UsageError(f"{option} {error}") from None
    return tuple(rules)
