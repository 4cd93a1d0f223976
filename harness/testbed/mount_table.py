"""/proc/PID/mountinfo as rows, and whole tables of several tasks made comparable.

Mount ids, peer groups and device numbers mean nothing across systems. They are renamed by first
appearance over all tasks in a fixed order, so that a peer group that joins two namespaces shows.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple


class Row(NamedTuple):
    """One line of mountinfo. ``dev`` is major << 20 | minor (or a renamed number); peer groups are
    0 where there is none; strings have their escapes undone.
    """

    id: int
    parent: int
    dev: int
    root: bytes
    mount_point: bytes
    options: bytes
    shared: int
    master: int
    propagate_from: int
    unbindable: bool
    fstype: bytes
    source: bytes
    super_options: bytes

    def __str__(self) -> str:
        groups = (("shared", self.shared), ("master", self.master), ("from", self.propagate_from))
        tags = [f"{name}:{group}" for name, group in groups if group]
        if self.unbindable:
            tags.append("unbindable")
        point, root, source, options, fstype, super_options = map(
            os.fsdecode,
            (
                self.mount_point, self.root, self.source, self.options, self.fstype,
                self.super_options,
            ),
        )  # fmt: skip
        return (
            f"{self.id} on {self.parent} at {point!r} = dev {self.dev} {root!r} {options}"
            f" [{' '.join(tags)}] {fstype} {source!r} {super_options}"
        )


MountTables = dict[str, tuple[Row, ...]]

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


def unescape(text: bytes) -> bytes:
    """Undo mangle_path's octal escapes."""
    if b"\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), text)


def parse_mountinfo(text: bytes) -> tuple[Row, ...]:
    """The rows of a mountinfo file in its order. Raises: ValueError."""
    return tuple(map(_parse_row, text.split(b"\n")[:-1]))


def _parse_row(line: bytes) -> Row:
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", 6)
        fstype, source, super_options = fields[end + 1 :]
        shared = master = propagate_from = 0
        unbindable = False
        for tag in fields[6:end]:
            name, _, group = tag.partition(b":")
            if name == b"shared":
                shared = int(group)
            elif name == b"master":
                master = int(group)
            elif name == b"propagate_from":
                propagate_from = int(group)
            elif name == b"unbindable":
                unbindable = True
            else:
                raise ValueError(name)
        major, minor = fields[2].split(b":")
        return Row(
            int(fields[0]), int(fields[1]), int(major) << 20 | int(minor), unescape(fields[3]),
            unescape(fields[4]), fields[5], shared, master, propagate_from, unbindable,
            unescape(fstype), unescape(source), unescape(super_options),
        )  # fmt: skip
    except (ValueError, IndexError):
        raise ValueError(f"not a line of mountinfo: {line!r}") from None


class Renaming:
    """New names for mount ids, peer groups and devices, by first appearance."""

    __slots__ = ("_devices", "_groups", "_mounts")

    def __init__(self) -> None:
        self._mounts: dict[int, int] = {}
        self._groups: dict[int, int] = {0: 0}
        self._devices: dict[int, int] = {}

    def mount(self, mount_id: int) -> int:
        return self._mounts.setdefault(mount_id, len(self._mounts) + 1)

    def group(self, group: int) -> int:
        return self._groups.setdefault(group, len(self._groups))

    def device(self, dev: int) -> int:
        return self._devices.setdefault(dev, len(self._devices) + 1)

    def row(self, row: Row) -> Row:
        if row.fstype == b"rootfs":
            # The mount below everything is the host's own; how it was mounted says nothing.
            row = row._replace(options=b"", super_options=b"")
        return Row(
            self.mount(row.id), self.mount(row.parent), self.device(row.dev), row.root,
            row.mount_point, row.options, self.group(row.shared), self.group(row.master),
            self.group(row.propagate_from), row.unbindable, row.fstype, row.source,
            row.super_options,
        )  # fmt: skip


def rename_tables(texts: Mapping[str, bytes]) -> MountTables:
    """The mountinfo files of several tasks, parsed and renamed together in the order given."""
    renaming = Renaming()
    return {task: tuple(map(renaming.row, parse_mountinfo(text))) for task, text in texts.items()}


def tables_side_by_side(one: MountTables, other: MountTables, names: tuple[str, str]) -> str:
    """Both targets' tables in one list; a row that differs stands once for each, behind ``!``."""
    width = max(map(len, names))
    shown = ["mounts:"]
    for task in dict.fromkeys((*one, *other)):
        shown.append(f"    {task}:")
        for here, there in _paired(one.get(task, ()), other.get(task, ())):
            if here == there:
                shown.append(f"      {here}")
                continue
            for name, row in zip(names, (here, there), strict=True):
                shown.append(f"  !   {name:{width}} {'-' if row is None else row}")
    return "\n".join(shown)


def _paired(
    one: tuple[Row, ...], other: tuple[Row, ...]
) -> Iterator[tuple[Row | None, Row | None]]:
    """Rows that are about the same place stand together; the others stand alone."""
    here, there = ([(row.mount_point, row.root) for row in rows] for rows in (one, other))
    matcher = difflib.SequenceMatcher(a=here, b=there, autojunk=False)
    for _, i, i_end, j, j_end in matcher.get_opcodes():
        if i_end - i == j_end - j:
            yield from zip(one[i:i_end], other[j:j_end], strict=True)
        else:
            yield from ((row, None) for row in one[i:i_end])
            yield from ((None, row) for row in other[j:j_end])
