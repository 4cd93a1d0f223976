"""The words of `--mount`: `type=tmpfs,dst=/tmp,size=64m`, in the manner of container tools."""

from __future__ import annotations

import csv
import posixpath
from typing import Final, NamedTuple

from harness.errors import UsageError
from vfs import abi

_ALIASES: Final = {
    "source": "src",
    "destination": "dst",
    "target": "dst",
    "readonly": "ro",
}

_FLAGS: Final = {
    "ro": abi.MS_RDONLY,
    "nosuid": abi.MS_NOSUID,
    "nodev": abi.MS_NODEV,
    "noexec": abi.MS_NOEXEC,
    "noatime": abi.MS_NOATIME,
    "nodiratime": abi.MS_NODIRATIME,
    "relatime": abi.MS_RELATIME,
    "nosymfollow": abi.MS_NOSYMFOLLOW,
}

_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}


class MountSpec(NamedTuple):
    """One mount to make, as mount(2) takes it, with `text` as the user wrote it for messages.

    `destination` is absolute and normalized. `options` are those of the filesystem, in order.
    """

    text: str
    type: str
    destination: str
    source: str | None = None
    flags: int = 0
    options: tuple[tuple[str, str | None], ...] = ()

    def error(self, reason: str) -> UsageError:
        """Return an error that says which `--mount` is meant."""
        return UsageError(f"--mount {self.text}: {reason}")


def parse_mount_spec(text: str) -> MountSpec:
    """Parse one SPEC: comma-separated fields `key=value` or `key`, as a record of RFC 4180.

    A field that holds a comma is put in double quotes as a whole, a quote in it is doubled:
    `type=passthrough,"src=/a,b",dst=/srv`. Keys that are not of the mount itself (type, src,
    dst, and flags such as ro) are left as options of the filesystem.

    Raises:
        UsageError: malformed quotes, an empty or repeated key, no type, no dst or one that is not
            absolute or has "..", a flag with a value that is no truth value.
    """
    known: dict[str, str | None] = {}
    options: dict[str, str | None] = {}
    flags = 0
    for field in _split(text):
        key, equals, given = field.partition("=")
        key = _ALIASES.get(key, key)
        value = given if equals else None
        if not key:
            raise _error(text, "an empty field; fields are key=value, separated by one comma")
        if key in known or key in options:
            raise _error(text, f"'{key}' is given twice")
        if key in _FLAGS:
            known[key] = value
            if _truth(text, key, value):
                flags |= _FLAGS[key]
        elif key in ("type", "src", "dst"):
            if not value:
                raise _error(text, f"'{key}' needs a value")
            known[key] = value
        else:
            options[key] = value
    kind = known.get("type")
    if kind is None:
        raise _error(
            text, "no type: add type=tmpfs, type=passthrough, type=ext2, type=devtmpfs or type=bind"
        )
    return MountSpec(
        text=text,
        type=kind,
        destination=_destination(text, known.get("dst")),
        source=known.get("src"),
        flags=flags,
        options=tuple(options.items()),
    )


def split_fields(text: str) -> list[str]:
    """The fields of `text`, a record of RFC 4180. Raises: ValueError: malformed quotes."""
    try:
        records = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"{error}; put a field that holds a comma in quotes as a whole") from None
    return records[0] if records else []


def _split(text: str) -> list[str]:
    try:
        return split_fields(text)
    except ValueError as error:
        raise _error(text, str(error)) from None


def _destination(text: str, path: str | None) -> str:
    if path is None:
        raise _error(text, "no dst: add dst=/PATH, where it appears in the tree")
    if not path.startswith("/"):
        raise _error(text, f"dst={path} is not absolute: it is a path in the tree, from its root")
    if ".." in path.split("/"):
        raise _error(text, f"dst={path} has a '..'")
    # POSIX lets two leading slashes mean something else, and normpath keeps them.
    return posixpath.normpath("/" + path.lstrip("/"))


def _truth(text: str, key: str, value: str | None) -> bool:
    truth = True if value is None else _TRUTHS.get(value)
    if truth is None:
        raise _error(text, f"'{key}' is a flag: write {key}, or {key}=true or false")
    return truth


def _error(text: str, reason: str) -> UsageError:
    return UsageError(f"--mount {text or repr(text)}: {reason}")
