"""The command line of crosvm's vhost-user fs device, ``crosvm device fs``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn

from fsimpl.passthrough.owner_rules import parse_owner_rules
from harness.cli.options import Parser
from harness.errors import UsageError
from harness.virtiofsd.config import (
    FD_MAX,
    SECONDS_MAX,
    U32_MAX,
    Config,
    IdMap,
    check_choice,
    check_extents,
    check_number,
    check_path,
    check_tag,
)

_CACHES: Final = ("never", "auto", "always")
_TRUTHS: Final = {"true": True, "false": False}
_ALIASES: Final = {
    "cache_policy": "cache",
    "rewrite-security-xattrs": "rewrite_security_xattrs",
    "use_dax": "dax",
}
_BOOLEANS: Final = (
    "writeback", "rewrite_security_xattrs", "ascii_casefold", "dax", "posix_acl", "security_ctx",
    "unmap_guest_memory_on_fork",
)  # fmt: skip
_NUMBERS: Final = ("timeout", "negative_timeout", "max_dynamic_perm", "max_dynamic_xattr")
# Keys that --shared-dir PATH:TAG:... has besides those of --cfg.
_PLACE_KEYS: Final = ("type", "uidmap", "gidmap", "uid", "gid")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class _Raising(Parser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(argv: Sequence[str], *, euid: int = 0, egid: int = 0) -> Config:
    """Return what ``argv``, behind ``device fs``, asks for, as ``config_of``.

    Raises:
        UsageError: as ``config_of``, and for unknown options.
        SystemExit: it was --help.
    """
    parser = _Raising(prog="device fs", allow_abbrev=False)
    add_arguments(parser)
    return config_of(parser.parse_args(list(argv)), euid=euid, egid=egid)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the device's options. Their values are checked by ``config_of``."""
    add = parser.add_argument
    add("--socket-path", metavar="PATH", help="listen at this path")
    add("--socket", metavar="PATH", help="the same [deprecated]")
    add("--fd", metavar="N", help="an inherited socket that is connected")
    add("--tag", help="the name of the device")
    add(
        "--shared-dir", metavar="DIR", required=True,
        help="the directory to share; without --tag also DIR:TAG[:KEY=VALUE...]",
    )  # fmt: skip
    add("--uid-map", metavar="'IN OUT N[,...]'", help="of the user namespace [one's own uid]")
    add("--gid-map", metavar="'IN OUT N[,...]'", help="of the user namespace [one's own gid]")
    add("--cfg", metavar="KEY=VALUE,...", help="timeout, negative_timeout, cache, writeback, ...")
    add("--uid", metavar="N", help="who the device is in the user namespace [0]")
    add("--gid", metavar="N", help="its group there [0]")
    add("--disable-sandbox", action="store_true", help="only change the root, without seccomp")
    add("--skip-pivot-root", metavar="BOOL", default="false", help="leave the root as it is")
    add("--allowlist-socket-path", metavar="PATH", help="where paths to share are told")
    add("--log-level", metavar="LEVEL", default="info", help=argparse.SUPPRESS)


def config_of(given: argparse.Namespace, *, euid: int = 0, egid: int = 0) -> Config:
    """Return what the parsed options come to; ``euid`` and ``egid`` are who runs the daemon.

    Raises:
        UsageError: the first one that is malformed, that another one excludes, or that is missing.
    """
    directory, tag = given.shared_dir, given.tag
    words: dict[str, str] = {}
    if tag is None:
        directory, tag, words = _parse_place(given.shared_dir)
    for key in _PLACE_KEYS[1:]:
        option = key.replace("map", "_map")
        if key in words and getattr(given, option) is None:
            setattr(given, option, words[key])
    words = {key: value for key, value in words.items() if key not in _PLACE_KEYS}
    if given.cfg is not None:
        words |= parse_cfg("--cfg", given.cfg)
    socket_path = given.socket_path if given.socket_path is not None else given.socket
    fd = None if given.fd is None else check_number("--fd", given.fd, FD_MAX)
    if (fd is None) == (socket_path is None):
        raise UsageError("give one of --socket-path PATH and --fd N")
    skip = _truth("--skip-pivot-root", given.skip_pivot_root)
    sandbox = "namespace"
    if given.disable_sandbox:
        sandbox = "none" if skip else "chroot"
        for option in ("uid_map", "gid_map", "uid", "gid"):
            value = getattr(given, option)
            if value is not None and (option, value) not in (("uid", "0"), ("gid", "0")):
                name = option.replace("_", "-")
                raise UsageError(f"--{name} and --disable-sandbox exclude each other")
    config = Config(
        program="dentry device fs",
        socket_path=None if socket_path is None else check_path("--socket-path", socket_path),
        fd=fd,
        pid_file=False,
        tag=check_tag(tag),
        shared_dir=check_path("--shared-dir", directory),
        # What crosvm does without being asked.
        announce_submounts=False,
        inode_file_handles="never",
        xattr=True,
        posix_acl=True,
        security_label=True,
        timeout=5,
        sandbox=sandbox,
        seccomp="none" if given.disable_sandbox else "kill",
        uid_map=() if sandbox != "namespace" else _id_map("--uid-map", given.uid_map, euid),
        gid_map=() if sandbox != "namespace" else _id_map("--gid-map", given.gid_map, egid),
        uid=check_number("--uid", given.uid or "0", U32_MAX),
        gid=check_number("--gid", given.gid or "0", U32_MAX),
        skip_pivot_root=skip and sandbox == "namespace",
        allowlist_socket_path=None
        if given.allowlist_socket_path is None
        else check_path("--allowlist-socket-path", given.allowlist_socket_path),
        deprecated=() if given.socket is None else ("--socket is deprecated: use --socket-path",),
    )
    return _configured(config, words)


def parse_cfg(option: str, text: str) -> dict[str, str]:
    """Split ``KEY=VALUE`` words at commas, or at colons where the first word ends with one.

    A value in single or double quotes may hold both; a backslash in it takes what follows as it
    is. A key without a value is ``true``.

    Raises:
        UsageError: an unfinished quote, text behind one, an empty or repeated key, an unknown key.
    """
    words: dict[str, str] = {}
    separators, at = ",:", 0
    while True:
        match = _word(separators).match(text, at)
        if match is None:
            raise UsageError(f"{option} {text}: '{text[at:]}' is no KEY=VALUE")
        key, equals, value, end = match.groups()
        if not equals:
            value = "true"
        elif value[:1] in ("'", '"'):
            value = _ESCAPED.sub(r"\1", value[1:-1])
        _take(option, text, words, _ALIASES.get(key.strip(), key.strip()), value.strip())
        if not end:
            return words
        separators, at = end, match.end()


def _word(separators: str) -> re.Pattern[str]:
    """A key, and a value that ends with one of ``separators``, or in quotes."""
    plain = rf"""[^{separators}"'][^{separators}]*|"""
    return re.compile(
        rf"""([^=,:]*)(?:(=)("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|{plain}))?([{separators}]|\Z)""",
        re.DOTALL,
    )


def _take(option: str, text: str, words: dict[str, str], key: str, value: str) -> None:
    known = [*_BOOLEANS, *_NUMBERS, "cache", "privileged_quota_uids", "ugid_map"]
    if option == "--shared-dir":
        known += _PLACE_KEYS
    if key not in known:
        raise UsageError(f"{option} {text}: there is no '{key}'; keys are {', '.join(known)}")
    if key in words:
        raise UsageError(f"{option} {text}: '{key}' is given twice")
    words[key] = value


def _parse_place(text: str) -> tuple[str, str, dict[str, str]]:
    """``PATH:TAG[:KEY=VALUE...]``, as ``crosvm run`` takes it."""
    path, colon, rest = text.partition(":")
    tag, more, words = rest.partition(":")
    if not colon:
        raise UsageError("no tag: add --tag TAG, or write --shared-dir DIR:TAG")
    found = parse_cfg("--shared-dir", words) if more else {}
    if found.get("type", "fs") != "fs":
        raise UsageError(f"--shared-dir {text}: type={found['type']} is not served here, only fs")
    return path, tag, found


def _configured(config: Config, words: dict[str, str]) -> Config:
    changes: dict[str, Any] = {}
    for key, value in words.items():
        name = f"--cfg {key}="
        if key in _BOOLEANS:
            changes[key] = _truth(name, value)
        elif key in _NUMBERS:
            changes[key] = check_number(name, value, SECONDS_MAX)
        elif key == "cache":
            changes[key] = check_choice(name, value, _CACHES)
        elif key == "privileged_quota_uids":
            changes[key] = tuple(check_number(name, word, U32_MAX) for word in value.split(" "))
        else:
            changes[key] = _ugid_map(name, value)
    if "security_ctx" in changes:
        changes["security_label"] = changes.pop("security_ctx")
    if changes.pop("dax", False):
        raise UsageError("--cfg dax=true: a vhost-user device has no DAX window")
    if changes.pop("unmap_guest_memory_on_fork", False):
        raise UsageError("--cfg unmap_guest_memory_on_fork is not implemented: leave it out")
    config = replace(config, **changes)
    if config.ascii_casefold and config.negative_timeout:
        raise UsageError("--cfg ascii_casefold and negative_timeout exclude each other")
    if config.ugid_map and config.sandbox != "none":
        raise UsageError("--cfg ugid_map needs --disable-sandbox and --skip-pivot-root=true")
    return config


def _ugid_map(name: str, text: str) -> tuple[str, ...]:
    try:
        parse_owner_rules(text)
    except ValueError as error:
        raise UsageError(f"{name}{error}") from None
    return tuple(row.strip() for row in text.split(";"))


def _id_map(option: str, text: str | None, own: int) -> IdMap:
    if text is None:
        return ((own, own, 1),)
    extents = []
    for extent in text.split(","):
        fields = extent.split()
        if len(fields) != 3:
            raise UsageError(f"{option} {text}: write it as 'INSIDE OUTSIDE COUNT', with commas")
        inside, outside, count = (check_number(f"{option} {text}:", f, U32_MAX) for f in fields)
        extents.append((inside, outside, count))
    return check_extents(option, tuple(extents))


def _truth(name: str, word: str) -> bool:
    if word not in _TRUTHS:
        raise UsageError(f"{name} {word}: write true or false")
    return _TRUTHS[word]
