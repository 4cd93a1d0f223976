"""virtiofsd's command line, 1.13's and, behind ``-o``, what is left of its predecessor in C."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final, NoReturn

from harness.cli.options import Parser, version
from harness.errors import UsageError
from harness.virtiofsd.config import (
    CACHE_WORDS,
    FD_MAX,
    U32_MAX,
    U64_MAX,
    Config,
    IdMap,
    check_choice,
    check_extents,
    check_number,
    check_path,
    check_tag,
    check_translation,
    check_xattrmap,
)

LOG_LEVELS: Final = ("error", "warn", "info", "debug", "trace", "off")
_SANDBOXES: Final = ("namespace", "chroot", "none")
_SECCOMP: Final = ("none", "kill", "log", "trap")
_HANDLES: Final = ("never", "fallback", "prefer", "mandatory")
_MIGRATION_MODES: Final = ("find-paths", "file-handles")
_MIGRATION_ERRORS: Final = ("abort", "guest-error")

# (flag, destination, help)
_FLAGS: Final = (
    ("--xattr", "xattr", "let the guest have extended attributes"),
    ("--posix-acl", "posix_acl", "let the guest have POSIX ACLs (implies --xattr)"),
    ("--security-label", "security_label", "label new files as the guest says (implies --xattr)"),
    ("--readonly", "readonly", "let the guest change nothing"),
    ("--allow-mmap", "allow_mmap", "let files be mapped with --cache never or metadata, too"),
    ("--writeback", "writeback", "let the guest collect writes"),
    ("--allow-direct-io", "allow_direct_io", "pass O_DIRECT on to the host"),
    ("--preserve-noatime", "preserve_noatime", "pass O_NOATIME on to the host"),
    ("--migration-verify-handles", "migration_verify_handles", "send file handles, too"),
    ("--migration-confirm-paths", "migration_confirm_paths", "check paths once more at the end"),
    ("--print-capabilities", "print_capabilities", "print what libvirt asks for, and end"),
    ("--syslog", "syslog", "log to the system log instead of stderr"),
)
# Pairs of which the last one given counts: (destination, off, on).
_SWITCHES: Final = (
    ("announce_submounts", "--no-announce-submounts", "--announce-submounts"),
    ("killpriv_v2", "--no-killpriv-v2", "--killpriv-v2"),
)
# What `-o WORD` does: (destination, value).
_WORDS: Final[dict[str, tuple[str, object]]] = {
    "xattr": ("xattr", True),
    "no_xattr": ("xattr", False),
    "readdirplus": ("readdirplus", True),
    "no_readdirplus": ("readdirplus", False),
    "writeback": ("writeback", True),
    "no_writeback": ("writeback", False),
    "allow_direct_io": ("allow_direct_io", True),
    "no_allow_direct_io": ("allow_direct_io", False),
    "announce_submounts": ("announce_submounts", True),
    "killpriv_v2": ("killpriv_v2", True),
    "no_killpriv_v2": ("killpriv_v2", False),
    "posix_acl": ("posix_acl", True),
    "no_posix_acl": ("posix_acl", False),
    "security_label": ("security_label", True),
    "no_security_label": ("security_label", False),
    "debug": ("debug", True),
}
# Asked for by old command lines; there is nothing to do.
_IGNORED_WORDS: Final = ("no_posix_lock", "no_flock", "allow_root")
_OLD_CACHES: Final = {"auto": "auto", "always": "always", "none": "never", "metadata": "metadata"}
_OLD_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warn", "err": "error"}


class _Raising(Parser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(argv: Sequence[str], *, activated: bool = False, euid: int = 0) -> Config:
    """Return what ``argv``, without the program's name, asks for, as ``config_of``.

    Raises:
        UsageError: as ``config_of``, and for unknown options.
        SystemExit: it was --help or --version.
    """
    parser = _Raising(prog="virtiofsd", allow_abbrev=False)
    add_arguments(parser)
    return config_of(parser.parse_args(list(argv)), activated=activated, euid=euid)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` virtiofsd's options. Their values are checked by ``config_of``."""
    add = parser.add_argument
    add("--shared-dir", metavar="DIR", help="the directory to share")
    add("--tag", help="offer the tag ourselves (QEMU 7.1 to 8.0 can crash on it)")
    add("--socket-path", metavar="PATH", help="listen at this path")
    add("--socket", metavar="PATH", help="the same [deprecated]")
    add("--socket-group", metavar="GROUP", help="who may connect, besides the owner")
    add("--fd", metavar="N", help="an inherited listening socket")
    add("--thread-pool-size", metavar="N", default="0", help="0: no threads [default]")
    add("--xattrmap", metavar="MAP", help="rename extended attributes: :map::user.virtiofs.:")
    add("--sandbox", metavar="MODE", default="namespace", help="namespace [default], chroot, none")
    add("--seccomp", metavar="ACTION", default="kill", help="kill [default], log, trap, none")
    add("--inode-file-handles", metavar="WHEN", default="prefer", help="never, prefer, mandatory")
    add("--cache", metavar="POLICY", default="auto", help="auto [default], always, metadata, never")
    add(
        "--no-readdirplus", dest="readdirplus", action="store_false",
        help="list names without attributes",
    )  # fmt: skip
    add("--modcaps", metavar="LIST", help="change the capabilities: +sys_admin:-chown")
    add("--log-level", metavar="LEVEL", default="info", help=f"{', '.join(LOG_LEVELS)} [info]")
    add("--rlimit-nofile", metavar="N", help="descriptors to have; 0: as many as now")
    for kind in ("uid", "gid"):
        add(
            f"--{kind}-map", action="append", default=[], metavar=":INSIDE:OUTSIDE:COUNT:",
            help=f"map {kind}s in the daemon's user namespace",
        )  # fmt: skip
        add(
            f"--translate-{kind}", action="append", default=[], metavar="TYPE:FROM:TO:COUNT",
            help=f"translate {kind}s between guest and host",
        )  # fmt: skip
    add("--migration-mode", metavar="MODE", default="find-paths", help="find-paths, file-handles")
    add("--migration-on-error", metavar="REACTION", default="abort", help="abort, guest-error")
    for flag, destination, text in _FLAGS:
        add(flag, dest=destination, action="store_true", help=text)
    for destination, off, on in _SWITCHES:
        add(on, dest=destination, action="store_true", default=destination == "announce_submounts")
        add(off, dest=destination, action="store_false")
    add("-V", "--version", action="version", version=f"dentry {version()}")
    add("--daemonize", dest="daemonize", action="store_true", help="serve in the background")
    add("-f", dest="foreground", action="store_true", help="in the foreground [deprecated]")
    add("-d", dest="debug", action="store_true", help="--log-level debug, and -f [deprecated]")
    add("-o", dest="compat", action="append", metavar="K[=V],...", help="options [deprecated]")
    add("--write-libvirt-json", metavar="DIR", help="write DIR/50-dentry.json for libvirt, and end")


def config_of(given: argparse.Namespace, *, activated: bool = False, euid: int = 0) -> Config:
    """Return what the parsed options come to.

    ``activated`` says that systemd has opened the socket; ``euid`` is who runs the daemon.

    Raises:
        UsageError: the first one that is malformed, that another one excludes, or that is missing.
    """
    deprecated = _deprecated(given)
    # Of the choices these may be written in capitals; -o and the others may not.
    for name in ("cache", "sandbox", "log_level"):
        setattr(given, name, getattr(given, name).lower())
    for line in given.compat or ():
        for option in line.split(","):
            _apply_compat(given, option)
    if given.shared_dir is None:
        raise UsageError("no directory: add --shared-dir DIR")
    socket_path = given.socket_path if given.socket_path is not None else given.socket
    fd = None if given.fd is None else check_number("--fd", given.fd, FD_MAX)
    if fd is not None and socket_path is not None:
        raise UsageError("--fd and --socket-path exclude each other: give one of them")
    if fd is not None and given.socket_group is not None:
        raise UsageError("--fd and --socket-group exclude each other: the socket is there already")
    if fd is None and socket_path is None:
        if not activated:
            raise UsageError("no socket: add --socket-path PATH or --fd N")
        if given.socket_group is not None:
            raise UsageError("--socket-group needs --socket-path: systemd has SocketGroup=")
    if given.socket_group == "":
        raise UsageError("--socket-group '': name a group")
    check_choice("--sandbox", given.sandbox, _SANDBOXES)
    uid_map = _id_map("--uid-map", given.uid_map)
    gid_map = _id_map("--gid-map", given.gid_map)
    if uid_map or gid_map:
        _check_may_map(given.sandbox, euid)
    check_choice("--migration-mode", given.migration_mode, _MIGRATION_MODES)
    _check_migration(given)
    if given.posix_acl and (given.translate_uid or given.translate_gid):
        raise UsageError(
            "--posix-acl and --translate-uid/gid exclude each other: ids in ACLs are not translated"
        )
    handles = check_choice("--inode-file-handles", given.inode_file_handles, _HANDLES)
    handles = "prefer" if handles == "fallback" else handles
    if given.modcaps is not None:
        _check_modcaps(given.modcaps, handles)
    if given.xattrmap is not None:
        check_xattrmap("--xattrmap", given.xattrmap)
    level = check_choice("--log-level", given.log_level, LOG_LEVELS)
    limit = given.rlimit_nofile
    return Config(
        socket_path=None if socket_path is None else check_path("--socket-path", socket_path),
        socket_group=given.socket_group,
        fd=fd,
        tag=None if given.tag is None else check_tag(given.tag),
        thread_pool_size=check_number("--thread-pool-size", given.thread_pool_size, U32_MAX),
        shared_dir=check_path("--shared-dir", given.shared_dir),
        readonly=given.readonly,
        announce_submounts=given.announce_submounts,
        inode_file_handles=handles,
        xattr=given.xattr or given.posix_acl or given.security_label or given.xattrmap is not None,
        posix_acl=given.posix_acl,
        security_label=given.security_label,
        xattrmap=given.xattrmap,
        translate_uid=check_translation("--translate-uid", given.translate_uid),
        translate_gid=check_translation("--translate-gid", given.translate_gid),
        cache=check_choice("--cache", given.cache, CACHE_WORDS),
        readdirplus=given.readdirplus and given.cache != "never",
        writeback=given.writeback,
        allow_direct_io=given.allow_direct_io,
        allow_mmap=given.allow_mmap,
        preserve_noatime=given.preserve_noatime,
        killpriv_v2=given.killpriv_v2,
        sandbox=given.sandbox,
        seccomp=check_choice("--seccomp", given.seccomp, _SECCOMP),
        modcaps=given.modcaps or "",
        rlimit_nofile=None if limit is None else check_number("--rlimit-nofile", limit, U64_MAX),
        uid_map=uid_map,
        gid_map=gid_map,
        migration_mode=given.migration_mode,
        migration_on_error=check_choice(
            "--migration-on-error", given.migration_on_error, _MIGRATION_ERRORS
        ),
        migration_verify_handles=given.migration_verify_handles,
        migration_confirm_paths=given.migration_confirm_paths,
        log_level="debug" if given.debug else level,
        syslog=given.syslog,
        daemonize=given.daemonize and not given.foreground and not given.debug,
        deprecated=deprecated,
    )


def _deprecated(given: argparse.Namespace) -> tuple[str, ...]:
    found = []
    if given.socket is not None:
        found.append("--socket is deprecated: use --socket-path")
    if given.compat is not None:
        found.append("-o is deprecated: use options of their own, as --cache auto")
    if given.debug:
        found.append("-d is deprecated: use --log-level debug")
    if given.foreground:
        found.append("-f is deprecated: it is the default")
    if given.inode_file_handles == "fallback":
        found.append("--inode-file-handles fallback is deprecated: use prefer")
    return tuple(found)


def _apply_compat(given: argparse.Namespace, option: str) -> None:
    key, equals, value = option.partition("=")
    if not equals:
        if key in _WORDS:
            setattr(given, *_WORDS[key])
        elif key not in _IGNORED_WORDS:
            raise UsageError(f"-o {option}: there is no such option")
    elif key == "source":
        given.shared_dir = value
    elif key in ("xattrmap", "modcaps"):
        setattr(given, key, value)
    elif key == "cache":
        given.cache = _OLD_CACHES[check_choice("-o cache", value, tuple(_OLD_CACHES))]
    elif key in ("loglevel", "log_level"):
        given.log_level = _OLD_LEVELS[check_choice(f"-o {key}", value, tuple(_OLD_LEVELS))]
    elif key == "sandbox":
        given.sandbox = check_choice("-o sandbox", value, ("namespace", "chroot"))
    else:
        raise UsageError(f"-o {option}: there is no such option")


def _id_map(option: str, texts: Sequence[str]) -> IdMap:
    extents: list[tuple[int, int, int]] = []
    for text in texts:
        separator = text[:1]
        fields = text[1:-1].split(separator) if separator else []
        if len(text) < 2 or separator.isalnum() or text[-1] != separator or len(fields) != 3:
            raise UsageError(f"{option} {text}: write it as :INSIDE:OUTSIDE:COUNT:")
        inside, outside, count = (check_number(f"{option} {text}:", f, U32_MAX) for f in fields)
        extents.append((inside, outside, count))
    return check_extents(option, tuple(extents))


def _check_may_map(sandbox: str, euid: int) -> None:
    if sandbox != "namespace":
        raise UsageError(f"--uid-map and --gid-map need --sandbox namespace, this is {sandbox}")
    if euid == 0:
        raise UsageError("--uid-map and --gid-map are for users: root needs --translate-uid/gid")


def _check_modcaps(modcaps: str, handles: str) -> None:
    for change in modcaps.split(":"):
        if len(change) < 2 or change[0] not in "+-":
            raise UsageError(f"--modcaps {modcaps}: write it as +sys_admin:-chown")
        if handles != "never" and change.lower() == "-dac_read_search":
            raise UsageError(
                f"--modcaps {change} takes what --inode-file-handles={handles} needs: add "
                "--inode-file-handles=never"
            )


def _check_migration(given: argparse.Namespace) -> None:
    if given.migration_mode == "file-handles":
        for word in ("verify-handles", "confirm-paths"):
            if getattr(given, f"migration_{word.replace('-', '_')}"):
                raise UsageError(f"--migration-{word} is for --migration-mode=find-paths only")
