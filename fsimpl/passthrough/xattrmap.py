"""Names of extended attributes that differ between client and host. virtiofsd: ``--xattrmap``."""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple, Self

from vfs.errors import oserror

PREFIX: Final = "prefix"
OK: Final = "ok"
BAD: Final = "bad"
UNSUPPORTED: Final = "unsupported"
_MAP: Final = "map"
_KINDS: Final = (PREFIX, OK, BAD, UNSUPPORTED, _MAP)

CLIENT: Final = 1
SERVER: Final = 2
_SCOPES: Final = {"client": CLIENT, "server": SERVER, "all": CLIENT | SERVER}

_CAPABILITY: Final = b"security.capability"


class XattrRule(NamedTuple):
    """One rule. ``scope`` is CLIENT, SERVER or both; ``key`` is what a client's name begins with,
    ``prepend`` what a host's name does.
    """

    kind: str
    scope: int
    key: bytes
    prepend: bytes


class XattrMap:
    """An ordered list of rules, of which the first that matches decides.

    A name that none matches is treated as one of type ``bad``: the map has a hole, and what nobody
    spoke of is not let through.
    """

    __slots__ = ("_client", "_server", "rules", "text")

    def __init__(self, text: str, rules: tuple[XattrRule, ...]) -> None:
        """``text`` is what the rules were written as, to be shown again."""
        self.text = text
        self.rules = rules
        self._client = [(rule.key, rule) for rule in rules if rule.scope & CLIENT]
        self._server = [(rule.prepend, rule) for rule in rules if rule.scope & SERVER]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Rules ``:type:scope:key:prepend:``, where ``:`` is the first character of the rule that
        is no white space; ``:map:key:prepend:`` stands for several.

        Raises: ValueError, which tells the rule and what is wrong with it.
        """
        parser = _Parser(text)
        rules: list[XattrRule] = []
        while not parser.at_end():
            if parser.seen_map:
                raise parser.error("'map' must be the last rule")
            rules += parser.rule()
        if not rules:
            raise ValueError("a map without a rule")
        return cls(text, tuple(rules))

    def client(self, name: bytes) -> bytes:
        """What the client's ``name`` is called on the host.

        Raises: EPERM (type bad, or no rule), EOPNOTSUPP (unsupported).
        """
        for key, rule in self._client:
            if name.startswith(key):
                if rule.kind == OK:
                    return name
                if rule.kind == PREFIX:
                    return rule.prepend + name
                raise oserror(errno.EPERM if rule.kind == BAD else errno.EOPNOTSUPP)
        raise oserror(errno.EPERM)

    def server(self, name: bytes) -> bytes | None:
        """What the host's ``name`` is called by the client; None if it is hidden."""
        for prepend, rule in self._server:
            if name.startswith(prepend):
                if rule.kind == OK:
                    return name
                # A name that is the prefix and nothing else stands for no name of the client's.
                return name[len(prepend) :] or None if rule.kind == PREFIX else None
        return None

    @property
    def capability(self) -> bytes | None:
        """The host's name of the client's security.capability if it has another one, which the host
        then does not remove when a file changes.
        """
        try:
            name = self.client(_CAPABILITY)
        except OSError:
            return None
        return name if name != _CAPABILITY else None


class _Parser:
    """Reads rules off ``text``; ``count`` of them so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.count = 0
        self.seen_map = False

    def at_end(self) -> bool:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.at == len(self.text)

    def error(self, reason: str) -> ValueError:
        return ValueError(f"rule {self.count + 1}: {reason}")

    def _field(self, delimiter: str, what: str) -> str:
        end = self.text.find(delimiter, self.at)
        if end < 0:
            raise self.error(f"no '{delimiter}' after the {what}")
        field = self.text[self.at : end]
        self.at = end + 1
        return field

    def rule(self) -> list[XattrRule]:
        delimiter = self.text[self.at]
        self.at += 1
        kind = self._field(delimiter, "type")
        if kind not in _KINDS:
            raise self.error(f"no type '{kind}': there are {', '.join(_KINDS)}")
        scope = 0
        if kind != _MAP:
            word = self._field(delimiter, "scope")
            if word not in _SCOPES:
                raise self.error(f"no scope '{word}': there are {', '.join(_SCOPES)}")
            scope = _SCOPES[word]
        key = os.fsencode(self._field(delimiter, "key"))
        prepend = os.fsencode(self._field(delimiter, "prepend"))
        self.count += 1
        if kind != _MAP:
            return [XattrRule(kind, scope, key, prepend)]
        self.seen_map = True
        return _expand(key, prepend)


def _expand(key: bytes, prepend: bytes) -> list[XattrRule]:
    """What ``:map:key:prepend:`` stands for. Names that would be mistaken for mapped ones are kept
    from the client, the host's own ones from sight.
    """
    both = CLIENT | SERVER
    mapped = XattrRule(PREFIX, both, key, prepend)
    if not key:
        return [mapped, XattrRule(BAD, both, b"", b"")]
    return [mapped, XattrRule(BAD, both, prepend, key), XattrRule(OK, both, b"", b"")]


# crosvm's rewrite_security_xattrs: a process without CAP_SYS_ADMIN keeps security.* for its guest,
# but for the label that the host itself goes by.
REWRITE_SECURITY: Final = XattrMap.parse(
    ":ok:all:security.selinux:security.selinux::map:security.:user.virtiofs.:"
)
