"""A config as the options of the sandbox and of the mount."""

from __future__ import annotations

import os
import stat
from typing import Final

from fsimpl.passthrough import PassthroughSuperblock
from fsimpl.passthrough.allowlist import PathAllowlist
from harness.errors import UsageError
from harness.migration import MigrationOptions
from harness.mountspec import MountSpec
from harness.sandbox import SandboxError, SandboxOptions
from harness.virtiofsd.config import Config
from vfs import abi
from vfs.mount import VirtualDentry

RESERVED_DESCRIPTORS: Final = 609
"""What virtiofsd keeps for itself: 509 memory regions, and 100 more."""


_OF_DIRECTORIES: Final = ("announce_submounts", "noannounce_submounts", "inode_file_handles")


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
            uid=config.uid,
            gid=config.gid,
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


def check_shared_directory(config: Config) -> None:
    """Raises: UsageError if neither a directory nor a regular file is there, or if it is a file
    and cannot be shared so.
    """
    path = config.shared_dir
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(f"--shared-dir {path}: {error.strerror}") from None
    if stat.S_ISREG(mode):
        if config.sandbox == "chroot":
            raise UsageError(f"--shared-dir {path}: a file is no root: share it without chroot")
    elif not stat.S_ISDIR(mode):
        raise UsageError(f"--shared-dir {path}: neither a directory nor a regular file")


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
    for name in ("max_dynamic_perm", "max_dynamic_xattr"):
        if getattr(config, name):
            words.append((name, str(getattr(config, name))))
    if config.allowlist_socket_path is not None:
        words.append(("allowlist", None))
    if config.ugid_map:
        words.append(("ugid_map", ";".join(config.ugid_map)))
    # Last, because it may end with a backslash, which would take a comma behind it for its own.
    if config.xattrmap is not None:
        words.append(("xattrmap", config.xattrmap))
    return tuple(words)


def allowlist_of(root: VirtualDentry) -> PathAllowlist | None:
    """The list of the paths that may be seen, if the mount at ``root`` has one."""
    superblock = root.dentry.superblock
    if isinstance(superblock, PassthroughSuperblock) and superblock.paths is not None:
        return superblock.paths.allowlist
    return None


def root_mount(config: Config, source: str) -> MountSpec:
    """The mount of the shared directory, which is at ``source`` now, as the root.

    A file is the only one in its root: a client takes nothing but a directory for one.
    """
    options = mount_options(config)
    if not os.path.isdir(source):
        source, name = os.path.split(os.path.realpath(source))
        one = (("only", name), ("noannounce_submounts", None), ("inode_file_handles", "never"))
        options = (*one, *(word for word in options if word[0] not in _OF_DIRECTORIES))
    return MountSpec(
        text=f"type=passthrough,src={config.shared_dir},dst=/",
        type="passthrough",
        destination="/",
        source=source,
        flags=abi.MS_RDONLY if config.readonly else 0,
        options=options,
    )
