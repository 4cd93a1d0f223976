"""The passthrough's mount options: virtiofsd's and crosvm's, by their own names."""

from __future__ import annotations

import re
from typing import Final

from fsimpl.passthrough.idmap import IdMap, IdTable, parse_extents
from fsimpl.passthrough.owner_rules import OwnerRule, parse_owner_rules
from fsimpl.passthrough.policy import CACHE_WORDS, SECOND_NS, ExportPolicy, policy_of
from fsimpl.passthrough.xattrmap import REWRITE_SECURITY, XattrMap
from vfs.fs_context import FilesystemContext, Parameter
from vfs.fs_parser import (
    bad_value,
    parse_enum,
    parse_flag,
    parse_id,
    parse_string,
    parse_u32,
)

HANDLES_NEVER: Final = "never"
HANDLES_PREFER: Final = "prefer"
HANDLES_MANDATORY: Final = "mandatory"
_HANDLES: Final = {
    "never": HANDLES_NEVER,
    "prefer": HANDLES_PREFER,
    "fallback": HANDLES_PREFER,
    "mandatory": HANDLES_MANDATORY,
}

# Options that are a word, as (field, what the word says).
_FLAGS: Final = {
    "xattr": ("xattr", True),
    "noxattr": ("xattr", False),
    "posix_acl": ("posix_acl", True),
    "noposix_acl": ("posix_acl", False),
    "security_label": ("security_label", True),
    "nosecurity_label": ("security_label", False),
    "security_ctx": ("security_label", True),
    "nosecurity_ctx": ("security_label", False),
    "allowlist": ("allowlist", True),
    "rewrite_security_xattrs": ("rewrite_security_xattrs", True),
    "ascii_casefold": ("ascii_casefold", True),
    "writeback": ("writeback", True),
    "nowriteback": ("writeback", False),
    "allow_direct_io": ("allow_direct_io", True),
    "allow_mmap": ("allow_mmap", True),
    "noallow_mmap": ("allow_mmap", False),
    "preserve_noatime": ("preserve_noatime", True),
    "nopreserve_noatime": ("preserve_noatime", False),
    "readdirplus": ("readdirplus", True),
    "noreaddirplus": ("readdirplus", False),
    "killpriv_v2": ("killpriv_v2", True),
    "nokillpriv_v2": ("killpriv_v2", False),
    "announce_submounts": ("announce_submounts", True),
    "noannounce_submounts": ("announce_submounts", False),
}
# What a remount may change: it counts for files opened from then on.
_CHANGEABLE: Final = ("allow_direct_io", "preserve_noatime", "nopreserve_noatime")
_SECONDS: Final = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?")


class PassthroughOptions:
    """A context's ``fs_private``: what was asked for; None where nothing was.

    What contradicts itself is found by ``finish``, once all of it is there.
    """

    __slots__ = (
        "allow_direct_io", "allow_mmap", "allowlist", "announce_submounts", "ascii_casefold",
        "cache", "gid", "gid_extents", "gid_rules", "inode_file_handles", "killpriv_v2",
        "max_dynamic_perm", "max_dynamic_xattr", "negative_ns", "only", "owner_rules", "posix_acl",
        "preserve_noatime", "privileged_quota_uids", "readdirplus",
        "rewrite_security_xattrs", "security_label", "shown", "timeout_ns", "uid", "uid_extents",
        "uid_rules", "writeback", "xattr", "xattrmap",
    )  # fmt: skip

    def __init__(self) -> None:
        self.allow_direct_io: bool | None = None
        self.allow_mmap: bool | None = None
        self.allowlist = False
        self.announce_submounts: bool | None = None
        self.ascii_casefold = False
        self.cache: str | None = None
        self.gid = 0
        self.gid_extents: IdTable | None = None
        self.gid_rules: IdTable | None = None
        self.inode_file_handles: str | None = None
        self.killpriv_v2: bool | None = None
        self.max_dynamic_perm = 0
        self.max_dynamic_xattr = 0
        self.negative_ns = 0
        self.only: bytes | None = None
        self.owner_rules: tuple[OwnerRule, ...] = ()
        self.posix_acl: bool | None = None
        self.preserve_noatime: bool | None = None
        self.privileged_quota_uids: frozenset[int] = frozenset()
        self.readdirplus: bool | None = None
        self.rewrite_security_xattrs = False
        self.security_label = False
        self.timeout_ns: int | None = None
        self.uid = 0
        self.uid_extents: IdTable | None = None
        self.uid_rules: IdTable | None = None
        self.writeback = False
        self.xattr: bool | None = None
        self.xattrmap: XattrMap | None = None
        # The words as they were given, by key, for mountinfo.
        self.shown: dict[str, list[str]] = {}

    @staticmethod
    def of(context: FilesystemContext) -> PassthroughOptions:
        """The options in ``context``."""
        assert isinstance(context.fs_private, PassthroughOptions)
        return context.fs_private

    def parse(self, context: FilesystemContext, parameter: Parameter) -> bool:
        """Take ``parameter``; False for one that is not the passthrough's.

        Raises: EINVAL for a bad value, a missing one or one too many.
        """
        key = parameter.key
        if key in _FLAGS:
            parse_flag(context, parameter)
            field, value = _FLAGS[key]
            setattr(self, field, value)
            self._show_flag(key)
            return True
        try:
            if not self._parse_value(context, parameter):
                return False
        except ValueError as error:
            raise context.invalfc(f"{key}: {error}") from None
        word = f"{key}={parameter.value!s}".replace(",", "\\,")
        if key in ("translate_uid", "translate_gid"):
            self.shown.setdefault(key, []).append(word)
        else:
            self.shown[key] = [word]
        return True

    def _parse_value(self, context: FilesystemContext, parameter: Parameter) -> bool:
        key = parameter.key
        if key == "cache":
            # "none" is what virtiofsd's predecessor called it.
            word = parse_enum(context, parameter, (*CACHE_WORDS, "none"))
            self.cache = "never" if word == "none" else word
        elif key == "timeout":
            self.timeout_ns = _parse_seconds(context, parameter)
        elif key == "negative_timeout":
            self.negative_ns = _parse_seconds(context, parameter)
        elif key == "inode_file_handles":
            self.inode_file_handles = _HANDLES[parse_enum(context, parameter, tuple(_HANDLES))]
        elif key == "xattrmap":
            self.xattrmap = XattrMap.parse(parse_string(context, parameter))
        elif key == "translate_uid":
            self.uid_rules = self.uid_rules or IdTable()
            self.uid_rules.translate(parse_string(context, parameter))
        elif key == "translate_gid":
            self.gid_rules = self.gid_rules or IdTable()
            self.gid_rules.translate(parse_string(context, parameter))
        elif key == "uidmap":
            self.uid_extents = IdTable(total=True)
            parse_extents(parse_string(context, parameter), self.uid_extents)
        elif key == "gidmap":
            self.gid_extents = IdTable(total=True)
            parse_extents(parse_string(context, parameter), self.gid_extents)
        elif key == "uid":
            self.uid = parse_id(context, parameter)
        elif key == "gid":
            self.gid = parse_id(context, parameter)
        elif key == "privileged_quota_uids":
            words = parse_string(context, parameter).split()
            if not all(word.isascii() and word.isdigit() for word in words):
                raise bad_value(context, parameter)
            self.privileged_quota_uids = frozenset(map(int, words))
        elif key in ("max_dynamic_perm", "max_dynamic_xattr"):
            setattr(self, key, parse_u32(context, parameter))
        elif key == "only":
            self.only = parse_string(context, parameter).encode("utf-8", "surrogateescape")
            if b"/" in self.only or self.only in (b"", b".", b".."):
                raise ValueError("name one file of the directory")
        elif key == "ugid_map":
            self.owner_rules = parse_owner_rules(parse_string(context, parameter))
        else:
            return False
        return True

    def _show_flag(self, key: str) -> None:
        opposite = key.removeprefix("no") if key.startswith("no") else f"no{key}"
        self.shown.pop(opposite, None)
        self.shown[key] = [key]

    def take_shown(self, changes: PassthroughOptions) -> None:
        """Show what a remount changed, too."""
        for key in changes.shown:
            if key in _CHANGEABLE:
                self._show_flag(key)

    def finish(self, context: FilesystemContext) -> None:
        """Raises: EINVAL for options that exclude each other."""
        needs_xattr = {
            "posix_acl": bool(self.posix_acl),
            "security_label": self.security_label,
            "xattrmap": self.xattrmap is not None,
            "rewrite_security_xattrs": self.rewrite_security_xattrs,
        }
        if self.xattr is False:
            for key, given in needs_xattr.items():
                if given:
                    raise context.invalfc(f"{key} and noxattr exclude each other")
        if self.xattrmap is not None and self.rewrite_security_xattrs:
            raise context.invalfc("xattrmap and rewrite_security_xattrs exclude each other")
        rules = self.uid_rules or self.gid_rules
        extents = self.uid_extents or self.gid_extents
        if rules and extents:
            raise context.invalfc("translate_uid/gid and uidmap/gidmap exclude each other")
        if rules and self.posix_acl:
            raise context.invalfc("translate_uid/gid and posix_acl exclude each other")
        if self.only is not None and self.allowlist:
            raise context.invalfc("only and allowlist exclude each other")
        if self.ascii_casefold and self.negative_ns:
            raise context.invalfc("ascii_casefold and negative_timeout exclude each other")

    def require_changeable(self, context: FilesystemContext, present: PassthroughOptions) -> None:
        """For a remount of what has the options ``present``, which may be given again.

        Raises: EINVAL for an option that no remount changes.
        """
        for key, words in self.shown.items():
            if key not in _CHANGEABLE and words != present.shown.get(key):
                raise context.invalfc(f"Cannot change '{key}' on remount")

    @property
    def idmap(self) -> IdMap | None:
        """How ids are translated; None if they are the host's."""
        if not (
            self.uid_rules or self.gid_rules or self.uid_extents or self.gid_extents
            or self.uid or self.gid
        ):  # fmt: skip
            return None
        return IdMap(
            self.uid_extents or self.uid_rules or IdTable(),
            self.gid_extents or self.gid_rules or IdTable(),
            self.uid,
            self.gid,
        )

    @property
    def name_map(self) -> XattrMap | None:
        """How attributes are renamed; None if they are not."""
        return REWRITE_SECURITY if self.rewrite_security_xattrs else self.xattrmap

    @property
    def acl_refused(self) -> bool:
        """Whether POSIX ACLs are kept from the client: it was said so, or the ids in them cannot be
        translated.
        """
        translated = self.uid_rules is not None or self.gid_rules is not None
        return self.posix_acl is False or translated

    @property
    def policy(self) -> ExportPolicy:
        """What the transport is to know."""
        return policy_of(self.cache, self.timeout_ns, self.negative_ns, self.readdirplus)._replace(
            xattr=self.xattr is not False,
            writeback=self.writeback,
            allow_direct_io=bool(self.allow_direct_io),
            allow_mmap=self.allow_mmap,
            killpriv_v2=self.killpriv_v2,
            announce_submounts=self.announce_submounts,
            posix_acl=False if self.acl_refused else self.posix_acl,
            # Client and host have labels of their own then.
            security_label=self.security_label and not self.max_dynamic_xattr,
        )

    @property
    def speaks_of_paths(self) -> bool:
        """Whether inodes have to know their path."""
        dynamic = self.max_dynamic_perm or self.max_dynamic_xattr
        return bool(self.allowlist or self.only or self.owner_rules or dynamic)

    def show(self) -> str:
        """As mountinfo shows them."""
        return "".join("," + word for words in self.shown.values() for word in words)


def _parse_seconds(context: FilesystemContext, parameter: Parameter) -> int:
    """Seconds, with decimals if need be, as nanoseconds."""
    match = _SECONDS.fullmatch(parse_string(context, parameter))
    if match is None:
        raise bad_value(context, parameter)
    return int(match[1]) * SECOND_NS + int((match[2] or "").ljust(9, "0"))


def split_options(data: str) -> list[str]:
    """mount(2)'s data at its commas; one behind a backslash belongs to its value."""
    return [word.replace("\\,", ",") for word in re.split(r"(?<!\\),", data)]
