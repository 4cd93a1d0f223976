"""A config as the options of the sandbox and of the mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from harness.errors import UsageError
from harness.migration import MigrationOptions
from harness.mountspec import MountSpec
from harness.sandbox import SandboxError, SandboxOptions
from harness.virtiofsd.config import Config
from vfs import abi

RESERVED_DESCRIPTORS: Final = 609
"""What virtiofsd keeps for itself: 509 memory regions, and 100 more."""


class Awaited(NamedTuple):
    """An option that is understood, and whose effect nobody has written yet."""

    option: str
    given: Callable[[Config], object]


AWAITED: Final = (
    Awaited("--uid", lambda c: c.uid),
    Awaited("--gid", lambda c: c.gid),
    Awaited("--cfg ugid_map", lambda c: c.ugid_map),
    Awaited("--cfg max_dynamic_perm", lambda c: c.max_dynamic_perm),
    Awaited("--cfg max_dynamic_xattr", lambda c: c.max_dynamic_xattr),
    Awaited("--allowlist-socket-path", lambda c: c.allowlist_socket_path),
)
"""What `refuse_awaited` refuses. Whoever writes the effect of an option takes its row out."""


def refuse_awaited(config: Config) -> None:
    """Raises: UsageError for the first option that would have no effect."""
    for row in AWAITED:
        if row.given(config):
            raise UsageError(f"{row.option} is not implemented yet: leave it out")


def sandbox_options(config: Config, keep_fds: tuple[int, ...]) -> SandboxOptions:
    """The sandbox that ``config`` asks for; ``keep_fds`` stay open in it.

    Raises:
        UsageError: what the sandbox itself refuses.
    """
    try:
        return SandboxOptions(
            shared_dir=config.shared_dir,
            mode=config.sandbox,
            uid_map=config.uid_map,
            gid_map=config.gid_map,
            modcaps=config.modcaps,
            rlimit_nofile=config.rlimit_nofile,
            seccomp=config.seccomp,
            keep_dac_read_search=config.inode_file_handles != "never",
            keep_fds=keep_fds,
            skip_pivot_root=config.skip_pivot_root,
        )
    except SandboxError as error:
        raise UsageError(str(error)) from None


def migration_options(config: Config) -> MigrationOptions:
    """How the device is to be migrated."""
    return MigrationOptions(
        mode=config.migration_mode,
        on_error=config.migration_on_error,
        verify_handles=config.migration_verify_handles,
        confirm_paths=config.migration_confirm_paths,
    )


def check_shared_directory(path: str) -> None:
    """Raises: UsageError if no directory is there."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(f"--shared-dir {path}: {error.strerror}") from None
    if stat.S_ISREG(mode):
        raise UsageError(f"--shared-dir {path}: a file can't be shared yet: share its directory")
    if not stat.S_ISDIR(mode):
        raise UsageError(f"--shared-dir {path}: Not a directory")


def check_descriptors(config: Config, nofile: int) -> None:
    """Raises: UsageError if a limit of ``nofile`` leaves nothing to the guest."""
    reserved = RESERVED_DESCRIPTORS + max(config.thread_pool_size, 1)
    if nofile < reserved:
        raise UsageError(
            f"--rlimit-nofile {nofile}: the daemon itself needs {reserved} descriptors: raise it"
        )


def mount_options(config: Config) -> tuple[tuple[str, str | None], ...]:
    """The words for mount(2) of type=passthrough."""

    def switch(name: str, on: bool) -> tuple[str, None]:
        return (name if on else f"no{name}", None)

    words: list[tuple[str, str | None]] = [
        switch("xattr", config.xattr),
        switch("posix_acl", config.posix_acl),
        switch("security_label", config.security_label),
        switch("readdirplus", config.readdirplus),
        switch("writeback", config.writeback),
        switch("allow_mmap", config.allow_mmap),
        switch("killpriv_v2", config.killpriv_v2),
        switch("preserve_noatime", config.preserve_noatime),
        switch("announce_submounts", config.announce_submounts),
        ("inode_file_handles", config.inode_file_handles),
        ("cache", config.cache),
    ]
    for name in ("allow_direct_io", "rewrite_security_xattrs", "ascii_casefold"):
        if getattr(config, name):
            words.append((name, None))
    words += [("translate_uid", rule) for rule in config.translate_uid]
    words += [("translate_gid", rule) for rule in config.translate_gid]
    if config.timeout is not None:
        words.append(("timeout", str(config.timeout)))
    if config.negative_timeout:
        words.append(("negative_timeout", str(config.negative_timeout)))
    if config.privileged_quota_uids:
        words.append(("privileged_quota_uids", " ".join(map(str, config.privileged_quota_uids))))
    # Last, because it may end with a backslash, which would take a comma behind it for its own.
    if config.xattrmap is not None:
        words.append(("xattrmap", config.xattrmap))
    return tuple(words)


def root_mount(config: Config, source: str) -> MountSpec:
    """The mount of the shared directory, which is at ``source`` now, as the root."""
    return MountSpec(
        text=f"type=passthrough,src={config.shared_dir},dst=/",
        type="passthrough",
        destination="/",
        source=source,
        flags=abi.MS_RDONLY if config.readonly else 0,
        options=mount_options(config),
    )
